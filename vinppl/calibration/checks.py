"""Posterior predictive checks with test quantities of mechanics: what can the model not reproduce?

A test quantity T(y, z) of measurements and draws is computed for the measured data and for data replicated
from the same draws. Its Bayesian p-value is the share of draws for which the replicated one is larger; near 0
or 1 the data show something that the model does not make.

Reference: Gelman, Meng, Stern: Posterior predictive assessment of model fitness via realized discrepancies.
Statistica Sinica 6 (1996).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.calibration.weighted import WeightedDraws
from vinppl.draws import plate_nesting, predict, prototype
from vinppl.state import Trajectory

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["PosteriorChecks", "posterior_checks"]

Array = NDArray[Any]

EXTREME = 0.025
"""Share at either end beyond which a p-value is called a misfit."""

MEANINGS = {
    "residual_sd": ("the noise scale is too small", "the noise scale is too large"),
    "residual_lag1": (
        "residuals go on from one sample to the next: noise with memory, or a force that the model lacks",
        "residuals alternate more than the noise of the model does",
    ),
    "largest_residual": (
        "there are outliers that the noise does not make",
        "noise has lighter tails than the model's",
    ),
    "period": ("the motion is slower than the model's", "the motion is faster than the model's"),
    "energy_drift": (
        "measured energy falls less, or rises more, than the model's: less damping, or a drive",
        "measured energy falls more than the model's: more damping",
    ),
}
"""What it means that the measured quantity is larger, or smaller, than replicated ones."""


class PosteriorChecks(NamedTuple):
    """Posterior predictive checks of a fit.

    Attributes:
        table: a row for each test quantity, by name: `measured` and `replicated` (means over draws), `sd` of
            the replicated ones, `p_value`, and `verdict` in words.
        differences: replicated minus measured by name, each `(num_draws,)`; NaN where a quantity is
            undefined.
    """

    table: pd.DataFrame
    differences: dict[str, Array]


def posterior_checks(
    model: Any, data: Trajectories, posterior: WeightedDraws, *, num_draws: int = 500, seed: int = 0
) -> PosteriorChecks:
    """Check a fitted model against the data it was fitted to.

    Test quantities: of every channel the standard deviation of the residuals (measured minus noise-free),
    their lag-1 autocorrelation and the largest one over their standard deviation; the period of every
    position (from crossings of its middle; of a velocity where no position is measured); and, where all
    positions and velocities are measured and the model has a `vin`, the change of the model's energy at the
    measured states from the first to the last third of the record.

    Args:
        model: Pyro model of one argument, the data.
        data: what it was fitted to.
        posterior: draws of all latent sites.
        num_draws: draws to replicate data from.
        seed: of the replications.
    """
    require(num_draws >= 20, "num_draws must be at least 20", num_draws)
    draws = posterior.resampled(num_draws, seed=seed)
    found = predict(
        model, draws, data, sites=["obs"], observed="both", seed=seed, parameters=posterior.parameters
    )
    replicated, mean = found["obs"], found["obs_mean"].cpu().double().numpy()
    mask = data.mask.cpu().numpy()
    both = [
        np.where(mask, y.cpu().double().numpy(), np.nan)
        for y in (data.values.expand_as(replicated), replicated)
    ]
    quantities = [_quantities(data, y, y - mean) for y in both]
    if _has_energy(model, data):
        for own, y in zip(quantities, (data.values.expand_as(replicated), replicated), strict=True):
            own["energy_drift"] = _energy_drift(model, draws, data, y, posterior)
    rows, differences = {}, {}
    for name, measured in quantities[0].items():
        again = quantities[1][name]
        differences[name] = again - measured
        rows[name] = _row(name, measured, again)
    return PosteriorChecks(pd.DataFrame.from_dict(rows, orient="index"), differences)


def _row(name: str, measured: Array, replicated: Array) -> dict[str, Any]:
    """Return the row of one test quantity."""
    usable = np.isfinite(measured) & np.isfinite(replicated)
    if usable.sum() < 20:
        empty = dict.fromkeys(("measured", "replicated", "sd", "p_value"), np.nan)
        return {**empty, "verdict": "undefined for these data"}
    a, b = measured[usable], replicated[usable]
    p = float((b > a).mean() + 0.5 * (b == a).mean())
    larger, smaller = MEANINGS[name.partition("[")[0]]
    verdict = larger if p < EXTREME else smaller if p > 1 - EXTREME else "as the model makes it"
    return {
        "measured": float(a.mean()),
        "replicated": float(b.mean()),
        "sd": float(b.std()),
        "p_value": p,
        "verdict": verdict,
    }


def _quantities(data: Trajectories, values: Array, residuals: Array) -> dict[str, Array]:
    """Return the test quantities of data sets `(draw, trajectory, time, channel)`, each `(draw,)`."""
    found: dict[str, Array] = {}
    times = data.times.cpu().numpy()
    with np.errstate(all="ignore"):
        sd = np.sqrt(np.nanmean(residuals**2, axis=(1, 2)))
        pairs = np.nanmean(residuals[:, :, 1:] * residuals[:, :, :-1], axis=(1, 2))
        largest = np.nanmax(np.abs(residuals), axis=(1, 2)) / sd
    positions = [c for c, channel in enumerate(data.channels) if channel.quantity == "position"]
    for c, channel in enumerate(data.channels):
        found[f"residual_sd[{channel.name}]"] = sd[:, c]
        found[f"residual_lag1[{channel.name}]"] = pairs[:, c] / sd[:, c] ** 2
        found[f"largest_residual[{channel.name}]"] = largest[:, c]
        if c in positions or not positions:
            found[f"period[{channel.name}]"] = _period(values[..., c], times)
    return found


def _period(values: Array, times: Array) -> Array:
    """Return the mean time between every other crossing of the middle, `(draw, trajectory, time) -> (draw,)`.

    The middle lies halfway between the lowest and the highest twentieth of the values.
    """
    periods = np.full(values.shape[:2], np.nan)
    for n in range(values.shape[1]):
        seen = np.isfinite(values[0, n])
        if seen.sum() < 3:
            continue
        y, t = values[:, n, seen], times[n, seen]
        above = y > np.quantile(y, (0.05, 0.95), axis=1).mean(0)[:, None]
        crossed = above[:, 1:] != above[:, :-1]
        count = crossed.sum(1)
        first = t[1 + crossed.argmax(1)]
        last = t[len(t) - 1 - crossed[:, ::-1].argmax(1)]
        with np.errstate(all="ignore"):
            periods[:, n] = np.where(count >= 2, 2 * (last - first) / (count - 1), np.nan)
    defined = np.isfinite(periods).all(0)  # the same trajectories for every data set
    return periods[:, defined].mean(1) if defined.any() else np.full(len(values), np.nan)


def _has_energy(model: Any, data: Trajectories) -> bool:
    """Return whether the model's energy can be computed at every measured state."""
    measured = {(channel.quantity, channel.coordinate) for channel in data.channels}
    wanted = {(quantity, i) for quantity in ("position", "velocity") for i in range(data.dim)}
    whole = wanted <= measured and bool(data.mask.all()) and plate_nesting(prototype(model, data)) == 1
    return whole and callable(getattr(getattr(model, "vin", None), "energy", None))


def _energy_drift(
    model: Any, draws: dict[str, Tensor], data: Trajectories, values: Tensor, posterior: WeightedDraws
) -> Array:
    """Return the mean change of energy over the record, `(draw, trajectory, time, channel) -> (draw,)`."""
    order = torch.argsort(data.channel_index)
    q, v = values[..., order].chunk(2, dim=-1)

    def with_energy(data: Trajectories) -> None:
        model(data)
        energy = model.vin.energy(Trajectory(data.times, q, v))
        with pyro.plate("measured_trajectory", data.num_trajectories, dim=-1):
            pyro.deterministic("measured_energy", energy, event_dim=1)

    count = len(values)
    found = predict(
        with_energy, draws, data, sites=["measured_energy"], chunk_size=count, parameters=posterior.parameters
    )
    energy = found["measured_energy"].cpu().double().numpy()
    third = max(1, energy.shape[-1] // 3)
    drift: Array = (energy[..., -third:].mean(-1) - energy[..., :third].mean(-1)).mean(1)
    return drift
