"""Frames without dynamics: the bound of VAE and LG-VAE, what they learn, and that they do not forecast."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from vinppl.data import Trajectories
from vinppl.draws import latent_sites, predict, prototype
from vinppl.errors import DataError
from vinppl.export import get_group, read_result, write_result
from vinppl.fit import SVIOptions, SVIResult, fit_svi
from vinppl.forecast import extend, forecast
from vinppl.guides import AmortisedGuide
from vinppl.latents import circular_correlation
from vinppl.manifolds import Manifold
from vinppl.models import PixelVAE, PixelVAEConfig
from vinppl.posterior import from_svi
from vinppl.render import film, simulate_clips
from vinppl.vision import PositionEncoder

KINDS = [(False, 1), (False, 2), (True, 1), (True, 2)]

pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")


def build(data: Trajectories, circle: bool = False, dim: int = 1, **options: Any) -> PixelVAE:
    pyro.clear_param_store()
    options = {"hidden_sizes": (16,), "decoder_sizes": (16,), **options}
    return PixelVAE(data, PixelVAEConfig(circle=circle, dim=dim, **options))


def clips(num_clips: int = 2, num_times: int = 8, **options: Any) -> Trajectories:
    data, _ = simulate_clips("pendulum", num_clips=num_clips, num_times=num_times, size=12, **options)
    return data


def turning(count: int = 40) -> tuple[Trajectories, torch.Tensor]:
    """A pendulum whose angle goes round the whole circle once and a half, in even steps."""
    angle = torch.linspace(-math.pi, 2 * math.pi, count)
    return Trajectories.from_frames(film("pendulum", angle[None, :, None], size=12), 0.1), angle


def test_equations_name_the_position() -> None:
    equations = build(clips()).equations()
    assert equations.symbol("position") == "q_t"
    assert any("Bernoulli(g_φ(q_t))" in line for line in equations.lines)


@pytest.mark.parametrize(("circle", "dim"), KINDS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_sites_and_shapes(circle: bool, dim: int, likelihood: str, network: str) -> None:
    data = clips()
    model = build(data, circle, dim, likelihood=likelihood, network=network)
    trace = prototype(model, data)
    expected = ["position"] + ["noise_scale"] * (likelihood == "gaussian")
    assert latent_sites(trace) == expected
    assert trace.nodes["position"]["value"].shape == (2, 8, dim)
    assert trace.nodes["obs"]["value"].shape == data.values.shape
    encoder = model.make_encoder(data)
    model.pretrain(data, encoder)
    draws = poutine.block(AmortisedGuide(model, data, encoder=encoder))(data)
    assert set(draws) == set(expected)
    many = {name: torch.stack([trace.nodes[name]["value"]] * 3) for name in expected}
    assert predict(model, many, data, sites=["obs"])["obs"].shape == (3, *data.values.shape)
    assert model.decode(torch.zeros(5, dim)).shape == (5, 12, 12)


@pytest.mark.parametrize(("circle", "dim"), KINDS)
def test_the_bound_has_its_divergence_in_closed_form(circle: bool, dim: int) -> None:
    """The bound with the closed form is that by Monte Carlo, and less noisy."""
    data = clips(1, 6)
    model = build(data, circle, dim)
    guide = AmortisedGuide(model, data, encoder=model.make_encoder(data))
    options: dict[str, Any] = {"num_particles": 500, "vectorize_particles": True, "max_plate_nesting": 1}
    with torch.no_grad():
        closed = [TraceMeanField_ELBO(**options).loss(model, guide, data) for _ in range(4)]
        sampled = [Trace_ELBO(**options).loss(model, guide, data) for _ in range(4)]
        divergence = torch.distributions.kl_divergence(
            poutine.trace(guide).get_trace(data).nodes["position"]["fn"],
            poutine.trace(model).get_trace(data).nodes["position"]["fn"],
        )
    assert divergence.shape == (1,)
    assert float(divergence) > 0
    spread = torch.tensor(sampled).std() + torch.tensor(closed).std()
    assert abs(sum(closed) - sum(sampled)) / 4 < 4 * float(spread)


def test_a_frame_that_was_not_seen_keeps_the_prior() -> None:
    data = clips(1, 6)
    mask = data.mask.clone()
    mask[0, 3, :5] = False
    part = dataclasses.replace(data, mask=mask, values=data.values * mask)
    for circle in (False, True):
        with torch.no_grad():
            found = build(data, circle).make_encoder(data)(part)
        assert float(found.scale[0, 3]) == pytest.approx(2 * math.pi if circle else 1.0)
        assert float(found.loc[0, 3]) == 0.0
        assert float(found.scale[0, 2]) < 1.0


def mean_image_loss(data: Trajectories) -> float:
    """Return the negative log likelihood of the best constant image, in nats."""
    p = data.frames.mean((0, 1))
    return -float((torch.xlogy(data.frames, p) + torch.xlogy(1 - data.frames, 1 - p)).sum())


def fitted(circle: bool, num_steps: int, **options: Any) -> tuple[SVIResult, Trajectories, torch.Tensor]:
    data, angle = turning()
    model = build(data, circle, hidden_sizes=(32,), decoder_sizes=(32,), **options)
    settings = SVIOptions(
        num_steps=num_steps, num_particles=2, check_every=20, learning_rate=0.01, final_learning_rate=0.002
    )
    return fit_svi(model, data, settings), data, angle


@pytest.mark.parametrize("circle", [False, True])
def test_training_beats_a_constant_image(circle: bool) -> None:
    result, data, angle = fitted(circle, 300)
    assert result.best_loss < 0.8 * mean_image_loss(data)
    q = result.sample(50)["position"]
    assert q.shape == (50, 1, 40, 1)
    with torch.no_grad():
        error = (result.model.decode(q).mean(0) - data.frames).square().mean()
        assert float(error) < 0.7 * float((data.frames - data.frames.mean((0, 1))).square().mean())
    if circle:
        assert bool((q.abs() <= math.pi).all())
        r = circular_correlation(q[0, 0, :, 0], angle, uniform=True)
        assert -1 <= r <= 1


@pytest.mark.slow
def test_an_angle_for_each_frame_follows_the_true_one() -> None:
    """Of several starts the one with the best bound has found the circle."""
    fits = [fitted(True, 1500, network_seed=seed) for seed in range(4)]
    result, _, angle = min(fits, key=lambda fit: fit[0].best_loss)
    q = result.guide.encoder(result.data).loc[0, :, 0].detach()
    assert abs(circular_correlation(q, angle, uniform=True)) > 0.9


def test_the_result_goes_to_arviz_and_is_not_forecast(tmp_path: Path) -> None:
    data = clips(2, 12, levels="grey")
    model = build(data.first(8), True)
    result = fit_svi(model, data.first(8), SVIOptions(num_steps=6, window=4, num_particles=2, check_every=2))
    assert result.data.num_times == 8, "frames are read one by one"
    file = tmp_path / "result.nc"
    write_result(from_svi(result, num_draws=20), file)
    posterior = get_group(read_result(file), "posterior")
    assert posterior["position"].dims == ("chain", "draw", "trajectory", "time", "latent")
    assert posterior["position"].shape == (1, 20, 2, 8, 1)
    assert result.sample(3, data=data.last(4))["position"].shape == (3, 2, 4, 1)
    future = extend(data.first(8), horizon=0.0, held_out=data.last(4))
    with pytest.raises(DataError, match=r"position must have the shape \(2, 12, 1\).*without dynamics"):
        forecast(model, result.sample(3), data.first(8), future, parameters=result.parameters)


def test_bad_options_are_named() -> None:
    states = Trajectories.from_arrays(torch.arange(5.0), torch.arange(5.0))
    with pytest.raises(DataError, match="frames"):
        PixelVAE(states)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        PixelVAE(clips(), PixelVAEConfig(dim=0))
    with pytest.raises(ValueError, match="all coordinates must be angles"):
        PositionEncoder((12, 12), Manifold((True, False)))
