"""Rough estimates: exact where they should be, and near enough to start from elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps

from vinppl.data import Trajectories
from vinppl.estimates import first_states, force_regression, local_states, noise_estimate


def cubic(times: torch.Tensor) -> Trajectories:
    """Two trajectories along a cubic, with positions and velocities."""
    q = torch.stack([0.3 + times - 2 * times**2 + 0.5 * times**3, -0.7 * times**3 + 1.0])
    v = torch.stack([1 - 4 * times + 1.5 * times**2, -2.1 * times**2])
    return Trajectories.from_arrays(times, torch.stack([q, v], -1), quantities=("position", "velocity"))


@pytest.mark.parametrize("times", [torch.arange(15) * 0.1, torch.arange(15).sqrt() * 0.4])
@pytest.mark.parametrize("part", ["both", "position", "velocity"])
def test_cubics_are_read_exactly(times: torch.Tensor, part: str) -> None:
    data = cubic(times)
    if part != "both":
        keep = 0 if part == "position" else 1
        data = dataclasses.replace(
            data,
            values=data.values[..., [keep]],
            mask=data.mask[..., [keep]],
            channels=(data.channels[keep],),
        )
    states = local_states(data)
    assert states.t.shape == (18,)
    first = states.trajectory == 0
    t = states.t[first]
    # The ridge of 1e-8 in the normal equations leaves errors of that order, more in second derivatives.
    if part != "velocity":  # velocities alone say nothing about the level
        assert torch.allclose(states.q[first, 0], 0.3 + t - 2 * t**2 + 0.5 * t**3, atol=1e-6)
    assert torch.allclose(states.v[first, 0], 1 - 4 * t + 1.5 * t**2, atol=1e-5)
    assert torch.allclose(states.a[first, 0], -4 + 3 * t, atol=1e-4)
    assert float(states.residual.max()) < 1e-6


def test_missing_values_and_padding_do_not_matter() -> None:
    data = cubic(torch.arange(15) * 0.1)
    for other in (with_gaps(data), ragged(data), ragged(data, cut=10)):
        states = local_states(other)
        for n, (level, slope) in enumerate([(-4.0, 3.0), (0.0, -4.2)]):
            t = states.t[states.trajectory == n]
            assert torch.allclose(states.a[states.trajectory == n, 0], level + slope * t, atol=1e-4)
    assert float(local_states(ragged(data)).t.max()) <= float(data.times.max())
    short = local_states(data.first(3))
    assert torch.isfinite(short.a).all()


def test_the_drive_comes_along() -> None:
    data = driven(simulated("duffing", num_times=10))
    states = local_states(data)
    assert states.drive is not None
    assert torch.allclose(states.drive[:, 0], (1.3 * states.t).sin(), atol=0.03)  # its mean over 0.6 s


@pytest.mark.parametrize("observe", [("position", "velocity"), ("position",), ("velocity",)])
def test_regression_finds_the_pendulum(observe: tuple) -> None:
    data = simulated(num_times=60, step_size=0.05, noise_scale=1e-4, observe=observe)
    if observe == ("velocity",):
        pytest.skip("the level of the angle is unknown")
    found = force_regression(data, [lambda s: -s.q.sin(), lambda s: -s.v])
    assert float(found[0]) == pytest.approx(9.82, rel=0.03)
    assert float(found[1]) == pytest.approx(0.0, abs=0.05)


def test_regression_of_a_short_record_is_zero() -> None:
    data = simulated(num_times=3, num_trajectories=1, observe=("position",))
    assert force_regression(data, [lambda s: s.q, lambda s: s.v]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [0.01, 0.1])
def test_noise_is_found_within_a_third(scale: float) -> None:
    data = simulated("mass_spring", num_times=200, step_size=0.05, noise_scale=scale)
    assert noise_estimate(data).tolist() == pytest.approx([scale, scale], rel=0.3)
    gaps = with_gaps(data)
    assert noise_estimate(gaps).tolist() == pytest.approx([scale, scale], rel=0.3)
    assert bool((noise_estimate(simulated("mass_spring", noise_scale=0.0)) > 0).all())


def test_first_states_are_measured_where_they_can_be() -> None:
    data = simulated(noise_scale=0.0, num_times=30, step_size=0.05)
    q, v = first_states(data)
    assert torch.equal(q, data.values[:, 0, :1])
    assert torch.equal(v, data.values[:, 0, 1:])
    alone = simulated(noise_scale=0.0, num_times=30, step_size=0.05, observe=("position",))
    guess, slope = first_states(alone)
    assert torch.equal(guess, q)
    scale = v.square().mean().sqrt()
    assert bool(((slope - v).abs() < 0.1 * scale).all())
    late = data.mask.clone()
    late[0, 0] = False
    masked = dataclasses.replace(data, mask=late, values=torch.where(late, data.values, 0.0))
    q_late, _ = first_states(masked)
    assert float(q_late[0]) == pytest.approx(float(q[0]), abs=0.05)
