"""Reading trajectories from files and data frames."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vinppl._checks import require
from vinppl.data.arrays import as_numpy, columns_of_array, samples_from_arrays
from vinppl.data.channels import Channel
from vinppl.data.columns import ColumnSpec, did_you_mean, listed, resolve_columns
from vinppl.data.frames import samples_from_frame
from vinppl.data.samples import FloatArray, Samples, check_samples
from vinppl.data.textfiles import read_text
from vinppl.data.trajectories import Trajectories
from vinppl.errors import DataError

__all__ = ["read_trajectories"]

_TEXT = (".csv", ".txt", ".tsv", ".dat")


def read_trajectories(
    source: str | Path | pd.DataFrame,
    spec: ColumnSpec | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Trajectories:
    """Read, check and put together the trajectories of a file or data frame.

    Text files (`.csv`, `.txt`, `.tsv`, `.dat`), Parquet files and data frames hold one row
    per sample; empty fields and the fields that a short row lacks are missing
    values. NumPy archives (`.npz`) hold arrays under the names in `spec`: times
    `(num_times,)` or `(num_trajectories, num_times)`, positions and velocities
    `(num_trajectories, num_times, dim)`, and if they exist `mask`, `drive` and `names`.

    Args:
        source: path of the file, or a data frame.
        spec: which columns to use, by default `time`, `trajectory`, `q` and `v`.
        dtype: floating type of the result.

    Raises:
        DataError: naming the file, the row, the column and the remedy.

    Example:
        A headerless file separated by spaces, one line to skip, angles in radians::

            read_trajectories("pendulum.txt", ColumnSpec(
                time="t", trajectory="trial", position=("theta",), velocity=("omega",), angle=("theta",),
                names=("trial", "t", "theta", "omega"), skip_rows=1, separator="space"))
    """
    spec = spec or ColumnSpec()
    if isinstance(source, pd.DataFrame):
        return Trajectories.from_frame(source, spec, dtype=dtype)
    require(isinstance(source, str | Path), "source must be a path or a data frame", source, error=DataError)
    path = Path(source)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        frame, place = read_text(path, spec)
        samples = samples_from_frame(frame, spec, source=str(path), place=place)
    elif suffix == ".parquet":
        samples = samples_from_frame(_read_parquet(path, spec), spec, source=str(path))
    else:
        samples = _read_npz(path, spec)
    samples = check_samples(samples, unwrap=spec.unwrap)
    return Trajectories.from_samples(samples, time_unit=spec.time_unit).to(dtype=dtype)


def _check_file(path: Path) -> None:
    supported = f"{', '.join(_TEXT)}, .parquet or .npz"
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (*_TEXT, ".parquet", ".npz"))
        raise DataError(f"{path} is a directory. Name a file in it: {listed(files) or 'none is readable'}.")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or " Check the path and the working directory."
        raise DataError(f"{path}: there is no such file.{hint}")
    if path.suffix.lower() not in (*_TEXT, ".parquet", ".npz"):
        raise DataError(
            f"{path}: unknown extension {path.suffix!r}. Convert or rename the file to {supported}."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes).")


def _read_parquet(path: Path, spec: ColumnSpec) -> pd.DataFrame:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        available = list(parquet.read_schema(path).names)
        columns = resolve_columns(spec, available, str(path))
        wanted = [*columns.numeric, *([columns.trajectory] if columns.trajectory else [])]
        return parquet.read_table(path, columns=wanted).to_pandas(ignore_metadata=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)}).") from error


def _read_npz(path: Path, spec: ColumnSpec) -> Samples:
    source = str(path)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a readable NumPy archive ({_first_line(error)}). Write it with np.savez, without "
            "arrays of objects."
        ) from error
    columns = resolve_columns(
        ColumnSpec(
            time=spec.time, trajectory=None, position=spec.position, velocity=spec.velocity, drive=spec.drive
        ),
        list(arrays),
        source,
    )
    times = as_numpy(arrays[columns.time], f"array {columns.time!r}", source)

    def columns_of(name: str) -> FloatArray:
        return columns_of_array(
            as_numpy(arrays[name], f"array {name!r}", source), times, f"array {name!r}", source
        )

    parts = {name: columns_of(name) for name in columns.measured}
    if len({len(part) for part in parts.values()}) > 1:
        shapes = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
        raise DataError(f"{source}: the arrays have different numbers of trajectories: {shapes}.")
    channels = _array_channels(spec, columns.position, columns.velocity, parts, source)
    drive_names: tuple[str, ...] = ()
    drive = arrays.get("drive")
    if columns.drive:
        inputs = {name: columns_of(name) for name in columns.drive}
        drive_names = tuple(n for name, part in inputs.items() for n in _array_names(name, part.shape[-1]))
        rows = max(len(part) for part in inputs.values())
        drive = np.concatenate(
            [np.broadcast_to(part, (rows, *part.shape[1:])) for part in inputs.values()], axis=-1
        )
    return samples_from_arrays(
        times,
        np.concatenate(list(parts.values()), axis=-1),
        channels,
        mask=arrays.get("mask"),
        drive=drive,
        drive_names=drive_names,
        names=[str(name) for name in arrays.get("names", ())],
        coordinate_names=[channel.name for channel in channels if channel.quantity == "position"]
        if sum(parts[name].shape[-1] for name in columns.position)
        >= sum(parts[name].shape[-1] for name in columns.velocity)
        else (),
        sort=spec.sort,
        source=source,
    )


def _array_channels(
    spec: ColumnSpec,
    position: Sequence[str],
    velocity: Sequence[str],
    parts: dict[str, FloatArray],
    source: str,
) -> tuple[Channel, ...]:
    """Return the channels of arrays, each of which may hold several coordinates."""
    groups = {
        "position": [
            (array, name) for array in position for name in _array_names(array, parts[array].shape[-1])
        ],
        "velocity": [
            (array, name) for array in velocity for name in _array_names(array, parts[array].shape[-1])
        ],
    }
    known = {label for pair in groups["position"] for label in pair}
    for name in spec.angle:
        if name not in known:
            raise DataError(
                f"{source}: angle names {name!r}, which is not a position; they are {listed(known)}."
            )
    positions = tuple(
        Channel(name, "position", i, spec.position_unit, name in spec.angle or array in spec.angle)
        for i, (array, name) in enumerate(groups["position"])
    )
    velocities = tuple(
        Channel(name, "velocity", i, spec.velocity_unit) for i, (_, name) in enumerate(groups["velocity"])
    )
    return positions + velocities


def _array_names(name: str, num_columns: int) -> list[str]:
    return [name] if num_columns == 1 else [f"{name}{i}" for i in range(num_columns)]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
