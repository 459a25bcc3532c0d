"""Leave-future-out cross-validation: how well the future is predicted from the past, along a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vinppl._checks import require
from vinppl.calibration.loo import Elpd
from vinppl.calibration.weighted import WeightedDraws
from vinppl.diagnostics import MAX_SHAPE, smoothed_weights
from vinppl.draws import pointwise_log_likelihood

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["leave_future_out"]

Array = NDArray[Any]

FutureFit = Callable[[Any, "Trajectories", int], WeightedDraws]
"""Fits a model to data with a seed."""


def leave_future_out(
    model: Any,
    data: Trajectories,
    fit: FutureFit,
    *,
    first: int,
    horizon: int = 1,
    threshold: float = MAX_SHAPE,
    seed: int = 0,
    on_refit: Callable[[int], object] | None = None,
) -> Elpd:
    """Return the expected log density of the next samples given all before them, along the record.

    All trajectories are cut at the same number of samples i: sum over i of log p(y_(i+1), .., y_(i+horizon) |
    y_1, .., y_i). The model is fitted to the first samples; samples that are added to these reweight the
    draws by their likelihood, and where the shape k of the smoothed weights exceeds the threshold, the model
    is fitted again.

    Args:
        model: Pyro model of one argument, the data; its priors stay as they are.
        data: the whole record.
        fit: gives posterior draws for the first samples; `Engine.posterior` is one.
        first: samples of each trajectory that the first fit has.
        horizon: samples ahead that are predicted together.
        threshold: k beyond which the model is fitted again; minus infinity fits it at every step (exact).
        seed: of the fits.
        on_refit: called with the number of samples before every fit.

    Returns:
        A part for every step: the sum over trajectories, labelled by the number of samples before it.
        `refits` lists the numbers of samples that were fitted, and `error` is the Monte Carlo standard error
        of the sum, from the draws of all fits.

    Raises:
        ValueError: if there is no step.

    References:
        Bürkner, Gabry, Vehtari: Approximate leave-future-out cross-validation for Bayesian time series
        models. Journal of Statistical Computation and Simulation 90 (2020).
    """
    require(first >= 2, "first must be at least 2", first)
    require(horizon >= 1, "horizon must be at least 1", horizon)
    last = data.num_times - horizon
    require(first <= last, f"first must be at most {last}, so that {horizon} more can be predicted", first)
    measured = data.mask.flatten(2).any(-1).any(0).cpu().numpy()
    steps = [i for i in range(first, last + 1) if measured[i : i + horizon].any()]
    parts: list[float] = []
    shapes: list[float] = []
    refits: list[int] = []
    variance = 0.0
    block: _Block | None = None
    for i in steps:
        weights, shape = (None, math.inf) if block is None else block.weights(i)
        if block is None or weights is None or shape > threshold:
            variance += 0.0 if block is None else block.variance
            if on_refit is not None:
                on_refit(i)
            posterior = fit(model, data.first(i), seed)
            refits.append(i)
            block = _Block(model, data, posterior, i)
            weights, shape = block.log_weights, posterior.shape
        parts.append(block.predict(weights, i, i + horizon))
        shapes.append(shape)
    assert block is not None
    return Elpd(
        np.array(parts),
        np.array(shapes),
        tuple((i,) for i in steps),
        "step",
        np.full(len(parts), math.nan),
        math.sqrt(variance + block.variance),
        tuple(refits),
    )


class _Block:
    """The steps that one fit serves.

    Attributes:
        log_weights: logarithms of the weights of the draws for the posterior of the fit, `(num_draws,)`.
    """

    def __init__(self, model: Any, data: Trajectories, posterior: WeightedDraws, fitted: int) -> None:
        found = pointwise_log_likelihood(model, posterior.draws, data, parameters=posterior.parameters)["obs"]
        dense = found.cpu().double().numpy()
        dense = np.where(np.isnan(dense), -np.inf, dense)  # of a draw whose path runs away later
        self._by_time = dense.sum(axis=tuple(axis for axis in range(dense.ndim) if axis not in (0, 2)))
        self.log_weights = posterior.log_weights.double().cpu().numpy()
        self._efficiency = posterior.relative_efficiency
        self._fitted = fitted
        self._influence = np.zeros(len(self.log_weights))

    def weights(self, num_samples: int) -> tuple[Array, float]:
        """Return the weights of the draws given so many samples, and the shape of their tail."""
        added = self._by_time[:, self._fitted : num_samples].sum(1)
        ratios = self.log_weights + added
        if not np.isfinite(ratios).any():
            return self.log_weights, math.inf
        smoothed, shape = smoothed_weights(ratios, relative_efficiency=self._efficiency)
        return smoothed, float(shape)

    def predict(self, log_weights: Array, begin: int, end: int) -> float:
        """Return the log predictive density of the samples from `begin` to before `end`."""
        terms = log_weights + self._by_time[:, begin:end].sum(1)
        total = float(np.logaddexp.reduce(terms))
        if math.isfinite(total):  # where some draw can make what came
            # How the estimate would change with the weight of each draw (delta method of a ratio).
            self._influence += np.exp(terms - total) - np.exp(log_weights)
        return total

    @property
    def variance(self) -> float:
        """Monte Carlo variance of the sum of what was predicted."""
        return float((self._influence**2).sum() / self._efficiency)
