"""A driven Duffing oscillator: a mass on a spring that hardens, with damping and a measured drive.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    d2q/dt2 = -a q - b q^3 - c v + G u(t) + F0 + d_n(t)           unit mass
    d_n ~ Matern-3/2 process                                      what the law leaves out, if wanted
    y_ntc ~ Noise(q or v at t, noise_scale_c)                     one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, 1)        real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, 1)        real       Normal(0, 2 x rms v)
potential.stiffness         a            ()            real       Normal(0, 10 w^2)
potential.cubic             b            ()            real       Normal(0, 10 w^2 / rms q^2)
damping.coefficient         c            ()            > 0        LogNormal(log 0.1 w, 1.5)
drive.gain                  G            () or (1, K)  real       Normal(0, 10 rms a / rms u)
drive.offset                F0           ()            real       fixed at 0
discrepancy.amplitude       A            ()            > 0        none (no d), or HalfNormal
discrepancy.correlation_    l            ()            > 0        LogNormal
time
discrepancy.innovations     -            (N, K, 2)     real       Normal(0, 1)
discrepancy.force           d            (N, T, 1)     real       deterministic
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

w = rms v / rms q is the typical angular frequency of the record and rms a = w rms v its typical
acceleration. Units: a in 1/time^2, b in 1/(time^2 length^2), c in 1/time, G in acceleration per
unit of the signal. The drive is known; its gain per mass is what is inferred. Without a drive
column the oscillator is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from vinppl.estimates import LocalStates, first_states, force_regression, noise_estimate
from vinppl.forces import AbstractDamping, Drive, LinearDamping
from vinppl.potentials import DuffingPotential
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior, normal, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["Duffing", "DuffingConfig"]


@dataclass(frozen=True)
class DuffingConfig:
    """Options of the Duffing model. `None` sets a prior by the data, as in the module docstring.

    Attributes:
        stiffness: mean and sd of the normal prior of a.
        cubic: mean and sd of the normal prior of b.
        damping: median and log-sd of the log-normal prior of c.
        gain: mean and sd of the normal prior of G.
        offset: sd of a normal prior on the constant force F0; `None` fixes it at zero.
        noise: how the measurements scatter.
        noise_scale: median and log-sd of the prior of the noise scale of every channel.
        correlation_time: median and log-sd of the prior of the memory of `ar1` noise.
        discrepancy: scale of the half-normal prior of the amplitude of an unknown force, in units of force
            per mass; `None` trusts the law. See `vinppl.discrepancy`.
        discrepancy_time: prior of its correlation time; `None` sets it by the data.
        discrepancy_coordinates: `innovations`, or `knots` (the site has that name) for a force that precise
            measurements pin down; see `vinppl.discrepancy.DiscrepancyForce`.
        initial_scale: sds of the priors of initial position and velocity.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    stiffness: tuple[float, float] | None = None
    cubic: tuple[float, float] | None = None
    damping: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None
    offset: float | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    discrepancy: float | None = None
    discrepancy_time: tuple[float, float] | None = None
    discrepancy_coordinates: ForceCoordinates = "innovations"
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class Duffing(PyroModule):
    """The driven Duffing oscillator as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets the channels, the drive and, where the options leave them open, the scales of priors.
        config: options.

    Raises:
        ValueError: if the data have more than one coordinate.
    """

    Config: ClassVar[type] = DuffingConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: DuffingConfig = DuffingConfig()) -> None:
        super().__init__()
        self.config = config
        q_scale, v_scale = state_scales(data)
        q_rms, v_rms = float(q_scale[0]), float(v_scale[0])
        frequency = v_rms / q_rms
        potential = DuffingPotential(
            normal(*(config.stiffness or (0.0, 10 * frequency**2))),
            normal(*(config.cubic or (0.0, 10 * frequency**2 / q_rms**2))),
        )
        forces: list[AbstractDamping | Drive] = [
            LinearDamping(log_normal(*(config.damping or (0.1 * frequency, 1.5))))
        ]
        self.driven = data.drive is not None
        if data.drive is not None:
            u_rms = float(data.drive.square().mean().sqrt().clamp_min(1e-12))
            gain = normal(*(config.gain or (0.0, 10 * frequency * v_rms / u_rms)))
            offset = 0.0 if config.offset is None else normal(0.0, config.offset)
            forces.append(Drive(gain, offset=offset, num_channels=data.drive.shape[-1]))
        self.vin = VIN(potential, forces=forces, integrator=config.integrator)
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
        """Run the generative program on the times, drive and observations of `data`."""
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        control = data.control() if self.driven else None
        force = self.discrepancy(data, trajectories)
        grid = data.grid(self.config.max_step_size)
        path = self.vin(PhaseState(q0, v0), grid, control=control, force=force)
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            self.discrepancy.record(force, data)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        drive = "G u(t)" if self.driven else ""
        offset = "F_0" if self.driven and self.config.offset is not None else ""
        force = signed_sum("−a q", "−b q³", "−c v", drive, offset, self.discrepancy.term)
        noise = measurement_lines(self.config.noise)
        symbols = {"potential.stiffness": "a", "potential.cubic": "b"}
        return Equations((f"d²q/dt² = {force}", *self.discrepancy.equations, INITIAL_LINE, *noise), symbols)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of the dynamical sites, to start inference from."""
        q0, v0 = first_states(data)
        num_drives = 0 if data.drive is None else data.drive.shape[-1]

        def input_feature(index: int, states: LocalStates) -> Tensor:
            assert states.drive is not None
            return states.drive[:, index : index + 1]

        terms: list[Callable[[LocalStates], Tensor]] = [lambda s: -s.q, lambda s: -(s.q**3), lambda s: -s.v]
        terms += [partial(input_feature, k) for k in range(num_drives)]
        fitted = force_regression(data, terms)
        values = {
            "initial_position": q0,
            "initial_velocity": v0,
            "noise_scale": noise_estimate(data),
            "potential.stiffness": fitted[0],
            "potential.cubic": fitted[1],
            "damping.coefficient": fitted[2].clamp_min(1e-3 * float(self.v_scale[0] / self.q_scale[0])),
            **self.discrepancy.initial_values(data),
        }
        if num_drives:
            values["drive.gain"] = fitted[3] if num_drives == 1 else fitted[3:].reshape(1, num_drives)
        return values
