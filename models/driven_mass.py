"""A mass moved by a known force against friction: a joint of a robot, a slide, a cart.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    m d2q/dt2 = g u(t) + F0 - c v - f tanh(v / w) + d_n(t)        viscous and dry friction
    d_n ~ Matern-3/2 process                                      what the law leaves out, if wanted
    y_ntc ~ Noise(q or v at t, noise_scale_c)                     one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, 1)        real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, 1)        real       Normal(0, 2 x rms v)
mass                        m            ()            > 0        LogNormal(log m*, 1.5)
damping.coefficient         c            ()            > 0        LogNormal(log 0.3 F* / rms v, 1.5)
friction.coefficient        f            ()            > 0        LogNormal(log 0.3 F*, 1.5)
drive.offset                F0           ()            real       Normal(0, F*)
drive.gain                  g            ()            real       none (known), or Normal
discrepancy.amplitude       A            ()            > 0        none (no d), or HalfNormal
discrepancy.correlation_    l            ()            > 0        LogNormal
time
discrepancy.knots           -            (N, K, 2)     real       MaternKnots(A, l)
discrepancy.force           d            (N, T, 1)     real       deterministic
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

F* is the root mean square of the known force and m* that force over a typical acceleration. The gains g turn
the drive columns into a force, which is what identifies the mass: `gain=(1.0,)` for a measured force, newtons
per volt for a motor's voltage. Units follow: with newtons and metres, m in kg, c in N s/m. The motion shows
only the ratios of m, c, f and F0 to g: the error of its calibration, `gain_error`, is a part of theirs.

What the law leaves out (a friction that depends on position, say) is not independent from one sample to the
next as noise is; without d, parameters are far too sure of themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require
from vinppl.data import Trajectories
from vinppl.discrepancy import make_discrepancy
from vinppl.dynamics import VIN
from vinppl.emissions import NoiseName, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines, signed_sum
from vinppl.estimates import first_states, force_regression, local_states, noise_estimate
from vinppl.forces import CoulombFriction, Drive, LinearDamping
from vinppl.potentials import FlatPotential
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior, normal, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["DrivenMass", "DrivenMassConfig"]


MIN_RESPONSE = 0.01
"""Share of the accelerations that the known force must make up for a rough estimate of the mass."""


@dataclass(frozen=True)
class DrivenMassConfig:
    """Options of the driven mass. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        gain: known force per unit of each drive column.
        gain_error: standard deviation of the gains' calibration, as a share of them; 0 for gains that are
            known exactly.
        mass: prior of m; `None` sets it by the data.
        damping: prior of the viscous friction c; `None` sets it by the data.
        friction: prior of the dry friction f; `None` sets it by the data.
        smoothing: velocity w over which dry friction changes its sign; `None` takes a hundredth of the root
            mean square velocity. Steps must be shorter than 2 m w / f.
        offset: sd of the normal prior of the constant force F0; `None` sets it by the data.
        noise: how the measurements scatter.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        discrepancy: scale of the half-normal prior of the amplitude of an unknown force, in units of force;
            `None` trusts the law. See `vinppl.discrepancy`.
        discrepancy_time: prior of its correlation time; `None` sets it by the data.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        integrator: name of the integrator.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
    """

    gain: tuple[float, ...] = (1.0,)
    gain_error: float = 0.0
    mass: tuple[float, float] | None = None
    damping: tuple[float, float] | None = None
    friction: tuple[float, float] | None = None
    smoothing: float | None = None
    offset: float | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    discrepancy: float | None = None
    discrepancy_time: tuple[float, float] | None = None
    initial_scale: tuple[float, float] | None = None
    integrator: str = "velocity_verlet"
    max_step_size: float | None = None


class DrivenMass(PyroModule):
    """The driven mass as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets the channels, the drive and, where the options leave them open, the scales of priors.
        config: options.

    Raises:
        ValueError: if the data have no drive, more than one coordinate, or another number of drives than
            there are gains, or if the error of the gains is negative.
    """

    Config: ClassVar[type] = DrivenMassConfig
    default_guide: ClassVar[str] = "full_rank"

    def __init__(self, data: Trajectories, config: DrivenMassConfig = DrivenMassConfig()) -> None:
        super().__init__()
        self.config = config
        require(data.dim == 1, "a driven mass has one coordinate", f"{data.dim}")
        num_drives = 0 if data.drive is None else data.drive.shape[-1]
        require(
            num_drives == len(config.gain),
            "a driven mass needs one known gain for each drive of the data",
            f"{len(config.gain)} gain(s) and {num_drives} drive(s)",
            "Name the columns of the drive, and set gain to their forces per unit.",
        )
        require(config.gain_error >= 0, "gain_error must not be negative", config.gain_error)
        self.register_buffer("gain", torch.tensor(config.gain).reshape((1, num_drives)))
        force, speed, mass = self._scales(data)
        self.smoothing = 0.01 * speed if config.smoothing is None else config.smoothing
        gain = self.gain if num_drives > 1 else self.gain[0, 0]
        self.vin = VIN(
            FlatPotential(),
            mass=log_normal(*(config.mass or (mass, 1.5))),
            forces=[
                LinearDamping(log_normal(*(config.damping or (0.3 * force / speed, 1.5)))),
                CoulombFriction(
                    log_normal(*(config.friction or (0.3 * force, 1.5))), smoothing=self.smoothing
                ),
                Drive(
                    Normal(gain, config.gain_error * gain.abs()) if config.gain_error else gain,
                    offset=normal(0.0, force if config.offset is None else config.offset),
                    num_channels=num_drives,
                ),
            ],
            integrator=config.integrator,
        )
        self.emission = make_emission(
            config.noise,
            noise_prior(data, config.noise_scale),
            num_channels=data.num_channels,
            correlation_time=correlation_prior(data, config.correlation_time),
        )
        self.discrepancy = make_discrepancy(
            data, config.discrepancy, config.discrepancy_time, coordinates="knots"
        )
        q_scale, v_scale = initial_scales(data, config.initial_scale)
        self.register_buffer("q_scale", q_scale)
        self.register_buffer("v_scale", v_scale)
        self.to(data.values.dtype).to(data.values.device)

    def _scales(self, data: Trajectories) -> tuple[float, float, float]:
        """Return a typical known force, velocity and mass."""
        force = float(self._known_force(data.control().values).square().mean().sqrt().clamp_min(1e-12))
        _, v_scale = state_scales(data)
        (per_force,) = force_regression(data, [lambda s: self._known_force(s.drive)]).tolist()
        return force, float(v_scale[0]), 1 / max(per_force, self._least_response(data))

    def _least_response(self, data: Trajectories) -> float:
        """Return the acceleration per force below which rough estimates do not show the mass."""
        states = local_states(data)
        if not len(states.t):
            return 1e-6
        force = self._known_force(states.drive).square().mean().sqrt().clamp_min(1e-12)
        return max(1e-6, MIN_RESPONSE * float(states.a.square().mean().sqrt() / force))

    def _known_force(self, drive: Tensor | None) -> Tensor:
        """Return the force by drives `(*batch, num_drives)`, shape `(*batch, 1)`."""
        assert drive is not None
        return drive @ self.gain.to(drive).mT

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times, drive and observations of `data`."""
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        force = self.discrepancy(data, trajectories)
        grid = data.grid(self.config.max_step_size)
        path = self.vin(PhaseState(q0, v0), grid, control=data.control(), force=force)
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            self.discrepancy.record(force, data)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        known = f"{self.config.gain[0]:g} u(t)" if len(self.config.gain) == 1 else "g · u(t)"
        drive = "G u(t)" if self.config.gain_error else known
        force = signed_sum(drive, "F_0", "−c v", f"−f tanh(v / {self.smoothing:.2g})", self.discrepancy.term)
        noise = measurement_lines(self.config.noise)
        symbols = {"friction.coefficient": "f"}
        return Equations((f"m d²q/dt² = {force}", *self.discrepancy.equations, INITIAL_LINE, *noise), symbols)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values, to start inference from: of the dynamical sites where the data show a mass."""
        q0, v0 = first_states(data)
        values = {
            "initial_position": q0,
            "initial_velocity": v0,
            "noise_scale": noise_estimate(data),
            **self.discrepancy.initial_values(data),
        }
        if self.config.gain_error:
            values["drive.gain"] = self.gain if self.gain.numel() > 1 else self.gain[0, 0]
        terms = [
            lambda s: self._known_force(s.drive),
            lambda s: -s.v,
            lambda s: -(s.v / self.smoothing).tanh(),
            lambda s: torch.ones_like(s.v),
        ]
        per_force, *rest = force_regression(data, terms).unbind()
        if float(per_force) < self._least_response(data):
            return values
        mass = 1 / per_force
        damping, friction, offset = (mass * x for x in rest)
        floor = 1e-3 * self._known_force(data.control().values).square().mean().sqrt()
        return values | {
            "mass": mass,
            "damping.coefficient": damping.maximum(floor / self.v_scale[0]),
            "friction.coefficient": friction.maximum(floor),
            "drive.offset": offset,
        }
