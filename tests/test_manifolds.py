"""Products of lines and circles: distances, wrapping, and the smooth features with their derivative."""

from __future__ import annotations

import math

import pytest
import torch

from vinppl.manifolds import Circle, Euclidean, Manifold, Torus

MANIFOLDS = [
    Euclidean(1),
    Euclidean(3),
    Circle(),
    Torus(2),
    Manifold((False, True)),
    Manifold((True, False, True)),
]
every_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: str(m.periodic))


def test_constructors() -> None:
    assert Euclidean(2) == Manifold((False, False))
    assert Circle() == Torus(1) == Manifold((True,))
    assert (Torus(2).dim, Torus(2).num_features, Euclidean(2).num_features) == (2, 4, 2)
    with pytest.raises(ValueError, match="must have at least one coordinate"):
        Manifold(())


@every_manifold
def test_difference_is_the_short_way_round_and_wrap_its_special_case(manifold: Manifold) -> None:
    a, b = 10 * torch.randn(2, 50, manifold.dim)
    difference, periodic = manifold.difference(a, b), torch.tensor(manifold.periodic)
    assert torch.equal(difference[:, ~periodic], (a - b)[:, ~periodic])
    angles = difference[:, periodic]
    assert bool(((angles > -math.pi) & (angles <= math.pi)).all())
    turns = ((a - b)[:, periodic] - angles) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-13)
    torch.testing.assert_close(manifold.wrap(a), manifold.difference(a, torch.zeros_like(a)))


def test_half_a_turn_is_plus_pi() -> None:
    half = torch.tensor([math.pi, -math.pi, 3 * math.pi]).unsqueeze(-1)
    torch.testing.assert_close(Circle().wrap(half).abs(), torch.full((3, 1), math.pi))
    assert Circle().wrap(half[:1]).item() == math.pi


@every_manifold
def test_features_are_periodic_and_keep_the_batch(manifold: Manifold) -> None:
    q = torch.randn(4, 3, manifold.dim)
    features = manifold.features(q)
    assert features.shape == (4, 3, manifold.num_features)
    turned = q + 2 * math.pi * torch.tensor(manifold.periodic)
    torch.testing.assert_close(manifold.features(turned), features, rtol=0, atol=1e-14)


@every_manifold
def test_harmonics_have_the_period_of_an_angle_and_add_to_its_features(manifold: Manifold) -> None:
    periodic = torch.tensor(manifold.periodic)
    waves = manifold.wave_numbers(4)
    assert torch.equal(waves[periodic], torch.arange(1.0, 5).expand(sum(manifold.periodic), -1))
    torch.testing.assert_close(
        8 * waves[~periodic], (2 * math.pi * torch.arange(1.0, 5)).expand_as(waves[~periodic])
    )
    beyond = manifold.wave_numbers(3, beyond_features=True)
    assert torch.equal(beyond[periodic], waves[periodic, 1:])
    assert torch.equal(beyond[~periodic], waves[~periodic, :3])


@every_manifold
def test_pull_back_is_the_transposed_jacobian_of_features(manifold: Manifold) -> None:
    q = torch.randn(5, manifold.dim, requires_grad=True)
    cotangent = torch.randn(5, manifold.num_features)
    (expected,) = torch.autograd.grad(manifold.features(q), q, cotangent)
    torch.testing.assert_close(manifold.pull_back(q, cotangent), expected, rtol=0, atol=1e-15)
