"""A variational integrator network on noisy states: paper section 3.1 as a probabilistic program.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    M d2q/dt2 = -dU_theta/dq - c v                                U_theta a neural network
    x_nt = VIN_theta(q0_n, v0_n, t)                               VIN-SV, VIN-VV or VIN-SO(2)
    y_ntc ~ Noise(x_nt, noise_scale_c)                            one per observed sample

==========================  ===========  ============  =========  ========================
site                        symbol       shape         support    prior (default)
==========================  ===========  ============  =========  ========================
initial_position            q0           (N, dim)      real       Normal(0, 2 x rms q)
initial_velocity            v0           (N, dim)      real       Normal(0, 2 x rms v)
potential.network.weight_l  theta        per layer     real       point estimate, or
potential.network.bias_l                                          Normal(0, s / sqrt(fan-in))
potential.network.output    theta        (K,)          real       SphericalStudentT(2, s)
mass                        M            ()            > 0        fixed at 1
damping.coefficient         c            ()            > 0        none (no damping)
velocity_gain               -            ()            > 0        none (gain 1)
noise_scale                 sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                         y            (N, T, C)     real       observed
==========================  ===========  ============  =========  ========================

In SVI the initial states are amortised: the guide's encoder reads the whole window. With weights as
point estimates the forecast bands carry the uncertainty of initial states and noise, not of the
potential. Two options add it: `potential="random_features"`, a network whose `output` layer alone is
latent (NUTS samples it in seconds; the bands are then calibrated), and `weight_prior_scale`, which
makes every weight latent. From a motion alone only U/M is defined, so the mass is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import NoiseName, VelocityGain, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines, signed_sum
from vinppl.estimates import first_states, noise_estimate
from vinppl.forces import LinearDamping
from vinppl.manifolds import Manifold
from vinppl.nn import RandomFeatures
from vinppl.potentials import NeuralPotential
from vinppl.pretraining import pretrain_potential, regress_weights
from vinppl.priors import correlation_prior, initial_scales, log_normal, noise_prior, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["NoisyStates", "NoisyStatesConfig"]


REACH = 16 / 3
"""Unit of the length scale on a line, in root mean squares. The prior's amplitude follows from it: the
curvature of a squared-exponential process of length l and amplitude A has the scale sqrt(3) A / l^2, and
that of the potential is about v_rms^2 / q_rms^2 in any oscillation, which is one in the network's units."""


@dataclass(frozen=True)
class NoisyStatesConfig:
    """Options of the neural model. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        integrator: `velocity_verlet` (VIN-VV), `stormer_verlet` (VIN-SV), `so2` (VIN-SO(2)) or another.
        angles: indices of coordinates that are angles; the network then sees their sine and cosine.
            `None` takes every coordinate with `so2` and those marked in the data otherwise.
        potential: `network`, trained as a whole, or `random_features`, a layer of fixed sine units whose
            output weights are latent (see `vinppl.nn.RandomFeatures`).
        num_features: units of `random_features`.
        length_scale: of `random_features`: distance over which the potential varies, in 16/3 times the
            root mean square of a coordinate (so that it is smooth where the data are, and goes on as it
            left them), or in radii of the circle.
        hidden_sizes: widths of the hidden layers of the potential.
        activation: activation of the potential. The paper's is tanh; softplus, whose potential grows
            linearly beyond the data, forecasts better from little data.
        weight_prior_scale: `None` for point estimates of the weights, else the scale of their prior.
        mass: prior of M; `None` fixes it at one.
        damping: prior of c; `None` for no damping.
        noise: how the measurements scatter.
        velocity_gain: sd of the logarithm of the factor by which measured velocities are off, around
            one; `None` trusts them. For velocities that were differentiated and smoothed, 0.1 or so.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
        network_seed: seed of the initial weights.
    """

    integrator: str = "velocity_verlet"
    angles: tuple[int, ...] | None = None
    potential: Literal["network", "random_features"] = "network"
    num_features: int = 32
    length_scale: float = 1.5
    hidden_sizes: tuple[int, ...] = (128,)
    activation: str = "softplus"
    weight_prior_scale: float | None = None
    mass: tuple[float, float] | None = None
    damping: tuple[float, float] | None = None
    noise: NoiseName = "gaussian"
    velocity_gain: float | None = None
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    initial_scale: tuple[float, float] | None = None
    max_step_size: float | None = None
    network_seed: int = 0


class NoisyStates(PyroModule):
    """The VIN on noisy states as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets coordinates, channels and, where the options leave them open, the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = NoisyStatesConfig
    default_guide: ClassVar[str] = "amortised"

    def __init__(self, data: Trajectories, config: NoisyStatesConfig = NoisyStatesConfig()) -> None:
        super().__init__()
        self.config = config
        self.vin = VIN(
            self._potential(data),
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
        self.sensor = VelocityGain(
            None if config.velocity_gain is None else log_normal(1.0, config.velocity_gain)
        )
        q_scale, v_scale = initial_scales(data, config.initial_scale)
        self.register_buffer("q_scale", q_scale)
        self.register_buffer("v_scale", v_scale)
        self.to(data.values.dtype).to(data.values.device)

    def _potential(self, data: Trajectories) -> NeuralPotential:
        config, manifold = self.config, self._manifold(data)
        require_choice("potential", config.potential, ("network", "random_features"))
        if config.potential == "random_features":
            require(
                config.weight_prior_scale is None,
                "weight_prior_scale must be None with random features, whose weights have their own prior",
                config.weight_prior_scale,
            )
            q_scale, v_scale = state_scales(data)
            reach = 1.0 if all(manifold.periodic) else REACH
            network = RandomFeatures(
                manifold.num_features,
                config.num_features,
                length_scale=config.length_scale,
                amplitude=(reach * config.length_scale) ** 2 / 3**0.5,
                generator=torch.Generator().manual_seed(config.network_seed),
            )
            return NeuralPotential(
                manifold,
                network=network,
                input_scale=reach * float(q_scale.mean()),
                energy_scale=float(v_scale.square().mean()),
            )
        return self._network_potential(data, config.weight_prior_scale)

    def _network_potential(self, data: Trajectories, weight_prior_scale: float | None) -> NeuralPotential:
        q_scale, v_scale = state_scales(data)
        return NeuralPotential(
            self._manifold(data),
            hidden_sizes=self.config.hidden_sizes,
            activation=self.config.activation,
            weight_prior_scale=weight_prior_scale,
            input_scale=float(q_scale.mean()),
            energy_scale=float(v_scale.square().mean()),
            generator=torch.Generator().manual_seed(self.config.network_seed),
        )

    def _manifold(self, data: Trajectories) -> Manifold:
        angles = self.config.angles
        if angles is None:
            marked = {c.coordinate for c in data.channels if c.angle}
            all_angles = self.config.integrator.startswith("so2") and not marked
            angles = tuple(range(data.dim)) if all_angles else tuple(sorted(marked))
        return Manifold(tuple(i in angles for i in range(data.dim)))

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and observations of `data`."""
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.vin(PhaseState(q0, v0), data.grid(self.config.max_step_size))
        loc = self.sensor(data.observe(path), data.velocity_channels)
        noise = self.emission(loc, data.times, mask=data.mask)
        with trajectories:
            self.vin.record(path)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        config = self.config
        mass = "" if config.mass is None else "m "
        force = signed_sum("−∂U_θ/∂q", "" if config.damping is None else "−c v")
        kind = "random features" if config.potential == "random_features" else "neural network"
        noise = measurement_lines(config.noise, gain=config.velocity_gain is not None)
        return Equations((f"{mass}d²q/dt² = {force}", f"U_θ(q): {kind} with weights θ", INITIAL_LINE, *noise))

    def pretrain(self, data: Trajectories) -> None:
        """Move the potential near the accelerations seen in the data, before any rollout."""
        if self.config.weight_prior_scale is None and self.config.potential == "network":
            pretrain_potential(self.vin.potential, data)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of initial states, noise and latent weights, to start inference from."""
        q0, v0 = first_states(data)
        values = {"initial_position": q0, "initial_velocity": v0, "noise_scale": noise_estimate(data)}
        potential = self.vin.potential
        if isinstance(potential, NeuralPotential) and isinstance(potential.network, RandomFeatures):
            values["potential.network.output"] = regress_weights(potential, data)
        elif self.config.weight_prior_scale is not None:
            taught = self._network_potential(data, weight_prior_scale=None)
            pretrain_potential(taught, data)
            values |= {f"potential.{name}": value.detach() for name, value in taught.named_parameters()}
        return values
