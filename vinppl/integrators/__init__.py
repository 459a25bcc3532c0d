"""Integrators under one contract, and their registry."""

from __future__ import annotations

from collections.abc import Callable

from vinppl._checks import require
from vinppl.integrators.base import AbstractIntegrator, Mechanics, VectorField
from vinppl.integrators.compose import COMPOSITIONS, Composition, CompositionScheme
from vinppl.integrators.lie import LieVerlet
from vinppl.integrators.unstructured import Euler, RungeKutta4
from vinppl.integrators.verlet import StormerVerlet, VelocityVerlet

__all__ = [
    "COMPOSITIONS",
    "INTEGRATORS",
    "AbstractIntegrator",
    "Composition",
    "CompositionScheme",
    "Euler",
    "LieVerlet",
    "Mechanics",
    "RungeKutta4",
    "StormerVerlet",
    "VectorField",
    "VelocityVerlet",
    "make_integrator",
]

INTEGRATORS: dict[str, Callable[[], AbstractIntegrator]] = {
    "stormer_verlet": StormerVerlet,
    "velocity_verlet": VelocityVerlet,
    "so2": LieVerlet,
    "euler": Euler,
    "rk4": RungeKutta4,
    **{
        f"verlet{order}": lambda s=scheme: Composition(VelocityVerlet(), s)
        for order, scheme in COMPOSITIONS.items()
    },
    **{
        f"so2_{order}": lambda s=scheme: Composition(LieVerlet(), s) for order, scheme in COMPOSITIONS.items()
    },
}
"""Every integrator by the name that options use."""


def make_integrator(integrator: str | AbstractIntegrator) -> AbstractIntegrator:
    """Return the integrator of that name, or the one given.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(integrator, AbstractIntegrator):
        return integrator
    require(integrator in INTEGRATORS, f"integrator must be one of {', '.join(INTEGRATORS)}", integrator)
    return INTEGRATORS[integrator]()
