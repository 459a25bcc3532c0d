"""Are forecasts of films any good: scores of predicted frames against those that were filmed.

`film_scores` looks at a whole forecast, by horizon. `frame_rmse` and `brier` are functions of plain arrays:
the predicted grey levels of frames, those of a point forecast or the mean of a posterior's, against a truth
whose NaN mean "not measured". A frame without a measured pixel counts for nothing. Needs neither torch nor
Pyro.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from vinppl._checks import require
from vinppl.export import require_group
from vinppl.scores import horizon_edges

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["FilmArrays", "brier", "film_arrays", "film_scores", "frame_rmse"]

Array = NDArray[Any]


def frame_rmse(levels: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean over frames of sqrt(sum over pixels (y - p)^2), p the predicted grey levels.

    This is the RMSE of the VIN paper's Table 1, where p comes from a single path. A frame of 28 x 28 black
    and white pixels is wrong by 28 at most.

    Args:
        levels: p, from 0 to 1, shape `(*frames, pixel)`.
        truth: y, the same shape.

    Returns:
        The error, in grey levels times the root of a number of pixels; NaN without frames.

    Raises:
        ValueError: if the shapes differ, or levels lie beyond 0 and 1.
    """
    p, y = _levels(levels, truth)
    return _mean(_frame_errors(p, y))


def brier(levels: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean over measured pixels of (y - p)^2, p the predicted grey levels.

    For black and white pixels it is the Brier score of the probability of white, a proper score.

    Args:
        levels: p, from 0 to 1, shape `(*frames, pixel)`.
        truth: y, the same shape.

    Raises:
        ValueError: as for `frame_rmse`.

    References:
        Brier: Verification of forecasts expressed in terms of probability. Monthly Weather Review 78 (1950).
    """
    p, y = _levels(levels, truth)
    return _mean(((y - p) ** 2)[~np.isnan(y)])


# Forecasts of films


@dataclass(frozen=True)
class FilmArrays:
    """A forecast of films as plain arrays.

    Attributes:
        levels: mean grey levels under each draw, `(draw, clip, time, pixel)`.
        levels_at_mean: along the path from the posterior mean, `(clip, time, pixel)`.
        log_likelihood: log density of each frame under each draw, `(draw, clip, time)`, nats; NaN where
            no frame was measured.
        log_likelihood_at_mean: of the path from the posterior mean, `(clip, time)`.
        truth: measured frames, `(clip, time, pixel)`, NaN where there are none.
        times: `(clip, time)`; a shorter clip repeats its last time.
        in_sample: True where a frame belonged to the fit, `(clip, time)`.
        forecast_start: time at which the forecast begins, `(clip,)`.
        states: positions then velocities under each draw, `(draw, clip, time, state)`, or `None`.
        states_at_mean: of the path from the posterior mean, `(clip, time, state)`, or `None`.
        state_names: names of the states.
        clips: names of the clips.
        image_shape: height and width of a frame.
        time_unit: unit of time, empty if unknown.
    """

    levels: Array
    levels_at_mean: Array
    log_likelihood: Array
    log_likelihood_at_mean: Array
    truth: Array
    times: Array
    in_sample: Array
    forecast_start: Array
    states: Array | None
    states_at_mean: Array | None
    state_names: tuple[str, ...]
    clips: tuple[str, ...]
    image_shape: tuple[int, int]
    time_unit: str

    @property
    def horizon(self) -> Array:
        """Time since the forecast begins, `(clip, time)`; negative in the fit."""
        return self.times - self.forecast_start[:, None]

    @property
    def lengths(self) -> Array:
        """Number of times of each clip without padding, `(clip,)`."""
        return np.asarray((self.times < self.times[:, -1:]).sum(1) + 1)


def film_arrays(forecast: InferenceData | xr.DataTree | FilmArrays) -> FilmArrays:
    """Read a forecast of films (as `vinppl.forecast` returns it, or its file) into plain arrays.

    Plain arrays, such as `FilmForecast.arrays` returns, are returned as they are.

    Raises:
        KeyError: a group or variable is missing.
        ValueError: the forecast is not one of films.
    """
    if isinstance(forecast, FilmArrays):
        return forecast
    fix = "Forecast films again with vinppl.forecast.forecast."
    predictions = require_group(forecast, "predictions", "a forecast holds predictions", fix)
    constants = require_group(forecast, "predictions_constant_data", "a forecast holds its times", fix)
    attrs = {**forecast.attrs, **constants.attrs, **predictions.attrs}
    require("image_shape" in attrs, "the forecast must be one of films", "no attribute image_shape")
    for group, names in (
        (predictions, ("obs_mean", "frame_log_likelihood")),
        (constants, ("obs_at_mean", "frame_log_likelihood_at_mean")),
    ):
        missing = [name for name in names if name not in group]
        require(not missing, "a forecast of films has mean frames", f"no {missing}", fix, error=KeyError)
    height, width = json.loads(str(attrs["image_shape"]))
    states = _merged(predictions["states"]) if "states" in predictions else None
    at_mean = constants["states_at_mean"].values if "states_at_mean" in constants else None
    axis = None if states is None else predictions["states"][predictions["states"].dims[-1]]
    return FilmArrays(
        levels=_merged(predictions["obs_mean"]),
        levels_at_mean=constants["obs_at_mean"].values,
        log_likelihood=_merged(predictions["frame_log_likelihood"]),
        log_likelihood_at_mean=constants["frame_log_likelihood_at_mean"].values,
        truth=constants["measured"].values,
        times=np.asarray(constants["times"].values, dtype=np.float64),
        in_sample=np.asarray(constants["in_sample"].values, dtype=bool),
        forecast_start=np.asarray(constants["forecast_start"].values, dtype=np.float64),
        states=states,
        states_at_mean=at_mean,
        state_names=() if axis is None else tuple(str(name) for name in axis.values),
        clips=tuple(str(n) for n in constants["measured"][constants["measured"].dims[0]].values),
        image_shape=(int(height), int(width)),
        time_unit=str(constants["times"].attrs.get("units", "")),
    )


def film_scores(
    forecast: InferenceData | xr.DataTree | FilmArrays,
    *,
    num_bins: int = 5,
    edges: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Score a forecast of films at its held-out frames, by horizon.

    Args:
        forecast: what `vinppl.forecast.forecast` or `FilmForecast.arrays` returned.
        num_bins: bins of equal width, up to the last horizon of a held-out frame.
        edges: edges of the horizon bins instead, as in `vinppl.scores.forecast_scores`.

    Returns:
        A row for each bin, whose channel is `frame`, and a last one called `all`. Columns: channel, start_s
        and end_s (horizon, in the unit of the file's times); rmse and brier of the posterior mean of the
        frames and log_likelihood, the log predictive density of a frame, in nats; rmse_at_mean and
        log_likelihood_at_mean of the one path from the posterior mean, as in the VIN paper's Table 1; and
        num_frames. Without frames a row holds NaN.
    """
    film = film_arrays(forecast)
    held_out = ~np.isnan(film.truth).all(-1) & ~film.in_sample
    horizon = film.horizon
    bins = horizon_edges(horizon[held_out], num_bins, edges)
    held_out &= (horizon >= bins[0]) & (horizon <= bins[-1])
    truth, which = film.truth[held_out], horizon[held_out]
    mean = film.levels[:, held_out].mean(0, dtype=np.float64)
    squares = (truth - mean) ** 2
    measures = {
        "rmse": _frame_errors(mean, truth),
        "brier": np.array([_mean(row[~np.isnan(row)]) for row in squares]),
        "log_likelihood": _log_mean_exp(film.log_likelihood[:, held_out]),
        "rmse_at_mean": _frame_errors(film.levels_at_mean[held_out], truth),
        "log_likelihood_at_mean": film.log_likelihood_at_mean[held_out],
    }
    place = np.minimum(np.digitize(which, bins) - 1, len(bins) - 2)

    def row(name: str, start: float, end: float, chosen: Array) -> dict[str, Any]:
        means = {key: _mean(values[chosen]) for key, values in measures.items()}
        ends = {"channel": name, "start_s": float(start), "end_s": float(end)}
        return {**ends, **means, "num_frames": int(chosen.sum())}

    rows = [row("frame", bins[b], bins[b + 1], place == b) for b in range(len(bins) - 1)]
    return pd.DataFrame([*rows, row("all", bins[0], bins[-1], np.ones(len(which), dtype=bool))])


# Arrays


def _levels(levels: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    p, y = (np.asarray(values, dtype=np.float64) for values in (levels, truth))
    require(p.shape == y.shape and y.ndim >= 1, f"levels must have the shape {y.shape} of truth", p)
    require(bool(np.all((p >= 0) & (p <= 1))), "levels must lie between 0 and 1", "others")
    return p, y


def _frame_errors(mean: Array, truth: Array) -> Array:
    """Return the root of the summed squares of each frame, NaN for a frame without a measured pixel."""
    squares = np.where(np.isnan(truth), 0.0, (truth - mean) ** 2).sum(-1)
    return np.where(np.isnan(truth).all(-1), np.nan, np.sqrt(squares))


def _log_mean_exp(values: Array) -> Array:
    """Return the logarithm of the mean over the first axis of the exponential."""
    return np.asarray(logsumexp(values.astype(np.float64), axis=0) - math.log(len(values)))


def _merged(variable: xr.DataArray) -> Array:
    """Return draws of all chains on one axis, in their own type."""
    values = variable.transpose("chain", "draw", ...).values
    return np.asarray(values.reshape(-1, *values.shape[2:]))


def _mean(values: Array) -> float:
    """Return the mean of entries that are not NaN; NaN if there are none."""
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
