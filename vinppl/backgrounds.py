"""What films look like where no motion explains them: the mean frame, and the scatter around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["background_of", "background_scatter", "frame_log_density"]

FAINTEST = 1e-3
"""Least probability that a pixel of the background is white, or black."""

LEAST_SCATTER = 1e-2
"""Least standard deviation of a grey pixel of the background; compressed films never hold it quite still."""


def background_of(films: Trajectories) -> Tensor:
    """Return the mean level of each pixel, `(pixel,)`, never quite 0 or 1; the share of white, if binary."""
    seen = films.values[films.mask.all(-1)]
    return seen.mean(0).clamp(FAINTEST, 1 - FAINTEST)


def background_scatter(films: Trajectories) -> Tensor:
    """Return the standard deviation of each pixel's grey level over all frames, `(pixel,)`, never quite 0."""
    seen = films.values[films.mask.all(-1)]
    return seen.std(0, correction=0).clamp_min(LEAST_SCATTER)


def frame_log_density(logits: Tensor, frames: Tensor, noise: Tensor | None) -> Tensor:
    """Return the log probability, or density, of the pixels of frames that are not NaN, in nats.

    Args:
        logits: of white, or of the mean grey level, broadcastable with `frames`.
        frames: `(*batch, time, pixel)`.
        noise: standard deviation of grey levels, broadcastable with them; `None` for black and white.

    Returns:
        Shape `(*batch, time)`.
    """
    logits, target = torch.broadcast_tensors(logits, frames)
    if noise is not None:
        grey = Normal(logits.sigmoid(), noise, validate_args=False).log_prob(target.nan_to_num())
        return torch.where(target.isnan(), 0.0, grey).sum(-1)
    each = -binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
    return torch.where(target.isnan(), 0.0, each).sum(-1)
