"""Small data sets that several tests fit, a small forecast of films, and scripts as modules."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.export import to_arviz
from vinppl.simulate import simulate
from vinppl.systems import system


def simulated(name: str = "pendulum", **options: Any) -> Trajectories:
    """Return 3 noisy trajectories of 12 samples at 10 Hz of a ground truth, or as `options` say."""
    parameters = options.pop("parameters", {})
    defaults: dict[str, Any] = {"num_trajectories": 3, "num_times": 12, "noise_scale": 0.05, "seed": 1}
    data, _ = simulate(system(name, **parameters), **(defaults | options))
    return data


def with_gaps(data: Trajectories, *, every: int = 3) -> Trajectories:
    """Return the data with every `every`-th value of the last channel missing."""
    mask = data.mask.clone()
    mask[:, 1::every, -1] = False
    return dataclasses.replace(data, mask=mask, values=torch.where(mask, data.values, 0.0))


def ragged(data: Trajectories, *, cut: int = 4) -> Trajectories:
    """Return the data with the last trajectory `cut` samples shorter."""
    times, mask = data.times.clone(), data.mask.clone()
    times[-1, -cut:] = times[-1, -cut - 1]
    mask[-1, -cut:] = False
    drive = None if data.drive is None else data.drive.clone()
    if drive is not None:
        drive[-1, -cut:] = 0.0
    values = torch.where(mask, data.values, 0.0)
    return dataclasses.replace(data, times=times, mask=mask, values=values, drive=drive)


def driven(data: Trajectories) -> Trajectories:
    """Return the data with a known input, a sine."""
    drive = torch.where(data.mask.any(-1), (1.3 * data.times).sin(), 0.0).unsqueeze(-1)
    return dataclasses.replace(data, drive=drive)


def misfit(found: Tensor, truth: Tensor) -> float:
    """Return how far coordinates are from an affine function of the true ones, as a share of their size."""
    design = torch.stack([truth.flatten(), torch.ones(truth.numel())], dim=-1).double()
    y = found.double().reshape(-1, 1)
    error = y - design @ torch.linalg.lstsq(design, y).solution
    return float(error.square().mean().sqrt() / y.std())


FILM_DIMS = {
    "obs": ("trajectory", "time", "channel"),
    "obs_mean": ("trajectory", "time", "channel"),
    "obs_at_mean": ("trajectory", "time", "channel"),
    "measured": ("trajectory", "time", "channel"),
    "states": ("trajectory", "time", "state"),
    "states_at_mean": ("trajectory", "time", "state"),
    "frame_log_likelihood": ("trajectory", "time"),
    "frame_log_likelihood_at_mean": ("trajectory", "time"),
    "times": ("trajectory", "time"),
    "in_sample": ("trajectory", "time"),
    "forecast_start": ("trajectory",),
}


def film_forecast(num_draws: int = 20, num_times: int = 40, num_fitted: int = 10, filmed: int = 30) -> Any:
    """A dot on an 8 x 8 picture that circles at a rate of its own in every draw, on two clips."""
    rng = np.random.default_rng(1)
    times = np.stack(
        [0.1 * np.arange(num_times), np.minimum(0.1 * np.arange(num_times), 0.1 * (num_times - 6))]
    )
    rate = 2 + 0.2 * rng.normal(size=(num_draws, 1, 1))
    states = np.stack([np.cos(rate * times), -rate * np.sin(rate * times)], axis=-1)
    mean_path = np.stack([np.cos(2 * times), -2 * np.sin(2 * times)], axis=-1)

    def pictures(path: np.ndarray) -> np.ndarray:
        grid = np.linspace(-1.5, 1.5, 8)
        near = (grid - path[..., :1, None]) ** 2 + (grid[:, None] - path[..., 1:2, None] / 2) ** 2
        return np.clip(np.exp(-2 * near), 1e-3, 1 - 1e-3).reshape(*path.shape[:-1], 64)

    levels, at_mean = pictures(states), pictures(mean_path)
    measured = (at_mean > 0.5).astype(float)
    measured[:, filmed:] = np.nan
    unseen = np.isnan(measured).all(-1)
    draws, one = (
        np.where(unseen, np.nan, stats.bernoulli.logpmf(np.nan_to_num(measured), x).sum(-1))
        for x in (levels, at_mean)
    )
    groups = {
        "predictions": {
            "obs": (rng.uniform(size=levels.shape) < levels)[None].astype(np.float32),
            "obs_mean": levels[None].astype(np.float32),
            "states": states[None],
            "frame_log_likelihood": draws[None],
        },
        "predictions_constant_data": {
            "times": times,
            "measured": measured,
            "in_sample": np.tile(np.arange(num_times) < num_fitted, (2, 1)),
            "forecast_start": times[:, num_fitted - 1],
            "obs_at_mean": at_mean,
            "states_at_mean": mean_path,
            "frame_log_likelihood_at_mean": one,
        },
    }
    return to_arviz(
        groups,
        dims=FILM_DIMS,
        coords={"trajectory": ["first", "second"], "state": ["q", "dq/dt"]},
        units={"time": "s", "times": "s"},
        attrs={"image_shape": json.dumps([8, 8])},
    )


def load_script(name: str) -> Any:
    """Return a script of `inference/` as a module, to test its parts."""
    path = Path(__file__).resolve().parents[1] / "inference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
