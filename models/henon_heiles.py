"""A particle in the Hénon-Heiles potential, the smallest conservative system that is chaotic.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    d2x/dt2 = -w^2 x - 2 a x y
    d2y/dt2 = -w^2 y - a (x^2 - y^2)                              unit mass
    y_ntc ~ Noise(q or v at t, noise_scale_c)                     one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, 2)        real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, 2)        real       Normal(0, 2 x rms v)
potential.stiffness         w^2          ()            > 0        LogNormal(log w0^2, 1.5)
potential.coupling          a            ()            real       Normal(0, w0^2 / rms q)
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

w0 = rms v / rms q is the typical angular frequency of the record. Units: w^2 in 1/time^2, a in
1/(time^2 length). V = w^2 (x^2 + y^2) / 2 + a (x^2 y - y^3 / 3) per mass lets go of the particle above
the energy w^6 / (6 a^2); a record that stays has an a well below w^2 / rms q.

Reference: Hénon, Heiles, The applicability of the third integral of motion, Astronomical Journal 69 (1964).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import NoiseName, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines
from vinppl.estimates import first_states, force_regression, noise_estimate
from vinppl.potentials import FunctionPotential
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior, normal, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["HenonHeiles", "HenonHeilesConfig"]


@dataclass(frozen=True)
class HenonHeilesConfig:
    """Options of the Hénon-Heiles model. `None` sets a prior by the data, as in the module docstring.

    Attributes:
        stiffness: median and log-sd of the log-normal prior of w^2.
        coupling: mean and sd of the normal prior of a.
        noise: how the measurements scatter.
        noise_scale: median and log-sd of the prior of the noise scale of every channel.
        correlation_time: median and log-sd of the prior of the memory of `ar1` noise.
        initial_scale: sds of the priors of initial position and velocity.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    stiffness: tuple[float, float] | None = None
    coupling: tuple[float, float] | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class HenonHeiles(PyroModule):
    """The Hénon-Heiles system as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets the channels and, where the options leave them open, the scales of priors.
        config: options.

    Raises:
        ValueError: if the data do not have two coordinates.
    """

    Config: ClassVar[type] = HenonHeilesConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: HenonHeilesConfig = HenonHeilesConfig()) -> None:
        super().__init__()
        require(data.dim == 2, "the Hénon-Heiles model needs two coordinates", f"{data.dim}")
        self.config = config
        q_scale, v_scale = state_scales(data)
        length, square = float(q_scale.mean()), float(v_scale.mean() / q_scale.mean()) ** 2
        self.vin = VIN(
            FunctionPotential(
                henon_heiles_energy,
                {
                    "stiffness": log_normal(*(config.stiffness or (square, 1.5))),
                    "coupling": normal(*(config.coupling or (0.0, square / length))),
                },
                manifold=2,
                supports={"stiffness": constraints.positive},
            ),
            integrator=config.integrator,
        )
        self.emission = make_emission(
            config.noise,
            noise_prior(data, config.noise_scale),
            num_channels=data.num_channels,
            correlation_time=correlation_prior(data, config.correlation_time),
        )
        q_scale, v_scale = initial_scales(data, config.initial_scale)
        self.register_buffer("q_scale", q_scale)
        self.register_buffer("v_scale", v_scale)
        self.to(data.values.dtype).to(data.values.device)

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and observations of `data`."""
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.vin(PhaseState(q0, v0), data.grid(self.config.max_step_size))
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        law = ("d²q_1/dt² = −ω² q_1 − 2 a q_1 q_2", "d²q_2/dt² = −ω² q_2 − a (q_1² − q_2²)")
        symbols = {"potential.stiffness": "ω²", "potential.coupling": "a"}
        return Equations((*law, INITIAL_LINE, *measurement_lines(self.config.noise)), symbols)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of the dynamical sites, to start inference from."""
        q0, v0 = first_states(data)
        fitted = force_regression(data, [lambda s: -s.q, lambda s: _cubic_force(s.q)])
        return {
            "initial_position": q0,
            "initial_velocity": v0,
            "noise_scale": noise_estimate(data),
            "potential.stiffness": fitted[0].clamp_min(1e-4),
            "potential.coupling": fitted[1],
        }


def henon_heiles_energy(q: Tensor, stiffness: Tensor, coupling: Tensor) -> Tensor:
    """Return V(q), `(*batch, 2) -> (*batch,)`; parameters arrive with a trailing dimension."""
    x, y = q[..., 0], q[..., 1]
    cubic = y * (x * x - y * y / 3)
    return 0.5 * stiffness[..., 0] * (x * x + y * y) + coupling[..., 0] * cubic


def _cubic_force(q: Tensor) -> Tensor:
    """Return minus the gradient of x^2 y - y^3 / 3."""
    x, y = q[..., 0], q[..., 1]
    return torch.stack([-2 * x * y, y * y - x * x], dim=-1)
