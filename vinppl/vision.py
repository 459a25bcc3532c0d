"""Networks between pictures and mechanics: decoders of positions, encoders of frames and of clips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn.functional import softplus

from vinppl._checks import require, require_choice
from vinppl.distributions import WrappedNormal
from vinppl.encoders import INITIAL_SITES, INITIAL_SPREAD, InitialPosterior
from vinppl.manifolds import Manifold

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = [
    "ClipEncoder",
    "FrameDecoder",
    "FrameEncoder",
    "NetworkName",
    "PositionEncoder",
    "PositionPosterior",
    "coordinates_of",
    "sample_times",
]

NetworkName = Literal["mlp", "conv"]
"""`mlp`: layers of rectified units, as in the paper; `conv`: two (transposed) convolutions of stride two."""

CHANNELS = (16, 32)
"""Channels of the two convolutions, from the picture on."""


class FrameEncoder(nn.Module):
    """A network from each frame to some numbers.

    Args:
        image_shape: height and width.
        num_outputs: numbers for each frame.
        network: see `NetworkName`.
        hidden_sizes: widths of the layers of rectified units; the paper's are (1000, 1000). With `conv`
            the first convolution stands before them.

    Raises:
        ValueError: for an unknown network, or `conv` with sides that four does not divide.
    """

    def __init__(
        self,
        image_shape: tuple[int, int],
        num_outputs: int,
        *,
        network: NetworkName = "mlp",
        hidden_sizes: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        small = _reduced(image_shape, network)
        first: list[nn.Module] = []
        size = math.prod(image_shape)
        if network == "conv":
            few, many = CHANNELS
            convolutions = [nn.Conv2d(1, few, 4, 2, 1), nn.ReLU(), nn.Conv2d(few, many, 4, 2, 1), nn.ReLU()]
            first = [nn.Unflatten(-1, (1, *image_shape)), *convolutions, nn.Flatten()]
            size = many * math.prod(small)
        self.layers = nn.Sequential(*first, *_layers([size, *hidden_sizes, num_outputs]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `(*batch, num_outputs)` for grey levels `(*batch, height * width)`."""
        return self.layers(pixels.flatten(0, -2)).unflatten(0, pixels.shape[:-1])


class FrameDecoder(nn.Module):
    """A network from positions to the logits of a frame.

    Pixels switch within small parts of a coordinate's range, which networks that see the plain coordinate
    are slow to learn; so the layers also see its harmonics.

    Args:
        manifold: of the positions.
        image_shape: height and width.
        network: see `NetworkName`.
        hidden_sizes: widths of the layers of rectified units; the paper's are (1000, 1000).
        num_harmonics: how many; with 0 the layers see a coordinate on a line itself and sine and cosine of
            an angle, as in the paper.

    Raises:
        ValueError: as for `FrameEncoder`.

    References:
        Tancik et al.: Fourier features let networks learn high frequency functions in low dimensional
        domains. NeurIPS 2020.
    """

    wave_numbers: Tensor

    def __init__(
        self,
        manifold: Manifold,
        image_shape: tuple[int, int],
        *,
        network: NetworkName = "mlp",
        hidden_sizes: Sequence[int] = (256,),
        num_harmonics: int = 12,
    ) -> None:
        super().__init__()
        require(num_harmonics >= 0, "num_harmonics must be 0 or more", num_harmonics)
        self.manifold, self.num_harmonics = manifold, num_harmonics
        waves = manifold.wave_numbers(num_harmonics, beyond_features=True)
        self.register_buffer("wave_numbers", waves, persistent=False)
        small = _reduced(image_shape, network)
        num_inputs = manifold.num_features + 2 * manifold.dim * num_harmonics
        if network == "mlp":
            self.layers = nn.Sequential(*_layers([num_inputs, *hidden_sizes, math.prod(image_shape)]))
            return
        few, many = CHANNELS
        self.layers = nn.Sequential(
            *_layers([num_inputs, *hidden_sizes, many * math.prod(small)]),
            nn.ReLU(),
            nn.Unflatten(-1, (many, *small)),
            nn.ConvTranspose2d(many, few, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(few, 1, 4, 2, 1),
            nn.Flatten(),
        )

    def forward(self, q: Tensor) -> Tensor:
        """Return logits `(*batch, height * width)` for positions `(*batch, dim)`."""
        return self.layers(self._seen(q).flatten(0, -2)).unflatten(0, q.shape[:-1])

    def _seen(self, q: Tensor) -> Tensor:
        """Return what the layers see of positions, `(*batch, num_inputs)`."""
        if self.num_harmonics == 0:
            return self.manifold.features(q)
        phase = (q.unsqueeze(-1) * self.wave_numbers).flatten(-2)
        return torch.cat([self.manifold.features(q), phase.sin(), phase.cos()], dim=-1)


class ClipEncoder(nn.Module):
    """Infer the initial phase-space state from the first frames of a clip.

    Every frame has a position of its own (and a few more numbers); an LSTM reads them backwards, so that
    its last output stands at the first frame and has seen all (paper sections 3.2 and 4.2). The mean is
    the position of the first frame and the velocity by differences, plus what the LSTM corrects.

    Args:
        image_shape: height and width.
        manifold: of the positions.
        velocity_scale: typical size of a velocity.
        max_velocity: mean velocities are smoothly kept below it: where a Lie-group step has a solution.
        num_frames: frames that it reads.
        network: see `NetworkName`.
        hidden_sizes: see `FrameEncoder`.
        num_codes: further numbers of each frame that the LSTM sees.
        recurrent_size: width of the LSTM.
    """

    sites: ClassVar[tuple[str, ...]] = INITIAL_SITES

    def __init__(
        self,
        image_shape: tuple[int, int],
        manifold: Manifold,
        *,
        velocity_scale: float,
        max_velocity: float = math.inf,
        num_frames: int = 10,
        network: NetworkName = "mlp",
        hidden_sizes: Sequence[int] = (256, 256),
        num_codes: int = 8,
        recurrent_size: int = 50,
    ) -> None:
        super().__init__()
        require(num_frames >= 2, "num_frames must be at least 2: one frame shows no velocity", num_frames)
        self.manifold, self.velocity_scale, self.num_frames = manifold, velocity_scale, num_frames
        self.num_codes, self.max_velocity = num_codes, max_velocity
        self.frame = FrameEncoder(
            image_shape, manifold.num_features + num_codes, network=network, hidden_sizes=hidden_sizes
        )
        inputs = manifold.num_features + num_codes + manifold.dim + 2
        self.recurrent = nn.LSTM(inputs, recurrent_size, batch_first=True)
        self.head = nn.Linear(recurrent_size, 5 * manifold.dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def codes(self, pixels: Tensor) -> Tensor:
        """Return features of each frame's position, as of `Manifold.features`, then its other numbers.

        Args:
            pixels: `(*batch, height * width)`.
        """
        return self.frame(pixels)

    def forward(self, data: Trajectories) -> InitialPosterior:
        """Return the normal over the states at the first time of every clip."""
        count = min(self.num_frames, data.num_times)
        pixels, times = data.values[:, :count], data.times[:, :count]
        seen = data.mask[:, :count].all(-1) & (torch.diff(times, prepend=times[:, :1] - 1) > 0)
        return self.read(self.codes(torch.where(seen.unsqueeze(-1), pixels, 0.0)), times, seen)

    def set_scale(self, scale: Tensor) -> None:
        """Let the standard deviations of (q, v) be `scale`, `(2 dim,)`, at most those of the beginning."""
        dim = self.manifold.dim
        unit = torch.ones_like(scale)
        unit[dim:] = self.velocity_scale
        share = (scale / (INITIAL_SPREAD * unit)).clamp(0.01, 1.0) * math.log(2)
        with torch.no_grad():
            self.head.weight[2 * dim : 4 * dim] = 0.0
            self.head.bias[2 * dim : 4 * dim] = share.expm1().log()

    def read(self, codes: Tensor, times: Tensor, seen: Tensor) -> InitialPosterior:
        """Return the normal over initial states, given the codes of frames.

        Args:
            codes: `(clip, time, num_features + num_codes)`.
            times: `(clip, time)`.
            seen: whether there is a frame, boolean, `(clip, time)`.
        """
        features = codes[..., : self.manifold.num_features]
        q = coordinates_of(features, self.manifold).gather(1, _last_seen(seen, self.manifold.dim))
        steps = self.manifold.difference(q[:, 1:], q[:, :-1])
        moved = torch.cat([torch.zeros_like(q[:, :1]), steps.cumsum(1)], dim=1)
        elapsed = times - times[:, :1]
        v = _initial_slope(moved, elapsed)
        typical = self.velocity_scale * elapsed.amax().clamp_min(torch.finfo(elapsed.dtype).tiny)
        inputs = [codes, moved / typical, elapsed.unsqueeze(-1) / elapsed.amax(), seen.unsqueeze(-1).to(q)]
        outputs, _ = self.recurrent(torch.cat(inputs, dim=-1).flip(1))
        dim = self.manifold.dim
        correction, log_scale, coupling = self.head(outputs[:, -1]).split([2 * dim, 2 * dim, dim], dim=-1)
        unit = torch.ones_like(correction)
        unit[:, dim:] = self.velocity_scale
        q_loc, v_loc = (torch.cat([q[:, 0], v], dim=-1) + CORRECTION * unit * correction).chunk(2, -1)
        if math.isfinite(self.max_velocity):
            v_loc = self.max_velocity * (v_loc / self.max_velocity).tanh()
        loc = torch.cat([q_loc, v_loc], dim=-1)
        scale = INITIAL_SPREAD * unit * softplus(log_scale) / math.log(2)
        return InitialPosterior(loc, scale, self.velocity_scale * coupling)


CORRECTION = 0.2
"""Unit of the corrections, as a share of a state's size."""


class PositionPosterior(NamedTuple):
    """Independent normals over the position of every frame, wound round the circle where it is an angle.

    Attributes:
        loc: means, shape `(clip, time, dim)`.
        scale: standard deviations, same shape.
        circle: whether the coordinates are angles, in radians.
    """

    loc: Tensor
    scale: Tensor
    circle: bool

    def sample_sites(self) -> dict[str, Tensor]:
        """Sample the site `position`, inside of the plate of the clips."""
        family = WrappedNormal if self.circle else Normal
        return {"position": pyro.sample("position", family(self.loc, self.scale).to_event(2))}


class PositionEncoder(nn.Module):
    """Infer the position of every frame from that frame alone: the encoder of a variational autoencoder.

    The mean of an angle is that of two outputs, its sine and cosine up to their length, by the arc
    tangent (Falorsi et al. 2018). A frame that was not seen, or not all of it, gets the prior.

    Args:
        image_shape: height and width.
        manifold: of the positions, all lines or all circles.
        network: see `NetworkName`.
        hidden_sizes: see `FrameEncoder`.

    Raises:
        ValueError: if lines and circles are mixed, or as for `FrameEncoder`.

    References:
        Falorsi, de Haan, Davidson, De Cao, Weiler, Forre, Cohen: Explorations in homeomorphic
        variational auto-encoding. arXiv 1807.04689 (2018).
    """

    sites: ClassVar[tuple[str, ...]] = ("position",)

    def __init__(
        self,
        image_shape: tuple[int, int],
        manifold: Manifold,
        *,
        network: NetworkName = "mlp",
        hidden_sizes: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        require(len(set(manifold.periodic)) == 1, "all coordinates must be angles, or none", manifold)
        self.manifold = manifold
        self.frame = FrameEncoder(
            image_shape, manifold.num_features + manifold.dim, network=network, hidden_sizes=hidden_sizes
        )

    def forward(self, data: Trajectories) -> PositionPosterior:
        """Return the normals over the positions of all frames."""
        seen = data.mask.all(-1, keepdim=True)
        outputs = self.frame(torch.where(seen, data.values, 0.0))
        features, log_scale = outputs.split([self.manifold.num_features, self.manifold.dim], dim=-1)
        loc = torch.where(seen, coordinates_of(features, self.manifold), 0.0)
        circle = self.manifold.any_periodic
        scale = FRAME_SPREAD * softplus(log_scale) / math.log(2)
        # A wrapped normal of standard deviation 2 pi is uniform to 1e-9.
        return PositionPosterior(loc, torch.where(seen, scale, 2 * math.pi if circle else 1.0), circle)


FRAME_SPREAD = 0.3
"""First standard deviation of a frame's position. Begun at the prior's, it hides what a frame shows."""


def sample_times(data: Trajectories, count: int) -> Tensor:
    """Return `count` indices of times drawn without repetition; all in order for 0 or no fewer times."""
    total = data.num_times
    chosen = torch.randperm(total)[:count] if 0 < count < total else torch.arange(total)
    return chosen.to(data.values.device)


def coordinates_of(features: Tensor, manifold: Manifold) -> Tensor:
    """Return the position that features stand for: the angle of (sine, cosine), of any length, on circles.

    Args:
        features: `(*batch, num_features)`, ordered as by `Manifold.features`.
        manifold: of the positions.

    Returns:
        Shape `(*batch, dim)`.
    """
    num_circles = sum(manifold.periodic)
    if num_circles == 0:
        return features
    lines, sines, cosines = features.split([manifold.dim - num_circles, num_circles, num_circles], dim=-1)
    found = {True: iter(torch.atan2(sines, cosines).unbind(-1)), False: iter(lines.unbind(-1))}
    return torch.stack([next(found[periodic]) for periodic in manifold.periodic], dim=-1)


def _last_seen(seen: Tensor, dim: int) -> Tensor:
    """Return for each frame the index of the last one seen by then, or of the first: `(clip, time, dim)`."""
    index = torch.where(seen, torch.arange(seen.shape[1], device=seen.device), -1).cummax(1).values
    first = seen.int().argmax(1, keepdim=True)
    return torch.where(index < 0, first, index).unsqueeze(-1).expand(-1, -1, dim)


def _initial_slope(moved: Tensor, elapsed: Tensor) -> Tensor:
    """Return the slope at the first time of the parabola through the first three points, `(clip, dim)`.

    Args:
        moved: displacements since the first time, `(clip, time, dim)`.
        elapsed: times since then, `(clip, time)`.
    """
    tiny = torch.finfo(elapsed.dtype).eps
    one = elapsed[:, 1:2].clamp_min(tiny)
    if moved.shape[1] == 2:
        return moved[:, 1] / one
    two = torch.maximum(elapsed[:, 2:3], 1.5 * one)
    return (moved[:, 1] * two / one - moved[:, 2] * one / two) / (two - one)


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Return linear layers with rectified units in between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return layers[:-1]


def _reduced(image_shape: tuple[int, int], network: str) -> tuple[int, int]:
    """Return the picture's size after two convolutions of stride two."""
    require_choice("network", network, ("mlp", "conv"))
    height, width = image_shape
    require(
        network == "mlp" or (height % 4 == 0 and width % 4 == 0),
        "convolutions need pictures whose sides are multiples of four",
        f"{height} x {width}",
    )
    return height // 4, width // 4
