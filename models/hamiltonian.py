"""A Hamiltonian neural network on noisy states, as a probabilistic program.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    dq/dt = dH_theta/dp            dp/dt = -dH_theta/dq           p = v, H_theta a neural network
    x_nt = RK4(x_n0, t)
    y_ntc ~ Noise(x_nt, noise_scale_c)                            one per observed sample

==================  ===========  ============  =========  ========================
site                symbol       shape         support    prior (default)
==================  ===========  ============  =========  ========================
initial_position    q0           (N, dim)      real       Normal(0, 2 x rms q)
initial_velocity    v0           (N, dim)      real       Normal(0, 2 x rms v)
network.weight_l    theta        per layer     real       point estimate, or
network.bias_l                                            Normal(0, s / sqrt(fan-in))
noise_scale         sigma        (C,)          > 0        LogNormal(log 0.1 rms, 1.5)
obs                 y            (N, T, C)     real       observed
==================  ===========  ============  =========  ========================

H is conserved as well as the integrator does it, but it need not be kinetic plus potential energy:
dq/dt may differ from the measured velocity. Fitted by `fit_svi` it is trained through its rollouts;
`vinppl.fit.fit_derivatives` trains it as its authors do. Data, initial states, noise and guide are
those of `NoisyStates`.

Reference: Greydanus, Dzamba, Yosinski, Hamiltonian neural networks, NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.baselines import HamiltonianNetwork
from vinppl.data import Trajectories
from vinppl.emissions import NoiseName, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines
from vinppl.estimates import first_states, noise_estimate
from vinppl.manifolds import Manifold
from vinppl.pretraining import pretrain_baseline
from vinppl.priors import correlation_prior, initial_scales, noise_prior, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["HamiltonianStates", "HamiltonianStatesConfig"]


@dataclass(frozen=True)
class HamiltonianStatesConfig:
    """Options of the Hamiltonian network. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        hidden_sizes: widths of the hidden layers of H; the authors' are two of 200.
        activation: activation of H; the authors' is tanh.
        angles: indices of coordinates that are angles; the network then sees their sine and cosine
            (the authors' sees the angle itself: `angles=()`). `None` takes those marked in the data.
        weight_prior_scale: `None` for point estimates of the weights, else the scale of their prior.
        noise: how the measurements scatter.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
        network_seed: seed of the initial weights.
    """

    hidden_sizes: tuple[int, ...] = (200, 200)
    activation: str = "tanh"
    angles: tuple[int, ...] | None = None
    weight_prior_scale: float | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    initial_scale: tuple[float, float] | None = None
    max_step_size: float | None = None
    network_seed: int = 0


class HamiltonianStates(PyroModule):
    """The HNN on noisy states as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets coordinates, channels and, where the options leave them open, the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = HamiltonianStatesConfig
    default_guide: ClassVar[str] = "amortised"

    def __init__(
        self, data: Trajectories, config: HamiltonianStatesConfig = HamiltonianStatesConfig()
    ) -> None:
        super().__init__()
        self.config = config
        marked = {c.coordinate for c in data.channels if c.angle}
        angles = marked if config.angles is None else config.angles
        q_scale, v_scale = state_scales(data)
        self.dynamics = HamiltonianNetwork(
            Manifold(tuple(i in angles for i in range(data.dim))),
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            weight_prior_scale=config.weight_prior_scale,
            position_scale=float(q_scale.square().mean().sqrt()),
            velocity_scale=float(v_scale.square().mean().sqrt()),
            generator=torch.Generator().manual_seed(config.network_seed),
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
        path = self.dynamics(PhaseState(q0, v0), data.grid(self.config.max_step_size))
        noise = self.emission(data.observe(path), data.times, mask=data.mask)
        with trajectories:
            self.dynamics.record(path)
            pyro.sample("obs", noise, obs=data.values)
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        law = ("dq/dt = ∂H_θ/∂p,  dp/dt = −∂H_θ/∂q,  p = v", "H_θ(q, p): neural network with weights θ")
        return Equations((*law, INITIAL_LINE, *measurement_lines(self.config.noise)))

    def pretrain(self, data: Trajectories) -> None:
        """Move the field near the rates of change seen in the data, before any rollout."""
        if self.config.weight_prior_scale is None:
            pretrain_baseline(self.dynamics, data)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of initial states and noise, to start inference from."""
        q0, v0 = first_states(data)
        return {"initial_position": q0, "initial_velocity": v0, "noise_scale": noise_estimate(data)}
