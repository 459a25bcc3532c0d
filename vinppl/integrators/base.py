"""The contract of every integrator, and the mechanical system it advances.

An integrator is a stateless object. `start` turns a phase-space state into the
state of its own chart, `step` advances that by one step, `finish` turns it back:

    carry = integrator.start(system, state, h, drive)
    carry = integrator.step(system, carry, h, drive)
    state = integrator.finish(system, carry)

Charts keep what a step needs from the one before (a force, a difference
quotient), so that one force evaluation a step is enough.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vinppl.forces import BoundDamping
from vinppl.mass import BoundMass
from vinppl.state import PhaseState

__all__ = ["AbstractIntegrator", "Drives", "Mechanics", "Step", "VectorField"]

Step = float | Tensor
"""A step size: a float, or a tensor that broadcasts against `(*batch, dim)`."""

Drives = tuple[Tensor, ...] | None
"""Accelerations M^-1 F(t) of the known inputs at the integrator's `drive_nodes` of one step."""


class Mechanics(NamedTuple):
    """A mechanical system M dv/dt = -dV/dq + F(v) + F(t) with every parameter read.

    Attributes:
        gradient: dV/dq, `(*batch, dim) -> (*batch, dim)`.
        mass: the inertia matrix and its inverse.
        damping: velocity-dependent force, or `None`.
        periodic: for each coordinate, whether it is an angle.
    """

    gradient: Callable[[Tensor], Tensor]
    mass: BoundMass
    damping: BoundDamping | None = None
    periodic: tuple[bool, ...] = ()

    def acceleration(self, q: Tensor) -> Tensor:
        """Return -M^-1 dV/dq, shape `(*batch, dim)`."""
        return -self.mass.solve(self.gradient(q))

    def field(self, q: Tensor, v: Tensor, drive: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (dq/dt, dv/dt), both of shape `(*batch, dim)`."""
        a = self.acceleration(q)
        if self.damping is not None:
            a = a - self.mass.solve(self.damping.resistance(v))
        return v, a if drive is None else a + drive


class VectorField(NamedTuple):
    """A first-order system d(q, v)/dt = f(q, v) without mechanical structure.

    Attributes:
        function: `(q, v) -> (dq/dt, dv/dt)`, all of shape `(*batch, dim)`.
    """

    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def field(self, q: Tensor, v: Tensor, drive: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (dq/dt, dv/dt); a drive is an acceleration and adds to the second."""
        dq, dv = self.function(q, v)
        return dq, dv if drive is None else dv + drive


class AbstractIntegrator(abc.ABC):
    """One-step method in phase space.

    Attributes:
        order: global order of accuracy in (q, v).
        is_symplectic: whether the map of a conservative system preserves dq ^ dp exactly.
        is_reversible: whether reversing v reverses the map exactly.
        chart: name of the chart that `step` works in.
        needs_mechanics: whether it takes a `Mechanics` (structured) or any field.
        drive_nodes: fractions of a step at which known inputs are evaluated.
        fractions: sub-steps that one step is composed of, as fractions of it.
        force_evaluations: evaluations of dV/dq (or of the field) in one step.
    """

    order: ClassVar[int]
    is_symplectic: ClassVar[bool]
    is_reversible: ClassVar[bool]
    chart: ClassVar[str]
    needs_mechanics: ClassVar[bool] = True
    drive_nodes: tuple[float, ...] = (0.0, 1.0)
    fractions: tuple[float, ...] = (1.0,)
    force_evaluations: int = 1

    @abc.abstractmethod
    def start(self, system: Any, state: PhaseState, drive: Drives) -> Any:
        """Return the chart state that belongs to `state` before the first step.

        Args:
            system: `Mechanics`, or a `VectorField` where `needs_mechanics` is false.
            state: positions and velocities, shapes `(*batch, dim)`.
            drive: accelerations by the known inputs at the nodes of the first step.
        """

    @abc.abstractmethod
    def step(self, system: Any, carry: Any, step_size: Step, drive: Drives) -> Any:
        """Advance the chart state by one (sub-)step of length `step_size`."""

    @abc.abstractmethod
    def finish(self, system: Any, carry: Any) -> PhaseState:
        """Return the phase-space state of a chart state."""

    def residual(self, system: Any, carry: Any, step_size: Step) -> Tensor | None:
        """Return how far the next step is from solvable (0 = solvable); `None` if always."""
        return None


NEWTON_ITERATIONS = 3
"""Newton iterations of the implicit half-kick where it has no closed form (dry friction, or a full
mass). Starting within O(h) of the root, they square the error each time."""


def kick(system: Mechanics, v: Tensor, tau: Step, acceleration: Tensor) -> Tensor:
    """Return v plus a d'Alembert impulse over `tau` with the damping evaluated at `v`."""
    if system.damping is not None:
        acceleration = acceleration - system.mass.solve(system.damping.resistance(v))
    return advance(v, tau, acceleration)


def implicit_kick(system: Mechanics, v: Tensor, tau: Step, acceleration: Tensor) -> Tensor:
    """Return the u that solves M (u - v) = tau (M a + F(u)), the adjoint of `kick`.

    Explicit without damping; in closed form for linear and quadratic damping with a scalar or
    diagonal mass; by a fixed number of Newton iterations otherwise, whose matrix
    M + tau diag(-dF/du) is positive definite for tau > 0.
    """
    free = advance(v, tau, acceleration)
    damping, mass = system.damping, system.mass
    if damping is None:
        return free
    if damping.friction is None and mass.is_diagonal:
        one = 1.0 if damping.linear is None else 1 + tau * mass.solve(damping.linear)
        if damping.quadratic is None:
            return free / one
        # The root of (1 + tau c/m) u + (tau d/m) |u| u = b with the sign of b, for tau > 0.
        # For tau < 0 (stages of compositions) it is the branch that goes through u = b at tau = 0.
        square = one * one + (4 * tau) * mass.solve(damping.quadratic) * free.abs()
        return 2 * free / (one + square.sqrt())
    u = v
    for _ in range(NEWTON_ITERATIONS):
        residual = mass.apply(free - u) - tau * damping.resistance(u)
        u = u + mass.solve_shifted(residual, tau * damping.slope(u))
    return u


def advance(x: Tensor, tau: Step, rate: Tensor) -> Tensor:
    """Return x + tau * rate in one operation."""
    return torch.add(x, rate, alpha=tau) if isinstance(tau, float) else torch.addcmul(x, rate, tau)
