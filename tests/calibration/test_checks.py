"""Posterior predictive checks, what was learnt, scores of forecasts, and figures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import NOISE, KnownSpring, exact_draws, grid
from matplotlib.figure import Figure
from scipy import stats

from vinppl.calibration.checks import posterior_checks
from vinppl.calibration.learning import learned_from_data
from vinppl.calibration.predictive import COVERAGES, average_scores, horizon_scores
from vinppl.calibration.prior import simulate_from_prior
from vinppl.calibration_plots import (
    plot_pit_by_horizon,
    plot_ppc,
    plot_ranking,
    plot_reliability,
    plot_sbc,
)
from vinppl.data import Trajectories
from vinppl.export import to_arviz
from vinppl.scores import pit

MODEL = KnownSpring()


def measured(num_times: int = 40, seed: int = 1) -> Trajectories:
    return simulate_from_prior(MODEL, grid(num_times=num_times), seed).data


def with_values(data: Trajectories, values: torch.Tensor) -> Trajectories:
    return dataclasses.replace(data, values=values)


# Posterior predictive checks


def test_data_of_the_model_pass() -> None:
    data = measured()
    found = posterior_checks(MODEL, data, exact_draws(data, 400), num_draws=200)
    quantities = ("residual_sd", "residual_lag1", "largest_residual")
    expected = {f"{name}[{channel}]" for name in quantities for channel in ("q", "v")}
    assert set(found.table.index) == expected | {"period[q]", "energy_drift"}
    # Eight p-values of one data set, each rather less spread than uniform: none beyond 0.2 % by chance.
    assert found.table["p_value"].between(0.002, 0.998).all(), found.table
    row = found.table.loc["residual_sd[q]"]
    assert row["replicated"] == pytest.approx(NOISE, rel=0.02)  # 80 residuals in each of 200 data sets
    assert found.differences["period[q]"].shape == (200,)
    assert isinstance(plot_ppc(found.table, found.differences), Figure)


def test_memory_in_the_noise_is_seen() -> None:
    data = measured()
    noise = torch.randn(data.values.shape, generator=torch.Generator().manual_seed(0))
    for t in range(1, data.num_times):
        noise[:, t] = 0.9 * noise[:, t - 1] + math.sqrt(1 - 0.81) * noise[:, t]
    data = with_values(data, NOISE * noise)  # a mass at rest
    table = posterior_checks(MODEL, data, exact_draws(data, 300), num_draws=100).table
    assert table.loc["residual_lag1[q]", "p_value"] < 0.01
    assert "noise with memory" in table.loc["residual_lag1[q]", "verdict"]


def test_another_frequency_is_seen() -> None:
    data = measured()
    time = data.times[..., None]
    data = with_values(data, torch.cat([2 * (0.9 * time).cos(), -1.8 * (0.9 * time).sin()], dim=-1))
    table = posterior_checks(MODEL, data, exact_draws(data, 200), num_draws=100).table
    assert table.loc["period[q]", "verdict"] == "the motion is slower than the model's"
    # Crossings of a cosine are half a period apart, and samples 0.2.
    assert table.loc["period[q]", "measured"] == pytest.approx(2 * math.pi / 0.9, abs=0.4)
    assert table.loc["residual_sd[q]", "verdict"] == "the noise scale is too small"


def test_damping_and_outliers_are_seen() -> None:
    data = measured()
    time, omega = data.times[..., None], math.sqrt(2)
    path = torch.cat([3 * (omega * time).cos(), -3 * omega * (omega * time).sin()], dim=-1)
    noise = NOISE * torch.randn(path.shape, generator=torch.Generator().manual_seed(1))
    values = (-0.1 * time).exp() * path + noise
    values[0, 5, 0] += 20.0
    data = with_values(data, values)
    table = posterior_checks(MODEL, data, exact_draws(data, 200), num_draws=100).table
    assert "more damping" in table.loc["energy_drift", "verdict"]
    assert table.loc["energy_drift", "measured"] < 0
    assert "outliers" in table.loc["largest_residual[q]", "verdict"]


def test_short_records_have_no_period_and_gaps_no_energy() -> None:
    data = simulate_from_prior(MODEL, grid(num_times=4, gaps=True), 1).data
    table = posterior_checks(MODEL, data, exact_draws(data, 100), num_draws=50).table
    assert table.loc["period[q]", "verdict"] == "undefined for these data"
    assert "energy_drift" not in table.index
    with pytest.raises(ValueError, match="num_draws must be at least 20"):
        posterior_checks(MODEL, data, exact_draws(data, 100), num_draws=5)


# What was learnt


def test_contraction_and_z_scores() -> None:
    generator = np.random.default_rng(0)
    draws = {
        "rate": np.exp(generator.normal(1.0, 0.1, size=(2, 2000))),
        "place": generator.normal(0.0, 1.0, size=(2, 2000, 2)) * [1.0, 0.2] + [0.0, 4.0],
        "weights": generator.normal(size=(2, 2000, 50)),
    }
    before = {
        "rate": np.exp(generator.normal(0.0, 1.0, size=(1, 4000))),
        "place": generator.normal(size=(1, 4000, 2)),
        "weights": generator.normal(size=(1, 4000, 50)),
    }
    result = to_arviz({"posterior": draws, "prior": before}, dims={"place": ("coordinate",)})
    table = learned_from_data(result, truth={"rate": math.exp(1.3), "place": [0.0, 4.0]})
    assert list(table.index) == ["rate", "place[0]", "place[1]"]
    # 4000 draws: 2 % of a standard deviation, hence 4 % of a variance ratio, at three standard errors.
    assert table.loc["rate", "scale"] == "log"
    assert table.loc["rate", "contraction"] == pytest.approx(0.99, abs=0.002)
    assert table.loc["rate", "shift"] == pytest.approx(1.0, abs=0.07)
    assert table.loc["rate", "z_score"] == pytest.approx(-3.0, abs=0.2)
    assert table.loc["rate", "verdict"] == "learnt"
    assert "next to nothing" in table.loc["place[0]", "verdict"]
    assert table.loc["place[1]", "verdict"] == "the data contradict the prior"
    assert "z_score" not in learned_from_data(result)
    with pytest.raises(ValueError, match=r"truth of place must have shape \(2,\)"):
        learned_from_data(result, truth={"place": 1.0})
    with pytest.raises(KeyError, match="prior"):
        learned_from_data(to_arviz({"posterior": draws}))


# Forecasts


def test_scores_by_horizon() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(40, 20, 2))
    draws = generator.normal(size=(300, 40, 20, 2))
    draws[:, :, 10:] *= 0.5  # too narrow from the second half on
    times = 0.1 * np.arange(1, 21)
    near, far = horizon_scores(draws, truth, times, (0.0, 1.0, 2.0))
    assert (near["horizon"], far["horizon"]) == (1.0, 2.0)
    # 800 truths in each part: 1.4 % of a share of 0.8, at three standard errors.
    assert near["coverage_80"] == pytest.approx(0.8, abs=0.045)
    exactly = 2 * stats.norm.cdf(0.5 * stats.norm.ppf(0.9)) - 1
    assert far["coverage_80"] == pytest.approx(exactly, abs=0.055)
    assert near["width"] == pytest.approx(2 * stats.norm.ppf(0.95), rel=0.03)
    assert near["crps"] == pytest.approx(1 / math.sqrt(math.pi), rel=0.06)  # of a standard normal at itself
    assert len(near["pit"]) == 800
    assert stats.kstest(near["pit"], "uniform").pvalue > 1e-3
    assert stats.kstest(far["pit"], "uniform").pvalue < 1e-3
    assert isinstance(plot_pit_by_horizon({row["horizon"]: row["pit"] for row in (near, far)}), Figure)
    with pytest.raises(ValueError, match="edges must be at least two increasing numbers"):
        horizon_scores(draws, truth, times, (1.0,))


def test_scores_are_averaged_over_simulations() -> None:
    scored = (*COVERAGES, "crps", "energy_score", "width")
    columns = {name: [0.5, 0.7, 0.9] for name in scored}
    frame = pd.DataFrame(
        {"model": "m", "engine": "nuts", "seed": [0, 1, 1], "horizon": [1.0, 1.0, 2.0], **columns}
    )
    averaged = average_scores(frame, ["model", "engine"])
    keys = ["model", "engine", "horizon"]
    assert list(averaged.columns) == [*keys, *scored, "seeds", "coverage_90_se"]
    assert averaged["horizon"].tolist() == [1.0, 2.0, "all"]
    assert averaged["seeds"].tolist() == [2, 1, 2]
    # Simulation 1 has (0.7 + 0.9) / 2 over both parts.
    assert averaged["coverage_90"].tolist() == pytest.approx([0.6, 0.9, 0.65])
    assert averaged["crps"].tolist() == pytest.approx([0.6, 0.9, 0.7])  # medians, pooled over all three rows
    assert averaged["coverage_90_se"].tolist() == pytest.approx([0.1, math.nan, 0.15], nan_ok=True)
    assert isinstance(plot_reliability(averaged[averaged["horizon"] != "all"]), Figure)
    with pytest.raises(ValueError, match="the table must hold what is plotted"):
        plot_reliability(averaged.drop(columns="seeds"))


def test_pit_counts_the_draws_below() -> None:
    draws = np.array([[0.0, 3.0], [1.0, 3.2], [2.0, -3.1]])
    found = pit(draws, np.array([1.5, math.nan]))
    assert found[0] == pytest.approx(2.5 / 4)
    assert math.isnan(found[1])
    # On the circle 3.2 is -3.08 and lies above -3.1, and 3.0 lies half a turn below both.
    assert pit(draws, np.array([1.0, -3.05]), periodic=[False, True]).tolist() == pytest.approx(
        [0.5, 3.5 / 4]
    )


# Figures


def test_ranks_and_rankings_are_drawn() -> None:
    generator = np.random.default_rng(0)
    ranks = {name: generator.integers(0, 64, size=100) for name in ("a", "b", "c", "d", "e")}
    ranks["b"] = np.zeros(100, dtype=int)
    figure = plot_sbc(ranks, 63)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "a"
    assert titles[1].startswith("b\n")
    assert len(figure.axes) == 8
    frame = pd.DataFrame(
        {"model": ["a", "b"], "difference": [0.0, -3.0], "difference_se": [0.0, 1.0], "warnings": ["", "no"]}
    )
    assert [t.get_text() for t in plot_ranking(frame).axes[0].get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="ranks must hold at least one"):
        plot_sbc({}, 63)
