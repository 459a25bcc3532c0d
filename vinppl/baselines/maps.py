"""Baselines in discrete time: networks that give the next state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.baselines.base import AbstractBaseline, StateFunction
from vinppl.integrators import AbstractIntegrator
from vinppl.integrators.base import Drives, Step
from vinppl.manifolds import Manifold
from vinppl.nn import MLP, Activation
from vinppl.rollout import record_path
from vinppl.state import PhaseState, Trajectory

__all__ = ["FreeMap", "NextState"]

STEP_TOLERANCE = 1e-3
"""Relative difference between steps that a map ignores: times in files are rounded."""


class FreeMap(AbstractBaseline):
    """(q, v)_{t+1} = g_theta(q_t, v_t), a feed-forward network from state to next state.

    The network gives the new values themselves, except for angles, where it gives the increment: its
    sine and cosine do not tell how often an angle has gone round. It knows one step size only.

    Args:
        step_size: time between two states, in units of time.
        manifold: configuration space, or a number of Euclidean coordinates.
        hidden_sizes: widths of the hidden layers.
        activation: name or `Activation`; see `vinppl.nn`.
        weight_prior_scale: see `AbstractMLP`; `None` gives point estimates.
        position_scale: typical size of a Euclidean coordinate; inputs are divided by it and outputs
            multiplied.
        velocity_scale: typical size of a velocity; the same, and times the step size of the
            increment of an angle.
        generator: random generator of the initial weights.

    Sites:
        `network.weight_0`, ... (parameters, or latent with a weight prior).

    Raises:
        ValueError: if the step size is not positive.
    """

    output_scale: Tensor
    increments: Tensor

    def __init__(
        self,
        step_size: float,
        manifold: Manifold | int = 1,
        *,
        hidden_sizes: Sequence[int] = (1000,),
        activation: str | Activation = "tanh",
        weight_prior_scale: float | None = None,
        position_scale: float = 1.0,
        velocity_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(manifold, position_scale, velocity_scale, NextState(step_size))
        self.step_size = float(step_size)
        scales = self._scales(position_scale, velocity_scale * step_size)
        self.register_buffer("output_scale", torch.tensor([*scales, *([velocity_scale] * self.dim)]))
        self.register_buffer("increments", torch.tensor(self._scales(0.0, 1.0)))
        self.network = MLP(
            len(self.input_scale),
            2 * self.dim,
            hidden_sizes,
            activation=activation,
            weight_prior_scale=weight_prior_scale,
            generator=generator,
        )

    def bind(self) -> StateFunction:
        """Read every weight and return the map."""
        network = self.network.bind(self.input_scale, self.output_scale)
        any_periodic = self.manifold.any_periodic

        def advance(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            new_q, new_v = network(self.inputs(q, v)).chunk(2, dim=-1)
            return new_q + self.increments * q if any_periodic else new_q, new_v

        return advance

    def residuals(self, q: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors of the mean rates of change over a step of constant acceleration."""
        h = self.step_size
        new_q, new_v = self.bind()(q, v)
        return (new_q - q) / h - (v + 0.5 * h * a), (new_v - v) / h - a

    def record(self, trajectory: Trajectory) -> None:
        """Store the path; a free map has no energy."""
        record_path(trajectory)


class NextState(AbstractIntegrator):
    """One application of a map, whose system is the map itself instead of a field.

    Has no order: it approximates no flow. Steps of length zero, by which shorter trajectories are
    padded, leave the state as it is.

    Args:
        step_size: the only step it takes, in units of time.
    """

    order = 0
    is_symplectic = False
    is_reversible = False
    chart = "phase"
    needs_mechanics = False

    def __init__(self, step_size: float) -> None:
        require(step_size > 0, "step_size of a map must be positive", step_size)
        self.step_size = step_size

    def start(self, system: Any, state: PhaseState, drive: Drives) -> PhaseState:
        """Work in phase space itself."""
        return state

    def step(self, system: Any, carry: PhaseState, step_size: Step, drive: Drives) -> PhaseState:
        """Apply the map.

        Raises:
            ValueError: for a step of another size.
        """
        h = torch.as_tensor(step_size)
        moves = h != 0
        other = moves & ((h - self.step_size).abs() > STEP_TOLERANCE * self.step_size)
        require(
            not bool(other.any()),
            f"a map from state to next state takes steps of {self.step_size:.6g} only",
            f"one of {float(h[other].flatten()[0]):.6g}" if bool(other.any()) else "none",
            "Resample the data to equal steps, or use dynamics in continuous time.",
        )
        q, v = system.function(carry.q, carry.v)
        if bool(moves.all()):
            return PhaseState(q, v)
        return PhaseState(torch.where(moves, q, carry.q), torch.where(moves, v, carry.v))

    def finish(self, system: Any, carry: PhaseState) -> PhaseState:
        """Return the state itself."""
        return carry
