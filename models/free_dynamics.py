"""Networks without mechanics on noisy states: the rivals that paper section 4.1 compares with.

    q0_n ~ Normal(0, s_q)          v0_n ~ Normal(0, s_v)          one per trajectory n
    x_n0 = (q0_n, v0_n)                                           one of three laws:
    x_n(t+1) = g_theta(x_nt)                                      `feed_forward`, a network
    x_n(t+1) = x_nt + h f_theta(x_nt)                             `residual`, the paper's ResRNN
    dx_n/dt = f_theta(x_n)                                        `ode`, a neural ODE by RK4
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

Nothing is conserved. Data, initial states, noise and guide are those of `NoisyStates`, so that what
differs is the law of motion. The feed-forward network needs equal steps; the others take any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require_choice
from vinppl.baselines import AbstractBaseline, FreeField, FreeMap
from vinppl.data import Trajectories
from vinppl.emissions import NoiseName, make_emission
from vinppl.equations import INITIAL_LINE, Equations, measurement_lines
from vinppl.estimates import first_states, noise_estimate
from vinppl.manifolds import Manifold
from vinppl.pretraining import pretrain_baseline
from vinppl.priors import correlation_prior, initial_scales, noise_prior, state_scales
from vinppl.state import PhaseState, Trajectory

__all__ = ["FreeDynamics", "FreeDynamicsConfig"]

HIDDEN_SIZES = {"feed_forward": (1000,), "residual": (1000,), "ode": (200, 200)}
"""Feed-forward and residual networks have the size of the paper's potential (its section 4); the field
that is integrated is that of the baseline by the authors of Hamiltonian neural networks."""

INTEGRATORS = {"residual": "euler", "ode": "rk4"}

LAWS = {
    "feed_forward": ("g", "x(t + h) = g_θ(x(t))"),
    "residual": ("f", "x(t + h) = x(t) + h f_θ(x(t))"),
    "ode": ("f", "dx/dt = f_θ(x)"),
}
"""Name of the network and law of motion, as text."""


@dataclass(frozen=True)
class FreeDynamicsConfig:
    """Options of networks without mechanics. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        dynamics: `feed_forward`, `residual` or `ode`; see the module docstring.
        hidden_sizes: widths of the hidden layers. `None` takes one layer of 1000 units for
            `feed_forward` and `residual`, which is the size of the paper's potential, and two of 200 for
            `ode`, as in the baseline of the authors of Hamiltonian neural networks.
        activation: activation of the network; tanh in both papers.
        angles: indices of coordinates that are angles; the network then sees their sine and cosine.
            `None` takes those marked in the data.
        weight_prior_scale: `None` for point estimates of the weights, else the scale of their prior.
        noise: how the measurements scatter.
        noise_scale: prior of the noise scale of every channel; `None` sets it by the data.
        correlation_time: prior of the memory of `ar1` noise; `None` sets it by the data.
        initial_scale: sds of the priors of initial position and velocity; `None` sets them by the data.
        max_step_size: longest integration step, in units of time; `None` steps from sample to sample.
        network_seed: seed of the initial weights.
    """

    dynamics: Literal["feed_forward", "residual", "ode"] = "residual"
    hidden_sizes: tuple[int, ...] | None = None
    activation: str = "tanh"
    angles: tuple[int, ...] | None = None
    weight_prior_scale: float | None = None
    noise: NoiseName = "gaussian"
    noise_scale: tuple[float, float] | None = None
    correlation_time: tuple[float, float] | None = None
    initial_scale: tuple[float, float] | None = None
    max_step_size: float | None = None
    network_seed: int = 0


class FreeDynamics(PyroModule):
    """A network without mechanics as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: sets coordinates, channels, the step of a feed-forward network and, where the options
            leave them open, the scales of priors.
        config: options.
    """

    Config: ClassVar[type] = FreeDynamicsConfig
    default_guide: ClassVar[str] = "amortised"

    def __init__(self, data: Trajectories, config: FreeDynamicsConfig = FreeDynamicsConfig()) -> None:
        super().__init__()
        require_choice("dynamics", config.dynamics, tuple(HIDDEN_SIZES))
        self.config = config
        self.dynamics = self._law(data)
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

    def _law(self, data: Trajectories) -> AbstractBaseline:
        config = self.config
        marked = {c.coordinate for c in data.channels if c.angle}
        angles = marked if config.angles is None else config.angles
        manifold = Manifold(tuple(i in angles for i in range(data.dim)))
        q_scale, v_scale = state_scales(data)
        hidden_sizes = config.hidden_sizes
        options: dict[str, Any] = {
            "hidden_sizes": HIDDEN_SIZES[config.dynamics] if hidden_sizes is None else hidden_sizes,
            "activation": config.activation,
            "weight_prior_scale": config.weight_prior_scale,
            "position_scale": float(q_scale.square().mean().sqrt()),
            "velocity_scale": float(v_scale.square().mean().sqrt()),
            "generator": torch.Generator().manual_seed(config.network_seed),
        }
        if config.dynamics in INTEGRATORS:
            return FreeField(manifold, integrator=INTEGRATORS[config.dynamics], **options)
        steps = data.grid(config.max_step_size).step_sizes
        return FreeMap(float(steps[steps > 0].median()), manifold, **options)

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
        law = LAWS[self.config.dynamics]
        network = f"{law[0]}_θ: neural network with weights θ; x = (q, v)"
        return Equations((law[1], network, INITIAL_LINE, *measurement_lines(self.config.noise)))

    def pretrain(self, data: Trajectories) -> None:
        """Move the network near the rates of change seen in the data, before any rollout."""
        if self.config.weight_prior_scale is None:
            pretrain_baseline(self.dynamics, data)

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return rough values of initial states and noise, to start inference from."""
        q0, v0 = first_states(data)
        return {"initial_position": q0, "initial_velocity": v0, "noise_scale": noise_estimate(data)}
