"""Importance sampling side by side: weights, proposals and resampling, against what they must be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vinppl.distributions import SphericalStudentT
from vinppl.importance import StudentProposal, effective_size, levelled, resample, tempered


def test_effective_sizes() -> None:
    weights = torch.full((10, 3), -math.inf)
    weights[:, 0] = -700.0
    weights[:4, 1] = 5.0
    weights[2, 2] = 0.0
    torch.testing.assert_close(effective_size(weights), torch.tensor([10.0, 4.0, 1.0]))


def test_tempering_keeps_the_effective_size() -> None:
    weights = torch.stack([0.1 * torch.randn(400), 1e5 * torch.randn(400), 30 * torch.randn(400)], dim=-1)
    weights[:100, 2] = -math.inf
    found = tempered(weights, 50.0)
    torch.testing.assert_close(found[:, 0], weights[:, 0] - weights[:, 0].max())  # even enough as they were
    # Bisection to 2^-40 of powers around 1e-5 or more.
    torch.testing.assert_close(effective_size(found)[1:], torch.tensor([50.0, 50.0]), rtol=1e-4, atol=0)
    assert bool((found[:100, 2] == -math.inf).all())
    slope = (found[1:, 1] - found[0, 1]) / (weights[1:, 1] - weights[0, 1])
    torch.testing.assert_close(slope, slope[:1].expand_as(slope))  # a power of them
    few = torch.full((400, 1), -math.inf)
    few[:3, 0] = torch.tensor([0.0, -1.0, -9.0])
    # Too few to reach it: even over the finite ones, and only those.
    torch.testing.assert_close(tempered(few, 50.0).softmax(0)[:3, 0], torch.full((3,), 1 / 3))


def test_levelled_groups_have_equal_sums() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    weights = torch.tensor([[0.0, 1.0, -2.0, -5000.0, -5001.0, 3.0, -math.inf], [0.0] * 7]).mT.contiguous()
    weights[5:, 1] = -math.inf
    found = levelled(weights, group).exp()
    for column, groups in ((0, 3), (1, 2)):
        sums = torch.stack([part.sum() for part in found[:, column].split([3, 2, 2])])
        torch.testing.assert_close(sums, (torch.arange(3) < groups).double())
    torch.testing.assert_close(found[3, 0] / found[4, 0], torch.tensor(math.e))  # ratios inside stay


def test_resampling_takes_every_lane_by_its_share() -> None:
    weights = torch.randn(50, 3)
    weights[7, 0] = -math.inf
    chosen = resample(weights, 1000)
    assert chosen.shape == (1000, 3)
    counts = torch.stack([c.bincount(minlength=50) for c in chosen.unbind(1)], dim=1)
    # Systematic: the number of copies is the expected one, rounded down or up.
    assert float((counts - 1000 * weights.softmax(0)).abs().max()) < 1
    assert int(counts[7, 0]) == 0
    assert not torch.equal(chosen[:, 0], chosen[:, 0].sort().values)


def correlated(*sds: float) -> Tensor:
    """Return a covariance of correlation 0.9."""
    sd = torch.tensor(sds)
    return sd.unsqueeze(-1) * (0.1 * torch.eye(len(sds)) + 0.9) * sd


def test_draws_of_a_proposal_have_its_density() -> None:
    factor = torch.linalg.cholesky(torch.stack([correlated(1.0, 2.0), correlated(3.0, 0.1)]))
    centre = torch.tensor([[0.0, 1.0], [5.0, -2.0]])
    states, density = StudentProposal(centre, factor).sample(5)
    standard = torch.linalg.solve_triangular(factor, (states - centre).unsqueeze(-1), upper=False).squeeze(-1)
    expected = SphericalStudentT(5.0, 1.0, 2).log_prob(standard) - factor.diagonal(dim1=1, dim2=2).log().sum(
        -1
    )
    torch.testing.assert_close(density, expected)


@pytest.mark.parametrize("units", [1.0, 1e-6, 1e6])
def test_proposals_move_to_their_targets_whatever_the_units(units: float) -> None:
    # Far, narrow and correlated; the second coordinate is in units of its own.
    centre = torch.tensor([[4.0, -3.0 * units]])
    target = MultivariateNormal(centre, correlated(0.05, 0.02 * units))
    proposal = StudentProposal(torch.zeros(1, 2), torch.diag(torch.tensor([1.0, units])).unsqueeze(0))
    for _ in range(8):
        states, density = proposal.sample(400)
        proposal = proposal.moved(states, target.log_prob(states) - density)
    states, density = proposal.sample(2000)
    size = effective_size(target.log_prob(states) - density)
    # A Student-t of 5 degrees on 1.2 times the right covariance has an efficiency of 0.87; half is found.
    assert float(size) > 0.5 * 2000


def test_a_proposal_of_few_finite_weights_keeps_its_width() -> None:
    proposal = StudentProposal(torch.zeros(2, 1), torch.ones(2, 1, 1))
    states, _ = proposal.sample(400)
    weights = torch.full((400, 2), -math.inf)
    weights[3, 0] = weights[:, 1] = 0.0
    moved = proposal.moved(states, weights)
    assert float(moved.centre[0]) == pytest.approx(float(states[3, 0]))
    assert torch.equal(moved.factor[0], proposal.factor[0])
    assert not torch.equal(moved.factor[1], proposal.factor[1])
