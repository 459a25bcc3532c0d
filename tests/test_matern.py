"""Matérn processes at knots: density, draws and continuation against the kernel."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal

from vinppl.matern import MaternKnots, continue_path, matern_path


def knots_covariance(amplitude: torch.Tensor, ratio: torch.Tensor, knots: int) -> torch.Tensor:
    """Return the covariance of values and of derivatives times the spacing, from the kernel's derivatives."""
    lag = ratio * (torch.arange(knots).unsqueeze(-1) - torch.arange(knots))
    r, rate = math.sqrt(3) * lag.abs(), math.sqrt(3) * ratio
    values = (1 + r) * (-r).exp()
    cross = (
        rate * math.sqrt(3) * lag * (-r).exp()
    )  # minus the derivative by the first time, of (value, slope)
    slopes = rate**2 * (1 - r) * (-r).exp()
    return amplitude**2 * torch.cat([torch.cat([values, cross], 1), torch.cat([cross.mT, slopes], 1)], 0)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
def test_density_of_knots_is_that_of_the_kernel(ratio: float) -> None:
    amplitude, knots = torch.tensor(1.7), 6
    covariance = knots_covariance(amplitude, torch.tensor(ratio), knots)
    exact = MultivariateNormal(torch.zeros(2 * knots), covariance)
    found = MaternKnots(amplitude, torch.tensor(ratio), knots)
    value = exact.sample((4,))
    stacked = torch.stack(value.chunk(2, dim=-1), dim=-1)  # (draw, knot, value and slope)
    # The covariance's condition number, up to 1e9 at the smallest ratio, times rounding.
    torch.testing.assert_close(found.log_prob(stacked), exact.log_prob(value), rtol=0, atol=1e-6)
    several = MaternKnots(amplitude, torch.tensor(ratio), knots, 2)
    both = torch.cat([stacked[:2, :, :1], stacked[2:, :, :1], stacked[:2, :, 1:], stacked[2:, :, 1:]], dim=-1)
    expected = exact.log_prob(value[:2]) + exact.log_prob(value[2:])
    torch.testing.assert_close(several.log_prob(both), expected, rtol=0, atol=1e-6)
    variance = torch.stack(covariance.diagonal().chunk(2), dim=-1)
    torch.testing.assert_close(found.variance, variance, rtol=1e-12, atol=0)


def test_draws_of_knots_and_their_continuation_have_the_covariance_of_the_kernel() -> None:
    # The maps from innovations are linear: their matrices give covariances without sampling.
    amplitude, ratio, knots = torch.tensor(2.0), torch.tensor(0.4), 7
    basis = torch.eye(2 * knots).reshape(2 * knots, knots, 2)
    expected = knots_covariance(amplitude, ratio, knots)
    for known in (1, 4, 7):
        first = [amplitude * x for x in matern_path(basis[:, :known], ratio)]
        path = torch.cat(continue_path(*first, basis[:, known:], amplitude, ratio), dim=-2).squeeze(-1)
        torch.testing.assert_close(path.mT @ path, expected, rtol=0, atol=1e-11)
    torch.manual_seed(3)
    drawn = MaternKnots(amplitude, ratio, 2).sample((40_000,))
    flat = drawn.mT.flatten(1)
    # Standard errors of covariances below 4 sqrt(2 / 40,000) = 0.03; five of them.
    torch.testing.assert_close(
        flat.mT @ flat / 40_000, knots_covariance(amplitude, ratio, 2), rtol=0, atol=0.15
    )


def test_knots_in_plates_and_their_gradients() -> None:
    one = MaternKnots(torch.tensor(0.3), torch.tensor(0.5), 4, 2)
    assert (one.batch_shape, one.event_shape) == ((), (4, 4))
    many = one.expand((3, 2))
    value = many.sample((5,))
    assert value.shape == (5, 3, 2, 4, 4)
    torch.testing.assert_close(many.log_prob(value), one.log_prob(value), rtol=1e-14, atol=0)
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2, dim=-1):
        assert pyro.sample("x", MaternKnots(torch.ones(3, 1), torch.ones(3, 1), 4)).shape == (3, 2, 4, 2)
    assert bool((one.mean == 0).all())
    inputs = (value[0, :, 0].clone(), torch.tensor([0.3, 1.0, 2.0]), torch.tensor([0.1, 0.5, 2.0]))
    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a, r: MaternKnots(a, r, 4, 2).log_prob(x), inputs)
    with pytest.raises(ValueError, match="amplitude"):
        MaternKnots(torch.tensor(-1.0), torch.tensor(0.5), 4)
