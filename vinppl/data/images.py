"""Grey levels: from arrays of frames to padded tensors, to other sizes, and to black and white."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vinppl._checks import describe, require
from vinppl.data.blocks import Block
from vinppl.errors import DataError

__all__ = ["Times", "as_levels", "block_of_clips", "otsu_threshold", "resizer"]

Times = float | ArrayLike | Tensor | Sequence[ArrayLike | Tensor]
"""A step, times that all clips share, or times of each clip."""


def as_levels(frames: ArrayLike | Tensor, name: str = "frames", *, decoded: bool = False) -> Tensor:
    """Return grey levels from 0 (black) to 1, NaN where missing, in the default dtype.

    Args:
        frames: grey levels as floats from 0 to 1 or NaN, as `uint8` from 0 to 255, as `uint16` from 0
            to 65535, or as booleans; any shape.
        name: what messages call them.
        decoded: whether they come from a file of pictures, which may be as dark as can be; other `uint8`
            levels that only reach 1 are refused, because 1 then seems to mean white.

    Raises:
        DataError: for another type, or levels outside [0, 1].
    """
    dtype = torch.get_default_dtype()
    if not isinstance(frames, Tensor):
        array = np.asarray(frames)
        if array.dtype == np.uint16:
            return torch.from_numpy(array.astype(np.float64) / 65535.0).to(dtype)
        require(array.dtype.kind in "fbiu", f"{name} must be an array of numbers", array, error=DataError)
        array = np.ascontiguousarray(array)
        frames = torch.from_numpy(array if array.flags.writeable else array.copy())
    if frames.dtype == torch.bool:
        return frames.to(dtype)
    if frames.dtype == torch.uint8:
        require(
            decoded or frames.numel() == 0 or int(frames.max()) != 1,
            f"{name} of type uint8 are divided by 255",
            "levels of 0 and 1 only",
            "If 1 means white, convert them to booleans first.",
            error=DataError,
        )
        return frames.to(dtype) / 255.0
    require(
        frames.is_floating_point(),
        f"{name} must be floats from 0 to 1, uint8 from 0 to 255, or booleans",
        str(frames.dtype).removeprefix("torch."),
        "Convert them first.",
        error=DataError,
    )
    levels = frames.detach().to(dtype)
    outside = (levels < 0) | (levels > 1)
    if bool(outside.any()):
        seen = levels[~levels.isnan()]
        raise DataError(
            f"{name} must lie in [0, 1], NaN where missing; got values from {float(seen.min()):.6g} to "
            f"{float(seen.max()):.6g}. Subtract the darkest level and divide by the range, such as 255."
        )
    return levels


def block_of_clips(
    frames: ArrayLike | Tensor | Sequence[ArrayLike | Tensor],
    times: Times,
    mask: ArrayLike | Tensor | None = None,
) -> tuple[Block, tuple[int, int]]:
    """Return padded tensors of all clips (times in double precision), and the height and width of a frame.

    The arguments are those of `Trajectories.from_frames`. No memory is shared with them.

    Raises:
        DataError: if shapes or values cannot be used.
    """
    clips = _clips(frames)
    shape = (int(clips[0].shape[1]), int(clips[0].shape[2]))
    counts = [len(clip) for clip in clips]
    moments = _moments(times, counts)
    observed = None if mask is None else _observed(mask, len(clips), max(counts), shape)
    size = (len(clips), max(counts), shape[0] * shape[1])
    block = Block(
        times=clips[0].new_empty(size[:2], dtype=torch.float64),
        values=clips[0].new_zeros(size, dtype=torch.get_default_dtype()),
        mask=clips[0].new_zeros(size, dtype=torch.bool),
        drive=None,
    )
    for n, (clip, count) in enumerate(zip(clips, counts, strict=True)):
        block.times[n, :count] = moments[n]
        block.times[n, count:] = moments[n][-1]
        levels = as_levels(clip).reshape(count, -1)
        block.mask[n, :count] = ~levels.isnan()
        if observed is not None:
            block.mask[n, :count] &= observed[n, :count].to(levels.device)
        block.values[n, :count] = levels
    if not bool(block.mask.all()):
        block.values.masked_fill_(~block.mask, 0.0)
    return block, shape


def _clips(frames: ArrayLike | Tensor | Sequence[ArrayLike | Tensor]) -> list[Tensor]:
    """Return every clip as a tensor `(time, height, width)` of its own type."""
    if isinstance(frames, list | tuple) and len(frames) > 0 and _tensor(frames[0]).ndim == 3:
        clips = [_tensor(clip) for clip in frames]
    else:
        whole = _tensor(frames)
        require(
            whole.ndim in (3, 4),
            "frames must have shape (clip, time, height, width) or (time, height, width), or be a list of "
            "clips (time, height, width)",
            whole,
            "Average colours to grey levels first, and give a single frame an axis of time.",
            error=DataError,
        )
        clips = [whole] if whole.ndim == 3 else list(whole)
    require(len(clips) > 0, "at least one clip is needed", "none", error=DataError)
    for n, clip in enumerate(clips):
        require(
            clip.ndim == 3 and clip.shape[1:] == clips[0].shape[1:],
            "every clip must have shape (time, height, width), with frames as large as those of the first, "
            f"{' x '.join(str(side) for side in clips[0].shape[1:])}",
            f"shape {tuple(clip.shape)} of clip {n}",
            error=DataError,
        )
        require(clip.numel() > 0, f"clip {n} must have frames", f"shape {tuple(clip.shape)}", error=DataError)
    return clips


def _tensor(array: ArrayLike | Tensor | Sequence[ArrayLike | Tensor]) -> Tensor:
    if isinstance(array, Tensor):
        return array
    try:
        numbers = np.asarray(array)
        if numbers.dtype.kind not in "fbiu":
            raise TypeError("not real numbers")
        if numbers.dtype == np.uint16:
            return as_levels(numbers)
        return torch.from_numpy(np.array(numbers))
    except (TypeError, ValueError):
        raise DataError(
            f"frames must be real numbers; got {describe(array)}. Give clips of different lengths as a list "
            "of arrays (time, height, width)."
        ) from None


def _moments(times: Times, counts: Sequence[int]) -> list[Tensor]:
    """Return the times of the frames of every clip, in double precision."""
    if not isinstance(times, list | tuple) and _numbers(times).ndim == 0:
        step = float(_numbers(times))
        require(
            np.isfinite(step) and step > 0,
            "the time between frames must be a positive number",
            step,
            error=DataError,
        )
        return [step * torch.arange(count, dtype=torch.float64) for count in counts]
    if isinstance(times, list | tuple) and len(times) == len(counts) and _numbers(times[0]).ndim == 1:
        rows = [_numbers(row) for row in times]
    else:
        array = _numbers(times)
        require(array.ndim in (1, 2), "times must be a step or have one or two axes", array, error=DataError)
        if array.ndim == 1:
            rows = [array[:count] for count in counts] if len(array) == max(counts) else [array] * len(counts)
        else:
            lengths = counts if len(array) == len(counts) else [array.shape[1]] * len(array)
            rows = [row[:count] for row, count in zip(array, lengths, strict=True)]
    require(len(rows) == len(counts), f"times of {len(counts)} clips are needed", len(rows), error=DataError)
    for n, (row, count) in enumerate(zip(rows, counts, strict=True)):
        require(
            tuple(row.shape) == (count,),
            f"clip {n} has {count} frames and needs as many times",
            row,
            error=DataError,
        )
        require(
            bool((row.diff() > 0).all()),
            f"the times of clip {n} must increase from frame to frame",
            "times that do not, or NaN",
            error=DataError,
        )
    return rows


def _numbers(values: Times) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().double().cpu()
    try:
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(
            f"times must be a step or real numbers, one for each frame; got {describe(values)}."
        ) from None


def _observed(mask: ArrayLike | Tensor, num: int, length: int, shape: tuple[int, int]) -> Tensor:
    """Return a mask as `(clip, time, pixel)`, which broadcasts over pixels if it is per frame."""
    flags = mask.detach().cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    frames, pixels = (num, length), (num, length, *shape)
    if num == 1 and tuple(flags.shape) in (frames[1:], pixels[1:]):
        flags = flags[None]
    require(
        tuple(flags.shape) in (frames, pixels) and flags.dtype in (torch.bool, torch.uint8, torch.int64),
        f"mask must be boolean with shape {frames} or {pixels}, True where observed",
        flags,
        error=DataError,
    )
    return flags.bool().reshape(num, length, -1)


def resizer(before: tuple[int, int], after: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function that brings grey levels `(*batch, *before)` to the size `(*batch, *after)`.

    A smaller side averages the pixels that a new one covers, by the covered areas, so that the mean grey
    level stays the same; a larger side interpolates linearly between the centres of pixels. A frame with
    NaN in it becomes NaN as a whole, unless its size stays the same.

    Args:
        before: height and width.
        after: height and width that frames get.
    """
    if before == after:
        return torch.clone
    sides = [_side(old, new) for old, new in zip(before, after, strict=True)]
    rows, columns = (torch.from_numpy(weights).to(torch.get_default_dtype()) for weights, _ in sides)
    # The division comes last: sums over whole pixels are exact, and black and white remain so.
    area = sides[0][1] * sides[1][1]
    return lambda frame: (rows @ frame @ columns.mT / area).clamp(0.0, 1.0)


def _side(before: int, after: int) -> tuple[NDArray[np.float64], float]:
    """Return weights `(after, before)` of the old pixels of a side in the new ones, and their sum."""
    ratio = before / after
    if after <= before:
        low = ratio * np.arange(after)[:, None]
        pixel = np.arange(before)
        covered = np.minimum(low + ratio, pixel + 1.0) - np.maximum(low, pixel)
        return np.clip(covered, 0.0, None), ratio
    centre = np.clip(ratio * (np.arange(after) + 0.5) - 0.5, 0.0, before - 1.0)[:, None]
    return np.clip(1.0 - np.abs(centre - np.arange(before)), 0.0, None), 1.0


def otsu_threshold(*frames: Tensor, num_bins: int = 256) -> float:
    """Return the grey level that parts dark from light pixels best (Otsu's method).

    It maximises the variance between the two classes over the edges of a histogram; where several are as
    good, as in a film that is black and white already, it is their middle.

    Args:
        *frames: grey levels from 0 to 1, any shapes; NaN is left out.
        num_bins: bins of the histogram.

    References:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems,
        Man, and Cybernetics 9 (1979), equation 14.
    """
    counts = torch.zeros(num_bins, dtype=torch.float64)
    for part in (part for film in frames for part in film.detach().split(4096)):
        counts += torch.histc(part[~part.isnan()], num_bins, 0.0, 1.0).cpu()
    centres = (torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins
    share = (counts / counts.sum().clamp_min(1.0)).cumsum(0)[:-1]  # of the darker class, for every edge
    moment = (counts * centres / counts.sum().clamp_min(1.0)).cumsum(0)
    between = (moment[-1] * share - moment[:-1]).square() / (share * (1.0 - share)).clamp_min(1e-12)
    best = (between >= between.max() * (1.0 - 1e-9)).nonzero().squeeze(-1).double() + 1.0
    return float(best.mean()) / num_bins
