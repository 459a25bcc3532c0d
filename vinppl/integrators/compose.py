"""Symmetric compositions: second-order integrators raised to order 4, 6 and 8.

A composed step is a sequence of sub-steps of the base integrator with lengths
gamma_i h, some of them negative. Coefficients are frozen data that check their
own identities when built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vinppl._checks import require
from vinppl.integrators.base import AbstractIntegrator, Drives, Step
from vinppl.state import PhaseState

__all__ = ["COMPOSITIONS", "Composition", "CompositionScheme"]


@dataclass(frozen=True)
class CompositionScheme:
    """Coefficients gamma of a symmetric composition of symmetric second-order steps.

    Checked when built: sum gamma = 1; gamma is a palindrome; and the power sums
    sum gamma^k = 0 for k = 3, 5, .. order - 1, which are necessary for the order
    (Hairer, Lubich, Wanner, Geometric Numerical Integration, section V.3).

    Attributes:
        name: where the coefficients come from.
        order: order of the composed method.
        half: the first coefficients up to and including the middle one.
    """

    name: str
    order: int
    half: tuple[float, ...]

    def __post_init__(self) -> None:
        gamma = self.coefficients
        require(
            abs(math.fsum(gamma) - 1) < 1e-14, f"{self.name}: coefficients must sum to one", math.fsum(gamma)
        )
        require(gamma == gamma[::-1], f"{self.name}: coefficients must be symmetric", gamma)
        for power in range(3, self.order, 2):
            total = math.fsum(g**power for g in gamma)
            require(abs(total) < 1e-13, f"{self.name}: the sum of gamma^{power} must vanish", total)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """All coefficients, as fractions of a step."""
        return self.half + self.half[-2::-1]


def _closed(name: str, order: int, outer: tuple[float, ...]) -> CompositionScheme:
    """Build a scheme whose middle coefficient follows from the sum."""
    return CompositionScheme(name, order, (*outer, 1 - 2 * math.fsum(outer)))


COMPOSITIONS: dict[int, CompositionScheme] = {
    # Suzuki 1990: four equal outer steps, gamma = 1 / (4 - 4^(1/3)); HLW eq. (II.4.5).
    4: _closed("Suzuki, order 4, 5 stages", 4, (1 / (4 - 4 ** (1 / 3)),) * 2),
    # Kahan and Li 1997; HLW eq. (V.3.10).
    6: _closed(
        "Kahan and Li, order 6, 9 stages",
        6,
        (0.39216144400731413928, 0.33259913678935943860, -0.70624617255763935981, 0.082213596293550800230),
    ),
    # Suzuki and Umeno 1993; HLW eq. (V.3.11).
    8: _closed(
        "Suzuki and Umeno, order 8, 15 stages",
        8,
        (
            0.74167036435061295345,
            -0.40910082580003159400,
            0.19075471029623837995,
            -0.57386247111608226666,
            0.29906418130365592384,
            0.33462491824529818378,
            0.31529309239676659663,
        ),
    ),
}
"""The schemes of this library by order."""


class Composition(AbstractIntegrator):
    """A symmetric composition of a symmetric second-order integrator.

    Keeps the geometry of its base (symplectic, reversible, momentum-preserving) at a
    higher order, for as many force evaluations a step as there are stages. A rollout
    expands it into the sub-steps of the base, so it costs nothing beyond them.
    The order also holds under linear damping, quadratic damping and drives, as long as the
    force is smooth: |v| v has a kink at every turning point, and limits it to about three.

    Args:
        base: a second-order reversible integrator.
        scheme: coefficients; by order from `COMPOSITIONS`.

    Raises:
        ValueError: if the base is not a reversible integrator of order 2.
    """

    order: int  # type: ignore[misc]
    is_symplectic: bool  # type: ignore[misc]
    is_reversible = True
    chart: str  # type: ignore[misc]

    def __init__(self, base: AbstractIntegrator, scheme: CompositionScheme) -> None:
        require(
            base.is_reversible and base.order == 2 and base.fractions == (1.0,),
            "a composition needs a reversible base integrator of order 2",
            type(base).__name__,
        )
        self.base = base
        self.order = scheme.order
        self.is_symplectic = base.is_symplectic
        self.chart = base.chart
        self.drive_nodes = base.drive_nodes
        self.fractions = scheme.coefficients
        self.force_evaluations = base.force_evaluations * len(scheme.coefficients)

    def start(self, system: Any, state: PhaseState, drive: Drives) -> Any:
        """Start the base integrator."""
        return self.base.start(system, state, drive)

    def step(self, system: Any, carry: Any, step_size: Step, drive: Drives) -> Any:
        """Advance by one sub-step of the base; the caller walks through `fractions`."""
        return self.base.step(system, carry, step_size, drive)

    def finish(self, system: Any, carry: Any) -> PhaseState:
        """Leave the chart of the base."""
        return self.base.finish(system, carry)

    def residual(self, system: Any, carry: Any, step_size: Step) -> Tensor | None:
        """Return how far the next sub-step of the base is from solvable."""
        return self.base.residual(system, carry, step_size)
