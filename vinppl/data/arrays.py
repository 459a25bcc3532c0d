"""From numpy arrays or tensors to padded samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vinppl._checks import describe
from vinppl.data.channels import Channel, default_channels
from vinppl.data.samples import FloatArray, Samples
from vinppl.errors import DataError

__all__ = ["as_numpy", "columns_of_array", "samples_from_arrays"]


def samples_from_arrays(
    times: ArrayLike | Tensor,
    values: ArrayLike | Tensor,
    channels: Sequence[Channel] | None = None,
    *,
    mask: ArrayLike | Tensor | None = None,
    drive: ArrayLike | Tensor | None = None,
    drive_names: Sequence[str] = (),
    names: Sequence[str] = (),
    coordinate_names: Sequence[str] = (),
    sort: bool = False,
    source: str = "arrays",
) -> Samples:
    """Bring arrays into the shapes of `Samples`; see `Trajectories.from_arrays` for the arguments."""
    t = as_numpy(times, "times", source)
    x = columns_of_array(as_numpy(values, "values", source), t, "values", source)
    num, length, num_channels = x.shape
    if channels is None:
        channels = default_channels(["position"] * num_channels)
    if num_channels != len(channels):
        raise DataError(
            f"{source}: values has {num_channels} channel(s) in its last dimension, but {len(channels)} "
            "channel(s) are described. Name one quantity or channel for each."
        )
    t = np.ascontiguousarray(np.broadcast_to(t, (num, length)))
    if mask is not None:
        x = np.where(_mask(mask, x.shape, source), x, np.nan)
    u = None if drive is None else _drive(as_numpy(drive, "drive", source), t, source)
    labels = tuple(str(name) for name in names) or tuple(str(n) for n in range(num))
    if len(labels) != num:
        raise DataError(f"{source}: {len(labels)} names are given for {num} trajectories. Give one for each.")
    if sort:
        order = np.argsort(t, axis=1, kind="stable")
        t, x = np.take_along_axis(t, order, 1), np.take_along_axis(x, order[..., None], 1)
        u = None if u is None else np.take_along_axis(u, order[..., None], 1)
    num_drives = 0 if u is None else u.shape[-1]
    inputs = tuple(drive_names) or tuple(f"u{i}" if num_drives > 1 else "u" for i in range(num_drives))
    if len(inputs) != num_drives:
        raise DataError(f"{source}: {len(inputs)} drive_names are given for {num_drives} input signal(s).")
    return Samples(
        times=t,
        values=x,
        lengths=_lengths(t, x),
        channels=tuple(channels),
        drive=u,
        drive_names=inputs,
        names=labels,
        coordinate_names=tuple(coordinate_names),
        source=source,
        place=lambda n, i: f"trajectory {labels[n]!r}, sample {i} (counting from 0)",
    )


def as_numpy(array: ArrayLike | Tensor, name: str, source: str) -> FloatArray:
    """Return an array of floats (float64), whatever the input."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    try:
        result = np.asarray(array)
        if result.dtype.kind not in "fiubO":
            raise TypeError("not real numbers")
        return result.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        raise DataError(
            f"{source}: {name} must be an array of real numbers; got {describe(array)}. Pad trajectories of "
            "different lengths by repeating their last time, with NaN in the values."
        ) from None


def columns_of_array(values: FloatArray, times: FloatArray, name: str, source: str) -> FloatArray:
    """Return values with shape `(trajectory, time, column)`.

    Accepted are `(trajectory, time, column)`, `(time, column)` and `(time,)` for one
    trajectory, and the shape of two-dimensional times for one column.
    """
    if times.ndim not in (1, 2) or times.size == 0:
        raise DataError(
            f"{source}: times must have shape (num_times,) or (num_trajectories, num_times) and not be "
            f"empty; got shape {times.shape}."
        )
    original = values.shape
    if times.ndim == 2 and values.shape == times.shape:
        values = values[..., None]
    elif values.ndim == 1:
        values = values[None, :, None]
    elif values.ndim == 2:
        values = values[None]
    num_times = times.shape[-1]
    matches = values.ndim == 3 and values.shape[1] == num_times
    if matches and times.ndim == 2:
        matches = times.shape[0] in (1, values.shape[0])
    if not matches:
        hint = ""
        if len(original) == 2 and original[1] == num_times:
            hint = " Add the axis of columns: values[..., None]."
        raise DataError(
            f"{source}: {name} of shape {original} does not fit times of shape {times.shape}; it must be "
            f"(num_trajectories, num_times, num_columns), or (num_times, num_columns) for one "
            f"trajectory.{hint}"
        )
    return values


def _mask(mask: ArrayLike | Tensor, shape: tuple[int, ...], source: str) -> NDArray[np.bool_]:
    """Return a mask that broadcasts against values: per value, per sample, or of one trajectory."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    num, length, num_channels = shape
    views = {
        shape: array,
        (num, length): array[..., None],
        (length, num_channels): array[None],
        (length,): array[None, :, None],
    }
    if array.shape not in views or array.dtype.kind not in "biu":
        raise DataError(
            f"{source}: mask must be boolean with shape {shape} or {shape[:2]}, True where observed; "
            f"got {array.dtype} of shape {array.shape}."
        )
    if array.shape == (num, length):
        return array[..., None].astype(bool)
    return views[array.shape].astype(bool)


def _drive(drive: FloatArray, times: FloatArray, source: str) -> FloatArray:
    """Return input signals with shape `(trajectory, time, drive)`; one trajectory's serve all."""
    num, length = times.shape
    original = drive.shape
    if drive.ndim == 1:
        drive = drive[None, :, None]
    elif drive.ndim == 2:
        drive = drive[..., None] if drive.shape == (num, length) and num > 1 else drive[None]
    if drive.ndim != 3 or drive.shape[1] != length or drive.shape[0] not in (1, num):
        raise DataError(
            f"{source}: drive of shape {original} does not fit {num} trajectories of {length} samples; it "
            f"must be ({num}, {length}, num_drives) or ({length}, num_drives), one entry for each time."
        )
    return np.broadcast_to(drive, (num, length, drive.shape[2]))


def _lengths(times: FloatArray, values: FloatArray) -> NDArray[np.int64]:
    """Return the number of real samples: trailing repeats of a time without any value are padding."""
    num, length = times.shape
    repeats = np.zeros((num, length), dtype=bool)
    repeats[:, 1:] = (times[:, 1:] == times[:, :-1]) & np.isnan(values[:, 1:]).all(-1)
    trailing = np.logical_and.accumulate(repeats[:, ::-1], axis=1).sum(1)
    return (length - trailing).astype(np.int64)
