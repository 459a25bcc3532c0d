"""Forecasts of films: a model whose pictures and law are exact, and a guide that is sure and wrong."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, LogNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.backgrounds import background_of, background_scatter
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.encoders import InitialPosterior
from vinppl.film_forecast import FilmForecast, forecast_films
from vinppl.forces import LinearDamping
from vinppl.frame_scores import film_scores
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid

SIDE = 8
CENTRES = torch.linspace(-1.4, 1.4, SIDE * SIDE, dtype=torch.float64)


class Lamps(PyroModule):
    """A row of lamps, of which those near a spring's mass are lit."""

    def __init__(self) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(2.0))

    def forward(self, data: Trajectories) -> None:
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            q = pyro.sample("initial_position", Normal(torch.zeros(1), 1.0).to_event(1))
            v = pyro.sample("initial_velocity", Normal(torch.zeros(1), 1.5).to_event(1))
            path = self.run(PhaseState(q, v), data)
            frames = Bernoulli(logits=self.logits(path.q, path.v)).to_event(2)
            pyro.sample("obs", frames, obs=data.values)

    def run(self, initial: PhaseState, data: Trajectories) -> Trajectory:
        return self.vin(initial, data.grid())

    def logits(self, q: Tensor, v: Tensor) -> Tensor:
        return 40.0 * (0.25 - (q - CENTRES).abs())


class GreyLamps(Lamps):
    """The same, damped, with soft edges and noise of unknown size."""

    def __init__(self) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(2.0), forces=[LinearDamping(LogNormal(-1.0, 1.0))])

    def forward(self, data: Trajectories) -> None:
        noise = pyro.sample("noise_scale", LogNormal(-2.0, 1.0))
        plate = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with plate:
            q = pyro.sample("initial_position", Normal(torch.zeros(1), 1.0).to_event(1))
            v = pyro.sample("initial_velocity", Normal(torch.zeros(1), 1.5).to_event(1))
        path = self.run(PhaseState(q, v), data)
        frames = Normal(self.logits(path.q, path.v).sigmoid(), noise[..., None, None]).to_event(2)
        with plate:
            pyro.sample("obs", frames, obs=data.values)

    def logits(self, q: Tensor, v: Tensor) -> Tensor:
        return 10.0 * (0.25 - (q - CENTRES).abs())


TRUE = torch.tensor([[1.0, 0.3], [-0.6, 0.9]], dtype=torch.float64)


@pytest.fixture
def films() -> Trajectories:
    with torch.no_grad():
        path = Lamps().vin(PhaseState(TRUE[:, :1], TRUE[:, 1:]), TimeGrid.regular(40, 0.1))
        frames = (Lamps().logits(path.q, path.v) > 0).to(path.q)
    return Trajectories.from_frames(frames.unflatten(-1, (SIDE, SIDE)), path.time.expand(2, -1))


def a_guide(error: float = 0.0) -> Any:
    """Return a guide that reads the true states, off by `error`, and is sure of it."""

    def read(data: Trajectories) -> InitialPosterior:
        return InitialPosterior(TRUE + error, torch.full_like(TRUE, 0.05), torch.zeros(2, 1))

    return SimpleNamespace(encoder=read)


def forecast(films: Trajectories, guide: Any, trained: Trajectories | None = None) -> FilmForecast:
    return forecast_films(
        Lamps(), guide, films, trained=films if trained is None else trained, num_proposals=600
    )


def test_a_forecast_finds_the_states_that_the_guide_gets_wrong(films: Trajectories) -> None:
    found = forecast(films, a_guide(error=0.15))
    assert found.states.shape == (100, 2, 40, 2)
    sd = found.states[:, :, 0].std(0)
    assert bool(((found.states[:, :, 0].mean(0) - TRUE).abs() < 4 * sd + 1e-3).all())
    assert float(sd.max()) < 0.05
    assert float(found.effective_sizes.min()) > 30
    for n in range(2):
        error = (found.levels(n) - films.values[n]).square().sum(-1).sqrt()
        still = (background_of(films) - films.values[n]).square().sum(-1).sqrt()
        assert bool((error < still).all())
        assert float(error.mean()) < 0.5 * float(still.mean())


def test_within_the_frames_of_its_training_a_model_holds(films: Trajectories) -> None:
    found = forecast_films(Lamps(), a_guide(), films, trained=films.first(30), continues=True)
    torch.testing.assert_close(found.holds[..., :30], torch.ones(100, 2, 30, dtype=torch.float64))
    assert float(found.holds[..., -1].max()) == pytest.approx(61 / 71)


def test_the_log_density_is_that_of_a_mixture_of_motion_and_background(films: Trajectories) -> None:
    found = forecast(films, a_guide(), films.first(30))
    frames = films.values[0]
    draws, lapsed = (
        Bernoulli(logits=found.model.logits(found.states[:, 0, :, :1], found.states[:, 0, :, 1:])),
        Bernoulli(found.background),
    )
    holds = found.holds[:, 0]
    mixed = holds * draws.log_prob(frames).sum(-1).exp() + (1 - holds) * lapsed.log_prob(frames).sum(-1).exp()
    torch.testing.assert_close(found.log_density(0, frames), mixed.mean(0).log(), atol=1e-3, rtol=1e-4)
    mean = holds.unsqueeze(-1) * draws.probs + (1 - holds.unsqueeze(-1)) * found.background
    torch.testing.assert_close(found.levels(0), mean.mean(0))


def test_a_film_that_is_not_explained_is_forecast_by_the_background(films: Trajectories) -> None:
    scrambled = films.values[:, :, torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0))]
    noise = Trajectories.from_frames(scrambled.unflatten(-1, (SIDE, SIDE)), films.times)
    found = forecast(noise, a_guide())
    assert float(found.holds[:, :, 10:].max()) < 1e-3
    background = Bernoulli(found.background).log_prob(noise.values[0]).sum(-1)
    torch.testing.assert_close(
        found.log_density(0, noise.values[0])[10:], background[10:], atol=0.1, rtol=0.01
    )


def test_a_path_that_ends_counts_as_a_lapse() -> None:
    states = torch.zeros(3, 1, 4, 2)
    states[0, :, 2:] = math.nan
    holds = torch.where(states.isfinite().all(-1), 0.9, 0.0)
    background = torch.full((SIDE * SIDE,), 0.5)
    found = FilmForecast(Lamps(), states, states[1], holds, background, torch.ones(1))
    assert bool(found.levels(0).isfinite().all())
    assert bool(found.log_density(0, torch.zeros(4, SIDE * SIDE)).isfinite().all())


def test_the_arrays_of_a_forecast_are_its_levels_and_densities(films: Trajectories) -> None:
    found = forecast(films, a_guide(), films.first(30))
    mask = films.mask.clone()
    mask[0, 20], mask[1, 15, :7] = False, False
    part = dataclasses.replace(films, mask=mask, values=films.values * mask)
    film = found.arrays(part, num_known=10)
    assert (film.image_shape, film.state_names) == ((SIDE, SIDE), ("q0", "dq0/dt"))
    assert film.horizon[0, [9, 10]].tolist() == pytest.approx([0.0, 0.1])
    assert film.in_sample.sum(1).tolist() == [10, 10]
    for n in range(2):
        torch.testing.assert_close(torch.as_tensor(film.levels[:, n].mean(0)), found.levels(n))
        truth = torch.as_tensor(film.truth[n])
        torch.testing.assert_close(torch.as_tensor(film.levels_at_mean[n]), found.point_levels(n))
        density = torch.as_tensor(film.log_likelihood[:, n]).logsumexp(0) - math.log(100)
        whole, seen = found.log_density(n, films.values[n]), ~truth.isnan().any(-1)
        torch.testing.assert_close(density[seen], whole[seen])
        point = torch.as_tensor(film.log_likelihood_at_mean[n])[seen]
        torch.testing.assert_close(point, found.point_log_density(n, films.values[n])[seen])
    assert np.isnan(film.log_likelihood).any((0, 2)).tolist() == [True, False]
    cut = found.log_density(1, torch.where(mask[1], films.values[1], math.nan))[15]
    mixed = torch.as_tensor(film.log_likelihood[:, 1, 15]).logsumexp(0) - math.log(100)
    torch.testing.assert_close(mixed, cut)
    assert float(cut) > float(found.log_density(1, films.values[1])[15])
    assert film_scores(film)["num_frames"].iloc[-1] == 59
    with pytest.raises(ValueError, match=r"films must have \(2, 40\) \(clips, times\)"):
        found.arrays(films.first(20), num_known=10)
    with pytest.raises(ValueError, match="num_known must be within the films; got 0"):
        found.arrays(films, num_known=0)


DAMPING, NOISE = 0.3, 0.1
SHARED = {
    "damping.coefficient": torch.full((8,), DAMPING, dtype=torch.float64),
    "noise_scale": torch.full((8,), NOISE, dtype=torch.float64),
}


@pytest.fixture
def grey_films() -> Trajectories:
    model = GreyLamps()
    model.vin = VIN(Harmonic(2.0), forces=[LinearDamping(DAMPING)])
    with torch.no_grad():
        path = model.vin(PhaseState(TRUE[:, :1], TRUE[:, 1:]), TimeGrid.regular(40, 0.1))
        frames = model.logits(path.q, path.v).sigmoid()
    frames = (frames + NOISE * torch.randn(frames.shape, dtype=torch.float64)).clamp(0, 1)
    return Trajectories.from_frames(frames.unflatten(-1, (SIDE, SIDE)), path.time.expand(2, -1))


@pytest.mark.parametrize("continues", [False, True])
def test_grey_films_have_the_damping_and_the_noise_of_the_draws(
    grey_films: Trajectories, continues: bool
) -> None:
    background, scatter = background_of(grey_films), background_scatter(grey_films)
    shared = {**SHARED, "something else": torch.zeros(8)}
    found = forecast_films(
        GreyLamps(), a_guide(0.05), grey_films, trained=grey_films, continues=continues, shared=shared,
        num_draws=60,
    )  # fmt: skip
    assert found.noise is not None
    torch.testing.assert_close(found.noise, torch.full((60, 2), NOISE))
    exact = VIN(Harmonic(2.0), forces=[LinearDamping(DAMPING)])
    first = found.states[:, :, 0]
    with torch.no_grad():
        path = exact(PhaseState(first[..., :1], first[..., 1:]), grey_films.grid())
    torch.testing.assert_close(found.states[..., :1], path.q)
    frames, holds = grey_films.values[0], found.holds[:, 0]
    moved = Normal(found.model.logits(found.states[:, 0, :, :1], found.states[:, 0, :, 1:]).sigmoid(), NOISE)
    still = Normal(background, scatter).log_prob(frames).sum(-1)
    mixed = torch.logaddexp(
        holds.log() + moved.log_prob(frames).sum(-1), (1 - holds).clamp_min(1e-7).log() + still
    )
    expected = mixed.logsumexp(0) - math.log(60)
    torch.testing.assert_close(found.log_density(0, frames), expected, atol=1e-3, rtol=1e-4)
    error = (found.levels(0) - frames).square().sum(-1).sqrt().mean()
    assert float(error) < 0.8 * float((background - frames).square().sum(-1).sqrt().mean())


def test_errors_are_told(films: Trajectories, grey_films: Trajectories) -> None:
    with pytest.raises(ValueError, match=r"shared must hold every site .* none of .*noise_scale"):
        forecast_films(GreyLamps(), a_guide(), grey_films, trained=grey_films)
    with pytest.raises(ValueError, match="num_context must be within the films; got 41"):
        forecast_films(Lamps(), a_guide(), films, trained=films, num_context=41)
    other = Trajectories.from_frames(films.frames[..., :-1], films.times)
    with pytest.raises(ValueError, match=r"films must have frames of \(\d+, \d+\), as in training"):
        forecast_films(Lamps(), a_guide(), films, trained=other)
