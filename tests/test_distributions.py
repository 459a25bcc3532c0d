"""Distributions that Pyro does not have: densities against Pyro's, draws against known marginals."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch
from pyro.distributions import MultivariateStudentT, Normal, Uniform
from scipy import integrate, stats

from vinppl.distributions import SphericalStudentT, WrappedNormal, divergence_from_uniform


def test_density_is_that_of_the_multivariate_student() -> None:
    df, scale = torch.tensor([0.7, 2.0, 30.0]), torch.tensor([0.2, 1.0, 5.0])
    reference = MultivariateStudentT(df, torch.zeros(4), scale[:, None, None] * torch.eye(4))
    value = 3 * torch.randn(6, 3, 4)
    found = SphericalStudentT(df, scale, 4).log_prob(value)
    # Rounding of sums of some ten numbers of size ten.
    torch.testing.assert_close(found, reference.log_prob(value), rtol=1e-13, atol=1e-13)


def test_it_is_a_normal_for_many_degrees_of_freedom() -> None:
    value = 2 * torch.randn(50, 4)
    found = SphericalStudentT(1e8, 0.5, 4).log_prob(value)
    # With r = |value| / scale the logarithms differ by less than (r^2 + n)^2 / df, r^2 up to some 200.
    square = (value / 0.5).square().sum(-1)
    error = (found - Normal(0.0, 0.5).expand([4]).to_event(1).log_prob(value)).abs()
    assert bool((error < (square + 4).square() / 1e8 + 1e-6).all())  # 1e-6: lgamma of 5e7 is 8e8


@pytest.mark.parametrize("df", [2.0, 5.0])
def test_draws_have_the_right_marginals(df: float) -> None:
    n, size = 40_000, 6
    w = SphericalStudentT(df, 3.0, size).sample((n,))
    assert w.shape == (n, size)
    p = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    # A share of n draws has the standard error sqrt(p (1 - p) / n); four of them.
    allowed = 4 * (p * (1 - p) / n).sqrt()
    ends = torch.as_tensor(stats.t.ppf(p.numpy(), df)) * 3.0
    for one in w.unbind(-1):
        assert bool((((one.unsqueeze(-1) < ends).double().mean(0) - p).abs() < allowed).all())
    # The scale is common to the entries: |w|^2 / (size s^2) has the F distribution.
    ends = torch.as_tensor(stats.f.ppf(p.numpy(), size, df))
    square = w.square().mean(-1) / 9.0
    assert bool((((square.unsqueeze(-1) < ends).double().mean(0) - p).abs() < allowed).all())
    assert bool((SphericalStudentT(df, 3.0, size).mean == 0).all())


def test_second_moments() -> None:
    n, df, scale = 100_000, 12.0, 0.5
    w = SphericalStudentT(df, scale, 2).sample((n,))
    variance = scale**2 * df / (df - 2)
    # Kurtosis 3 + 6 / (df - 4): the mean of squares errs by variance * sqrt((2 + 0.75) / n); four of them.
    assert float((w.square().mean(0) / variance - 1).abs().max()) < 4 * math.sqrt(2.75 / n)
    assert abs(float((w[:, 0] * w[:, 1]).mean())) / variance < 4 * math.sqrt(1.25 / n)


def test_batches_plates_and_expansion() -> None:
    one = SphericalStudentT(2.0, 0.3, 5)
    assert (one.batch_shape, one.event_shape) == ((), (5,))
    many = one.expand((3, 2))
    assert (many.batch_shape, many.event_shape) == ((3, 2), (5,))
    value = many.sample((4,))
    assert value.shape == (4, 3, 2, 5)
    torch.testing.assert_close(many.log_prob(value), one.log_prob(value), rtol=0, atol=0)
    assert many.to_event(2).log_prob(value).shape == (4,)
    assert many.mask(False).log_prob(value).eq(0).all()
    batch = SphericalStudentT(torch.tensor([[1.0], [2.0]]), torch.ones(3), 5)
    assert batch.batch_shape == (2, 3)
    assert many.sample().std(-1).unique().numel() == 6  # every batch entry has its own scale
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2, dim=-1):
        assert pyro.sample("w", one).shape == (3, 2, 5)


def test_gradients() -> None:
    value = torch.randn(3, 4, requires_grad=True)
    df = torch.tensor([0.7, 2.0, 30.0], requires_grad=True)
    scale = torch.tensor([0.2, 1.0, 5.0], requires_grad=True)

    def density(value: torch.Tensor, df: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return SphericalStudentT(df, scale, 4).log_prob(value)

    assert torch.autograd.gradcheck(density, (value, df, scale))
    draw = SphericalStudentT(df, scale, 4).rsample((5,))
    by_df, by_scale = torch.autograd.grad(draw.sum(), (df, scale))
    torch.testing.assert_close(by_scale, (draw / scale.unsqueeze(-1)).sum((0, 2)))
    assert bool((torch.isfinite(by_df) & (by_df != 0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    prior = SphericalStudentT(torch.tensor(2.0, dtype=dtype), torch.tensor(0.3, dtype=dtype), 4)
    draw = prior.sample((1000,))
    assert draw.dtype == prior.log_prob(draw).dtype == prior.mean.dtype == dtype
    assert SphericalStudentT(2, 1, 4).sample().dtype == torch.float64  # whole numbers count as numbers
    # Few degrees of freedom: gamma draws that round to zero are no infinite weights, in double precision.
    few = SphericalStudentT(torch.tensor(0.02, dtype=torch.float64), 1.0, 3).sample((10_000,))
    assert bool(torch.isfinite(few).all())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="scale"):
        SphericalStudentT(2.0, -1.0, 4)
    with pytest.raises(ValueError, match="df"):
        SphericalStudentT(0.0, 1.0, 4)
    for prior in (SphericalStudentT(2.0, 1.0, 4), SphericalStudentT(2.0, 1.0, 4).expand((3,))):
        with pytest.raises(ValueError, match="right-most size"):
            prior.log_prob(torch.zeros(3, 5))
        with pytest.raises(ValueError, match="support"):
            prior.log_prob(torch.full((3, 4), math.nan))


SCALES = [0.05, 0.3, 0.399, 0.401, 0.7, 1.0, 1.99, 2.01, 3.0, 6.0]


@pytest.mark.parametrize("scale", SCALES)
def test_a_wrapped_normal_is_the_sum_over_revolutions(scale: float) -> None:
    angle = torch.linspace(-3.1, 3.1, 30)
    turns = 2 * math.pi * torch.arange(-30.0, 31.0)
    expected = Normal(0.8, scale).log_prob(angle.unsqueeze(-1) + turns).logsumexp(-1)
    found = WrappedNormal(0.8, scale).log_prob(angle)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_divergence_of_a_wrapped_normal_from_the_uniform_one(scale: float) -> None:
    wrapped = WrappedNormal(0.0, scale)

    def integrand(x: float) -> float:
        log_density = float(wrapped.log_prob(torch.tensor(x)))
        return math.exp(log_density) * (log_density + math.log(2 * math.pi))

    # The density is even; its bulk is told to the integrator.
    ends = [0.0, min(8 * scale, 3.0), math.pi]
    expected = 2 * sum(integrate.quad(integrand, a, b, epsabs=1e-13)[0] for a, b in itertools.pairwise(ends))
    found = torch.distributions.kl_divergence(wrapped, Uniform(-math.pi, math.pi))
    assert float(found) == pytest.approx(expected, abs=1e-11)
    single = divergence_from_uniform(torch.tensor(scale, dtype=torch.float32))
    assert float(single) == pytest.approx(expected, abs=2e-6)
    assert float(torch.distributions.kl_divergence(wrapped, Uniform(-1.0, 1.0))) == math.inf


def test_divergence_falls_smoothly_to_zero() -> None:
    scale = torch.tensor([0.01, 0.2, 0.39999, 0.40001, 1.0, 4.0, 40.0], requires_grad=True)
    value = divergence_from_uniform(scale)
    (slope,) = torch.autograd.grad(value.sum(), scale)
    assert bool((value.detach().diff() < 0).all())
    assert float(value[-1].detach()) == 0.0
    assert bool(torch.isfinite(slope).all())
    # Below the change of formula the entropy is that of a normal, whose slope is -1 / scale.
    torch.testing.assert_close(slope[2:4], -1 / scale[2:4].detach(), rtol=1e-10, atol=0.0)


def test_draws_of_a_wrapped_normal() -> None:
    n, loc, scale = 40_000, 2.9, 0.9
    parameters = [torch.tensor(value, requires_grad=True) for value in (loc, scale)]
    wrapped = WrappedNormal(*parameters, validate_args=True).expand([2]).to_event(1)
    x = wrapped.rsample((n,))
    assert x.shape == (n, 2)
    assert wrapped.log_prob(x).shape == (n,)
    # E exp(i x) = exp(i loc - scale^2 / 2); each part has a standard error below sqrt(1 / 2n).
    moment = torch.stack([x.cos().mean(), x.sin().mean()])
    length = math.exp(-(scale**2) / 2)
    expected = torch.tensor([length * math.cos(loc), length * math.sin(loc)])
    assert float((moment - expected).detach().abs().max()) < 4 / math.sqrt(2 * n)
    # Draws differentiate: the derivative of E cos x by scale is -scale times E cos x.
    (slope,) = torch.autograd.grad(moment[0], parameters[1])
    assert float(slope) == pytest.approx(-scale * length * math.cos(loc), abs=4 / math.sqrt(2 * n))
    with pytest.raises(ValueError, match="within the support"):
        WrappedNormal(0.0, 1.0, validate_args=True).log_prob(torch.tensor(4.0))
