"""Uncertainty growth of models: against the closed form of an oscillator, in files, words and tables."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import arviz as az
import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from example_data import driven, ragged, simulated, with_gaps
from pyro.distributions import Normal

from vinppl.data import Trajectories
from vinppl.draws import CONTINUATION, predict
from vinppl.dynamics import VIN
from vinppl.errors import NumericalWarning
from vinppl.export import add_group, read_result, write_result
from vinppl.forecast import extend, forecast
from vinppl.growth import (
    GROUP,
    compare_growth,
    growth_of,
    growth_verdict,
    mean_growth,
    uncertainty_growth,
)
from vinppl.models import Duffing, Hierarchical, MassSpring, NoisyStates, Pendulum
from vinppl.posterior import prior_draws
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState
from vinppl.systems import system

FAST = {"num_horizons": 20, "num_bootstrap": 20}


def like_a_posterior(model: Any, data: Trajectories, num: int) -> dict[str, torch.Tensor]:
    """Draws that scatter by 3 % of themselves and of their kind around the model's rough estimates."""
    values = {name: value.median(0).values for name, value in prior_draws(model, data, 101).items()}
    values |= {name: torch.as_tensor(value) for name, value in model.initial_values(data).items()}
    return {
        name: value + 0.03 * value.abs().mean() * torch.randn(num, *value.shape)
        for name, value in values.items()
    }


def model_and_draws(
    kind: Any, data: Trajectories, num: int = 60, **options: Any
) -> tuple[Any, dict[str, Any]]:
    model = kind(data, kind.Config(**options))
    return model, like_a_posterior(model, data, num)


# The linear oscillator


def oscillator_draws(num: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A narrow, dependent Gaussian posterior of (q0, v0, k), and its mean and covariance."""
    factor = 1e-3 * torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.9, 0.0], [-1.2, 0.8, 0.7]])
    x = torch.tensor([1.2, -0.4, 2.0]) + torch.randn(num, 3) @ factor.T
    draws = {
        "initial_position": x[:, None, 0:1],
        "initial_velocity": x[:, None, 1:2],
        "potential.stiffness": x[:, 2],
        "noise_scale": 1e-3 * (1 + 0.1 * torch.rand(num, 2)),
    }
    return draws, x.numpy()


def oscillator_slopes(t: np.ndarray, q: float, v: float, k: float) -> np.ndarray:
    """Derivatives of position, velocity and energy at times t by (q0, v0, k), `(time, 3, 3)`."""
    w = math.sqrt(k)
    c, s, zero = np.cos(w * t), np.sin(w * t), np.zeros_like(t)
    by_w = np.stack([-q * t * s + v * (t * c / w - s / w**2), -q * s - q * w * t * c - v * t * s])
    position = np.stack([c, s / w, by_w[0] / (2 * w)], axis=-1)
    velocity = np.stack([-w * s, c, by_w[1] / (2 * w)], axis=-1)
    energy = np.stack([zero + k * q, zero + v, zero + q**2 / 2], axis=-1)
    return np.stack([position, velocity, energy], axis=1)


def test_parts_of_a_linear_oscillator_agree_with_the_closed_form() -> None:
    data = simulated("mass_spring", num_trajectories=1)
    model = MassSpring(data, MassSpring.Config(integrator="verlet6"))
    draws, x = oscillator_draws(2000)
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=12.0), num_horizons=25)
    assert list(growth["part"].values) == ["initial_state", "potential", "observation"]
    t = growth["horizon"].values + 1.1
    slopes = oscillator_slopes(t, *x.mean(0))
    covariance = np.cov(x.T, bias=True)
    total = np.einsum("tfi,ij,tfj->tf", slopes, covariance, slopes)
    cross = slopes @ covariance  # Cov(Y, x)
    first, second = cross[..., :2], cross[..., 2:]
    known = np.einsum("tfi,ij,tfj->tf", first, np.linalg.inv(covariance[:2, :2]), first)
    other = second[..., 0] ** 2 / covariance[2, 2]
    exact = {"initial_state": 0.5 * (known + total - other), "potential": 0.5 * (other + total - known)}
    for index, name in enumerate(("states", "states", "energy")):
        value = {
            key: growth[f"{name}_{key}"].sel(trajectory="0") for key in ("variance", "parts", "parts_error")
        }
        if name == "states":
            value = {key: array.isel(state=index) for key, array in value.items()}
        # Second derivatives change a variance by about the relative spread, 1e-3 times the phase of 20.
        assert np.allclose(value["variance"], total[:, index], rtol=0.02)
        assert np.allclose(value["parts"].sum("part"), value["variance"], rtol=1e-12)
        for part, expected in exact.items():
            error = value["parts_error"].sel(part=part).values
            assert (error < 0.06 * total[:, index]).all()
            off = np.abs(value["parts"].sel(part=part).values - expected[:, index])
            assert (off < 4.5 * error + 0.02 * total[:, index]).all(), (name, part)
        assert (value["parts"].sel(part="observation") == 0).all()
    noise = growth["obs_parts"].sel(part="observation", trajectory="0")
    scale = (draws["noise_scale"] ** 2).mean(0).numpy()
    assert np.allclose(noise, scale, atol=0.16 * scale[0])  # a variance of 2,000 draws: 5 sd of 3.2 %
    off = growth["obs_parts"].sum("part") - growth["obs_variance"]
    assert (np.abs(off) < 5 * growth["obs_variance_error"]).all()
    gaussian = 0.5 * np.log(2 * np.pi * np.e * growth["states_variance"])
    assert np.allclose(growth["states_entropy"], gaussian, atol=0.1)
    assert np.allclose(growth["states_width"], 2 * 1.6449 * growth["states_sd"], rtol=0.12)
    assert growth.attrs["mismatch"] < 0.1


def test_independent_groups_of_an_oscillator_do_not_mix() -> None:
    data = simulated("mass_spring", num_trajectories=1)
    model = MassSpring(data, MassSpring.Config(mass=(1.0, 0.1)))
    draws, _ = oscillator_draws(1000)
    draws = {name: value[torch.randperm(1000)] for name, value in draws.items()}
    draws |= {"mass": 1 + 1e-6 * torch.randn(1000), "potential.stiffness": torch.full((1000, 1), 2.0)}
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=5.0), **FAST)
    assert "potential" in growth["part"]
    shares = growth["states_parts"] / growth["states_variance"]
    assert float(np.abs(shares.sel(part=["mass", "potential"])).max()) < 0.15
    assert float(shares.sel(part="initial_state").min()) > 0.85


# Parts


def test_noise_with_memory_is_model_discrepancy_and_gains_belong_to_the_measuring() -> None:
    data = simulated("pendulum")
    model, draws = model_and_draws(Pendulum, data, 300, noise="ar1", velocity_gain=0.1, damping=None)
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=1.0), **FAST)
    assert list(growth["part"].values) == ["initial_state", "potential", "discrepancy", "observation"]
    # The gain of the velocities changes what is measured, and no state.
    assert float(np.abs(growth["states_parts"].sel(part="observation")).max()) < 1e-12
    share = growth["obs_parts"] / growth["obs_variance"]
    assert float(np.abs(share.sel(part="observation", channel="q")).max()) < 1e-12
    assert float(share.sel(part="observation", channel="v").mean()) > 0.01
    assert float(share.sel(part="discrepancy").min()) > 0
    off = growth["obs_parts"].sum("part") - growth["obs_variance"]
    assert float((np.abs(off) / growth["obs_variance_error"]).max()) < 5


def test_parts_of_the_caller_and_point_estimates() -> None:
    data = driven(simulated("duffing", num_times=30))
    train, held_out = data.split_by_time(0.5)
    model, draws = model_and_draws(Duffing, train, stiffness=(1.0, 0.1), cubic=(0.5, 0.1))
    future = extend(train, horizon=0.0, held_out=held_out)
    springs = {"cubic": ["potential.cubic"]}
    growth = uncertainty_growth(model, draws, train, future, parts=springs, **FAST)
    assert list(growth["part"].values) == ["initial_state", "potential", "forces", "cubic", "observation"]
    assert "energy_error" not in growth  # a driven system gains and loses energy
    assert json.loads(growth.attrs["point_estimates"]) == []
    network = NoisyStates(simulated(), NoisyStates.Config(hidden_sizes=(4,)))
    data = simulated()
    draws = like_a_posterior(network, data, 20)
    growth = uncertainty_growth(network, draws, data, extend(data, horizon=1.0), **FAST)
    assert list(growth["part"].values) == ["initial_state", "observation"]
    missing = json.loads(growth.attrs["point_estimates"])
    assert any("network" in name for name in missing)
    assert "Point estimates, whose uncertainty is missing" in growth_verdict(growth)


def test_a_trajectory_depends_on_its_own_initial_state_alone() -> None:
    data = simulated("mass_spring", num_trajectories=3)
    model, draws = model_and_draws(MassSpring, data, 200)
    future = extend(data, horizon=2.0)
    growth = uncertainty_growth(model, draws, data, future, **FAST)
    draws["initial_position"] = draws["initial_position"].clone()
    draws["initial_position"][:, 2] *= 3
    changed = uncertainty_growth(model, draws, data, future, **FAST)
    first, last = (
        np.abs(changed["states_variance"] / growth["states_variance"] - 1).isel(trajectory=i).max().item()
        for i in (0, 2)
    )
    assert first == 0
    assert last > 0.5


def test_hierarchical_models_are_cut_along_their_trials() -> None:
    data = simulated()
    model, draws = model_and_draws(Hierarchical, data, 30)
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=1.0), **FAST)
    assert list(growth["part"].values) == ["initial_state", "potential", "forces", "observation"]
    assert np.isfinite(growth["obs_parts"]).all()


def test_any_pyro_model_will_do() -> None:
    vin = VIN(Harmonic(2.0))

    def one_start_for_all(data: Trajectories) -> None:
        q0 = pyro.sample("initial_position", Normal(torch.ones(1), 0.1).to_event(1))
        v0 = pyro.sample("initial_velocity", Normal(torch.zeros(1), 0.1).to_event(1))
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            each = torch.zeros(data.num_trajectories, 1)
            path = vin(PhaseState(q0 + each, v0 + each), data.grid())
            pyro.sample("obs", Normal(data.observe(path), 0.1).to_event(2), obs=data.values)

    data = simulated("mass_spring", num_trajectories=2)
    draws = prior_draws(one_start_for_all, data, 60)
    growth = uncertainty_growth(one_start_for_all, draws, data, extend(data, horizon=1.0), **FAST)
    assert list(growth["part"].values) == ["initial_state", "observation"]
    assert "states_sd" not in growth  # it does not record them
    assert growth.attrs["law"] == "none"
    assert np.allclose(growth["obs_sd"].isel(trajectory=0), growth["obs_sd"].isel(trajectory=1), rtol=0.5)
    assert "q: sd" in growth_verdict(growth)


def test_an_unknown_force_is_discrepancy_that_grows() -> None:
    data = simulated("mass_spring", num_trajectories=1)
    model, draws = model_and_draws(MassSpring, data, discrepancy=0.3, discrepancy_time=(0.5, 0.3))
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=4.0), **FAST)
    assert "discrepancy" in growth["part"].values
    found = growth["states_parts"].sel(part="discrepancy").isel(trajectory=0, state=0).values
    # At the end of the data, where its path is the same in all of these draws, it is nothing yet.
    assert float(np.abs(found[0])) < 1e-3 * found[-1]
    assert found[0] < found[5] < found[10] < found[-1]


def test_what_goes_on_at_random_beyond_the_data_is_discrepancy() -> None:
    vin = VIN(Harmonic(2.0))

    def drifting_sensor(data: Trajectories) -> None:
        """An oscillator whose readings wander off by a normal step of 0.3 from one sample to the next."""
        plate = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with plate:
            q0 = pyro.sample("initial_position", Normal(torch.ones(1), 0.1).to_event(1))
            v0 = pyro.sample("initial_velocity", Normal(torch.zeros(1), 0.1).to_event(1))
            steps = pyro.sample("discrepancy.innovations", Normal(torch.zeros(12, 1), 0.3).to_event(2))
            if (more := data.num_times - 12) > 0:
                rest = Normal(torch.zeros(more, 1), 0.3).to_event(2)
                goes_on = pyro.sample("discrepancy.continuation", rest, infer={CONTINUATION: True})
                steps = torch.cat([steps, goes_on], dim=-2)
        path = vin(PhaseState(q0, v0), data.grid())
        with plate:
            vin.record(path)
            wandering = steps.cumsum(-2)
            pyro.sample("obs", Normal(data.observe(path) + wandering, 0.1).to_event(2), obs=data.values)

    data = simulated("mass_spring", num_trajectories=2)
    draws = prior_draws(drifting_sensor, data, 400)
    assert set(draws) == {"initial_position", "initial_velocity", "discrepancy.innovations"}
    growth = uncertainty_growth(drifting_sensor, draws, data, extend(data, horizon=2.0), **FAST)
    assert list(growth["part"].values) == ["initial_state", "discrepancy", "observation"]
    assert float(np.abs(growth["states_parts"].sel(part="discrepancy")).max()) == 0
    walked = 0.09 * (12 + np.round(growth["horizon"] / 0.1))
    found = growth["obs_parts"].sel(part="discrepancy")
    off = np.abs(found - walked) / growth["obs_parts_error"].sel(part="discrepancy")
    assert float(off.max()) < 5
    sum_of_parts = growth["obs_parts"].sum("part")
    assert np.allclose(sum_of_parts, growth["obs_variance"], rtol=0.1)


# Angles, times and lost draws


def test_angles_are_those_of_the_circle() -> None:
    data = simulated()
    assert data.channels[0].angle
    model, draws = model_and_draws(Pendulum, data, 60, damping=None)
    future = extend(data, horizon=1.0)
    growth = uncertainty_growth(model, draws, data, future, **FAST)
    draws["initial_position"] = draws["initial_position"] + 2 * math.pi * torch.randint(-2, 3, (60, 1, 1))
    # Draws on several turns are no straight line, and it says so.
    with pytest.warns(
        NumericalWarning, match="sites drawn anew given the others do not fit the posterior well"
    ):
        turned = uncertainty_growth(model, draws, data, future, **FAST)
    for name in ("states_sd", "obs_sd", "states_width", "separation"):
        assert np.allclose(growth[name], turned[name], atol=1e-9), name
    assert float(turned["states_variance"].max()) < np.pi**2


def test_ragged_trajectories_have_horizons_of_their_own() -> None:
    whole = ragged(with_gaps(simulated("mass_spring", num_times=20)))
    train, held_out = whole.split_by_time(0.6)
    model, draws = model_and_draws(MassSpring, train)
    growth = uncertainty_growth(model, draws, train, extend(train, horizon=0.0, held_out=held_out), **FAST)
    assert growth["horizons"].isnull().sum(dim="horizon").values.tolist() == [0, 0, 2]
    assert growth["horizon"].dtype.kind == "i"
    assert growth["states_sd"].isel(trajectory=2).isnull().any()
    assert float(growth["separation_horizon"].max()) == pytest.approx(0.6)
    assert mean_growth(growth, "2").sizes["horizon"] == growth.sizes["horizon"] - 2
    with pytest.raises(ValueError, match="trajectories must share horizons to be averaged"):
        mean_growth(growth)
    assert "q: sd" in growth_verdict(growth)


def test_horizons_are_thinned_and_start_with_the_last_fitted_sample() -> None:
    data = simulated("mass_spring")
    model, draws = model_and_draws(MassSpring, data)
    future = extend(data, horizon=3.0)
    growth = uncertainty_growth(model, draws, data, future, num_horizons=7, num_bootstrap=5)
    assert np.allclose(growth["horizon"], np.linspace(0, 3, 7))
    states = predict(model, draws, future, sites=["states"])["states"].numpy()
    assert np.allclose(growth["states_sd"], states.std(0)[:, 11::5], rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_draws_without_a_path_are_left_out_and_counted() -> None:
    data = simulated(num_times=6, step_size=0.3)
    model = Pendulum(data, Pendulum.Config(integrator="so2", damping=None))
    draws = like_a_posterior(model, data, 30)
    draws["potential.gravity_over_length"] = 1 + 0.01 * torch.rand(30)
    draws["potential.gravity_over_length"][4] = 500.0
    with pytest.warns(NumericalWarning, match="1 of 30 draws have no finite trajectory"):
        growth = uncertainty_growth(model, draws, data, extend(data, horizon=1.0), **FAST)
    assert growth.attrs["num_draws"] == 29
    assert np.isfinite(growth["states_parts"]).all()


def test_valid_prediction_times_against_truth_and_each_other() -> None:
    truth = system("mass_spring")
    data = simulated("mass_spring", num_trajectories=2)
    future = extend(data, horizon=20.0)
    start = PhaseState(torch.tensor([[1.0], [-1.2]]), torch.tensor([[0.2], [0.4]]))
    path = truth.solve(start, future.times[0])
    model = MassSpring(data, MassSpring.Config(integrator="verlet6"))
    draws = {
        "initial_position": start.q.expand(50, 2, 1),
        "initial_velocity": start.v.expand(50, 2, 1),
        "potential.stiffness": 2.0 + 0.05 * torch.randn(50),
        "noise_scale": torch.full((50, 2), 0.05),
    }
    draws["potential.stiffness"][0] = 2.0
    growth = uncertainty_growth(model, draws, data, future, truth=path, **FAST | {"num_horizons": 200})
    assert growth.attrs["valid_time_reference"] == "truth"
    times = growth["valid_time"].values
    assert times.shape == (50, 2)
    assert times[0] == pytest.approx([20.0, 20.0])  # the true system is right to the end
    # An error dk turns the phase by dk t / (2 w), and the error is valid while its square is below 0.025.
    phase = np.abs(draws["potential.stiffness"].numpy() - 2) / (2 * math.sqrt(2))
    early = times[:, 0] < 19
    assert early.sum() > 10
    reached = phase * (times[:, 0] + 1.1)
    assert np.median(reached[early]) == pytest.approx(math.sqrt(0.025), rel=0.3)
    assert growth.attrs["law"] == "linear"
    assert "Draws follow the truth for" in growth_verdict(growth)
    apart = uncertainty_growth(model, draws, data, future, **FAST)
    assert apart.attrs["valid_time_reference"] == "draws"
    with pytest.raises(ValueError, match="truth must have 212 times of 1 coordinates"):
        uncertainty_growth(model, draws, data, future, truth=truth.solve(start, future.times[0, :9]), **FAST)


# Energies


@pytest.mark.parametrize(
    ("integrator", "step", "message"),
    [("velocity_verlet", 0.1, ""), ("velocity_verlet", 1.2, "steps are too long"), ("euler", 0.1, "drifts")],
)
def test_energies_are_checked(integrator: str, step: float, message: str) -> None:
    data = simulated("mass_spring", step_size=step)
    model, draws = model_and_draws(MassSpring, data, 20, integrator=integrator)
    draws["potential.stiffness"] = 1.5 + 0.01 * torch.rand(20)
    future = extend(data, horizon=100 * step)
    if message:
        with pytest.warns(NumericalWarning, match=message):
            growth = uncertainty_growth(model, draws, data, future, **FAST)
        assert message in growth_verdict(growth)
    else:
        growth = uncertainty_growth(model, draws, data, future, **FAST)
        # The energy of velocity Verlet oscillates by (h w)^2 / 4 of the kinetic energy (Hairer et al. 2006).
        bound = (0.1 * math.sqrt(1.51)) ** 2 / 4
        assert 0.3 * bound < float(growth["energy_error"].max()) < 1.02 * bound
        assert "stay bounded" in growth_verdict(growth)
        assert growth["energy_drifts"].dtype == bool


def test_damped_models_are_not_asked_for_energy() -> None:
    data = simulated()
    model, draws = model_and_draws(Pendulum, data, 20)
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=1.0), **FAST)
    assert "energy_error" not in growth
    assert "energy_sd" in growth


# Files, words and tables


@pytest.fixture(scope="module")
def example() -> tuple[Any, xr.Dataset]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    data = simulated("mass_spring", num_trajectories=2)
    data = dataclasses.replace(data, channels=tuple(dataclasses.replace(c, unit="cm") for c in data.channels))
    model, draws = model_and_draws(MassSpring, data, 60)
    future = extend(data, horizon=2.0)
    result = forecast(model, draws, data, future)
    return result, uncertainty_growth(model, draws, data, future, **FAST)


def test_a_group_of_an_arviz_file(example: tuple[Any, xr.Dataset], tmp_path: Any) -> None:
    result, growth = example
    file = write_result(add_group(result, GROUP, growth), tmp_path / "forecast.nc")
    back = growth_of(read_result(file))
    xr.testing.assert_identical(back.drop_vars("horizon"), growth.drop_vars("horizon"))
    assert back["obs_sd"].attrs["units"] == "cm"
    assert back["horizons"].attrs["units"] == back["horizon"].attrs["units"] == "s"
    assert back["states_entropy"].attrs["units"] == "nat"
    assert "Shapley" in back.attrs["estimator"]
    assert back["states_parts"].dims == ("trajectory", "horizon", "state", "part")
    assert back["energy_variance"].dims == ("trajectory", "horizon")
    opened = az.from_netcdf(file)
    assert float(opened[GROUP]["obs_sd"].sel(channel="q").max()) > 0
    with pytest.raises(KeyError, match="a forecast with its uncertainty growth: group 'uncertainty_growth'"):
        growth_of(result)
    with pytest.raises(ValueError, match="the data set must be of uncertainty growth; got obs"):
        growth_of(xr.Dataset({"obs": 1.0}))


def test_what_the_verdict_says(example: tuple[Any, xr.Dataset]) -> None:
    lines = growth_verdict(example[1]).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("q: sd ")
    assert " cm at first, " in lines[0]
    assert "at 0.5 s " in lines[0]
    assert "at 2 s " in lines[0]
    assert lines[2].startswith(("Distances between draws", "No law of growth"))
    assert lines[3].startswith("Two draws agree for ")
    assert "% of the kinetic energy" in lines[4]
    growth = example[1].copy()
    support = xr.DataArray([0.3, 0.5, 0.2], dims="law", coords={"law": growth["law"]})
    said = {}
    for law in ("constant", "linear", "exponential"):
        rate = xr.full_like(support, -0.5 if law == "exponential" else 0.5)
        told = growth.assign(law_support=support, law_rate=rate, law_rate_error=0 * rate + 0.01)
        said[law] = growth_verdict(told.assign_attrs(law=law)).splitlines()[2]
    assert "stay as they are" in said["constant"]
    assert (
        "grow linearly, as by phases that drift, by 50 ± 1 % of the spread of the motion per s"
        in said["linear"]
    )
    assert "Not certain: 30 % constant, 50 % linear, 20 % exponential." in said["linear"]
    assert "shrink exponentially, at 0.5 ± 0.01 per s" in said["exponential"]


def test_forecasts_are_compared_in_a_table(example: tuple[Any, xr.Dataset]) -> None:
    growth = example[1]
    table = compare_growth({"one": growth, "two": growth}, [0.5, 2.0])
    assert len(table) == 2 * 2 * 2
    assert set(table["name"]) == {"one", "two"}
    assert np.allclose(table[["initial_state", "potential", "observation"]].sum(axis=1), 1.0)
    assert table["horizon"].unique() == pytest.approx([0.5, 2.0], abs=0.06)
    mean = (growth["obs_variance"].sel(channel="q").isel(horizon=-1).mean() ** 0.5).item()
    last = table[(table["channel"] == "q") & (table["horizon"] > 1)]
    assert last["sd"].to_numpy() == pytest.approx(mean)
    single = compare_growth({"one": growth}, trajectory=1)
    assert len(single) == 6
    with pytest.raises(ValueError, match="trajectory must be an index or one of 0, 1; got 'none'"):
        compare_growth({"one": growth}, trajectory="none")
    with pytest.raises(ValueError, match="at least one forecast"):
        compare_growth({})


def test_the_same_seed_gives_the_same_numbers() -> None:
    data = simulated("mass_spring", num_trajectories=1)
    model, draws = model_and_draws(MassSpring, data)
    future = extend(data, horizon=1.0)
    first, second, third = (uncertainty_growth(model, draws, data, future, seed=s, **FAST) for s in (3, 3, 4))
    xr.testing.assert_identical(first, second)
    assert not np.array_equal(first["obs_parts"], third["obs_parts"])


def test_bad_requests_are_named() -> None:
    data = simulated("mass_spring")
    model, draws = model_and_draws(MassSpring, data)
    future = extend(data, horizon=1.0)
    for options, message in (
        ({"num_horizons": 1}, "num_horizons must be at least 2"),
        ({"num_replicates": 0}, "num_replicates must be at least 1"),
        ({"num_bootstrap": 1}, "num_bootstrap must be at least 2"),
        ({"parts": {"mine": ["no_site"]}}, "sites of parts must be among"),
    ):
        with pytest.raises(ValueError, match=message):
            uncertainty_growth(model, draws, data, future, **options)
    with pytest.raises(ValueError, match="future must go beyond the data; got 0 later times in trajectory 0"):
        uncertainty_growth(model, draws, data, data)
    with pytest.raises(ValueError, match=r"draws must hold every latent site .* none of noise_scale"):
        uncertainty_growth(model, {k: v for k, v in draws.items() if k != "noise_scale"}, data, future)
    with pytest.raises(ValueError, match="at least 10 draws"):
        uncertainty_growth(model, {k: v[:5] for k, v in draws.items()}, data, future)
    film = Trajectories.from_frames(torch.rand(2, 5, 4, 4), 0.1)
    with pytest.raises(ValueError, match="uncertainty growth is of states; got films"):
        uncertainty_growth(model, draws, film, film)
