"""The maximal Lyapunov exponent: closed forms, published values, and what goes wrong by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vinppl.errors import NonFiniteError
from vinppl.lyapunov import maximal_lyapunov_exponent
from vinppl.state import PhaseState
from vinppl.systems import Duffing, HenonHeiles, MassSpring


def normal_states(count: int, dim: int = 1) -> PhaseState:
    stream = torch.Generator().manual_seed(0)
    return PhaseState(*(torch.randn(count, dim, generator=stream) for _ in range(2)))


def test_inverted_pendulum_in_closed_form() -> None:
    # d2q/dt2 = k^2 q - c v grows at the larger root of r^2 + c r - k^2 = 0.
    def law(q: Tensor, v: Tensor, t: float) -> Tensor:
        return 4 * q - 0.6 * v

    start = PhaseState(torch.zeros(1, 1), torch.zeros(1, 1))  # a path that stays leaves rounding out
    found = maximal_lyapunov_exponent(law, start, duration=4.0, step_size=0.01, transient=4.0)
    exact = -0.3 + math.sqrt(0.09 + 4)
    # The other direction has shrunk by exp(-4.05 x 4) against this one.
    assert found.exponent == pytest.approx(exact, abs=1e-6)
    assert found.rates.shape == (1, 10)
    assert found.block_duration == pytest.approx(0.4)


@pytest.mark.parametrize(("damping", "exact"), [(0.0, 0.0), (0.4, -0.2)])
def test_oscillator_in_closed_form(damping: float, exact: float) -> None:
    # Twins turn round the ellipse of the oscillation: its axis ratio w bounds the error by log(w) / T.
    found = maximal_lyapunov_exponent(
        MassSpring(damping=damping), normal_states(20), duration=40.0, step_size=0.05
    )
    assert found.exponent == pytest.approx(exact, abs=math.log(2) / 40)


def test_driven_duffing_oscillator_as_published() -> None:
    # Sprott, Chaos and Time-Series Analysis (2003), A.4.6: 0.1572 for b = 0.25, A = 0.4, frequency 1.
    truth = Duffing(stiffness=-1.0, damping=0.25, drive_amplitude=0.4)
    found = maximal_lyapunov_exponent(
        truth, normal_states(512), duration=80.0, step_size=0.1, transient=50.0, num_blocks=5
    )
    assert found.standard_error < 0.004
    assert found.exponent == pytest.approx(0.1572, abs=4 * found.standard_error)


@pytest.mark.slow
def test_chaotic_systems_as_published() -> None:
    # Sprott (2003), A.4.5: 0.1034 for Ueda's oscillator; A.6.5: 0.0450 for Henon-Heiles from this state at
    # energy 1/8, where orbits stick to islands for long, so that even 1e6 units of time know it to some 5 %.
    ueda = Duffing(stiffness=0.0, damping=0.05, drive_amplitude=7.5)
    found = maximal_lyapunov_exponent(
        ueda, normal_states(256), duration=300.0, step_size=0.05, transient=100.0
    )
    assert found.exponent == pytest.approx(0.1034, abs=4 * found.standard_error)
    start = PhaseState(torch.tensor([[0.499, 0.0]]), torch.tensor([[0.0, 0.03160676]]))
    start = PhaseState(*(x + 1e-9 * torch.randn(128, 2) for x in start))
    found = maximal_lyapunov_exponent(
        HenonHeiles(), start, duration=6000.0, step_size=0.1, transient=2000.0, num_blocks=12
    )
    assert found.exponent == pytest.approx(0.0450, rel=0.1)


def test_the_step_does_not_matter_and_the_seed_hardly() -> None:
    truth, start = HenonHeiles(), HenonHeiles().sample_initial(8, torch.Generator().manual_seed(1))
    coarse, fine = (
        maximal_lyapunov_exponent(truth, start, duration=20.0, step_size=h, transient=5.0)
        for h in (0.1, 0.05)
    )
    assert coarse.exponent == pytest.approx(fine.exponent, abs=1e-4)
    other = maximal_lyapunov_exponent(truth, start, duration=20.0, step_size=0.1, transient=5.0, seed=1)
    assert other.exponent != coarse.exponent
    assert other.exponent == pytest.approx(coarse.exponent, abs=0.05)


def test_drives_begin_at_the_time_given() -> None:
    truth = Duffing(stiffness=-1.0, damping=0.25, drive_amplitude=0.4)
    options = {"duration": 10.0, "step_size": 0.05}
    period, half = (
        maximal_lyapunov_exponent(truth, normal_states(4), start_time=t, **options).exponent
        for t in (2 * math.pi, math.pi)
    )
    assert maximal_lyapunov_exponent(truth, normal_states(4), **options).exponent == pytest.approx(
        period, abs=1e-6
    )
    assert half != pytest.approx(period, abs=1e-3)


def test_bad_arguments_are_named() -> None:
    good = {"duration": 1.0, "step_size": 0.1}
    for change, message in (
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"duration": -1.0}, "duration must be positive"),
        ({"transient": -1.0}, "transient must not be negative"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"num_blocks": 100}, "every block must hold a step"),
    ):
        with pytest.raises(ValueError, match=message):
            maximal_lyapunov_exponent(MassSpring(), normal_states(1), **(good | change))
    far = PhaseState(torch.tensor([[30.0, 0.0]]), torch.zeros(1, 2))
    with pytest.raises(NonFiniteError, match="a path ran away before time"):
        maximal_lyapunov_exponent(HenonHeiles(), far, duration=50.0, step_size=0.1)
