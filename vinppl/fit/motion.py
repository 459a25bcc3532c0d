"""A law of motion fitted to rough positions: where learning from pictures starts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.emissions import GaussianEmission
from vinppl.errors import ConvergenceWarning, NumericalWarning
from vinppl.estimates import first_states
from vinppl.fit.starts import fit_point
from vinppl.priors import log_normal, state_scales
from vinppl.state import PhaseState, Trajectory

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["fit_motion"]


def fit_motion(dynamics: Any, positions: Trajectories, *, max_iterations: int = 60) -> Trajectory:
    """Fit a learned law to positions over whole trajectories and return the motion that it explains.

    What positions read off pictures have wrong, such as a scale that changes along the way, no mechanical
    system can follow: the motion is the nearest that one can.

    Args:
        dynamics: a `VIN` or a baseline whose parameters are point estimates; changed in place.
        positions: a position for every coordinate; some may be missing.
        max_iterations: see `fit_point`.

    Returns:
        States at the times of `positions`; nothing else of the fit is kept.
    """
    model = _Motion(dynamics, positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", NumericalWarning)
        values = fit_point(model, positions, max_iterations=max_iterations, weight_decay=1e-4)
    with torch.no_grad(), pyro.get_param_store().scope():
        path: Trajectory = dynamics(
            PhaseState(values["initial_position"], values["initial_velocity"]), positions.grid()
        )
    return path


class _Motion(PyroModule):
    """Positions measured with noise of unknown size, which an embedding's faults pass for."""

    def __init__(self, dynamics: Any, positions: Trajectories) -> None:
        super().__init__()
        q_scale, v_scale = state_scales(positions)
        self.dynamics = dynamics
        self.register_buffer("q_scale", 2 * q_scale)
        self.register_buffer("v_scale", 2 * v_scale)
        self.emission = GaussianEmission(log_normal(0.05 * float(q_scale.mean()), 1.0))

    def forward(self, data: Trajectories) -> None:
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.dynamics(PhaseState(q0, v0), data.grid())
        noise = self.emission(path.q, data.times, mask=data.mask)
        with trajectories:
            pyro.sample("obs", noise, obs=data.values)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        q0, v0 = first_states(data)
        return {"initial_position": q0, "initial_velocity": v0}
