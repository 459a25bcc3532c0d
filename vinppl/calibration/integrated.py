"""The likelihood of whole trajectories, with what belongs to each of them integrated out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require
from vinppl.calibration.ranks import thinned
from vinppl.calibration.weighted import WeightedDraws
from vinppl.draws import latent_sites, plate_nesting, prototype, seeded, trajectory_log_prob
from vinppl.importance import StudentProposal

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["integrated_log_likelihood"]

CHUNK = 4000
"""Proposals that run as one batch."""

WIDER = 1.2
"""Factor by which proposals are wider than what is left of the posterior given the shared sites."""


def integrated_log_likelihood(
    model: Any,
    data: Trajectories,
    posterior: WeightedDraws,
    *,
    num_draws: int = 500,
    num_proposals: int = 64,
    seed: int = 0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return log p(y_n | shared sites) of every trajectory under posterior draws of the shared sites.

    Left out as a whole, a trajectory says nothing any more about its own initial state, whose posterior
    cannot be reweighted into its prior. So the sites in the plate of trajectories are integrated out by
    importance sampling. The proposal is a Student-t around the regression of these sites on the shared ones
    among the posterior draws.

    Args:
        model: Pyro model whose only plate is that of the trajectories, with real sites in it.
        data: what it was fitted to.
        posterior: draws of all sites.
        num_draws: draws of the shared sites to use at most.
        num_proposals: proposals for each draw and trajectory.
        seed: of the proposals.

    Returns:
        Log-likelihoods `(draw, trajectory)`, and which draws of the posterior they belong to, `(draw,)`.

    Raises:
        ValueError: if the model has other plates, or sites in the plate that are not real.

    References:
        Merkle, Furr, Rabe-Hesketh: Bayesian comparison of latent variable models: conditional versus marginal
        likelihoods. Psychometrika 84 (2019).
    """
    local, shared = _split_sites(model, data)
    index = thinned(posterior.num_draws, min(num_draws, posterior.num_draws))
    draws = {name: value[index] for name, value in posterior.draws.items()}
    count = len(index)
    states = torch.cat([draws[name].reshape(count, data.num_trajectories, -1) for name in local], dim=-1)
    sizes = [draws[name][0, 0].numel() for name in local]
    centres, factor = _regression(states, {name: draws[name] for name in shared})
    proposal = StudentProposal(torch.zeros_like(centres[0]), factor)
    per_chunk = max(1, CHUNK // num_proposals)
    found = []
    with seeded(seed), torch.no_grad():
        for begin in range(0, count, per_chunk):
            part = slice(begin, min(count, begin + per_chunk))
            width = part.stop - part.start
            offsets, density = proposal.sample(width * num_proposals)
            proposed = centres[part].repeat_interleave(num_proposals, dim=0) + offsets
            values = dict(zip(local, proposed.split(sizes, dim=-1), strict=True))
            ran = {n: values[n].reshape(-1, *draws[n].shape[1:]) for n in local}
            ran |= {n: draws[n][part].repeat_interleave(num_proposals, dim=0) for n in shared}
            joint = trajectory_log_prob(model, ran, data, parameters=posterior.parameters)
            ratios = (joint - density).unflatten(0, (width, num_proposals))
            finite = torch.where(torch.isfinite(ratios), ratios, -math.inf)
            found.append(finite.logsumexp(1) - math.log(num_proposals))
    return torch.cat(found).double().cpu().numpy(), index


def _split_sites(model: Any, data: Trajectories) -> tuple[list[str], list[str]]:
    """Return the names of the sites in the plate of trajectories, and of the others."""
    trace = prototype(model, data)
    names = latent_sites(trace)
    local = [name for name in names if any(f.vectorized for f in trace.nodes[name]["cond_indep_stack"])]
    bounded = [name for name in local if not _is_real(trace.nodes[name]["fn"].support)]
    require(
        plate_nesting(trace) == 1 and bool(local) and not bounded,
        "the one plate of the model must be that of the trajectories, with real sites in it",
        f"{plate_nesting(trace)} plates, sites in them: {', '.join(local) or 'none'}",
    )
    return local, [name for name in names if name not in local]


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _regression(states: Tensor, shared: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of the states given the shared sites, and the factor of what is left of their
    covariance.

    Args:
        states: `(draw, trajectory, size)`.
        shared: each `(draw, *site)`.

    Returns:
        Means `(draw, trajectory, size)`, and a lower triangle `(trajectory, size, size)`.
    """
    count = len(states)
    columns = [states.new_ones(count, 1)]
    for value in shared.values():
        flat = value.reshape(count, -1).to(states)
        spread = flat.std(0)
        columns.append(((flat - flat.mean(0)) / spread.clamp_min(1e-300))[:, spread > 0])
    design = torch.cat(columns, dim=-1)
    if 4 * design.shape[1] > count:  # too few draws for so many sites
        design = design[:, :1]
    # A little ridge: sites that trade off against one another are nearly collinear.
    gram = design.mT @ design + 1e-8 * count * torch.eye(design.shape[1]).to(states)
    target = states.flatten(1)
    means = (design @ torch.linalg.solve(gram, design.mT @ target)).reshape(states.shape)
    rest = (states - means).movedim(0, 1)
    scale = rest.square().mean(1).sqrt().clamp_min(1e-12)
    unit = rest / scale.unsqueeze(1)
    correlation = unit.mT @ unit / count + 1e-6 * torch.eye(states.shape[-1]).to(states)
    return means, WIDER * scale.unsqueeze(-1) * torch.linalg.cholesky(correlation)
