"""Emissions: densities against dense ones, missing entries, draws, expansion, plates and particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, StudentT

from vinppl.emissions import (
    AR1Emission,
    AR1Series,
    GaussianEmission,
    GaussianSeries,
    StudentTEmission,
    StudentTSeries,
    make_emission,
)
from vinppl.parameters import Learned

T, C = 7, 2
TIMES = torch.tensor([0.0, 0.1, 0.35, 0.36, 1.0, 2.5, 2.6], dtype=torch.float64)
SCALE = torch.tensor([0.5, 2.0], dtype=torch.float64)
TAU = torch.tensor([0.4, 3.0], dtype=torch.float64)


def some_mask(*batch: int) -> Tensor:
    mask = torch.rand(*batch, T, C, generator=torch.Generator().manual_seed(1)) > 0.35
    mask[..., 0, 0] = False  # the first one missing
    mask[..., -1, 1] = False
    return mask


def dense_log_prob(residual: Tensor, times: Tensor, mask: Tensor, scale: Tensor, tau: Tensor) -> Tensor:
    """Return the joint normal log density of the observed entries of one channel."""
    t = times[mask]
    covariance = scale**2 * (-(t.unsqueeze(-1) - t).abs() / tau).exp()
    return MultivariateNormal(torch.zeros(len(t)), covariance).log_prob(residual[mask])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("shared_times", [True, False])
def test_ar1_is_the_dense_normal_with_exponential_covariance(missing: bool, shared_times: bool) -> None:
    num = 3
    times = TIMES if shared_times else TIMES * torch.tensor([[1.0], [0.5], [2.0]])
    mask = some_mask(num) if missing else torch.ones(num, T, C, dtype=torch.bool)
    loc, value = torch.randn(num, T, C), torch.randn(num, T, C)
    series = AR1Series(loc, SCALE, TAU, times, mask=mask if missing else None)
    expected = torch.zeros(num)
    for i in range(num):
        for c in range(C):
            own = times if shared_times else times[i]
            expected[i] += dense_log_prob((value - loc)[i, :, c], own, mask[i, :, c], SCALE[c], TAU[c])
    # Cholesky of a 7 x 7 matrix of condition 1e3 (gap 0.01, tau 3).
    torch.testing.assert_close(series.log_prob(value), expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(series.pointwise_log_prob(value).sum((-2, -1)), series.log_prob(value))
    assert bool((series.pointwise_log_prob(value)[~mask] == 0).all())


def test_ar1_forgets_over_long_gaps_and_is_random_walk_over_short_ones() -> None:
    loc, value = torch.zeros(2, 1), torch.tensor([[0.7], [0.9]])
    far = AR1Series(loc, torch.tensor(0.5), torch.tensor(1.0), torch.tensor([0.0, 1e3]))
    torch.testing.assert_close(far.log_prob(value), Normal(0.0, 0.5).log_prob(value).sum())
    gap = 1e-12
    near = AR1Series(loc, torch.tensor(0.5), torch.tensor(1.0), torch.tensor([0.0, gap]))
    step = Normal(0.7, 0.5 * (2 * gap) ** 0.5).log_prob(torch.tensor(0.9))  # variance 2 scale^2 gap / tau
    torch.testing.assert_close(near.pointwise_log_prob(value)[1, 0], step, rtol=1e-11, atol=0)


SERIES: dict[str, Callable[..., Any]] = {
    "gaussian": lambda loc, mask=None: GaussianSeries(loc, SCALE, mask=mask),
    "student_t": lambda loc, mask=None: StudentTSeries(loc, SCALE, torch.tensor(4.0), mask=mask),
    "ar1": lambda loc, mask=None: AR1Series(loc, SCALE, TAU, TIMES, mask=mask),
}
every_series = pytest.mark.parametrize("name", SERIES)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("gaussian", lambda loc: Normal(loc, SCALE)),
        ("student_t", lambda loc: StudentT(torch.tensor(4.0), loc, SCALE)),
    ],
)
def test_independent_noise_sums_over_observed_entries(name: str, reference: Callable[[Tensor], Any]) -> None:
    loc, value, mask = torch.randn(3, T, C), torch.randn(3, T, C), some_mask(3)
    series = SERIES[name](loc, mask)
    expected = reference(loc).log_prob(value) * mask
    torch.testing.assert_close(series.pointwise_log_prob(value), expected)
    torch.testing.assert_close(series.log_prob(value), expected.sum((-2, -1)))
    assert series.batch_shape == (3,)
    assert series.event_shape == (T, C)
    assert series.mean is not None
    assert torch.equal(series.mean, loc)


@every_series
def test_missing_values_may_be_nan_and_do_not_reach_gradients(name: str) -> None:
    mask = some_mask(3)
    value = torch.randn(3, T, C).masked_fill(~mask, float("nan"))
    filled = value.nan_to_num(17.0)
    loc = torch.randn(3, T, C, requires_grad=True)
    log_prob = SERIES[name](loc, mask).log_prob(value)
    torch.testing.assert_close(log_prob, SERIES[name](loc, mask).log_prob(filled))
    (slope,) = torch.autograd.grad(log_prob.sum(), loc)
    assert bool(torch.isfinite(slope).all())
    assert bool((slope[~mask] == 0).all())
    assert bool((slope[mask] != 0).all())


@every_series
def test_a_series_without_observations_has_density_one(name: str) -> None:
    mask = torch.zeros(3, T, C, dtype=torch.bool)
    assert SERIES[name](torch.zeros(3, T, C), mask).log_prob(torch.ones(3, T, C)).tolist() == [0.0] * 3


def test_padded_times_are_harmless_where_masked() -> None:
    times = torch.tensor([0.0, 0.1, 0.1, 0.1])
    mask = torch.tensor([True, True, False, False]).unsqueeze(-1)
    tau = torch.tensor(0.5, requires_grad=True)
    value = torch.randn(4, 1)
    padded = AR1Series(torch.zeros(4, 1), torch.tensor(0.5), tau, times, mask=mask).log_prob(value)
    short = AR1Series(torch.zeros(2, 1), torch.tensor(0.5), tau, times[:2]).log_prob(value[:2])
    torch.testing.assert_close(padded, short)
    (slope,) = torch.autograd.grad(padded, tau)
    assert bool(torch.isfinite(slope))


@every_series
def test_expand_keeps_densities_and_masks(name: str) -> None:
    mask = some_mask()
    series = SERIES[name](torch.randn(T, C), mask)
    larger = series.expand(torch.Size([5, 3]))
    assert (larger.batch_shape, larger.event_shape) == ((5, 3), (T, C))
    value = torch.randn(5, 3, T, C)
    torch.testing.assert_close(larger.log_prob(value), series.log_prob(value))
    assert larger.rsample().shape == (5, 3, T, C)
    assert larger.sample(torch.Size([4])).shape == (4, 5, 3, T, C)
    again = larger.expand(torch.Size([2, 5, 3]))
    assert again.log_prob(value).shape == (2, 5, 3)


@every_series
def test_draws_have_the_stated_moments(name: str) -> None:
    n = 20_000
    loc = torch.randn(T, C)
    draws = SERIES[name](loc).sample(torch.Size([n]))
    residual = draws - loc
    if name == "ar1":
        gaps = (TIMES.unsqueeze(-1) - TIMES).abs()
        covariance = SCALE[:, None, None] ** 2 * (-gaps / TAU[:, None, None]).exp()
    else:
        factor = 4.0 / (4.0 - 2.0) if name == "student_t" else 1.0  # the variance of Student's t
        covariance = factor * SCALE[:, None, None] ** 2 * torch.eye(T)
    measured = torch.einsum("ntc,nsc->cts", residual, residual) / n
    # Standard error of a covariance of variances s^2: at most sqrt(2 / n) s^2 = 0.01 s^2; five of them.
    # The fourth moment of Student's t with 4 degrees is infinite: its diagonal is only near.
    width = 0.05 if name != "student_t" else 0.5
    error = (measured - covariance).abs() / SCALE[:, None, None] ** 2
    assert float(error.max()) <= width
    between = torch.einsum("nt,nt->t", residual[..., 0], residual[..., 1]) / n / SCALE.prod()
    assert float(between.abs().max()) <= 0.05 * (2 if name == "student_t" else 1)


def test_ar1_draws_continue_from_a_known_residual() -> None:
    n, since, known = 40_000, 0.2, torch.tensor([1.5, -1.0])
    series = AR1Series(
        torch.zeros(T, C), SCALE, TAU, TIMES, initial_residual=(known, torch.tensor([since, since]))
    )
    draws = series.sample(torch.Size([n]))
    decay = (-(TIMES.unsqueeze(-1) + since) / TAU).exp()
    error = (draws.mean(0) - decay * known) / SCALE
    assert float(error.abs().max()) <= 5 / n**0.5  # five standard errors
    spread = draws.std(0) / (SCALE * (1 - decay.square()).sqrt())
    torch.testing.assert_close(spread, torch.ones(T, C), rtol=0, atol=5 / (2 * n) ** 0.5)


@every_series
def test_draws_are_reparametrised(name: str) -> None:
    loc = torch.zeros(T, C, requires_grad=True)
    (slope,) = torch.autograd.grad(SERIES[name](loc).rsample().sum(), loc)
    torch.testing.assert_close(slope, torch.ones(T, C))


# --- components ----------------------------------------------------------------------------------


class Model(PyroModule):
    def __init__(self, emission: GaussianEmission | StudentTEmission | AR1Emission) -> None:
        super().__init__()
        self.emission = emission

    def forward(self, loc: Tensor, mask: Tensor | None = None, obs: Tensor | None = None) -> Tensor:
        noise = self.emission(loc, TIMES, mask=mask)
        with pyro.plate("trajectory", loc.shape[-3], dim=-1):
            return pyro.sample("obs", noise, obs=obs)


def prior() -> dist.LogNormal:
    return dist.LogNormal(torch.tensor(0.0), torch.tensor(0.3))


EMISSIONS: dict[str, Callable[[int | None], Any]] = {
    "gaussian": lambda n: GaussianEmission(prior(), num_channels=n),
    "student_t": lambda n: StudentTEmission(prior(), prior(), num_channels=n),
    "ar1": lambda n: AR1Emission(prior(), prior(), num_channels=n),
}


@pytest.mark.parametrize("name", EMISSIONS)
@pytest.mark.parametrize("num_channels", [None, C])
def test_in_a_model_with_vectorised_particles(name: str, num_channels: int | None) -> None:
    model = Model(EMISSIONS[name](num_channels))
    loc, obs, mask = torch.randn(3, 4, T, C), torch.randn(4, T, C), some_mask(4)

    def vectorised(x: Tensor) -> Tensor:
        with pyro.plate("particles", 3, dim=-2):
            return model(x, mask, obs)

    for x in (loc, loc[0]):
        trace = poutine.trace(vectorised).get_trace(x)
        trace.compute_log_prob()
        log_prob = trace.nodes["obs"]["log_prob"]
        assert log_prob.shape == (3, 4)
        sites = {
            k: s["value"]
            for k, s in trace.nodes.items()
            if s["type"] == "sample" and k not in ("obs", "trajectory", "particles")
        }
        assert "noise_scale" in sites
        assert sites["noise_scale"].shape == ((3, 1) if num_channels is None else (3, 1, C))
        for i in range(3):
            single = poutine.condition(model, {k: s[i, 0] for k, s in sites.items()})
            one = poutine.trace(single).get_trace(x[i] if x.ndim == 4 else x, mask, obs)
            one.compute_log_prob()
            torch.testing.assert_close(log_prob[i], one.nodes["obs"]["log_prob"])


@pytest.mark.parametrize("name", ["gaussian", "student_t", "ar1"])
def test_make_emission_has_one_scale_per_channel(name: str) -> None:
    emission = make_emission(name, Learned(0.3), num_channels=C, correlation_time=Learned(2.0))  # type: ignore[arg-type]
    series = emission(torch.zeros(4, T, C), TIMES)
    value = series.rsample()
    assert value.shape == (4, T, C)
    series.log_prob(value.detach()).sum().backward()
    learned = dict(emission.named_parameters())
    assert len(learned) == (2 if name == "ar1" else 1)
    for label, parameter in learned.items():
        assert parameter.shape == (C,), label
        assert parameter.grad is not None, label
        assert bool((parameter.grad != 0).all()), label


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="noise must be one of ar1, gaussian, student_t; got white"):
        make_emission("white", 0.1, num_channels=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_channels must be at least 1; got 0"):
        GaussianEmission(0.1, num_channels=0)
    with pytest.raises(ValueError, match="noise_scale must lie in its support"):
        GaussianEmission(0.0)
    with pytest.raises(ValueError, match="the prior of correlation_time must keep to its support"):
        AR1Emission(0.1, dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
