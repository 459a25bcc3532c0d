"""A linear oscillator with known spring and noise: measurements and initial states are jointly normal.

y = G x + noise, where the columns of G are rollouts from unit states x = (q0, v0): everything that
calibration estimates has a closed form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import MultivariateNormal

from vinppl.calibration.weighted import WeightedDraws
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import GaussianSeries
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState

NOISE = 0.4
PRIOR_MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
PRIOR_SCALE = torch.tensor([1.0, 1.5], dtype=torch.float64)
SITES = ("initial_position", "initial_velocity")


class KnownSpring(PyroModule):
    """An oscillator of which only the initial states are unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(2.0))

    def forward(self, data: Trajectories) -> None:
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            start = [
                pyro.sample(site, Normal(PRIOR_MEAN[i : i + 1], PRIOR_SCALE[i : i + 1]).to_event(1))
                for i, site in enumerate(SITES)
            ]
        path = self.vin(PhaseState(*start), data.grid())
        with trajectories:
            self.vin.record(path)
            noise = GaussianSeries(data.observe(path), torch.tensor(NOISE), mask=data.mask)
            pyro.sample("obs", noise, obs=data.values)


def grid(num_trajectories: int = 2, num_times: int = 8, *, gaps: bool = False) -> Trajectories:
    """Return measurements of position and velocity, of root mean square one (which sets what is typical)."""
    times = 0.2 * torch.arange(num_times, dtype=torch.float64)
    signs = 1.0 - 2.0 * (torch.arange(num_times) % 2)
    values = signs[:, None].expand(num_trajectories, num_times, 2).clone()
    data = Trajectories.from_arrays(times, values, quantities=("position", "velocity"))
    if gaps:
        mask = data.mask.clone()
        mask[0, 2:4, 1] = False
        data = Trajectories.from_arrays(
            times, torch.where(mask, values, math.nan), quantities=("position", "velocity")
        )
    return data


class Exact(NamedTuple):
    """Closed forms of one trajectory.

    Attributes:
        posterior: of (q0, v0).
        joint: of its measured values, in the order of time and channel.
        values: these values.
    """

    posterior: MultivariateNormal
    joint: MultivariateNormal
    values: Tensor


def exact(data: Trajectories) -> list[Exact]:
    """Return the closed forms of every trajectory."""
    vin = VIN(Harmonic(2.0))
    unit = torch.eye(2)
    path = vin(PhaseState(unit[:, :1], unit[:, 1:]), data.select([0]).grid())
    columns = torch.cat([path.q, path.v], dim=-1).movedim(0, -1)  # (time, channel, state)
    found = []
    for n in range(data.num_trajectories):
        kept = data.mask[n]
        design, values = columns[kept], data.values[n][kept]
        prior = torch.diag(PRIOR_SCALE**2)
        precision = design.mT @ design / NOISE**2 + torch.diag(PRIOR_SCALE**-2)
        mean = torch.linalg.solve(precision, design.mT @ values / NOISE**2 + PRIOR_MEAN / PRIOR_SCALE**2)
        covariance = design @ prior @ design.mT + NOISE**2 * torch.eye(len(values))
        found.append(
            Exact(
                MultivariateNormal(mean, precision_matrix=precision),
                MultivariateNormal(design @ PRIOR_MEAN, covariance),
                values,
            )
        )
    return found


def exact_draws(
    data: Trajectories, num_draws: int, *, seed: int = 0, scale: float = 1.0, shift: float = 0.0
) -> WeightedDraws:
    """Return draws from the posterior, or from one `scale` times as wide and moved by `shift` of its sds."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in exact(data):
        normal = torch.randn(num_draws, 2, generator=generator)
        mean = part.posterior.mean + shift * part.posterior.stddev
        parts.append(mean + scale * normal @ part.posterior.scale_tril.mT)
    states = torch.stack(parts, dim=1)  # (draw, trajectory, 2)
    weights = torch.full((num_draws,), -math.log(num_draws))
    return WeightedDraws(dict(zip(SITES, states.split(1, dim=-1), strict=True)), weights)


def conditional(joint: MultivariateNormal, values: Tensor, wanted: Tensor, given: Tensor) -> float:
    """Return log p(values[wanted] | values[given]) of a normal vector; both are index lists."""
    residual, covariance = values - joint.mean, joint.covariance_matrix
    mean, spread = torch.zeros(len(wanted)), covariance[wanted][:, wanted]
    if len(given):
        gain = torch.linalg.solve(covariance[given][:, given], covariance[given][:, wanted]).mT
        mean, spread = gain @ residual[given], spread - gain @ covariance[given][:, wanted]
    return float(MultivariateNormal(mean, spread).log_prob(residual[wanted]))
