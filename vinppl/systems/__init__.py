"""Ground truths: mechanical systems whose motion is known to round-off.

They simulate data and judge integrators. All obey one contract,
`AbstractSystem`; `system("pendulum", length=0.5)` builds one by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vinppl._checks import require_choice, require_choices
from vinppl.systems.base import AbstractSystem
from vinppl.systems.celestial import HenonHeiles, Kepler
from vinppl.systems.chain import CoupledOscillators
from vinppl.systems.oscillators import DrivenOscillator, Duffing, MassSpring
from vinppl.systems.pendulums import DampedPendulum, Pendulum

__all__ = [
    "SYSTEMS",
    "AbstractSystem",
    "CoupledOscillators",
    "DampedPendulum",
    "DrivenOscillator",
    "Duffing",
    "HenonHeiles",
    "Kepler",
    "MassSpring",
    "Pendulum",
    "system",
]

SYSTEMS: dict[str, type[AbstractSystem]] = {
    kind.name: kind
    for kind in (
        MassSpring,
        Pendulum,
        DampedPendulum,
        DrivenOscillator,
        Duffing,
        CoupledOscillators,
        HenonHeiles,
        Kepler,
    )
}


def system(name: str, **parameters: Any) -> AbstractSystem:
    """Build a ground-truth system by its registry name.

    Args:
        name: a key of `SYSTEMS`.
        **parameters: fields of that system; the rest keep their defaults.

    Raises:
        ValueError: if the name or a parameter is unknown, or a value is out of range.

    Example:
        >>> system("pendulum", length=0.5)
        Pendulum(mass=1.0, length=0.5, gravity=9.82)
    """
    require_choice("name of a system", name, SYSTEMS)
    known = [field.name for field in dataclasses.fields(SYSTEMS[name])]
    require_choices(f"parameters of {name}", parameters, known)
    return SYSTEMS[name](**parameters)
