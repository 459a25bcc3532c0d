"""Reading tables from text files, with line numbers for messages."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from vinppl.data.columns import ColumnSpec, listed, resolve_columns
from vinppl.errors import DataError

__all__ = ["read_text"]

_SEPARATORS = {"tab": "\t", "space": r"\s+", ",": ",", ";": ";"}
# A byte order mark, which some spreadsheets write, is skipped.
_ENCODING = "utf-8-sig"
# Numbers are read to the last digit; from pandas 3.1 on that is the default and the option deprecated.
_PANDAS = tuple(int(part) for part in pd.__version__.split(".")[:2])
_EXACT: dict[str, Any] = {} if _PANDAS >= (3, 1) else {"float_precision": "round_trip"}


@dataclass(frozen=True)
class _Layout:
    """How a text file is laid out: separator, column names and lines above the first row."""

    separator: str
    header: tuple[str, ...]
    lines_above: int


def read_text(path: Path, spec: ColumnSpec) -> tuple[pd.DataFrame, Callable[[int], str]]:
    """Read the columns of a text file.

    Args:
        path: an existing file.
        spec: its columns and layout.

    Returns:
        The table, and a function from a row (counted from 0) to words with its line number.

    Raises:
        DataError: if the file is not text, is empty or has rows of different widths.
    """
    _check_text(path)
    try:
        layout = _layout(path, spec)
        columns = resolve_columns(spec, layout.header, str(path))
        frame = _parse(path, spec, layout, columns.trajectory)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.start}: {error.reason}). Save the file as UTF-8, or "
            "give it the extension of its format."
        ) from error

    def place(row: int) -> str:
        for data_row, number in enumerate(_data_lines(path, spec, layout)):
            if data_row == row:
                return f"line {number}"
        return f"row {row} (counting from 0)"

    return frame, place


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(65536)
    if b"\0" in head:
        utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "UTF-16 text" if utf16 else "binary"
        raise DataError(f"{path}: looks like {what}, not UTF-8 text. Export it as a plain CSV file in UTF-8.")


def _lines(path: Path, spec: ColumnSpec) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of the lines that count, from the header on."""
    with path.open(encoding=_ENCODING) as file:
        for number, line in enumerate(islice(file, spec.skip_rows, None), start=spec.skip_rows + 1):
            if line.strip() and not (spec.comment and line.startswith(spec.comment)):
                yield number, line.rstrip("\r\n")


def _data_lines(path: Path, spec: ColumnSpec, layout: _Layout) -> Iterator[int]:
    return (number for number, _ in _lines(path, spec) if number > layout.lines_above)


def _layout(path: Path, spec: ColumnSpec) -> _Layout:
    """Find separator and header from the first two lines that count."""
    lines = list(islice(_lines(path, spec), 2))
    if not lines:
        raise DataError(f"{path}: the file holds no lines{' below those skipped' if spec.skip_rows else ''}.")
    separator = _SEPARATORS.get(spec.separator) or _guess_separator(lines[0][1])
    fields = _fields(lines[0][1], separator, spec.comment)
    if spec.names:
        header, lines_above, first = spec.names, spec.skip_rows, fields
    else:
        header, lines_above = tuple(fields), lines[0][0]
        first = _fields(lines[1][1], separator, spec.comment) if len(lines) > 1 else fields
    if len(lines) < (1 if spec.names else 2):
        raise DataError(
            f"{path}: there are no rows of data below the header. At least two samples are needed."
        )
    if len(first) > len(header):
        number = lines[0 if spec.names else 1][0]
        source = "names" if spec.names else "the header"
        raise DataError(
            f"{path}, line {number}: the row has {len(first)} fields, but {source} gives {len(header)} "
            f"columns: {listed(header)}. Check separator and decimal points, or complete the column names."
        )
    return _Layout(separator, header, lines_above)


def _guess_separator(line: str) -> str:
    for separator in ("\t", ";", ","):
        if separator in line:
            return separator
    return _SEPARATORS["space"] if len(line.split()) > 1 else ","


def _fields(line: str, separator: str, comment: str) -> list[str]:
    """Return the fields of a line, without the empty ones that trailing separators leave."""
    if comment:
        line = line.split(comment)[0]
    if separator == _SEPARATORS["space"]:
        return [field.strip('"') for field in line.split()]
    fields = [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _parse(path: Path, spec: ColumnSpec, layout: _Layout, trajectory: str | None) -> pd.DataFrame:
    # Columns are read by number: pandas would rename repeated names. All are read, although
    # few are used, because only then does the parser refuse rows that are too wide.
    positions = range(len(layout.header))
    dtype = {layout.header.index(trajectory): "str"} if trajectory is not None else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # trailing separators
            frame = pd.read_csv(
                path,
                sep=layout.separator,
                header=None,
                names=list(positions),
                index_col=False,
                dtype=dtype,
                skiprows=layout.lines_above,
                skipinitialspace=True,
                comment=spec.comment or None,
                encoding=_ENCODING,
                **_EXACT,
                low_memory=False,
            )
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: there are no rows of data. At least two samples are needed.") from None
    except pd.errors.ParserError as error:
        match = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if match is None:
            raise DataError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]}).") from error
        expected, line, seen = match.groups()
        raise DataError(
            f"{path}, line {line}: the row has {seen} fields where {expected} are expected. "
            "Check the separator, decimal points (not commas) and quotes of that line."
        ) from error
    return frame.set_axis(list(layout.header), axis=1)
