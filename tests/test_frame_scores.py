"""Scores of films against the definitions written out, scipy's distributions, and what they must prefer."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from example_data import FILM_DIMS, film_forecast
from scipy import stats

from vinppl.export import to_arviz
from vinppl.frame_scores import brier, film_arrays, film_scores, frame_rmse
from vinppl.scores import forecast_scores

RNG = np.random.default_rng(0)
LEVELS = RNG.uniform(0.05, 0.95, size=(2, 5, 12))
TRUTH = (RNG.uniform(size=(2, 5, 12)) < 0.3).astype(float)


def test_rmse_is_a_mean_of_norms_of_frames() -> None:
    by_hand = np.mean([np.linalg.norm(TRUTH[n, t] - LEVELS[n, t]) for n in range(2) for t in range(5)])
    assert frame_rmse(LEVELS, TRUTH) == pytest.approx(by_hand)
    # Black frames against 12 white pixels, and one right frame of ten.
    white, black = np.ones_like(TRUTH), np.zeros_like(TRUTH)
    white[0, 0] = 0
    assert frame_rmse(black, white) == pytest.approx(0.9 * math.sqrt(12))


def test_brier_score() -> None:
    assert brier(LEVELS, TRUTH) == pytest.approx(((LEVELS - TRUTH) ** 2).mean())
    # It is proper: of constant probabilities the frequency has the least score, f (1 - f).
    f = TRUTH.mean()
    scores = {c: brier(np.full_like(LEVELS, c), TRUTH) for c in (f, f - 0.1, f + 0.1)}
    assert scores[f] == pytest.approx(f * (1 - f)) == min(scores.values())


def test_what_was_not_filmed_counts_for_nothing() -> None:
    holes = TRUTH.copy()
    holes[0, 1], holes[1, 2, :4] = np.nan, np.nan
    kept = [(n, t) for n in range(2) for t in range(5) if (n, t) != (0, 1)]
    norms = [np.sqrt(np.nansum((holes[f] - LEVELS[f]) ** 2)) for f in kept]
    assert frame_rmse(LEVELS, holes) == pytest.approx(np.mean(norms))
    assert brier(LEVELS, holes) == pytest.approx(np.nanmean((holes - LEVELS) ** 2))
    nothing = np.full_like(TRUTH, np.nan)
    assert all(math.isnan(f(LEVELS, nothing)) for f in (frame_rmse, brier))


def test_bad_arrays_are_named() -> None:
    with pytest.raises(ValueError, match=r"levels must have the shape \(2, 5, 12\) of truth"):
        frame_rmse(LEVELS[0], TRUTH)
    with pytest.raises(ValueError, match="between 0 and 1"):
        brier(5 * LEVELS, TRUTH)


def test_a_forecast_is_scored_by_horizon() -> None:
    forecast = film_forecast()
    film = film_arrays(forecast)
    assert (film.image_shape, film.clips, film.time_unit) == ((8, 8), ("first", "second"), "s")
    assert film.lengths.tolist() == [40, 35]
    table = film_scores(forecast, edges=[0.05, 0.55, 1.05, 1.55, 2.05])  # frames are 0.1 apart
    assert table["channel"].tolist() == ["frame"] * 4 + ["all"]
    assert table["num_frames"].tolist() == [10, 10, 10, 10, 40]
    assert film_scores(forecast, num_bins=2)["end_s"].tolist() == pytest.approx([1.0, 2.0, 2.0])
    later = slice(10, 30)
    whole = table.iloc[-1]
    mean, truth = film.levels.mean(0)[:, later], film.truth[:, later]
    assert whole["rmse"] == pytest.approx(frame_rmse(mean, truth), rel=1e-5)
    assert whole["brier"] == pytest.approx(brier(mean, truth), rel=1e-5)
    assert whole["rmse_at_mean"] == pytest.approx(frame_rmse(film.levels_at_mean[:, later], truth), rel=1e-5)
    for column, levels in (
        ("log_likelihood", film.levels),
        ("log_likelihood_at_mean", film.levels_at_mean[None]),
    ):
        # The density of a frame is the mean over draws of the product over its pixels.
        pixels = stats.bernoulli.logpmf(truth, levels[:, :, later].astype(float))
        assert whole[column] == pytest.approx(np.log(np.exp(pixels.sum(-1)).mean(0)).mean(), rel=1e-4)
    pd.testing.assert_frame_equal(film_scores(film, edges=[0.05, 0.55, 1.05, 1.55, 2.05]), table)
    assert table["rmse"][0] < table["rmse"][3], "phases drift apart"
    assert film_scores(forecast, edges=[0.0, 1.0])["end_s"].tolist() == [1.0, 1.0]
    assert np.isnan(film_scores(film_forecast(filmed=10))["rmse"]).all()
    assert len(forecast_scores(forecast)) == 5 * 64 + 1, "pixels are channels too"


def test_other_forecasts_are_refused() -> None:
    measured = np.zeros((1, 3, 2))
    groups = {
        "predictions": {"obs": np.zeros((1, 4, 1, 3, 2))},
        "predictions_constant_data": {"measured": measured},
    }
    dims = {name: FILM_DIMS[name] for name in ("obs", "measured")}
    with pytest.raises(ValueError, match="must be one of films"):
        film_scores(to_arviz(groups, dims=dims))
    with pytest.raises(KeyError, match="mean frames"):
        film_scores(to_arviz(groups, dims=dims, attrs={"image_shape": "[1, 2]"}))
