"""Checks of measured samples, before they become tensors.

All checks work on whole arrays; a loop over rows or trajectories never runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vinppl.data.channels import Channel
from vinppl.errors import DataError

__all__ = ["Samples", "check_samples"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Padded samples of all trajectories with what a message needs to name a place in their source.

    Attributes:
        times: shape `(num_trajectories, num_times)`, the last real time repeated as padding.
        values: shape `(num_trajectories, num_times, num_channels)`, NaN where missing or padding.
        lengths: shape `(num_trajectories,)`, number of real samples.
        channels: the channels of `values`.
        drive: shape `(num_trajectories, num_times, num_drives)` or `None`; padding is arbitrary.
        drive_names: one name for each input signal.
        names: one label for each trajectory.
        coordinate_names: names of the generalised coordinates, or empty for the default.
        source: name of the file, frame or arrays for messages.
        place: returns words for a place, given the index of a trajectory and of a sample.
        time_name: name of the time column.
        labelled: whether the source told trajectories apart.
    """

    times: FloatArray
    values: FloatArray
    lengths: NDArray[np.int64]
    channels: tuple[Channel, ...]
    drive: FloatArray | None
    drive_names: tuple[str, ...]
    names: tuple[str, ...]
    coordinate_names: tuple[str, ...]
    source: str
    place: Callable[[int, int], str]
    time_name: str = "time"
    labelled: bool = True

    @property
    def real(self) -> BoolArray:
        """Where samples are not padding, shape `(num_trajectories, num_times)`."""
        return np.arange(self.times.shape[1]) < self.lengths[:, None]


def check_samples(samples: Samples, *, unwrap: bool = False) -> Samples:
    """Raise `DataError` at the first fault; return the samples with their angles made continuous.

    Args:
        samples: what was read.
        unwrap: add full turns to angles that jump, rather than refuse them.
    """
    real = samples.real
    _check_times(samples, real)
    _check_values(samples)
    _check_drive(samples, real)
    values = samples.values
    for index, channel in enumerate(samples.channels):
        if channel.angle:
            values = _continuous_angle(samples, values, index, unwrap=unwrap)
    return samples if values is samples.values else replace(samples, values=values)


def _first(bad: BoolArray) -> tuple[int, int]:
    """Return the trajectory and sample of the first fault in an array `(trajectory, time, ...)`."""
    where = np.unravel_index(int(bad.argmax()), bad.shape)
    return int(where[0]), int(where[1])


def _check_times(samples: Samples, real: BoolArray) -> None:
    times, name, source = samples.times, samples.time_name, samples.source
    bad = ~np.isfinite(times) & real
    if bad.any():
        n, t = _first(bad)
        what = "is missing" if np.isnan(times[n, t]) else "is infinite"
        raise DataError(
            f"{source}, {samples.place(n, t)}, column {name!r}: the time {what}. "
            "Fill it in or remove the row."
        )
    if (samples.lengths < 2).any():
        n = int((samples.lengths < 2).argmax())
        others = int((samples.lengths < 2).sum()) - 1
        also = f" (and so have {others} others)" if others else ""
        hint = (
            "Remove it, or check that the trajectory column labels trajectories and not rows."
            if samples.labelled
            else "At least two rows are needed."
        )
        raise DataError(
            f"{source}, {samples.place(n, 0)}: trajectory {samples.names[n]!r} has only one "
            f"sample{also}. {hint}"
        )
    later = real[:, 1:]
    backward = (times[:, 1:] < times[:, :-1]) & later
    if backward.any():
        n, t = _first(backward)
        hint = "" if samples.labelled else " If a new trajectory starts here, name a column that labels them."
        raise DataError(
            f"{source}, {samples.place(n, t + 1)}, column {name!r}: time {times[n, t + 1]:.10g} follows "
            f"{times[n, t]:.10g} in trajectory {samples.names[n]!r}, but times must increase. "
            f"Sort the rows by time, or set sort=True.{hint}"
        )
    repeated = (times[:, 1:] == times[:, :-1]) & later
    if repeated.any():
        n, t = _first(repeated)
        hint = (
            "" if samples.labelled else " If it holds several trajectories, name a column that labels them."
        )
        raise DataError(
            f"{source}, {samples.place(n, t + 1)}, column {name!r}: time {times[n, t + 1]:.10g} is repeated "
            f"in trajectory {samples.names[n]!r}. Average or remove the rows of the same time.{hint}"
        )


def _check_values(samples: Samples) -> None:
    for index, channel in enumerate(samples.channels):
        x = samples.values[..., index]
        where = f"column {channel.name!r}"
        infinite = np.isinf(x)
        if infinite.any():
            n, t = _first(infinite)
            raise DataError(
                f"{samples.source}, {samples.place(n, t)}, {where}: the value is infinite. "
                "Leave the field empty (or NaN) if it is missing."
            )
        low, high = np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None)
        if np.isnan(low):
            raise DataError(
                f"{samples.source}, {where}: every value is missing. Leave the column out of "
                f"{channel.quantity}, or check its name."
            )
        if low == high:
            raise DataError(
                f"{samples.source}, {where}: the value is {low:.10g} in every row, so it says nothing about "
                f"a motion. Leave the column out of {channel.quantity}."
            )


def _check_drive(samples: Samples, real: BoolArray) -> None:
    if samples.drive is None:
        return
    for index, name in enumerate(samples.drive_names):
        bad = ~np.isfinite(samples.drive[..., index]) & real
        if bad.any():
            n, t = _first(bad)
            what = "missing" if np.isnan(samples.drive[n, t, index]) else "infinite"
            raise DataError(
                f"{samples.source}, {samples.place(n, t)}, drive {name!r}: the input is {what}, but it must "
                "be known at every sample. Fill the gap or remove the rows."
            )


def _continuous_angle(samples: Samples, values: FloatArray, index: int, *, unwrap: bool) -> FloatArray:
    """Refuse or repair jumps of an angle by full turns between neighbouring observed samples."""
    observed = ~np.isnan(values[..., index])
    n, t = np.nonzero(observed)
    x = values[..., index][observed]
    jump = np.diff(x)
    turns = np.where(n[1:] == n[:-1], np.round(jump / (2 * np.pi)), 0.0)
    if not turns.any():
        return values
    if unwrap:
        total = np.concatenate([[0.0], np.cumsum(turns)])
        starts = np.searchsorted(n, np.arange(len(values)))  # first observed sample of each trajectory
        start = np.append(total, 0.0)[starts]
        values = values.copy()
        values[n, t, index] = x - 2 * np.pi * (total - start[n])
        return values
    wrapped = (turns != 0) & (np.abs(jump - 2 * np.pi * turns) < np.pi / 2)
    if wrapped.any():
        first = int(wrapped.argmax()) + 1
        place = samples.place(int(n[first]), int(t[first]))
        raise DataError(
            f"{samples.source}, {place}, column {samples.channels[index].name!r}: the angle jumps from "
            f"{x[first - 1]:.6g} to {x[first]:.6g}, about {int(turns[first - 1])} full turn(s), and so do "
            f"{int(wrapped.sum()) - 1} later samples. Angles must count revolutions: set unwrap=True; if the "
            "angle really moves that far between samples, leave it out of angle."
        )
    return values
