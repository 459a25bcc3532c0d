"""A mass on a linear spring, with damping if wanted.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    m d2q/dt2 = -k q - c v + d_n(t)
    d_n ~ Matern-3/2 process                                      what the law leaves out, if wanted
    y_ntc ~ Noise(q or v at t, noise_scale_c)                     one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, 1)        real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, 1)        real       Normal(0, 2 x rms v)
potential.stiffness         k            ()            > 0        LogNormal(log 3, 1.5)
mass                        m            ()            > 0        fixed at 1
damping.coefficient         c            ()            > 0        none (no damping)
discrepancy.amplitude       A            ()            > 0        none (no d), or HalfNormal
discrepancy.correlation_    l            ()            > 0        LogNormal
time
discrepancy.innovations     -            (N, K, 2 D)   real       Normal(0, 1)
discrepancy.force           d            (N, T, D)     real       deterministic
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

Units: with the default mass, k is stiffness per mass in 1/time^2 and c is in 1/time.
From a motion alone only k/m and c/m are defined: give the mass a prior only together with a
tight prior on the stiffness (a known spring), and compare prior and posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.discrepancy import ForceCoordinates, make_discrepancy
from vinppl.dynamics import VIN
from vinppl.emissions import NoiseName, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines, signed_sum
from vinppl.estimates import first_states, force_regression, noise_estimate
from vinppl.forces import LinearDamping
from vinppl.potentials import Harmonic
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior
from vinppl.state import PhaseState, Trajectory

__all__ = ["MassSpring", "MassSpringConfig"]


@dataclass(frozen=True)
class MassSpringConfig:
    """Options of the mass-spring model. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        stiffness: prior of k.
        mass: prior of m; `None` fixes it at one.
        damping: prior of c; `None` for no damping.
        noise: how the measurements scatter.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        discrepancy: scale of the half-normal prior of the amplitude of an unknown force, in units of force
            (per mass, if that is fixed at one); `None` trusts the law. See `vinppl.discrepancy`.
        discrepancy_time: prior of its correlation time; `None` sets it by the data.
        discrepancy_coordinates: `innovations`, or `knots` (the site has that name) for a force that precise
            measurements pin down; see `vinppl.discrepancy.DiscrepancyForce`.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    stiffness: tuple[float, float] = (3.0, 1.5)
    mass: tuple[float, float] | None = None
    damping: tuple[float, float] | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    discrepancy: float | None = None
    discrepancy_time: tuple[float, float] | None = None
    discrepancy_coordinates: ForceCoordinates = "innovations"
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class MassSpring(PyroModule):
    """The mass-spring system as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets the channels and, where the options leave them open, the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = MassSpringConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: MassSpringConfig = MassSpringConfig()) -> None:
        super().__init__()
        self.config = config
        self.vin = VIN(
            Harmonic(log_normal(*config.stiffness), dim=data.dim),
            mass=1.0 if config.mass is None else log_normal(*config.mass),
            forces=[] if config.damping is None else [LinearDamping(log_normal(*config.damping))],
            integrator=config.integrator,
        )
        self.emission = make_emission(
            config.noise,
            noise_prior(data, config.noise_scale),
            num_channels=data.num_channels,
            correlation_time=correlation_prior(data, config.correlation_time),
        )
        self.discrepancy = make_discrepancy(
            data, config.discrepancy, config.discrepancy_time, coordinates=config.discrepancy_coordinates
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
        force = self.discrepancy(data, trajectories)
        path = self.vin(PhaseState(q0, v0), data.grid(self.config.max_step_size), force=force)
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            self.discrepancy.record(force, data)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        config = self.config
        mass = "" if config.mass is None else "m "
        damping = "" if config.damping is None else "−c v"
        force = signed_sum("−k q", damping, self.discrepancy.term)
        noise = measurement_lines(config.noise)
        lines = (f"{mass}d²q/dt² = {force}", *self.discrepancy.equations, INITIAL_LINE, *noise)
        return Equations(lines, {"potential.stiffness": "k"})

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of the dynamical sites, to start inference from."""
        q0, v0 = first_states(data)
        damped = self.config.damping is not None
        terms = [lambda s: -s.q, lambda s: -s.v] if damped else [lambda s: -s.q]
        mass = 1.0 if self.config.mass is None else self.config.mass[0]
        fitted = mass * force_regression(data, terms).clamp_min(1e-4)
        stiffness = fitted[0] if data.dim == 1 else fitted[0].expand(data.dim)
        values = {
            "initial_position": q0,
            "initial_velocity": v0,
            "noise_scale": noise_estimate(data),
            "potential.stiffness": stiffness,
            **self.discrepancy.initial_values(data),
        }
        return {**values, "damping.coefficient": fitted[1]} if damped else values
