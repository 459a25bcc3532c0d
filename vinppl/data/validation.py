"""Structural checks of the tensors of a set of trajectories: shapes, types, padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.data.blocks import Block
from vinppl.data.channels import Channel
from vinppl.errors import DataError

__all__ = ["check_trajectories"]


def check_trajectories(
    block: Block,
    channels: Sequence[Channel],
    *,
    drive_names: Sequence[str],
    names: Sequence[str],
    coordinate_names: Sequence[str],
    image_shape: tuple[int, int] | None = None,
) -> None:
    """Raise `DataError` unless the parts fit each other.

    Temporary arrays are no larger than the mask, so that a million windows fit in memory.
    """
    _check_shapes(block, channels)
    _check_names(block, channels, drive_names, names, coordinate_names)
    _check_image(channels, image_shape)
    for name, tensor in (("times", block.times), ("values", block.values), ("drive", block.drive)):
        if tensor is not None:
            require(
                _all_finite(tensor),
                f"{name} must be finite",
                "NaN or infinity",
                "Put 0 where a value is missing and False in mask, or use from_arrays.",
                error=DataError,
            )
    _check_times(block)


def _check_shapes(block: Block, channels: Sequence[Channel]) -> None:
    times, values, mask, drive = block
    for name, tensor in (("times", times), ("values", values)):
        require(
            isinstance(tensor, Tensor) and tensor.is_floating_point(),
            f"{name} must be a tensor of floats",
            tensor,
            "Use from_arrays to convert.",
            error=DataError,
        )
    require(
        times.ndim == 2 and times.shape[0] > 0 and times.shape[1] > 0,
        "times must have shape (num_trajectories, num_times), neither of them 0",
        times,
        "Expand times that are shared, or use from_arrays.",
        error=DataError,
    )
    shape = (*times.shape, len(channels))
    require(len(channels) > 0, "at least one channel is needed", "none", error=DataError)
    require(
        tuple(values.shape) == shape,
        f"values must have shape {shape}, (num_trajectories, num_times, num_channels)",
        values,
        error=DataError,
    )
    require(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == values.shape,
        f"mask must be a boolean tensor of shape {shape}",
        mask,
        error=DataError,
    )
    require(
        drive is None or (drive.is_floating_point() and drive.ndim == 3 and drive.shape[:2] == times.shape),
        f"drive must be a tensor of floats of shape ({times.shape[0]}, {times.shape[1]}, num_drives)",
        drive,
        error=DataError,
    )


def _check_names(
    block: Block,
    channels: Sequence[Channel],
    drive_names: Sequence[str],
    names: Sequence[str],
    coordinate_names: Sequence[str],
) -> None:
    num = block.times.shape[0]
    require(
        len(names) == num,
        f"names must hold one label for each of {num} trajectories",
        len(names),
        error=DataError,
    )
    num_drives = 0 if block.drive is None else block.drive.shape[-1]
    require(
        len(drive_names) == num_drives,
        f"drive_names must hold one name for each of {num_drives} input signals",
        len(drive_names),
        error=DataError,
    )
    labels = [channel.name for channel in channels]
    require(
        len(set(labels)) == len(labels),
        "channels must have different names",
        ", ".join(labels),
        error=DataError,
    )
    dim = 1 + max(channel.coordinate for channel in channels)
    require(
        len(coordinate_names) >= dim,
        f"coordinate_names must name at least the {dim} coordinates that are measured",
        f"{len(coordinate_names)} names",
        error=DataError,
    )


def _check_image(channels: Sequence[Channel], image_shape: tuple[int, int] | None) -> None:
    num_pixels = sum(channel.quantity == "pixel" for channel in channels)
    if image_shape is None:
        require(
            num_pixels == 0,
            "channels that are pixels need image_shape, the height and width of a frame",
            f"{num_pixels} pixels without it",
            "Use Trajectories.from_frames.",
            error=DataError,
        )
        return
    height, width = image_shape
    require(
        min(image_shape) >= 1 and height * width == num_pixels == len(channels),
        f"image_shape {image_shape} must be the height and width of frames, with a pixel for every channel",
        f"{len(channels)} channels, {num_pixels} of them pixels",
        "Use Trajectories.from_frames.",
        error=DataError,
    )


def _check_times(block: Block) -> None:
    times = block.times
    before, after = times[:, :-1], times[:, 1:]
    decreasing = after < before
    if bool(decreasing.any()):
        n, t = decreasing.nonzero()[0].tolist()
        raise DataError(
            f"times must not decrease; got {times[n, t + 1].item():.10g} after {times[n, t].item():.10g} in "
            f"trajectory {n}, sample {t + 1}. Sort each trajectory by time first."
        )
    padding = torch.zeros_like(times, dtype=torch.bool)
    padding[:, 1:] = after == before
    repeated = padding & (times < times[:, -1:])
    if bool(repeated.any()):
        n, t = repeated.nonzero()[0].tolist()
        raise DataError(
            f"a time may be repeated only as padding at the end; got {times[n, t].item():.10g} twice in "
            f"trajectory {n}, sample {t}. Average or remove the samples of the same time."
        )
    if bool(padding.any()) and bool(block.mask[padding].any()):
        raise DataError(
            "samples at the repeated last time of a trajectory are padding and cannot be observed; got True "
            "in mask. Set mask to False there."
        )


def _all_finite(tensor: Tensor) -> bool:
    # A sum is finite only if every term is, and needs no temporary array; it may also
    # overflow, so that a sum that is not finite proves nothing.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
