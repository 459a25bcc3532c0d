"""Posterior draws with importance weights: chains, draws of a guide, and the latter put right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.calibration.adapters import relative_efficiency
from vinppl.diagnostics import smoothed_weights
from vinppl.draws import (
    Draws,
    collect,
    latent_sites,
    learned,
    log_joint,
    plate_nesting,
    prototype,
    seeded,
    summed_log_prob,
    trace_batch,
)
from vinppl.export import require_group
from vinppl.importance import effective_size, resample
from vinppl.refinement import refine

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.fit import MCMCResult, SVIResult

__all__ = ["WeightedDraws", "chain_draws", "corrected_draws", "refined_draws", "stored_draws"]


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of the latent sites, each with the logarithm of its weight.

    Attributes:
        draws: latent sites, each `(num_draws, *site)`.
        log_weights: logarithms of weights that sum to one, `(num_draws,)`.
        num_chains: chains that they come from, one after another; 1 for independent draws.
        shape: shape k of the tail of the importance ratios: below 0.5 they have a finite variance, above 0.7
            the guide is too far from the posterior to be put right. NaN where there are no ratios.
        relative_efficiency: effective over actual number of draws, before weighting.
        parameters: learned parameters of the model, unconstrained, by name.
        problem: what is wrong with the chains (disagreement, divergences), empty if nothing is.
    """

    draws: Draws
    log_weights: Tensor
    num_chains: int = 1
    shape: float = math.nan
    relative_efficiency: float = 1.0
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    problem: str = ""

    @property
    def num_draws(self) -> int:
        """Number of draws."""
        return int(self.log_weights.numel())

    @property
    def effective_size(self) -> float:
        """Effective number of draws, of weights and chains together."""
        return self.relative_efficiency * float(effective_size(self.log_weights.unsqueeze(-1)))

    def unweighted(self) -> WeightedDraws:
        """Return the draws with equal weights: those of a guide as it is."""
        return replace(self, log_weights=_equal_weights(self.num_draws), shape=math.nan)

    def resampled(self, num_draws: int, *, seed: int = 0) -> Draws:
        """Return draws of equal weight, each `(num_draws, *site)`, in random order."""
        require(num_draws >= 1, "num_draws must be at least 1", num_draws)
        with seeded(seed):
            index = resample(self.log_weights.unsqueeze(-1), num_draws)[:, 0]
        return {name: value[index] for name, value in self.draws.items()}


def chain_draws(result: MCMCResult) -> WeightedDraws:
    """Return the draws of a NUTS run, of equal weight.

    Their relative efficiency is that of the scalar with the smallest effective sample size.
    """
    num_chains, num_draws = next(iter(result.draws.values())).shape[:2]
    scalars = [x.reshape(num_chains, num_draws, -1).cpu().numpy() for x in result.draws.values()]
    return _chains(result.flat(), np.concatenate(scalars, axis=-1), result.problem)


def corrected_draws(result: SVIResult, num_draws: int = 4000, *, seed: int = 0) -> WeightedDraws:
    """Return draws of a fitted guide with the weights that make them draws of the posterior.

    The weights are p(y, z) / q(z), smoothed. The shape of their tail also judges the guide itself.

    Args:
        result: a fitted guide with a density, of a model that runs on `result.data`.
        num_draws: draws to take.
        seed: of the draws.

    Raises:
        ValueError: if the guide is a point, or no draw has a finite density.

    References:
        Yao, Vehtari, Simpson, Gelman: Yes, but did it work? Evaluating variational inference. ICML (2018).
    """
    draws, log_guide = _guide_density(result, num_draws, seed)
    require(
        num_draws == 1 or any(bool((value != value[:1]).any()) for value in draws.values()),
        "the guide must be a distribution to be weighted",
        "a point",
    )
    joint = log_joint(result.model, draws, result.data, parameters=result.parameters)
    ratios = (joint - log_guide).double().cpu().numpy()
    require(bool(np.isfinite(ratios).any()), "some draw of the guide must have a density", "none")
    weights, shape = smoothed_weights(ratios)
    return WeightedDraws(draws, torch.as_tensor(weights), shape=float(shape), parameters=result.parameters)


def refined_draws(
    result: SVIResult, num_draws: int = 2000, *, seed: int = 0
) -> tuple[WeightedDraws, WeightedDraws]:
    """Return draws of a fitted guide, as they are and refined (`vinppl.refinement.refine`).

    Both have equal weights. The shape of the refined ones is that of the weights they were resampled by; they
    are returned even where it says that they are not to be trusted.

    Args:
        result: a fitted guide that is a distribution, of a model whose only plate is that of trajectories.
        num_draws: draws of each.
        seed: of both.
    """
    draws = result.sample(num_draws, seed=seed)
    raw = WeightedDraws(draws, _equal_weights(num_draws), parameters=result.parameters)
    found = refine(
        result.model, draws, result.data, num_draws=num_draws, seed=seed, parameters=result.parameters
    )
    share = min(1.0, found.effective_size / num_draws)
    return raw, replace(raw, draws=found.draws, shape=found.shape, relative_efficiency=share)


def _guide_density(result: SVIResult, num_draws: int, seed: int) -> tuple[Draws, Tensor]:
    """Return draws from a guide and their log density, `(num_draws,)`."""
    model_trace = prototype(result.model, result.data)
    nesting = plate_nesting(model_trace)
    with learned(result.guide, result.data, result.parameters), seeded(seed), torch.no_grad():
        trace: Any = trace_batch(result.guide, (result.data,), num_draws, nesting)
        density = summed_log_prob(trace, num_draws)
    return collect(trace, latent_sites(model_trace), num_draws, nesting), density


def stored_draws(result: Any, data: Trajectories) -> WeightedDraws:
    """Return the draws of a NUTS result that was read from a file.

    Args:
        result: with the group `posterior`.
        data: sets dtype and device.
    """
    group = require_group(result, "posterior", "draws are those of the posterior")
    arrays = {str(n): x.transpose("chain", "draw", ...).values for n, x in group.data_vars.items()}
    num_chains, num_draws = next(iter(arrays.values())).shape[:2]
    draws = {n: torch.as_tensor(x.reshape(-1, *x.shape[2:])).to(data.values) for n, x in arrays.items()}
    scalars = np.concatenate([x.reshape(num_chains, num_draws, -1) for x in arrays.values()], axis=-1)
    return _chains(draws, scalars)


def _chains(draws: Draws, scalars: NDArray[Any], problem: str = "") -> WeightedDraws:
    """Return draws of equal weight from scalars `(chain, draw, scalar)`."""
    return WeightedDraws(
        draws,
        _equal_weights(scalars.shape[0] * scalars.shape[1]),
        scalars.shape[0],
        relative_efficiency=relative_efficiency(scalars),
        problem=problem,
    )


def _equal_weights(num_draws: int) -> Tensor:
    """Return logarithms of equal weights, `(num_draws,)`."""
    return torch.full((num_draws,), -math.log(num_draws), dtype=torch.float64)
