"""Simulation-based calibration: are true values spread among posterior draws as they should be?

If a truth comes from the prior and data from the model with that truth, then the truth is one more draw
from the posterior: its rank among independent posterior draws is uniform, for every parameter and for every
function of parameters and data. Ranks of many simulations that are not uniform show a posterior that is too
narrow, too wide or off to one side.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian inference algorithms with
    simulation-based calibration. arXiv 1804.06788 (2018).
    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari: Simulation-based calibration checking
    for Bayesian computation: the choice of test quantities shapes sensitivity. Bayesian Analysis 20 (2025),
    for quantities that depend on the data, such as the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vinppl._checks import require
from vinppl.calibration.envelopes import rank_counts, rank_envelope

__all__ = ["judge_ranks", "rank_statistic", "rank_verdict", "thinned"]

Array = NDArray[Any]

CALIBRATED = "calibrated"


def thinned(num_draws: int, num_kept: int) -> Array:
    """Return the indices of `num_kept` draws, evenly spaced.

    Neighbouring draws of a Markov chain are alike, which makes ranks pile up at both ends. Keep no more
    than the effective sample size.

    Args:
        num_draws: all draws, those of several chains one after another.
        num_kept: how many to keep.

    Raises:
        ValueError: if there are fewer than that.
    """
    require(1 <= num_kept <= num_draws, f"num_kept must be between 1 and {num_draws}", num_kept)
    return (np.arange(num_kept) * num_draws + num_draws // 2) // num_kept


def rank_statistic(ranks: ArrayLike, num_draws: int, *, level: float = 0.99) -> float:
    """Return how far the distribution of ranks departs from a uniform one, over what chance allows.

    Args:
        ranks: number of the posterior draws below the truth, integers `(num_simulations,)`.
        num_draws: posterior draws of each simulation.
        level: probability with which uniform ranks stay within one.

    Returns:
        The largest difference between the empirical and the uniform distribution function, over the distance
        of the simultaneous envelope in that direction: above one is outside of the envelope.
    """
    counts = rank_counts(np.asarray(ranks), num_draws)
    num_simulations = np.asarray(ranks).size
    lower, upper = rank_envelope(num_simulations, num_draws, level)
    expected = num_simulations * np.arange(1, num_draws + 1) / (num_draws + 1)
    difference = counts - expected
    room = np.where(difference > 0, upper - expected, expected - lower)
    # Where the envelope has no room on a side (few simulations), any count beyond it is outside.
    share = np.abs(difference) / np.maximum(room, 1e-12)
    return float(np.where((counts >= lower) & (counts <= upper), np.minimum(share, 1.0), share).max())


def rank_verdict(ranks: ArrayLike, num_draws: int, *, level: float = 0.99) -> str:
    """Say in words what the ranks show.

    Returns:
        `calibrated` where the ranks stay within the envelope; otherwise `too narrow` (truths lie outside of
        the draws more often than they should), `too wide`, `too high` or `too low` (the posterior against the
        truth), two of them where both are plain, or `not uniform`.
    """
    if rank_statistic(ranks, num_draws, level=level) <= 1:
        return CALIBRATED
    # Normal scores of uniform ranks are standard normal. A bias moves their mean, a wrong width their
    # variance.
    scores = stats.norm.ppf((np.asarray(ranks) + 0.5) / (num_draws + 1))
    place = float(scores.mean()) * math.sqrt(scores.size)
    spread = (float(scores.var()) - 1) * math.sqrt(scores.size / 2)
    words = {"too low" if place > 0 else "too high": abs(place)}
    words["too narrow" if spread > 0 else "too wide"] = abs(spread)
    strongest = max(words.values())
    plain = sorted((w for w, z in words.items() if z > max(3.0, 0.5 * strongest)), key=lambda w: -words[w])
    return " and ".join(plain) or "not uniform"


def judge_ranks(
    ranks: Mapping[str, ArrayLike], num_draws: int, *, num_failed: int = 0, level: float = 0.99
) -> pd.DataFrame:
    """Judge the ranks of every parameter.

    A simulation whose fit failed has no rank. It counts as the lowest or as the highest one, whichever makes
    the ranks less uniform, so that an engine gains nothing by failing.

    Args:
        ranks: by parameter, integers from 0 to `num_draws`, each `(num_simulations,)`.
        num_draws: posterior draws that each rank is among.
        num_failed: simulations beside these whose fit failed.
        level: probability with which the ranks of one calibrated parameter pass. Of a hundred calibrated
            parameters, one is expected to fail at 0.99.

    Returns:
        A row for each parameter: `parameter`, `simulations` (failed ones included), `failed`, `statistic`
        (see `rank_statistic`), `passed` (whether that is at most one), `passed_jointly` (the same for an
        envelope in which all parameters stay together with probability `level`, by Bonferroni) and `verdict`
        in words.
    """
    require(len(ranks) > 0, "ranks must hold at least one parameter", "none")
    joint = 1 - (1 - level) / len(ranks)
    rows = []
    for name, values in ranks.items():
        statistic = _worst_statistic(values, num_draws, num_failed, level)
        verdict = rank_verdict(values, num_draws, level=level)
        rows.append(
            {
                "parameter": name,
                "simulations": int(np.asarray(values).size) + num_failed,
                "failed": num_failed,
                "statistic": statistic,
                "passed": statistic <= 1,
                "passed_jointly": _worst_statistic(values, num_draws, num_failed, joint) <= 1,
                "verdict": "too many fits failed" if verdict == CALIBRATED and statistic > 1 else verdict,
            }
        )
    return pd.DataFrame(rows)


def _worst_statistic(ranks: ArrayLike, num_draws: int, num_failed: int, level: float) -> float:
    """Return the statistic with failed simulations at the end where they make it larger."""
    ends = (0, num_draws) if num_failed else (0,)
    padded = (np.append(np.asarray(ranks), np.full(num_failed, end)) for end in ends)
    return max(rank_statistic(values, num_draws, level=level) for values in padded)
