"""A law of motion fitted to rough positions: where learning from pictures starts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.emissions import GaussianEmission
from vinppl.errors import ConvergenceWarning, NonFiniteError, NumericalWarning
from vinppl.estimates import first_states
from vinppl.fit.starts import fit_point
from vinppl.priors import log_normal, state_scales
from vinppl.state import PhaseState, Trajectory

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["FittedMotion", "fit_motion"]

WARP_SCALE = 0.2
"""Prior standard deviation of the first harmonic by which positions may be off, in their unit."""

NUM_WARPS = 5
"""Harmonics of that error."""


class FittedMotion(NamedTuple):
    """A motion that a law explains.

    Attributes:
        path: states at the times of the positions.
        sites: the law's own latent sites at the mode, such as `damping.coefficient`.
    """

    path: Trajectory
    sites: dict[str, Tensor]


def fit_motion(
    dynamics: Any,
    positions: Trajectories,
    *,
    max_step_size: float | None = None,
    max_iterations: int = 200,
) -> FittedMotion:
    """Fit a learned law to positions over whole trajectories and return the motion that it explains.

    Positions read off pictures are a smooth function of the coordinate in which the mass is constant. The
    function is learned too; noise of unknown size stands for what else is wrong.

    Args:
        dynamics: a `VIN` or a baseline whose networks are point estimates; changed in place. It may have
            latent sites of its own.
        positions: a position for every coordinate; some may be missing.
        max_step_size: largest step of the integrator; `None` steps from sample to sample.
        max_iterations: see `fit_point`.

    Returns:
        The states at the times of `positions`, and the law's own sites; nothing else of the fit is kept.

    Raises:
        NonFiniteError: if the motion at the mode is not finite.
    """
    kept = positions.values.dtype
    # In single precision the line searches stall long before the mode.
    exact = positions.to(dtype=torch.float64)
    model = _Motion(dynamics, exact, max_step_size).double().to(exact.values.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", NumericalWarning)
        values = fit_point(model, exact, max_iterations=max_iterations)
    model.to(kept)
    initial = PhaseState(values["initial_position"].to(kept), values["initial_velocity"].to(kept))
    sites = {name: value.to(kept) for name, value in values.items() if name not in OWN_SITES}
    # Inside of a handler a step without a solution makes the path NaN instead of raising.
    run = poutine.condition(dynamics, data=sites) if sites else dynamics
    with torch.no_grad(), pyro.get_param_store().scope():
        path: Trajectory = run(initial, positions.grid(max_step_size))
    if not bool(torch.isfinite(path.q).all()):
        raise NonFiniteError("the motion fitted to the positions is not finite", step=0, quantity="path")
    return FittedMotion(path, sites)


OWN_SITES = ("initial_position", "initial_velocity", "warp", "noise_scale")
"""Latent sites of the model below that are not the law's."""


class _Motion(PyroModule):
    """Positions measured along a bent scale, with noise of unknown size."""

    def __init__(self, dynamics: Any, positions: Trajectories, max_step_size: float | None) -> None:
        super().__init__()
        self.max_step_size = max_step_size
        q_scale, v_scale = state_scales(positions)
        self.dynamics = dynamics
        self.register_buffer("q_scale", 2 * q_scale)
        self.register_buffer("v_scale", 2 * v_scale)
        self.emission = GaussianEmission(log_normal(0.05 * float(q_scale.mean()), 1.0))
        waves = dynamics.manifold.wave_numbers(NUM_WARPS).to(q_scale)
        self.register_buffer("wave_numbers", waves)
        order = torch.arange(1, NUM_WARPS + 1).to(q_scale).repeat(2)
        self.register_buffer("warp_scale", (WARP_SCALE / order).expand(len(waves), -1))

    def forward(self, data: Trajectories) -> None:
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.dynamics(PhaseState(q0, v0), data.grid(self.max_step_size))
        warp = pyro.sample("warp", Normal(0.0, self.warp_scale).to_event(2))
        phase = path.q.unsqueeze(-1) * self.wave_numbers
        read = path.q + (torch.cat([phase.sin(), phase.cos()], dim=-1) * warp).sum(-1)
        noise = self.emission(read, data.times, mask=data.mask)
        with trajectories:
            pyro.sample("obs", noise, obs=data.values)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        q0, v0 = first_states(data)
        warp = torch.zeros_like(self.warp_scale)
        return {"initial_position": q0, "initial_velocity": v0, "warp": warp}
