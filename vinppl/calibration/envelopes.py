"""Simultaneous envelopes for the empirical distribution of ranks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vinppl._checks import require

__all__ = ["rank_counts", "rank_envelope"]

Array = NDArray[Any]


def rank_counts(ranks: Array, num_draws: int) -> Array:
    """Return how many ranks lie below 1, 2, ..., `num_draws`, shape `(num_draws,)`.

    Args:
        ranks: integers from 0 to `num_draws`, one for each simulation, shape `(num_simulations,)`.
        num_draws: posterior draws that each rank is among.
    """
    values = np.asarray(ranks)
    valid = values.ndim == 1 and values.size > 0 and values.dtype.kind in "iu"
    valid = valid and bool((values >= 0).all() and (values <= num_draws).all())
    require(valid, f"ranks must be integers from 0 to {num_draws}, shape (num_simulations,)", values)
    return np.bincount(values, minlength=num_draws + 1).cumsum()[:-1]


@lru_cache(maxsize=64)
def rank_envelope(num_simulations: int, num_draws: int, level: float = 0.99) -> tuple[Array, Array]:
    """Return the counts between which `rank_counts` of uniform ranks stay everywhere, with probability
    `level`.

    The envelope joins central intervals of the binomial counts, all of one tail probability. That is found by
    bisection on the exact probability that the counts, a Markov chain, never leave the envelope. Counts are
    whole numbers, so that the probability is `level` or a little more.

    Args:
        num_simulations: ranks.
        num_draws: posterior draws that each rank is among, so that there are `num_draws + 1` ranks.
        level: probability that uniform ranks stay inside.

    Returns:
        Lowest and highest count, each of shape `(num_draws,)`.

    References:
        Säilynoja, Bürkner, Vehtari: Graphical test for discrete uniformity and its applications in
        goodness-of-fit evaluation and multiple sample comparison. Statistics and Computing 32 (2022),
        section 2.
    """
    require(num_simulations >= 1, "num_simulations must be at least 1", num_simulations)
    require(num_draws >= 1, "num_draws must be at least 1", num_draws)
    require(0 < level < 1, "level must lie between 0 and 1", level)
    low, high = 0.0, 1 - level  # tail probabilities: of an envelope that holds, and of one that need not
    for _ in range(20):
        middle = 0.5 * (low + high)
        if _probability_inside(num_simulations, *_intervals(num_simulations, num_draws, middle)) >= level:
            low = middle
        else:
            high = middle
    return _intervals(num_simulations, num_draws, low)


def _intervals(num_simulations: int, num_draws: int, tails: float) -> tuple[Array, Array]:
    """Return the central interval of every count that leaves out at most `tails / 2` on each side."""
    share = np.arange(1, num_draws + 1) / (num_draws + 1)
    lower = stats.binom.ppf(tails / 2, num_simulations, share)
    upper = stats.binom.isf(tails / 2, num_simulations, share)
    return np.maximum(lower, 0).astype(int), upper.astype(int)


def _probability_inside(num_simulations: int, lower: Array, upper: Array) -> float:
    """Return the probability that the counts of uniform ranks stay between `lower` and `upper`."""
    num_ranks = len(lower) + 1
    counts, probability = np.zeros(1, dtype=int), np.ones(1)
    for j, (low, high) in enumerate(zip(lower, upper, strict=True)):
        following = np.arange(low, high + 1)
        # Of the ranks that are not below j, each is j with the same probability.
        remaining = num_simulations - counts[:, None]
        step = stats.binom.pmf(following - counts[:, None], remaining, 1 / (num_ranks - j))
        counts, probability = following, probability @ step
    return float(probability.sum())
