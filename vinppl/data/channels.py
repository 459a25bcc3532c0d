"""Channels: what one measured column says about the state of a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vinppl._checks import require
from vinppl.errors import DataError

__all__ = ["Channel", "Quantity", "default_channels", "pixel_channels"]

Quantity = Literal["position", "velocity", "pixel"]
"""What is measured: a coordinate, its velocity, or the grey level of one pixel."""


@dataclass(frozen=True)
class Channel:
    """One measured signal.

    Attributes:
        name: name of the column.
        quantity: whether it measures a generalised position, its velocity, or the grey level of one
            pixel, from 0 to 1, that measures no coordinate directly.
        coordinate: index of the generalised coordinate that it measures, from 0; 0 for a pixel.
        unit: unit of the values, for labels only.
        angle: whether the values are an angle in radians that counts revolutions.

    Raises:
        DataError: if the quantity is unknown, the coordinate is negative or that of a
            pixel, or something else than a position is declared to be an angle.
    """

    name: str
    quantity: Quantity
    coordinate: int
    unit: str = ""
    angle: bool = False

    def __post_init__(self) -> None:
        where = f"channel {self.name!r}"
        choices = get_args(Quantity)
        require(
            self.quantity in choices,
            f"{where}: quantity must be one of {', '.join(choices)}",
            self.quantity,
            error=DataError,
        )
        require(
            self.coordinate >= 0, f"{where}: coordinate must be 0 or more", self.coordinate, error=DataError
        )
        require(
            self.coordinate == 0 or self.quantity != "pixel",
            f"{where}: a pixel measures no coordinate, so that its coordinate must be 0",
            self.coordinate,
            "Use pixel_channels, or Trajectories.from_frames for whole frames.",
            error=DataError,
        )
        require(
            not self.angle or self.quantity == "position",
            f"{where}: only a position can be an angle",
            f"a {self.quantity}",
            "Mark the position of the same coordinate instead.",
            error=DataError,
        )


def default_channels(
    quantities: Sequence[Quantity], *, angles: Sequence[int] = (), dim: int | None = None
) -> tuple[Channel, ...]:
    """Return channels named `q`, `v` (one coordinate) or `q0`, `q1`, .. `v0`, `v1`, .. (several).

    Args:
        quantities: for each channel, what it measures; the coordinates of each
            quantity are counted from 0 in the order given.
        angles: coordinates whose position is an angle in radians.
        dim: number of coordinates, if more than the channels show.
    """
    counts: dict[str, int] = {}
    coordinates = []
    for quantity in quantities:
        coordinates.append(counts.get(quantity, 0))
        counts[quantity] = coordinates[-1] + 1
    single = max([*counts.values(), dim or 1]) == 1
    letters = {"position": "q", "velocity": "v"}
    return tuple(
        Channel(
            letters.get(quantity, str(quantity)) + ("" if single else str(coordinate)),
            quantity,
            coordinate,
            angle=quantity == "position" and coordinate in angles,
        )
        for quantity, coordinate in zip(quantities, coordinates, strict=True)
    )


def pixel_channels(height: int, width: int) -> tuple[Channel, ...]:
    """Return the channels of a frame, row by row, named `p03_17` by row (0 at the top) and column.

    Args:
        height: rows of the frame, at least 1.
        width: columns of the frame, at least 1.

    Raises:
        DataError: if a side is less than 1.
    """
    sides = (int(height), int(width))
    require(min(sides) >= 1, "the sides of a frame must be at least 1 pixel", sides, error=DataError)
    rows, columns = (max(2, len(str(side - 1))) for side in sides)  # digits
    return tuple(
        Channel(f"p{row:0{rows}d}_{column:0{columns}d}", "pixel", 0)
        for row in range(sides[0])
        for column in range(sides[1])
    )
