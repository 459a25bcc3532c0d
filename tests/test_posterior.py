"""From draws to ArviZ: groups, dims, coords, units and attributes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps
from pyro import poutine
from pyro.distributions import HalfNormal, Normal

from vinppl.data import Channel, Trajectories
from vinppl.diagnostics import summary
from vinppl.export import get_group, group_names
from vinppl.fit import MCMCOptions, MCMCResult, SVIOptions, fit_mcmc, fit_svi
from vinppl.logdensity import LogDensity
from vinppl.models import Duffing, Hierarchical, MassSpring
from vinppl.posterior import dataset_coords, from_mcmc, from_svi, prior_draws

SVI = SVIOptions(guide="mean_field", num_steps=2, check_every=1, start="values", num_particles=1)
NUTS = MCMCOptions(
    num_chains=2, num_warmup=3, num_draws=6, start="values", spread=0.0, max_tree_depth=2, num_workers=1
)


def test_groups_dims_and_attributes_of_svi() -> None:
    data = simulated("mass_spring")
    channels = tuple(dataclasses.replace(c, unit="m") for c in data.channels)
    data = dataclasses.replace(data, channels=channels, time_unit="s", names=("a", "b", "c"))
    result = from_svi(fit_svi(MassSpring(data), data, SVI), num_draws=30, attrs={"model": "MassSpring"})
    assert set(group_names(result)) == {
        "posterior",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "observed_data",
        "constant_data",
    }
    posterior = get_group(result, "posterior")
    assert posterior["initial_position"].dims == ("chain", "draw", "trajectory", "coordinate")
    assert posterior["noise_scale"].dims == ("chain", "draw", "channel")
    assert posterior["potential.stiffness"].dims == ("chain", "draw")
    assert posterior["trajectory"].values.tolist() == ["a", "b", "c"]
    assert "states" not in posterior
    assert posterior["noise_scale"].attrs["units"] == "m"
    assert posterior.attrs["model"] == "MassSpring"
    assert json.loads(posterior.attrs["channel_quantity"]) == ["position", "velocity"]
    predictive = get_group(result, "posterior_predictive")["obs"]
    assert predictive.dims == ("chain", "draw", "trajectory", "time", "channel")
    assert np.allclose(predictive["time"], data.times[0])
    assert np.allclose(get_group(result, "observed_data")["obs"], data.values)
    assert get_group(result, "prior").sizes["draw"] == 30
    names = list(summary(result).index)
    assert {"initial_position[a, q0]", "noise_scale[q]", "potential.stiffness"} <= set(names)


def test_groups_of_nuts_and_gaps() -> None:
    data = with_gaps(ragged(simulated("mass_spring", num_times=9)))
    fitted = fit_mcmc(MassSpring(data), data, NUTS)
    result = from_mcmc(fitted)
    stats = get_group(result, "sample_stats")
    assert stats["lp"].shape == (2, 6)
    pointwise = get_group(result, "log_likelihood")["obs"]
    assert pointwise.shape == (2, 6, data.num_observed)
    # Chains stay apart: the flattened draws come back in their places.
    position = get_group(result, "posterior")["initial_position"].values
    assert np.array_equal(position, fitted.draws["initial_position"].numpy())
    # Pointwise terms and priors add up to the sampler's own density, but for the Jacobian.
    initial = LogDensity(fitted.model, data, initial_values=fitted.model.initial_values(data), soften=True)
    for chain, draw in ((0, 0), (1, 5)):
        values = {name: value[chain, draw] for name, value in fitted.draws.items()}
        trace = poutine.trace(poutine.condition(MassSpring(data), values)).get_trace(data)
        trace.compute_log_prob()
        expected = float(trace.nodes["obs"]["log_prob"].sum())
        assert float(pointwise.values[chain, draw].sum()) == pytest.approx(expected, rel=1e-6)
        density = float(initial(initial.unconstrain(values)))
        assert float(stats["lp"].values[chain, draw]) == pytest.approx(density, rel=1e-6)


def test_ragged_times_are_indices_with_the_real_ones_beside() -> None:
    data = ragged(simulated("mass_spring"))
    assert dataset_coords(data)["time"].tolist() == list(range(12))
    result = from_svi(fit_svi(MassSpring(data), data, SVI), num_draws=4)
    assert np.allclose(get_group(result, "constant_data")["times"], data.times)


def test_drives_are_constant_data() -> None:
    data = driven(simulated("duffing"))
    result = from_svi(fit_svi(Duffing(data), data, SVI), num_draws=4)
    drive = get_group(result, "constant_data")["drive"]
    assert drive.dims == ("trajectory", "time", "drive_channel")
    assert drive["drive_channel"].values.tolist() == ["u"]


def test_hierarchical_sites_have_their_dims() -> None:
    data = simulated()
    result = from_mcmc(fit_mcmc(Hierarchical(data), data, NUTS))
    posterior = get_group(result, "posterior")
    assert posterior["noise_deviation"].dims == ("chain", "draw", "trajectory", "channel")
    assert posterior["noise_population"].dims == ("chain", "draw", "channel")
    assert posterior["noise_spread"].dims == ("chain", "draw")


def user_data() -> Trajectories:
    return Trajectories.from_arrays(
        np.arange(6.0),
        np.random.default_rng(0).normal(size=(3, 6, 1)),
        channels=[Channel("x", "position", 0)],
    )


@pytest.mark.parametrize("engine", ["svi", "nuts"])
def test_plates_of_a_user_keep_their_shape(engine: str) -> None:
    data = user_data()

    def model(data: Trajectories) -> None:
        with pyro.plate("group", 2, dim=-2):
            mean = pyro.sample("group_mean", Normal(torch.tensor(0.0), 1.0))
        scale = pyro.sample("scale", HalfNormal(torch.tensor(1.0)))
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            level = pyro.sample("level", Normal(torch.tensor(0.0), 1.0))
            loc = (level + mean.sum(-2, keepdim=True))[..., None, None]
            noise = Normal(loc.expand(*loc.shape[:-2], 6, 1), scale[..., None, None]).to_event(2)
            pyro.sample("obs", noise, obs=data.values)

    result: Any
    if engine == "svi":
        result = from_svi(fit_svi(model, data, dataclasses.replace(SVI, start="prior")), num_draws=5)
    else:
        result = from_mcmc(fit_mcmc(model, data, dataclasses.replace(NUTS, start="prior")))
    posterior = get_group(result, "posterior")
    assert posterior["group_mean"].dims == ("chain", "draw", "group")
    assert posterior["level"].dims == ("chain", "draw", "trajectory")


def test_prior_draws_follow_the_prior() -> None:
    data = simulated("mass_spring")
    model = MassSpring(data)
    draws = prior_draws(model, data, 4000, seed=3)
    stiffness = draws["potential.stiffness"].log()
    # 4 standard errors: 4 x 1.5 / sqrt(4000) = 0.1 of the mean, 4 / sqrt(8000) = 4.5 % of the sd.
    assert float(stiffness.mean()) == pytest.approx(float(torch.tensor(3.0).log()), abs=0.1)
    assert float(stiffness.std()) == pytest.approx(1.5, rel=0.045)
    assert draws["initial_position"].shape == (4000, 3, 1)
    assert "obs" not in draws


def test_results_hold_their_chains_flat() -> None:
    draws = {"x": torch.arange(12.0).reshape(2, 3, 2)}
    result = MCMCResult(None, user_data(), draws, {}, torch.zeros(2))
    assert result.flat()["x"][3].tolist() == [6.0, 7.0]
