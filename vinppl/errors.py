"""Named failures: every error and warning that this library raises on purpose.

User mistakes are `ValueError` or `TypeError` (or `DataError`, itself a
`ValueError`) at the public entry. Numerical failures have a type of their own
and carry where they happened.
"""

from __future__ import annotations

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "NonFiniteError",
    "NumericalWarning",
    "PerformanceWarning",
    "SolveError",
]


class DataError(ValueError):
    """Measured data that cannot be used as they are; the message names the place and the remedy."""


class SolveError(ArithmeticError):
    """An implicit equation of an integrator has no solution, or none was found.

    Attributes:
        step: index of the (sub-)step at which it happened, `None` if unknown.
        time: time of that step in the units of the grid, `None` if unknown.
        residual: how far from solvable, in the units of the equation.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int | None = None,
        time: float | None = None,
        residual: float | None = None,
    ) -> None:
        super().__init__(message)
        self.step = step
        self.time = time
        self.residual = residual


class NonFiniteError(ArithmeticError):
    """A loss, gradient or state became NaN or infinite.

    Attributes:
        step: optimisation step or integration step at which it was seen.
        quantity: name of the quantity that is not finite.
    """

    def __init__(self, message: str, *, step: int | None = None, quantity: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.quantity = quantity


class NumericalWarning(UserWarning):
    """A computation went through but its result deserves suspicion."""


class ConvergenceWarning(UserWarning):
    """An optimiser or sampler stopped before it had converged."""


class PerformanceWarning(UserWarning):
    """Something runs by a slower path than it could; its result is the same."""
