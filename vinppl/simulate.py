"""Simulated measurements of the ground-truth systems, with what is hidden in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from vinppl._checks import require
from vinppl.data import Trajectories
from vinppl.state import PhaseState, Trajectory
from vinppl.systems.base import AbstractSystem

__all__ = ["simulate"]


def simulate(
    system: AbstractSystem,
    *,
    num_trajectories: int = 5,
    num_times: int = 30,
    step_size: float = 0.1,
    noise_scale: float | Sequence[float] = 0.33,
    observe: Sequence[Literal["position", "velocity"]] = ("position", "velocity"),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Trajectories, Trajectory]:
    """Simulate noisy measurements of a system on a regular grid.

    The defaults are the low-data experiment of paper section 4.1: 5 trajectories of 30 points at
    10 Hz with noise of standard deviation 0.33 on positions and velocities. The times are exactly
    `i * step_size`.

    Args:
        system: the ground truth.
        num_trajectories: trajectories, from the system's own distribution of initial states.
        num_times: samples of each.
        step_size: their spacing, in the system's unit of time.
        noise_scale: standard deviation of the noise, one for all channels or one for each.
        observe: what is measured.
        seed: initial states and noise use separate streams made from it.
        dtype: floating type of the measurements.

    Returns:
        The measurements, and the noise-free trajectory, `(num_trajectories, num_times, dim)`.
    """
    require(num_trajectories >= 1, "num_trajectories must be at least 1", num_trajectories)
    require(num_times >= 2, "num_times must be at least 2", num_times)
    require(step_size > 0, "step_size must be positive", step_size)
    initial_stream, noise_stream = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    initial = system.sample_initial(num_trajectories, initial_stream)
    times = step_size * torch.arange(num_times, dtype=torch.float64)
    truth = system.solve(PhaseState(initial.q.double(), initial.v.double()), times)
    path = Trajectory(times.expand(num_trajectories, -1).to(dtype), truth.q.to(dtype), truth.v.to(dtype))
    angles = [i for i, angle in enumerate(system.angle_coordinates) if angle]
    data = Trajectories.from_states(
        path,
        observe=observe,
        noise_scale=noise_scale,
        angles=angles,
        time_unit=system.units.get("time", "").removeprefix("1"),  # none where there is no unit
        generator=noise_stream,
    )
    return data, path
