"""Models of films: the evidence lower bound, its parts, and a fit that sees the motion."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from example_data import misfit
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats

from vinppl.data import Trajectories
from vinppl.draws import latent_sites, predict, prototype
from vinppl.errors import DataError
from vinppl.export import get_group, read_result, write_result
from vinppl.fit import SVIOptions, fit_motion, fit_svi
from vinppl.forecast import extend, forecast
from vinppl.frame_scores import film_arrays, film_scores
from vinppl.guides import AmortisedGuide
from vinppl.models import PixelFree, PixelFreeConfig, PixelVAE, PixelVIN, PixelVINConfig
from vinppl.posterior import from_svi, prior_draws
from vinppl.render import degrade, simulate_clips
from vinppl.render import film as render
from vinppl.state import PhaseState
from vinppl.systems import system

MODELS = (PixelVIN, PixelFree)
TINY = {"hidden_sizes": (16,), "num_taught": 60}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Encountered NaN"),
    pytest.mark.filterwarnings("ignore:the model has point-estimated parameters"),
]


def film(num_clips: int = 2, num_times: int = 24, system: str = "pendulum", **options: Any) -> Trajectories:
    data, _ = simulate_clips(system, num_clips=num_clips, num_times=num_times, size=12, **options)
    return data


def build(kind: Any, data: Trajectories, **options: Any) -> Any:
    pyro.clear_param_store()
    names = {field.name for field in dataclasses.fields(kind.Config)}
    return kind(data, kind.Config(**{k: v for k, v in (TINY | options).items() if k in names}))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_sites_and_shapes(kind: Any, likelihood: str, network: str) -> None:
    data = film()
    model = build(kind, data, likelihood=likelihood, network=network)
    trace = prototype(model, data)
    expected = ["initial_position", "initial_velocity"] + ["noise_scale"] * (likelihood == "gaussian")
    assert sorted(latent_sites(trace)) == expected
    assert trace.nodes["obs"]["value"].shape == data.values.shape
    draws = {name: torch.stack([trace.nodes[name]["value"]] * 3) for name in expected}
    predicted = predict(model, draws, data, sites=["obs", "states"])
    assert predicted["obs"].shape == (3, *data.values.shape)
    assert predicted["states"].shape == (3, 2, 24, 2)


@pytest.mark.parametrize("kind", MODELS)
def test_equations_follow_the_options(kind: Any) -> None:
    data = film(levels="grey")
    model = build(kind, data)
    equations = model.equations()
    whole = "\n".join(equations.lines)
    assert "Normal(g_φ(" in whole
    for site in latent_sites(prototype(model, data)):
        assert equations.symbol(site) in whole, site
    assert "Bernoulli(g_φ(" in "\n".join(build(kind, film()).equations().lines)


def test_likelihood_follows_the_frames() -> None:
    grey, binary = film(levels="grey"), film()
    assert "noise_scale" in prototype(build(PixelVIN, grey), grey).nodes
    assert "noise_scale" not in prototype(build(PixelVIN, binary), binary).nodes


@pytest.mark.parametrize("integrator", ["so2", "velocity_verlet", "stormer_verlet"])
def test_the_decoder_sees_positions_alone(integrator: str) -> None:
    data = film()
    model = build(PixelVIN, data, integrator=integrator)
    q = torch.randn(4, 1)
    torch.testing.assert_close(model.logits(q, torch.zeros(4, 1)), model.logits(q, torch.ones(4, 1)))
    q = torch.tensor([[0.3], [0.3 + 2 * math.pi]])
    same = torch.allclose(*model.decode(q), atol=1e-5)
    assert same == (integrator == "so2")


def test_the_bound_is_that_of_the_paper() -> None:
    """Equation (16): the expected log likelihood minus the divergence of two normals, in closed form."""
    data = film(num_times=10)
    model = build(PixelVIN, data)
    guide = AmortisedGuide(model, data, encoder=model.make_encoder(data))
    with torch.no_grad():
        torch.nn.init.normal_(guide.encoder.head.weight, std=0.1)
        found = guide.encoder(data)
        elbo = TraceMeanField_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
        bound = -elbo.loss(model, guide, data)
        # by hand: q ~ N(m_q, s_q), v | q ~ N(m_v + b (q - m_q), s_v)
        (mq, mv), (sq, sv) = found.loc.chunk(2, -1), found.scale.chunk(2, -1)
        prior = [model.q_scale, model.v_scale]
        square = [sq.square() + mq.square(), sv.square() + (found.coupling * sq).square() + mv.square()]
        divergence = sum(
            (p / s).log() + m / (2 * p.square()) - 0.5
            for p, s, m in zip(prior, (sq, sv), square, strict=True)
        ).sum()
        torch.manual_seed(1)
        q = mq + sq * torch.randn(400, *mq.shape)
        v = mv + found.coupling * (q - mq) + sv * torch.randn(400, *mv.shape)
        path = predict(model, {"initial_position": q, "initial_velocity": v}, data, sites=["states"])
        p = model.decode(path["states"][..., :1]).clamp(1e-6, 1 - 1e-6)
        y = data.frames
        likelihood = (y * p.log() + (1 - y) * (1 - p).log()).sum((1, 2, 3, 4))
    expected = float(likelihood.mean() - divergence)
    error = float(likelihood.std()) / 20
    assert abs(bound - expected) < 5 * error + 1e-3 * abs(expected)


@pytest.mark.parametrize("kind", MODELS)
def test_decoding_a_part_of_the_frames_is_unbiased(kind: Any) -> None:
    data = film(num_times=8)
    model = build(kind, data, num_decoded=2)
    guide = AmortisedGuide(model, data, encoder=model.make_encoder(data))
    elbo = Trace_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace(data)

    def density() -> float:
        run = poutine.block(poutine.trace(poutine.replay(model, trace)).get_trace)(data)
        return float(run.log_prob_sum(lambda name, _: name == "obs").detach())

    whole = density()
    model.train()
    parts = torch.tensor([density() for _ in range(400)])
    model.eval()
    assert float(parts.std()) > 0
    assert abs(float(parts.mean()) - whole) < 4 * float(parts.std()) / 20
    assert math.isfinite(elbo.loss(model, guide, data))


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_gets_a_gradient(kind: Any) -> None:
    data = film(num_times=10)
    model = build(kind, data)
    guide = AmortisedGuide(model, data, encoder=model.make_encoder(data))
    torch.nn.init.normal_(guide.encoder.head.weight, std=0.1)
    elbo = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    with poutine.trace(param_only=True) as capture:
        elbo.differentiable_loss(model, guide, data).backward()
    names = [name for name, site in capture.trace.nodes.items() if site["type"] == "param"]
    assert len(names) >= 12
    for name in names:
        gradient = capture.trace.nodes[name]["value"].unconstrained().grad
        assert gradient is not None, name
        assert bool(torch.isfinite(gradient).all()), name


@pytest.mark.parametrize(("scatter", "bend"), [(0.05, 0.0), (0.01, 0.1)])
def test_a_motion_that_mechanics_can_follow_replaces_rough_positions(scatter: float, bend: float) -> None:
    data, truth = simulate_clips("mass_spring", num_clips=4, num_times=40, size=12)
    noise = torch.randn(truth.q.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    read = truth.q + bend * (2 * truth.q).sin() + scatter * noise
    positions = Trajectories.from_arrays(data.times, read)
    pyro.clear_param_store()
    model = build(PixelVIN, data, integrator="velocity_verlet")
    path, sites = fit_motion(model.vin, positions)
    assert sites == {}
    assert path.q.dtype == positions.values.dtype
    assert misfit(path.q, truth.q) < 0.5 * misfit(read, truth.q)


def test_damping_of_a_film_starts_from_its_motion() -> None:
    """A free coordinate has its own unit, but damping is a rate: c / m of the system, 0.3 here."""
    rate = 0.3
    damped = system("mass_spring", damping=rate)
    times = 0.1 * torch.arange(60)
    initial = PhaseState(torch.tensor([[1.5], [0.3], [-1.0]]), torch.tensor([[0.0], [2.0], [1.0]]))
    path = damped.solve(initial, times)
    frames = render("mass_spring", path.q, size=12, levels="grey")
    data = Trajectories.from_frames(frames, times.expand(3, -1))
    model = build(PixelVIN, data, integrator="velocity_verlet", damping=(0.1, 1.0))
    model.pretrain(data, model.make_encoder(data))
    values = model.initial_values(data)
    assert set(values) == {"damping.coefficient", "noise_scale"}
    assert float(values["damping.coefficient"]) == pytest.approx(rate, rel=0.2)
    assert 0.001 < float(values["noise_scale"]) < 0.2


def mean_image_error(data: Trajectories) -> float:
    """Return the RMSE of a constant image, the yardstick of a forecast."""
    mean = data.frames.mean((0, 1))
    return float((data.frames - mean).square().sum((-1, -2)).sqrt().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("system", "integrator"), [("mass_spring", "stormer_verlet"), ("pendulum", "so2")])
def test_a_clip_is_foretold_from_its_first_second(system: str, integrator: str) -> None:
    """The paper's protocol: 50 frames from the state inferred on the first 10 of the training clip."""
    data = simulate_clips(system, num_clips=1, num_times=60, seed=3)[0].to(dtype=torch.float32)
    model = build(PixelVIN, data, integrator=integrator, hidden_sizes=(256, 256), num_taught=1500)
    options = SVIOptions(num_steps=300, window=10, final_window=40, num_particles=4, learning_rate=1e-4)
    result = fit_svi(model, data, options)
    draws = result.sample(20, data=data.first(10))
    states = predict(model, draws, data, sites=["states"], parameters=result.parameters)["states"]
    with torch.no_grad():
        frames = model.decode(states[..., :1]).mean(0)
    error = (frames - data.frames)[0, 10:].square().sum((-1, -2)).sqrt().mean()
    assert float(error) < 0.6 * mean_image_error(data)


def test_a_fit_and_its_forecast_go_to_arviz(tmp_path: Path) -> None:
    data = film(2, 30, "mass_spring")
    train, later = data.first(20), data.last(10)
    model = build(PixelVIN, train, integrator="stormer_verlet")
    options = SVIOptions(num_steps=12, window=5, final_window=20, num_particles=2, check_every=3)
    result = fit_svi(model, train, options)
    assert not model.training
    assert result.data.num_times == 10, "forecasts start from the frames that the guide reads"
    future = extend(result.data, horizon=0.0, held_out=later)
    found = forecast(model, result.sample(5), result.data, future, parameters=result.parameters)
    assert get_group(found, "predictions")["obs"].shape == (1, 5, 2, 20, 144)
    file = tmp_path / "result.nc"
    write_result(from_svi(result, num_draws=20), file)
    assert get_group(read_result(file), "observed_data")["obs"].shape == (2, 10, 144)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_forecast_holds_mean_frames_and_their_densities(likelihood: str) -> None:
    data = film(2, 12, "mass_spring")
    mask = data.mask.clone()
    mask[1, 7], mask[0, 9, :3] = False, False
    data = dataclasses.replace(data, mask=mask, values=data.values * mask)
    train, later = data.first(6), data.last(6)
    model = build(PixelVIN, train, integrator="stormer_verlet", likelihood=likelihood, num_context=6)
    draws = prior_draws(model, train, 7)
    future = extend(train, horizon=0.8, held_out=later)
    found = forecast(model, draws, train, future, chunk_size=3)
    arrays = film_arrays(found)
    states = predict(model, draws, future, sites=["states"])["states"]
    with torch.no_grad():
        levels = model.decode(states[..., :1]).flatten(-2)
        mean = {name: value.mean(0, keepdim=True) for name, value in draws.items()}
        path = predict(model, mean, future, sites=["states"])["states"]
        at_mean = model.decode(path[..., :1]).flatten(-2)[0]
    # Beyond the 6 frames that were fitted, twice, the motion may have lapsed into the mean frame.
    holds = (1 + 12) / (1 + 12 + np.maximum(0, np.arange(1, future.num_times + 1) - 6))
    still = train.values.mean((0, 1)).clamp(1e-3, 1 - 1e-3).numpy()
    mixed = holds[:, None] * levels.numpy() + (1 - holds)[:, None] * still
    np.testing.assert_allclose(arrays.levels, mixed, rtol=1e-6)
    more = film_arrays(forecast(model, draws, train, future, trained=data)).levels[:, :, -1]
    longer, level = 24 / (24 + future.num_times - 6), data.values[data.mask.all(-1)].mean(0)
    expected = longer * levels[:, :, -1] + (1 - longer) * level.clamp(1e-3, 1 - 1e-3)
    np.testing.assert_allclose(more, expected, rtol=1e-6)
    assert torch.allclose(torch.as_tensor(arrays.levels_at_mean), at_mean)
    assert torch.allclose(torch.as_tensor(arrays.states_at_mean), path[0])
    if likelihood == "gaussian":
        scale = draws["noise_scale"].numpy().reshape(7, 1, 1, 1)
        scatter = train.values.flatten(0, 1).std(0, correction=0).clamp_min(0.01).numpy()
        pixels = stats.norm.logpdf(arrays.truth, levels.numpy(), scale)
        background = stats.norm.logpdf(arrays.truth, still, scatter)
    else:
        pixels = stats.bernoulli.logpmf(np.nan_to_num(arrays.truth), levels.numpy())
        background = stats.bernoulli.logpmf(np.nan_to_num(arrays.truth), still)
    missing, unseen = np.isnan(arrays.truth), np.isnan(arrays.truth).all(-1)
    moving, lapsed = (np.where(missing, 0.0, each).sum(-1) for each in (pixels, background))
    with np.errstate(divide="ignore"):
        by_hand = np.logaddexp(np.log(holds) + moving, np.log(1 - holds) + lapsed)
    by_hand = np.where(unseen, np.nan, by_hand)
    np.testing.assert_allclose(arrays.log_likelihood, by_hand, rtol=1e-4)
    assert unseen.sum(1).tolist() == [2, 3], "no frames beyond those held out, and a gap"
    assert film_scores(found)["num_frames"].iloc[-1] == 11, "one frame was not filmed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [*MODELS, PixelVAE])
def test_a_film_on_a_gpu(kind: Any, tmp_path: Path) -> None:
    data = film(num_times=40).to("cuda")
    train, held_out = data.split_by_time(0.6)
    model = build(kind, train)
    result = fit_svi(model, train, SVIOptions(num_steps=4, check_every=2))
    draws = result.sample(5)
    assert {value.device.type for value in draws.values()} == {"cuda"}
    if kind is not PixelVAE:
        future = extend(train, held_out=held_out, horizon=0.0)
        ahead = forecast(model, draws, train, future, parameters=result.parameters)
        assert film_scores(film_arrays(ahead)).notna().any(axis=None)
    write_result(from_svi(result, num_draws=5), tmp_path / "result.nc")


def test_grey_noisy_film_of_a_free_network() -> None:
    data = film(1, 24, "mass_spring", levels="grey")
    data = Trajectories.from_frames(degrade(data.frames, noise=0.05), data.times[0])
    model = build(PixelFree, data, dynamics_sizes=(20,), num_taught=20)
    result = fit_svi(model, data, SVIOptions(num_steps=20, window=10, num_particles=2))
    draws = result.sample(10)
    assert set(draws) == {"initial_position", "initial_velocity", "noise_scale"}
    assert math.isfinite(result.best_loss)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_not_a_film_is_refused(kind: Any) -> None:
    data = Trajectories.from_arrays(torch.arange(5.0), torch.arange(5.0))
    with pytest.raises(DataError, match="frames"):
        kind(data)


def test_bad_options_are_named() -> None:
    data = film()
    with pytest.raises(ValueError, match="likelihood must be one of"):
        PixelVIN(data, PixelVINConfig(likelihood="poisson"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dynamics must be one of"):
        PixelFree(data, PixelFreeConfig(dynamics="ode"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_decoded"):
        PixelVIN(data, PixelVINConfig(num_decoded=-1))
