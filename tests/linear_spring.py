"""A linear oscillator with known noise, whose posterior has a closed form at every stiffness.

y = G x + noise for x = (q0, v0), where the columns of G are rollouts from unit states at a given stiffness:
the posterior of x is normal, and the evidence of a stiffness is a normal density of y.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import torch
from example_data import simulated
from pyro.distributions import LogNormal, MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import GaussianSeries
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState

NOISE = 0.3
PRIOR = torch.tensor([1.0, 1.5], dtype=torch.float64)  # sds of q0 and v0
SITE = "potential.stiffness"


class Spring(PyroModule):
    """An oscillator of unknown stiffness and initial states, and of known noise."""

    def __init__(self, velocity_unit: float = 1.0, wall: float | None = None) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(LogNormal(torch.tensor(math.log(2.0)), torch.tensor(0.5))))
        self.prior = PRIOR * torch.tensor([1.0, velocity_unit])
        self.wall = wall

    def forward(self, data: Trajectories) -> None:
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q = pyro.sample("initial_position", Normal(0.0, self.prior[:1]).to_event(1))
            v = pyro.sample("initial_velocity", Normal(0.0, self.prior[1:]).to_event(1))
            if self.wall is not None:
                pyro.factor("wall", torch.where(q[..., 0] > self.wall, 0.0, -math.inf))
        path = self.vin(PhaseState(q, v), data.grid())
        with trajectories:
            self.vin.record(path)
            noise = GaussianSeries(data.observe(path), torch.tensor(NOISE), mask=data.mask)
            pyro.sample("obs", noise, obs=data.values)


class Exact(NamedTuple):
    """Posterior of (q0, v0) of every trajectory at one stiffness, and the log evidence of each."""

    mean: Tensor  # (trajectory, 2)
    covariance: Tensor  # (trajectory, 2, 2)
    log_evidence: Tensor  # (trajectory,)


def exact(stiffness: float, data: Trajectories) -> Exact:
    unit = torch.eye(2)
    found: list[list[Tensor]] = [[], [], []]
    for n in range(data.num_trajectories):
        one = data.select([n])
        paths = VIN(Harmonic(stiffness))(PhaseState(unit[:, :1], unit[:, 1:]), one.grid())
        seen = one.mask[0].flatten()
        g = one.observe(paths).flatten(1).mT[seen]  # (observed, 2)
        y = one.values[0].flatten()[seen]
        covariance = torch.linalg.inv(g.mT @ g / NOISE**2 + PRIOR.pow(-2).diag())
        spread = g @ PRIOR.square().diag() @ g.mT + NOISE**2 * torch.eye(len(y))
        found[0].append(covariance @ g.mT @ y / NOISE**2)
        found[1].append(covariance)
        found[2].append(MultivariateNormal(torch.zeros_like(y), spread).log_prob(y))
    return Exact(*(torch.stack(part) for part in found))


def measured(*, observe: Any = ("position",), num_trajectories: int = 3) -> Trajectories:
    return simulated(
        "mass_spring",
        parameters={"stiffness": 2.0},
        num_trajectories=num_trajectories,
        num_times=9,
        step_size=0.2,
        noise_scale=NOISE,
        observe=observe,
        seed=3,
    )
