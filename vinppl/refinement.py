"""Draws of an approximate posterior made exact by importance sampling: all latent sites of given data.

An encoder reads a trajectory at once, and what it reads is nearly right (the amortisation gap). Given what
trajectories share (mass, noise, ..) their own sites are independent, few for each, and nearly normal. So a
proposal of that structure, a normal-like density of the shared sites and one of every trajectory's own whose
mean follows them linearly, can be moved onto the posterior in a few rounds, from the draws of any guide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.distributions import biject_to

from vinppl._checks import require
from vinppl.diagnostics import MAX_SHAPE, tail_shape
from vinppl.draws import (
    Draws,
    batch_size,
    latent_sites,
    plate_nesting,
    prototype,
    require_latent,
    seeded,
    split_log_prob,
)
from vinppl.guides import AmortisedGuide
from vinppl.importance import StudentProposal, effective_size, resample

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.fit import SVIResult

__all__ = ["Refined", "can_refine", "refine"]

MIN_ESS = 100.0
"""Effective sample size below which draws are too few to be trusted."""

OWN_DRAWS = 4
"""Draws of each trajectory's own sites at least, given each draw of the shared ones. The variances of the log
weights of trajectories add up: there is another draw for every 16 of them."""


@dataclass(frozen=True)
class Refined:
    """Posterior draws by importance sampling, and how far they can be trusted.

    Attributes:
        draws: latent sites, each `(num_draws, *site)`, of equal weight.
        effective_size: effective sample size of the weights that they were resampled by.
        shape: shape k of the tail of these weights, as fitted by PSIS; infinite where they are too few.
        log_evidence: log density of the measurements under the model, in nats.
    """

    draws: Draws
    effective_size: float
    shape: float
    log_evidence: float

    @property
    def is_reliable(self) -> bool:
        """Whether the effective sample size is at least 100 and k at most 0.7."""
        return self.effective_size >= MIN_ESS and self.shape <= MAX_SHAPE

    @property
    def verdict(self) -> str:
        """What to think of the draws, in words."""
        found = f"effective size {self.effective_size:.0f}, shape of the weights {self.shape:.2f}"
        if self.is_reliable:
            return f"draws are exact up to Monte Carlo error ({found})"
        return f"proposals are too far from the posterior to be put right ({found}); use NUTS"


def can_refine(result: SVIResult, data: Trajectories) -> bool:
    """Return whether `refine` can put right the draws of a fit.

    That is so for guides of trajectories of states, the model's only plate, that were fitted to them whole.
    Guides other than amortised ones have a density of all latent sites together, whose own weights
    (`vinppl.calibration.weighted.corrected_draws`) say more where proposals cannot be moved, so that these
    are left alone there.

    Args:
        result: of the fit.
        data: all that was measured; windows of it may be what was fitted.
    """
    if data.image_shape is not None or result.data.num_times != data.num_times:
        return False
    trace = prototype(result.model, data)
    if isinstance(result.guide, AutoDelta) or plate_nesting(trace) != 1:
        return False
    return isinstance(result.guide, AmortisedGuide) or _Coordinates(trace).size <= MAX_ADAPTED


def refine(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    *,
    num_draws: int = 1000,
    num_proposals: int = 1000,
    num_rounds: int = 4,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> Refined:
    """Move draws of an approximate posterior onto the posterior of all latent sites.

    Adaptive importance sampling in unconstrained space. Student-t proposals begin at the mean and covariance
    of the draws and are moved to those under tempered weights; the last round is resampled.

    Args:
        model: Pyro model of one argument, the data, whose only plate is `trajectory`.
        draws: draws of every latent site from about the posterior, each `(num_draws, *site)`; those of a
            fitted guide, say.
        data: the measurements.
        num_draws: draws to return.
        num_proposals: proposals of what is shared in the last round, half of them in those before.
        num_rounds: rounds, the last included. Where what is shared and one trajectory's own sites are more
            than 12 unconstrained numbers, there is only one: too few proposals to learn a covariance from.
        seed: of everything random.
        parameters: learned parameters of the model, unconstrained, by name.

    Raises:
        ValueError: if the model has other plates, `draws` lacks a site or has fewer than 10 draws, or no
            proposal has a finite density.

    References:
        Cappé, Guillin, Marin, Robert: Population Monte Carlo. J. Comput. Graph. Stat. 13 (2004).
        Cremer, Li, Duvenaud: Inference suboptimality in variational autoencoders. ICML (2018).
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto smoothed importance sampling. JMLR 25 (2024).
    """
    require(num_draws >= 1, "num_draws must be at least 1", num_draws)
    require(num_rounds >= 1, "num_rounds must be at least 1", num_rounds)
    require(num_proposals >= 100, "num_proposals must be at least 100", num_proposals)
    trace = prototype(model, data)
    nesting = plate_nesting(trace)
    require(nesting == 1, "the model's only plate must be that of trajectories", f"{nesting} plates")
    count = len(next(iter(draws.values()))) if draws else 0
    require(count >= 10, "draws must be at least 10", count)
    require_latent(trace, draws)
    coordinates = _Coordinates(trace)
    with seeded(seed), torch.no_grad():
        proposal = _Proposal.around(*coordinates.unconstrain(draws))
        if coordinates.size > MAX_ADAPTED:
            num_rounds = 1
        for remaining in reversed(range(num_rounds)):
            count = num_proposals if remaining == 0 else max(100, num_proposals // 2)
            lanes = _propose(model, proposal, coordinates, data, count, parameters)
            if remaining:
                proposal = proposal.moved(lanes)
        own = lanes.kept()
        chosen = resample(lanes.weights.unsqueeze(-1), num_draws)[:, 0]
    return Refined(
        coordinates.constrain(lanes.shared[chosen], own[chosen])[0],
        float(effective_size(lanes.weights.unsqueeze(-1))),
        tail_shape(lanes.weights.double().cpu().numpy()),
        float(lanes.weights.logsumexp(0) - math.log(len(lanes.weights))),
    )


MAX_ADAPTED = 12
"""Unconstrained numbers, shared ones and those of one trajectory, up to which proposals are moved."""


class _Coordinates:
    """Latent sites as unconstrained vectors: one of what trajectories share, one of each one's own."""

    def __init__(self, trace: Any) -> None:
        self.shared: dict[str, _Site] = {}
        self.own: dict[str, _Site] = {}
        for name in latent_sites(trace):
            site = trace.nodes[name]
            inside = any(frame.vectorized for frame in site["cond_indep_stack"])
            (self.own if inside else self.shared)[name] = _Site(site)

    @property
    def size(self) -> int:
        """Numbers of what is shared and of one trajectory."""
        return sum(site.size for site in (*self.shared.values(), *self.own.values()))

    def unconstrain(self, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return shared numbers `(lane, shared)` and those of trajectories `(lane, trajectory, own)`."""
        count = len(next(iter(draws.values())))
        shared = [site.unconstrain(draws[name], 1) for name, site in self.shared.items()]
        own = [site.unconstrain(draws[name], 2) for name, site in self.own.items()]
        nothing = torch.zeros(count, 0).to(next(iter(draws.values())))
        return torch.cat([nothing, *shared], dim=-1), torch.cat(own, dim=-1)

    def constrain(self, shared: Tensor, own: Tensor) -> tuple[Draws, Tensor, Tensor]:
        """Return the sites, and log |dz/du| of what is shared, `(lane,)`, and own, `(lane, trajectory)`."""
        draws: Draws = {}
        totals = []
        for sites, vectors in ((self.shared, shared), (self.own, own)):
            total = vectors.new_zeros(vectors.shape[:-1])
            parts = vectors.split([site.size for site in sites.values()], dim=-1) if sites else ()
            for (name, site), part in zip(sites.items(), parts, strict=True):
                draws[name], jacobian = site.constrain(part)
                total = total + jacobian
            totals.append(total)
        return draws, totals[0], totals[1]


class _Site:
    """One latent site: its map to unconstrained space, and the shape and size that it has there."""

    def __init__(self, site: Mapping[str, Any]) -> None:
        self.event_dim = site["fn"].event_dim
        self.map = biject_to(site["fn"].support)
        value = site["value"]
        event = value.reshape(-1, *value.shape[value.ndim - self.event_dim :])[0]
        self.shape = self.map.inv(event).shape
        self.size = max(1, self.shape.numel())

    def unconstrain(self, value: Tensor, num_batch: int) -> Tensor:
        """Return vectors `(*batch, size)`."""
        return self.map.inv(value).flatten(num_batch) if self.shape else self.map.inv(value).unsqueeze(-1)

    def constrain(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and log |dz/du|, `(*batch,)`."""
        u = vector.reshape(*vector.shape[:-1], *self.shape)
        z = self.map(u)
        jacobian = self.map.log_abs_det_jacobian(u, z)
        return z, sum_rightmost(jacobian, jacobian.ndim - (vector.ndim - 1))


class _Lanes(NamedTuple):
    """Proposals: of each draw of what is shared several of every trajectory's own sites.

    Attributes:
        shared: `(lane, shared)`.
        own: `(lane, each, trajectory, own)`.
        ratios: log weights of own sites given the shared ones, `(lane, each, trajectory)`.
        weights: log weights of the lanes, `(lane,)`. The mean weight of own sites estimates the density of a
            trajectory given the shared ones, without bias.
    """

    shared: Tensor
    own: Tensor
    ratios: Tensor
    weights: Tensor

    def kept(self) -> Tensor:
        """Return own sites, one of each lane and trajectory by its weight, `(lane, trajectory, own)`."""
        noise = -torch.empty_like(self.ratios).exponential_().log()  # of Gumbel
        chosen = (self.ratios + noise).argmax(1)[:, None, :, None]
        return self.own.gather(1, chosen.expand(-1, 1, -1, self.own.shape[-1])).squeeze(1)


class _Proposal(NamedTuple):
    """A Student-t over shared numbers, and one over each trajectory's own, whose centre follows them.

    Attributes:
        shared: of one lane of size `num_shared`.
        own: at the centre of the shared numbers.
        response: how it follows them, `(trajectory, own, num_shared)`.
    """

    shared: StudentProposal
    own: StudentProposal
    response: Tensor

    @property
    def size(self) -> int:
        """Shared numbers and those of one trajectory."""
        return int(self.response.shape[-1] + self.response.shape[-2])

    @classmethod
    def around(cls, shared: Tensor, own: Tensor) -> _Proposal:
        """Return that of the mean and covariance of draws `(lane, shared)`, `(lane, trajectory, own)`."""
        unit = [torch.eye(x.shape[-1]).to(x).expand(n, -1, -1) for x, n in ((shared, 1), (own, own.shape[1]))]
        start = cls(
            StudentProposal(shared.mean(0, keepdim=True), unit[0]),
            StudentProposal(own.mean(0), unit[1]),
            own.new_zeros(*own.shape[1:], shared.shape[-1]),
        )
        even = own.new_zeros(len(own), 1, own.shape[1])
        return start.moved(_Lanes(shared, own.unsqueeze(1), even, even[:, 0, 0]))

    def moved(self, lanes: _Lanes) -> _Proposal:
        """Return the proposal of means and covariances under weights tempered to be not too uneven.

        Own sites are regressed on shared ones under the weights of their trajectory alone, which are much
        more even than those of all together.
        """
        size, least = lanes.shared.shape[-1], max(50.0, 10.0 * self.size)
        shared = self.shared.moved(lanes.shared.unsqueeze(1), lanes.weights.unsqueeze(-1), least=least)
        repeated = lanes.shared[:, None, None].expand(*lanes.own.shape[:3], -1)
        joint = torch.cat([repeated, lanes.own], dim=-1).flatten(0, 1)
        top = self.shared.factor.expand(joint.shape[1], -1, -1)
        left = torch.cat([top, self.response @ top], dim=-2)
        right = torch.cat([torch.zeros_like(self.response.mT), self.own.factor], dim=-2)
        before = StudentProposal(joint.mean(0), torch.cat([left, right], dim=-1))
        found = before.moved(joint, lanes.ratios.flatten(0, 1), least=least)
        top, bottom = found.factor[:, :size, :size], found.factor[:, size:]
        response = torch.linalg.solve_triangular(top, bottom[..., :size], upper=False, left=False)
        moved = (shared.centre - found.centre[:, :size]).unsqueeze(-1)
        centre = found.centre[:, size:] + (response @ moved).squeeze(-1)
        return _Proposal(shared, StudentProposal(centre, bottom[..., size:]), response)


def _propose(
    model: Any,
    proposal: _Proposal,
    coordinates: _Coordinates,
    data: Trajectories,
    count: int,
    parameters: Mapping[str, Tensor] | None,
) -> _Lanes:
    """Propose and weigh."""
    each = OWN_DRAWS + data.num_trajectories // 16
    shared, density = proposal.shared.sample(count)
    moved = proposal.response @ (shared - proposal.shared.centre).unsqueeze(-1)  # (lane, trajectory, own, 1)
    own, own_density = proposal.own.sample(count * each)
    own = own + moved.squeeze(-1).repeat_interleave(each, 0)
    draws, jacobian, own_jacobian = coordinates.constrain(shared[:, 0].repeat_interleave(each, 0), own)
    size = batch_size(data, 2000)
    prior, likelihood = split_log_prob(model, draws, data, chunk_size=size, parameters=parameters)
    ratios = (likelihood + own_jacobian - own_density).unflatten(0, (count, each))
    ratios = torch.where(torch.isfinite(ratios), ratios, -math.inf)
    weights = (prior + jacobian)[::each] - density[:, 0] + (ratios.logsumexp(1) - math.log(each)).sum(-1)
    weights = torch.where(torch.isfinite(weights), weights, -math.inf)
    require(bool(torch.isfinite(weights).any()), "some proposal must have a finite density", "none")
    return _Lanes(shared[:, 0], own.unflatten(0, (count, each)), ratios, weights)
