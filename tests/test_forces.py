"""Damping, friction and drives: their laws, their closed forms in time, and the control signal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vinppl.dynamics import VIN
from vinppl.forces import (
    AbstractDamping,
    ControlSignal,
    CoulombFriction,
    Drive,
    LinearDamping,
    QuadraticDamping,
    combine_damping,
)
from vinppl.parameters import Learned
from vinppl.potentials import FunctionPotential, Harmonic
from vinppl.state import PhaseState
from vinppl.systems import DrivenOscillator, MassSpring
from vinppl.timegrid import TimeGrid

V = torch.tensor([[0.5, -1.2], [0.01, 3.0], [-0.2, 0.4]], dtype=torch.float64)
LAWS: dict[str, tuple[Callable[[], AbstractDamping], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda: LinearDamping(0.7), lambda v: -0.7 * v),
    "linear_each": (
        lambda: LinearDamping(torch.tensor([0.7, 0.2]), dim=2),
        lambda v: -torch.tensor([0.7, 0.2]) * v,
    ),
    "quadratic": (lambda: QuadraticDamping(0.3), lambda v: -0.3 * v.abs() * v),
    "friction": (lambda: CoulombFriction(0.4, smoothing=0.1), lambda v: -0.4 * (v / 0.1).tanh()),
}


def still(dim: int = 1) -> FunctionPotential:
    """Return a potential without force."""
    return FunctionPotential(lambda q: 0.0 * q.sum(-1), manifold=dim)


@pytest.mark.parametrize(("make", "law"), LAWS.values(), ids=LAWS)
def test_law_and_slope(make: Callable[[], AbstractDamping], law: Callable[[Tensor], Tensor]) -> None:
    bound = make().bind()
    v = V.clone().requires_grad_()
    torch.testing.assert_close(-bound.resistance(V), law(V), rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(-law(v).sum(), v)
    torch.testing.assert_close(bound.slope(V).expand_as(V), slope, rtol=1e-13, atol=1e-13)
    assert bool((bound.slope(V) >= 0).all())
    assert bool((bound.resistance(V) * V >= 0).all())


def test_dampings_add_up() -> None:
    parts = [make().bind() for make, _ in LAWS.values() if make is not LAWS["linear_each"][0]]
    total = combine_damping(parts)
    assert total is not None
    expected = sum(law(V) for name, (_, law) in LAWS.items() if name != "linear_each")
    torch.testing.assert_close(-total.resistance(V), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(total.slope(V), sum(part.slope(V) for part in parts), rtol=1e-14, atol=0)
    assert combine_damping([]) is None
    assert combine_damping(parts[:1]) == parts[0]


@pytest.mark.parametrize("mass", [1.0, 2.0])
def test_damped_oscillator(mass: float) -> None:
    truth = MassSpring(mass=mass, stiffness=2.0, damping=0.4)
    vin = VIN(Harmonic(2.0), mass=mass, forces=[LinearDamping(0.4)], integrator="verlet8")
    start = PhaseState(torch.tensor([1.0]), torch.tensor([0.3]))
    grid = TimeGrid.regular(11, 1.0, num_substeps=20)  # order 8: below round-off
    path, exact = vin(start, grid), truth.solve(start, grid.times)
    torch.testing.assert_close(path.q, exact.q, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.v, exact.v, rtol=0, atol=1e-12)


def test_driven_oscillator_through_a_sampled_signal() -> None:
    truth = DrivenOscillator(mass=1.5, stiffness=2.0, damping=0.2, drive_amplitude=0.5, drive_frequency=1.0)
    vin = VIN(Harmonic(2.0), mass=1.5, forces=[LinearDamping(0.2), Drive(0.5)], integrator="verlet4")
    start = PhaseState(torch.tensor([[1.0], [-0.5]]), torch.tensor([[0.3], [0.0]]))
    grid = TimeGrid.regular(21, 0.5, num_substeps=20)
    times = torch.linspace(0.0, 10.0, 10_001)
    path = vin(start, grid, control=ControlSignal(times, times.cos().unsqueeze(-1)))
    exact = truth.solve(start, grid.times)
    # Linear interpolation errs by spacing^2 / 8 = 1.25e-7 in u; 0.5 u / 1.5 acts for 10 s on an
    # oscillator of frequency 1.15: below 1e-7 x 0.33 x 10 / 1.15.
    torch.testing.assert_close(path.q, exact.q, rtol=0, atol=4e-7)


@pytest.mark.parametrize("integrator", ["velocity_verlet", "stormer_verlet"])
def test_dry_friction_decelerates_steadily_and_stops(integrator: str) -> None:
    # v = v0 - f t / m until t = m v0 / f; smoothing s ends it with an exponential of rate f / (m s).
    f, m, s, v0 = 0.5, 2.0, 1e-3, 1.0
    vin = VIN(still(), mass=m, forces=[CoulombFriction(f, smoothing=s)], integrator=integrator)
    stop = m * v0 / f
    path = vin(PhaseState(torch.zeros(1), torch.tensor([v0])), TimeGrid.regular(61, 0.1, num_substeps=10))
    t, v = path.time, path.v[..., 0]
    # Above 20 s the friction is f to exp(-40); the kicks are exact for a constant force.
    moving = t < stop - 20 * s * m / f - 0.01
    torch.testing.assert_close(v[moving], v0 - f * t[moving] / m, rtol=0, atol=1e-12)
    assert bool((v[t > stop + 0.1].abs() <= 3 * s).all())
    # One stopping step of 0.01 and the smoothed end, s x m s / f, are what the distance can be off by.
    assert float(path.q[-1, 0]) == pytest.approx(m * v0**2 / (2 * f), abs=0.01 * 0.01 + 10 * s * s * m / f)


def test_quadratic_drag_against_its_closed_form() -> None:
    # v = v0 / (1 + d v0 t / m)
    vin = VIN(still(), mass=2.0, forces=[QuadraticDamping(0.6)], integrator="verlet4")
    grid = TimeGrid.regular(11, 0.5, num_substeps=20)
    path = vin(PhaseState(torch.zeros(1), torch.tensor([-1.5])), grid)
    torch.testing.assert_close(path.v[:, 0], -1.5 / (1 + 0.6 * 1.5 * grid.times / 2.0), rtol=0, atol=1e-9)


def test_a_constant_drive_and_offset_accelerate_uniformly() -> None:
    drive = Drive(
        torch.tensor([[1.0, 2.0], [0.0, -1.0]]), offset=torch.tensor([0.5, 0.0]), dim=2, num_channels=2
    )
    vin = VIN(still(2), mass=2.0, forces=[drive])
    grid = TimeGrid.regular(5, 0.5)
    control = ControlSignal(torch.tensor([0.0, 2.0]), torch.tensor([[1.0, 3.0]]).expand(2, 2))
    path = vin(PhaseState(torch.zeros(2), torch.zeros(2)), grid, control=control)
    acceleration = torch.tensor([7.5, -3.0]) / 2.0
    torch.testing.assert_close(path.v, acceleration * grid.times.unsqueeze(-1), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        path.q, acceleration * grid.times.unsqueeze(-1).square() / 2, rtol=0, atol=1e-14
    )


def test_forces_with_particle_dimensions() -> None:
    vin = VIN(Harmonic(2.0), mass=2.0, forces=[LinearDamping(1.0), Drive(1.0)])
    coefficients, gains, masses = (torch.rand(3, 1) + 0.5 for _ in range(3))
    start = PhaseState(torch.randn(5, 1), torch.randn(5, 1))
    times = torch.linspace(0.0, 1.0, 6)
    control = ControlSignal(times.expand(5, 6), torch.randn(5, 6, 1))
    grid = TimeGrid.from_times(times)

    def roll(c: Tensor, g: Tensor, m: Tensor) -> Tensor:
        vin.damping.coefficient, vin.drive.gain, vin.mass = c, g, m
        return vin(start, grid, control=control).q

    together = roll(coefficients, gains, masses)
    assert together.shape == (3, 5, 6, 1)
    for i in range(3):
        alone = roll(coefficients[i, 0], gains[i, 0], masses[i, 0])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-14)


# --- the control signal --------------------------------------------------------------------------


def test_interpolation_at_irregular_times() -> None:
    times = torch.tensor([0.0, 0.1, 0.4, 1.0])
    signal = ControlSignal(times, torch.stack([3 * times - 1, times.square()], -1))
    t = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.99, 1.0])
    values = signal.at(t)
    torch.testing.assert_close(values[:, 0], 3 * t - 1, rtol=0, atol=1e-15)
    expected = [0.0, 0.005, 0.01, 0.11, 0.16 + 0.84 * 0.59 / 0.6, 1.0]
    torch.testing.assert_close(values[:, 1], torch.tensor(expected), rtol=0, atol=1e-15)


def test_interpolation_of_batches_and_of_padded_times() -> None:
    times = torch.tensor([[0.0, 0.5, 1.0], [2.0, 2.5, 2.5]])
    signal = ControlSignal(times, (10 * times).unsqueeze(-1))
    shared = ControlSignal(times[0], (10 * times[0]).unsqueeze(-1))
    each = torch.tensor([[0.25, 1.0], [2.25, 2.5]])
    torch.testing.assert_close(signal.at(each).squeeze(-1), 10 * each)
    torch.testing.assert_close(shared.at(each[:1].expand(4, 2)).squeeze(-1), 10 * each[:1].expand(4, 2))
    assert ControlSignal(times[:, :2] * 0 + times[0, :2], signal.values[:, :2]).at(each[0, :1]).shape == (
        2,
        1,
        1,
    )


def test_a_signal_that_does_not_reach_far_enough() -> None:
    times = torch.linspace(0.0, 1.0, 11)
    signal = ControlSignal(times, times.unsqueeze(-1))
    torch.testing.assert_close(signal.at(torch.tensor([1.05])), torch.tensor([[1.05]]))
    with pytest.raises(
        ValueError, match=r"known from 0 to 1; got times from 0 to 1\.2.*whole forecast horizon"
    ):
        signal.at(torch.tensor([0.0, 1.2]))
    with pytest.raises(ValueError, match="must cover every time"):
        signal.at(torch.tensor([-0.2]))
    with pytest.raises(ValueError, match="a drive must have at least two samples"):
        ControlSignal(torch.zeros(1), torch.ones(1, 1)).at(torch.zeros(1))


def test_learned_forces_get_gradients_at_rest_of_the_other() -> None:
    vin = VIN(
        Harmonic(2.0),
        forces=[
            LinearDamping(Learned(0.1)),
            QuadraticDamping(Learned(0.1)),
            CoulombFriction(Learned(0.1), smoothing=Learned(0.2)),
            Drive(Learned(0.5), offset=Learned(0.1)),
        ],
    )
    times = torch.linspace(0.0, 1.0, 6)
    control = ControlSignal(times, times.cos().unsqueeze(-1))
    path = vin(PhaseState(torch.tensor([1.0]), torch.zeros(1)), TimeGrid.from_times(times), control=control)
    path.q.square().sum().backward()
    for name, parameter in vin.named_parameters():
        assert parameter.grad is not None, name
        assert math.isfinite(float(parameter.grad)), name
        assert float(parameter.grad) != 0, name
