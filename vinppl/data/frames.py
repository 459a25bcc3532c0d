"""From a table with one row per sample to padded samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vinppl.data.columns import Columns, ColumnSpec, resolve_columns
from vinppl.data.samples import FloatArray, Samples
from vinppl.errors import DataError

__all__ = ["samples_from_frame"]

_MISSING_WORDS = ("", "nan", "na", "n/a", "null", "none", "<na>")
_MAX_PADDED_CELLS = 200_000_000


def samples_from_frame(
    frame: pd.DataFrame,
    spec: ColumnSpec,
    *,
    source: str = "data frame",
    place: Callable[[int], str] | None = None,
) -> Samples:
    """Group the rows of a table by trajectory.

    Args:
        frame: one row per sample. Rows of a trajectory need not be neighbours,
            but must be in the order of time unless `spec.sort`.
        spec: which columns to use.
        source: name of the table for messages.
        place: returns words for a row, given its index from 0.

    Raises:
        DataError: if a column is missing, holds text, or the table is empty.
    """
    place = place or (lambda row: f"row {row} (counting from 0)")
    columns = resolve_columns(spec, [str(name) for name in frame.columns], source)
    if len(frame) == 0:
        raise DataError(f"{source}: there are no rows of data. At least two samples are needed.")
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    numbers = {name: _numbers(frame[name], name, source, place) for name in columns.numeric}
    codes, names = _labels(frame, columns, source, place)
    order = _order(codes, numbers[columns.time], sort=spec.sort)
    lengths = np.bincount(codes, minlength=len(names))
    gather = _padding(lengths, order, len(columns.numeric), source)
    offsets = np.cumsum(lengths) - lengths

    def at(n: int, t: int) -> str:
        row = int(offsets[n]) + t
        return place(row if order is None else int(order[row]))

    times = gather(numbers[columns.time])
    values = np.stack([gather(numbers[name]) for name in columns.measured], axis=-1)
    drive = np.stack([gather(numbers[name]) for name in columns.drive], axis=-1) if columns.drive else None
    samples = Samples(
        times=times,
        values=values,
        lengths=lengths,
        channels=columns.channels,
        drive=drive,
        drive_names=columns.drive,
        names=names,
        coordinate_names=columns.coordinate_names,
        source=source,
        place=at,
        time_name=columns.time,
        labelled=columns.trajectory is not None,
    )
    if (lengths != times.shape[1]).any():
        values[~samples.real] = np.nan
    return samples


def _numbers(series: pd.Series, name: str, source: str, place: Callable[[int], str]) -> FloatArray:
    """Return a column as floats, NaN where missing."""
    dtype = series.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise DataError(
            f"{source}, column {name!r}: holds dates or durations, but numbers are needed. "
            f"Convert it first, for example (t - t.iloc[0]).dt.total_seconds()."
        )
    if pd.api.types.is_complex_dtype(dtype):
        raise DataError(f"{source}, column {name!r}: holds complex numbers, but real ones are needed.")
    if pd.api.types.is_numeric_dtype(dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    converted = pd.to_numeric(series, errors="coerce")
    bad = (converted.isna() & series.notna()).to_numpy()
    if bad.any():
        rows = np.flatnonzero(bad)
        words = series.iloc[rows].astype(str).str.strip().str.lower().isin(_MISSING_WORDS).to_numpy()
        rows = rows[~words.astype(bool)]
        if rows.size:
            text = str(series.iloc[int(rows[0])])
            comma = " Write decimals with a point, not a comma." if "," in text else ""
            raise DataError(
                f"{source}, {place(int(rows[0]))}, column {name!r}: {text!r} is not a number "
                f"({rows.size} such value(s) in the column). Correct it, or leave the field empty if it is "
                f"missing.{comma}"
            )
    return converted.to_numpy(dtype=np.float64, na_value=np.nan)


def _labels(
    frame: pd.DataFrame, columns: Columns, source: str, place: Callable[[int], str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return for each row the index of its trajectory, and the labels in order of appearance."""
    if columns.trajectory is None:
        return np.zeros(len(frame), dtype=np.int64), ("0",)
    codes, labels = pd.factorize(frame[columns.trajectory], use_na_sentinel=True)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(
            f"{source}, {place(row)}, column {columns.trajectory!r}: the label of the trajectory is missing. "
            "Fill it in or remove the row."
        )
    names = _label_text(list(labels))
    if len(set(names)) < len(names):  # labels such as 1 and 1.0 are the same
        merged, unique = pd.factorize(np.array(names, dtype=object))
        codes, names = merged[codes], list(unique)
    return codes.astype(np.int64, copy=False), tuple(names)


def _label_text(labels: Sequence[object]) -> list[str]:
    """Return labels as text; whole numbers written as floats lose their fraction."""
    texts = [str(label) for label in labels]
    if all(text.isdigit() for text in texts):
        return texts
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return texts
    if all(number.is_integer() for number in numbers):
        return [str(int(number)) for number in numbers]
    return texts


def _order(codes: NDArray[np.int64], times: FloatArray, *, sort: bool) -> NDArray[np.int64] | None:
    """Return the order of rows that groups trajectories, `None` if they already are."""
    if sort:
        return np.lexsort((times, codes))  # a stable sort
    if (np.diff(codes) >= 0).all():
        return None
    return np.argsort(codes, kind="stable")


def _padding(
    lengths: NDArray[np.int64], order: NDArray[np.int64] | None, num_columns: int, source: str
) -> Callable[[FloatArray], FloatArray]:
    """Return a function from a column to an array `(trajectory, time)`, the last row repeated."""
    num, longest = len(lengths), int(lengths.max())
    if (lengths == longest).all():
        return lambda column: (column if order is None else column[order]).reshape(num, longest)
    cells, rows = num * longest * num_columns, int(lengths.sum()) * num_columns
    if cells > _MAX_PADDED_CELLS and cells > 20 * rows:
        raise DataError(
            f"{source}: the longest of {num} trajectories has {longest} samples and most are far shorter, so "
            "that padding would take most of the memory. Read long and short trajectories separately, or cut "
            "the long ones."
        )
    within = np.minimum(np.arange(longest), lengths[:, None] - 1)
    index = within + (np.cumsum(lengths) - lengths)[:, None]
    if order is not None:
        index = order[index]
    return lambda column: column[index]
