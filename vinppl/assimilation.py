"""New trajectories for a fitted model: their initial states, given a window of measurements.

A model fitted to some trajectories knows the system; to forecast another one it needs that one's
initial state. Its posterior is low-dimensional for each trajectory, so that importance sampling is
exact up to a Monte Carlo error that the effective sample size reports.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.draws import (
    Draws,
    batch_size,
    latent_sites,
    plate_nesting,
    predict,
    prototype,
    seeded,
    trajectory_log_prob,
)
from vinppl.errors import NumericalWarning
from vinppl.estimates import first_states, noise_estimate
from vinppl.guides import INITIAL_SITES, AmortisedGuide
from vinppl.importance import StudentProposal, effective_size, levelled, resample
from vinppl.priors import state_scales

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["Assimilated", "assimilate"]

MIN_ESS = 20.0
"""Effective sample size of a trajectory below which its draws are too few to be trusted."""

WIDENED = 3.0
"""How much wider than what a guide reads the first proposals are; it may be sure and wrong."""

LANES_PER_DRAW = 20
"""Proposals for each shared draw, where every one of those has to normalise its own weights."""


@dataclass(frozen=True)
class Assimilated:
    """Posterior of new trajectories under a fitted model.

    Attributes:
        model: the Pyro model.
        data: the measurements that were conditioned on.
        states: initial positions, then velocities, `(num_draws, trajectory, 2 dim)`.
        index: which draw of `shared` belongs to each, `(num_draws, trajectory)`.
        shared: draws of the sites that trajectories share, each `(draw, *site)`.
        effective_sizes: effective sample size of every trajectory, `(trajectory,)`.
        parameters: learned parameters of the model, unconstrained, by name.
    """

    model: Any
    data: Trajectories
    states: Tensor
    index: Tensor
    shared: Draws
    effective_sizes: Tensor
    parameters: Mapping[str, Tensor] | None = None

    def predict(self, future: Trajectories, *, sites: Sequence[str] | None = None, seed: int = 0) -> Draws:
        """Run the model from the draws over the times of `future`; see `vinppl.draws.predict`.

        Args:
            future: the same trajectories on other times, from `vinppl.forecast.extend`.
            sites: sites to return; by default all observed and deterministic ones.
            seed: of the predictive noise.

        Returns:
            Observed and deterministic sites, each `(num_draws, trajectory, *event)`.

        Raises:
            ValueError: if `future` has another number of trajectories.
        """
        count = self.states.shape[1]
        require(
            future.num_trajectories == count,
            f"future must continue the same {count} trajectories",
            f"{future.num_trajectories}",
        )
        if bool((self.index == self.index[:, :1]).all()):
            return self._run(slice(None), future, sites, seed)
        with seeded(seed):
            seeds = torch.randint(2**62, (count,)).tolist()
        parts = [self._run(slice(n, n + 1), _only(future, n), sites, seed) for n, seed in enumerate(seeds)]
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    def _run(
        self, trajectories: slice, future: Trajectories, sites: Sequence[str] | None, seed: int
    ) -> Draws:
        """Predict trajectories that agree on their shared draws."""
        index = self.index[:, trajectories.start or 0]
        draws = {name: value[index] for name, value in self.shared.items()}
        draws |= _initial_draws(self.states[:, trajectories])
        return predict(self.model, draws, future, sites=sites, seed=seed, parameters=self.parameters)


def assimilate(
    model: Any,
    shared: Mapping[str, Tensor],
    data: Trajectories,
    *,
    num_draws: int = 200,
    num_proposals: int = 1000,
    num_rounds: int = 6,
    reweigh: bool = True,
    seed: int = 0,
    guide: AmortisedGuide | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> Assimilated:
    """Draw initial states of new trajectories from their posterior under a fitted model.

    Adaptive importance sampling: a Student-t in (q, v) for each trajectory, begun at rough estimates and
    moved to the weighted mean and covariance of tempered weights, proposes initial states; shared sites
    come from `shared`. The last round is resampled. Proposals of all trajectories run as one batch.

    Args:
        model: Pyro model whose only sites under the plate `trajectory` are `initial_position` and
            `initial_velocity`.
        shared: posterior draws of all other latent sites, each `(draw, *site)`. More than there are
            proposals (a twentieth of these without `reweigh`) are thinned evenly.
        data: measurements of the new trajectories.
        num_draws: draws to return.
        num_proposals: proposals for each trajectory in the last round, a quarter of them in those before.
        num_rounds: rounds, the last included.
        reweigh: whether the new measurements also speak about the shared sites, as by Bayes' rule;
            otherwise every draw of those counts the same, whatever it makes of the new trajectory.
        seed: of everything random.
        guide: an amortised guide, whose reading of the new trajectories is where proposals begin; films have
            no other estimate.
        parameters: learned parameters of the model, unconstrained, by name.

    Raises:
        ValueError: for films without a guide, if `shared` lacks a site, or no proposal of a trajectory has a
            finite density.

    Warns:
        NumericalWarning: if the effective sample size of a trajectory is below 20.
    """
    require(num_draws >= 1, "num_draws must be at least 1", num_draws)
    require(num_proposals >= 1, "num_proposals must be at least 1", num_proposals)
    require(num_rounds >= 1, "num_rounds must be at least 1", num_rounds)
    shared = _shared_draws(model, shared, data)
    with seeded(seed), torch.no_grad():
        proposal = _first_proposal(data, guide)
        for remaining in reversed(range(num_rounds)):
            size = num_proposals if remaining == 0 else max(50, num_proposals // 4)
            lanes = _propose(model, shared, data, proposal, size, reweigh=reweigh, parameters=parameters)
            # Normalised weights hide how far proposals still are from the data: only the last move has them.
            weights = lanes.joint if reweigh or remaining > 1 else levelled(lanes.joint, lanes.group)
            if remaining:
                proposal = proposal.moved(lanes.states, weights)
        chosen = resample(weights, num_draws)
    sizes = effective_size(weights)
    if not reweigh:  # every shared draw spends one of its proposals on its own normalisation
        sizes = sizes - float(lanes.group.max())
    _warn_of_few(sizes)
    states = lanes.states.gather(0, chosen.unsqueeze(-1).expand(-1, -1, lanes.states.shape[-1]))
    return Assimilated(model, data, states, lanes.draw[chosen], shared, sizes, parameters)


def _only(data: Trajectories, n: int) -> Trajectories:
    """Return one trajectory with the padding that it has among the others."""
    parts = {name: getattr(data, name)[n : n + 1] for name in ("times", "values", "mask", "names")}
    return dataclasses.replace(data, **parts, drive=None if data.drive is None else data.drive[n : n + 1])


def _shared_draws(model: Any, draws: Mapping[str, Tensor], data: Trajectories) -> Draws:
    """Return the draws of the sites outside of the plate of trajectories."""
    trace = prototype(model, data)
    names = [name for name in latent_sites(trace) if name not in INITIAL_SITES]
    own = [name for name in names if any(f.vectorized for f in trace.nodes[name]["cond_indep_stack"])]
    require(
        not own and plate_nesting(trace) == 1,
        "the model must have no latent sites in plates but the initial states of its trajectories",
        f"{own}" if own else f"{plate_nesting(trace)} nested plates",
    )
    missing = [name for name in names if name not in draws]
    require(not missing, "shared must hold every site but the initial states", f"none of {missing}")
    counts = {draws[name].shape[0] for name in names}
    require(len(counts) <= 1, "all sites of shared must have the same number of draws", f"{sorted(counts)}")
    return {name: draws[name] for name in names}


def _initial_draws(states: Tensor) -> Draws:
    """Return the initial sites of states `(draw, trajectory, 2 dim)`."""
    return dict(zip(INITIAL_SITES, states.chunk(2, dim=-1), strict=True))


class _Lanes(NamedTuple):
    """One round of proposals: states `(lane, trajectory, 2 dim)` with the shared draw of each lane.

    Attributes:
        states: proposed initial states.
        joint: log weights for the posterior of initial states and shared draw, `(lane, trajectory)`.
        draw: which of `shared` each lane has, `(lane,)`.
        group: the same, numbered from zero over the draws in use, ascending.
    """

    states: Tensor
    joint: Tensor
    draw: Tensor
    group: Tensor


def _propose(
    model: Any,
    shared: Draws,
    data: Trajectories,
    proposal: StudentProposal,
    size: int,
    *,
    reweigh: bool,
    parameters: Mapping[str, Tensor] | None,
) -> _Lanes:
    """Propose and weigh `size` states for every trajectory, over evenly many of each shared draw."""
    count = next(iter(shared.values())).shape[0] if shared else 1
    used = min(count, max(1, size if reweigh else size // LANES_PER_DRAW))
    group = torch.arange(size, device=proposal.centre.device) * used // size
    draw = (torch.arange(used, device=group.device) * count // used)[group]
    states, density = proposal.sample(size)
    draws = {name: value[draw] for name, value in shared.items()} | _initial_draws(states)
    joint = (
        trajectory_log_prob(model, draws, data, chunk_size=batch_size(data), parameters=parameters) - density
    )
    joint = joint - group.bincount()[group].to(joint).log().unsqueeze(-1)  # numbers of lanes differ by one
    joint = torch.where(torch.isfinite(joint), joint, -math.inf)
    lost = [data.names[i] for i in (joint.amax(0) == -math.inf).nonzero().flatten().tolist()]
    require(
        not lost,
        "every new trajectory must have a proposal of finite density",
        f"none for {lost}",
        "Check that the new trajectories have the units and channels of the fitted ones.",
    )
    return _Lanes(states, joint, draw, group)


def _first_proposal(data: Trajectories, guide: AmortisedGuide | None) -> StudentProposal:
    """Return a first guess: what the guide reads, or estimates from the first samples, with their scatter."""
    if guide is not None:
        posterior = guide.encoder(data)
        return StudentProposal(posterior.loc, WIDENED * posterior.factor)
    require(data.image_shape is None, "the initial states of films must be read by a guide", "none")
    centre = torch.cat(first_states(data), dim=-1)
    typical = torch.cat(state_scales(data))
    noise = torch.zeros_like(typical).index_copy(0, data.channel_index, noise_estimate(data))
    measured = torch.zeros_like(centre, dtype=torch.bool)
    measured[:, data.channel_index] = data.mask[:, 0]
    scale = torch.where(measured, torch.maximum(noise, 0.05 * typical), typical)
    return StudentProposal(centre, torch.diag_embed(scale))


def _warn_of_few(sizes: Tensor) -> None:
    """Warn if a trajectory has a small effective sample."""
    if bool((sizes < MIN_ESS).any()):
        warnings.warn(
            f"the initial state of {int((sizes < MIN_ESS).sum())} of {sizes.numel()} trajectories rests on "
            f"too few effective draws, {float(sizes.min()):.0f} at worst; raise num_proposals",
            NumericalWarning,
            stacklevel=3,
        )
