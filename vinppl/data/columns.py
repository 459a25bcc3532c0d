"""How the columns of a table map to times, channels and input signals."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vinppl._checks import require
from vinppl.data.channels import Channel
from vinppl.errors import DataError

__all__ = ["ColumnSpec", "Columns", "did_you_mean", "listed", "resolve_columns"]


@dataclass(frozen=True)
class ColumnSpec:
    """Where to find times, channels and input signals in a file or data frame.

    Attributes:
        time: name of the time column.
        trajectory: name of the column that labels trajectories; without such a column
            (or with `None`) the whole file is one trajectory. A name other than the
            default must exist.
        position: position columns, one for each generalised coordinate in order. If
            not given, `q` or else `q0`, `q1`, .. as far as they exist. An empty tuple
            reads no position.
        velocity: velocity columns in the same way, by default `v` or else `v0`, `v1`, ..
        drive: columns of known input signals.
        angle: which position columns are angles in radians.
        unwrap: make angles continuous by adding full turns instead of refusing jumps.
        position_unit: unit of all positions, for labels.
        velocity_unit: unit of all velocities, for labels.
        time_unit: unit of time, for labels.
        separator: what separates the fields of a text file.
        comment: a character that starts a comment in a text file.
        names: column names of a text file that has no header line.
        skip_rows: number of lines to skip at the top of a text file.
        sort: sort each trajectory by time instead of refusing unsorted rows.

    Raises:
        DataError: if an option has no meaning, or neither positions nor velocities are asked for.
    """

    time: str = "time"
    trajectory: str | None = "trajectory"
    position: tuple[str, ...] | None = None
    velocity: tuple[str, ...] | None = None
    drive: tuple[str, ...] = ()
    angle: tuple[str, ...] = ()
    unwrap: bool = False
    position_unit: str = ""
    velocity_unit: str = ""
    time_unit: str = ""
    separator: Literal["auto", ",", ";", "tab", "space"] = "auto"
    comment: str = ""
    names: tuple[str, ...] = ()
    skip_rows: int = 0
    sort: bool = False

    def __post_init__(self) -> None:
        for name in ("position", "velocity", "drive", "angle", "names"):
            value = getattr(self, name)
            require(
                not isinstance(value, str),
                f"{name} must be a tuple of column names",
                f"the string {value!r}",
                f"Write ({value!r},).",
                error=DataError,
            )
            if value is not None:
                object.__setattr__(self, name, tuple(value))  # lists are welcome
        require(
            self.position != () or self.velocity != (),
            "at least one position or velocity column is needed",
            "none of either",
            error=DataError,
        )
        separators = ("auto", ",", ";", "tab", "space")
        require(
            self.separator in separators,
            f"separator must be one of {listed(separators)}",
            self.separator,
            error=DataError,
        )
        require(
            len(self.comment) <= 1,
            "comment must be a single character or empty",
            self.comment,
            error=DataError,
        )
        require(self.skip_rows >= 0, "skip_rows must be 0 or more", self.skip_rows, error=DataError)
        repeated = _repeated(self.names)
        require(
            not repeated, "names must differ from each other", f"{listed(repeated)} twice", error=DataError
        )


@dataclass(frozen=True)
class Columns:
    """The columns of one particular table: a `ColumnSpec` with its defaults resolved.

    Attributes:
        time: name of the time column.
        trajectory: name of the label column, `None` for a single trajectory.
        position: position columns, in the order of the coordinates.
        velocity: velocity columns, in the order of the coordinates.
        drive: input columns.
        channels: the channels they stand for, positions first.
    """

    time: str
    trajectory: str | None
    position: tuple[str, ...]
    velocity: tuple[str, ...]
    drive: tuple[str, ...]
    channels: tuple[Channel, ...]

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the columns behind the channels."""
        return self.position + self.velocity

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of all columns that must hold numbers."""
        return (self.time, *self.measured, *self.drive)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """Names of the generalised coordinates: their position columns where there are any."""
        num_coordinates = max(len(self.position), len(self.velocity))
        extra = tuple(f"q{i}" for i in range(len(self.position), num_coordinates))
        return self.position + extra


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Return names in quotes, separated by commas, shortened after `limit` of them."""
    quoted = [repr(str(name)) for name in names]
    return ", ".join(quoted[:limit]) + (f", .. ({len(quoted)} in all)" if len(quoted) > limit else "")


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """Return a question that suggests the closest of the available names, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in available}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def resolve_columns(spec: ColumnSpec, available: Sequence[str], source: str) -> Columns:
    """Find the columns of `spec` among those of a table.

    Args:
        spec: which columns are wanted.
        available: the column names of the table.
        source: name of the table for messages.

    Raises:
        DataError: if a column is missing, ambiguous or used for two purposes.
    """
    trajectory = spec.trajectory
    if trajectory == ColumnSpec.trajectory and trajectory not in available:
        trajectory = None
    position = _default_columns("q", available) if spec.position is None else spec.position
    velocity = _default_columns("v", available) if spec.velocity is None else spec.velocity
    roles = {
        "time": (spec.time,),
        "trajectory": () if trajectory is None else (trajectory,),
        "position": position,
        "velocity": velocity,
        "drive": spec.drive,
    }
    _check_present(roles, available, source)
    if not position and not velocity:
        raise DataError(
            f"{source}: no position or velocity column; looked for 'q', 'q0', 'v' and 'v0' among "
            f"{listed(available)}. Name the columns with position=(..,) or velocity=(..,)."
        )
    _check_single_use(roles, available, source)
    for name in spec.angle:
        if name not in position:
            raise DataError(
                f"{source}: angle names {name!r}, which is not a position column; the positions are "
                f"{listed(position) or 'none'}.{did_you_mean(name, position)}"
            )
    channels = tuple(
        Channel(name, "position", i, spec.position_unit, name in spec.angle)
        for i, name in enumerate(position)
    ) + tuple(Channel(name, "velocity", i, spec.velocity_unit) for i, name in enumerate(velocity))
    return Columns(spec.time, trajectory, position, velocity, spec.drive, channels)


def _default_columns(letter: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return `(letter,)` or the unbroken run `letter0, letter1, ..` that exists."""
    if letter in available:
        return (letter,)
    count = 0
    while f"{letter}{count}" in available:
        count += 1
    return tuple(f"{letter}{i}" for i in range(count))


def _check_present(roles: dict[str, tuple[str, ...]], available: Sequence[str], source: str) -> None:
    missing = [(role, name) for role, names in roles.items() for name in names if name not in available]
    if not missing:
        return
    hints = "".join(did_you_mean(name, available) for _, name in missing[:3])
    fixes = " and ".join(dict.fromkeys(role for role, _ in missing))
    numbers = " The first line holds numbers, so the file may have no header: give names=(..)."
    raise DataError(
        f"{source}: no column {listed(name for _, name in missing)}; the columns are {listed(available)}."
        f"{hints} Set {fixes} to the names in the file."
        + (numbers if available and all(_is_number(name) for name in available) else "")
    )


def _check_single_use(roles: dict[str, tuple[str, ...]], available: Sequence[str], source: str) -> None:
    used: dict[str, str] = {}
    for role, names in roles.items():
        for name in names:
            if name in used:
                both = f"as {used[name]} and as {role}" if used[name] != role else f"twice as {role}"
                raise DataError(f"{source}: column {name!r} is used {both}. Give each column one purpose.")
            used[name] = role
    repeated = [name for name in _repeated(available) if name in used]
    if repeated:
        raise DataError(
            f"{source}: more than one column is called {listed(repeated)}. Rename the columns, or give all "
            "names of a text file with names=(..) and skip its header with skip_rows=1."
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
