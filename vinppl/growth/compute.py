"""Uncertainty growth of a forecast: how wide it is at every horizon, what makes it so, and how it grows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import NumericalWarning
from vinppl.growth.dataset import Growth, build_dataset
from vinppl.growth.laws import fit_growth_law, random_partners, separations
from vinppl.growth.paths import PathForecast, keep_finite, run_forward
from vinppl.growth.runs import TrajectoryRuns
from vinppl.growth.shapley import bootstrap_weights
from vinppl.growth.sharing import find_players, share_out
from vinppl.growth.sites import parts_of
from vinppl.scores import valid_prediction_times

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.state import Trajectory

__all__ = ["uncertainty_growth"]

Array = NDArray[np.float64]

MAX_MISMATCH = 0.2
"""Log ratio of standard deviations above which sites drawn anew are called approximate."""


def uncertainty_growth(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    future: Trajectories,
    *,
    parts: Mapping[str, Sequence[str]] | None = None,
    truth: Trajectory | None = None,
    num_horizons: int = 200,
    num_replicates: int = 1,
    num_bootstrap: int = 200,
    chunk_size: int = 250,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> xr.Dataset:
    """Compute the uncertainty growth of a forecast of states; arguments are those of `forecast`.

    The variance of every state, energy and measurement is shared out among groups of latent sites by Shapley
    effects (`vinppl.growth.shapley`), which add up to it; dependence between sites in the posterior is kept
    by drawing them anew given one another (`vinppl.growth.resampling`). The noise of a measurement enters
    by the law of total variance, Var(obs) = Var(E[obs | sites]) + E[Var(obs | sites)]. What is a point
    estimate has no part. How distances between draws grow is in `vinppl.growth.laws`, energy errors in
    `vinppl.growth.energy`. The model runs over every trajectory 2 + (2^K - 2) `num_replicates` times, for K
    groups that move the path.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *site)`.
        data: the measurements that were fitted.
        future: where to predict, from `extend`.
        parts: sites of parts of one's own, by name; the other sites belong to the parts `initial_state`,
            `mass`, `potential`, `dynamics`, `forces`, `discrepancy`, `observation` or `other` by their
            names (`vinppl.growth.PARTS`).
        truth: the noise-free path at the times of `future`, for valid prediction times against it;
            without one they are those of draws against one another.
        num_horizons: horizons at most, evenly thinned, the first and the last included.
        num_replicates: times that sites are drawn anew; more make the errors of parts smaller.
        num_bootstrap: resamples of the draws, for the errors.
        chunk_size: draws that run as one batch.
        seed: of everything random.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        A data set, see `vinppl.growth.dataset` for its variables.

    Raises:
        ValueError: for films, too few draws, times that are not beyond the data, or a missing site.

    Warns:
        NumericalWarning: if draws have no finite trajectory, if sites drawn anew do not fit the posterior,
            or if energy errors are not bounded.
    """
    require(data.image_shape is None, "uncertainty growth is of states", "films", "Use a model of states.")
    require(num_horizons >= 2, "num_horizons must be at least 2", num_horizons)
    require(num_replicates >= 1, "num_replicates must be at least 1", num_replicates)
    require(num_bootstrap >= 2, "num_bootstrap must be at least 2", num_bootstrap)
    rng = np.random.default_rng(seed)
    runs = TrajectoryRuns(model, draws, future, chunk_size=chunk_size, parameters=parameters)
    starts = data.times.gather(-1, (data.lengths - 1).unsqueeze(-1)).squeeze(-1).tolist()
    forecasts = [run_forward(runs, n, start, num_horizons, rng) for n, start in enumerate(starts)]
    forecasts, lost = keep_finite(runs, forecasts)
    weights = bootstrap_weights(len(forecasts[0].mean), num_bootstrap, rng)
    players = find_players(runs, parts_of(runs.sites, parts))
    found = [
        share_out(runs, n, forecast, players, weights, num_replicates, rng)
        for n, forecast in enumerate(forecasts)
    ]
    fields = forecasts[0].fields
    apart = law = valid = None
    if fields.num_states:
        states = [f.mean[..., : fields.num_states] for f in forecasts]
        periodic = fields.periodic[: fields.num_states]
        apart = separations(states, [f.horizon for f in forecasts], periodic, rng=rng)
        law = fit_growth_law(apart, num_bootstrap=num_bootstrap // 2, rng=rng)
        valid = _valid_times(forecasts, states, periodic, truth, runs, rng)
    growth = Growth(found, apart, law, valid, truth is not None, lost, tuple(runs.point_estimates))
    _warn(growth)
    return build_dataset(growth, future, fields)


def _valid_times(
    forecasts: Sequence[PathForecast],
    states: Sequence[Array],
    periodic: NDArray[np.bool_],
    truth: Trajectory | None,
    runs: TrajectoryRuns,
    rng: np.random.Generator,
) -> Array:
    """Return how long draws follow the truth, or another draw, `(num_draws, trajectory)`."""
    partner = random_partners(len(states[0]), rng)
    found = []
    for n, (forecast, x) in enumerate(zip(forecasts, states, strict=True)):
        y = x[partner]
        if truth is not None:
            path = torch.cat([truth.q[n], truth.v[n]], dim=-1).double().cpu().numpy()
            require(
                path.shape == (runs.future.num_times, x.shape[-1]),
                f"truth must have {runs.future.num_times} times of {x.shape[-1] // 2} coordinates",
                path,
            )
            y = np.broadcast_to(path[forecast.index], x.shape)
        found.append(valid_prediction_times(x, y, forecast.horizon, periodic=periodic))
    return np.stack(found, axis=-1)


def _warn(growth: Growth) -> None:
    """Say what makes the numbers doubtful."""
    found = []
    if growth.lost:
        total = growth.lost + len(growth.trajectories[0].values)
        found.append(
            f"{growth.lost} of {total} draws have no finite trajectory over the horizon and were left out"
        )
    if growth.mismatch > MAX_MISMATCH:
        found.append(
            "sites drawn anew given the others do not fit the posterior well: standard deviations of "
            f"forecasts are off by a factor of {np.exp(growth.mismatch):.2g}. The parts of the variance are "
            "approximate (their sum is not); more draws help unless sites depend on each other in a strongly "
            "curved way"
        )
    if growth.energy_warning:
        found.append(growth.energy_warning)
    for message in found:
        warnings.warn(message, NumericalWarning, stacklevel=3)
