"""Trajectories: measured or simulated paths, padded and masked, ready for a likelihood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vinppl._checks import describe, require
from vinppl.data import blocks
from vinppl.data.arrays import samples_from_arrays
from vinppl.data.blocks import Block
from vinppl.data.channels import Channel, Quantity, default_channels, pixel_channels
from vinppl.data.columns import ColumnSpec
from vinppl.data.frames import samples_from_frame
from vinppl.data.images import Times, block_of_clips
from vinppl.data.samples import Samples, check_samples
from vinppl.data.validation import check_trajectories
from vinppl.errors import DataError
from vinppl.forces import ControlSignal
from vinppl.state import Trajectory
from vinppl.timegrid import TimeGrid

__all__ = ["Trajectories"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """A set of trajectories with possibly different lengths, times and missing values.

    Attributes:
        times: shape `(num_trajectories, num_times)`, increasing; a shorter
            trajectory repeats its last time as padding.
        values: shape `(num_trajectories, num_times, num_channels)`, finite, 0 where missing.
        mask: boolean, same shape; `False` where a value is missing or padding.
        channels: what each entry of the last dimension measures.
        drive: known input signals at the same times, shape
            `(num_trajectories, num_times, num_drives)`, 0 as padding, or `None`.
        drive_names: names of the input signals, by default `u` or `u0`, `u1`, ..
        names: labels of the trajectories, by default `0`, `1`, ..
        coordinate_names: names of the generalised coordinates, by default `q0`, `q1`, ..
            up to the highest that is measured; more names declare hidden coordinates.
        time_unit: unit of time, for labels.
        image_shape: height and width of a frame if the channels are the pixels of films, row by row;
            `None` for all other data.

    Raises:
        DataError: if shapes disagree, values are not finite or times do not increase.

    Example:
        >>> data = Trajectories.from_arrays([0.0, 0.1, 0.2], [1.0, float("nan"), 0.8])
        >>> data.num_observed
        2
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    channels: tuple[Channel, ...]
    drive: Tensor | None = None
    drive_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    coordinate_names: tuple[str, ...] = ()
    time_unit: str = ""
    image_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for field in ("channels", "drive_names", "names", "coordinate_names"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.names and isinstance(self.times, Tensor) and self.times.ndim == 2:
            object.__setattr__(self, "names", tuple(str(n) for n in range(len(self.times))))
        if not self.coordinate_names:
            dim = 1 + max((channel.coordinate for channel in self.channels), default=-1)
            object.__setattr__(self, "coordinate_names", tuple(f"q{i}" for i in range(dim)))
        if self.drive is not None and not self.drive_names and self.drive.ndim == 3:
            num = self.drive.shape[-1]
            object.__setattr__(self, "drive_names", tuple(f"u{i}" if num > 1 else "u" for i in range(num)))
        if self.image_shape is not None:
            height, width = self.image_shape
            object.__setattr__(self, "image_shape", (int(height), int(width)))
        check_trajectories(
            Block(self.times, self.values, self.mask, self.drive),
            self.channels,
            drive_names=self.drive_names,
            names=self.names,
            coordinate_names=self.coordinate_names,
            image_shape=self.image_shape,
        )

    def __repr__(self) -> str:
        shortest, longest = int(self.lengths.min()), self.num_times
        lengths = str(longest) if shortest == longest else f"{shortest} to {longest}"
        real = int(self.lengths.sum()) * self.num_channels
        drive = f", drive={list(self.drive_names)}" if self.drive is not None else ""
        what = f"channels={[channel.name for channel in self.channels]}"
        if self.image_shape is not None:
            what = f"frames of {self.image_shape[0]} x {self.image_shape[1]}"
        return (
            f"Trajectories({self.num_trajectories} x {lengths} times, {what}{drive}, "
            f"{real - self.num_observed} of {real} values missing, {self.times.dtype})"
        )

    # Sizes and indices

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories."""
        return int(self.values.shape[0])

    @property
    def num_times(self) -> int:
        """Number of times of the longest trajectory."""
        return int(self.values.shape[1])

    @property
    def num_channels(self) -> int:
        """Number of measured channels."""
        return int(self.values.shape[2])

    @property
    def dim(self) -> int:
        """Number of generalised coordinates."""
        return len(self.coordinate_names)

    @property
    def frames(self) -> Tensor:
        """The values as frames, a view of shape `(num_trajectories, num_times, height, width)`.

        Raises:
            DataError: if the data are not films.
        """
        if self.image_shape is None:
            raise DataError(
                "the data have no frames: their channels are "
                f"{', '.join(channel.name for channel in self.channels)}. Films come from read_video or "
                "Trajectories.from_frames."
            )
        return self.values.unflatten(-1, self.image_shape)

    @cached_property
    def lengths(self) -> Tensor:
        """Number of real times of each trajectory, shape `(num_trajectories,)`."""
        return (self.times < self.times[:, -1:]).sum(1) + 1

    @cached_property
    def median_step(self) -> float:
        """Median time between neighbouring samples; NaN if no trajectory has two."""
        gaps = self.times.diff(dim=-1)
        return float(gaps[gaps > 0].median())

    @cached_property
    def channel_index(self) -> Tensor:
        """Index of each channel in positions followed by velocities, shape `(num_channels,)`.

        Raises:
            DataError: for films, whose pixels measure no coordinate.
        """
        if self.image_shape is not None:
            raise DataError(
                "pixels measure no coordinate, and these data are frames of "
                f"{self.image_shape[0]} x {self.image_shape[1]} pixels. Use a model of films, or "
                "measurements of positions and velocities."
            )
        index = [c.coordinate + (self.dim if c.quantity == "velocity" else 0) for c in self.channels]
        return torch.tensor(index, device=self.values.device)

    @cached_property
    def num_observed(self) -> int:
        """Number of observed values over all trajectories, times and channels."""
        return int(self.mask.sum())

    @property
    def _block(self) -> Block:
        return Block(self.times, self.values, self.mask, self.drive)

    # What a likelihood needs

    @cached_property
    def channel_rms(self) -> Tensor:
        """Root mean square of every channel over its observed entries, shape `(num_channels,)`."""
        count = self.mask.sum((0, 1)).clamp_min(1)
        return ((self.values.square() * self.mask).sum((0, 1)) / count).sqrt()

    @cached_property
    def velocity_channels(self) -> Tensor:
        """Which channels measure velocities, shape `(num_channels,)`; films have no such channels.

        Raises:
            DataError: for films, whose pixels measure no coordinate.
        """
        return self.channel_index >= self.dim

    def observe(self, trajectory: Trajectory) -> Tensor:
        """Return what the channels would read along a path without noise.

        Args:
            trajectory: positions and velocities of shape `(*batch, num_trajectories, num_times, dim)`.

        Returns:
            Tensor of shape `(*batch, num_trajectories, num_times, num_channels)`.

        Raises:
            DataError: for films, whose pixels measure no coordinate.
        """
        require(
            trajectory.q.ndim >= 1 and trajectory.q.shape[-1] == self.dim,
            f"positions must have one entry for each of the {self.dim} coordinates in the last dimension",
            trajectory.q,
        )
        index = self.channel_index.tolist() if self.num_channels == 1 else None
        if index is not None:  # one column is a view
            part = trajectory.q if index[0] < self.dim else trajectory.v
            return part[..., index[0] % self.dim, None]
        return torch.cat([trajectory.q, trajectory.v], -1).index_select(-1, self.channel_index)

    def grid(self, max_step_size: float | None = None) -> TimeGrid:
        """Return the time grid of the data; one-dimensional if all trajectories share their times.

        Args:
            max_step_size: longest integration step, in units of time; longer
                intervals are crossed by sub-steps. `None` takes one step per interval.
        """
        if max_step_size not in self._grids:
            shared = bool((self.times == self.times[:1]).all())
            times = self.times[0] if shared else self.times
            self._grids[max_step_size] = TimeGrid.from_times(times, max_step_size=max_step_size)
        return self._grids[max_step_size]

    def control(self) -> ControlSignal:
        """Return the known inputs as a signal for a driven VIN.

        Raises:
            DataError: if the data have no drive.
        """
        if self.drive is None:
            raise DataError("the data have no drive; name its columns, as in drive=('u',)")
        held = self.drive.gather(1, self._last_sample().expand(-1, -1, self.drive.shape[-1]))
        padding = torch.arange(self.num_times, device=self.times.device) >= self.lengths.unsqueeze(-1)
        return ControlSignal(self.times, torch.where(padding.unsqueeze(-1), held, self.drive))

    def _last_sample(self) -> Tensor:
        return (self.lengths - 1)[:, None, None]

    @cached_property
    def _grids(self) -> dict[float | None, TimeGrid]:
        return {}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Trajectories:
        """Return the data on another device or with another floating type.

        Raises:
            DataError: if the times cannot be told apart in the new type.
        """
        times = self.times.to(device=device, dtype=dtype)
        if times.dtype != self.times.dtype and _num_steps(times) < _num_steps(self.times):
            latest = float(self.times.abs().max())
            raise DataError(
                f"different times become equal in {times.dtype}: they reach {latest:.10g} with too fine a "
                "spacing. Keep float64, or subtract the first time."
            )
        return replace(
            self,
            times=times,
            values=self.values.to(device=device, dtype=dtype),
            mask=self.mask.to(device=device),
            drive=None if self.drive is None else self.drive.to(device=device, dtype=dtype),
        )

    # Parts

    def select(self, indices: Sequence[int] | slice | Tensor | NDArray[Any]) -> Trajectories:
        """Return some trajectories, without padding that they no longer need.

        Args:
            indices: integer positions, a slice or a boolean mask over trajectories.

        Raises:
            DataError: if nothing is selected or a position does not exist.
        """
        everything = np.arange(self.num_trajectories)
        if not isinstance(indices, slice):
            indices = np.atleast_1d(np.asarray(indices))
            indices = indices if indices.size else slice(0)
        try:
            chosen = everything[indices].copy()  # a reversed slice is no tensor yet
        except IndexError as error:
            raise DataError(f"cannot select from {self.num_trajectories} trajectories: {error}.") from None
        require(chosen.size > 0, "at least one trajectory must be selected", "none", error=DataError)
        rows = torch.as_tensor(chosen, device=self.times.device)
        longest = int(self.lengths[rows].max())
        block = Block(*(None if x is None else x[rows, :longest] for x in self._block))  # type: ignore[arg-type]
        return self._with(block, tuple(self.names[n] for n in chosen))

    def split_by_trajectory(
        self, train_fraction: float, *, generator: torch.Generator | None = None
    ) -> tuple[Trajectories, Trajectories]:
        """Return the first trajectories for training and the others for testing.

        Args:
            train_fraction: share of the trajectories for training, between 0 and 1.
            generator: if given, the trajectories are shuffled with it first.

        Raises:
            DataError: if one of the parts would be empty.
        """
        num = self._share(train_fraction, torch.tensor([self.num_trajectories]), "trajectories")
        order = torch.arange(self.num_trajectories)
        if generator is not None:
            order = torch.randperm(self.num_trajectories, generator=generator)
        first = int(num)
        return self.select(order[:first].sort().values), self.select(order[first:].sort().values)

    def split_by_time(self, train_fraction: float) -> tuple[Trajectories, Trajectories]:
        """Return the first part of every trajectory for training and its last part for testing.

        The share is counted in samples of each trajectory; times stay absolute.

        Args:
            train_fraction: share of the samples for training, between 0 and 1.

        Raises:
            DataError: if one of the parts of a trajectory would be empty.
        """
        train = self._share(train_fraction, self.lengths, "samples")
        head = blocks.cut(self._block, torch.zeros_like(train), train)
        tail = blocks.cut(self._block, train, self.lengths - train)
        return self._with(head, self.names), self._with(tail, self.names)

    def _share(self, fraction: float, counts: Tensor, what: str) -> Tensor:
        require(0 < fraction < 1, "train_fraction must lie between 0 and 1", fraction, error=DataError)
        train = torch.round(fraction * counts.double()).long()
        empty = (train == 0) | (train == counts)
        if bool(empty.any()):
            n = int(empty.int().argmax())
            owner = f"trajectory {self.names[n]!r} has" if what == "samples" else "the data have"
            raise DataError(
                f"{owner} {int(counts[n])} {what}, and a train_fraction of {fraction} leaves one part empty. "
                "Choose a fraction nearer one half, or more data."
            )
        return train

    def first(self, num_times: int) -> Trajectories:
        """Return the first `num_times` samples of every trajectory (all of a shorter one)."""
        require(num_times >= 1, "num_times must be at least 1", num_times, error=DataError)
        block = Block(*(None if x is None else x[:, :num_times] for x in self._block))  # type: ignore[arg-type]
        return self._with(block, self.names)

    def last(self, num_times: int) -> Trajectories:
        """Return the last `num_times` samples of every trajectory (all of a shorter one)."""
        require(num_times >= 1, "num_times must be at least 1", num_times, error=DataError)
        counts = self.lengths.clamp_max(num_times)
        return self._with(blocks.cut(self._block, self.lengths - counts, counts), self.names)

    def measured(self) -> Trajectories:
        """Return the data at those times only at which something was measured, the same data if at all times.

        A time is kept if any of the trajectories has a measurement there. Inputs are often known more finely
        than motions are measured; estimates from neighbouring samples need the measured ones side by side.
        """
        seen = self.mask.any(-1).any(0)
        if bool(seen.all()) or int(seen.sum()) < 2:
            return self
        return self._with(Block(*(None if x is None else x[:, seen] for x in self._block)), self.names)  # type: ignore[arg-type]

    def windows(self, length: int, stride: int = 1, start: int | None = None) -> Trajectories:
        """Return all full windows of consecutive samples, each as a trajectory of its own.

        A window that begins at sample `i` of a trajectory is called `name[i]`. Samples
        that fill no window are left out. Times stay absolute.

        Args:
            length: number of samples in a window, at least 2.
            stride: samples between the starts of neighbouring windows; `length` gives
                windows that do not overlap.
            start: sample at which the first window begins, 0 if `None`.

        Raises:
            DataError: if no trajectory is long enough.
        """
        start = 0 if start is None else start
        require(length >= 2, "the length of a window must be at least 2", length, error=DataError)
        require(stride >= 1, "the stride of windows must be at least 1", stride, error=DataError)
        require(start >= 0, "the start of windows must be 0 or more", start, error=DataError)
        longest = int(self.lengths.max())
        require(
            start + length <= longest,
            f"no trajectory is long enough for windows of {length} samples from sample {start} on",
            f"at most {longest} samples",
            "Choose shorter windows.",
            error=DataError,
        )
        block, counts = blocks.windows(self._block, self.lengths, length, stride, start)
        names = tuple(
            f"{name}[{i}]"
            for name, count in zip(self.names, counts.tolist(), strict=True)
            for i in range(start, start + count * stride, stride)
        )
        return self._with(block, names)

    def resampled(self, step: float, *, max_gap: float | None = None) -> Trajectories:
        """Interpolate every channel linearly onto a regular grid from each first time on.

        Nothing is invented: a grid point in a gap longer than `max_gap` is masked. The
        drive is interpolated across every interval, because it is known throughout.

        Args:
            step: spacing of the new times, in units of time.
            max_gap: longest interval between two observed samples of a channel across
                which to interpolate. By default twice the median of such intervals
                in the channel, or `step` if that is longer.

        Raises:
            DataError: if the step is not positive or longer than a trajectory.
        """
        require(step > 0 and np.isfinite(step), "step must be positive and finite", step, error=DataError)
        require(max_gap is None or max_gap >= 0, "max_gap must be 0 or more", max_gap, error=DataError)
        durations = self.times[:, -1] - self.times[:, 0]
        n = int(durations.argmin())
        require(
            float(durations[n]) >= step * (1 - 1e-6),
            "step must not be longer than a trajectory",
            f"step {step:.6g} and a duration of {float(durations[n]):.6g} in trajectory {self.names[n]!r}",
            error=DataError,
        )
        block, _ = blocks.resample(self._block, self.lengths, step, max_gap)
        return self._with(block, self.names)

    def _with(self, block: Block, names: tuple[str, ...]) -> Trajectories:
        return replace(self, **block._asdict(), names=names)

    # Other forms

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per sample: `trajectory`, `time`, channels, drive.

        Padding is left out and missing values are NaN.

        Raises:
            DataError: if labels repeat or a channel is called like another column.
        """
        require(
            len(set(self.names)) == len(self.names),
            "trajectories in a table must have different names",
            "repeated names",
            "Give new ones with dataclasses.replace(data, names=(..)).",
            error=DataError,
        )
        headers = ["trajectory", "time", *(channel.name for channel in self.channels), *self.drive_names]
        require(
            len(set(headers)) == len(headers),
            "columns of a table must have different names",
            ", ".join(headers),
            "Rename the channel.",
            error=DataError,
        )
        arrays = self.to_numpy()
        real = np.arange(self.num_times) < arrays["lengths"][:, None]
        names = np.repeat(np.array(self.names, dtype=object), arrays["lengths"])
        table = [arrays["times"][real], *arrays["values"][real].T]
        table += [*arrays["drive"][real].T] if "drive" in arrays else []
        return pd.DataFrame(dict(zip(headers, [names, *table], strict=True)))

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Return arrays `times`, `values` (NaN where missing), `mask`, `lengths` and, if any, `drive`."""
        arrays = {
            "times": self.times.cpu().numpy(),
            "values": self.values.masked_fill(~self.mask, float("nan")).cpu().numpy(),
            "mask": self.mask.cpu().numpy(),
            "lengths": self.lengths.cpu().numpy(),
        }
        if self.drive is not None:
            arrays["drive"] = self.drive.cpu().numpy()
        return arrays

    def fingerprint(self) -> str:
        """Return a SHA-256 in hexadecimal of everything in it, the same on every device."""
        head: dict[str, Any] = {
            "channels": [asdict(channel) for channel in self.channels],
            "drive_names": self.drive_names,
            "names": self.names,
            "coordinate_names": self.coordinate_names,
            "time_unit": self.time_unit,
        }
        if self.image_shape is not None:
            head["image_shape"] = self.image_shape
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name, tensor in self._block._asdict().items():
            if tensor is not None:
                array = np.ascontiguousarray(tensor.cpu().numpy())
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    # Sources

    @classmethod
    def from_arrays(
        cls,
        times: ArrayLike | Tensor,
        values: ArrayLike | Tensor,
        *,
        quantities: Sequence[Quantity] | None = None,
        channels: Sequence[Channel] | None = None,
        mask: ArrayLike | Tensor | None = None,
        drive: ArrayLike | Tensor | None = None,
        drive_names: Sequence[str] = (),
        names: Sequence[str] = (),
        coordinate_names: Sequence[str] = (),
        time_unit: str = "",
        sort: bool = False,
        unwrap: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Trajectories:
        """Check arrays or tensors and put them together.

        Args:
            times: shape `(num_times,)` shared by all, or `(num_trajectories, num_times)`
                with the last time of a shorter trajectory repeated as padding.
            values: shape `(num_trajectories, num_times, num_channels)`, or for one
                trajectory `(num_times, num_channels)` or `(num_times,)`. NaN is missing.
            quantities: for each channel `"position"` or `"velocity"`, the coordinates of
                each counted from 0. By default all channels are positions.
            channels: full descriptions, instead of `quantities`.
            mask: `True` where observed, shape of `values` or of `times`.
            drive: known inputs, shape `(num_trajectories, num_times, num_drives)` or
                `(num_times, num_drives)` for all.
            drive_names: one name for each input signal.
            names: one label for each trajectory.
            coordinate_names: names of the generalised coordinates.
            time_unit: unit of time, for labels.
            sort: sort each trajectory by time instead of refusing.
            unwrap: make angles continuous instead of refusing jumps.
            dtype: floating type of the result; by default that of a floating `values`
                tensor, otherwise float64.
            device: device of the result; by default that of a `values` tensor.

        Raises:
            DataError: for shapes that disagree and for every fault in the values.
        """
        if isinstance(values, Tensor):
            dtype = dtype or (values.dtype if values.is_floating_point() else None)
            device = device or values.device
        if channels is not None and quantities is not None:
            raise DataError("give either quantities or channels, not both.")
        if channels is None and quantities is not None:
            channels = default_channels(tuple(quantities))
        samples = samples_from_arrays(
            times,
            values,
            channels,
            mask=mask,
            drive=drive,
            drive_names=drive_names,
            names=names,
            coordinate_names=coordinate_names,
            sort=sort,
        )
        data = cls.from_samples(check_samples(samples, unwrap=unwrap), time_unit=time_unit)
        return data.to(device=device, dtype=dtype)

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, spec: ColumnSpec | None = None, *, dtype: torch.dtype = torch.float64
    ) -> Trajectories:
        """Check a data frame with one row per sample and put its trajectories together.

        Args:
            frame: the table; NaN in a channel is a missing value.
            spec: which columns to use.
            dtype: floating type of the result.

        Raises:
            DataError: naming the row, the column and the remedy.
        """
        require(isinstance(frame, pd.DataFrame), "frame must be a pandas DataFrame", frame, error=DataError)
        spec = spec or ColumnSpec()
        samples = check_samples(samples_from_frame(frame, spec), unwrap=spec.unwrap)
        return cls.from_samples(samples, time_unit=spec.time_unit).to(dtype=dtype)

    @classmethod
    def from_frames(
        cls,
        frames: ArrayLike | Tensor | Sequence[ArrayLike | Tensor],
        times_or_step: Times,
        *,
        names: Sequence[str] = (),
        dim: int = 1,
        coordinate_names: Sequence[str] = (),
        mask: ArrayLike | Tensor | None = None,
        time_unit: str = "s",
    ) -> Trajectories:
        """Return films as trajectories whose channels are pixels, in the default dtype.

        Args:
            frames: grey levels, shape `(clip, time, height, width)`, or `(time, height, width)` for one
                clip, or a list of such clips of different lengths; row 0 is the top of the picture. Floats
                from 0 (black) to 1 (white), NaN where missing; `uint8`, which is divided by 255; or booleans.
            times_or_step: time between frames, the clips then beginning at 0; or times, shape `(time,)` for
                all or `(clip, time)`, or a list with the times of each clip.
            names: one label for each clip.
            dim: number of generalised coordinates behind the films.
            coordinate_names: their names, instead of `dim`.
            mask: `True` where observed, shape `(clip, time)`, or `(clip, time, height, width)` by pixel.
            time_unit: unit of time, for labels.

        Raises:
            DataError: for shapes that disagree, values outside [0, 1], or no frames.

        Example:
            >>> Trajectories.from_frames(torch.zeros(2, 10, 28, 28), 0.1)
            Trajectories(2 x 10 times, frames of 28 x 28, 0 of 15680 values missing, torch.float32)
        """
        require(dim >= 1, "dim must be at least 1", dim, error=DataError)
        block, image_shape = block_of_clips(frames, times_or_step, mask)
        data = cls(
            **block._asdict(),
            channels=pixel_channels(*image_shape),
            names=tuple(str(name) for name in names),
            coordinate_names=tuple(coordinate_names) or tuple(f"q{i}" for i in range(dim)),
            time_unit=time_unit,
            image_shape=image_shape,
        )
        return data.to(dtype=torch.get_default_dtype())

    @classmethod
    def from_samples(cls, samples: Samples, *, time_unit: str = "") -> Trajectories:
        """Turn checked samples into tensors of their own (float64); no memory is shared."""
        mask = ~np.isnan(samples.values)
        drive = None
        if samples.drive is not None:
            drive = torch.from_numpy(np.where(samples.real[..., None], samples.drive, 0.0))
        return cls(
            times=torch.from_numpy(np.array(samples.times)),
            values=torch.from_numpy(np.where(mask, samples.values, 0.0)),
            mask=torch.from_numpy(mask),
            channels=samples.channels,
            drive=drive,
            drive_names=samples.drive_names,
            names=samples.names,
            coordinate_names=samples.coordinate_names,
            time_unit=time_unit,
        )

    @classmethod
    def from_states(
        cls,
        trajectory: Trajectory,
        *,
        observe: Sequence[Quantity] = ("position", "velocity"),
        noise_scale: float | Sequence[float] | Tensor = 0.0,
        angles: Sequence[int] = (),
        names: Sequence[str] = (),
        time_unit: str = "",
        generator: torch.Generator | None = None,
    ) -> Trajectories:
        """Return noisy measurements of simulated paths.

        Args:
            trajectory: positions and velocities of shape `(*batch, num_times, dim)`; all
                batch dimensions together count trajectories.
            observe: which quantities are measured, in all coordinates.
            noise_scale: standard deviation of Gaussian noise, one for all or one per channel.
            angles: coordinates that are angles in radians.
            names: one label for each trajectory.
            time_unit: unit of time, for labels.
            generator: source of the noise; required if there is any.
        """
        require(len(observe) > 0, "at least one quantity must be observed", observe, error=DataError)
        require(
            "pixel" not in observe,
            "observe must name positions and velocities",
            "pixel",
            "Draw frames with vinppl.render, and use from_frames.",
            error=DataError,
        )
        dim = trajectory.q.shape[-1]
        channels = default_channels([quantity for quantity in observe for _ in range(dim)], angles=angles)
        parts = {"position": trajectory.q, "velocity": trajectory.v}
        values = torch.cat([parts[quantity].detach() for quantity in observe], -1)
        times = trajectory.time.detach().to(values).expand(values.shape[:-1])
        values = values.reshape(-1, *values.shape[-2:]).clone()
        scale = torch.as_tensor(noise_scale).to(values)
        require(
            scale.ndim == 0 or scale.shape == (len(channels),),
            f"noise_scale must be a number or have one entry for each of {len(channels)} channels",
            describe(noise_scale),
            error=DataError,
        )
        require(bool((scale >= 0).all()), "noise_scale must be 0 or more", noise_scale, error=DataError)
        if bool((scale > 0).any()):
            require(
                generator is not None,
                "noise needs an explicit generator",
                "None",
                "Pass torch.Generator().manual_seed(..).",
                error=DataError,
            )
            noise = torch.randn(values.shape, generator=generator, dtype=values.dtype, device=values.device)
            values += scale * noise
        return cls(
            times=times.reshape(-1, times.shape[-1]),
            values=values,
            mask=torch.ones_like(values, dtype=torch.bool),
            channels=channels,
            names=tuple(names),
            time_unit=time_unit,
        )


def _num_steps(times: Tensor) -> int:
    """Return the number of times that are later than the one before."""
    return int((times[:, 1:] > times[:, :-1]).sum())
