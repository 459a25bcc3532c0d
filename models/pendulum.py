"""A pendulum of known form, from noisy angles or angular velocities.

    q0_n ~ Normal(0, s_q)            v0_n ~ Normal(0, s_v)         one per trajectory n
    d2q/dt2 = -(g/l) sin(q - offset) - c v - d |v| v + d_n(t)      unit inertia
    d_n ~ Matern-3/2 process                                       what the law leaves out, if wanted
    y_ntc ~ Noise(q or velocity_gain v at t, noise_scale_c)        one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, 1)        real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, 1)        real       Normal(0, 2 x rms v)
potential.gravity_over_     g/l          ()            > 0        LogNormal(log 3, 1.5)
length
potential.angle_offset      offset       ()            real       fixed at 0
damping.coefficient         c            ()            > 0        LogNormal(log 0.03, 1.5)
drag.coefficient            d            ()            > 0        none (no drag)
velocity_gain               -            ()            > 0        none (gain 1)
discrepancy.amplitude       A            ()            > 0        none (no d_n), or HalfNormal
discrepancy.correlation_    l            ()            > 0        LogNormal
time
discrepancy.innovations     -            (N, K, 2)     real       Normal(0, 1)
discrepancy.force           d_n          (N, T, 1)     real       deterministic
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
correlation_time (ar1)      tau          (C,)          > 0        LogNormal(log 3 gaps, 1)
degrees_of_freedom          nu           ()            > 0        Gamma(2, 0.1)
(student_t)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

Units: angles in radians, g/l in 1/time^2, c in 1/time, d per radian, time as in the data.
Only ratios to the inertia are identified, so the mass is one and g/l, c and d are per unit of it.
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
from vinppl.emissions import NoiseName, VelocityGain, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines, signed_sum
from vinppl.estimates import first_states, force_regression, noise_estimate
from vinppl.forces import AbstractDamping, LinearDamping, QuadraticDamping
from vinppl.potentials import PendulumPotential
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior, normal
from vinppl.state import PhaseState, Trajectory

__all__ = ["Pendulum", "PendulumConfig"]


@dataclass(frozen=True)
class PendulumConfig:
    """Options of the pendulum model. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        gravity_over_length: prior of g/l, in 1/time^2.
        damping: prior of the linear damping c, in 1/time; `None` for a pendulum without.
        drag: prior of the quadratic damping d; `None` for none.
        angle_offset: standard deviation of a normal prior on the angle at rest; `None` fixes it at zero.
        noise: how the measurements scatter.
        velocity_gain: sd of the logarithm of the factor by which measured velocities are off, around
            one; `None` trusts them. For velocities that were differentiated and smoothed, 0.1 or so.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        discrepancy: scale of the half-normal prior of the amplitude of an unknown force, in units of force
            per mass; `None` trusts the law. See `vinppl.discrepancy`.
        discrepancy_time: prior of its correlation time; `None` sets it by the data.
        discrepancy_coordinates: `innovations`, or `knots` (the site has that name) for a force that precise
            measurements pin down; see `vinppl.discrepancy.DiscrepancyForce`.
        initial_scale: sds of the priors of initial angle and velocity; `None` sets them by the data.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    gravity_over_length: tuple[float, float] = (3.0, 1.5)
    damping: tuple[float, float] | None = (0.03, 1.5)
    drag: tuple[float, float] | None = None
    angle_offset: float | None = None
    noise: NoiseName = "gaussian"
    velocity_gain: float | None = None
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    discrepancy: float | None = None
    discrepancy_time: tuple[float, float] | None = None
    discrepancy_coordinates: ForceCoordinates = "innovations"
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class Pendulum(PyroModule):
    """The pendulum as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets the channels and, where the options leave them open, the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = PendulumConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: PendulumConfig = PendulumConfig()) -> None:
        super().__init__()
        self.config = config
        forces: list[AbstractDamping] = []
        if config.damping is not None:
            forces.append(LinearDamping(log_normal(*config.damping)))
        if config.drag is not None:
            forces.append(QuadraticDamping(log_normal(*config.drag)))
        offset = 0.0 if config.angle_offset is None else normal(0.0, config.angle_offset)
        potential = PendulumPotential(log_normal(*config.gravity_over_length), angle_offset=offset)
        self.vin = VIN(potential, forces=forces, integrator=config.integrator)
        self.emission = make_emission(
            config.noise,
            noise_prior(data, config.noise_scale),
            num_channels=data.num_channels,
            correlation_time=correlation_prior(data, config.correlation_time),
        )
        self.sensor = VelocityGain(
            None if config.velocity_gain is None else log_normal(1.0, config.velocity_gain)
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
        loc = self.sensor(data.observe(path), data.velocity_channels)
        noise = self.emission(loc, data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            self.discrepancy.record(force, data)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        config = self.config
        angle = "q" if config.angle_offset is None else "(q − δ)"
        force = signed_sum(
            f"−(g/l) sin {angle}",
            "" if config.damping is None else "−c v",
            "" if config.drag is None else "−d |v| v",
            self.discrepancy.term,
        )
        noise = measurement_lines(config.noise, gain=config.velocity_gain is not None)
        symbols = {"potential.gravity_over_length": "g/l", "potential.angle_offset": "δ"}
        return Equations((f"d²q/dt² = {force}", *self.discrepancy.equations, INITIAL_LINE, *noise), symbols)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of the dynamical sites, to start inference from."""
        q0, v0 = first_states(data)
        terms = [lambda s: -s.q.sin(), lambda s: -s.v, lambda s: -s.v.abs() * s.v]
        used = [True, self.config.damping is not None, self.config.drag is not None]
        fitted = iter(force_regression(data, [f for f, use in zip(terms, used, strict=True) if use]).unbind())
        names = ["potential.gravity_over_length", "damping.coefficient", "drag.coefficient"]
        values = {"initial_position": q0, "initial_velocity": v0, "noise_scale": noise_estimate(data)}
        for name, use, floor in zip(names, used, (1e-3, 1e-4, 1e-4), strict=True):
            if use:
                values[name] = next(fitted).clamp_min(floor)
        return values | self.discrepancy.initial_values(data)
