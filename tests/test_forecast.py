"""Forecasts: where they reach, what counts as held out, and that they continue the fitted motion."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps

from vinppl.draws import predict
from vinppl.errors import NumericalWarning
from vinppl.export import get_group
from vinppl.forecast import extend, forecast
from vinppl.models import Duffing, MassSpring, Pendulum, PendulumConfig
from vinppl.posterior import prior_draws
from vinppl.scores import forecast_arrays


def test_horizon_goes_on_at_the_spacing_of_the_data() -> None:
    data = simulated("mass_spring")
    future = extend(data, horizon=0.5)
    assert future.num_times == 12 + 5
    assert torch.allclose(future.times[0, 12:], data.times[0, -1] + 0.1 * torch.arange(1, 6))
    assert torch.equal(future.values[:, :12], data.values)
    assert not bool(future.mask[:, 12:].any())
    finer = extend(data, horizon=0.5, step_size=0.02)
    assert finer.num_times == 12 + 25
    assert float(finer.times.max()) == pytest.approx(1.6)


def test_held_out_samples_are_included_and_continued() -> None:
    train, held_out = simulated("mass_spring", num_times=20).split_by_time(0.6)
    future = extend(train, horizon=0.0, held_out=held_out)
    assert torch.equal(future.times, torch.cat([train.times, held_out.times], -1))
    assert bool(future.mask.all())
    further = extend(train, horizon=1.2, held_out=held_out)  # 8 held-out samples reach 0.8
    assert further.num_times == 20 + 4
    assert not bool(further.mask[:, 20:].any())


def test_ragged_trajectories_keep_their_own_ends() -> None:
    data = ragged(simulated("mass_spring"))
    future = extend(data, horizon=0.3)
    assert future.lengths.tolist() == [15, 15, 11]
    ends = future.times.gather(-1, (future.lengths - 1).unsqueeze(-1)).squeeze(-1)
    starts = data.times.gather(-1, (data.lengths - 1).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(ends - starts, torch.full((3,), 0.3))
    train, held_out = ragged(simulated("mass_spring", num_times=20)).split_by_time(0.5)
    joined = extend(train, horizon=0.0, held_out=held_out)
    assert joined.lengths.tolist() == [20, 20, 16]


def test_drives_go_as_far_as_they_are_known() -> None:
    whole = driven(simulated("duffing", num_times=20))
    train, held_out = whole.split_by_time(0.5)
    future = extend(train, horizon=0.0, held_out=held_out)
    assert future.drive is not None
    assert torch.equal(future.drive, whole.drive)
    with pytest.raises(ValueError, match="only as far as its drive is known"):
        extend(train, horizon=0.5)
    with pytest.raises(ValueError, match="held-out samples of a driven system need its drive"):
        extend(train, horizon=0.0, held_out=dataclasses.replace(held_out, drive=None, drive_names=()))


def test_bad_requests_are_named() -> None:
    train, held_out = simulated("mass_spring", num_times=20).split_by_time(0.5)
    for options, message in (
        ({"horizon": -1.0}, "horizon must not be negative"),
        ({"horizon": 0.0}, "there must be something to forecast; got horizon=0"),
        ({"horizon": 1.0, "step_size": 0.0}, "step_size must be positive"),
        ({"horizon": 0.0, "held_out": held_out.select([0])}, "continue the same 3 trajectories; got 1"),
        ({"horizon": 0.0, "held_out": train}, "held-out samples must come after the fitted ones"),
    ):
        with pytest.raises(ValueError, match=message):
            extend(train, **options)  # type: ignore[arg-type]


def test_a_forecast_continues_the_motion() -> None:
    whole = with_gaps(simulated("mass_spring", num_times=20))
    train, held_out = whole.split_by_time(0.6)
    model = MassSpring(train)
    draws = prior_draws(model, train, 8)
    wrong = {**draws, "states": torch.full((8, 3, 12, 2), 77.0)}
    future = extend(train, horizon=1.0, held_out=held_out)
    result = forecast(model, wrong, train, future, attrs={"model": "MassSpring"})
    arrays = forecast_arrays(result)
    assert arrays.states is not None
    past = predict(model, draws, train, sites=["states"])["states"].numpy()
    assert np.allclose(arrays.states[:, :, :12], past)
    assert arrays.in_sample.sum() == 3 * 12
    assert np.allclose(arrays.forecast_start, 1.1)
    assert np.isnan(arrays.measured[:, 20:]).all()
    assert np.isnan(arrays.measured[:, :20]).sum() == int((~whole.mask).sum())
    assert arrays.energy is not None
    constants = get_group(result, "predictions_constant_data")
    assert constants["times"].dims == ("trajectory", "time")
    assert get_group(result, "posterior")["initial_position"].dims == (
        "chain",
        "draw",
        "trajectory",
        "coordinate",
    )


def test_ragged_and_driven_forecasts() -> None:
    whole = ragged(driven(simulated("duffing", num_times=20)))
    train, held_out = whole.split_by_time(0.6)
    config = Duffing.Config(stiffness=(1.0, 0.1), cubic=(0.5, 0.1))
    model = Duffing(train, config)
    draws = prior_draws(model, train, 4)
    future = extend(train, horizon=0.0, held_out=held_out)
    arrays = forecast_arrays(forecast(model, draws, train, future))
    assert arrays.obs.shape == (4, 3, 20, 2)
    assert np.isfinite(arrays.obs).all()
    assert arrays.in_sample[2].sum() == 10


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_draws_without_a_trajectory_are_left_out_and_counted() -> None:
    # SO(2) steps of h have a solution where |h^2 g/l sin q| < 1 (about).
    data = simulated(num_times=6, step_size=0.3)
    model = Pendulum(data, PendulumConfig(integrator="so2", damping=None))
    draws = prior_draws(model, data, 4)
    draws["potential.gravity_over_length"] = torch.tensor([1.0, 1.0, 500.0, 1.0])
    draws = {k: v * (0.3 if k.startswith("initial") else 1.0) for k, v in draws.items()}
    future = extend(data, horizon=1.0)
    with pytest.warns(NumericalWarning, match="1 of 4 draws have no finite trajectory"):
        result: Any = forecast(model, draws, data, future)
    assert get_group(result, "predictions").sizes["draw"] == 3
    assert get_group(result, "predictions").attrs["draws_without_forecast"] == "1"
    draws["potential.gravity_over_length"] = torch.full((4,), 500.0)
    with pytest.raises(ValueError, match="some draws must have a finite forecast; got none of 4"):
        forecast(model, draws, data, future)
