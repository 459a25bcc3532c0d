"""Films of ground-truth systems: pictures of their positions, and what a camera does to them.

Pictures are grey levels from 0 (black background) to 1 (white body), row 0 at the top. `binary` pictures
test the centres of pixels; `grey` ones cross an edge linearly over one pixel, by the distance to the edge,
so that they are smooth in the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.data import Trajectories
from vinppl.simulate import simulate
from vinppl.state import Trajectory
from vinppl.systems import system

__all__ = ["Levels", "degrade", "draw_bar", "draw_disc", "film", "simulate_clips"]

Levels = Literal["binary", "grey"]
"""Black and white, or with smooth edges."""


def draw_bar(
    angle: Tensor,
    *,
    size: int = 28,
    length: float = 1.0,
    width: float = 0.32,
    limit: float = 1.2,
    levels: Levels = "binary",
) -> Tensor:
    """Draw a pendulum as a thick bar from its pivot, the centre of the picture, to its bob.

    With the default sizes a picture has about 44 white pixels.

    Args:
        angle: angle from hanging straight down, positive to the right (counter-clockwise), radians,
            shape `(*batch)`.
        size: pixels of a side.
        length: length of the bar.
        width: its width.
        limit: the picture shows -limit to limit, both ways.
        levels: black and white, or grey edges.

    Returns:
        Grey levels from 0 to 1, shape `(*batch, size, size)`.

    Raises:
        ValueError: for sizes that are not positive, or unknown `levels`.
    """
    right, up, pixel = _grid(angle, size, limit)
    require(length > 0 and width > 0, "length and width must be positive", f"{length} and {width}")
    angle = angle[..., None, None]
    sin, cos = torch.sin(angle), torch.cos(angle)
    along = (right * sin - up * cos - 0.5 * length).abs() - 0.5 * length  # beyond the ends
    across = (right * cos + up * sin).abs() - 0.5 * width  # beyond the sides
    outside = _length(along.clamp_min(0.0), across.clamp_min(0.0))
    return _shade(outside + torch.maximum(along, across).clamp_max(0.0), pixel, levels)


def draw_disc(
    position: Tensor,
    *,
    size: int = 28,
    radius: float = 0.626,
    limit: float = 2.5,
    levels: Levels = "binary",
) -> Tensor:
    """Draw the mass on a spring as a disc that moves horizontally through the centre of the picture.

    With the default sizes a picture has about 37 white pixels.

    Args:
        position: displacement to the right, shape `(*batch)`, in the unit of `limit`.
        size: pixels of a side.
        radius: radius of the disc.
        limit: the picture shows -limit to limit, both ways.
        levels: black and white, or grey edges.

    Returns:
        Grey levels from 0 to 1, shape `(*batch, size, size)`.

    Raises:
        ValueError: for sizes that are not positive, or unknown `levels`.
    """
    right, up, pixel = _grid(position, size, limit)
    require(radius > 0, "radius must be positive", radius)
    return _shade(_length(right - position[..., None, None], up) - radius, pixel, levels)


def _grid(position: Tensor, size: int, limit: float) -> tuple[Tensor, Tensor, float]:
    """Return pixel centres, `(1, size)` to the right and `(size, 1)` upwards, and the size of a pixel."""
    require(
        isinstance(position, Tensor) and position.is_floating_point(),
        "angles and positions must be a tensor of floats",
        position,
    )
    require(size >= 1, "size must be at least 1 pixel", size)
    require(limit > 0, "limit must be positive", limit)
    pixel = 2.0 * limit / size
    centres = pixel * (torch.arange(size, dtype=position.dtype, device=position.device) - 0.5 * (size - 1))
    return centres[None, :], -centres[:, None], pixel


def _length(x: Tensor, y: Tensor) -> Tensor:
    """Return the length of vectors, with derivative 0 at 0."""
    square = x.square() + y.square()
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def _shade(distance: Tensor, pixel: float, levels: str) -> Tensor:
    """Return grey levels for signed distances from an edge, negative inside."""
    require_choice("levels", levels, ("binary", "grey"))
    if levels == "binary":
        return (distance <= 0).to(distance.dtype)
    return (0.5 - distance / pixel).clamp(0.0, 1.0)


PICTURES: dict[str, Callable[..., Tensor]] = {
    "pendulum": draw_bar,
    "damped_pendulum": draw_bar,
    "mass_spring": draw_disc,
}
"""How each system is drawn."""


def film(system_name: str, path_q: Tensor, *, size: int = 28, levels: Levels = "binary") -> Tensor:
    """Draw positions of a system, one picture for each.

    Args:
        system_name: `pendulum`, `damped_pendulum` or `mass_spring`.
        path_q: angles or displacements, shape `(*batch, 1)`, such as `(num_clips, num_times, 1)`.
        size: pixels of a side.
        levels: black and white, or grey edges.

    Returns:
        Grey levels from 0 to 1, shape `(*batch, size, size)`.

    Raises:
        ValueError: for a system without a picture, or positions of another dimension.
    """
    require_choice("system_name", system_name, PICTURES)
    require(
        path_q.ndim >= 1 and path_q.shape[-1] == 1,
        f"positions of {system_name} must have shape (*batch, 1)",
        path_q,
        "Unsqueeze the last dimension.",
    )
    return PICTURES[system_name](path_q[..., 0], size=size, levels=levels)


def simulate_clips(
    system_name: str,
    *,
    num_clips: int,
    num_times: int,
    step_size: float = 0.1,
    seed: int = 0,
    size: int = 28,
    levels: Levels = "binary",
) -> tuple[Trajectories, Trajectory]:
    """Simulate films of a system, without noise, from its own distribution of initial states.

    One clip of 60 frames is the experiment of paper section 4.2.

    Args:
        system_name: see `film`.
        num_clips: number of films.
        num_times: frames of each.
        step_size: time between frames, in the system's unit of time.
        seed: of the initial states, as in `simulate`.
        size: pixels of a side.
        levels: black and white, or grey edges.

    Returns:
        The films, and the true path, `(num_clips, num_times, 1)`; both in the default dtype.

    Raises:
        ValueError: for a system without a picture, or sizes out of range.
    """
    require_choice("system_name", system_name, PICTURES)
    truth = system(system_name)
    _, path = simulate(
        truth,
        num_trajectories=num_clips,
        num_times=num_times,
        step_size=step_size,
        noise_scale=0.0,
        seed=seed,
        dtype=torch.get_default_dtype(),
    )
    frames = film(system_name, path.q, size=size, levels=levels)
    return Trajectories.from_frames(frames, path.time, time_unit=truth.units.get("time", "")), path


def degrade(
    frames: Tensor,
    *,
    blur: float = 0.0,
    noise: float = 0.0,
    offset: tuple[float, float] = (0.0, 0.0),
    shake: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Return frames as a worse camera would take them: displaced, shaken, out of focus, noisy.

    In this order: every frame is moved by `offset` and by a random amount of its own, with bilinear
    interpolation; it is blurred; pixels get noise and are clipped to [0, 1]. What lies outside is black.

    Args:
        frames: grey levels from 0 to 1, shape `(*batch, height, width)`.
        blur: standard deviation of a Gaussian blur, pixels.
        noise: standard deviation of independent Gaussian noise of every pixel, grey levels.
        offset: pixels by which all frames are moved, down and to the right.
        shake: standard deviation of the random displacement of every frame, down and to the right, pixels.
        seed: shake and noise use separate streams made from it.

    Returns:
        Grey levels from 0 to 1, of the shape and dtype of `frames`.

    Raises:
        ValueError: if `frames` are not pictures, or a standard deviation is negative.
    """
    require(
        frames.ndim >= 2 and frames.is_floating_point(),
        "frames must be floats of shape (*batch, height, width)",
        frames,
    )
    for name, value in (("blur", blur), ("noise", noise), ("shake", shake)):
        require(value >= 0 and math.isfinite(value), f"{name} must be 0 or more", value)
    shake_stream, noise_stream = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    batch = frames.shape[:-2]
    moved = torch.as_tensor(offset, dtype=torch.float64).expand(*batch, 2)
    if shake > 0:
        moved = moved + shake * torch.randn(*batch, 2, generator=shake_stream, dtype=torch.float64)
    result = frames
    if bool((moved != 0).any()) or blur > 0:
        moved = moved.to(frames)
        rows, columns = (_smear(moved[..., i], frames.shape[i - 2], blur) for i in range(2))
        result = rows @ frames @ columns.mT
    if noise > 0:
        draws = torch.randn(frames.shape, generator=noise_stream, dtype=torch.float64)
        result = result + noise * draws.to(frames)
    return result.clamp(0.0, 1.0)


def _smear(shift: Tensor, size: int, blur: float) -> Tensor:
    """Return the matrices `(*batch, size, size)` that move one side of pictures and then blur it."""
    pixel = torch.arange(size, dtype=shift.dtype, device=shift.device)
    moved = (1.0 - (pixel[:, None] - pixel - shift[..., None, None]).abs()).clamp_min(0.0)
    if blur == 0:
        return moved
    reach = torch.arange(-math.ceil(6 * blur) - 1, math.ceil(6 * blur) + 2, dtype=shift.dtype)
    total = torch.exp(-0.5 * (reach / blur).square()).sum()
    kernel = torch.exp(-0.5 * ((pixel[:, None] - pixel) / blur).square()) / total.to(shift)
    return kernel @ moved
