"""Simulated data: the exact grid, reproducible, with separate streams."""

from __future__ import annotations

import re

import pytest
import torch

from vinppl.simulate import simulate
from vinppl.systems import SYSTEMS, system


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_simulates(name: str) -> None:
    data, path = simulate(system(name), num_trajectories=2, num_times=6, step_size=0.05, noise_scale=0.01)
    assert data.num_trajectories == 2
    assert data.num_times == 6
    assert path.q.shape == (2, 6, data.dim)
    assert torch.isfinite(data.values).all()
    angles = {channel.coordinate for channel in data.channels if channel.angle}
    assert angles == {i for i, angle in enumerate(system(name).angle_coordinates) if angle}


def test_times_are_exact_products() -> None:
    data, _ = simulate(system("mass_spring"), num_times=1000, step_size=0.1, num_trajectories=1)
    assert data.times[0].tolist() == [0.1 * i for i in range(1000)]


def test_seeds_reproduce_and_differ() -> None:
    first, second, third = (simulate(system("pendulum"), seed=s)[0] for s in (1, 1, 2))
    assert first.fingerprint() == second.fingerprint()
    assert not torch.equal(first.values, third.values)
    state = torch.random.get_rng_state()
    simulate(system("pendulum"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_and_initial_states_have_their_own_streams() -> None:
    quiet, path = simulate(system("pendulum"), noise_scale=0.0, seed=4)
    loud, other = simulate(system("pendulum"), noise_scale=0.5, seed=4)
    assert torch.equal(path.q, other.q)
    assert torch.equal(quiet.values[..., :1], path.q)
    few, short = simulate(system("pendulum"), noise_scale=0.5, seed=4, num_times=10)
    assert torch.equal(short.q[:, 0], path.q[:, 0])
    # 300 values: the sd of an sd is 0.5 / sqrt(600) = 0.02.
    assert float((loud.values - quiet.values).std()) == pytest.approx(0.5, abs=0.08)
    # Streams of neighbouring seeds are different ones.
    assert not torch.equal(simulate(system("pendulum"), seed=5)[1].q[:, 0], path.q[:, 0])
    assert few.num_times == 10


def test_noise_per_channel_types_and_parts() -> None:
    data, path = simulate(
        system("mass_spring"), noise_scale=(0.0, 0.3), num_times=200, dtype=torch.float32, seed=3
    )
    assert data.values.dtype == torch.float32
    assert torch.equal(data.values[..., 0], path.q[..., 0])
    assert float((data.values[..., 1] - path.v[..., 0]).std()) == pytest.approx(0.3, rel=0.1)
    alone, _ = simulate(system("mass_spring"), observe=("velocity",))
    assert [channel.quantity for channel in alone.channels] == ["velocity"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_trajectories": 0}, "num_trajectories must be at least 1; got 0"),
        ({"num_times": 1}, "num_times must be at least 2; got 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"noise_scale": -1.0}, "noise_scale must be 0 or more"),
        ({"noise_scale": (0.1, 0.1, 0.1)}, "noise_scale must be a number or have one entry"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        simulate(system("pendulum"), **options)
