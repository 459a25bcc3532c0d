"""What calibration takes from ArviZ, on plain arrays and the same for both of its majors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require
from vinppl.export import ARVIZ_MAJOR, az, to_arviz

__all__ = ["bulk_ess", "loo_pointwise", "relative_efficiency"]

Array = NDArray[Any]


def loo_pointwise(log_likelihood: ArrayLike, *, relative_efficiency: float = 1.0) -> tuple[Array, Array]:
    """Return PSIS-LOO of every unit, and the shape k of its importance weights, by ArviZ.

    Args:
        log_likelihood: log density of every unit under every draw, `(chain, draw, unit)`.
        relative_efficiency: effective over actual number of draws.

    Returns:
        Expected log predictive densities and shapes, each `(unit,)`.
    """
    values = np.asarray(log_likelihood, dtype=np.float64)
    require(values.ndim == 3, "log_likelihood must have shape (chain, draw, unit)", values)
    draws = np.zeros(values.shape[:2])  # ArviZ wants a posterior beside it
    result: Any = to_arviz({"posterior": {"unused": draws}, "log_likelihood": {"obs": values}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large k are reported by their numbers
        found = az.loo(result, pointwise=True, var_name="obs", reff=relative_efficiency)
    pointwise = found.loo_i if ARVIZ_MAJOR < 1 else found.elpd_i
    return np.asarray(pointwise, dtype=np.float64), np.asarray(found.pareto_k, dtype=np.float64)


def bulk_ess(draws: ArrayLike) -> Array:
    """Return the bulk effective sample size of every scalar.

    Args:
        draws: shape `(chain, draw, scalar)`.

    Returns:
        Shape `(scalar,)`; NaN for one that never varies or is not finite.
    """
    values = np.asarray(draws, dtype=np.float64)
    require(values.ndim == 3, "draws must have shape (chain, draw, scalar)", values)
    found = np.full(values.shape[-1], np.nan)
    usable = np.isfinite(values).all((0, 1)) & (np.ptp(values, axis=(0, 1)) > 0)
    if usable.any() and values.shape[1] >= 4:
        dataset = xr.Dataset({"x": (("chain", "draw", "scalar"), values[..., usable])})
        with np.errstate(all="ignore"):
            found[usable] = az.ess(dataset, method="bulk")["x"].values
    return found


def relative_efficiency(draws: ArrayLike) -> float:
    """Return the smallest bulk effective sample size over the number of draws, at most one.

    Args:
        draws: shape `(chain, draw, scalar)`.
    """
    sizes, shape = bulk_ess(draws), np.shape(draws)
    return min(1.0, float(np.nanmin(sizes)) / (shape[0] * shape[1])) if np.isfinite(sizes).any() else 1.0
