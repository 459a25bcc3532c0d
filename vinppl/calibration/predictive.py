"""Do forecasts mean what they say? Coverage, scores and PIT by horizon."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vinppl import scores
from vinppl._checks import require

__all__ = ["COVERAGES", "POOLED", "average_scores", "horizon_scores"]

LEVELS = scores.LEVELS

COVERAGES = tuple(f"coverage_{100 * level:g}" for level in LEVELS)
"""Columns of tables that hold the share of truths inside of central predictive intervals."""


def horizon_scores(
    draws: ArrayLike,
    truth: ArrayLike,
    horizon: ArrayLike,
    edges: Sequence[float],
    *,
    periodic: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """Score forecasts of several trajectories, over parts of the horizon.

    Args:
        draws: predictive draws, `(num_draws, trajectory, time, channel)`.
        truth: what happened, `(trajectory, time, channel)`, NaN where nothing was measured.
        horizon: time since the last fitted sample, `(time,)` or `(trajectory, time)`.
        edges: ends of the parts, increasing; a part holds its right end but not its left one.
        periodic: which channels are angles.

    Returns:
        For each part its right end as `horizon`, `coverage_50`, `coverage_80`, `coverage_90` and
        `coverage_95`, `crps`, `energy_score` of all channels at a time, `width` (of the 90 % interval) and
        `pit`, the transforms of all its truths as a list. Scores are means over channels, in their units.
    """
    x, y = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    require(y.ndim == 3, "truth must have shape (trajectory, time, channel)", y)
    when = np.broadcast_to(np.asarray(horizon, dtype=np.float64), y.shape[:2])
    increasing = len(edges) >= 2 and bool(np.all(np.diff(edges) > 0))
    require(increasing, "edges must be at least two increasing numbers", repr(tuple(edges)))
    # Drawn as one line of times: parts of ragged trajectories are no rectangle.
    lines, targets = x.reshape(len(x), -1, y.shape[-1]), y.reshape(-1, y.shape[-1])
    transforms = scores.pit(x, y, periodic=periodic).reshape(targets.shape)
    rows = []
    for low, high in itertools.pairwise(edges):
        part = ((when > low + 1e-9) & (when <= high + 1e-9)).ravel()
        a, b = lines[:, part], targets[part]
        covered = scores.coverage(a, b, LEVELS, periodic=periodic)
        inside = transforms[part]
        rows.append(
            {
                "horizon": float(high),
                **{name: covered[level] for name, level in zip(COVERAGES, LEVELS, strict=True)},
                "crps": scores.crps(a, b, periodic=periodic),
                "energy_score": scores.energy_score(a, b, periodic=periodic),
                "width": scores.interval_width(a, [0.9], periodic=periodic)[0.9],
                "pit": inside[np.isfinite(inside)].tolist(),
            }
        )
    return rows


MEDIANS = ("crps", "energy_score", "width")

POOLED = "all"
"""Horizon of rows for all parts of the horizon together."""


def average_scores(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Average rows of `horizon_scores` over simulations.

    Args:
        rows: rows of many simulations with the columns `keys`, `horizon` and `seed`.
        keys: columns to group by, beside the horizon.

    Returns:
        A row for each group and part of the horizon, and one with the horizon `all` for all parts together:
        keys, `horizon`, mean coverages, medians of `crps`, `energy_score` and `width` (a prior may hold
        motions that run away, whose scores would drown all others; those of `all` are over all parts of all
        simulations), `seeds`, the number of simulations, and `coverage_90_se`, the standard error of that
        mean (over simulations: points of one are dependent).
    """
    by = [*keys, "horizon"]
    columns = [*by, "seed", *COVERAGES, *MEDIANS]
    pooled = rows[columns].assign(horizon=POOLED)
    parts = pd.concat([rows[columns].astype({"horizon": object}), pooled])
    of_one = parts.groupby([*by, "seed"], sort=False)[list(COVERAGES)].mean().reset_index()
    grouped = of_one.groupby(by, sort=False)
    found = grouped[list(COVERAGES)].mean().join(parts.groupby(by, sort=False)[list(MEDIANS)].median())
    error = grouped["coverage_90"].std() / grouped["seed"].nunique() ** 0.5
    return found.assign(seeds=grouped["seed"].nunique(), coverage_90_se=error).reset_index()
