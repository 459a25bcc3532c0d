"""Where inference starts: a mode of the posterior, reached through growing horizons.

The posterior of an oscillation over many periods has a mode for every wrong
count of them. A fit to the first part of the record has none within reach, and
each longer part starts from the fit to the one before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor

from vinppl.discrepancy import DiscrepancyForce
from vinppl.errors import ConvergenceWarning, NumericalWarning
from vinppl.estimates import noise_estimate
from vinppl.fit.ascent import ascend_along, ascend_part, climb, is_stationary, laplace_covariance, whitened
from vinppl.fit.restarts import restarted
from vinppl.guides import INITIAL_SITES
from vinppl.logdensity import LogDensity

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["Start", "find_start", "fit_point", "starting_values"]

COMPILED_ITERATIONS = 500
"""L-BFGS iterations where an evaluation costs microseconds."""

FIRST_HORIZONS = (25, 12, 6, 4)
"""Samples that are fitted first: fewer, where from the first number on all is explained as noise."""

GROWTH = 2.5
"""Factor by which the horizon grows, as long as the longer one is explained as well."""

MAX_LOSS = 0.3
"""Nats by which the mean log density of a measurement may fall from one horizon to the next."""

MAX_RETRIES = 15
"""Shorter horizons that are tried after such a loss."""

MAX_CURVATURE_SIZE = 100
"""Latent variables up to which the curvature at the mode is computed."""

MAX_COMPILED_SIZE = 1000
"""The same where an evaluation costs microseconds."""

LONG = 200
"""Samples from which on a part of the record is compiled too: seconds once, against seconds an evaluation."""


class Start(NamedTuple):
    """Where inference starts, and the shape of the posterior around it.

    Attributes:
        density: log density of the whole record.
        centre: a mode in unconstrained space, shape `(size,)`.
        covariance: inverse curvature there, shape `(size, size)`; `None` if it was not computed.
        values: the latent sites at the mode.
        converged: whether the search ended at a stationary point.
    """

    density: LogDensity
    centre: Tensor
    covariance: Tensor | None
    values: dict[str, Tensor]
    converged: bool


def find_start(
    model: Any,
    data: Trajectories,
    *,
    initial_values: Mapping[str, Tensor] | None = None,
    max_iterations: int = 40,
    soften: bool = False,
) -> Start:
    """Climb to a mode of the posterior by L-BFGS over growing horizons.

    On the whole record the climb goes on in coordinates whitened by the curvature, where a
    narrow and tilted posterior is round. Where the density is compiled, climbs from scattered initial
    states look for a better mode before that (see `vinppl.fit.restarts`). The scales of unknown forces
    stay where they start and are then set to their mode given the forces: the joint mode of a process and
    its scales is far from all draws.

    Args:
        model: Pyro model of one argument, the data.
        data: the measurements.
        initial_values: constrained starting values by site. By default those of the model's
            own `initial_values(data)` where it has one, otherwise prior medians.
        max_iterations: L-BFGS iterations for each horizon, and after each whitening.
        soften: whether the unconstrained space is one in which posteriors of positive sites have
            no cliffs (see `LogDensity`), for samplers; otherwise it is Pyro's.

    Warns:
        ConvergenceWarning: if the search did not end at a stationary point.
    """
    values = dict(starting_values(model, data) if initial_values is None else initial_values)
    scales = _process_scales(model, values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")  # a path ran away: the search turns back
        density, point = _explain(model, data, values, max_iterations, soften, scales)
        free = _coordinates(density, [name for name in density.names if name not in scales])
        if density.native is not None:
            max_iterations = COMPILED_ITERATIONS
            point = restarted(density, point, data, free)
    if scales:
        point = ascend_part(density, point, _coordinates(density, scales), max_iterations)
    covariance = None
    if density.size <= (MAX_CURVATURE_SIZE if density.native is None else MAX_COMPILED_SIZE):
        for _ in range(3):
            covariance = laplace_covariance(density, point)
            if covariance is None:
                break
            point, before = ascend_along(density, point, whitened(covariance, free), max_iterations), point
            if float((point - before).square().div(covariance.diagonal()).amax()) < 0.1**2:
                break
    converged = is_stationary(density, point, covariance, free)
    if not converged:
        warnings.warn(
            "the search for a mode of the posterior did not converge; inference starts from where it ended",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Start(density, point, covariance, _detached(density.constrain(point)), converged)


def _process_scales(model: Any, values: Mapping[str, Tensor]) -> list[str]:
    """Return the scales of unknown forces that have starting values."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    forces = [m for m in modules if isinstance(m, DiscrepancyForce)]
    return [name for force in forces for name in force.scale_sites if name in values]


def _coordinates(density: LogDensity, names: Sequence[str]) -> Tensor:
    """Return the places of sites in the unconstrained vector."""
    every = torch.arange(density.size, device=density.initial.device)
    where = density.split(every)
    return torch.cat([every[:0], *(where[name].reshape(-1) for name in names)])


def _explain(
    model: Any,
    data: Trajectories,
    values: Mapping[str, Tensor],
    max_iterations: int,
    soften: bool,
    held: Sequence[str],
) -> tuple[LogDensity, Tensor]:
    """Return the density of the whole record and the best mode found from the first horizons.

    The next one is tried only where measurements are explained much worse than by their scatter around
    smooth motion.
    """
    expected = -math.inf
    if data.image_shape is None:
        scatter = noise_estimate(data)
        share = data.mask.to(scatter.dtype).mean((0, 1))
        expected = -float((share * scatter.log()).sum() / share.sum()) - 0.5 * math.log(2 * math.pi * math.e)
    best: tuple[float, LogDensity, Tensor] | None = None
    for first in FIRST_HORIZONS:
        if best is not None and first >= data.num_times:
            continue
        density, point = _grow(model, data, values, max_iterations, soften, held, first)
        found = float(density(point).detach()) / max(1, data.num_observed)
        if best is None or found > best[0]:
            best = found, density, point
        if best[0] > expected - MAX_LOSS:
            break
    assert best is not None
    return best[1], best[2]


def _grow(
    model: Any,
    data: Trajectories,
    values: Mapping[str, Tensor],
    max_iterations: int,
    soften: bool,
    held: Sequence[str],
    first: int,
) -> tuple[LogDensity, Tensor]:
    """Climb over growing horizons, and return the density of the whole record and the mode found.

    Where a longer horizon is explained much worse than the one before (the climb went to another
    mode, say one with large noise), or has no finite density at the values found so far, one half as far
    ahead is tried first. Where not even the next sample can be reached, the climb begins again from fewer
    starting values.
    """
    begun, shortest = dict(values), first
    reached, quality, growth, retries = 0, -math.inf, GROWTH, MAX_RETRIES
    densities: dict[int, LogDensity] = {}
    compiles = True
    while True:
        length = min(data.num_times, max(first, _next_horizon(reached, growth)))
        part = data if length == data.num_times else data.first(length)
        if length not in densities:
            whole = length == data.num_times
            try:
                densities[length] = LogDensity(model, part, initial_values=values, soften=soften and whole)
            except ValueError:  # no finite density: the path of these values runs away before the horizon
                if length > max(2, reached + 1):
                    first = max(2, (reached + length) // 2)
                    growth = _half_growth(reached, length) if reached else growth
                    continue
                if not begun:
                    raise
                values = begun = _tamer(begun)
                reached, quality, growth, first = 0, -math.inf, GROWTH, shortest
                densities.clear()
                continue
            if whole or (compiles and length >= LONG):
                compiles = densities[length].compile()  # the whole record is also what is sampled from
        density = densities[length]
        longer = length == data.num_times and density.native is not None
        iterations = COMPILED_ITERATIONS if longer else max_iterations
        begin = density.unconstrain({**density.constrain(density.initial), **values})
        free = _coordinates(density, [name for name in density.names if name not in held])
        point = ascend_part(density, begin, free, iterations)
        found = float(density(point).detach()) / max(1, part.num_observed)
        if found < quality - MAX_LOSS and length > reached + 1 and retries > 0:
            growth, retries = _half_growth(reached, length), retries - 1
            continue
        if length == data.num_times:
            return density, point
        values, reached, quality = _detached(density.constrain(point)), length, found
        growth = min(GROWTH, 1 + 2 * (growth - 1))


def _next_horizon(reached: int, growth: float) -> int:
    """Return how many samples to try after those that were reached."""
    return max(reached + 1, math.ceil(growth * reached - 1e-6))  # half of the way is not rounded to all of it


def _half_growth(reached: int, length: int) -> float:
    """Return the growth that goes half as far ahead."""
    return 1 + 0.5 * (length / reached - 1)


def _tamer(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return fewer starting values: those of initial states alone, then none; the rest are prior medians."""
    kept = {name: value for name, value in values.items() if name in INITIAL_SITES}
    return kept if len(kept) < len(values) else {}


def fit_point(
    model: Any,
    data: Trajectories,
    *,
    horizons: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    max_iterations: int = 40,
    weight_decay: float = 1e-3,
) -> dict[str, Tensor]:
    """Climb to a mode of latent sites and learned parameters together, over growing horizons.

    This is the paper's maximum-likelihood training (section 3.1) with priors: every trajectory
    has its own initial state, and the potential is a network of point estimates. Without sampling
    noise a few hundred rollouts are enough to start the variational fit from.

    Args:
        model: Pyro model with learned parameters; they are changed in place.
        data: the measurements.
        horizons: shares of the record, growing to 1.
        max_iterations: L-BFGS iterations for each share.
        weight_decay: coefficient of half the squared change of the learned parameters.

    Returns:
        The latent sites at the mode.

    Raises:
        ValueError: if the density is not finite at the starting values on the first two samples, or one
            sample beyond a stretch that was fitted.
    """
    # A store of its own: models of the same site names must not read one another's parameters.
    with pyro.get_param_store().scope():
        return _fit_point(model, data, horizons, max_iterations, weight_decay)


def _fit_point(
    model: Any, data: Trajectories, horizons: Sequence[float], max_iterations: int, weight_decay: float
) -> dict[str, Tensor]:
    values = starting_values(model, data)
    learned = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in learned]
    lengths, reached = _lengths(data, horizons), 0
    while lengths:
        length = lengths[0]
        part = data if length >= data.num_times else data.first(length)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NumericalWarning)  # parameters are not held fixed here
                density = LogDensity(model, part, initial_values=values)
        except ValueError:  # no finite density: a rollout beyond what was fitted may have no solution
            if length <= max(2, reached + 1):
                raise
            lengths.insert(0, max(2, (reached + length) // 2))
            continue
        lengths, reached = lengths[1:], length

        def objective(u: Tensor, density: LogDensity = density) -> Tensor:
            change = sum(
                ((p - a).square().sum() for p, a in zip(learned, anchors, strict=True)), start=u.new_zeros(())
            )
            return density(u) - 0.5 * weight_decay * change

        point = climb(objective, density.initial, max_iterations, extra=learned)
        values = _detached(density.constrain(point))
    return values


def _lengths(data: Trajectories, horizons: Sequence[float]) -> list[int]:
    """Return the growing numbers of samples that the shares stand for, none below 8."""
    return sorted({max(min(8, data.num_times), round(share * data.num_times)) for share in horizons})


def starting_values(model: Any, data: Trajectories) -> dict[str, Tensor]:
    """Return the model's own rough estimates, or nothing where it has none."""
    estimate = getattr(model, "initial_values", None)
    return dict(estimate(data)) if callable(estimate) else {}


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}
