"""Forecasts of films by the whole posterior: where a motion may be, how it looks, whether it still holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from vinppl._checks import require
from vinppl.assimilation import assimilate
from vinppl.backgrounds import background_of, background_scatter, frame_log_density
from vinppl.frame_scores import FilmArrays
from vinppl.lapses import survival
from vinppl.posterior import dataset_coords
from vinppl.state import PhaseState

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.guides import AmortisedGuide

__all__ = ["FilmForecast", "forecast_films"]


@dataclass(frozen=True)
class FilmForecast:
    """Forecast of films.

    Attributes:
        model: the Pyro model, whose method `logits` decodes states.
        states: draws of (q, v), `(draw, clip, time, 2 dim)`.
        point: the path from the posterior mean of the initial states, `(clip, time, 2 dim)`; what the paper
            forecasts with.
        holds: probability that the model still holds, `(draw, clip, time)`; see `vinppl.lapses`.
        background: mean level where it does not, of black and white frames the probability of white,
            `(pixel,)`.
        effective_sizes: effective sample sizes of the initial states, `(clip,)`.
        noise: standard deviation of grey levels around what is decoded, `(draw, clip)`; `None` for black and
            white frames.
        scatter: standard deviation of grey levels around the background, `(pixel,)`.
    """

    model: Any
    states: Tensor
    point: Tensor
    holds: Tensor
    background: Tensor
    effective_sizes: Tensor
    noise: Tensor | None = None
    scatter: Tensor | None = None

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
        noise = None if self.noise is None else self.noise[:, clip].mean()
        return frame_log_density(self._decoded(self.point[clip]), frames, noise)

    def background_log_density(self, frames: Tensor) -> Tensor:
        """Return the log density of frames where the model does not hold, in nats, `(time,)`."""
        return frame_log_density(self.background.logit(), frames, self.scatter)

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
        noise = None if self.noise is None else self.noise[:, clip, None, None]
        explained = holds.log() + frame_log_density(self._logits(clip), frames, noise)
        lapsed = torch.log1p(-holds.clamp_max(1 - 1e-7)) + self.background_log_density(frames)
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
    trained: Trajectories,
    continues: bool = False,
    num_context: int = 10,
    num_draws: int = 100,
    num_proposals: int = 400,
    seed: int = 0,
    shared: Mapping[str, Tensor] | None = None,
) -> FilmForecast:
    """Infer the initial states of films from their first frames and run the model over all their times.

    The guide's reading of those frames is where importance sampling begins (see `vinppl.assimilate`), so that
    what the encoder gets wrong does not stay.

    Args:
        model: a fitted model of films.
        guide: its guide.
        films: clips whose first frames are known; of the others only the times are looked at.
        trained: the films that the model was fitted to. Their mean frame, and of grey ones the scatter
            around it, is what is forecast where the model does not hold; how long it holds depends on how
            many there are.
        continues: whether `films` begin with those that the model was fitted to, where it cannot have
            lapsed; by default they are new.
        num_context: first frames to infer from.
        num_draws: posterior draws of each clip.
        num_proposals: see `assimilate`.
        seed: of everything random.
        shared: posterior draws of the sites that all films share, such as `noise_scale` of grey frames and
            `damping.coefficient`, each `(draw, *site)`; what else there is among them is left out.

    Raises:
        ValueError: for fewer times than `num_context`, frames of another size than those of `trained`, or
            sites that `shared` lacks.
    """
    require(1 <= num_context <= films.num_times, "num_context must be within the films", num_context)
    same = films.image_shape == trained.image_shape
    require(same, f"films must have frames of {trained.image_shape}, as in training", films.image_shape)
    shared = shared or {}
    begin = films.first(num_context)
    found = assimilate(
        model, shared, begin, num_draws=num_draws, num_proposals=num_proposals, seed=seed, guide=guide
    )
    own = {name: value[found.index] for name, value in found.shared.items()}  # (draw, clip, *site)
    noise = own.get("noise_scale")
    # In a handler a step without a solution makes a path NaN from there on; the model has lapsed then.
    with torch.no_grad(), poutine.block():
        initial = torch.cat([found.states, found.states.mean(0, keepdim=True)])
        sites = {name: torch.cat([value, value.mean(0, keepdim=True)]) for name, value in own.items()}
        path = poutine.condition(model.run, data=sites)(PhaseState(*initial.chunk(2, dim=-1)), films)
        paths = torch.cat([path.q, path.v], dim=-1)
        states, point = paths[:-1], paths[-1]
        logits = model.logits(*states[:, :, :num_context].chunk(2, dim=-1))
    background, scatter = background_of(trained), None if noise is None else background_scatter(trained)
    explained = frame_log_density(logits, begin.values, None if noise is None else noise[..., None, None])
    holds = survival(
        explained - frame_log_density(background.logit(), begin.values, scatter),
        num_times=films.num_times,
        num_explained=int(trained.mask.any(-1).sum()),
        num_fitted=trained.num_times if continues else 0,
    )
    holds = torch.where(states.isfinite().all(-1), holds, 0.0)
    return FilmForecast(model, states, point, holds, background, found.effective_sizes, noise, scatter)
