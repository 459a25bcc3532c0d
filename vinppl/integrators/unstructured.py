"""Integrators without geometry, for baselines: explicit Euler and the classical Runge-Kutta."""

from __future__ import annotations

from typing import Any

from vinppl.integrators.base import AbstractIntegrator, Drives, Step
from vinppl.state import PhaseState

__all__ = ["Euler", "RungeKutta4"]


class Euler(AbstractIntegrator):
    """Explicit Euler: x_{t+1} = x_t + h f(x_t), the residual network of paper section 2.

    Conserves nothing; the energy of an oscillator grows by a factor 1 + (h omega)^2 a
    step. Not symplectic Euler, which updates v before q.
    """

    order = 1
    is_symplectic = False
    is_reversible = False
    chart = "phase"
    needs_mechanics = False

    def start(self, system: Any, state: PhaseState, drive: Drives) -> PhaseState:
        """Work in phase space itself."""
        return state

    def step(self, system: Any, carry: PhaseState, step_size: Step, drive: Drives) -> PhaseState:
        """Advance by one residual block."""
        dq, dv = system.field(carry.q, carry.v, None if drive is None else drive[0])
        return PhaseState(carry.q + step_size * dq, carry.v + step_size * dv)

    def finish(self, system: Any, carry: PhaseState) -> PhaseState:
        """Return the state itself."""
        return carry


class RungeKutta4(AbstractIntegrator):
    """The classical Runge-Kutta method of order four.

    Conserves nothing exactly; the energy of an oscillator decays by O((h omega)^6) a
    step. Four evaluations of the field a step.
    """

    order = 4
    is_symplectic = False
    is_reversible = False
    chart = "phase"
    needs_mechanics = False
    drive_nodes = (0.0, 0.5, 1.0)
    force_evaluations = 4

    def start(self, system: Any, state: PhaseState, drive: Drives) -> PhaseState:
        """Work in phase space itself."""
        return state

    def step(self, system: Any, carry: PhaseState, step_size: Step, drive: Drives) -> PhaseState:
        """Advance by the four classical stages."""
        f0, f1, f2 = (None, None, None) if drive is None else drive
        q, v = carry
        half = 0.5 * step_size
        q1, v1 = system.field(q, v, f0)
        q2, v2 = system.field(q + half * q1, v + half * v1, f1)
        q3, v3 = system.field(q + half * q2, v + half * v2, f1)
        q4, v4 = system.field(q + step_size * q3, v + step_size * v3, f2)
        sixth = step_size / 6
        return PhaseState(q + sixth * (q1 + 2 * (q2 + q3) + q4), v + sixth * (v1 + 2 * (v2 + v3) + v4))

    def finish(self, system: Any, carry: PhaseState) -> PhaseState:
        """Return the state itself."""
        return carry
