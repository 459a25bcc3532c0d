"""Forecasts of films by the whole posterior: where a motion may be, how it looks, whether it still holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vinppl._checks import require
from vinppl.assimilation import assimilate
from vinppl.frame_scores import FilmArrays
from vinppl.lapses import survival
from vinppl.posterior import dataset_coords
from vinppl.state import PhaseState

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.guides import AmortisedGuide

__all__ = ["FilmForecast", "background_of", "forecast_films"]

FAINTEST = 1e-3
"""Least probability that a pixel of the background is white, or black."""


@dataclass(frozen=True)
class FilmForecast:
    """Forecast of films of black and white frames.

    Attributes:
        model: the Pyro model, whose method `logits` decodes states.
        states: draws of (q, v), `(draw, clip, time, 2 dim)`.
        point: the path from the posterior mean of the initial states, `(clip, time, 2 dim)`; what the paper
            forecasts with.
        holds: probability that the model still holds, `(draw, clip, time)`; see `vinppl.lapses`.
        background: probability of white where it does not, `(pixel,)`.
        effective_sizes: effective sample sizes of the initial states, `(clip,)`.
    """

    model: Any
    states: Tensor
    point: Tensor
    holds: Tensor
    background: Tensor
    effective_sizes: Tensor

    def levels(self, clip: int) -> Tensor:
        """Return the mean frames of a clip under the whole posterior, `(time, pixel)`."""
        return self._draw_levels(clip).mean(0)

    def point_levels(self, clip: int) -> Tensor:
        """Return the frames that the posterior mean's path decodes to, `(time, pixel)`."""
        return self._decoded(self.point[clip]).sigmoid()

    def log_density(self, clip: int, frames: Tensor) -> Tensor:
        """Return the log predictive density of each frame by itself, in nats, `(time,)`.

        Args:
            clip: index of the clip.
            frames: what happened, `(time, pixel)`; NaN counts for nothing.
        """
        each = self._draw_log_density(clip, frames)
        return each.logsumexp(0) - math.log(len(each))

    def point_log_density(self, clip: int, frames: Tensor) -> Tensor:
        """Return the log density of each frame given the posterior mean's path, in nats, `(time,)`."""
        return _log_prob(self._decoded(self.point[clip]), frames)

    def arrays(self, films: Trajectories, *, num_known: int) -> FilmArrays:
        """Return the forecast beside what happened, for `vinppl.frame_scores` and `vinppl.film_plots`.

        Every draw is a mixture of its motion and the background.

        Args:
            films: what happened, at the times of the forecast.
            num_known: first frames that were fitted or read; forecasts begin at the last of them.

        Raises:
            ValueError: for other times, or no known frame.
        """
        same = films.times.shape == self.states.shape[1:3]
        require(same, f"films must have {tuple(self.states.shape[1:3])} (clips, times)", films.times)
        require(1 <= num_known <= films.num_times, "num_known must be within the films", num_known)
        truth = torch.where(films.mask, films.values, math.nan)
        clips, unseen = range(films.num_trajectories), ~films.mask.any(-1)

        def each(part: Callable[[int], Tensor], axis: int) -> NDArray[Any]:
            return torch.stack([part(n) for n in clips], dim=axis).cpu().numpy()

        def densities(part: Callable[[int, Tensor], Tensor], axis: int) -> NDArray[Any]:
            return each(lambda n: part(n, truth[n]).masked_fill(unseen[n], math.nan), axis)

        height, width = films.frames.shape[-2:]
        return FilmArrays(
            levels=each(self._draw_levels, 1),
            levels_at_mean=each(self.point_levels, 0),
            log_likelihood=densities(self._draw_log_density, 1),
            log_likelihood_at_mean=densities(self.point_log_density, 0),
            truth=truth.cpu().numpy(),
            times=films.times.double().cpu().numpy(),
            in_sample=np.tile(np.arange(films.num_times) < num_known, (films.num_trajectories, 1)),
            forecast_start=films.times[:, num_known - 1].double().cpu().numpy(),
            states=self.states.cpu().numpy(),
            states_at_mean=self.point.cpu().numpy(),
            state_names=tuple(dataset_coords(films)["state"]),
            clips=tuple(films.names),
            image_shape=(height, width),
            time_unit=films.time_unit or "",
        )

    def _draw_levels(self, clip: int) -> Tensor:
        """Return the mean frames of a clip under each draw, `(draw, time, pixel)`."""
        holds = self.holds[:, clip].unsqueeze(-1)
        return holds * self._logits(clip).sigmoid() + (1 - holds) * self.background

    def _draw_log_density(self, clip: int, frames: Tensor) -> Tensor:
        """Return the log density of each frame under each draw, `(draw, time)`."""
        holds = self.holds[:, clip]
        explained = holds.log() + _log_prob(self._logits(clip), frames)
        lapsed = torch.log1p(-holds.clamp_max(1 - 1e-7)) + _log_prob(self.background.logit(), frames)
        return torch.logaddexp(explained, lapsed)

    def _logits(self, clip: int) -> Tensor:
        return self._decoded(self.states[:, clip])

    def _decoded(self, states: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.logits(*states.chunk(2, dim=-1)).nan_to_num()


def forecast_films(
    model: Any,
    guide: AmortisedGuide,
    films: Trajectories,
    *,
    background: Tensor,
    num_explained: float,
    num_fitted: int = 0,
    num_context: int = 10,
    num_draws: int = 100,
    num_proposals: int = 400,
    seed: int = 0,
) -> FilmForecast:
    """Infer the initial states of films from their first frames and run the model over all their times.

    The guide's reading of those frames is where importance sampling begins (see `vinppl.assimilate`), so that
    what the encoder gets wrong does not stay.

    Args:
        model: a fitted model of black and white films, with initial states as its only latent sites.
        guide: its guide.
        films: clips whose first frames are known; of the others only the times are looked at.
        background: probability of white for each pixel where the model does not hold, `(pixel,)`.
        num_explained: frames that the model was fitted to.
        num_fitted: the first frames of these very films that are among them, where the model cannot lapse; 0
            for new films.
        num_context: first frames to infer from.
        num_draws: posterior draws of each clip.
        num_proposals: see `assimilate`.
        seed: of everything random.

    Raises:
        ValueError: for fewer times than `num_context`.
    """
    require(1 <= num_context <= films.num_times, "num_context must be within the films", num_context)
    begin = films.first(num_context)
    found = assimilate(
        model, {}, begin, num_draws=num_draws, num_proposals=num_proposals, seed=seed, guide=guide
    )
    # In a handler a step without a solution makes a path NaN from there on; the model has lapsed then.
    with torch.no_grad(), poutine.block():
        initial = torch.cat([found.states, found.states.mean(0, keepdim=True)])
        path = model.run(PhaseState(*initial.chunk(2, dim=-1)), films)
        paths = torch.cat([path.q, path.v], dim=-1)
        states, point = paths[:-1], paths[-1]
        logits = model.logits(*states[:, :, :num_context].chunk(2, dim=-1))
    ratio = _log_prob(logits, begin.values) - _log_prob(background.logit(), begin.values)
    holds = survival(ratio, num_times=films.num_times, num_explained=num_explained, num_fitted=num_fitted)
    holds = torch.where(states.isfinite().all(-1), holds, 0.0)
    return FilmForecast(model, states, point, holds, background, found.effective_sizes)


def background_of(films: Trajectories) -> Tensor:
    """Return the share of frames in which each pixel is white, `(pixel,)`, never quite 0 or 1."""
    seen = films.values[films.mask.all(-1)]
    return seen.mean(0).clamp(FAINTEST, 1 - FAINTEST)


def _log_prob(logits: Tensor, frames: Tensor) -> Tensor:
    """Return the log probability of the pixels of frames `(*batch, time, pixel)` that are not NaN."""
    logits, target = torch.broadcast_tensors(logits, frames)
    each = -binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
    return torch.where(target.isnan(), 0.0, each).sum(-1)
