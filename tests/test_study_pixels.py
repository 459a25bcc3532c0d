"""The study of pixels: its trials, its scores by their definitions, and its figures."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from example_data import load_script
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.film_forecast import FilmForecast
from vinppl.latents import straightening
from vinppl.potentials import Harmonic
from vinppl.render import simulate_clips
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid


@pytest.fixture(scope="module")
def study() -> Any:
    return load_script("study_pixels")


class Spring:
    """A law that is exact, and pictures of eight lamps."""

    def __init__(self) -> None:
        self.vin = VIN(Harmonic(4.0))

    def run(self, initial: PhaseState, data: Trajectories) -> Trajectory:
        return self.vin(initial, data.grid())

    def logits(self, q: Tensor, v: Tensor) -> Tensor:
        return 2.0 * q - torch.linspace(-1, 1, 8, dtype=q.dtype)


@pytest.fixture(scope="module")
def forecast() -> tuple[FilmForecast, Trajectories, Trajectory]:
    """Return a forecast of two films by three draws, the films, and the true motion."""
    model, scale = Spring(), torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.2], [-0.5, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        truth = model.vin(PhaseState(start[:, :1], start[:, 1:]), TimeGrid.regular(21, 0.1))
        draws = scale.view(-1, 1, 1) * start
        paths = model.vin(PhaseState(draws[..., :1], draws[..., 1:]), TimeGrid.regular(21, 0.1))
        frames = (model.logits(truth.q, truth.v) > 0).double().unflatten(-1, (2, 4))
    states = torch.cat([paths.q, paths.v], dim=-1)
    background = torch.linspace(0.2, 0.8, 8, dtype=torch.float64)
    films = Trajectories.from_frames(frames, truth.time.expand(2, -1))
    found = FilmForecast(model, states, states[1], torch.full((3, 2, 21), 0.9).double(), background, scale)
    return found, films, truth


def test_what_the_paper_asks_comes_first_and_every_seed_is_paired(study: Any) -> None:
    found = study.trials(study.Config())
    names = [trial.name for trial in found]
    assert len(names) == len(set(names)) == 10 * (7 + 2) + 4
    assert all("-1-" in name for name in names[:70])
    few = study.trials(study.Config(models=("vin_sv", "vae"), num_seeds=2))
    assert [t.name for t in few] == [
        *(f"mass_spring-{n}-vin_sv-{seed}" for n in (1, 10) for seed in range(2)),
        "embedding-vae",
    ]
    with pytest.raises(ValueError, match=r"models must be among vin_so2, .*; got other"):
        study.main(study.Config(models=("other",)))


def test_scores_of_frames_are_those_of_table_1(study: Any, forecast: Any) -> None:
    found, films, _ = forecast
    errors = study.frame_errors(found, films)
    y = films.values
    p = found.model.logits(found.point[..., :1], found.point[..., 1:]).sigmoid()
    np.testing.assert_allclose(errors["mean"]["rmse"], (p - y).square().sum(-1).sqrt())
    nats = (y * p.log() + (1 - y) * (1 - p).log()).sum(-1)
    np.testing.assert_allclose(errors["mean"]["loglik"], nats / 100, rtol=1e-6)
    np.testing.assert_allclose(errors["mean"]["brier"], (p - y).square().mean(-1))
    b = found.background
    np.testing.assert_allclose(errors["constant"]["rmse"], (b - y).square().sum(-1).sqrt())
    np.testing.assert_allclose(
        errors["constant"]["loglik"], (y * b.log() + (1 - y) * (1 - b).log()).sum(-1) / 100, rtol=1e-6
    )
    each = found.model.logits(found.states[..., :1], found.states[..., 1:]).sigmoid()
    mixed = 0.9 * each.mean(0) + 0.1 * b
    np.testing.assert_allclose(errors["posterior"]["rmse"], (mixed - y).square().sum(-1).sqrt())


def test_rows_hold_means_up_to_each_horizon_and_the_latent_path(study: Any, forecast: Any) -> None:
    found, films, truth = forecast
    straighten = straightening(found.point[..., 0], truth.q[..., 0])
    fitted = study.Fitted(found.model, None, 0, False)
    frame = pd.DataFrame(study.score(fitted, found, films, truth, straighten))
    assert set(frame["horizon_s"]) == {1, 2}
    errors = study.frame_errors(found, films)
    one = frame[frame["horizon_s"] == 1].set_index("forecast")
    assert one.loc["mean", "rmse"] == pytest.approx(errors["mean"]["rmse"][:, :11].mean())
    assert one.loc["posterior", "coverage_90"] == 1.0  # the truth is the middle draw
    assert study.quality(found.point, torch.cat([truth.q, truth.v], dim=-1)) == pytest.approx(0, abs=1e-6)
    assert one.loc["mean", "log_volume"] == pytest.approx(0, abs=1e-10)
    assert abs(one.loc["mean", "energy_drift"]) < 0.02
    assert math.isnan(one.loc["constant", "log_volume"])


def test_a_path_that_is_lost_has_no_latent_scores(study: Any, forecast: Any) -> None:
    found, films, truth = forecast
    point = found.point.clone()
    point[:, 5:] = math.nan
    assert study.quality(point, torch.cat([truth.q, truth.v], dim=-1)) is None
    assert study.correlation(point, truth.q) is None
    lost = SimpleNamespace(point=point)
    volume, energy = study.geometry(study.Fitted(found.model, None, 0, False), lost, films)
    assert np.isnan(volume).all()
    assert np.isnan(energy).all()


def test_means_and_the_worst_seed_after_5_s_and_at_the_longest_horizon(study: Any) -> None:
    keys = {"protocol": "paper", "system": "pendulum", "model": "vin_so2", "forecast": "mean"}
    rows = [
        {**keys, "seed": seed, "horizon_s": h, "rmse": h + seed, "loglik": -1.0, "brier": 0.1}
        | {"coverage_90": 0.9, "train_seconds": 60.0}
        for seed in range(3)
        for h in (1, 5, 20)
    ]
    found = study.summary(pd.DataFrame(rows)).reset_index().set_index("horizon_s")
    assert list(found.index) == [5, 20]
    assert found.loc[5, "rmse"] == pytest.approx(6)
    assert found.loc[20, "worst_rmse"] == 22


def test_figures_of_the_paper(study: Any) -> None:
    long, path = simulate_clips("mass_spring", num_clips=1, num_times=60, size=8)
    states = torch.cat([path.q, path.v], dim=-1)
    holds, background = torch.ones(1, 1, 60).double(), torch.full((64,), 0.5).double()
    model = SimpleNamespace(logits=lambda q, v: q.expand(*q.shape[:-1], 64))
    shown = FilmForecast(model, states[None], states, holds, background, torch.ones(1))
    known = {"model": "vin_sv", "system": "mass_spring"}
    rows = [{**known, **row} for row in study.example(long, path, shown)]
    assert {row["horizon_s"] for row in rows if row["kind"] == "film"} == {0.1, 5.0}
    angle = torch.linspace(-4, 4, study.EMBEDDED).numpy()
    for model_name in study.EMBEDDINGS:
        for t, q in enumerate(angle):
            v = np.nan if model_name == "lg_vae" else np.sin(q)
            latent = {"kind": "embedding", "horizon_s": t * 0.1, "q": 0.3 - q, "v": v}
            rows.append({"model": model_name, "system": "pendulum", "truth": q, "truth_v": 0.0, **latent})
    drawn = study.figures(pd.DataFrame(rows).reindex(columns=study.EXAMPLE_COLUMNS))
    assert set(drawn) == {"embeddings", "portraits_mass_spring", "films_mass_spring"}
    titles = [ax.get_title() for ax in drawn["embeddings"].axes if ax.get_title()]
    assert titles == ["VAE", "DVAE", "LG-VAE", "VIN-SO(2)", "VIN-SO(2), phase space", "truth"]
    portrait = drawn["portraits_mass_spring"].axes[0].lines[0]
    np.testing.assert_allclose(portrait.get_xdata(), states[0, :, 0])
