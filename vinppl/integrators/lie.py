"""The paper's Lie-group variational integrator on SO(2), and on tori."""

from __future__ import annotations

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.integrators.base import AbstractIntegrator, Drives, Mechanics, Step, implicit_kick, kick
from vinppl.integrators.verlet import KickState, _total
from vinppl.state import PhaseState

__all__ = ["LieVerlet"]


class LieVerlet(AbstractIntegrator):
    """Lie-group Verlet on SO(2) and tori (VIN-SO(2)), paper eqs. (11)-(12).

    On every angular coordinate the discrete Lagrangian is that of rotation matrices,
    L_d = (M/h) (1 - cos(increment)) - (h/2) (V(t) + V(t+h)), whose equations are

        sin(increment_t) = sin(increment_{t-1}) - (h^2/M) dV/dq(q_t),   q_{t+1} = q_t + increment_t,

    with M v_t = (M/h) sin(increment_t) + (h/2) dV/dq(q_t). Euclidean coordinates of a
    mixed system advance by velocity Verlet. Symplectic, reversible, preserves angular
    momentum and the circle exactly; one force evaluation a step. Needs a scalar or
    diagonal mass.

    The sine equation has a solution only while |h v| <= 1 or so: an angle cannot turn by
    more than a quarter revolution in a step. A step beyond that is never clipped; its
    increment is NaN, and the rollout raises `SolveError` with the place and the residual.
    """

    order = 2
    is_symplectic = True
    is_reversible = True
    chart = "lie_group"

    def start(self, system: Mechanics, state: PhaseState, drive: Drives) -> KickState:
        """Evaluate the force at the initial position.

        Raises:
            ValueError: if the mass is a full matrix, for which the discrete
                Lagrangian above is not defined.
        """
        require(
            system.mass.is_diagonal,
            "the Lie-group integrator needs a scalar or diagonal mass",
            "a full matrix",
            "Use velocity Verlet, or a diagonal mass.",
        )
        return KickState(state.q, state.v, _total(system.acceleration(state.q), drive, 0))

    def step(self, system: Mechanics, carry: KickState, step_size: Step, drive: Drives) -> KickState:
        """Advance by eqs. (11) and (12); NaN where the sine equation has no solution."""
        half = 0.5 * step_size
        u = implicit_kick(system, carry.v, half, carry.a)
        sine = step_size * u
        if all(system.periodic):
            increment = sine.asin()
        else:
            angular = torch.tensor(system.periodic, device=sine.device)
            increment = torch.where(angular, torch.where(angular, sine, 0.0).asin(), sine)
        q = carry.q + increment
        a = _total(system.acceleration(q), drive, -1)
        return KickState(q, kick(system, u, half, a), a)

    def finish(self, system: Mechanics, carry: KickState) -> PhaseState:
        """Drop the acceleration."""
        return PhaseState(carry.q, carry.v)

    def residual(self, system: Mechanics, carry: KickState, step_size: Step) -> Tensor:
        """Return max(|sin| - 1, 0) of the increment that the next step asks for, `(*batch, dim)`."""
        sine = step_size * implicit_kick(system, carry.v, 0.5 * step_size, carry.a)
        angular = torch.tensor(system.periodic, device=sine.device)
        return torch.where(angular, (sine.abs() - 1).clamp_min(0), 0.0)
