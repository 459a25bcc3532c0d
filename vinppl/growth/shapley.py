"""The variance of an output, shared out among groups of inputs so that the parts add up.

For a set u of groups let c(u) = Var(E[Y | groups in u]), the variance that knowing them would take away (law
of total variance). The Shapley effect of group k is what it adds to c, averaged over the orders in which the
groups can become known:

    part_k = sum over u without k of  |u|! (K - |u| - 1)! / K!  (c(u with k) - c(u)).

Parts are not negative and add up to Var(Y), whether or not the inputs are independent, where Sobol' indices
of dependent inputs do not. What only several groups together explain is divided evenly between them.

c(u) is estimated by pick-freeze: with Y' computed from the same groups in u and others drawn anew given
those, c(u) is the covariance of Y and Y'. It enters as a correlation, whose estimate is efficient and at most
one, times the variance of Y:

    c(u) = Var(Y) (1 - mean((Y - Y')^2) / (2 s^2)),        s^2 the variance of Y and Y' pooled.

References:
    Owen: Sobol' indices and Shapley value. SIAM/ASA Journal on Uncertainty Quantification 2 (2014).
    Song, Nelson, Staum: Shapley effects for global sensitivity analysis. Same journal 4 (2016).
    Owen, Prieur: On Shapley value for measuring importance of dependent inputs. Same journal 5 (2017).
    Janon, Klein, Lagnoux, Nodet, Prieur: Asymptotic normality and efficiency of two Sobol index estimators.
    ESAIM: Probability and Statistics 18 (2014), for the estimate of the correlation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SharedVariance",
    "bootstrap_weights",
    "mean_with_error",
    "shapley_values",
    "share_variance",
    "subsets",
    "variance_with_error",
]

Array = NDArray[np.float64]
Subset = frozenset[str]


class SharedVariance(NamedTuple):
    """The variance of an output and its parts, with standard errors by the bootstrap over draws.

    Attributes:
        variance: `(*output)`.
        variance_error: the same shape.
        parts: of each group, each `(*output)`; they add up to the variance.
        part_errors: the same.
        mismatch: how far standard deviations of the outputs computed anew are off, as a logarithm of their
            ratio to that of Y, `(subset, *output)`. Zero, up to Monte Carlo error, if the others were drawn
            anew from their true conditional distribution.
    """

    variance: Array
    variance_error: Array
    parts: dict[str, Array]
    part_errors: dict[str, Array]
    mismatch: Array


def subsets(groups: Sequence[str]) -> list[Subset]:
    """Return the sets of groups for which outputs must be computed anew: all but the empty and the whole."""
    return [frozenset(u) for size in range(1, len(groups)) for u in combinations(groups, size)]


def bootstrap_weights(num_draws: int, num_bootstrap: int, rng: np.random.Generator) -> Array:
    """Return weights of draws that add up to one, even ones first, `(1 + num_bootstrap, num_draws)`."""
    even = np.full(num_draws, 1 / num_draws)
    return np.vstack([even, rng.multinomial(num_draws, even, num_bootstrap) / num_draws])


def mean_with_error(weights: Array, values: Array) -> tuple[Array, Array]:
    """Return the mean over draws of values `(num_draws, *shape)` and its bootstrap error, each `(*shape)`."""
    means = (weights @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    return means[0], means[1:].std(0)


def variance_with_error(weights: Array, values: Array) -> tuple[Array, Array]:
    """Return the variance over draws of values `(num_draws, *shape)` and its bootstrap error."""
    centred = (values - values.mean(0)).reshape(len(values), -1)
    variances = _moments(weights, centred)[1].reshape(-1, *values.shape[1:])
    return variances[0], variances[1:].std(0)


def share_variance(
    output: Array, anew: Mapping[Subset, Array], groups: Sequence[str], weights: Array
) -> SharedVariance:
    """Share the variance of an output out among groups of inputs.

    Args:
        output: Y, `(num_draws, *output)`.
        anew: for every set of `subsets(groups)` the outputs Y' of draws that keep the groups in it,
            `(replicate, num_draws, *output)`. Draws that are NaN there are left out.
        groups: names of the groups.
        weights: from `bootstrap_weights`, for the standard errors.
    """
    shape, count = output.shape[1:], len(output)
    y = output.reshape(count, -1)
    centre = y.mean(0)
    variance = _moments(weights, y - centre)[1]
    closed = {frozenset(): np.zeros_like(variance), frozenset(groups): variance}
    mismatch = []
    for u, replicates in anew.items():
        pairs = [_compare(weights, y - centre, z.reshape(count, -1) - centre) for z in replicates]
        closed[u] = variance * np.mean([correlation for correlation, _ in pairs], axis=0)
        mismatch.append(np.mean([ratio for _, ratio in pairs], axis=0))
    parts = shapley_values(closed, groups)
    return SharedVariance(
        variance[0].reshape(shape),
        variance[1:].std(0).reshape(shape),
        {name: value[0].reshape(shape) for name, value in parts.items()},
        {name: value[1:].std(0).reshape(shape) for name, value in parts.items()},
        np.stack(mismatch).reshape(-1, *shape) if mismatch else np.zeros((0, *shape)),
    )


def shapley_values(closed: Mapping[Subset, Array], groups: Sequence[str]) -> dict[str, Array]:
    """Return the Shapley value of each group from c of every set of groups, the empty one included."""
    count, values = len(groups), {}
    for name in groups:
        others = [other for other in groups if other != name]
        total = np.zeros_like(closed[frozenset()])
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for u in map(frozenset, combinations(others, size)):
                total += weight * (closed[u | {name}] - closed[u])
        values[name] = total
    return values


def _moments(weights: Array, y: Array) -> tuple[Array, Array]:
    """Return means and variances under rows of weights, both `(row, output)`."""
    mean = weights @ y
    return mean, np.maximum(weights @ y**2 - mean**2, 0.0)


def _compare(weights: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Return the correlation of Y and Y', `(row, output)`, and the log ratio of their sds, `(output,)`."""
    finite = np.asarray(np.isfinite(z).all(-1))
    weights = weights * finite
    weights = weights / weights.sum(-1, keepdims=True)
    z = np.where(finite[:, None], z, 0.0)
    (y_mean, y_variance), (z_mean, z_variance) = _moments(weights, y), _moments(weights, z)
    pooled = 0.5 * (y_variance + z_variance) + 0.25 * (y_mean - z_mean) ** 2
    distance = weights @ (y - z) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(pooled > 0, 1 - 0.5 * distance / pooled, 0.0)
        ratio = np.where(y_variance[0] > 0, 0.5 * np.log(z_variance[0] / y_variance[0]), 0.0)
    return correlation, ratio
