"""Inference against the truth: a linear oscillator with known noise has a Gaussian posterior in closed form.

y = G x + noise for the initial state x = (q0, v0), where the columns of G are rollouts from unit states. So
the posterior has precision G'G / s^2 + P and the evidence is a Gaussian density of y.

Measured (largest error of means in sds, of sds, of correlations): NUTS 0.045, 3.9 %, 0.020; full-rank SVI
from a mode 0.026, 1.6 %, 0.029 and from the prior 0.045, 1.5 %, 0.031; ELBO minus log evidence -0.008 and
-0.001 nats.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.emissions import GaussianSeries
from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
from vinppl.potentials import Harmonic
from vinppl.simulate import simulate
from vinppl.state import PhaseState
from vinppl.systems import system

NOISE = 0.3
PRIOR_MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
PRIOR_SCALE = torch.tensor([1.0, 1.5], dtype=torch.float64)
SITES = ("initial_position", "initial_velocity")


class KnownSpring(PyroModule):
    """An oscillator of which only the initial states are unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(2.0))

    def forward(self, data: Trajectories) -> None:
        trajectories = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with trajectories:
            start = [
                pyro.sample(site, Normal(PRIOR_MEAN[i : i + 1], PRIOR_SCALE[i : i + 1]).to_event(1))
                for i, site in enumerate(SITES)
            ]
        path = self.vin(PhaseState(*start), data.grid())
        with trajectories:
            noise = GaussianSeries(data.observe(path), torch.tensor(NOISE), mask=data.mask)
            pyro.sample("obs", noise, obs=data.values)


class Exact(NamedTuple):
    """Posterior of (q0, v0) of every trajectory, and the log evidence of all."""

    mean: Tensor  # (trajectory, 2)
    covariance: Tensor  # (trajectory, 2, 2)
    log_evidence: float


@pytest.fixture(name="data", scope="module")
def _data() -> Trajectories:
    data, _ = simulate(
        system("mass_spring", stiffness=2.0),
        num_trajectories=3,
        num_times=9,
        step_size=0.2,
        noise_scale=NOISE,
        observe=("position",),
        seed=3,
    )
    mask = data.mask.clone()
    mask[1, :6] = False  # a late start tilts the posterior of this trajectory
    return dataclasses.replace(data, mask=mask, values=torch.where(mask, data.values, 0.0))


@pytest.fixture(name="exact", scope="module")
def _exact(data: Trajectories) -> Exact:
    unit = torch.eye(2, dtype=torch.float64)
    paths = VIN(Harmonic(2.0)).double()(PhaseState(unit[:, :1], unit[:, 1:]), data.grid())
    design = paths.q[..., 0].mT  # (time, 2)
    means, covariances, evidence = [], [], 0.0
    for y, seen in zip(data.values[..., 0], data.mask[..., 0], strict=True):
        g, r = design[seen], y[seen] - design[seen] @ PRIOR_MEAN
        covariance = torch.linalg.inv(g.mT @ g / NOISE**2 + PRIOR_SCALE.pow(-2).diag())
        means.append(PRIOR_MEAN + covariance @ g.mT @ r / NOISE**2)
        covariances.append(covariance)
        spread = g @ PRIOR_SCALE.square().diag() @ g.mT + NOISE**2 * torch.eye(len(r), dtype=torch.float64)
        evidence += float(MultivariateNormal(torch.zeros_like(r), spread).log_prob(r))
    return Exact(torch.stack(means), torch.stack(covariances), evidence)


def compare(draws: dict[str, Tensor], exact: Exact) -> tuple[float, float, float]:
    """Return the largest errors of means (in sds), of sds (relative) and of correlations."""
    x = torch.cat([draws[site] for site in SITES], dim=-1)  # (draw, trajectory, 2)
    sd = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = exact.covariance[:, 0, 1] / sd.prod(-1)
    centred = (x - x.mean(0)) / x.std(0)
    found = centred.prod(-1).mean(0)
    return (
        float(((x.mean(0) - exact.mean) / sd).abs().max()),
        float((x.std(0) / sd - 1).abs().max()),
        float((found - correlation).abs().max()),
    )


def test_the_posterior_is_tilted_enough_to_be_a_test(exact: Exact) -> None:
    sd = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float((exact.covariance[:, 0, 1] / sd.prod(-1)).abs().max()) > 0.5


def test_nuts_draws_from_the_exact_posterior(data: Trajectories, exact: Exact) -> None:
    options = MCMCOptions(num_chains=2, num_warmup=100, num_draws=600, seed=1)
    result = fit_mcmc(KnownSpring(), data, options)
    mean, sd, correlation = compare(result.flat(), exact)
    # 1200 draws, nearly independent in whitened coordinates: standard errors are 0.029 sd of a mean, 2 % of
    # an sd and at most 0.029 of a correlation; the tolerances are over three of them.
    assert mean < 0.1
    assert sd < 0.1
    assert correlation < 0.1
    assert not bool(result.stats["diverging"].any())


@pytest.mark.parametrize("start", ["mode", "prior"])
def test_full_rank_svi_finds_the_exact_posterior(data: Trajectories, exact: Exact, start: str) -> None:
    steps, rate = (300, 0.02) if start == "mode" else (1000, 0.05)
    options = SVIOptions(
        guide="full_rank", num_steps=steps, learning_rate=rate, start=start, num_particles=8, patience=0
    )
    model = KnownSpring()
    result = fit_svi(model, data, options)
    mean, sd, correlation = compare(result.sample(20_000, seed=5), exact)
    assert mean < 0.1
    assert sd < 0.1
    assert correlation < 0.1
    # At the optimum log p(y, x) - log q(x) is the log evidence for every x, so the estimate has no variance;
    # nearby, the gap is KL(q | posterior), about half the squared errors of 6 means and 21 covariances.
    elbo = -Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1).loss(
        model, result.guide, data
    )
    assert elbo <= exact.log_evidence + 0.01
    assert elbo == pytest.approx(exact.log_evidence, abs=0.05)


def test_mean_field_misses_exactly_what_it_must(data: Trajectories, exact: Exact) -> None:
    # The best independent normal has the exact mean and the sds of the conditionals, 1 / sqrt(precision_ii).
    options = SVIOptions(guide="mean_field", num_steps=600, num_particles=16, patience=0)
    model = KnownSpring()
    result = fit_svi(model, data, options)
    x = torch.cat([result.sample(20_000)[site] for site in SITES], dim=-1)
    precision = torch.linalg.inv(exact.covariance)
    conditional = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    assert float(((x.mean(0) - exact.mean) / conditional).abs().max()) < 0.1
    assert float((x.std(0) / conditional - 1).abs().max()) < 0.1
    gap = 0.5 * float((precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet()).sum())
    elbo = -Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1).loss(
        model, result.guide, data
    )
    # The standard error is the sd of log p - log q, about sqrt(2 gap), over sqrt(4000).
    assert elbo == pytest.approx(exact.log_evidence - gap, abs=0.03 + 4 * math.sqrt(2 * gap / 4000))
