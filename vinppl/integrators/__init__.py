"""Integrators under one contract, and their registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def _compose(base: Callable[[], AbstractIntegrator], scheme: CompositionScheme) -> AbstractIntegrator:
    return Composition(base(), scheme)


INTEGRATORS: dict[str, Callable[[], AbstractIntegrator]] = {
    "stormer_verlet": StormerVerlet,
    "velocity_verlet": VelocityVerlet,
    "so2": LieVerlet,
    "euler": Euler,
    "rk4": RungeKutta4,
    **{f"verlet{order}": partial(_compose, VelocityVerlet, scheme) for order, scheme in COMPOSITIONS.items()},
    **{f"so2_{order}": partial(_compose, LieVerlet, scheme) for order, scheme in COMPOSITIONS.items()},
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
