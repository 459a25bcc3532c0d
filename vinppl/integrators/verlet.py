"""The paper's two variational integrators on Euclidean space.

Both discretise L = 1/2 v^T M v - V(q). With a constant step they visit the same
positions; they differ in the chart they work in, and so in what an initial
condition is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vinppl.integrators.base import AbstractIntegrator, Drives, Mechanics, Step, advance, implicit_kick, kick
from vinppl.state import PhaseState

__all__ = ["KickState", "StormerVerlet", "TwoPointState", "VelocityVerlet"]


class KickState(NamedTuple):
    """Chart of velocity Verlet: a phase-space point and the acceleration there.

    Attributes:
        q: positions, shape `(*batch, dim)`.
        v: velocities, same shape.
        a: conservative plus known accelerations at q, same shape.
    """

    q: Tensor
    v: Tensor
    a: Tensor


class TwoPointState(NamedTuple):
    """Chart of Störmer–Verlet: two neighbouring positions, x_t = (q_{t-1}, q_t).

    The earlier one is kept as the difference quotient, which is the same chart
    without the cancellation of q_t - q_{t-1} (and survives a step of length zero).

    Attributes:
        q: positions q_t, shape `(*batch, dim)`.
        w: (q_t - q_{t-1}) / h, same shape.
        h: length of the step from q_{t-1} to q_t.
        a: conservative plus known accelerations at q_t, same shape as `q`.
    """

    q: Tensor
    w: Tensor
    h: Step
    a: Tensor


class VelocityVerlet(AbstractIntegrator):
    """Velocity Verlet (VIN-VV), paper eqs. (9)-(10): half a kick, a drift, half a kick.

    Variational from the symmetric discrete Lagrangian (7)-(8), hence symplectic,
    momentum-preserving and reversible; energy oscillates by O(h^2) without drift.
    One force evaluation a step. Not the position Verlet (drift, kick, drift) that
    some libraries call leapfrog.
    """

    order = 2
    is_symplectic = True
    is_reversible = True
    chart = "phase"

    def start(self, system: Mechanics, state: PhaseState, drive: Drives) -> KickState:
        """Evaluate the force at the initial position."""
        return KickState(state.q, state.v, _total(system.acceleration(state.q), drive, 0))

    def step(self, system: Mechanics, carry: KickState, step_size: Step, drive: Drives) -> KickState:
        """Advance by eqs. (9) and (10)."""
        half = 0.5 * step_size
        u = implicit_kick(system, carry.v, half, carry.a)
        q = advance(carry.q, step_size, u)
        a = _total(system.acceleration(q), drive, -1)
        return KickState(q, kick(system, u, half, a), a)

    def finish(self, system: Mechanics, carry: KickState) -> PhaseState:
        """Drop the acceleration."""
        return PhaseState(carry.q, carry.v)


class StormerVerlet(AbstractIntegrator):
    """Störmer–Verlet (VIN-SV), paper eq. (6): q_{t+1} = 2 q_t - q_{t-1} - h^2 M^-1 dV/dq(q_t).

    Works in the chart x_t = (q_{t-1}, q_t) of paper section 3.1. Velocities enter and
    leave through the discrete Legendre transform of the symmetrised discrete Lagrangian,
    v_t = (q_t - q_{t-1})/h - (h/2) M^-1 dV/dq(q_t), which is the central difference
    (q_{t+1} - q_{t-1})/(2h): second order, where the backward difference that eq. (5)
    would give alone is first. So the phase-space map is that of velocity Verlet
    (Hairer, Lubich, Wanner, Acta Numerica 2003, section 1). Symplectic,
    momentum-preserving, reversible; one force evaluation a step.
    """

    order = 2
    is_symplectic = True
    is_reversible = True
    chart = "two_point"

    def start(self, system: Mechanics, state: PhaseState, drive: Drives) -> TwoPointState:
        """Place q_{-1} at distance zero: the first step then starts with half a kick."""
        return TwoPointState(state.q, state.v, 0.0, _total(system.acceleration(state.q), drive, 0))

    def step(self, system: Mechanics, carry: TwoPointState, step_size: Step, drive: Drives) -> TwoPointState:
        """Advance by eq. (6), in its form for changing step sizes."""
        v = kick(system, carry.w, 0.5 * carry.h, carry.a)
        w = implicit_kick(system, v, 0.5 * step_size, carry.a)
        q = advance(carry.q, step_size, w)
        return TwoPointState(q, w, step_size, _total(system.acceleration(q), drive, -1))

    def finish(self, system: Mechanics, carry: TwoPointState) -> PhaseState:
        """Read the velocity by the discrete Legendre transform."""
        return PhaseState(carry.q, kick(system, carry.w, 0.5 * carry.h, carry.a))


def _total(acceleration: Tensor, drive: Drives, node: int) -> Tensor:
    return acceleration if drive is None else torch.add(acceleration, drive[node])
