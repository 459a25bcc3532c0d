"""Periods of paths against closed forms, and their posterior under models whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import LogNormal, Normal
from pyro.nn import PyroModule
from scipy.special import ellipk

from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.forces import LinearDamping
from vinppl.periods import path_periods, period_lines, posterior_periods
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState, Trajectory
from vinppl.systems import system

TIMES = 0.05 * torch.arange(400, dtype=torch.float64)


def test_harmonic_oscillators() -> None:
    omega = torch.tensor([[0.7], [2.0], [5.0]], dtype=torch.float64)
    phase = torch.tensor([0.3, 2.0, 4.0], dtype=torch.float64)[:, None, None]
    found = path_periods(1.5 + 0.2 * (omega * TIMES + phase).sin(), TIMES)
    assert found.shape == (3, 3)
    # A vertex is displaced by the cubic term of the sine: at most (omega h)^3 / (108 sqrt 3 omega).
    torch.testing.assert_close(found, (2 * math.pi / omega[:, 0]).expand(3, 3), rtol=2e-4, atol=0)


@pytest.mark.parametrize("amplitude", [0.2, 1.5, 3.0])
def test_swings_of_a_pendulum(amplitude: float) -> None:
    truth = system("pendulum", length=1.0, gravity=9.82)
    initial = PhaseState(torch.tensor([amplitude]), torch.tensor([0.0]))
    path = truth.solve(initial, TIMES)
    exact = 4 / math.sqrt(9.82) * ellipk(math.sin(amplitude / 2) ** 2)
    assert float(path_periods(path.q[..., 0], TIMES, angle=True)) == pytest.approx(exact, rel=2e-3)


def test_turns_of_a_pendulum_either_way() -> None:
    truth = system("pendulum", length=1.0, gravity=9.82)
    speed = 8.0
    initial = PhaseState(torch.zeros(2, 1), torch.tensor([[speed], [-speed]]))
    path = truth.solve(initial, TIMES)
    # theta' = sqrt(v^2 - 4 (g/l) sin^2(theta/2)), so that a turn takes 4 K(m) / v with m = 4 (g/l) / v^2.
    exact = 4 / speed * ellipk(4 * 9.82 / speed**2)
    found = path_periods(path.q[..., 0], TIMES, angle=True)
    torch.testing.assert_close(found, torch.full((2,), exact), rtol=2e-3, atol=0)
    assert bool(path_periods(path.q[..., 0], TIMES).isnan().all()), "on a line it never comes back"


def test_an_angle_that_stops_going_round_has_the_time_of_its_whole_turns() -> None:
    angle = 5 * TIMES - 0.5 * TIMES.square()  # up to 12.5 after 5 units of time, and back
    first = float(path_periods(angle[:100], TIMES[:100], angle=True))
    assert first == pytest.approx(5 - math.sqrt(25 - 4 * math.pi), abs=1e-3)


@pytest.mark.parametrize("ratio", [0.9, 0.3])
def test_damping_moves_no_period(ratio: float) -> None:
    """x = exp(-c t) cos(w t + p) turns back at the same phases; each swing is `ratio` of the last."""
    omega = 2.0
    decay = -math.log(ratio) * omega / math.pi
    phase = torch.tensor([0.0, 1.0, 2.5, 4.0])[:, None]
    found = path_periods(3.0 + (-decay * TIMES).exp() * (omega * TIMES + phase).cos(), TIMES)
    torch.testing.assert_close(found, torch.full((4,), math.pi), rtol=1e-3, atol=0)


def test_rounding_after_coming_to_rest_is_no_swing() -> None:
    path = 3.0 + (-1.5 * TIMES).exp() * (4 * TIMES).cos()
    found = path_periods(path.float(), TIMES.float())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.pi / 2, rel=5e-3)


def test_less_than_a_period_has_none() -> None:
    short = TIMES[:60]  # 0.94 of a period
    assert math.isnan(float(path_periods((2 * short).cos(), short)))
    assert math.isnan(float(path_periods(1.9 * short, short, angle=True)))
    assert float(path_periods(2.2 * short, short, angle=True)) == pytest.approx(2 * math.pi / 2.2)
    assert math.isnan(float(path_periods(torch.ones_like(short), short)))


def test_a_path_that_ends_has_none_and_leaves_the_others_alone() -> None:
    paths = (2 * TIMES).sin().repeat(2, 1)
    paths[0, 300:] = math.nan
    found = path_periods(paths, TIMES.expand(2, -1))
    np.testing.assert_array_equal(found.isnan(), [True, False])


def test_uneven_times() -> None:
    times = torch.cat([TIMES[:150], TIMES[150:].repeat_interleave(2) + torch.tensor([0.0, 0.02]).repeat(250)])
    found = path_periods((3 * times).sin(), times)
    assert float(found) == pytest.approx(2 * math.pi / 3, rel=1e-3)


def test_errors_are_told() -> None:
    with pytest.raises(ValueError, match=r"at least three times; got Tensor of shape \(4, 2\)"):
        path_periods(torch.zeros(4, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="one entry for each of the 5 positions"):
        path_periods(torch.zeros(4, 5), torch.zeros(4))


# Posteriors


class Spring(PyroModule):
    """Positions of a damped mass on a spring whose stiffness is known and whose damping is not."""

    def __init__(self) -> None:
        super().__init__()
        self.vin = VIN(Harmonic(4.0), forces=[LinearDamping(LogNormal(-1.0, 1.0))])

    def forward(self, data: Trajectories) -> None:
        plate = pyro.plate("trajectory", data.num_trajectories, dim=-1)
        with plate:
            q = pyro.sample("initial_position", Normal(torch.zeros(1), 1.0).to_event(1))
            v = pyro.sample("initial_velocity", Normal(torch.zeros(1), 1.0).to_event(1))
        path = self.run(PhaseState(q, v), data)
        with plate:
            pyro.sample("obs", Normal(path.q, 0.1).to_event(2), obs=data.values)

    def run(self, initial: PhaseState, data: Trajectories) -> Trajectory:
        return self.vin(initial, data.grid(0.01))


def clips(num_times: int = 25) -> Trajectories:
    times = 0.1 * torch.arange(num_times, dtype=torch.float64)
    values = (2 * times).cos().expand(2, -1).unsqueeze(-1)
    return Trajectories.from_arrays(times.expand(2, -1), values, names=["a", "b"], time_unit="s")


def test_the_posterior_of_a_period_is_that_of_the_draws() -> None:
    damping = torch.tensor([0.1, 0.3, 0.6, 0.9, 1.2])
    draws = {
        "initial_position": torch.tensor([[1.0], [0.5]]).expand(5, 2, 1),
        "initial_velocity": torch.tensor([[0.0], [2.0]]).expand(5, 2, 1),
        "damping.coefficient": damping,
    }
    table = posterior_periods(Spring(), draws, clips())
    assert list(table["trajectory"]) == ["a", "b"]
    assert list(table["complete"]) == [1.0, 1.0]
    exact = 2 * math.pi / (4 - damping.square() / 4).sqrt()
    for column, share in (("median", 0.5), ("5%", 0.05), ("95%", 0.95)):
        expected = np.quantile(exact, share)
        np.testing.assert_allclose(table[column], expected, rtol=2e-3)
    median, low, high = (f"{table[column][0]:.4g}" for column in ("median", "5%", "95%"))
    assert period_lines(table)[1] == f"  a: {median} s ({low} to {high})"


def test_too_short_a_rollout_has_no_period() -> None:
    draws = {name: torch.ones(3, 2, 1) for name in ("initial_position", "initial_velocity")}
    draws["damping.coefficient"] = torch.full((3,), 0.2)
    table = posterior_periods(Spring(), draws, clips(10), durations=1)
    assert list(table["complete"]) == [0.0, 0.0]
    assert bool(table["median"].isna().all())
    assert period_lines(table)[1] == "  a: no draw shows a whole period"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"none of .*damping\.coefficient"):
        posterior_periods(Spring(), {}, clips())
    with pytest.raises(ValueError, match="durations must be at least 1"):
        posterior_periods(Spring(), {}, clips(), durations=0.5)
