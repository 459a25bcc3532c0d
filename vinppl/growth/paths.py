"""Forecasts of single trajectories from all draws, with and without the noise of measuring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vinppl._checks import require
from vinppl.growth.energy import EnergyCheck, check_energy
from vinppl.growth.fields import Fields
from vinppl.growth.resampling import MIN_DRAWS
from vinppl.growth.runs import TrajectoryRuns

__all__ = ["PathForecast", "keep_finite", "run_forward"]

Array = NDArray[np.float64]


@dataclass(eq=False)
class PathForecast:
    """What the draws say about one trajectory.

    Attributes:
        fields: what the outputs are.
        horizon: times since the forecast begins, `(horizon,)`.
        index: which of the trajectory's times they are, `(horizon,)`.
        mean: outputs without measurement noise, `(num_draws, horizon, field)`.
        noise: what noise adds to the measurements, `(num_draws, horizon, channel)`.
        energy: energy errors, `None` where they say nothing.
    """

    fields: Fields
    horizon: Array
    index: NDArray[np.int64]
    mean: Array
    noise: Array
    energy: EnergyCheck | None


def run_forward(
    runs: TrajectoryRuns, n: int, start: float, num_horizons: int, rng: np.random.Generator
) -> PathForecast:
    """Run trajectory `n` forward from all draws, with and without noise."""
    times = runs.future.times[n, : int(runs.future.lengths[n])].double().cpu().numpy()
    beyond = np.flatnonzero(times >= start - 1e-9 * max(1.0, abs(start)))
    require(
        len(beyond) >= 2,
        "future must go beyond the data",
        f"{max(len(beyond) - 1, 0)} later times in trajectory {runs.future.names[n]}",
        "Make it by vinppl.forecast.extend.",
    )
    index = beyond[np.unique(np.linspace(0, len(beyond) - 1, num_horizons).round().astype(np.int64))]
    draws = runs.own(n)
    noisy = runs.run(n, draws, noise_free=False, seed=int(rng.integers(2**31)))
    outputs = noisy | {"obs": runs.run(n, draws, noise_free=True, sites=("obs",))["obs"]}
    fields = Fields.of(outputs, runs.future)
    energy = None
    if runs.conserves_energy and "states" in noisy:
        kinetic = runs.kinetic_energy(n, noisy["states"])
        if kinetic is not None:
            turns = _turns(noisy["states"])
            energy = check_energy(noisy["energy"][:, None], kinetic[:, None], turns[:, None], times[None])
    return PathForecast(
        fields,
        times[index] - start,
        index,
        fields.pack(outputs)[:, index],
        (noisy["obs"] - outputs["obs"])[:, index],
        energy,
    )


def _turns(states: Array) -> NDArray[np.int64]:
    """Return how often a velocity of each draw crosses its mean, the most of all coordinates."""
    v = states[..., states.shape[-1] // 2 :]
    signs = np.sign(v - v.mean(1, keepdims=True))
    return np.asarray((np.diff(signs, axis=1) != 0).sum(1).max(-1))


def keep_finite(runs: TrajectoryRuns, forecasts: list[PathForecast]) -> tuple[list[PathForecast], int]:
    """Leave out draws without a finite path, from the forecasts and from `runs`; return how many."""
    keep = np.all(
        [np.isfinite(f.mean).all((1, 2)) & np.isfinite(f.noise).all((1, 2)) for f in forecasts], axis=0
    )
    lost = int((~keep).sum())
    enough = int(keep.sum()) >= MIN_DRAWS
    require(enough, f"at least {MIN_DRAWS} draws must have a finite path", f"{int(keep.sum())}")
    if not lost:
        return forecasts, 0
    runs.keep(torch.from_numpy(np.flatnonzero(keep)))
    for f in forecasts:
        f.mean, f.noise = f.mean[keep], f.noise[keep]
        if f.energy is not None:
            f.energy = EnergyCheck(f.energy.error[keep], f.energy.trend[keep], f.energy.drifts[keep])
    return forecasts, lost
