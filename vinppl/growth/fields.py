"""Outputs of a model side by side as one array, angles included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["Fields", "around", "centre_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fields:
    """Where states, energy and measurements lie along the last axis of an array `(..., field)`.

    Attributes:
        num_states: positions and velocities; 0 for a model that does not record them.
        has_energy: whether the model records its energy.
        periodic: which fields are angles, `(field,)`.
    """

    num_states: int
    has_energy: bool
    periodic: NDArray[np.bool_]

    @classmethod
    def of(cls, outputs: Mapping[str, Array], data: Trajectories) -> Fields:
        """Return the fields of a model's outputs, angles being those that the data mark."""
        num_states = outputs["states"].shape[-1] if "states" in outputs else 0
        angles = {c.coordinate for c in data.channels if c.angle and c.quantity == "position"}
        states = [i in angles for i in range(num_states)]
        energy = [False] if "energy" in outputs else []
        periodic = np.array([*states, *energy, *(c.angle for c in data.channels)])
        return cls(num_states, bool(energy), periodic)

    @property
    def columns(self) -> dict[str, slice]:
        """The slice of each output that there is."""
        first = self.num_states + self.has_energy
        found = {"states": slice(0, self.num_states), "energy": slice(self.num_states, first)}
        return {name: s for name, s in found.items() if s.stop > s.start} | {"obs": slice(first, None)}

    def pack(self, outputs: Mapping[str, Array]) -> Array:
        """Return outputs, each `(num_draws, time, *event)`, as one array `(num_draws, time, field)`."""
        parts = [outputs[name][..., None] if name == "energy" else outputs[name] for name in self.columns]
        return np.concatenate(parts, axis=-1)


def centre_of(values: Array) -> Array:
    """Return the circular mean of angles over draws, the first axis."""
    return np.arctan2(np.sin(values).mean(0), np.cos(values).mean(0))


def around(values: Array, centre: Array, periodic: NDArray[np.bool_]) -> Array:
    """Return values with angles moved to within half a turn of a centre; others as they are."""
    turned = centre + (values - centre + np.pi) % (2 * np.pi) - np.pi
    return np.where(periodic, turned, values)
