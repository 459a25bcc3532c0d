"""Adaptive importance sampling of many small posteriors side by side.

States are `(lane, trajectory, size)` and log weights `(lane, trajectory)`: every trajectory has a
posterior of its own, and a lane is one proposal for each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["StudentProposal", "effective_size", "levelled", "resample", "tempered"]


class StudentProposal:
    """A Student-t of 5 degrees of freedom for every trajectory.

    Args:
        centre: `(trajectory, size)`.
        factor: lower triangular, `(trajectory, size, size)`.
    """

    degrees = 5.0

    def __init__(self, centre: Tensor, factor: Tensor) -> None:
        self.centre, self.factor = centre, factor

    def sample(self, lanes: int) -> tuple[Tensor, Tensor]:
        """Return states `(lane, trajectory, size)` and their log density."""
        n = self.centre.shape[-1]
        normal = torch.randn(lanes, *self.centre.shape, dtype=self.centre.dtype, device=self.centre.device)
        half = normal.new_full(normal.shape[:-1], 0.5 * self.degrees)
        standard = normal / (torch._standard_gamma(half) / half).sqrt().unsqueeze(-1)
        states = self.centre + (self.factor @ standard.unsqueeze(-1)).squeeze(-1)
        kernel = -0.5 * (self.degrees + n) * torch.log1p(standard.square().sum(-1) / self.degrees)
        constant = math.lgamma(0.5 * (self.degrees + n)) - math.lgamma(0.5 * self.degrees)
        constant -= 0.5 * n * math.log(self.degrees * math.pi)
        return states, constant + kernel - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def moved(self, states: Tensor, weights: Tensor, *, least: float = 50.0) -> StudentProposal:
        """Return the Student-t of the mean and covariance under weights tempered to be not too uneven.

        Of a trajectory with too few finite weights to tell a covariance only the mean is taken.

        Args:
            states: `(lane, trajectory, size)`.
            weights: their log weights, `(lane, trajectory)`.
            least: effective sample size that the tempering keeps, at most a quarter of the lanes.
        """
        least = min(least, 0.25 * len(weights))
        share = tempered(weights, least).softmax(0).unsqueeze(-1)
        centre = (share * states).sum(0)
        offset = states - centre
        few = (torch.isfinite(weights).sum(0) < least).unsqueeze(-1)
        sd = torch.where(few, 1.0, (share * offset.square()).sum(0).sqrt())
        scaled = offset / sd
        correlation = torch.einsum("ln,lni,lnj->nij", share.squeeze(-1), scaled, scaled)
        eye = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
        factor = sd.unsqueeze(-1) * torch.linalg.cholesky(1.2 * correlation + 1e-5 * eye)
        return StudentProposal(centre, torch.where(few.unsqueeze(-1), self.factor, factor))


def tempered(weights: Tensor, least: float) -> Tensor:
    """Return weights `(lane, trajectory)` to the largest power <= 1 that keeps the effective size."""
    finite = torch.isfinite(weights)
    shifted = torch.where(finite, weights - weights.amax(0), 0.0)

    def to_the(power: Tensor) -> Tensor:
        return torch.where(finite, power * shifted, -math.inf)

    low, high = torch.zeros_like(weights[0]), torch.ones_like(weights[0])
    untouched = effective_size(to_the(high)) >= least
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = effective_size(to_the(middle)) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return to_the(torch.where(untouched, 1.0, low))


def effective_size(weights: Tensor) -> Tensor:
    """Return the effective sample size of log weights `(lane, trajectory)`."""
    return 1 / weights.softmax(0).square().sum(0)


def levelled(weights: Tensor, group: Tensor) -> Tensor:
    """Return log weights of which every group of lanes has the same sum, as far as it has finite ones."""
    group = group.unsqueeze(-1).expand_as(weights)
    top = torch.full_like(weights, -math.inf).scatter_reduce(0, group, weights, "amax")
    top = torch.where(torch.isfinite(top), top, 0.0).gather(0, group)
    share = (weights - top).exp()
    total = torch.zeros_like(weights).scatter_add(0, group, share).gather(0, group)
    return torch.where(total > 0, weights - top - total.log(), -math.inf)


def resample(weights: Tensor, num_draws: int) -> Tensor:
    """Return indices `(num_draws, trajectory)` by systematic resampling, in random order."""
    cumulative = weights.softmax(0).cumsum(0).mT.contiguous()
    steps = torch.arange(num_draws, dtype=weights.dtype, device=weights.device)
    ticks = (steps + torch.rand_like(weights[0, 0])) / num_draws
    columns = []
    for total in cumulative:
        chosen = torch.searchsorted(total, ticks * total[-1]).clamp_max(len(total) - 1)
        columns.append(chosen[torch.randperm(num_draws, device=chosen.device)])
    return torch.stack(columns, dim=1)
