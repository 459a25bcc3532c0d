"""Draws of some sites given the others, from draws of all: what dependent posteriors need.

In a posterior sites depend on one another: a stiffer spring goes with another initial velocity. An effect of
one group of sites is a statement about the others given that group, so they cannot be shuffled freely. Given
the values x_A of the sites that are held, the others become those of another draw *, moved by what their
regression on x_A says,

    x_B = x*_B + (x_A - x*_A) S_AA^-1 S_AB,        S the covariance of the draws,

in unconstrained coordinates, so that supports are kept (conditioning by kriging; Journel and Huijbregts,
Mining Geostatistics, 1978, chapter VII). For many draws it is exact for independent sites of any
distribution and for Gaussian ones of any dependence, however tight. Beyond those it assumes that the
regression is linear and what it leaves over independent of x_A.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from vinppl._checks import require

__all__ = ["MIN_DRAWS", "ConditionalResampler"]

Array = NDArray[np.float64]

MIN_DRAWS = 10
"""Draws below which nothing is said about how sites depend on one another."""

FEW_DRAWS = 5
"""Draws for each scalar below which their correlation is shrunk towards independence."""


class ConditionalResampler:
    """Joint draws of groups of sites, of which some are held and the others drawn anew given those.

    Args:
        groups: unconstrained draws of each group, `(num_draws, size)`, the same draws in all.

    Raises:
        ValueError: if there are fewer than 10 draws, or their numbers differ.
    """

    def __init__(self, groups: Mapping[str, Array]) -> None:
        counts = {len(values) for values in groups.values()}
        require(len(counts) == 1, "all groups must have the same number of draws", f"{sorted(counts)}")
        self.num_draws = counts.pop()
        enough = self.num_draws >= MIN_DRAWS
        require(enough, f"there must be at least {MIN_DRAWS} draws", f"{self.num_draws}")
        self.columns: dict[str, slice] = {}
        start = 0
        for name, values in groups.items():
            self.columns[name] = slice(start, start + values.shape[1])
            start += values.shape[1]
        values = np.concatenate(list(groups.values()), axis=1)
        self.centre, self.scale = values.mean(0), values.std(0)
        self.scores = (values - self.centre) / np.where(self.scale > 0, self.scale, 1.0)
        self.correlation = _correlation(self.scores)

    def draw(self, held: Collection[str], other: NDArray[np.int64]) -> dict[str, Array]:
        """Return draws of the groups that are not held, given those that are.

        Args:
            held: names of the groups that keep their values.
            other: index of the draw that each one is paired with, `(num_draws,)`.

        Returns:
            The other groups, each `(num_draws, size)`.
        """
        free = [name for name in self.columns if name not in held]
        a = np.concatenate([np.arange(0), *(np.r_[self.columns[name]] for name in held)]).astype(np.int64)
        offset = self.scores[:, a] - self.scores[other][:, a]
        found = {}
        for name in free:
            columns = self.columns[name]
            slopes = _regression(self.correlation[np.ix_(a, a)], self.correlation[a, columns])
            scores = self.scores[other, columns] + offset @ slopes
            found[name] = self.centre[columns] + self.scale[columns] * scores
        return found


def _correlation(scores: Array) -> Array:
    """Return the correlation of scores, shrunk where draws are few for their number.

    Shrinkage towards independence by the weight of Schäfer and Strimmer (Statistical Applications in Genetics
    and Molecular Biology 4, 2005). Scalars that never vary are independent of everything.
    """
    count, size = scores.shape
    correlation = scores.T @ scores / count
    if count < FEW_DRAWS * size and size > 1:
        off = ~np.eye(size, dtype=bool)
        variance = ((scores**2).T @ (scores**2) / count - correlation**2) / (count - 1)
        weight = variance[off].sum() / max((correlation[off] ** 2).sum(), 1e-12)
        correlation[off] *= 1 - np.clip(weight, 0.0, 1.0)
    return correlation


def _regression(aa: Array, ab: Array) -> Array:
    """Return the coefficients of a regression from correlations, the smallest where they are not unique."""
    return np.asarray(np.linalg.lstsq(aa, ab, rcond=1e-12)[0], dtype=np.float64)
