"""Mechanics behind a video: a VIN in the latent space of a variational autoencoder (paper section 4.2).

    q_0 ~ Normal(0, s_q^2),  v_0 ~ Normal(0, s_v^2)      initial state of each clip
    (q_t, v_t) = VIN_theta(q_0, v_0; t)                  variational integrator with a neural potential
    y_t | q_t ~ Bernoulli(g_phi(q_t))                    every pixel of a frame; the decoder sees q alone
    or Normal(g_phi(q_t), sigma^2)                       of grey frames

=========================  ===========  ============  =========  ================================
site                       symbol       shape         support    prior
=========================  ===========  ============  =========  ================================
initial_position           q_0          (N, D)        real       Normal(0, s_q); s_q is 1 on lines,
                                                                 pi / sqrt(3) on circles
initial_velocity           v_0          (N, D)        real       Normal(0, s_v); s_v is 0.3 a frame
potential.network.*        theta        per layer     real       point estimate
damping.coefficient        c            ()            > 0        none (no damping)
noise_scale                sigma        ()            > 0        LogNormal(log 0.1, 1), grey frames
obs                        y            (N, T, H W)   [0, 1]     observed
=========================  ===========  ============  =========  ================================

The guide is amortised: an encoder reads the first frames of a clip and returns a normal over its initial
state, correlated between position and velocity. With it the evidence lower bound is the paper's equation
(16), its divergence in closed form. With `integrator="so2"` the coordinate is an angle and potential and
decoder see its sine and cosine (VIN-SO(2)); otherwise it lies on a line (VIN-VV, VIN-SV).

Neither the mass nor the unit of a coordinate shows in a picture: the mass is one, and the scale of q is
what the embedding of the frames gives it (see `vinppl.embedding`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require
from vinppl.data import Trajectories
from vinppl.draws import seeded
from vinppl.dynamics import VIN
from vinppl.emissions import LikelihoodName, make_pixel_emission
from vinppl.equations import INITIAL_LINE, Equations, pixel_lines, signed_sum
from vinppl.fit import fit_motion
from vinppl.forces import LinearDamping
from vinppl.manifolds import Manifold
from vinppl.potentials import NeuralPotential
from vinppl.pretraining import (
    embedded_motion,
    pretrain_potential,
    teach_frames,
)
from vinppl.priors import log_normal
from vinppl.state import PhaseState, Trajectory
from vinppl.vision import ClipEncoder, FrameDecoder, NetworkName, sample_times

__all__ = ["PixelVIN", "PixelVINConfig"]


@dataclass(frozen=True)
class PixelVINConfig:
    """Options of the model of videos. Pairs are (median, sd of the logarithm) of log-normal priors.

    Attributes:
        integrator: `so2` (VIN-SO(2)), `velocity_verlet` (VIN-VV) or `stormer_verlet` (VIN-SV).
        angle: whether the coordinate is an angle; `None` says so with `so2` alone.
        likelihood: of a pixel: `bernoulli`, `gaussian`, or `auto`, which takes the first for frames of
            black and white.
        potential_sizes: widths of the hidden layers of the potential; the paper's is one of 1000.
        activation: of the potential.
        network: `mlp` or `conv`, for encoder and decoder.
        hidden_sizes: widths of the layers of the encoder; the paper's are (1000, 1000).
        decoder_sizes: those of the decoder; the paper's are the same.
        num_harmonics: of the position that the decoder sees (see `FrameDecoder`); 0 in the paper.
        num_context: frames that the guide reads; the paper's are 10.
        num_decoded: frames of every window that a training step decodes, drawn at random and weighted up;
            0 decodes all.
        num_taught: steps in which decoder and encoder learn the frames of the starting motion.
        damping: prior of c; `None` for no damping.
        noise_scale: prior of sigma for grey frames.
        initial_scale: (s_q, s_v); `None` takes those above.
        max_step_size: largest step of the integrator in units of time; `None` takes two steps a frame (the
            paper takes one, which on a circle has no solution where that turns by more than a right angle).
        network_seed: of the initial weights.
    """

    integrator: str = "so2"
    angle: bool | None = None
    likelihood: LikelihoodName = "auto"
    potential_sizes: tuple[int, ...] = (32,)
    activation: str = "tanh"
    network: NetworkName = "mlp"
    hidden_sizes: tuple[int, ...] = (256, 256)
    decoder_sizes: tuple[int, ...] = (256,)
    num_harmonics: int = 12
    num_context: int = 10
    num_decoded: int = 0
    num_taught: int = 3000
    damping: tuple[float, float] | None = None
    noise_scale: tuple[float, float] = (0.1, 1.0)
    initial_scale: tuple[float, float] | None = None
    max_step_size: float | None = None
    network_seed: int = 0


class PixelVIN(PyroModule):
    """A VIN behind a video as a Pyro model; see the module docstring for equations and sites.

    Args:
        data: clips; they set the size of a frame, the number of coordinates and the rate of frames.
        config: options.

    Raises:
        DataError: if the data are not frames.
    """

    Config: ClassVar[type] = PixelVINConfig
    default_guide: ClassVar[str] = "amortised"
    default_num_steps: ClassVar[int] = 100
    default_learning_rate: ClassVar[float] = 1e-5  # the start is near the optimum; larger steps lose it

    def __init__(self, data: Trajectories, config: PixelVINConfig = PixelVINConfig()) -> None:
        super().__init__()
        require(config.num_decoded >= 0, "num_decoded must be 0 (all) or more", config.num_decoded)
        self.config = config
        height, width = data.frames.shape[-2:]
        self.image_shape = (height, width)
        angle = config.integrator.startswith("so2") if config.angle is None else config.angle
        self.manifold = Manifold((angle,) * data.dim)
        step = data.median_step
        q_scale, v_scale = config.initial_scale or (math.pi / 3**0.5 if angle else 1.0, 0.3 / step)
        self.velocity_scale = v_scale
        self.max_step_size = 0.5 * step if config.max_step_size is None else config.max_step_size
        self.num_context = config.num_context
        generator = torch.Generator().manual_seed(config.network_seed)
        self.vin = VIN(
            NeuralPotential(
                self.manifold,
                hidden_sizes=config.potential_sizes,
                activation=config.activation,
                energy_scale=v_scale**2,
                generator=generator,
            ),
            forces=[] if config.damping is None else [LinearDamping(log_normal(*config.damping))],
            integrator=config.integrator,
        )
        with seeded(config.network_seed):
            self.decoder = FrameDecoder(
                self.manifold,
                self.image_shape,
                network=config.network,
                hidden_sizes=config.decoder_sizes,
                num_harmonics=config.num_harmonics,
            )
        self.emission = make_pixel_emission(config.likelihood, data.values, log_normal(*config.noise_scale))
        self.register_buffer("q_scale", torch.full((data.dim,), float(q_scale)))
        self.register_buffer("v_scale", torch.full((data.dim,), float(v_scale)))
        self.found: dict[str, Tensor] = {}
        self.to(data.values.dtype).to(data.values.device)
        self.eval()

    def forward(self, data: Trajectories) -> Trajectory:
        """Run the generative program on the times and frames of `data`.

        In training mode it decodes and observes `num_decoded` of the times only, and weighs them up.
        """
        clips = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with clips:
            q0 = pyro.sample("initial_position", Normal(0.0, self.q_scale).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(0.0, self.v_scale).to_event(1))
        path = self.run(PhaseState(q0, v0), data)
        chosen = sample_times(data, self.config.num_decoded if self.training else 0)
        logits = self.logits(path.q[..., chosen, :], path.v[..., chosen, :])
        frames = self.emission(logits, data.times[:, chosen], mask=data.mask[:, chosen])
        with clips:
            self.vin.record(path)
            with poutine.scale(scale=data.num_times / len(chosen)):
                pyro.sample("obs", frames, obs=data.values[:, chosen])
        return path

    def equations(self) -> Equations:
        """Return the equations with these options."""
        law = signed_sum("−∂U_θ/∂q", "" if self.config.damping is None else "−c v")
        networks = "U_θ, g_φ: neural networks with weights θ and φ, learned as point estimates"
        pixels = pixel_lines("q(t)", grey=self.emission.grey is not None)
        return Equations((f"d²q/dt² = {law}", networks, INITIAL_LINE, *pixels), {"noise_scale": "σ"})

    def run(self, initial: PhaseState, data: Trajectories) -> Trajectory:
        """Return the motion from initial states, `(*batch, clip, dim)`, at the times of `data`."""
        return self.vin(initial, data.grid(self.max_step_size))

    def logits(self, q: Tensor, v: Tensor) -> Tensor:
        """Return the logits of frames, `(*batch, height * width)`, in states `(*batch, dim)`."""
        return self.decoder(q)

    def decode(self, q: Tensor) -> Tensor:
        """Return the mean grey levels of frames, `(*batch, height, width)`, at positions `(*batch, dim)`."""
        return self.decoder(q).sigmoid().unflatten(-1, self.image_shape)

    def make_encoder(self, data: Trajectories) -> ClipEncoder:
        """Return the guide's network from the first frames of a clip to its initial state."""
        on_group = self.vin.integrator.chart == "lie_group"
        with seeded(self.config.network_seed + 1):
            encoder = ClipEncoder(
                self.image_shape,
                self.manifold,
                velocity_scale=self.velocity_scale,
                max_velocity=0.8 / self.max_step_size if on_group else math.inf,
                num_frames=self.config.num_context,
                network=self.config.network,
                hidden_sizes=self.config.hidden_sizes,
            )
        return encoder.to(data.values.dtype).to(data.values.device)

    def pretrain(self, data: Trajectories, encoder: ClipEncoder) -> None:
        """Start from the arc length along the curve of frames.

        The potential learns to move as that does, and decoder and encoder learn which frame belongs to
        which state of the motion. Damping and noise of grey levels start from what that leaves; see
        `initial_values`.
        """
        positions, period = embedded_motion(data, self.manifold)
        pretrain_potential(self.vin.potential, positions)
        path, sites = fit_motion(self.vin, positions, max_step_size=self.max_step_size)
        self.found = sites | teach_frames(
            self, encoder, data, path, num_steps=self.config.num_taught, period=period
        )

    def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
        """Return what `pretrain` found of the sites that clips share; nothing before it ran."""
        return dict(self.found)
