"""How fast paths of different draws part: the law of their growing distance, and its rate.

Draws are put in pairs. The distance of a pair is Euclidean in the states, each coordinate in units of the
spread it has over the motion; divided by the root of two its mean square is the sum of their variances. The
curve that is fitted is the mean *logarithm* of that distance, over pairs and trajectories,

    constant       log d = log a                            spread that stays: damped or pinned motion
    linear         log d = log a + 1/2 log(1 + (b t)^2)     phases that drift: integrable motion
    exponential    log d = log a + 1/2 log(1 - w + w e^(2 r t))      chaos, or contraction where r < 0

For a Gaussian spread the second is what the mean logarithm of a drifting phase does exactly. The mean of
logarithms, and not the logarithm of the standard deviation, is what grows at the maximal Lyapunov exponent
in chaos: the root mean square follows the few pairs that part fastest, at a larger rate. And it does so only
while distances are small. So the fit ends where a tenth of all pairs have parted to a fifth of the distance
of unrelated states (or twice their first distance, if that is more), for all trajectories at once: an end
for each would favour the fast ones. Where that is over at once, half of the pairs may part. The exponent is
an average over the motion, so that the rate of a single trajectory is that of its own stretch.

References:
    Aurell, Boffetta, Crisanti, Paladin, Vulpiani: Predictability in the large: an extension of the concept of
    Lyapunov exponent. Journal of Physics A 30 (1997).
    Kass, Raftery: Bayes factors. JASA 90 (1995), for weights by the Bayesian information criterion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import leastsq

__all__ = ["LAWS", "GrowthLaw", "Separations", "fit_growth_law", "random_partners", "separations"]

Array = NDArray[np.float64]

SATURATION = 5.0
"""Factor below the distance of unrelated states at which a pair no longer parts as if infinitesimally."""

NUM_UNRELATED = 4000
"""Pairs of states whose mean distance is the saturated one."""

MIN_TIMES = 8
"""Horizons that a fit needs before distances saturate."""


class Separations(NamedTuple):
    """Logarithms of the distances of pairs of draws.

    Attributes:
        logs: log distance over root two, `(pair, trajectory, horizon)`.
        horizon: times since the forecast began, shared by the trajectories, `(horizon,)`.
        saturated: mean log distance of unrelated states of the motion, over root two.
    """

    logs: Array
    horizon: Array
    saturated: float


class GrowthLaw(NamedTuple):
    """Which law the growing distance of draws follows.

    Attributes:
        name: `constant`, `linear`, `exponential`, or `none` where distances are saturated from the start, or
            there is no spread.
        rates: of each law; `linear` in spreads of the motion per time, `exponential` in 1/time.
        rate_errors: their standard errors.
        support: weight of each law by the Bayesian information criterion, with residuals counted by their
            correlation over time; they add up to one.
        window: last horizon of the fit.
        curve: fitted log distance of the law with the most support at `horizon`, NaN after the window.
    """

    name: str
    rates: dict[str, float]
    rate_errors: dict[str, float]
    support: dict[str, float]
    window: float
    curve: Array


Law = Callable[[Array, Array], Array]


def _constant(p: Array, t: Array) -> Array:
    return np.full_like(t, p[0])


def _linear(p: Array, t: Array) -> Array:
    return p[0] + 0.5 * np.log1p((np.exp(np.clip(p[1], -30, 30)) * t) ** 2)


def _exponential(p: Array, t: Array) -> Array:
    w = 1 / (1 + np.exp(-np.clip(p[2], -12, 12)))
    return p[0] + 0.5 * np.logaddexp(np.log1p(-w), np.log(w) + 2 * p[1] * t)


LAWS: dict[str, Law] = {"constant": _constant, "linear": _linear, "exponential": _exponential}
"""Mean log distance by parameters and times."""


def separations(
    states: Sequence[Array],
    horizons: Sequence[Array],
    periodic: NDArray[np.bool_],
    *,
    rng: np.random.Generator,
) -> Separations:
    """Return log distances of random pairs of draws; those of draws that agree somewhere are left out.

    Args:
        states: of each trajectory, `(num_draws, horizon, state)`.
        horizons: of each trajectory, `(horizon,)`, increasing; where they differ, logarithms are
            interpolated to those that all trajectories reach.
        periodic: which states are angles, `(state,)`: their differences go the shorter way round.
        rng: chooses the pairs; every draw is the first of one and the second of another.
    """
    partner = random_partners(len(states[0]), rng)
    scale = _motion_scale(np.concatenate([x.reshape(-1, x.shape[-1]) for x in states]), periodic)
    grid = _shared_grid(horizons)
    logs, unrelated = [], []
    for x, horizon in zip(states, horizons, strict=True):
        with np.errstate(divide="ignore"):
            log = np.log(_distance(x, x[partner], scale, periodic))
        logs.append(log if grid is horizon else _interpolated(log, horizon, grid))
        flat = x.reshape(-1, x.shape[-1])
        first, second = flat[rng.integers(len(flat), size=(2, NUM_UNRELATED // len(states) + 1))]
        unrelated.append(_distance(first, second, scale, periodic))
    distances = np.concatenate(unrelated)
    distances = distances[distances > 0]
    saturated = float(np.log(distances).mean()) if len(distances) else -math.inf
    stacked = np.stack(logs, axis=1)
    apart = np.isfinite(stacked).all((1, 2))
    return Separations(stacked[apart] if apart.any() else stacked, grid, saturated)


def random_partners(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return another draw for each: every draw is the partner of one, and none of itself."""
    order = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _shared_grid(horizons: Sequence[Array]) -> Array:
    """Return horizons that every trajectory reaches: the first trajectory's where all agree."""
    first = horizons[0]
    if all(len(h) == len(first) and np.allclose(h, first, rtol=1e-9, atol=1e-12) for h in horizons):
        return first
    low, high = max(h[0] for h in horizons), min(h[-1] for h in horizons)
    return np.linspace(low, high, max(len(h) for h in horizons))


def _interpolated(values: Array, horizon: Array, grid: Array) -> Array:
    """Return values `(pair, horizon)` at other horizons."""
    place = np.interp(grid, horizon, np.arange(len(horizon)))
    low = np.minimum(place.astype(np.int64), len(horizon) - 2)
    weight = place - low
    return (1 - weight) * values[:, low] + weight * values[:, low + 1]


def _motion_scale(flat: Array, periodic: NDArray[np.bool_]) -> Array:
    """Return the spread of each coordinate over all states `(any, state)`; shape `(state,)`."""
    centre = np.where(periodic, np.arctan2(np.sin(flat).mean(0), np.cos(flat).mean(0)), flat.mean(0))
    scale = np.sqrt((_difference(flat, centre, periodic) ** 2).mean(0))
    return np.where(scale > 0, scale, 1.0)


def _difference(a: Array, b: Array, periodic: NDArray[np.bool_]) -> Array:
    d = a - b
    return np.where(periodic, (d + np.pi) % (2 * np.pi) - np.pi, d)


def _distance(a: Array, b: Array, scale: Array, periodic: NDArray[np.bool_]) -> Array:
    return np.sqrt(0.5 * ((_difference(a, b, periodic) / scale) ** 2).sum(-1))


def fit_growth_law(found: Separations, *, num_bootstrap: int = 100, rng: np.random.Generator) -> GrowthLaw:
    """Fit the three laws to the mean log distance while it is small, and weigh them.

    Standard errors are by the bootstrap over pairs, and over trajectories where there are several. For the
    exponential rate they are at least what the scatter of growth over blocks of 1/rate says: growth goes up
    and down along the motion.

    Args:
        found: from `separations`.
        num_bootstrap: resamples.
        rng: of those.
    """
    none = GrowthLaw(
        "none",
        dict.fromkeys(LAWS, math.nan),
        dict.fromkeys(LAWS, math.nan),
        dict.fromkeys(LAWS, math.nan),
        0.0,
        np.full_like(found.horizon, math.nan),
    )
    if not np.isfinite(found.logs).all() or not math.isfinite(found.saturated):
        return none
    end = next((end for end in map(partial(_end, found), (0.9, 0.5)) if end >= MIN_TIMES), 0)
    if not end:
        return none
    t, logs = found.horizon[:end] - found.horizon[0], found.logs[:, :, :end]
    curve = logs.mean((0, 1))
    fits = {name: _fit(name, t, curve) for name in LAWS}
    support = _support({name: curve - LAWS[name](p, t) for name, p in fits.items()}, fits)
    samples = [_resampled(logs, rng) for _ in range(num_bootstrap)]
    rates = {name: _rate(name, p) for name, p in fits.items()}
    errors = {
        name: float(np.std([_rate(name, _fit(name, t, sample, fits[name])) for sample in samples]))
        for name in LAWS
    }
    errors["exponential"] = max(errors["exponential"], _block_error(t, logs, rates["exponential"]))
    best = max(support, key=lambda name: support[name])
    fitted = np.full_like(found.horizon, math.nan)
    fitted[:end] = LAWS[best](fits[best], t)
    return GrowthLaw(best, rates, errors, support, float(found.horizon[end - 1]), fitted)


def _end(found: Separations, share: float) -> int:
    """Return the number of horizons before distances of all but that share of the pairs saturate."""
    far = np.quantile(found.logs, share, axis=(0, 1))  # (horizon,)
    parted = far > max(found.saturated - math.log(SATURATION), far[0] + math.log(2))
    return int(np.argmax(parted)) if parted.any() else len(far)


def _starts(name: str, t: Array, curve: Array) -> list[list[float]]:
    """Return parameters to begin a fit from."""
    span = max(float(t[-1]), 1e-300)
    first, rise = float(curve[0]), float(np.polyfit(t, curve, 1)[0])
    if name == "linear":
        return [[first, math.log(k / span)] for k in (0.3, 3.0, 30.0)]
    return [[first, rise, 3.0], [first, 1.5 * rise, 0.0], [first, 2 * rise, -3.0]]


def _fit(name: str, t: Array, curve: Array, start: Array | None = None) -> Array:
    """Return the parameters of a law by least squares."""
    if name == "constant":
        return np.array([curve.mean()])
    law = LAWS[name]
    starts = _starts(name, t, curve) if start is None else [list(start)]
    fits = [leastsq(lambda p: law(p, t) - curve, s, full_output=True)[0] for s in starts]
    return np.asarray(min(fits, key=lambda p: float(((law(p, t) - curve) ** 2).sum())))


def _rate(name: str, p: Array) -> float:
    """Return the rate of a law: of `linear` the slope of d at late times, of `exponential` r."""
    if name == "constant":
        return 0.0
    return float(np.exp(p[0] + np.clip(p[1], -30, 30))) if name == "linear" else float(p[1])


def _support(residuals: dict[str, Array], fits: dict[str, Array]) -> dict[str, float]:
    """Return weights of the laws by the Bayesian information criterion."""
    squares = {name: float(r @ r) for name, r in residuals.items()}
    best = residuals[min(squares, key=lambda name: squares[name])]
    count = len(best)
    memory = min(max(float(best[1:] @ best[:-1]) / max(float(best @ best), 1e-300), 0.0), 0.99)
    effective = max(count * (1 - memory) / (1 + memory), 4.0)
    floor = 1e-12 * count
    scores = {
        name: -0.5 * (effective * math.log(max(squares[name], floor)) + len(fits[name]) * math.log(effective))
        for name in fits
    }
    top = max(scores.values())
    total = sum(math.exp(score - top) for score in scores.values())
    return {name: math.exp(score - top) / total for name, score in scores.items()}


def _resampled(logs: Array, rng: np.random.Generator) -> Array:
    """Return the mean curve over pairs and trajectories drawn with replacement."""
    pairs, trajectories = logs.shape[:2]
    drawn = logs[rng.integers(pairs, size=pairs)]
    if trajectories == 1:
        return drawn[:, 0].mean(0)
    return drawn[:, rng.integers(trajectories, size=trajectories)].mean((0, 1))


def _block_error(t: Array, logs: Array, rate: float) -> float:
    """Return the standard error of a growth rate by the scatter of growth over blocks of 1/rate."""
    span = float(t[-1])
    blocks = int(min(abs(rate) * span, len(t) - 1))
    if blocks < 2:
        return 0.0
    marks = np.interp(np.linspace(0.0, span, blocks + 1), t, np.arange(len(t))).round().astype(int)
    growth = np.diff(logs.mean(0)[:, marks], axis=-1) / np.diff(t[marks])  # (trajectory, block)
    return float(growth.std(ddof=1) / math.sqrt(growth.size))
