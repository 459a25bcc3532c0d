"""Many trials of one device: shared physics, its own initial state and noise in every trial.

    g/l (or k), c            shared by all trials                  priors below
    noise_population_c       ~ LogNormal(log 0.1 rms, 1.5)         typical noise of channel c
    noise_spread             ~ HalfNormal(0.5)                     how much trials differ (log scale)
    q0_n ~ Normal(0, s_q)    v0_n ~ Normal(0, s_v)                 one per trial n
    noise_deviation_nc ~ Normal(0, 1)
    noise_scale_nc = noise_population_c exp(noise_spread noise_deviation_nc)
    d2q/dt2 = -V'(q) - c v                                         unit inertia
    y_ntc ~ Normal(q or v at t, noise_scale_nc)

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
potential.gravity_over_     g/l          ()            > 0        LogNormal(log 3, 1.5)
length (pendulum)
potential.stiffness         k            ()            > 0        LogNormal(log 3, 1.5)
(spring)
damping.coefficient         c            ()            > 0        LogNormal(log 0.03, 1.5)
noise_population            -            (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
noise_spread                -            ()            > 0        HalfNormal(0.5)
initial_position            q0           (N, dim)      real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, dim)      real       Normal(0, 2 x rms v)
noise_deviation             -            (N, C)        real       Normal(0, 1)
noise_scale                 sigma        (N, C)        > 0        deterministic
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

The noise is written in the non-centred form, which samples well when trials are few or short.
Units as in `pendulum` and `mass_spring`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require_choice
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import GaussianSeries
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines, signed_sum
from vinppl.estimates import first_states, force_regression, noise_estimate
from vinppl.forces import LinearDamping
from vinppl.parameters import move_distribution
from vinppl.potentials import AbstractPotential, Harmonic, PendulumPotential
from vinppl.priors import half_normal, initial_scales, log_normal, noise_prior
from vinppl.state import PhaseState, Trajectory

__all__ = ["Hierarchical", "HierarchicalConfig"]


@dataclass(frozen=True)
class HierarchicalConfig:
    """Options of the hierarchical model. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        system: the shared physics, a pendulum or a mass on a spring.
        strength: prior of g/l or k, in 1/time^2.
        damping: prior of c, in 1/time; `None` for no damping.
        noise_scale: prior of the typical noise of every channel; `None` sets it by the data.
        noise_spread: scale of the half-normal prior of the spread between trials.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    system: Literal["pendulum", "spring"] = "pendulum"
    strength: tuple[float, float] = (3.0, 1.5)
    damping: tuple[float, float] | None = (0.03, 1.5)
    noise_scale: tuple[float, float] | None = None
    noise_spread: float = 0.5
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class Hierarchical(PyroModule):
    """Shared physics over many trials as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: one trajectory per trial; sets the channels and the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = HierarchicalConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: HierarchicalConfig = HierarchicalConfig()) -> None:
        super().__init__()
        require_choice("system", config.system, ("pendulum", "spring"))
        self.config = config
        prior = log_normal(*config.strength)
        pendulum = config.system == "pendulum"
        potential: AbstractPotential = PendulumPotential(prior) if pendulum else Harmonic(prior, dim=data.dim)
        forces = [] if config.damping is None else [LinearDamping(log_normal(*config.damping))]
        self.vin = VIN(potential, forces=forces, integrator=config.integrator)
        population = noise_prior(data, config.noise_scale)
        self.spread_prior = half_normal(config.noise_spread)
        self.population_prior = population.expand((data.num_channels,)).to_event(1)
        q_scale, v_scale = initial_scales(data, config.initial_scale)
        self.register_buffer("q_scale", q_scale)
        self.register_buffer("v_scale", v_scale)
        self.to(data.values.dtype).to(data.values.device)

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and observations of `data`."""
        population = pyro.sample("noise_population", move_distribution(self.population_prior, self.q_scale))
        spread = pyro.sample("noise_spread", move_distribution(self.spread_prior, self.q_scale))
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
            standard = Normal(torch.zeros_like(data.values[0, 0]), 1.0).to_event(1)
            deviation = pyro.sample("noise_deviation", standard)
            scale = population * (spread.unsqueeze(-1) * deviation).exp()  # (*particles, trials, channels)
            pyro.deterministic("noise_scale", scale, event_dim=1)
        path = self.vin(PhaseState(q0, v0), data.grid(self.config.max_step_size))
        with trajectories:
            self.vin.record(path)
            noise = GaussianSeries(data.observe(path), scale.unsqueeze(-2), mask=data.mask)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        pendulum = self.config.system == "pendulum"
        force = signed_sum(
            "−(g/l) sin q" if pendulum else "−k q", "" if self.config.damping is None else "−c v"
        )
        noise = (*measurement_lines("gaussian", scale="σ_{nc}"), "σ_{nc} = s_c exp(κ ε_{nc})")
        symbols = {
            "potential.gravity_over_length": "g/l",
            "potential.stiffness": "k",
            "noise_population": "s_c",
            "noise_spread": "κ",
            "noise_deviation": "ε_{nc}",
        }
        return Equations((f"d²q/dt² = {force}", INITIAL_LINE, *noise), symbols)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of the dynamical sites, to start inference from."""
        q0, v0 = first_states(data)
        pendulum = self.config.system == "pendulum"
        terms = [(lambda s: -s.q.sin()) if pendulum else (lambda s: -s.q)]
        if self.config.damping is not None:
            terms.append(lambda s: -s.v)
        fitted = force_regression(data, terms).clamp_min(1e-4)
        strength = fitted[0] if pendulum or data.dim == 1 else fitted[0].expand(data.dim)
        name = "potential.gravity_over_length" if pendulum else "potential.stiffness"
        values = {"initial_position": q0, "initial_velocity": v0, name: strength}
        values["noise_population"] = noise_estimate(data)
        return values if self.config.damping is None else {**values, "damping.coefficient": fitted[1]}
