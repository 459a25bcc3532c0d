"""Leave-one-out cross-validation without refitting: how well each part of the data is predicted by the rest.

The expected log predictive density (elpd) sums log p(y_i | all data but y_i) over the parts, in nats. The
posterior without a part is reached from the posterior of all data by importance weights 1 / p(y_i | z),
smoothed by PSIS; where the shape k of their tail exceeds 0.7, a part is too influential for that.

References:
    Vehtari, Gelman, Gabry: Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC.
    Statistics and Computing 27 (2017).
    Magnusson, Andersen, Jonasson, Vehtari: Bayesian leave-one-out cross-validation for large data. ICML
    (2019), for posteriors that are draws of an approximation with weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require, require_choice
from vinppl.calibration.adapters import loo_pointwise, relative_efficiency
from vinppl.calibration.integrated import integrated_log_likelihood
from vinppl.calibration.weighted import WeightedDraws
from vinppl.diagnostics import MAX_SHAPE, smoothed_weights
from vinppl.draws import pointwise_log_likelihood
from vinppl.export import require_group

if TYPE_CHECKING:
    from arviz import InferenceData

    from vinppl.data import Trajectories

__all__ = ["Elpd", "UnitName", "leave_one_out", "leave_one_out_of_result", "weighted_loo"]

Array = NDArray[Any]

UnitName = Literal["value", "sample", "trajectory"]
"""What is left out: a `value` (one channel at one time), a `sample` (all channels at one time of a
trajectory), or a whole `trajectory`, whose initial state is then integrated out."""

UNITS: tuple[UnitName, ...] = ("value", "sample", "trajectory")


@dataclass(frozen=True, eq=False)
class Elpd:
    """An expected log predictive density, part by part.

    Attributes:
        pointwise: contribution of every part in nats, `(part,)`.
        shapes: shape k of the importance weights of every part, `(part,)`; NaN where none were needed.
        labels: which part each is: its trajectory, and its time and channel where it has them.
        unit: what a part is.
        in_sample: log density of every part under the posterior of all data, `(part,)`; NaN if not known.
        error: Monte Carlo standard error of the sum, NaN if not known.
        refits: of leave-future-out, the numbers of samples that were fitted.
    """

    pointwise: Array
    shapes: Array
    labels: tuple[tuple[Any, ...], ...]
    unit: str
    in_sample: Array
    error: float = math.nan
    refits: tuple[int, ...] = ()

    @property
    def total(self) -> float:
        """Sum over all parts."""
        return float(self.pointwise.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the sum, as if parts were independent draws from all that might be measured."""
        return (
            float(math.sqrt(len(self.pointwise)) * self.pointwise.std(ddof=1))
            if len(self.pointwise) > 1
            else math.nan
        )

    @property
    def num_effective(self) -> float:
        """Effective number of parameters: how much better data are fitted than predicted."""
        return float((self.in_sample - self.pointwise).sum())

    @property
    def num_influential(self) -> int:
        """Number of parts with k above 0.7, of which importance weights cannot be trusted."""
        return int((self.shapes > MAX_SHAPE).sum())


def leave_one_out(
    model: Any,
    data: Trajectories,
    posterior: WeightedDraws,
    *,
    unit: UnitName = "value",
    seed: int = 0,
) -> Elpd:
    """Return PSIS-LOO of a fitted model.

    Args:
        model: Pyro model of one argument, the data.
        data: what it was fitted to.
        posterior: draws of NUTS, or of a guide with their importance weights (`corrected_draws`).
        unit: what is left out at a time.
        seed: of the integration over initial states (unit `trajectory`).

    Returns:
        Parts that were not measured are left out. With AR(1) noise a value counts given those before it.
    """
    require_choice("unit", unit, UNITS)
    if unit == "trajectory":
        values, index = integrated_log_likelihood(model, data, posterior, seed=seed)
        labels: tuple[tuple[Any, ...], ...] = tuple((name,) for name in data.names)
        weights = posterior.log_weights[index].double().cpu().numpy()
    else:
        found = pointwise_log_likelihood(model, posterior.draws, data, parameters=posterior.parameters)["obs"]
        dense, labels = _units(found.cpu().double().numpy(), data, unit)
        values, weights = dense, posterior.log_weights.double().cpu().numpy()
    equal = bool((weights == weights[0]).all())
    if not equal:
        return weighted_loo(values, weights, labels=labels, unit=unit)
    chains = posterior.num_chains if unit != "trajectory" else 1
    stacked = values.reshape(chains, -1, values.shape[-1])
    return _by_arviz(stacked, posterior.relative_efficiency, labels, unit)


def leave_one_out_of_result(
    result: InferenceData | xr.DataTree, *, unit: Literal["value", "sample"] = "value"
) -> Elpd:
    """Return PSIS-LOO from the group `log_likelihood` of a NUTS result.

    Args:
        result: what `vinppl.posterior.from_mcmc` returned, or its file.
        unit: what is left out at a time.

    Raises:
        KeyError: if the result has no log-likelihood.
        ValueError: if it is of SVI, whose draws need weights: see `leave_one_out`.
    """
    require_choice("unit", unit, ("value", "sample"))
    group = require_group(result, "log_likelihood", "leave-one-out needs the density of every measurement")
    posterior = require_group(result, "posterior", "leave-one-out needs posterior draws")
    kind = str(result.attrs.get("inference", "nuts"))
    require(
        kind == "nuts",
        "draws of a guide need importance weights",
        kind,
        "Use leave_one_out with corrected_draws, or inference/compare.py.",
    )
    array = group["obs"].transpose("chain", "draw", ...)
    values = array.values.reshape(*array.shape[:2], -1)
    places = _places(array)
    if unit == "sample":
        keys = [place[:2] for place in places]
        first = list(dict.fromkeys(keys))
        which = np.array([first.index(key) for key in keys])
        values = np.stack([values[:, :, which == i].sum(-1) for i in range(len(first))], axis=-1)
        places = first
    scalars = [x.values.reshape(*values.shape[:2], -1) for x in posterior.data_vars.values()]
    return _by_arviz(values, relative_efficiency(np.concatenate(scalars, axis=-1)), tuple(places), unit)


def weighted_loo(
    log_likelihood: ArrayLike,
    log_weights: ArrayLike,
    *,
    labels: tuple[tuple[Any, ...], ...] = (),
    unit: str = "value",
) -> Elpd:
    """Return PSIS-LOO from draws with importance weights for the posterior.

    Args:
        log_likelihood: log density of every part under every draw, `(num_draws, part)`.
        log_weights: logarithms of the weights of the draws, `(num_draws,)`.
        labels: of the parts.
        unit: what a part is.
    """
    values, weights = np.asarray(log_likelihood, dtype=np.float64), np.asarray(log_weights, dtype=np.float64)
    require(
        values.ndim == 2 and weights.shape == values.shape[:1],
        "log_likelihood must have shape (num_draws, part) and log_weights (num_draws,)",
        f"{values.shape} and {weights.shape}",
    )
    smoothed, shapes = smoothed_weights(weights - values.T)
    return Elpd(
        _log_sum(smoothed + values.T),
        np.asarray(shapes),
        labels or tuple((i,) for i in range(values.shape[1])),
        unit,
        _log_sum(weights + values.T) - _log_sum(weights),
    )


def _by_arviz(values: Array, efficiency: float, labels: tuple[tuple[Any, ...], ...], unit: str) -> Elpd:
    """Return PSIS-LOO from draws of equal weight, log density `(chain, draw, part)`."""
    pointwise, shapes = loo_pointwise(values, relative_efficiency=efficiency)
    flat = values.reshape(-1, values.shape[-1]).T
    return Elpd(pointwise, shapes, labels, unit, _log_sum(flat) - math.log(flat.shape[1]))


def _units(values: Array, data: Trajectories, unit: str) -> tuple[Array, tuple[tuple[Any, ...], ...]]:
    """Return the log density of every measured part `(num_draws, part)`, and which part each is."""
    mask, times = data.mask.cpu().numpy(), data.times.cpu().numpy()
    if values.ndim == 3:  # a likelihood that does not tell channels apart
        require(unit == "sample", "the model's likelihood does not tell values apart", unit, "Take samples.")
        values = values[..., None]
    channels = [channel.name for channel in data.channels]
    if unit == "value":
        where = np.argwhere(mask)
        return values[:, mask], tuple((data.names[n], float(times[n, t]), channels[c]) for n, t, c in where)
    any_measured = mask.any(-1)
    where = np.argwhere(any_measured)
    return values.sum(-1)[:, any_measured], tuple((data.names[n], float(times[n, t])) for n, t in where)


def _places(array: xr.DataArray) -> list[tuple[Any, ...]]:
    """Return trajectory, time and channel of every entry of a log-likelihood, whichever its layout."""
    dims = array.dims[2:]
    if dims == ("observation",):
        axes = [array[f"observation_{name}"].values.tolist() for name in ("trajectory", "time", "channel")]
        return list(zip(*axes, strict=True))
    grids = np.meshgrid(*[np.arange(array.sizes[dim]) for dim in dims], indexing="ij")
    labels = [array[dim].values[grid.ravel()].tolist() for dim, grid in zip(dims, grids, strict=True)]
    return list(zip(*labels, strict=True))


def _log_sum(values: Array) -> Array:
    """Return the logarithm of the sum of exponentials over the last axis."""
    return np.logaddexp.reduce(values, axis=-1)
