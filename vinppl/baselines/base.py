"""The contract of a baseline: a learned law of motion on phase space, rolled out like a `VIN`."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.integrators import AbstractIntegrator, VectorField, make_integrator
from vinppl.manifolds import Euclidean, Manifold
from vinppl.parameters import Component
from vinppl.rollout import rollout
from vinppl.state import PhaseState, Trajectory, check_phase_state
from vinppl.timegrid import TimeGrid

__all__ = ["AbstractBaseline", "StateFunction"]

StateFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps positions and velocities, each `(*batch, dim)`, to two tensors of that shape."""


class AbstractBaseline(Component):
    """A learned law of motion on phase space, rolled out like a `VIN`.

    Args:
        manifold: configuration space, or a number of Euclidean coordinates.
        position_scale: typical size of a Euclidean coordinate; inputs are divided by it.
        velocity_scale: typical size of a velocity.
        integrator: a name from `INTEGRATORS` or an integrator of free fields.
    """

    transparent: ClassVar[bool] = True
    input_scale: Tensor

    def __init__(
        self,
        manifold: Manifold | int,
        position_scale: float,
        velocity_scale: float,
        integrator: str | AbstractIntegrator,
    ) -> None:
        super().__init__()
        require(position_scale > 0, "position_scale must be positive", position_scale)
        require(velocity_scale > 0, "velocity_scale must be positive", velocity_scale)
        self.manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
        self.integrator = make_integrator(integrator)
        num_circles = sum(self.manifold.periodic)
        factors = [1 / position_scale] * (self.dim - num_circles) + [1.0] * (2 * num_circles)
        self.register_buffer("input_scale", torch.tensor(factors + [1 / velocity_scale] * self.dim))

    @property
    def dim(self) -> int:
        """Number of generalised coordinates."""
        return self.manifold.dim

    @abc.abstractmethod
    def bind(self) -> StateFunction:
        """Read every weight once and return the law: of the rates of change, or of the next state."""

    @abc.abstractmethod
    def residuals(self, q: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return rates of change by the law minus those seen, at states of known acceleration.

        Args:
            q: positions, shape `(*batch, dim)`.
            v: velocities, same shape.
            a: accelerations, same shape.

        Returns:
            Errors of velocities and of accelerations, same shapes.
        """

    @abc.abstractmethod
    def record(self, trajectory: Trajectory) -> None:
        """Store the path as a deterministic site; see `vinppl.rollout.record_path`."""

    def forward(self, initial: PhaseState, grid: TimeGrid) -> Trajectory:
        """Roll the law out.

        Args:
            initial: state at the first time, shapes `(*batch, dim)`.
            grid: sampling times; `(time,)` or `(*batch, time)`.

        Returns:
            The path, shapes `(*batch, time, dim)`.

        Raises:
            ValueError: on a wrong shape, or, for a map, steps that it was not made for.
        """
        check_phase_state(initial, self.dim)
        law = VectorField(self.bind())
        return rollout(law, initial, grid, integrator=self.integrator, backend="reference")

    def inputs(self, q: Tensor, v: Tensor) -> Tensor:
        """Return what the network sees, before scaling: features of q, then v."""
        return torch.cat([self.manifold.features(q), v], dim=-1)

    def _scales(self, of_line: float, of_circle: float) -> list[float]:
        """Return one number for each coordinate."""
        return [of_circle if periodic else of_line for periodic in self.manifold.periodic]
