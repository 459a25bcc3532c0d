"""Engines under one name: posteriors, longer runs where draws are too few, parameters held fixed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from example_data import simulated
from linear_gaussian import SITES, KnownSpring, exact_draws, grid

from vinppl.calibration.engines import (
    Engine,
    EngineName,
    few_steps,
    fix_parameters,
    point_parameters,
)
from vinppl.calibration.prior import simulate_from_prior
from vinppl.calibration.sbc import calibration_run
from vinppl.calibration.weighted import WeightedDraws
from vinppl.data import Trajectories
from vinppl.draws import predict
from vinppl.fit import MCMCOptions, SVIOptions, fit_svi
from vinppl.loading import build_model
from vinppl.models import FreeDynamics, FreeDynamicsConfig, MassSpring

CHAINS = MCMCOptions(num_chains=2, num_warmup=50, num_draws=20, num_workers=1)


@pytest.mark.parametrize("name", ["full_rank", "mean_field", "amortised"])
def test_guides_are_refined_where_that_is_possible(name: EngineName) -> None:
    data = simulated("mass_spring", num_trajectories=2, num_times=20)
    engine = Engine(name, svi=SVIOptions(num_steps=10, check_every=5), num_draws=300)
    found = engine(MassSpring(data), data, 0)
    assert list(found) == [name, f"{name}_refined"]
    raw, refined = found.values()
    assert math.isnan(raw.shape)
    assert raw.effective_size == pytest.approx(300)
    assert refined.shape < 0.7
    assert refined.effective_size > 100
    assert len(refined.draws["initial_position"]) == 300
    assert not torch.equal(raw.draws["potential.stiffness"], refined.draws["potential.stiffness"])
    assert engine.posterior(MassSpring(data), data, 0).shape == refined.shape


@pytest.mark.filterwarnings("ignore::vinppl.errors.PerformanceWarning")  # weights of several particles
def test_guides_of_many_numbers_are_weighted() -> None:
    data = simulated("mass_spring", num_trajectories=2, num_times=10)
    model = build_model("NoisyStates", data, ["potential=random_features"])
    engine = Engine("full_rank", svi=SVIOptions(num_steps=10, check_every=5), num_draws=200)
    found = engine(model, data, 0)
    assert list(found) == ["full_rank", "full_rank_psis"]
    raw, weighted = found.values()
    assert raw.effective_size == pytest.approx(200)
    assert weighted.effective_size < 200
    assert all(torch.equal(raw.draws[site], weighted.draws[site]) for site in raw.draws)


@pytest.mark.filterwarnings("ignore::vinppl.errors.PerformanceWarning")  # weights of several particles
def test_few_steps_arrive_far_from_the_mode() -> None:
    # The mode of the weights' heavy-tailed prior is zero, many standard deviations from nearly all its draws.
    data = simulated("mass_spring", num_trajectories=1, num_times=15)
    model = build_model("NoisyStates", data, ["potential=random_features", "num_features=16"])
    fix_parameters(model)
    fast = replace(few_steps("full_rank"), guide="full_rank")
    found, slow = (fit_svi(model, data, options) for options in (fast, replace(fast, learning_rate=None)))
    assert found.best_loss < slow.best_loss - 0.5
    assert few_steps("amortised").learning_rate is None  # networks learn at their own rate


def test_chains_run_longer_where_draws_are_too_few() -> None:
    data = simulate_from_prior(KnownSpring(), grid(), 1).data
    assert Engine("nuts", mcmc=CHAINS, min_ess=0.0).posterior(KnownSpring(), data, 0).num_draws == 40
    assert Engine("nuts", mcmc=CHAINS, min_ess=1e6).posterior(KnownSpring(), data, 0).num_draws == 160
    with pytest.raises(ValueError, match="name must be one of"):
        Engine("map")  # type: ignore[arg-type]


def test_parameters_without_a_prior_are_held_fixed() -> None:
    data = simulated("pendulum", num_trajectories=2, num_times=6)
    model = FreeDynamics(data, FreeDynamicsConfig(dynamics="ode", hidden_sizes=(4,)))
    truth = simulate_from_prior(model, data, 0).truth
    before = predict(model, truth, data, sites=["states"])["states"]
    assert point_parameters(model, data)
    fix_parameters(model)
    assert not point_parameters(model, data)
    assert torch.equal(predict(model, truth, data, sites=["states"])["states"], before)
    engine = Engine("full_rank", svi=SVIOptions(num_steps=3, check_every=1), num_draws=100)
    fitted = engine.posterior(model, simulate_from_prior(model, data, 0).data, 0)
    assert torch.equal(predict(model, truth, data, sites=["states"])["states"], before)
    assert set(fitted.draws) == set(truth)


def test_truth_and_fit_have_random_streams_of_their_own() -> None:
    seeds: list[int] = []

    def fit(model: object, data: Trajectories, seed: int) -> dict[str, WeightedDraws]:
        seeds.append(seed)
        return {"exact": exact_draws(data, 40, seed=seed)}

    runs = [calibration_run(KnownSpring(), grid(), fit, seed, num_draws=10) for seed in (3, 3, 4)]
    assert seeds[0] == seeds[1] != seeds[2]
    own = simulate_from_prior(KnownSpring(), grid(), seeds[0]).truth
    assert not torch.equal(runs[0][0].truth[SITES[0]], own[SITES[0]])
    assert torch.equal(runs[0][0].truth[SITES[0]], runs[1][0].truth[SITES[0]])
    assert runs[0][1]["exact"].ranks == runs[1][1]["exact"].ranks
    assert runs[0][1]["exact"].predicted is None
    assert math.isnan(runs[0][1]["exact"].shape)
