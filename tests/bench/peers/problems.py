"""The four inference problems of the speed benchmark: a model, its data and the truth behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.distributions import LogNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import GaussianEmission
from vinppl.forces import LinearDamping
from vinppl.models import Duffing, Hierarchical, Pendulum
from vinppl.potentials import CoupledSprings
from vinppl.simulate import simulate
from vinppl.state import PhaseState, Trajectory
from vinppl.systems import system

Array = NDArray[np.float64]
STEP_SIZE = 0.1


class Problem(NamedTuple):
    """What is fitted, and where a sampler may start without a search.

    Attributes:
        model: the Pyro model.
        data: the simulated measurements.
        truth: constrained values of the latent sites, those behind the data or close to them.
    """

    model: Any
    data: Trajectories
    truth: dict[str, Tensor]

    def observed(self) -> dict[str, Array]:
        """Return what a peer needs to know of the data: `values`, the spacing `h`, and the `drive`."""
        drive = {} if self.data.drive is None else {"drive": self.data.drive.numpy()}
        return {"values": self.data.values.numpy(), "h": np.array(STEP_SIZE), **drive}


class SpringChain(PyroModule):
    """Masses between two walls with unknown springs and damping: a user's own model of library parts."""

    def __init__(self, data: Trajectories) -> None:
        super().__init__()
        springs = CoupledSprings(LogNormal(torch.tensor(0.0), torch.tensor(0.5)), dim=data.dim)
        damping = LinearDamping(LogNormal(torch.tensor(-3.0), torch.tensor(1.0)))
        self.vin = VIN(springs, forces=[damping])
        self.emission = GaussianEmission(LogNormal(torch.tensor(-2.0), torch.tensor(1.0)))
        self.to(data.values.dtype)

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and observations of `data`."""
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        scale = data.values.new_ones(data.dim)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, scale).to_event(1))
        path = self.vin(PhaseState(q0, v0), data.grid())
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            pyro.sample("obs", noise, obs=data.values)
        return path


def pendulum(num_times: int = 150) -> Problem:
    """Return one swing of a damped pendulum, angles and velocities measured."""
    return _pendulum(Pendulum, num_trajectories=1, num_times=num_times)


def hierarchical() -> Problem:
    """Return ten swings of one pendulum, each with its own noise."""
    problem = _pendulum(Hierarchical, num_trajectories=10, num_times=100)
    noise = problem.truth.pop("noise_scale")
    own = {
        "noise_population": noise,
        "noise_spread": torch.tensor(0.1),
        "noise_deviation": torch.zeros(10, 2),
    }
    return problem._replace(truth=problem.truth | own)


def duffing() -> Problem:
    """Return a driven Duffing oscillator over 300 samples, drive known."""
    truth = system("duffing", stiffness=1.0, cubic=0.5, damping=0.1, drive_amplitude=0.5, drive_frequency=1.2)
    data, path = simulate(truth, num_trajectories=1, num_times=300, step_size=STEP_SIZE, noise_scale=0.1)
    data = dataclasses.replace(data, drive=(1.2 * data.times).cos().unsqueeze(-1), drive_names=("u",))
    sites = {
        "potential.stiffness": torch.tensor(1.0),
        "potential.cubic": torch.tensor(0.5),
        "damping.coefficient": torch.tensor(0.1),
        "drive.gain": torch.tensor(0.5),
        "noise_scale": torch.full((2,), 0.1),
    }
    return Problem(Duffing(data), data, sites | _initial(path))


def chain() -> Problem:
    """Return a chain of five masses, positions measured at 100 times."""
    springs = (1.2, 0.8, 1.0, 1.5, 0.9, 1.1)
    truth = system("coupled_oscillators", masses=(1.0,) * 5, stiffnesses=springs)
    data, path = simulate(
        truth, num_trajectories=1, num_times=100, step_size=STEP_SIZE, noise_scale=0.1, observe=["position"]
    )
    sites = {
        "potential.stiffness": torch.tensor(springs),
        "damping.coefficient": torch.tensor(0.01),
        "noise_scale": torch.tensor(0.1),
    }
    return Problem(SpringChain(data), data, sites | _initial(path))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "pendulum": pendulum,
    "duffing": duffing,
    "hierarchical": hierarchical,
    "chain": chain,
}


def _pendulum(model: Any, *, num_trajectories: int, num_times: int) -> Problem:
    """Return swings with g/l = 2.5 and damping 0.05, 1/s."""
    truth = system("damped_pendulum", gravity=2.5, damping=0.05, quadratic_damping=0.0)
    data, path = simulate(
        truth,
        num_trajectories=num_trajectories,
        num_times=num_times,
        step_size=STEP_SIZE,
        noise_scale=0.1,
    )
    sites = {
        "potential.gravity_over_length": torch.tensor(2.5),
        "damping.coefficient": torch.tensor(0.05),
        "noise_scale": torch.full((2,), 0.1),
    }
    return Problem(model(data), data, sites | _initial(path))


def _initial(path: Trajectory) -> dict[str, Tensor]:
    first = path.at(0)
    return {"initial_position": first.q, "initial_velocity": first.v}
