"""Simulation-based calibration: it passes exact posteriors, and fails those that are wrong in known ways."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import NOISE, PRIOR_MEAN, PRIOR_SCALE, SITES, KnownSpring, exact_draws, grid
from pyro.distributions import LogNormal, Normal

from vinppl.calibration.envelopes import rank_counts, rank_envelope
from vinppl.calibration.prior import cut_off, simulate_from_prior
from vinppl.calibration.ranks import judge_ranks, rank_statistic, rank_verdict, thinned
from vinppl.calibration.sbc import RankedFit, calibration_run
from vinppl.calibration.weighted import WeightedDraws
from vinppl.data import Trajectories
from vinppl.export import ARVIZ_MAJOR

NUM_DRAWS = 31
NUM_SIMULATIONS = 40


# Envelopes


@pytest.mark.parametrize(
    ("num_simulations", "num_draws", "level"), [(60, 31, 0.99), (200, 63, 0.99), (50, 9, 0.9)]
)
def test_uniform_ranks_leave_the_envelope_as_often_as_said(
    num_simulations: int, num_draws: int, level: float
) -> None:
    generator = np.random.default_rng(1)
    lower, upper = rank_envelope(num_simulations, num_draws, level)
    trials = 8000
    ranks = generator.integers(0, num_draws + 1, size=(trials, num_simulations))
    counts = (ranks[:, :, None] <= np.arange(num_draws)).sum(1)
    inside = ((counts >= lower) & (counts <= upper)).all(1).mean()
    # Counts are whole, so that the level is met or exceeded. Monte Carlo error at four standard errors.
    error = 4 * math.sqrt(level * (1 - level) / trials)
    assert level - error < inside < level + 0.5 * (1 - level) + error


@pytest.mark.skipif(ARVIZ_MAJOR >= 1, reason="ArviZ 1 has no envelope for given points")
def test_envelopes_agree_with_arviz() -> None:
    from arviz.stats.ecdf_utils import ecdf_confidence_band

    share = np.arange(1, 64) / 64
    low, high = ecdf_confidence_band(200, share, share, prob=0.99)
    lower, upper = rank_envelope(200, 63, 0.99)
    # Its search over tail probabilities stops within a count of the exact level.
    assert np.abs(np.round(200 * low) - lower).max() <= 1
    assert np.abs(np.round(200 * high) - upper).max() <= 1


def test_counts_of_ranks() -> None:
    assert rank_counts(np.array([0, 0, 2, 3]), 3).tolist() == [2, 2, 3]
    with pytest.raises(ValueError, match="ranks must be integers from 0 to 3"):
        rank_counts(np.array([0, 4]), 3)
    with pytest.raises(ValueError, match="level must lie between"):
        rank_envelope(10, 9, 1.0)


# Verdicts


def test_verdicts_name_what_is_wrong() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=300)

    def ranks(scale: float, shift: float) -> np.ndarray:
        # Truth and draws of a calibrated posterior have one distribution; this one is wider or moved.
        return (shift + scale * generator.normal(size=(NUM_DRAWS, 300)) < truth).sum(0)

    assert rank_verdict(ranks(1.0, 0.0), NUM_DRAWS) == "calibrated"
    assert rank_verdict(ranks(0.5, 0.0), NUM_DRAWS) == "too narrow"
    assert rank_verdict(ranks(2.0, 0.0), NUM_DRAWS) == "too wide"
    assert rank_verdict(ranks(1.0, 1.0), NUM_DRAWS) == "too high"
    assert rank_verdict(ranks(1.0, -1.0), NUM_DRAWS) == "too low"
    assert rank_verdict(ranks(0.5, 0.5), NUM_DRAWS).split(" and ") in (
        ["too narrow", "too high"],
        ["too high", "too narrow"],
    )
    assert rank_verdict(np.full(300, NUM_DRAWS // 2), NUM_DRAWS) == "too wide"


def test_the_statistic_is_the_share_of_the_envelope() -> None:
    ranks = np.repeat(np.arange(NUM_DRAWS + 1), 10)
    assert rank_statistic(ranks, NUM_DRAWS) == pytest.approx(0.0, abs=1e-9)
    _, upper = rank_envelope(320, NUM_DRAWS, 0.99)
    expected = 320 * np.arange(1, NUM_DRAWS + 1) / (NUM_DRAWS + 1)
    moved = ranks.copy()
    moved[ranks == 20] = 4  # ten ranks more below 5 to 20
    largest = max(10 / (upper - expected)[j - 1] for j in range(5, 21))
    assert rank_statistic(moved, NUM_DRAWS) == pytest.approx(largest)
    table = judge_ranks({"a": ranks, "b": np.zeros(320, dtype=int)}, NUM_DRAWS)
    assert table["passed"].tolist() == table["passed_jointly"].tolist() == [True, False]
    columns = ["parameter", "simulations", "failed", "statistic", "passed", "passed_jointly", "verdict"]
    assert list(table.columns) == columns


def test_failed_fits_count_as_the_ranks_that_fit_least() -> None:
    ranks = np.repeat(np.arange(NUM_DRAWS + 1), 6)[:-4]  # the four highest are missing
    found = {count: judge_ranks({"a": ranks}, NUM_DRAWS, num_failed=count).loc[0] for count in (0, 4, 40)}
    assert found[4]["simulations"] == 6 * (NUM_DRAWS + 1)
    lowest = rank_statistic(np.append(ranks, [0] * 4), NUM_DRAWS)
    assert found[4]["statistic"] == lowest > rank_statistic(np.append(ranks, [NUM_DRAWS] * 4), NUM_DRAWS)
    assert [found[count]["passed"] for count in (0, 4, 40)] == [True, True, False]
    assert found[40]["verdict"] == "too many fits failed"


def test_a_joint_envelope_is_wider() -> None:
    generator = np.random.default_rng(3)
    tables = [
        judge_ranks({f"{k}": generator.integers(0, 16, size=40) for k in range(20)}, 15, level=0.8)
        for _ in range(60)
    ]
    alone = sum(table["passed"].sum() for table in tables) / 1200
    together = sum(table["passed_jointly"].all() for table in tables) / 60
    # Shares of 0.8 or a little more: whole counts, four standard errors, and Bonferroni's own slack.
    assert 0.8 - 4 * math.sqrt(0.16 / 1200) < alone < 0.9
    assert together > 0.8 - 4 * math.sqrt(0.16 / 60)


def test_draws_are_thinned_evenly() -> None:
    assert thinned(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert thinned(4, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="num_kept must be between 1 and 4"):
        thinned(4, 5)


# From a prior to verdicts


def three_fits(model: object, data: Trajectories, seed: int) -> dict[str, WeightedDraws]:
    return {
        "exact": exact_draws(data, 200, seed=seed),
        "narrow": exact_draws(data, 200, seed=seed, scale=0.5),
        "biased": exact_draws(data, 200, seed=seed, shift=1.0),
    }


@pytest.fixture(scope="module", name="runs")
def _runs() -> list[dict[str, RankedFit]]:
    torch.set_default_dtype(torch.float64)
    model, like = KnownSpring(), grid(num_trajectories=1, num_times=8)
    runs = [
        calibration_run(model, like, three_fits, seed, num_draws=NUM_DRAWS, num_fitted=5, num_predicted=60)[1]
        for seed in range(NUM_SIMULATIONS)
    ]
    torch.set_default_dtype(torch.float32)
    return runs


def ranks_of(runs: list[dict[str, RankedFit]], name: str) -> dict[str, np.ndarray]:
    return {key: np.array([run[name].ranks[key] for run in runs]) for key in runs[0][name].ranks}


def test_exact_posteriors_pass(runs: list[dict[str, RankedFit]]) -> None:
    table = judge_ranks(ranks_of(runs, "exact"), NUM_DRAWS)
    assert set(table["parameter"]) == {*SITES, "last_state[0]", "last_state[1]", "log_likelihood"}
    assert table["passed"].all(), table
    z = np.array([list(run["exact"].z_scores.values())[:2] for run in runs])
    assert np.abs(z.mean(0)).max() < 4 / math.sqrt(NUM_SIMULATIONS)


def test_a_narrow_posterior_fails(runs: list[dict[str, RankedFit]]) -> None:
    table = judge_ranks(ranks_of(runs, "narrow"), NUM_DRAWS).set_index("parameter")
    for name in SITES:
        assert not table.loc[name, "passed"]
        assert table.loc[name, "verdict"] == "too narrow"
    # Draws that huddle around the mode all explain the data better than the truth does.
    assert table.loc["log_likelihood", "verdict"] == "too high"


def test_a_biased_posterior_fails(runs: list[dict[str, RankedFit]]) -> None:
    table = judge_ranks(ranks_of(runs, "biased"), NUM_DRAWS).set_index("parameter")
    assert (table.loc[list(SITES), "verdict"] == "too high").all()


def test_predictions_are_of_what_was_not_fitted(runs: list[dict[str, RankedFit]]) -> None:
    predicted = runs[0]["exact"].predicted
    assert predicted is not None
    assert predicted.shape == (60, 1, 3, 2)


# Simulation


def test_truth_and_data_belong_together() -> None:
    model, like = KnownSpring(), grid(num_trajectories=3, num_times=40, gaps=True)
    found = [simulate_from_prior(model, like, seed) for seed in range(25)]
    q = torch.cat([x.truth["initial_position"].flatten() for x in found])
    v = torch.cat([x.truth["initial_velocity"].flatten() for x in found])
    for sample, mean, scale in zip((q, v), PRIOR_MEAN, PRIOR_SCALE, strict=True):
        assert float(sample.mean()) == pytest.approx(float(mean), abs=4 * float(scale) / math.sqrt(75))
        assert float(sample.std()) == pytest.approx(float(scale), rel=4 / math.sqrt(150))
    first = torch.cat([x.data.values[:, 0, 0] for x in found])
    assert float((first - q).std()) == pytest.approx(NOISE, rel=4 / math.sqrt(150))
    assert all(torch.equal(x.data.mask, like.mask) and x.num_rejected == 0 for x in found)
    assert not bool((found[0].data.values != 0)[~like.mask].any())
    again = simulate_from_prior(model, like, 3)
    assert torch.equal(again.data.values, found[3].data.values)


def runaway(data: Trajectories) -> None:
    """A path that is not finite for half of the prior, and grows to any size for the rest."""
    plate = pyro.plate("trajectory", data.num_trajectories, dim=-1)
    rate = pyro.sample("rate", Normal(0.0, 3.0))
    with plate:
        q0 = pyro.sample("initial_position", Normal(torch.zeros(1), 1.0).to_event(1))
        path = q0.unsqueeze(-2) * (rate[..., None, None] * data.times.unsqueeze(-1) * 40).exp()
        pyro.sample("obs", Normal(path.expand((*path.shape[:-1], 2)), 0.1).to_event(2), obs=data.values)


def test_what_runs_away_is_drawn_again_by_the_data_alone() -> None:
    like = grid(num_trajectories=1, num_times=6)
    found = [simulate_from_prior(runaway, like, seed, max_size=5.0) for seed in range(12)]
    assert sum(x.num_rejected for x in found) > 3
    assert all(float(x.data.values.abs().max()) <= 5.0 for x in found)
    short = [simulate_from_prior(runaway, like, seed, num_checked=1, max_size=5.0) for seed in range(12)]
    values = torch.stack([x.data.values for x in short])
    assert bool(torch.isfinite(values).all())
    assert float(values[:, :, 0].abs().max()) <= 5.0
    assert float(values.abs().max()) == pytest.approx(1e6, rel=2e-6)  # later values are cut off, not refused
    with pytest.raises(ValueError, match="none of 32 draws from the prior gave measurements"):
        simulate_from_prior(runaway, like, 0, max_size=1e-9, max_attempts=32)


def test_what_ran_away_is_cut_off_without_ties() -> None:
    """Coverage counts a truth at the bound as in the middle of draws there, unless these are set apart."""
    bound = torch.tensor([2.0, 1e6])
    torch.manual_seed(0)
    values = torch.tensor([[1.5, -3.0], [math.nan, 2e6], [-math.inf, -math.inf], [5.0, 7.0]])
    cut = cut_off(values.expand(200, 4, 2), bound)
    assert torch.equal(cut[:, 0, 0], torch.full((200,), 1.5))
    assert torch.equal(cut[:, [0, 3], 1], torch.tensor([[-3.0, 7.0]]).expand(200, 2))
    torch.testing.assert_close(cut[:, 1], bound.expand(200, 2), rtol=2e-6, atol=0)
    torch.testing.assert_close(cut[:, 2], -bound.expand(200, 2), rtol=2e-6, atol=0)
    ranks = (cut[1:, 1, 0] < cut[0, 1, 0]).double().mean()
    assert 0 < float(ranks) < 1
    assert len(cut[:, 1, 0].unique()) > 190


def test_models_that_are_no_simulators_are_refused() -> None:
    like = grid(num_trajectories=1)

    def with_factor(data: Trajectories) -> None:
        KnownSpring()(data)
        pyro.factor("penalty", torch.tensor(-1.0))

    def without_obs(data: Trajectories) -> None:
        pyro.sample("scale", LogNormal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"got pyro\.factor at penalty"):
        simulate_from_prior(with_factor, like, 0)
    with pytest.raises(ValueError, match="must observe the measurements at a site 'obs'"):
        simulate_from_prior(without_obs, like, 0)
