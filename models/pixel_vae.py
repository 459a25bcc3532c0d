"""Pictures without dynamics: a variational autoencoder of single frames (paper figures 5 and 6).

    q_t ~ Normal(0, 1)                                   VAE: a position on lines for each frame, or
    q_t ~ Uniform(-pi, pi)                               LG-VAE (`circle`): an angle for each frame
    y_t | q_t ~ Bernoulli(g_phi(q_t))                    every pixel; of an angle the decoder sees (sin, cos)
    or Normal(g_phi(q_t), sigma^2)                       of grey frames

=========================  ===========  ============  =========  ================================
site                       symbol       shape         support    prior
=========================  ===========  ============  =========  ================================
position                   q            (N, T, D)     real       Normal(0, 1), or on circles
                                                                 Uniform(-pi, pi)
noise_scale                sigma        ()            > 0        LogNormal(log 0.1, 1), grey frames
obs                        y            (N, T, H W)   [0, 1]     observed
=========================  ===========  ============  =========  ================================

The guide is amortised frame by frame: q_t is normal with the mean and standard deviation that an encoder
reads off y_t. On circles the mean is the angle of two outputs and the normal is wound round the circle;
its divergence from the uniform prior is a convergent series (`vinppl.distributions`), so that both
bounds have their divergence without sampling. LG-VAE is Falorsi et al., arXiv 1807.04689 (2018).

Frames share nothing but the networks, so that there is nothing to forecast: the model shows what a latent
space looks like without mechanics. The positions of other clips are draws of the fitted guide,
`result.sample(.., data=clips)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Normal, Uniform
from pyro.nn import PyroModule
from torch import Tensor

from vinppl._checks import require
from vinppl.data import Trajectories
from vinppl.draws import seeded
from vinppl.emissions import LikelihoodName, make_pixel_emission
from vinppl.equations import Equations, pixel_lines
from vinppl.manifolds import Manifold
from vinppl.priors import log_normal
from vinppl.vision import FrameDecoder, NetworkName, PositionEncoder

__all__ = ["PixelVAE", "PixelVAEConfig"]


@dataclass(frozen=True)
class PixelVAEConfig:
    """Options; those that `PixelVINConfig` has too mean the same.

    Attributes:
        circle: whether positions are angles (LG-VAE) or lie on lines (VAE).
        dim: coordinates of a frame; `None` takes as many as the data say that the system has.
        likelihood: `bernoulli`, `gaussian` or `auto`.
        network: `mlp` or `conv`.
        hidden_sizes: widths of the layers of the encoder.
        decoder_sizes: those of the decoder; two, because it has no harmonics.
        num_harmonics: of the position that the decoder sees, none as in the papers: it sees the plain
            coordinate, or sine and cosine.
        noise_scale: prior of sigma for grey frames.
        network_seed: of the initial weights.
    """

    circle: bool = False
    dim: int | None = None
    likelihood: LikelihoodName = "auto"
    network: NetworkName = "mlp"
    hidden_sizes: tuple[int, ...] = (256, 256)
    decoder_sizes: tuple[int, ...] = (256, 256)
    num_harmonics: int = 0
    noise_scale: tuple[float, float] = (0.1, 1.0)
    network_seed: int = 0


class PixelVAE(PyroModule):
    """A variational autoencoder of frames as a Pyro model; see the module docstring.

    Args:
        data: clips; they set the size of a frame and the number of coordinates.
        config: options.

    Raises:
        DataError: if the data are not frames.
    """

    Config: ClassVar[type] = PixelVAEConfig
    default_guide: ClassVar[str] = "amortised"
    num_context: ClassVar[int] = 0  # the guide reads every frame

    def __init__(self, data: Trajectories, config: PixelVAEConfig = PixelVAEConfig()) -> None:
        super().__init__()
        dim = data.dim if config.dim is None else config.dim
        require(dim >= 1, "dim must be at least 1", dim)
        self.config = config
        height, width = data.frames.shape[-2:]
        self.image_shape = (height, width)
        self.manifold = Manifold((config.circle,) * dim)
        with seeded(config.network_seed):
            self.decoder = FrameDecoder(
                self.manifold,
                self.image_shape,
                network=config.network,
                hidden_sizes=config.decoder_sizes,
                num_harmonics=config.num_harmonics,
            )
        self.emission = make_pixel_emission(config.likelihood, data.values, log_normal(*config.noise_scale))
        self.register_buffer("unit", torch.ones(dim))
        self.to(data.values.dtype).to(data.values.device)
        self.eval()

    def forward(self, data: Trajectories) -> Tensor:
        """Run the generative program on the frames of `data`; return positions `(*batch, time, dim)`."""
        clips = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        unit = self.unit.expand(data.num_times, -1)
        prior = Uniform(-math.pi * unit, math.pi * unit) if self.config.circle else Normal(0.0 * unit, unit)
        with clips:
            q = pyro.sample("position", prior.to_event(2))
        frames = self.emission(self.decoder(q), data.times, mask=data.mask)
        with clips:
            pyro.sample("obs", frames, obs=data.values)
        return q

    def equations(self) -> Equations:
        """Return the equations with these options."""
        networks = "g_φ: neural network with weights φ, learned as point estimates; no law joins the frames"
        pixels = pixel_lines("q_t", grey=self.emission.grey is not None)
        return Equations((networks, *pixels), {"position": "q_t", "noise_scale": "σ"})

    def decode(self, q: Tensor) -> Tensor:
        """Return the mean grey levels of frames, `(*batch, height, width)`, at positions `(*batch, dim)`."""
        return self.decoder(q).sigmoid().unflatten(-1, self.image_shape)

    def make_encoder(self, data: Trajectories) -> PositionEncoder:
        """Return the guide's network from a frame to its position."""
        with seeded(self.config.network_seed + 1):
            encoder = PositionEncoder(
                self.image_shape,
                self.manifold,
                network=self.config.network,
                hidden_sizes=self.config.hidden_sizes,
            )
        return encoder.to(data.values.dtype).to(data.values.device)

    def pretrain(self, data: Trajectories, encoder: PositionEncoder) -> None:
        """Start from the mean frame: the decoder shows it wherever a frame lies."""
        seen = data.mask.sum((0, 1)).clamp_min(1)
        mean = ((data.values * data.mask).sum((0, 1)) / seen).clamp(0.01, 0.99).logit()
        last: Any = self.decoder.layers[-1 if self.config.network == "mlp" else -2]
        bias: Tensor = last.bias
        with torch.no_grad():
            bias.copy_(mean if bias.shape == mean.shape else mean.mean())
