"""One simulation of a calibration check: truth and data from the prior, a fit, ranks and forecast scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vinppl.calibration.adapters import bulk_ess
from vinppl.calibration.prior import FAR, PriorSimulation, cut_off, simulate_from_prior
from vinppl.calibration.ranks import thinned
from vinppl.calibration.weighted import WeightedDraws
from vinppl.draws import latent_sites, pointwise_log_likelihood, predict, prototype, seeded

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["Fit", "RankedFit", "calibration_run", "ranked_quantities"]

Array = NDArray[Any]

Fit = Callable[[Any, "Trajectories", int], Mapping[str, WeightedDraws]]
"""Fits a model to data with a seed and returns posteriors by the name of what made them."""

MAX_ENTRIES = 8
"""Entries of a site up to which each is a quantity of its own; of larger sites the norm is one."""


@dataclass(frozen=True)
class RankedFit:
    """What one posterior says about the truth that its data came from.

    Attributes:
        ranks: number of the thinned draws below the truth, by test quantity.
        num_draws: thinned draws.
        z_scores: posterior mean minus truth, in posterior standard deviations, by test quantity.
        effective_size: smallest effective sample size of a test quantity, or that of the weights.
        shape: shape k of the importance weights, NaN where there are none.
        problem: what is wrong with the chains, empty if nothing is. Such fits count like any others.
        predicted: draws of the measurements after those that were fitted, in the grid of the future,
            `(num_draws, trajectory, time, channel)`; `None` where nothing was kept to forecast.
    """

    ranks: dict[str, int]
    num_draws: int
    z_scores: dict[str, float]
    effective_size: float
    shape: float
    problem: str
    predicted: Array | None


def calibration_run(
    model: Any,
    data_like: Trajectories,
    fit: Fit,
    seed: int,
    *,
    num_draws: int = 63,
    num_fitted: int | None = None,
    num_predicted: int = 200,
    max_size: float = 100.0,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[PriorSimulation, dict[str, RankedFit]]:
    """Draw a truth and data from the prior, fit the data, and rank the truth among posterior draws.

    Args:
        model: Pyro model of one argument, the data.
        data_like: times, mask, channels and drive of the simulated data; see `simulate_from_prior`.
        fit: what is checked.
        seed: of truth and data, of the fit and of predictions, each with a random stream of its own.
        num_draws: draws that truths are ranked among.
        num_fitted: samples of each trajectory that are fitted, the others being forecast; all by default.
        num_predicted: draws to forecast from.
        max_size: see `simulate_from_prior`.
        parameters: learned parameters with which data are simulated.

    Returns:
        The simulation, and what each posterior that `fit` returned says about it.
    """
    # On one stream the first draws of a guide would have the numbers that made the truth.
    own = [int(state) for state in np.random.SeedSequence(seed).generate_state(3)]
    simulated = simulate_from_prior(
        model, data_like, own[0], num_checked=num_fitted, max_size=max_size, parameters=parameters
    )
    whole = simulated.data
    data = whole if num_fitted is None else whole.first(num_fitted)
    truth = ranked_quantities(model, simulated.truth, data, parameters=parameters)
    ranked = {}
    for name, posterior in fit(model, data, own[1]).items():
        found = _rank(model, data, posterior, truth, num_draws, own[2])
        predicted = None
        if num_fitted is not None:
            bound = FAR * data_like.channel_rms
            predicted = _forecast(model, posterior, whole, num_predicted, bound, own[2])[:, :, num_fitted:]
        ranked[name] = RankedFit(**found, predicted=predicted)
    return simulated, ranked


def ranked_quantities(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    *,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Array]:
    """Return what truths and draws are compared by.

    These are the scalars of every latent site with at most eight entries, the norm of every larger one (the
    weights of a network mean little one by one), the state of the first trajectory at the last time where the
    model records one, and the log-likelihood of all data, which sees what marginals do not.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *site)`.
        data: the measurements.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        Quantities by name, each `(num_draws,)`.
    """
    trace = prototype(model, data)
    found: dict[str, Array] = {}
    for name in latent_sites(trace):
        found |= _entries(name, draws[name].detach().cpu().double().numpy())
    if "states" in trace.nodes:
        states = predict(model, draws, data, sites=["states"], parameters=parameters)["states"]
        last = states[:, 0, -1].cpu().double().numpy()
        found |= {f"last_state[{i}]": last[:, i] for i in range(last.shape[-1])}
    density = pointwise_log_likelihood(model, draws, data, parameters=parameters)
    total = torch.as_tensor(sum(value.flatten(1).sum(1) for value in density.values()))
    total = torch.where(total.isnan(), -torch.inf, total)  # of a draw whose path runs away
    return {**found, "log_likelihood": total.cpu().double().numpy()}


def _entries(name: str, values: Array) -> dict[str, Array]:
    """Return the scalars of a site `(num_draws, *site)` by name, or its norm where there are many."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] > MAX_ENTRIES:
        return {f"norm({name})": np.linalg.norm(flat, axis=1)}
    if flat.shape[1] == 1:
        return {name: flat[:, 0]}
    shape = [size for size in values.shape[1:] if size > 1]
    labels = [", ".join(map(str, np.unravel_index(i, shape))) for i in range(flat.shape[1])]
    return {f"{name}[{label}]": flat[:, i] for i, label in enumerate(labels)}


def _rank(
    model: Any,
    data: Trajectories,
    posterior: WeightedDraws,
    truth: Mapping[str, Array],
    num_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the fields of a `RankedFit` but for its predictions."""
    equal = bool((posterior.log_weights == posterior.log_weights[0]).all())
    drawn = posterior.draws if equal else posterior.resampled(posterior.num_draws, seed=seed)
    values = ranked_quantities(model, drawn, data, parameters=posterior.parameters)
    kept = thinned(posterior.num_draws, num_draws)
    table = np.stack(list(values.values()), axis=-1)
    effective = posterior.effective_size
    if posterior.num_chains > 1:
        effective = float(np.nanmin(bulk_ess(table.reshape(posterior.num_chains, -1, table.shape[-1]))))
    means, sds = table.mean(0), table.std(0)
    with np.errstate(all="ignore"):
        z_scores = {name: float((means[i] - truth[name][0]) / sds[i]) for i, name in enumerate(values)}
    return {
        "ranks": {name: int((value[kept] < truth[name][0]).sum()) for name, value in values.items()},
        "num_draws": num_draws,
        "z_scores": {name: z if math.isfinite(z) else math.nan for name, z in z_scores.items()},
        "effective_size": effective,
        "shape": posterior.shape,
        "problem": posterior.problem,
    }


def _forecast(
    model: Any, posterior: WeightedDraws, grid: Trajectories, num_draws: int, bound: Tensor, seed: int
) -> Array:
    """Return predictive draws `(num_draws, trajectory, time, channel)`, cut off as simulated data are."""
    draws = posterior.resampled(num_draws, seed=seed)
    drawn = predict(model, draws, grid, sites=["obs"], seed=seed, parameters=posterior.parameters)["obs"]
    with seeded(seed):
        return cut_off(drawn, bound).cpu().double().numpy()
