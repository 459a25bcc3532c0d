"""Draws and predictions: shapes, chunks, what is recomputed, and likelihoods entry by entry."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from example_data import ragged, simulated, with_gaps
from pyro import poutine
from pyro.distributions import HalfNormal, MultivariateNormal, Normal
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.draws import (
    collect,
    latent_sites,
    plate_nesting,
    pointwise_log_likelihood,
    predict,
    prototype,
    seeded,
    trace_batch,
    trajectory_log_prob,
)
from vinppl.models import Hierarchical, MassSpring, NoisyStates, Pendulum
from vinppl.posterior import prior_draws


def nested(data: Trajectories) -> None:
    """Sites of every kind: global, in one plate of two, in both, with and without events."""
    top = pyro.sample("top", Normal(torch.zeros(4), 1.0).to_event(1))
    scale = pyro.sample("scale", HalfNormal(torch.tensor(1.0)))
    outer = pyro.plate("group", 2, dim=-2)
    inner = pyro.plate("trajectory", data.num_trajectories, dim=-1)
    with outer:
        group = pyro.sample("group_mean", Normal(top.mean(-1), 1.0))
    with inner:
        level = pyro.sample("level", Normal(torch.zeros(5), 1.0).to_event(1))
    with outer, inner:
        both = pyro.sample("both", Normal(group + level.sum(-1), 1.0))
        loc = pyro.deterministic("loc", both.unsqueeze(-1) + data.times, event_dim=1)
        pyro.sample("obs", Normal(loc, scale.unsqueeze(-1)).to_event(1), obs=data.values[..., 0])


SHAPES = {"top": (4,), "scale": (), "group_mean": (2,), "level": (3, 5), "both": (2, 3)}


def test_shapes_hold_plates_and_events_and_nothing_else() -> None:
    data = simulated(observe=("position",))
    draws = prior_draws(nested, data, 7)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        name: (7, *shape) for name, shape in SHAPES.items()
    }
    predicted = predict(nested, draws, data)
    assert predicted["loc"].shape == (7, 2, 3, 12)
    assert predicted["obs"].shape == (7, 2, 3, 12)
    assert torch.allclose(predicted["loc"], draws["both"].unsqueeze(-1) + data.times)
    # The observed values broadcast over the outer plate.
    assert pointwise_log_likelihood(nested, draws, data)["obs"].shape == (7, 2, 3, 12)


def test_collect_agrees_with_a_trace() -> None:
    data = simulated(observe=("position",))
    trace = prototype(nested, data)
    assert plate_nesting(trace) == 2
    assert latent_sites(trace) == list(SHAPES)
    with seeded(3):
        ran = trace_batch(nested, (data,), 6, 2)
    draws = collect(ran, list(SHAPES), 6, 2)
    assert torch.equal(draws["group_mean"], ran.nodes["group_mean"]["value"][:, :, 0])
    assert torch.equal(draws["level"], ran.nodes["level"]["value"][:, 0])
    assert torch.equal(draws["scale"], ran.nodes["scale"]["value"][:, 0, 0])


@pytest.mark.parametrize("kind", [MassSpring, Hierarchical])
def test_one_draw_equals_a_plain_run(kind: type) -> None:
    data = simulated("mass_spring")
    model = kind(data)
    draws = prior_draws(model, data, 3, seed=2)
    states = predict(model, draws, data, sites=["states"])["states"]
    for i in range(3):
        conditioned = poutine.condition(model, {name: value[i] for name, value in draws.items()})
        trace = poutine.trace(conditioned).get_trace(data)
        # Pendulums of the prior can be chaotic; one step differs by rounding of the batched arithmetic.
        assert torch.allclose(states[i], trace.nodes["states"]["value"], rtol=1e-9, atol=1e-9)


def test_what_is_computed_does_not_depend_on_chunks() -> None:
    data = with_gaps(simulated("mass_spring"))
    model = MassSpring(data)
    draws = prior_draws(model, data, 10)
    whole, parts = (predict(model, draws, data, chunk_size=size) for size in (250, 3))
    assert set(whole) == {"states", "energy", "obs"}
    for name in ("states", "energy"):
        assert torch.allclose(whole[name], parts[name], rtol=1e-12)
    assert whole["obs"].shape == parts["obs"].shape
    whole, parts = (pointwise_log_likelihood(model, draws, data, chunk_size=size) for size in (250, 3))
    assert torch.allclose(whole["obs"], parts["obs"], rtol=1e-9)


def test_predictions_are_reproducible_and_leave_the_global_stream() -> None:
    data = simulated("mass_spring")
    model = MassSpring(data)
    draws = prior_draws(model, data, 4)
    state = torch.random.get_rng_state()
    first, second, third = (predict(model, draws, data, seed=s)["obs"] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(state, torch.random.get_rng_state())


def test_deterministic_sites_among_the_draws_are_ignored() -> None:
    data = simulated("mass_spring")
    model = MassSpring(data)
    draws = prior_draws(model, data, 4)
    right = predict(model, draws, data)
    wrong = {**draws, "states": torch.full_like(right["states"], 99.0), "obs": right["obs"] + 99.0}
    for name, value in predict(model, wrong, data).items():
        assert torch.equal(value, right[name]), name
    longer = simulated("mass_spring", num_times=30)
    assert predict(model, wrong, longer)["states"].shape == (4, 3, 30, 2)
    assert torch.equal(predict(model, wrong, longer)["states"][:, :, :12], right["states"])


def test_predictive_noise_has_the_models_scale() -> None:
    data = simulated("mass_spring", num_times=200)
    model = MassSpring(data)
    draws = {
        name: value[:1].expand(50, *value.shape[1:]) for name, value in prior_draws(model, data, 1).items()
    }
    predicted = predict(model, draws, data)
    residual = predicted["obs"] - predicted["states"]
    # 50 x 3 x 200 values: 4 standard errors are 4 / sqrt(60000) = 1.6 %.
    expected = draws["noise_scale"][0]
    assert torch.allclose(residual.std((0, 1, 2)) / expected, torch.ones(2), atol=0.017)


def test_noise_free_predictions_are_the_means_of_noisy_ones() -> None:
    data = simulated("mass_spring")
    model = MassSpring(data, MassSpring.Config(noise="student_t"))
    draws = prior_draws(model, data, 3)
    mean = predict(model, draws, data, observed="means")
    noisy = predict(model, draws, data)
    assert set(mean) == set(noisy)
    assert torch.equal(mean["states"], noisy["states"])
    assert torch.equal(mean["obs"], mean["states"])  # both states are measured
    assert not torch.equal(mean["obs"], noisy["obs"])


def test_a_missing_site_is_named() -> None:
    data = simulated("mass_spring")
    model = MassSpring(data)
    draws = prior_draws(model, data, 2)
    del draws["potential.stiffness"]
    with pytest.raises(ValueError, match=r"every latent site of the model; got none of potential\.stiffness"):
        predict(model, draws, data)


# Likelihoods


def plain(data: Trajectories, loc: Tensor) -> None:
    pyro.sample("obs", Normal(loc, 0.7).to_event(2), obs=data.values)


def masked_distribution(data: Trajectories, loc: Tensor) -> None:
    noise = Normal(loc, 0.7).mask(data.mask).to_event(2)
    pyro.sample("obs", noise, obs=data.values)


def masked_after(data: Trajectories, loc: Tensor) -> None:
    seen = data.mask.all(-1).all(-1)
    pyro.sample("obs", Normal(loc, 0.7).to_event(2).mask(seen), obs=data.values)


def masked_by_a_handler(data: Trajectories, loc: Tensor) -> None:
    seen = data.mask.all(-1).all(-1)
    with poutine.mask(mask=seen):
        pyro.sample("obs", Normal(loc, 0.7).to_event(2), obs=data.values)


def correlated(data: Trajectories, loc: Tensor) -> None:
    noise = MultivariateNormal(loc, torch.eye(2) + 0.5).to_event(1)
    pyro.sample("obs", noise, obs=data.values)


LIKELIHOODS = [plain, masked_distribution, masked_after, masked_by_a_handler, correlated]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_pointwise_log_likelihoods_sum_to_the_log_density(likelihood: Any) -> None:
    data = simulated("mass_spring")
    mask = data.mask.clone()
    mask[1, 3, 0] = False
    data.mask.copy_(mask)

    def model(data: Trajectories) -> None:
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            level = pyro.sample("level", Normal(torch.tensor(0.0), 1.0))
            likelihood(data, level[..., None, None] + 0 * data.values)

    draws = prior_draws(model, data, 5)
    pointwise = pointwise_log_likelihood(model, draws, data)["obs"]
    expected = (5, 3, 12) if likelihood is correlated else (5, 3, 12, 2)
    assert pointwise.shape == expected
    for i in range(5):
        trace = poutine.trace(poutine.condition(model, {"level": draws["level"][i]})).get_trace(data)
        trace.compute_log_prob()
        assert float(pointwise[i].sum()) == pytest.approx(float(trace.nodes["obs"]["log_prob_sum"]))
    if likelihood is masked_distribution:
        assert bool((pointwise[:, 1, 3, 0] == 0).all())


@pytest.mark.parametrize("noise", ["gaussian", "student_t", "ar1"])
def test_pointwise_log_likelihood_of_the_suite(noise: Any) -> None:
    data = with_gaps(simulated())
    model = Pendulum(data, Pendulum.Config(noise=noise))
    draws = prior_draws(model, data, 3)
    pointwise = pointwise_log_likelihood(model, draws, data)["obs"]
    assert pointwise.shape == (3, 3, 12, 2)
    assert bool((pointwise[:, ~data.mask] == 0).all())
    for i in range(3):
        conditioned = poutine.condition(model, {name: value[i] for name, value in draws.items()})
        trace = poutine.trace(conditioned).get_trace(data)
        trace.compute_log_prob()
        expected = float(trace.nodes["obs"]["log_prob_sum"])
        assert float(pointwise[i].sum()) == pytest.approx(expected, rel=1e-6)


# Densities of trajectories

MODELS = {
    "spring": lambda d: MassSpring(d),
    "pendulum, noise with memory": lambda d: Pendulum(d, Pendulum.Config(noise="ar1")),
    "point estimates": lambda d: NoisyStates(d, NoisyStates.Config(hidden_sizes=(4,))),
    "random features": lambda d: NoisyStates(
        d, NoisyStates.Config(potential="random_features", num_features=5)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
def test_densities_of_trajectories_add_up(name: str) -> None:
    data = ragged(with_gaps(simulated("mass_spring")))
    model = MODELS[name](data)
    draws = prior_draws(model, data, 4)
    found = trajectory_log_prob(model, draws, data)
    assert found.shape == (4, 3)
    for i in range(4):
        conditioned = poutine.condition(model, {site: value[i] for site, value in draws.items()})
        with torch.no_grad():
            trace = poutine.trace(conditioned).get_trace(data)
            trace.compute_log_prob()
        own = ("initial_position", "initial_velocity", "obs")
        by_hand = torch.stack([trace.nodes[site]["log_prob"] for site in own]).sum(0)
        # One step of a batch differs from one alone by rounding, which a large residual over a small noise
        # scale magnifies.
        torch.testing.assert_close(found[i], by_hand, rtol=1e-8, atol=1e-8)
        shared = sum(trace.nodes[site]["log_prob_sum"] for site in draws if site not in own)
        assert float(found[i].sum() + shared) == pytest.approx(float(trace.log_prob_sum()), rel=1e-8)


def test_densities_of_trajectories_use_the_learned_parameters() -> None:
    data = simulated("mass_spring")
    first, second = (MODELS["point estimates"](data) for _ in range(2))
    draws = prior_draws(first, data, 3)
    parameters = {k: v.detach() + 0.3 for k, v in first.named_parameters()}
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            parameter.copy_(parameters[name])
    pyro.clear_param_store()
    expected = trajectory_log_prob(second, draws, data)
    pyro.clear_param_store()
    assert not torch.allclose(trajectory_log_prob(first, draws, data), expected)
    found = trajectory_log_prob(first, draws, data, parameters=stored(parameters))
    assert torch.equal(found, expected)


def stored(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters by the names under which Pyro stores them."""
    return {name.removeprefix("vin.").removesuffix("_unconstrained"): v for name, v in parameters.items()}


def test_a_model_with_other_plates_has_no_densities_of_trajectories() -> None:
    data = simulated(observe=("position",))
    draws = prior_draws(nested, data, 2)
    with pytest.raises(ValueError, match="trajectories must be the only plate of the model; got 2 plates"):
        trajectory_log_prob(nested, draws, data)


def test_the_energy_of_draws_is_computed_only_for_those_who_ask() -> None:
    data = simulated("pendulum", num_times=8)
    model = Pendulum(data)
    asked = []  # whether a batch of draws was, and not just the one run that shows the model's sites
    energy = model.vin.energy
    model.vin.energy = lambda path: asked.append(path.q.ndim > 3) or energy(path)
    draws = prior_draws(model, data, 3)
    asked.clear()
    assert set(predict(model, draws, data, sites=["obs", "states"])) == {"obs", "states"}
    pointwise_log_likelihood(model, draws, data)
    trajectory_log_prob(model, draws, data)
    assert not any(asked)
    assert "energy" in predict(model, draws, data, sites=["energy"])
    assert "energy" in predict(model, draws, data)
    assert sum(asked) == 2
