"""Scores of forecasts; runs under both majors of ArviZ, without torch.

Monte Carlo tolerances are four standard errors of the estimate unless a comment says otherwise.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import scoringrules

from vinppl import scores
from vinppl.export import read_result, to_arviz, write_result
from vinppl.scores import (
    coverage,
    crps,
    energy_score,
    forecast_arrays,
    forecast_scores,
    interval_width,
    point_forecast,
    relative_energy_error,
    rmse,
    valid_prediction_time,
    valid_prediction_times,
)

NORMAL_QUANTILE = {0.5: 0.674490, 0.8: 1.281552, 0.9: 1.644854, 0.95: 1.959964}  # of (1 + level) / 2


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Scores on arrays


def test_rmse_skips_what_was_not_measured() -> None:
    assert rmse([1.0, 2.0, 9.0], [0.0, 4.0, np.nan]) == pytest.approx(math.sqrt(2.5))
    assert math.isnan(rmse([1.0], [np.nan]))
    assert math.isnan(rmse([np.nan, 1.0], [1.0, 1.0]))


def test_rmse_of_angles_goes_the_shorter_way_round() -> None:
    guess, truth = np.array([[3.1, 5.0]]), np.array([[-3.1, 4.0]])
    short = 2 * np.pi - 6.2
    assert rmse(guess, truth, periodic=[True, False]) == pytest.approx(math.sqrt((short**2 + 1) / 2))
    assert rmse(guess + 2 * np.pi, truth, periodic=True) == pytest.approx(rmse(guess, truth, periodic=True))


def test_point_forecast_averages_angles_across_the_cut() -> None:
    draws = np.array([[3.0, 1.0], [-3.0 + 0.2, 2.0]])
    middle = point_forecast(draws, periodic=[True, False])
    assert rmse(middle, np.array([np.pi + 0.1, 1.5]), periodic=[True, False]) < 1e-12
    np.testing.assert_allclose(point_forecast(draws), draws.mean(0))
    turned = point_forecast(draws + 2 * np.pi * np.array([[1, 0], [-2, 0]]), periodic=[True, False])
    assert rmse(turned, middle, periodic=[True, False]) < 1e-12


@pytest.mark.parametrize("periodic", [None, True])
def test_coverage_of_calibrated_draws_is_the_level(periodic: bool | None) -> None:
    rng, points = generator(7), 4000
    centre = rng.uniform(-3, 3, size=points)
    truth, draws = centre + 0.3 * rng.normal(size=points), centre + 0.3 * rng.normal(size=(99, points))
    truth[::7] = np.nan
    if periodic:
        truth, draws = truth + 2 * np.pi * rng.integers(-2, 3, points), (draws + np.pi) % (2 * np.pi) - np.pi
    for level, share in coverage(draws, truth, periodic=periodic).items():
        error = math.sqrt(level * (1 - level) / np.isfinite(truth).sum())
        assert share == pytest.approx(level, abs=4 * error)


def test_interval_width_of_the_normal() -> None:
    draws = generator(8).normal(size=(2000, 200))
    for level, width in interval_width(draws).items():
        # The bias of a sample quantile is below 1 / (num_draws * density) and the spread averages out.
        assert width == pytest.approx(2 * NORMAL_QUANTILE[level], abs=0.01)
    turned = (0.1 * draws + np.pi + np.pi) % (2 * np.pi) - np.pi
    assert interval_width(turned, [0.9], periodic=True)[0.9] == pytest.approx(0.2 * 1.644854, abs=0.001)


def test_draws_that_are_not_finite_cover_nothing() -> None:
    draws = np.zeros((20, 2))
    draws[3, 1] = np.nan
    assert coverage(draws, [0.0, 0.0], [0.9]) == {0.9: 0.5}


def normal_crps(z: np.ndarray) -> np.ndarray:
    """CRPS of a standard normal forecast: z (2 Φ(z) − 1) + 2 φ(z) − 1/√π."""
    erf = np.array([math.erf(value / math.sqrt(2)) for value in z])
    return z * erf + 2 * np.exp(-(z**2) / 2) / math.sqrt(2 * np.pi) - 1 / math.sqrt(np.pi)


def test_crps_of_the_normal() -> None:
    rng = generator(10)
    truth = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    draws = rng.normal(size=(200, 400, 5))
    target = np.broadcast_to(truth, (400, 5)).copy()
    # The estimate of one point has a standard deviation below 1 / sqrt(200); it is averaged over 2000.
    tolerance = 4 / math.sqrt(200 * 2000)
    assert crps(draws, target) == pytest.approx(normal_crps(truth).mean(), abs=tolerance)
    assert crps(draws + 1e6, target + 1e6) == pytest.approx(crps(draws, target), abs=1e-8)
    target[:, 1:] = np.nan
    assert crps(draws, target) == pytest.approx(normal_crps(truth[:1])[0], abs=tolerance * math.sqrt(5))


def test_crps_is_unbiased_in_the_number_of_draws() -> None:
    draws = generator(11).normal(size=(3, 200_000))
    # The standard deviation of one three-draw estimate is near 0.5.
    assert crps(draws, np.zeros(200_000)) == pytest.approx(normal_crps(np.zeros(1))[0], abs=4 * 0.5 / 447)


def test_crps_of_one_draw_is_the_absolute_error() -> None:
    assert crps([[1.0, 5.0]], [0.0, np.nan]) == 1.0
    assert crps([[3.1]], [-3.1], periodic=True) == pytest.approx(2 * np.pi - 6.2)
    assert math.isnan(crps([[1.0]], [np.nan]))


def test_circular_crps() -> None:
    rng = generator(12)
    draws, truth = 0.2 * rng.normal(size=(50, 30)), 0.2 * rng.normal(size=30)
    around = draws + np.pi + 2 * np.pi * rng.integers(-3, 4, size=draws.shape)
    assert crps(around, truth + np.pi, periodic=True) == pytest.approx(crps(draws, truth), abs=1e-12)
    # Uniform on the circle: both mean distances are π/2.
    even = np.linspace(-np.pi, np.pi, 2001)[:-1, None]
    assert crps(even, [0.3], periodic=True) == pytest.approx(np.pi / 4, abs=1e-3)
    wide = rng.uniform(-9, 9, size=(41, 1))
    pairs = np.abs((wide - wide.T + np.pi) % (2 * np.pi) - np.pi)
    first = np.abs((wide - 0.3 + np.pi) % (2 * np.pi) - np.pi).mean()
    assert crps(wide, [0.3], periodic=True) == pytest.approx(first - pairs.sum() / (2 * 41 * 40), abs=1e-12)
    opposite = np.array([[0.0], [np.pi], [0.0], [np.pi]])  # mean distance 4 π / 6
    assert crps(opposite, [0.0], periodic=True) == pytest.approx(np.pi / 2 - np.pi / 3, abs=1e-12)


def test_energy_score() -> None:
    rng = generator(13)
    draws, truth = rng.normal(size=(40, 6, 3)), rng.normal(size=(6, 3))
    expected = np.mean(
        [scoringrules.es_ensemble(truth[k], draws[:, k], estimator="fair", backend="numpy") for k in range(6)]
    )
    assert energy_score(draws, truth) == pytest.approx(expected, rel=1e-12)
    assert energy_score(draws[..., :1], truth[..., :1]) == pytest.approx(crps(draws[..., :1], truth[..., :1]))
    part = truth.copy()
    part[1:, 2] = np.nan
    assert energy_score(draws, part) == pytest.approx(energy_score(draws[:, :1], truth[:1]))
    assert energy_score([[3.0, 4.0]], [0.0, 0.0]) == 5.0


def test_energy_score_of_the_normal() -> None:
    """In two dimensions E‖X‖ = √(π/2) and E‖X − X'‖ = √π for standard normals."""
    draws = generator(14).normal(size=(100, 500, 2))
    expected = math.sqrt(np.pi / 2) - 0.5 * math.sqrt(np.pi)
    # The standard deviation of ‖X‖ is 0.66.
    assert energy_score(draws, np.zeros((500, 2))) == pytest.approx(
        expected, abs=4 * 0.66 / math.sqrt(50_000)
    )


def test_valid_prediction_time() -> None:
    times = 5 + 0.5 * np.arange(10)
    truth = np.ones((3, 10, 2))
    prediction = truth.copy()
    prediction[0, 4:] += 0.2  # 0.04 > 0.025 from the fifth time on
    prediction[1, 6, 1] = np.nan  # blew up
    assert valid_prediction_time(prediction[0], truth[0], times) == 2.0
    assert valid_prediction_time(prediction[1], truth[1], times) == 3.0
    assert valid_prediction_time(prediction[2], truth[2], times) == 4.5  # good to the end
    assert valid_prediction_time(prediction, truth, np.tile(times, (3, 1))) == 3.0
    assert valid_prediction_times(prediction, truth, times).tolist() == [2.0, 3.0, 4.5]
    nothing = np.full((10, 2), np.nan)
    found = valid_prediction_times(
        np.stack([prediction[:2], prediction[1:]]), np.stack([truth[:2]] * 2), times
    )
    assert found.tolist() == [[2.0, 3.0], [3.0, 4.5]]
    assert np.isnan(valid_prediction_times(nothing, nothing, times))
    assert valid_prediction_time(prediction[0], truth[0], times, threshold=0.05) == 4.5
    truth[0, 4:] = np.nan
    assert valid_prediction_time(prediction[0], truth[0], times) == 4.5
    assert math.isnan(valid_prediction_time(truth[0] * np.nan, truth[0] * np.nan, times))


def test_relative_energy_error() -> None:
    np.testing.assert_allclose(relative_energy_error([[-2.0, -1.0], [4.0, 5.0]]), [[0, 0.5], [0, 0.25]])
    np.testing.assert_allclose(relative_energy_error([0.0, 1.0], scale=4.0), [0, 0.25])
    with pytest.raises(ValueError, match="scale of the energy must be positive"):
        relative_energy_error([0.0, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmse([1.0], [1.0, 2.0]), r"shape \(2,\) of truth"),
        (lambda: crps(np.zeros((5, 3)), np.zeros(2)), "draws must have shape"),
        (lambda: coverage(np.zeros((5, 2)), np.zeros(2), [1.5]), "levels must be probabilities"),
        (lambda: rmse(np.zeros(3), np.zeros(3), periodic=[True, False]), "periodic must be a flag"),
        (lambda: valid_prediction_time([1.0], [1.0], [0.0]), r"shape \(\*batch, time, coordinate\)"),
        (lambda: valid_prediction_time(np.ones((3, 1)), np.ones((3, 1)), [0.0]), "times must have shape"),
    ],
)
def test_bad_arrays_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Scores of a forecast file

DIMS = {
    "obs": ("trajectory", "time", "channel"),
    "states": ("trajectory", "time", "state"),
    "energy": ("trajectory", "time"),
    "times": ("trajectory", "time"),
    "measured": ("trajectory", "time", "channel"),
    "in_sample": ("trajectory", "time"),
    "forecast_start": ("trajectory",),
}


def forecast_groups(num_times: int = 60, num_fitted: int = 20) -> dict[str, dict[str, np.ndarray]]:
    """A calibrated forecast of an angle and a velocity, in two chains; velocity errors grow with time."""
    rng, num, trajectories = generator(15), 100, 30
    times = np.tile(0.1 * np.arange(num_times), (trajectories, 1))
    scale = np.stack([np.full_like(times, 0.2), 0.1 + times], axis=-1)
    centre = np.stack([2 * times, np.cos(times)], axis=-1)
    measured = centre + scale * rng.normal(size=scale.shape)
    measured[..., 0] = (measured[..., 0] + np.pi) % (2 * np.pi) - np.pi
    measured[0, 25:30] = np.nan
    return {
        "predictions": {"obs": centre + scale * rng.normal(size=(2, num // 2, *scale.shape))},
        "predictions_constant_data": {
            "times": times,
            "measured": measured,
            "in_sample": times <= times[:, num_fitted - 1 :][:, :1],
            "forecast_start": times[:, num_fitted - 1],
        },
    }


def example_forecast(groups: dict | None = None, **attrs: str):
    attributes = {
        "channel_quantity": json.dumps(["position", "velocity"]),
        "channel_coordinate": json.dumps([0, 0]),
        "channel_angle": json.dumps([True, False]),
        "channel_unit": json.dumps(["rad", "rad/s"]),
    }
    groups = groups or forecast_groups()
    return to_arviz(
        groups,
        dims=DIMS,
        coords={"channel": ["q", "v"], "time": groups["predictions_constant_data"]["times"][0]},
        units={"time": "s", "times": "s"},
        attrs=attributes | attrs,
    )


def test_forecast_scores_of_a_calibrated_forecast(tmp_path) -> None:
    path = write_result(example_forecast(), tmp_path / "forecast.nc")
    scores = forecast_scores(read_result(path), num_bins=4)
    assert list(scores.columns) == [
        *("channel", "start_s", "end_s", "rmse", "crps"),
        *("coverage_50", "coverage_80", "coverage_90", "coverage_95", "width_90", "num_points"),
    ]
    assert list(scores["channel"]) == ["q"] * 4 + ["v"] * 4 + ["all"]
    np.testing.assert_allclose(scores["start_s"], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_allclose(scores["end_s"], [1, 2, 3, 4, 1, 2, 3, 4, 4])
    every = scores.iloc[-1]
    assert every["num_points"] == 2 * (30 * 40 - 5) == scores["num_points"][:-1].sum()
    # The times of one trajectory are independent here, so the points are.
    assert every["coverage_80"] == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / every["num_points"]))
    angle = scores[scores["channel"] == "q"]
    np.testing.assert_allclose(angle["rmse"], 0.2, rtol=4 / math.sqrt(2 * 290))
    np.testing.assert_allclose(angle["crps"], 0.2 / math.sqrt(np.pi), rtol=0.2)
    np.testing.assert_allclose(angle["width_90"], 0.4 * 1.644854, rtol=0.05)
    velocity = scores[scores["channel"] == "v"]
    assert velocity["width_90"].is_monotonic_increasing


def test_forecast_scores_agree_with_the_scores_on_arrays() -> None:
    forecast = example_forecast()
    arrays = forecast_arrays(forecast)
    truth = np.where(arrays.in_sample[..., None], np.nan, arrays.measured)
    every = forecast_scores(forecast, num_bins=3, levels=[0.5, 0.975]).iloc[-1]
    assert every["crps"] == pytest.approx(crps(arrays.obs, truth, periodic=arrays.angles))
    mean = arrays.obs.mean(0)
    assert every["rmse"] == pytest.approx(rmse(mean, truth, periodic=arrays.angles))
    assert every["coverage_97.5"] == coverage(arrays.obs, truth, [0.975], periodic=arrays.angles)[0.975]


def test_forecast_scores_with_edges_and_without_points() -> None:
    scores = forecast_scores(example_forecast(), edges=[0, 0.55, 10])
    assert list(scores["end_s"]) == [0.55, 10, 0.55, 10, 10]
    assert scores["num_points"].iloc[0] == 30 * 5
    groups = forecast_groups()
    groups["predictions_constant_data"]["measured"][:] = np.nan
    empty = forecast_scores(example_forecast(groups), num_bins=2)
    assert (empty["num_points"] == 0).all()
    assert empty["rmse"].isna().all()
    assert pd.isna(empty.iloc[-1]["crps"])


def test_forecast_arrays_without_attributes_or_states() -> None:
    groups = forecast_groups()
    bare = forecast_arrays(to_arviz(groups, dims=DIMS))
    assert bare.obs.shape == (100, 30, 60, 2)
    assert bare.channels == ("0", "1")
    assert bare.channel_units == ("", "")
    assert not bare.angles.any()
    assert bare.states is None
    assert bare.energy is None
    assert bare.channel_states is None


def test_bad_forecasts_are_named() -> None:
    groups = forecast_groups()
    only = {"predictions": groups["predictions"]}
    with pytest.raises(KeyError, match="'predictions_constant_data' is needed; got predictions"):
        forecast_scores(to_arviz(only, dims=DIMS))
    constants = dict(groups["predictions_constant_data"])
    del constants["in_sample"]
    with pytest.raises(KeyError, match="must hold in_sample"):
        forecast_scores(to_arviz({**only, "predictions_constant_data": constants}, dims=DIMS))
    with pytest.raises(ValueError, match="channel_angle must be a JSON list"):
        forecast_scores(example_forecast(channel_angle="[true]"))
    with pytest.raises(ValueError, match="edges must be at least two increasing"):
        forecast_scores(example_forecast(), edges=[1, 0])
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        forecast_scores(example_forecast(), num_bins=0)


def test_public_names_resolve() -> None:
    assert all(hasattr(scores, name) for name in scores.__all__)
