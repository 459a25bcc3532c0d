"""Networks without mechanics behind a video: the rivals of `PixelVIN` (paper section 4.2).

    q_0 ~ Normal(0, 1),  v_0 ~ Normal(0, s_v^2)          initial latent state of each clip
    x_{t+1} = x_t + h f_theta(x_t), x = (q, v)           ResRNN (`residual`), or
    x_{t+1} = f_theta(x_t)                               DVAE (`feed_forward`)
    y_t | x_t ~ Bernoulli(g_phi(x_t))                    every pixel of a frame; the decoder sees all of x
    or Normal(g_phi(x_t), sigma^2)                       of grey frames

=========================  ===========  ============  =========  ================================
site                       symbol       shape         support    prior
=========================  ===========  ============  =========  ================================
initial_position           q_0          (N, D)        real       Normal(0, 1)
initial_velocity           v_0          (N, D)        real       Normal(0, s_v); s_v is 0.3 a frame
dynamics.network.*         theta        per layer     real       point estimate
noise_scale                sigma        ()            > 0        LogNormal(log 0.1, 1), grey frames
obs                        y            (N, T, H W)   [0, 1]     observed
=========================  ===========  ============  =========  ================================

The halves of the latent state are called position and velocity for the encoder's sake, which begins with
differences of positions; nothing in the dynamics makes them so. Guide and training are those of `PixelVIN`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require_choice
from vinppl.baselines import AbstractBaseline, FreeField, FreeMap
from vinppl.data import Trajectories
from vinppl.draws import seeded
from vinppl.emissions import LikelihoodName, make_pixel_emission
from vinppl.equations import INITIAL_LINE, Equations, pixel_lines
from vinppl.fit import fit_motion
from vinppl.manifolds import Euclidean
from vinppl.pretraining import (
    embedded_motion,
    pretrain_baseline,
    teach_frames,
)
from vinppl.priors import log_normal
from vinppl.state import PhaseState, Trajectory
from vinppl.vision import ClipEncoder, FrameDecoder, NetworkName, sample_times

__all__ = ["PixelFree", "PixelFreeConfig"]


@dataclass(frozen=True)
class PixelFreeConfig:
    """Options; those that `PixelVINConfig` has too mean the same.

    Attributes:
        dynamics: `residual` (ResRNN) or `feed_forward` (DVAE).
        dynamics_sizes: widths of the hidden layers of the dynamics.
        activation: of the dynamics.
        likelihood: `bernoulli`, `gaussian` or `auto`.
        network: `mlp` or `conv`.
        hidden_sizes: widths of the layers of the encoder.
        decoder_sizes: those of the decoder.
        num_harmonics: of the state that the decoder sees.
        num_context: frames that the guide reads.
        num_decoded: frames of every window that a training step decodes; 0 decodes all.
        num_taught: steps in which decoder and encoder learn the frames of the starting motion.
        noise_scale: prior of sigma for grey frames.
        network_seed: of the initial weights.
    """

    dynamics: Literal["residual", "feed_forward"] = "residual"
    dynamics_sizes: tuple[int, ...] = (1000,)
    activation: str = "tanh"
    likelihood: LikelihoodName = "auto"
    network: NetworkName = "mlp"
    hidden_sizes: tuple[int, ...] = (256, 256)
    decoder_sizes: tuple[int, ...] = (256,)
    num_harmonics: int = 12
    num_context: int = 10
    num_decoded: int = 0
    num_taught: int = 3000
    noise_scale: tuple[float, float] = (0.1, 1.0)
    network_seed: int = 0


class PixelFree(PyroModule):
    """A free network behind a video; see the module docstring for equations and sites.

    Args:
        data: clips; they set the size of a frame, the number of coordinates and the rate of frames.
        config: options.

    Raises:
        DataError: if the data are not frames.
    """

    Config: ClassVar[type] = PixelFreeConfig
    default_guide: ClassVar[str] = "amortised"
    default_num_steps: ClassVar[int] = 100
    default_learning_rate: ClassVar[float] = 1e-5  # the start is near the optimum; larger steps lose it

    def __init__(self, data: Trajectories, config: PixelFreeConfig = PixelFreeConfig()) -> None:
        super().__init__()
        require_choice("dynamics", config.dynamics, ("residual", "feed_forward"))
        self.config = config
        self.num_context = config.num_context
        height, width = data.frames.shape[-2:]
        self.image_shape = (height, width)
        self.manifold = Euclidean(data.dim)
        step = data.median_step
        self.velocity_scale = 0.3 / step
        self.dynamics = self._law(step)
        with seeded(config.network_seed):
            self.decoder = FrameDecoder(
                Euclidean(2 * data.dim),
                self.image_shape,
                network=config.network,
                hidden_sizes=config.decoder_sizes,
                num_harmonics=config.num_harmonics,
            )
        self.emission = make_pixel_emission(config.likelihood, data.values, log_normal(*config.noise_scale))
        self.register_buffer("q_scale", torch.ones(data.dim))
        self.register_buffer("v_scale", torch.full((data.dim,), self.velocity_scale))
        self.to(data.values.dtype).to(data.values.device)
        self.found: dict[str, Tensor] = {}
        self.eval()

    def _law(self, step: float) -> AbstractBaseline:
        generator = torch.Generator().manual_seed(self.config.network_seed)
        sizes, activation = self.config.dynamics_sizes, self.config.activation
        scale = self.velocity_scale
        if self.config.dynamics == "residual":
            return FreeField(
                self.manifold,
                hidden_sizes=sizes,
                activation=activation,
                velocity_scale=scale,
                generator=generator,
            )
        return FreeMap(
            step,
            self.manifold,
            hidden_sizes=sizes,
            activation=activation,
            velocity_scale=scale,
            generator=generator,
        )

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and frames of `data`, as `PixelVIN` does."""
        clips = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with clips:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.run(PhaseState(q0, v0), data)
        chosen = sample_times(data, self.config.num_decoded if self.training else 0)
        logits = self.logits(path.q[..., chosen, :], path.v[..., chosen, :])
        frames = self.emission(logits, data.times[:, chosen], mask=data.mask[:, chosen])
        with clips:
            self.dynamics.record(path)
            with poutine.scale(scale=data.num_times / len(chosen)):
                pyro.sample("obs", frames, obs=data.values[:, chosen])
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        step = "x(t) + h f_θ(x(t))" if self.config.dynamics == "residual" else "f_θ(x(t))"
        networks = "f_θ, g_φ: neural networks with weights θ and φ, learned as point estimates; x = (q, v)"
        pixels = pixel_lines("x(t)", grey=self.emission.grey is not None)
        return Equations((f"x(t + h) = {step}", networks, INITIAL_LINE, *pixels), {"noise_scale": "σ"})

    def run(self, initial: PhaseState, data: Trajectories) -> Trajectory:
        """Return the motion from initial states, `(*batch, clip, dim)`, at the times of `data`."""
        return self.dynamics(initial, data.grid())

    def logits(self, q: Tensor, v: Tensor) -> Tensor:
        """Return the logits of frames, `(*batch, height * width)`, in states `(*batch, dim)`."""
        return self.decoder(torch.cat([q, v / self.velocity_scale], dim=-1))

    def decode(self, q: Tensor, v: Tensor) -> Tensor:
        """Return the mean grey levels of frames, `(*batch, height, width)`, in states `(*batch, dim)`."""
        return self.logits(q, v).sigmoid().unflatten(-1, self.image_shape)

    def make_encoder(self, data: Trajectories) -> ClipEncoder:
        """Return the guide's network from the first frames of a clip to its initial state."""
        with seeded(self.config.network_seed + 1):
            encoder = ClipEncoder(
                self.image_shape,
                self.manifold,
                velocity_scale=self.velocity_scale,
                num_frames=self.config.num_context,
                network=self.config.network,
                hidden_sizes=self.config.hidden_sizes,
            )
        return encoder.to(data.values.dtype).to(data.values.device)

    def pretrain(self, data: Trajectories, encoder: ClipEncoder) -> None:
        """Start from the arc length along the curve of frames, as `PixelVIN` does."""
        positions, period = embedded_motion(data, self.manifold)
        pretrain_baseline(self.dynamics, positions)
        path, sites = fit_motion(self.dynamics, positions)
        self.found = sites | teach_frames(
            self, encoder, data, path, num_steps=self.config.num_taught, period=period
        )

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return what `pretrain` found of the sites that clips share; nothing before it ran."""
        return dict(self.found)
