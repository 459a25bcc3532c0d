"""Small data sets that several tests fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vinppl.data import Trajectories
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
