"""The variance of a trajectory's states, energy and measurements, shared out among groups of latent sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vinppl.growth.dataset import TrajectoryGrowth
from vinppl.growth.fields import around, centre_of
from vinppl.growth.laws import random_partners
from vinppl.growth.paths import PathForecast
from vinppl.growth.resampling import ConditionalResampler
from vinppl.growth.runs import TrajectoryRuns
from vinppl.growth.shapley import (
    SharedVariance,
    mean_with_error,
    share_variance,
    subsets,
    variance_with_error,
)
from vinppl.growth.sites import in_order

__all__ = ["Players", "find_players", "share_out"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Players:
    """Groups of sites whose effects are told apart.

    A group can only have a part in what it moves. One that merely goes along with another in the posterior
    has none: the gain of a sensor may tell much about a velocity, but does not make its uncertainty.

    Attributes:
        motion: sites of the groups that move the path.
        all: the same, and the groups that only move what is measured of it (the gain of a sensor). A site of
            noise alone is in neither: its part is the variance of the noise.
        sensed: which measurements the latter move, `(channel,)`.
        noise: name of the part that the noise makes.
    """

    motion: Mapping[str, list[str]]
    all: Mapping[str, list[str]]
    sensed: NDArray[np.bool_]
    noise: str


def find_players(runs: TrajectoryRuns, sites: Mapping[str, list[str]]) -> Players:
    """Find out what the sites of measuring and discrepancy move, by giving them the values of other draws."""
    motion, everything = dict(sites), dict(sites)
    few = {name: value[:32] for name, value in runs.own(0).items()}
    plain = runs.run(0, few, noise_free=True)
    sensed = np.zeros(plain["obs"].shape[-1], dtype=bool)
    for part in ("observation", "discrepancy"):
        if part not in sites:
            continue
        others = {name: few[name].roll(1, 0) for name in sites[part] if name in few}
        moved = runs.run(0, few | others, noise_free=True)
        differs = {name: _differ(plain[name], moved[name]).any((0, 1)) for name in plain}
        path = [bool(differs[name].any()) for name in ("states", "energy") if name in differs]
        if not differs["obs"].any() and not any(path):
            del everything[part]
        if path and not any(path):
            sensed |= differs["obs"]
            del motion[part]
        elif part not in everything:
            del motion[part]
    memory = any(name.startswith("correlation_time") for name in runs.sites)
    return Players(motion, everything, sensed, "discrepancy" if memory else "observation")


def _differ(first: Array, second: Array) -> NDArray[np.bool_]:
    return (first != second) & ~(np.isnan(first) & np.isnan(second))


def share_out(
    runs: TrajectoryRuns,
    n: int,
    forecast: PathForecast,
    players: Players,
    weights: Array,
    num_replicates: int,
    rng: np.random.Generator,
) -> TrajectoryGrowth:
    """Share out the variance of one trajectory's outputs.

    Args:
        runs: the model.
        n: index of the trajectory.
        forecast: its forecast from all draws.
        players: groups of sites.
        weights: of the draws, for errors; from `bootstrap_weights`.
        num_replicates: times that sites are drawn anew.
        rng: of those.
    """
    fields = forecast.fields
    centre = centre_of(forecast.mean)
    mean = around(forecast.mean, centre, fields.periodic)
    anew = _drawn_anew(runs, n, forecast, players.all, num_replicates, rng)
    anew = {u: around(values, centre, fields.periodic) for u, values in anew.items()}
    channels = fields.columns["obs"]
    measured = forecast.mean[..., channels] + forecast.noise
    measured = around(measured, centre_of(measured), fields.periodic[channels])
    shared = _shared(mean, anew, players.motion, weights)
    if players.sensed.any():
        sensed = np.concatenate([np.zeros(channels.start, dtype=bool), players.sensed])
        shared = _combined(shared, _shared(mean, anew, players.all, weights), sensed)
    return TrajectoryGrowth(
        forecast.horizon,
        np.concatenate([mean[..., : channels.start], measured], axis=-1),
        _with_noise(shared, forecast.noise, measured, players.noise, weights, channels),
        forecast.energy,
    )


def _shared(
    output: Array, anew: Mapping[frozenset[str], Array], players: Mapping[str, list[str]], weights: Array
) -> SharedVariance:
    """Share the variance of outputs out among some of the groups."""
    own = {u: values for u, values in anew.items() if u < set(players)}
    return share_variance(output, own, list(players), weights)


def _combined(path: SharedVariance, sensor: SharedVariance, sensed: NDArray[np.bool_]) -> SharedVariance:
    """Return the parts of all groups in the fields that a sensor moves, and those of the motion elsewhere."""
    zeros = np.zeros_like(path.variance)

    def chosen(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.where(sensed, second[name], first.get(name, zeros)) for name in second}

    return SharedVariance(
        path.variance,
        path.variance_error,
        chosen(path.parts, sensor.parts),
        chosen(path.part_errors, sensor.part_errors),
        sensor.mismatch,
    )


def _with_noise(
    shared: SharedVariance,
    noise: Array,
    measured: Array,
    noise_part: str,
    weights: Array,
    channels: slice,
) -> SharedVariance:
    """Return parts to which the noise of the measurements is added, beside their own total variance."""
    added, added_error = mean_with_error(weights, noise**2)
    zeros = np.zeros_like(shared.variance)
    names = in_order([*shared.parts, noise_part])
    parts = {name: shared.parts.get(name, zeros).copy() for name in names}
    errors = {name: shared.part_errors.get(name, zeros).copy() for name in names}
    parts[noise_part][..., channels] += added
    errors[noise_part][..., channels] = np.hypot(errors[noise_part][..., channels], added_error)
    variance, variance_error = shared.variance.copy(), shared.variance_error.copy()
    variance[..., channels], variance_error[..., channels] = variance_with_error(weights, measured)
    return SharedVariance(variance, variance_error, parts, errors, shared.mismatch)


def _drawn_anew(
    runs: TrajectoryRuns,
    n: int,
    forecast: PathForecast,
    players: Mapping[str, list[str]],
    num_replicates: int,
    rng: np.random.Generator,
) -> dict[frozenset[str], Array]:
    """Return outputs for every set of held groups, `(replicate, num_draws, horizon, field)`."""
    draws = runs.own(n)
    chosen = subsets(list(players))
    if not chosen:
        return {}
    free = runs.unconstrained(draws)
    own = {part: {name: free[name] for name in names if name in free} for part, names in players.items()}
    resampler = ConditionalResampler({part: _flat(sites) for part, sites in own.items()})
    found: dict[frozenset[str], Array] = {}
    for held in chosen:
        replicates = []
        for _ in range(num_replicates):
            drawn = resampler.draw(held, random_partners(resampler.num_draws, rng))
            other: dict[str, Array] = {}
            for part, values in drawn.items():
                other |= _cut(values, own[part])
            outputs = runs.run(n, {**draws, **runs.constrained(other, draws)}, noise_free=True)
            replicates.append(forecast.fields.pack(outputs)[:, forecast.index])
        found[held] = np.stack(replicates)
    return found


def _flat(sites: Mapping[str, Array]) -> Array:
    """Put the scalars of sites side by side, `(num_draws, size)`."""
    return np.concatenate([x.reshape(len(x), -1) for x in sites.values()], axis=1)


def _cut(values: Array, like: Mapping[str, Array]) -> dict[str, Array]:
    """Cut columns `(num_draws, size)` into arrays with the shapes of others."""
    ends = np.cumsum([x[0].size for x in like.values()])
    pieces = np.split(values, ends[:-1], axis=1)
    return {name: piece.reshape(x.shape) for piece, (name, x) in zip(pieces, like.items(), strict=True)}
