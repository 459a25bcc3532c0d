"""Writing trajectories to text files that read back the same."""

from __future__ import annotations

import os
from pathlib import Path

from vinppl.data.columns import ColumnSpec
from vinppl.data.trajectories import Trajectories
from vinppl.errors import DataError

__all__ = ["column_spec", "write_csv"]


def write_csv(trajectories: Trajectories, path: str | Path) -> None:
    """Write a CSV file with one row per sample, in full precision, whole or not at all.

    Missing values are empty fields. `column_spec(trajectories)` reads the file back.

    Args:
        trajectories: what to write.
        path: the file, replaced if it exists.

    Raises:
        DataError: if labels or column names repeat, or the data are films.
    """
    _refuse_films(trajectories)
    path = Path(path)
    frame = trajectories.to_frame()
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        frame.to_csv(partial, index=False, lineterminator="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def column_spec(trajectories: Trajectories) -> ColumnSpec:
    """Return the options that read back what `to_frame` and `write_csv` give.

    Raises:
        DataError: if the channels are not all positions and then all velocities,
            each of coordinates 0, 1, .. in order: columns cannot say that.
    """
    _refuse_films(trajectories)
    names: dict[str, list[str]] = {"position": [], "velocity": []}
    for channel in trajectories.channels:
        in_order = channel.coordinate == len(names[channel.quantity])
        if not in_order or (channel.quantity == "position" and names["velocity"]):
            raise DataError(
                f"channel {channel.name!r} ({channel.quantity} of coordinate {channel.coordinate}) is out of "
                "order: columns can only describe positions 0, 1, .. followed by velocities 0, 1, .."
            )
        names[channel.quantity].append(channel.name)
    units = {
        quantity: {channel.unit for channel in trajectories.channels if channel.quantity == quantity}
        for quantity in names
    }
    return ColumnSpec(
        position=tuple(names["position"]),
        velocity=tuple(names["velocity"]),
        drive=trajectories.drive_names,
        angle=tuple(channel.name for channel in trajectories.channels if channel.angle),
        position_unit=units["position"].pop() if len(units["position"]) == 1 else "",
        velocity_unit=units["velocity"].pop() if len(units["velocity"]) == 1 else "",
        time_unit=trajectories.time_unit,
    )


def _refuse_films(trajectories: Trajectories) -> None:
    if trajectories.image_shape is not None:
        raise DataError(
            "a table with a column for every pixel does not read back as a film. Use write_video for each of "
            "trajectories.frames."
        )
