"""Importance sampling of all latent sites, against the closed form of a linear oscillator."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from linear_spring import SITE, Spring, exact, measured
from pyro.distributions import LogNormal, Normal
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.refinement import Refined, refine

GRID = torch.linspace(-1.2, 1.2, 97, dtype=torch.float64)  # of the log stiffness over its prior median


def posterior(data: Trajectories) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the posterior on the grid, mean and variance of q0 and v0, and the log evidence of all data."""
    at = [exact(2.0 * math.exp(u), data) for u in GRID.tolist()]
    joint = Normal(0.0, 0.5).log_prob(GRID) + torch.stack([e.log_evidence.sum() for e in at])
    step = math.log(float(GRID[1] - GRID[0]))
    share = joint.softmax(0)
    means = torch.stack([e.mean for e in at])
    mean = (share[:, None, None] * means).sum(0)
    spread = torch.stack([e.covariance.diagonal(dim1=-2, dim2=-1) for e in at]) + (means - mean).square()
    return share, mean, (share[:, None, None] * spread).sum(0), float(joint.logsumexp(0)) + step


def rough(data: Trajectories, shift: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    """Return independent draws that are off and too narrow, as those of a mean-field guide might be."""
    stream = torch.Generator().manual_seed(seed)
    at = exact(2.0, data)
    mean, variance = at.mean, at.covariance.diagonal(dim1=-2, dim2=-1)
    noise = torch.randn(200, data.num_trajectories, 2, generator=stream)
    states = mean + (0.6 * noise + shift) * variance.sqrt()
    stiffness = 2.0 * (0.05 * torch.randn(200, generator=stream) + 0.1 * shift).exp()
    return {SITE: stiffness, "initial_position": states[..., :1], "initial_velocity": states[..., 1:]}


@pytest.mark.parametrize("num_trajectories", [1, 3, 12])
def test_draws_have_the_posterior(num_trajectories: int) -> None:
    data = measured(num_trajectories=num_trajectories)
    found = refine(Spring(), rough(data), data, num_draws=2000, num_proposals=2000)
    share, mean, variance, log_evidence = posterior(data)
    assert found.is_reliable
    # Weights of n effective draws have the relative variance 1 / n.
    assert found.log_evidence == pytest.approx(log_evidence, abs=4 / math.sqrt(found.effective_size))
    u = (found.draws[SITE] / 2.0).log()
    centre = float((share * GRID).sum())
    sd = float((share * (GRID - centre).square()).sum().sqrt())
    independent = min(found.effective_size, 2000.0)
    assert abs(float(u.mean()) - centre) < 4 * sd / math.sqrt(independent)
    assert float(u.std()) == pytest.approx(sd, rel=4 / math.sqrt(independent))
    states = torch.cat([found.draws[f"initial_{name}"] for name in ("position", "velocity")], dim=-1)
    z = (states - mean) / variance.sqrt()
    # Two numbers for each trajectory: 5 standard errors.
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(independent)
    assert float((z.std(0) - 1).abs().max()) < 5 / math.sqrt(independent)


def test_a_good_guide_needs_one_round() -> None:
    """Draws of the posterior itself: what is lost is by the tails of a Student-t, 1.2 times too wide."""
    data = measured()
    first = refine(Spring(), rough(data), data, num_draws=1000)
    again = refine(Spring(), first.draws, data, num_proposals=1000, num_rounds=1, seed=1)
    assert again.effective_size > 300
    assert again.shape < 0.7


def test_the_same_seed_gives_the_same_draws() -> None:
    data = measured()
    first, same, other = (
        refine(Spring(), rough(data), data, num_draws=50, num_proposals=200, num_rounds=2, seed=s)
        for s in (1, 1, 2)
    )
    assert torch.equal(first.draws[SITE], same.draws[SITE])
    assert not torch.equal(first.draws[SITE], other.draws[SITE])


def test_only_initial_states() -> None:
    def fixed(data: Trajectories) -> None:
        pyro.condition(Spring(), data={SITE: torch.tensor(2.0)})(data)

    data = measured()
    draws = {name: value for name, value in rough(data).items() if name != SITE}
    found = refine(fixed, draws, data, num_proposals=1000)
    truth = exact(2.0, data)
    # The prior of the stiffness counts with its density at the value.
    expected = float(truth.log_evidence.sum() + LogNormal(math.log(2.0), 0.5).log_prob(torch.tensor(2.0)))
    assert found.log_evidence == pytest.approx(expected, abs=4 / math.sqrt(found.effective_size))


def test_proposals_that_are_too_far_are_called_so() -> None:
    data = measured()
    far = rough(data, shift=40.0)
    found = refine(Spring(), far, data, num_proposals=200, num_rounds=1)
    assert not found.is_reliable
    assert "too far" in found.verdict
    assert "exact" in Refined({}, 200.0, 0.5, 0.0).verdict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws must be at least 1; got 0"),
        ({"num_rounds": 0}, "num_rounds must be at least 1; got 0"),
        ({"num_proposals": 50}, "num_proposals must be at least 100; got 50"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    data = measured()
    with pytest.raises(ValueError, match=message):
        refine(Spring(), rough(data), data, **options)


def test_bad_draws() -> None:
    data = measured()
    draws = rough(data)
    with pytest.raises(ValueError, match="draws must be at least 10; got 3"):
        refine(Spring(), {name: value[:3] for name, value in draws.items()}, data)
    with pytest.raises(ValueError, match=f"draws must hold every latent site.*none of {SITE}"):
        refine(Spring(), {name: value for name, value in draws.items() if name != SITE}, data)
    with pytest.raises(ValueError, match="some proposal must have a finite density; got none"):
        refine(Spring(wall=math.inf), draws, data)
