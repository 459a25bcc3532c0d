"""Cross-validation against closed forms: of a linear oscillator every left-out density is a normal one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_gaussian import NOISE, SITES, KnownSpring, conditional, exact, exact_draws, grid
from torch import Tensor

from vinppl.calibration.adapters import bulk_ess, loo_pointwise, relative_efficiency
from vinppl.calibration.engines import Engine
from vinppl.calibration.integrated import integrated_log_likelihood
from vinppl.calibration.lfo import leave_future_out
from vinppl.calibration.loo import Elpd, leave_one_out, leave_one_out_of_result, weighted_loo
from vinppl.calibration.prior import simulate_from_prior
from vinppl.calibration.ranking import rank_models
from vinppl.calibration.weighted import (
    WeightedDraws,
    chain_draws,
    corrected_draws,
    stored_draws,
)
from vinppl.data import Trajectories
from vinppl.diagnostics import smoothed_weights
from vinppl.draws import log_joint, predict
from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
from vinppl.posterior import from_mcmc, from_svi

NUM_DRAWS = 4000


@pytest.fixture(name="data")
def _data() -> Trajectories:
    return simulate_from_prior(KnownSpring(), grid(gaps=True), 4).data


def left_out(data: Trajectories, size: int) -> np.ndarray:
    """Return log p(part | the rest) of parts of `size` neighbouring values, in closed form."""
    found = []
    for part in exact(data):
        every = torch.arange(len(part.values))
        for begin in range(0, len(every), size):
            out = every[begin : begin + size]
            rest = torch.tensor([i for i in every.tolist() if i not in out.tolist()])
            found.append(conditional(part.joint, part.values, out, rest))
    return np.array(found)


# Leave-one-out


def test_values_left_out(data: Trajectories) -> None:
    found = leave_one_out(KnownSpring(), data, exact_draws(data, NUM_DRAWS))
    assert len(found.pointwise) == data.num_observed
    assert found.labels[:2] == (("0", 0.0, "q"), ("0", 0.0, "v"))
    # Weights with k below 0.4 have Monte Carlo errors of a few over sqrt(4000).
    assert np.nanmax(found.shapes) < 0.5
    np.testing.assert_allclose(found.pointwise, left_out(data, 1), atol=0.1)
    assert found.total == pytest.approx(left_out(data, 1).sum(), abs=0.2)
    # Two numbers were fitted for each of two trajectories; priors and a short record take some of them.
    assert 1.5 < found.num_effective < 4.5


def test_samples_left_out() -> None:
    data = simulate_from_prior(KnownSpring(), grid(), 4).data
    found = leave_one_out(KnownSpring(), data, exact_draws(data, NUM_DRAWS), unit="sample")
    assert len(found.pointwise) == 16
    np.testing.assert_allclose(found.pointwise, left_out(data, 2), atol=0.15)


def test_trajectories_left_out_have_their_initial_state_integrated_out(data: Trajectories) -> None:
    posterior = exact_draws(data, 1000)
    values, index = integrated_log_likelihood(KnownSpring(), data, posterior, num_draws=50)
    evidence = np.array([float(part.joint.log_prob(part.values)) for part in exact(data)])
    assert values.shape == (50, 2)
    assert len(index) == 50
    # 64 proposals of a Student-t a little wider than the posterior: 10 % each, at four standard errors.
    np.testing.assert_allclose(values, np.broadcast_to(evidence, values.shape), atol=0.5)
    np.testing.assert_allclose(np.log(np.exp(values).mean(0)), evidence, atol=0.1)
    found = leave_one_out(KnownSpring(), data, posterior, unit="trajectory")
    assert found.labels == (("0",), ("1",))
    np.testing.assert_allclose(found.pointwise, evidence, atol=0.1)  # nothing is shared


def test_weights_put_a_wrong_posterior_right(data: Trajectories) -> None:
    wide = exact_draws(data, NUM_DRAWS, scale=1.4, shift=0.4)
    ratio = torch.zeros(NUM_DRAWS)
    states = torch.cat([wide.draws[site] for site in SITES], dim=-1)
    for n, part in enumerate(exact(data)):
        p = part.posterior
        q = torch.distributions.MultivariateNormal(p.mean + 0.4 * p.stddev, scale_tril=1.4 * p.scale_tril)
        ratio += p.log_prob(states[:, n]) - q.log_prob(states[:, n])
    weights, shape = smoothed_weights(ratio.numpy())
    assert shape < 0.7
    posterior = WeightedDraws(wide.draws, torch.as_tensor(weights))
    found = leave_one_out(KnownSpring(), data, posterior)
    np.testing.assert_allclose(found.pointwise, left_out(data, 1), atol=0.15)
    unweighted = leave_one_out(KnownSpring(), data, wide)
    assert abs(unweighted.total - left_out(data, 1).sum()) > 5 * abs(found.total - left_out(data, 1).sum())


def test_equal_weights_are_arvizs_psis_loo() -> None:
    log_likelihood = np.random.default_rng(0).normal(size=(2, 400, 5))
    pointwise, shapes = loo_pointwise(log_likelihood)
    found = weighted_loo(log_likelihood.reshape(800, 5), np.full(800, -math.log(800)))
    # ArviZ's two routes differ in how they break ties of the tail.
    np.testing.assert_allclose(found.pointwise, pointwise, atol=2e-3)
    np.testing.assert_allclose(found.shapes, shapes, atol=0.1)
    with pytest.raises(ValueError, match="log_weights"):
        weighted_loo(log_likelihood.reshape(800, 5), np.zeros(3))


def test_results_are_read_in_either_layout(data: Trajectories) -> None:
    options = MCMCOptions(num_chains=2, num_warmup=50, num_draws=150, num_workers=1)
    for measured in (data, simulate_from_prior(KnownSpring(), grid(), 4).data):
        fitted = fit_mcmc(KnownSpring(), measured, options)
        result = from_mcmc(fitted)
        for unit, size in (("value", 1), ("sample", 2)):
            found = leave_one_out_of_result(result, unit=unit)
            again = leave_one_out(fitted.model, measured, chain_draws(fitted), unit=unit)
            assert found.labels == again.labels
            np.testing.assert_allclose(found.pointwise, again.pointwise, atol=5e-3)
            if bool(measured.mask.all()):
                np.testing.assert_allclose(found.pointwise, left_out(measured, size), atol=0.5)
        stored = stored_draws(result, measured)
        assert stored.num_chains == 2
        assert torch.equal(stored.draws[SITES[0]], chain_draws(fitted).draws[SITES[0]])


# Weights


def test_a_guide_is_corrected_and_judged(data: Trajectories) -> None:
    model = KnownSpring()
    # A few steps from the mode: near the posterior, but not on it.
    result = fit_svi(
        model, data, SVIOptions(guide="full_rank", num_steps=15, learning_rate=0.05, check_every=5)
    )
    corrected = corrected_draws(result, NUM_DRAWS)
    raw = corrected.unweighted()
    assert corrected.shape < 0.7
    assert math.isnan(raw.shape)
    assert raw.effective_size == pytest.approx(NUM_DRAWS)
    assert torch.equal(raw.draws[SITES[0]], result.sample(NUM_DRAWS)[SITES[0]])
    assert 0.2 * NUM_DRAWS < corrected.effective_size < NUM_DRAWS
    states = torch.cat([corrected.draws[site] for site in SITES], dim=-1)
    share = corrected.log_weights.exp()[:, None]
    for n, part in enumerate(exact(data)):
        mean = (share * states[:, n]).sum(0)
        sd = ((share * (states[:, n] - mean) ** 2).sum(0)).sqrt()
        # At least 800 effective draws: 0.035 sd of a mean, at three standard errors.
        assert float(((mean - part.posterior.mean) / part.posterior.stddev).abs().max()) < 0.15
        torch.testing.assert_close(sd, part.posterior.stddev, rtol=0.15, atol=0)
    drawn = corrected.resampled(500, seed=1)
    assert drawn[SITES[0]].shape == (500, 2, 1)
    with pytest.raises(ValueError, match="must be a distribution"):
        corrected_draws(fit_svi(model, data, SVIOptions(guide="map", num_steps=2, check_every=1)), 10)
    with pytest.raises(ValueError, match="draws of a guide need importance weights"):
        leave_one_out_of_result(from_svi(result, num_draws=20, attrs={"inference": "svi"}))


def test_ratios_of_the_exact_posterior_are_the_evidence(data: Trajectories) -> None:
    draws = exact_draws(data, 20)
    states = torch.cat([draws.draws[site] for site in SITES], dim=-1)
    posterior = sum(part.posterior.log_prob(states[:, n]) for n, part in enumerate(exact(data)))
    evidence = sum(float(part.joint.log_prob(part.values)) for part in exact(data))
    joint = log_joint(KnownSpring(), draws.draws, data, chunk_size=7)
    torch.testing.assert_close(joint - posterior, torch.full((20,), evidence))
    mean = predict(KnownSpring(), draws.draws, data, sites=["obs"], observed="means")["obs"]
    assert mean.shape == (20, 2, 8, 2)
    torch.testing.assert_close(mean[:, :, 0], states)


def test_smoothing_leaves_out_what_has_no_density() -> None:
    ratios = np.random.default_rng(0).normal(size=(2, 400))
    ratios[1, :3] = (-np.inf, np.nan, -np.inf)
    weights, shapes = smoothed_weights(ratios)
    np.testing.assert_allclose(np.exp(weights).sum(-1), 1.0)
    assert np.isneginf(weights[1, :3]).all()
    assert (shapes < 0.7).all()
    assert smoothed_weights(ratios[0, :10])[1] == np.inf  # too few for a tail
    with pytest.raises(ValueError, match="some ratios must be finite"):
        smoothed_weights(np.full(30, np.nan))


def test_effective_sizes() -> None:
    generator = np.random.default_rng(0)
    independent = generator.normal(size=(2, 500))
    slow = np.zeros_like(independent)
    for t in range(1, 500):
        slow[:, t] = 0.9 * slow[:, t - 1] + independent[:, t]
    draws = np.stack([independent, slow, np.ones_like(slow)], axis=-1)
    found = bulk_ess(draws)
    assert found[0] == pytest.approx(1000, rel=0.25)
    assert found[1] == pytest.approx(1000 * 0.1 / 1.9, rel=0.6)
    assert np.isnan(found[2])
    assert relative_efficiency(draws[..., :1]) == pytest.approx(1, rel=0.25)
    assert relative_efficiency(draws) == pytest.approx(found[1] / 1000)


# Leave-future-out


def ahead(data: Trajectories, first: int, horizon: int) -> np.ndarray:
    """Return log p(next samples | all before) of both trajectories together, in closed form."""
    found = []
    for i in range(first, data.num_times - horizon + 1):
        total = 0.0
        for n, part in enumerate(exact(data)):
            time = torch.nonzero(data.mask[n])[:, 0]
            given = torch.nonzero(time < i)[:, 0]
            wanted = torch.nonzero((time >= i) & (time < i + horizon))[:, 0]
            total += conditional(part.joint, part.values, wanted, given)
        found.append(total)
    return np.array(found)


def closed_fit(model: object, data: Trajectories, seed: int) -> WeightedDraws:
    return exact_draws(data, NUM_DRAWS, seed=seed)


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_future_left_out(horizon: int) -> None:
    data = simulate_from_prior(KnownSpring(), grid(num_times=14, gaps=True), 5).data
    told: list[int] = []
    found = leave_future_out(KnownSpring(), data, closed_fit, first=4, horizon=horizon, on_refit=told.append)
    expected = ahead(data, 4, horizon)
    assert told == list(found.refits)
    assert found.refits[0] == 4
    assert len(found.refits) < len(expected)  # some steps were reached by weights
    assert found.labels == tuple((i,) for i in range(4, 15 - horizon))
    assert found.total == pytest.approx(expected.sum(), abs=4 * found.error)
    assert 0 < found.error < 0.3
    np.testing.assert_allclose(found.pointwise, expected, atol=0.15)
    exactly = leave_future_out(KnownSpring(), data, closed_fit, first=4, horizon=horizon, threshold=-math.inf)
    assert len(exactly.refits) == len(expected)
    np.testing.assert_allclose(exactly.pointwise, expected, atol=0.1)


def test_weights_that_fail_are_seen() -> None:
    # Draws of the first two samples alone, told to be good for all: far too wide in the end.
    data = simulate_from_prior(KnownSpring(), grid(num_times=14), 5).data
    found = leave_future_out(KnownSpring(), data, closed_fit, first=2, threshold=math.inf)
    assert found.refits == (2,)
    assert np.nanmax(found.shapes[1:]) > 0.5


def test_what_cannot_be_predicted_is_refused() -> None:
    data = grid(num_times=6)
    for options, message in (
        ({"first": 1}, "first must be at least 2"),
        ({"first": 5, "horizon": 2}, "first must be at most 4"),
        ({"first": 3, "horizon": 0}, "horizon must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            leave_future_out(KnownSpring(), data, closed_fit, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MassSpring", "Pendulum", "Duffing"])
def test_weights_agree_with_fitting_again(name: str) -> None:
    from example_data import simulated

    import vinppl.models

    data = simulated(
        {"MassSpring": "mass_spring", "Pendulum": "pendulum", "Duffing": "duffing"}[name],
        num_trajectories=2,
        num_times=18,
        noise_scale=0.15,
    )
    model = getattr(vinppl.models, name)(data)
    engine = Engine("nuts", mcmc=MCMCOptions(num_chains=2, num_warmup=300, num_draws=1500, num_workers=1))
    approximate = leave_future_out(model, data, engine.posterior, first=12, horizon=2)
    fitted = leave_future_out(model, data, engine.posterior, first=12, horizon=2, threshold=-math.inf, seed=1)
    assert len(approximate.refits) < len(fitted.refits) == 5
    error = math.hypot(approximate.error, fitted.error)
    assert abs(approximate.total - fitted.total) < 4 * error
    assert error < 0.5


# Ranking


def elpd(values: Tensor | np.ndarray, shapes: float = 0.1, unit: str = "value") -> Elpd:
    pointwise = np.asarray(values, dtype=np.float64)
    labels = tuple((i,) for i in range(len(pointwise)))
    return Elpd(pointwise, np.full(len(pointwise), shapes), labels, unit, pointwise + 0.02)


def test_models_are_ranked_by_paired_differences() -> None:
    generator = np.random.default_rng(0)
    common, rest = generator.normal(size=400), generator.normal(size=(2, 400))
    found = {
        "worse": elpd(common - 0.2 + 0.05 * rest[0]),
        "best": elpd(common),
        "close": elpd(common - 0.001 + 0.05 * rest[1], shapes=0.9),
    }
    table = rank_models(found, {"worse": "a note"}).set_index("model")
    assert list(table.index) == ["best", "close", "worse"]
    gaps = found["worse"].pointwise - common
    assert table.loc["worse", "difference"] == pytest.approx(gaps.sum())
    assert table.loc["worse", "difference_se"] == pytest.approx(20 * gaps.std(ddof=1))
    assert table.loc["worse", "difference_se"] < 0.2 * table.loc["worse", "se"]
    assert table.loc["best", "parameters"] == pytest.approx(8.0)
    assert table.loc["worse", "warnings"] == "a note"
    assert "too close to the best to tell" in table.loc["close", "warnings"]
    assert "400 of 400 parts are too influential" in table.loc["close", "warnings"]
    assert table.loc["best", "warnings"] == ""
    assert "rough" in rank_models({"few": elpd(common[:20])})["warnings"][0]
    with pytest.raises(ValueError, match="must be scored on the same parts"):
        rank_models({"a": elpd(common), "b": elpd(common[:-1])})


def test_noise_of_the_toy_is_what_it_says() -> None:
    data = simulate_from_prior(KnownSpring(), grid(num_times=40), 1).data
    posterior = exact_draws(data, 100)
    mean = predict(KnownSpring(), posterior.draws, data, sites=["obs"], observed="means")["obs"].mean(0)
    residual = data.values - mean
    assert float(residual.std()) == pytest.approx(NOISE, rel=0.25)
