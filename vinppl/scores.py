"""Are forecasts any good: scores of predictive draws, and forecast files as plain arrays.

`forecast_scores` looks at a forecast file. The scores are also functions of plain arrays: draws of
shape `(num_draws, *shape)` against a truth of shape `(*shape)` whose NaN mean "not measured". Entries
marked `periodic` are angles in radians, compared along the shorter way round. Needs neither torch nor
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
import scoringrules
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist

from vinppl._checks import require
from vinppl.export import require_group

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = [
    "ForecastArrays",
    "coverage",
    "crps",
    "energy_score",
    "forecast_arrays",
    "forecast_scores",
    "interval_width",
    "pit",
    "point_forecast",
    "relative_energy_error",
    "rmse",
    "valid_prediction_time",
    "valid_prediction_times",
]

LEVELS = (0.5, 0.8, 0.9, 0.95)

Array = NDArray[Any]


# Scores of predictions, on arrays


def rmse(prediction: ArrayLike, truth: ArrayLike, periodic: ArrayLike | None = None) -> float:
    """Return the root mean square error over all measured entries.

    Args:
        prediction: shape `(*shape)`.
        truth: the same shape, NaN where nothing was measured.
        periodic: True where an entry is an angle in radians; a flag or anything that broadcasts to
            `(*shape)`, for example one flag per coordinate of the last axis.

    Returns:
        The error; NaN if nothing was measured, or if the prediction is NaN where something was.
    """
    guess, y = _pair(prediction, truth)
    return _root_mean_square(_difference(guess, y, periodic)[~np.isnan(y)])


def point_forecast(draws: ArrayLike, periodic: ArrayLike | None = None) -> Array:
    """Return the mean of predictive draws, which the RMSE of a forecast compares with the truth.

    Angles are first unrolled around the draws' circular mean, so that it minimises the mean square
    distance along the shorter way round unless draws lie half a turn from there.

    Args:
        draws: shape `(num_draws, *shape)`.
        periodic: as in `rmse`.

    Returns:
        Shape `(*shape)`.
    """
    x = np.asarray(draws, dtype=np.float64)
    return _unroll(x, np.zeros(x.shape[1:]), periodic)[0].mean(0)


def coverage(
    draws: ArrayLike, truth: ArrayLike, levels: Sequence[float] = LEVELS, *, periodic: ArrayLike | None = None
) -> dict[float, float]:
    """Return the share of measured entries inside the central predictive interval of each level.

    For draws from the truth's own distribution the expected share is the level, whatever their number
    (quantiles are those of Weibull plotting positions). Angles are first unrolled around the draws'
    circular mean. Draws that are not finite cover nothing.

    Args:
        draws: shape `(num_draws, *shape)`.
        truth: shape `(*shape)`, NaN where nothing was measured.
        levels: probabilities between 0 and 1.
        periodic: as in `rmse`.

    Example:
        >>> coverage(np.linspace(-1, 1, 99), 0.1, levels=[0.5])
        {0.5: 1.0}
    """
    x, y = _samples(draws, truth)
    measured = ~np.isnan(y)
    inside, _ = _intervals(*_unroll(x, y, periodic), levels)
    return {level: _mean(row[measured]) for level, row in zip(levels, inside, strict=True)}


def interval_width(
    draws: ArrayLike, levels: Sequence[float] = LEVELS, *, periodic: ArrayLike | None = None
) -> dict[float, float]:
    """Return the mean width of the central predictive interval of each level; see `coverage`."""
    x = np.asarray(draws, dtype=np.float64)
    require(x.ndim >= 1 and x.shape[0] >= 1, "draws must have shape (num_draws, *shape)", x)
    _, width = _intervals(*_unroll(x, np.zeros(x.shape[1:]), periodic), levels)
    return {level: _mean(row) for level, row in zip(levels, width, strict=True)}


def pit(draws: ArrayLike, truth: ArrayLike, *, periodic: ArrayLike | None = None) -> Array:
    """Return the probability integral transform of every entry: the share of the forecast below the truth.

    For draws from the truth's own distribution it is uniform on the points (k + 1/2) / (num_draws + 1).
    Angles are first unrolled around the draws' circular mean.

    Args:
        draws: shape `(num_draws, *shape)`.
        truth: shape `(*shape)`, NaN where nothing was measured.
        periodic: as in `rmse`.

    Returns:
        Shape `(*shape)`, NaN where nothing was measured.
    """
    x, y = _unroll(*_samples(draws, truth), periodic)
    below = (x < y).sum(0) + 0.5 * (x == y).sum(0)
    return np.where(np.isnan(y), np.nan, (below + 0.5) / (len(x) + 1))


def crps(draws: ArrayLike, truth: ArrayLike, *, periodic: ArrayLike | None = None) -> float:
    """Return the mean continuous ranked probability score, E|X − y| − ½ E|X − X'|, smaller being better.

    The estimate is unbiased in the number of draws, so that ensembles of different sizes compare (for
    very few draws it can be negative). For one draw it is the absolute error. Angles use the distance
    along the circle in both terms. Cost: O(num_draws log num_draws) per entry.

    Args:
        draws: shape `(num_draws, *shape)`.
        truth: shape `(*shape)`, NaN where nothing was measured.
        periodic: as in `rmse`.

    References:
        Gneiting, Raftery: Strictly proper scoring rules, prediction, and estimation. JASA 102 (2007).
        Grimit, Gneiting, Berrocal, Johnson: The continuous ranked probability score for circular
        variables. Quarterly Journal of the Royal Meteorological Society 132 (2006).
    """
    x, y = _samples(draws, truth)
    measured = ~np.isnan(y)
    return _mean(_crps(x[:, measured], y[measured], _flags(periodic, y.shape)[measured]))


def energy_score(draws: ArrayLike, truth: ArrayLike, *, periodic: ArrayLike | None = None) -> float:
    """Return the mean energy score E‖X − y‖ − ½ E‖X − X'‖ of vectors; the CRPS in more dimensions.

    Unbiased like `crps`, and the Euclidean error for one draw. Points with a missing coordinate are
    left out. Angles are unrolled around the draws' circular mean, as in `coverage`. Coordinates of
    different units should be scaled before. Cost: O(num_draws²) per point.

    Args:
        draws: shape `(num_draws, *shape, dim)`.
        truth: shape `(*shape, dim)`, NaN where nothing was measured.
        periodic: as in `rmse`.
    """
    x, y = _samples(draws, truth)
    require(y.ndim >= 1, "truth must have shape (*shape, dim)", y)
    x, y = _unroll(x, y, periodic)
    measured = ~np.isnan(y).any(-1)
    points = np.moveaxis(x[:, measured], 0, 1)  # (point, num_draws, dim)
    scores = np.linalg.norm(points - y[measured][:, None], axis=-1).mean(-1)
    if len(x) > 1:
        scores = scores - 0.5 * np.array([pdist(point).mean() for point in points])
    return _mean(scores)


def valid_prediction_time(
    prediction: ArrayLike,
    truth: ArrayLike,
    times: ArrayLike,
    threshold: float = 0.025,
    *,
    periodic: ArrayLike | None = None,
) -> float:
    """Return how long a prediction is good: the first time at which mean((ŷ−y)²) / mean(y²) > threshold.

    The numerator is a mean over the coordinates of one time. The denominator is a mean over all times
    and coordinates of the trajectory, so that a single coordinate may pass through zero.

    Args:
        prediction: shape `(*batch, time, coordinate)`.
        truth: the same shape, NaN where nothing was measured.
        times: shape `(time,)` or `(*batch, time)`, increasing.
        threshold: largest relative squared error.
        periodic: as in `rmse`.

    Returns:
        Median over trajectories of that time after the first of `times`. A prediction that stays good
        counts with the last time, so the value is then a lower bound.
    """
    y = np.asarray(truth, dtype=np.float64)
    found = valid_prediction_times(prediction, y, times, threshold, periodic=periodic)
    measured = ~np.isnan(y).all((-2, -1))
    return float(np.median(found[measured])) if measured.any() else math.nan


def valid_prediction_times(
    prediction: ArrayLike,
    truth: ArrayLike,
    times: ArrayLike,
    threshold: float = 0.025,
    *,
    periodic: ArrayLike | None = None,
) -> Array:
    """Return the valid prediction time of every trajectory, shape `(*batch)`; see `valid_prediction_time`.

    It is NaN where nothing was measured.
    """
    guess, y = _pair(prediction, truth)
    require(y.ndim >= 2, "truth must have shape (*batch, time, coordinate)", y)
    require(threshold > 0, "threshold must be positive", threshold)
    t = np.asarray(times, dtype=np.float64)
    require(t.shape in (y.shape[-2:-1], y.shape[:-1]), f"times must have shape {y.shape[-2:-1]}", t)
    t = np.broadcast_to(t, y.shape[:-1])
    measured = ~np.isnan(y)
    squares = np.where(measured, _difference(guess, y, periodic) ** 2, 0.0)
    # NaN errors (a prediction that blew up) fail the comparison and so end the valid stretch.
    errors = squares.sum(-1) / np.maximum(measured.sum(-1), 1)
    counts = measured.sum((-2, -1))
    size = np.where(measured, y, 0.0) ** 2
    failed = ~(errors <= threshold * (size.sum((-2, -1)) / np.maximum(counts, 1))[..., None])
    last = np.where(failed.any(-1), failed.argmax(-1), t.shape[-1] - 1)
    end = np.take_along_axis(t, last[..., None], axis=-1)[..., 0]
    return np.where(counts > 0, end - t[..., 0], math.nan)


def relative_energy_error(energy: ArrayLike, *, scale: ArrayLike | None = None) -> Array:
    """Return |E(t) − E(0)| / scale.

    Args:
        energy: shape `(*batch, time)`.
        scale: what an error is measured by, in the energy's units, shape `(*batch)` or a number; by
            default |E(0)|. Give it where the zero of energy is arbitrary, as in a learned potential.

    Returns:
        Relative errors, shape `(*batch, time)`.
    """
    values = np.asarray(energy, dtype=np.float64)
    require(values.ndim >= 1 and values.shape[-1] >= 1, "energy must have shape (*batch, time)", values)
    start = values[..., :1]
    size = np.abs(start) if scale is None else np.asarray(scale, dtype=np.float64)[..., None]
    require(
        bool(np.all(size[~np.isnan(size)] > 0)),
        "the scale of the energy must be positive",
        "zero" if scale is None else scale,
        "Give scale, for example the largest kinetic energy.",
    )
    return np.abs(values - start) / size


# Scores of a forecast file


@dataclass(frozen=True, eq=False)
class ForecastArrays:
    """A forecast as plain arrays, chains put one after another.

    Attributes:
        obs: predictive measurements, `(num_draws, trajectory, time, channel)`.
        states: positions then velocities, `(num_draws, trajectory, time, state)`, or `None`.
        energy: the model's energy, `(num_draws, trajectory, time)`, or `None`.
        times: `(trajectory, time)`; a shorter trajectory repeats its last time.
        measured: `(trajectory, time, channel)`, NaN where nothing was measured.
        in_sample: True where a sample belonged to the fit, `(trajectory, time)`.
        forecast_start: time at which the forecast begins, `(trajectory,)`.
        trajectories: names of the trajectories.
        channels: names of the channels.
        channel_units: their units, empty if unknown.
        channel_states: index of the state that each channel measures, `None` if unknown.
        angles: which channels are angles, `(channel,)`.
        state_names: names of the states.
        time_unit: unit of time, empty if unknown.
        energy_unit: unit of energy, empty if unknown.
    """

    obs: Array
    states: Array | None
    energy: Array | None
    times: Array
    measured: Array
    in_sample: Array
    forecast_start: Array
    trajectories: tuple[str, ...]
    channels: tuple[str, ...]
    channel_units: tuple[str, ...]
    channel_states: tuple[int, ...] | None
    angles: Array
    state_names: tuple[str, ...]
    time_unit: str
    energy_unit: str


def forecast_arrays(forecast: InferenceData | xr.DataTree) -> ForecastArrays:
    """Read a forecast (as `vinppl.forecast` returns it, or its file) into plain arrays.

    Raises:
        KeyError: a group or variable is missing.
        ValueError: shapes disagree.
    """
    fix = "Pass what vinppl.forecast.forecast returned, or its file by vinppl.export.read_result."
    predictions = require_group(forecast, "predictions", "a forecast holds predictions", fix)
    constants = require_group(
        forecast, "predictions_constant_data", "a forecast holds its times and data", fix
    )
    _require_variables(predictions, "predictions", ("obs",))
    wanted = ("times", "measured", "in_sample", "forecast_start")
    _require_variables(constants, "predictions_constant_data", wanted)
    obs = _merge_draws(predictions["obs"])
    measured = np.asarray(constants["measured"].values, dtype=np.float64)
    require(
        obs.ndim == 4 and obs.shape[1:] == measured.shape,
        f"predictions['obs'] must have shape (chain, draw, *{measured.shape}) like measured",
        predictions["obs"].values,
    )
    attrs = {**forecast.attrs, **constants.attrs, **predictions.attrs}
    num_channels = measured.shape[-1]
    states = _merge_draws(predictions["states"]) if "states" in predictions else None
    energy = _merge_draws(predictions["energy"]) if "energy" in predictions else None
    shared_unit = constants["measured"].attrs.get("units", "")
    return ForecastArrays(
        obs=obs,
        states=states,
        energy=energy,
        times=np.asarray(constants["times"].values, dtype=np.float64),
        measured=measured,
        in_sample=np.asarray(constants["in_sample"].values, dtype=bool),
        forecast_start=np.asarray(constants["forecast_start"].values, dtype=np.float64),
        trajectories=_labels(constants["measured"], 0),
        channels=_labels(constants["measured"], 2),
        channel_units=tuple(str(u) for u in _listed(attrs, "channel_unit", [shared_unit] * num_channels)),
        channel_states=_channel_states(attrs, states),
        angles=np.asarray(_listed(attrs, "channel_angle", [False] * num_channels), dtype=bool),
        state_names=() if states is None else _labels(predictions["states"], -1),
        time_unit=str(constants["times"].attrs.get("units", "")),
        energy_unit="" if energy is None else str(predictions["energy"].attrs.get("units", "")),
    )


def forecast_scores(
    forecast: InferenceData | xr.DataTree,
    *,
    num_bins: int = 5,
    edges: Sequence[float] | None = None,
    levels: Sequence[float] = LEVELS,
) -> pd.DataFrame:
    """Score a forecast at its held-out measurements, per channel and horizon.

    The horizon of a point is its time after the beginning of the forecast. Angles are compared along
    the circle. The RMSE is that of `point_forecast`.

    Args:
        forecast: what `vinppl.forecast.forecast` returned.
        num_bins: bins of equal width, from the first to the last horizon of a held-out point.
        edges: edges of the horizon bins instead, increasing. A bin holds its left edge, the last one
            both. The row `all` takes only what lies in some bin.
        levels: of the central predictive intervals.

    Returns:
        A row for each channel and bin, and a last one with channel `all` for everything. Columns:
        channel, start_s and end_s (horizon, in the unit of the file's times), rmse, crps, coverage_50
        and so on (shares), width_90 (mean width of the 90 % interval) and num_points. RMSE, CRPS and
        width have the unit of the channel; `all` mixes them. Without points a row holds NaN.
    """
    arrays = forecast_arrays(forecast)
    horizon = arrays.times - arrays.forecast_start[:, None]
    horizon = np.broadcast_to(horizon[..., None], arrays.measured.shape)
    held_out = ~np.isnan(arrays.measured) & ~arrays.in_sample[..., None]
    bins = horizon_edges(horizon[held_out], num_bins, edges)
    held_out &= (horizon >= bins[0]) & (horizon <= bins[-1])
    x, y, t = arrays.obs[:, held_out], arrays.measured[held_out], horizon[held_out]
    channel = np.nonzero(held_out)[-1]
    angle = arrays.angles[channel]
    centred, target = _unroll(x, y, angle)
    inside, _ = _intervals(centred, target, levels)
    _, width = _intervals(centred, target, (0.9,))
    points = {
        "crps": _crps(x, y, angle),
        **{f"coverage_{100 * level:g}": row for level, row in zip(levels, inside, strict=True)},
        "width_90": width[0],
    }
    squares = (centred.mean(0) - target) ** 2 if len(y) else np.zeros(0)
    which = np.minimum(np.digitize(t, bins) - 1, len(bins) - 2)

    def row(name: str, start: float, end: float, chosen: Array) -> dict[str, Any]:
        means = {key: _mean(values[chosen]) for key, values in points.items()}
        error = math.sqrt(_mean(squares[chosen]))
        ends = {"channel": name, "start_s": float(start), "end_s": float(end)}
        return {**ends, "rmse": error, **means, "num_points": int(chosen.sum())}

    rows = [
        row(name, bins[b], bins[b + 1], (channel == c) & (which == b))
        for c, name in enumerate(arrays.channels)
        for b in range(len(bins) - 1)
    ]
    return pd.DataFrame([*rows, row("all", bins[0], bins[-1], np.ones(len(y), dtype=bool))])


def horizon_edges(horizons: Array, num_bins: int, edges: Sequence[float] | None) -> Array:
    """Return the edges of bins of horizons: those given, or equal ones up to the last horizon."""
    if edges is not None:
        bins = np.asarray(edges, dtype=np.float64)
        increasing = bins.ndim == 1 and len(bins) >= 2 and bool(np.all(np.diff(bins) > 0))
        require(increasing, "edges must be at least two increasing numbers", repr(edges))
        return bins
    require(num_bins >= 1, "num_bins must be at least 1", num_bins)
    first = min(0.0, float(horizons.min())) if horizons.size else 0.0
    last = float(horizons.max()) if horizons.size else 0.0
    return np.linspace(first, max(last, first + 1e-9), num_bins + 1)


def _require_variables(dataset: xr.Dataset, group: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in dataset]
    got = ", ".join(str(name) for name in dataset.data_vars) or "none"
    require(not missing, f"group {group!r} must hold {', '.join(missing)}", got, error=KeyError)


def _merge_draws(variable: xr.DataArray) -> Array:
    values = variable.transpose("chain", "draw", ...).values
    return np.asarray(values, dtype=np.float64).reshape(-1, *values.shape[2:])


def _labels(variable: xr.DataArray, axis: int) -> tuple[str, ...]:
    return tuple(str(label) for label in variable[variable.dims[axis]].values)


def _listed(attrs: dict[Any, Any], name: str, default: list[Any]) -> list[Any]:
    """Return a JSON list among the attributes."""
    if name not in attrs:
        return default
    values = json.loads(str(attrs[name]))
    valid = isinstance(values, list) and len(values) == len(default)
    require(valid, f"attribute {name} must be a JSON list with an entry per channel", str(attrs[name]))
    return list(values)


def _channel_states(attrs: dict[Any, Any], states: Array | None) -> tuple[int, ...] | None:
    if states is None or not {"channel_quantity", "channel_coordinate"} <= set(attrs):
        return None
    dim = states.shape[-1] // 2
    quantities, coordinates = (json.loads(str(attrs[f"channel_{key}"])) for key in ("quantity", "coordinate"))
    return tuple(int(c) + dim * (q == "velocity") for q, c in zip(quantities, coordinates, strict=True))


# Arrays, intervals and circles


def _pair(prediction: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    guess, y = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    require(guess.shape == y.shape, f"prediction must have the shape {y.shape} of truth", guess)
    return guess, y


def _samples(draws: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    valid = x.ndim == y.ndim + 1 and x.shape[1:] == y.shape and x.shape[0] >= 1
    require(valid, f"draws must have shape (num_draws, *{y.shape}), the axes of truth last", x)
    return x, y


def _flags(periodic: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    flags = np.asarray(False if periodic is None else periodic, dtype=bool)
    fits = flags.ndim <= len(shape) and all(
        a in (1, b) for a, b in zip(flags.shape[::-1], shape[::-1], strict=False)
    )
    require(fits, f"periodic must be a flag or broadcast to the shape {shape}", flags)
    return np.broadcast_to(flags, shape)


def _wrap(angle: Array) -> Array:
    """Return the angle in [−π, π)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _difference(first: Array, second: Array, periodic: ArrayLike | None) -> Array:
    difference = first - second
    flags = _flags(periodic, difference.shape)
    return np.where(flags, _wrap(difference), difference) if flags.any() else difference


def _unroll(x: Array, y: Array, periodic: ArrayLike | None) -> tuple[Array, Array]:
    """Move angles to within half a turn of the circular mean of their draws."""
    flags = _flags(periodic, y.shape)
    if not flags.any():
        return x, y
    x, y = x.copy(), y.copy()
    angles = x[:, flags]
    centre = np.arctan2(np.sin(angles).mean(0), np.cos(angles).mean(0))
    x[:, flags] = centre + _wrap(angles - centre)
    y[flags] = centre + _wrap(y[flags] - centre)
    return x, y


def _intervals(x: Array, y: Array, levels: Sequence[float]) -> tuple[Array, Array]:
    """Return whether y is inside each central interval, and the intervals' widths, `(level, *shape)`."""
    p = np.asarray(levels, dtype=np.float64)
    valid = p.ndim == 1 and bool(np.all((p > 0) & (p < 1)))
    require(valid, "levels must be probabilities between 0 and 1", repr(levels))
    if y.size == 0:
        return np.zeros((len(p), *y.shape)), np.zeros((len(p), *y.shape))
    with np.errstate(invalid="ignore"):
        low, high = (np.quantile(x, (1 + s * p) / 2, axis=0, method="weibull") for s in (-1, 1))
        return ((low <= y) & (y <= high)).astype(np.float64), high - low


def _crps(x: Array, y: Array, periodic: Array) -> Array:
    """Return the CRPS of each point: x `(num_draws, point)`, y and periodic `(point,)`."""
    distance = np.abs(_difference(x, np.broadcast_to(y, x.shape), periodic))
    scores = distance.mean(0) if y.size else np.zeros(0)
    if len(x) == 1 or y.size == 0:
        return scores
    linear = ~periodic
    if linear.any():
        # About the truth, so that rounding is relative to the spread and not to the size of the values.
        centred = np.sort(x[:, linear] - y[linear], axis=0).T
        zeros = np.zeros(len(centred))
        scores[linear] = scoringrules.crps_ensemble(zeros, centred, estimator="pwm", backend="numpy")
    for k in np.flatnonzero(periodic):
        scores[k] -= 0.5 * _mean_circular_distance(x[:, k])
    return scores


def _mean_circular_distance(angles: Array) -> float:
    """Return the mean distance along the circle between two different angles, by prefix sums.

    Going up from each sorted angle, those within half a turn are at their plain difference. Every pair
    is met once so from one of its ends, and from the other end it is farther than half a turn.
    """
    if not np.isfinite(angles).all():
        return math.nan
    count = len(angles)
    ordered = np.sort(angles % (2 * np.pi))
    twice = np.concatenate([ordered, ordered + 2 * np.pi])
    sums = np.concatenate([[0.0], np.cumsum(twice)])
    first = np.arange(1, count + 1)
    last = np.maximum(np.searchsorted(twice, ordered + np.pi, side="left"), first)
    total = np.sum(sums[last] - sums[first] - (last - first) * ordered)
    # Pairs exactly half a turn apart are met from neither end.
    opposite = np.searchsorted(twice, ordered + np.pi, side="right") - last
    return float((total + np.pi * opposite.sum() / 2) / (count * (count - 1) / 2))


def _mean(values: Array) -> float:
    return float(np.mean(values)) if np.size(values) else math.nan


def _root_mean_square(values: Array) -> float:
    return math.sqrt(_mean(values**2)) if np.size(values) else math.nan
