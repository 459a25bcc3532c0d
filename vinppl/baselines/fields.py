"""Baselines in continuous time: networks that give the rates of change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vinppl.baselines.base import AbstractBaseline, StateFunction
from vinppl.integrators import AbstractIntegrator
from vinppl.manifolds import Manifold
from vinppl.nn import MLP, Activation, ScalarMLP
from vinppl.rollout import record_path
from vinppl.state import PhaseState, Trajectory

__all__ = ["AbstractField", "FreeField", "HamiltonianNetwork"]


class AbstractField(AbstractBaseline):
    """A baseline in continuous time: `bind` gives (dq/dt, dv/dt) as a function of (q, v)."""

    def residuals(self, q: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors of dq/dt against `v` and of dv/dt against `a`."""
        dq, dv = self.bind()(q, v)
        return dq - v, dv - a


class FreeField(AbstractField):
    """d(q, v)/dt = f_theta(q, v), a network without mechanical structure.

    With `euler` it is the residual recurrent network of paper section 2, whose skip is scaled by the
    step size so that it runs on any grid; with `rk4` a neural ODE trained through its solver.

    Example:
        >>> field = FreeField(2, integrator="rk4")
        >>> field(PhaseState(torch.zeros(5, 2), torch.ones(5, 2)), TimeGrid.regular(10, 0.1)).q.shape
        torch.Size([5, 10, 2])

    Args:
        manifold: configuration space, or a number of Euclidean coordinates.
        hidden_sizes: widths of the hidden layers.
        activation: name or `Activation`; see `vinppl.nn`.
        weight_prior_scale: see `AbstractMLP`; `None` gives point estimates.
        position_scale: typical size of a Euclidean coordinate; inputs are divided by it.
        velocity_scale: typical size of a velocity. Outputs are multiplied by it, accelerations by its
            square over the position scale (over one radian for angles).
        integrator: `euler`, `rk4` or another integrator of free fields.
        generator: random generator of the initial weights.

    Sites:
        `network.weight_0`, ... (parameters, or latent with a weight prior).
    """

    output_scale: Tensor

    def __init__(
        self,
        manifold: Manifold | int = 1,
        *,
        hidden_sizes: Sequence[int] = (1000,),
        activation: str | Activation = "tanh",
        weight_prior_scale: float | None = None,
        position_scale: float = 1.0,
        velocity_scale: float = 1.0,
        integrator: str | AbstractIntegrator = "euler",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(manifold, position_scale, velocity_scale, integrator)
        square = velocity_scale**2
        scales = [velocity_scale] * self.dim + self._scales(square / position_scale, square)
        self.register_buffer("output_scale", torch.tensor(scales))
        self.network = MLP(
            len(self.input_scale),
            2 * self.dim,
            hidden_sizes,
            activation=activation,
            weight_prior_scale=weight_prior_scale,
            generator=generator,
        )

    def bind(self) -> StateFunction:
        """Read every weight and return the field."""
        network = self.network.bind(self.input_scale, self.output_scale)

        def field(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            dq, dv = network(self.inputs(q, v)).chunk(2, dim=-1)
            return dq, dv

        return field

    def record(self, trajectory: Trajectory) -> None:
        """Store the path; a free field has no energy."""
        record_path(trajectory)


class HamiltonianNetwork(AbstractField):
    """dq/dt = dH_theta/dp, dv/dt = -dH_theta/dq with p = v (unit mass): an HNN.

    Conserves H up to the error of the integrator. H is not separable, so that the library's
    symplectic integrators, which need V(q) and M, do not apply. The gradient is in closed form.

    Args:
        manifold: configuration space, or a number of Euclidean coordinates.
        hidden_sizes: widths of the hidden layers; the authors' are two of 200.
        activation: name or `Activation`; see `vinppl.nn`.
        weight_prior_scale: see `AbstractMLP`; `None` gives point estimates.
        position_scale: typical size of a Euclidean coordinate; inputs are divided by it.
        velocity_scale: typical size of a velocity; inputs are divided by it and H is multiplied by
            its square.
        integrator: `rk4`, `euler` or another integrator of free fields.
        generator: random generator of the initial weights.

    Sites:
        `network.weight_0`, ... (parameters, or latent with a weight prior).

    Reference: Greydanus, Dzamba, Yosinski, Hamiltonian neural networks, NeurIPS 2019, eq. (2).
    """

    output_scale: Tensor

    def __init__(
        self,
        manifold: Manifold | int = 1,
        *,
        hidden_sizes: Sequence[int] = (200, 200),
        activation: str | Activation = "tanh",
        weight_prior_scale: float | None = None,
        position_scale: float = 1.0,
        velocity_scale: float = 1.0,
        integrator: str | AbstractIntegrator = "rk4",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(manifold, position_scale, velocity_scale, integrator)
        self.register_buffer("output_scale", torch.tensor([velocity_scale**2]))
        self.network = ScalarMLP(
            len(self.input_scale),
            hidden_sizes,
            activation=activation,
            weight_prior_scale=weight_prior_scale,
            generator=generator,
        )

    def bind(self) -> StateFunction:
        """Read every weight and return the Hamiltonian field."""
        gradient = self.network.bind(self.input_scale, self.output_scale).gradient
        manifold = self.manifold
        sizes = [manifold.num_features, self.dim]

        def field(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            on_features, on_momentum = gradient(self.inputs(q, v)).split(sizes, dim=-1)
            return on_momentum, -manifold.pull_back(q, on_features)

        return field

    def energy(self, state: PhaseState | Trajectory) -> Tensor:
        """Return H, shape `(*batch,)` of a state or `(*batch, time)` of a path, up to a constant.

        Reads the sites again: inside a model they keep their values, outside they are redrawn.
        """
        value = self.network.bind(self.input_scale, self.output_scale).value
        x = self.inputs(state.q, state.v)
        if isinstance(state, PhaseState):
            return value(x)
        # Parameters carry (*batch, 1): put time in front so that they broadcast.
        return value(x.movedim(-2, 0)).movedim(0, -1)

    def record(self, trajectory: Trajectory) -> None:
        """Store the path and, outside of inference, its energy H."""
        record_path(trajectory, self.energy)
