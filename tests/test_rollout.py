"""The loop over time: batches, irregular and padded grids, sub-steps, and dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vinppl.forces import LinearDamping
from vinppl.integrators import INTEGRATORS, Mechanics, VelocityVerlet
from vinppl.mass import MassSpec, Scalar, bind_mass
from vinppl.potentials import PendulumPotential
from vinppl.rollout import rollout
from vinppl.state import PhaseState, check_phase_state
from vinppl.testing import coupled_pendulums
from vinppl.timegrid import TimeGrid

every_member = pytest.mark.parametrize("name", INTEGRATORS)


def pendulum(damping: float = 0.0) -> Mechanics:
    mass = bind_mass(torch.tensor(1.0), MassSpec(1.0))
    return Mechanics(PendulumPotential(1.0).bind().gradient, mass, LinearDamping(damping).bind(), (True,))


@every_member
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_leading_dimensions(name: str, batch: tuple[int, ...]) -> None:
    integrator = INTEGRATORS[name]()
    start = PhaseState(torch.randn(*batch, 1), 0.5 * torch.randn(*batch, 1))
    grid = TimeGrid.regular(4, 0.1)
    path = rollout(pendulum(0.1), start, grid, integrator=integrator)
    assert path.q.shape == path.v.shape == (*batch, 4, 1)
    assert torch.equal(path.q[..., 0, :], start.q)
    assert torch.equal(path.v[..., 0, :], start.v)
    for index in itertools.product(*(range(n) for n in batch)):
        one = PhaseState(start.q[index], start.v[index])
        alone = rollout(pendulum(0.1), one, grid, integrator=integrator)
        torch.testing.assert_close(path.q[index], alone.q, rtol=0, atol=1e-15)


@every_member
def test_parameters_with_particle_dimensions_against_trajectories(name: str) -> None:
    # As under vectorised Pyro particles: sites (particles, 1), states (particles, N, d) or (N, d).
    integrator = INTEGRATORS[name]()
    masses, coefficients = torch.rand(3, 1) + 0.5, torch.rand(3, 1, 1) + 0.5

    def system(mass: Tensor, k: Tensor) -> Mechanics:
        return Mechanics(lambda q: k * q.sin(), bind_mass(mass, Scalar(mass)), None, (True,))

    grid = TimeGrid.from_times(torch.tensor([[0.0, 0.1, 0.3], [0.0, 0.2, 0.4]]), max_step_size=0.1)
    start = PhaseState(torch.randn(2, 1), torch.randn(2, 1))
    per_particle = PhaseState(torch.randn(3, 2, 1), torch.randn(3, 2, 1))
    for state in (start, per_particle):
        together = rollout(system(masses, coefficients), state, grid, integrator=integrator)
        assert together.q.shape == (3, 2, 3, 1)
        for i in range(3):
            one = PhaseState(*(x[i] if x.ndim == 3 else x for x in state))
            alone = rollout(system(masses[i, 0], coefficients[i, 0]), one, grid, integrator=integrator)
            torch.testing.assert_close(together.q[i], alone.q, rtol=0, atol=1e-14)
            torch.testing.assert_close(together.v[i], alone.v, rtol=0, atol=1e-14)


@every_member
def test_irregular_grids_equal_the_loop_over_trajectories(name: str) -> None:
    integrator = INTEGRATORS[name]()
    times = torch.tensor([[0.0, 0.13, 0.5, 0.61], [1.0, 1.3, 1.35, 1.75]])
    start = PhaseState(torch.randn(2, 1), torch.randn(2, 1))
    batch = rollout(
        pendulum(0.1), start, TimeGrid.from_times(times, max_step_size=0.1), integrator=integrator
    )
    counts = TimeGrid.from_times(times, max_step_size=0.1).num_substeps
    for i in range(2):
        # Alone it would take fewer sub-steps: give it those of the batch.
        alone_grid = TimeGrid(times[i], counts)
        alone = rollout(pendulum(0.1), PhaseState(start.q[i], start.v[i]), alone_grid, integrator=integrator)
        torch.testing.assert_close(batch.q[i], alone.q, rtol=0, atol=1e-15)
        torch.testing.assert_close(batch.v[i], alone.v, rtol=0, atol=1e-15)


@every_member
def test_padded_times_stand_still_with_finite_gradients(name: str) -> None:
    integrator = INTEGRATORS[name]()
    times = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 0.1, 0.1, 0.1]], requires_grad=True)
    start = PhaseState(torch.randn(2, 1, requires_grad=True), torch.randn(2, 1, requires_grad=True))
    grid = TimeGrid.from_times(times, max_step_size=0.05)
    path = rollout(pendulum(0.1), start, grid, integrator=integrator)
    for part in (path.q, path.v):
        assert torch.equal(part[1, 2:], part[1, 1:2].expand(2, 1))
    (path.q.sum() + path.v.sum()).backward()
    for leaf in (times, *start):
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
        assert float(leaf.grad.abs().sum()) > 0


@every_member
def test_substeps_equal_a_finer_regular_grid(name: str) -> None:
    integrator = INTEGRATORS[name]()
    benchmark = coupled_pendulums(2, structure="diagonal", periodic=True)
    coarse = TimeGrid.from_times(torch.tensor([0.0, 0.3, 0.4, 0.8]), max_step_size=0.1)
    fine = TimeGrid.regular(9, 0.1)
    sparse = rollout(benchmark.system, benchmark.initial, coarse, integrator=integrator)
    dense = rollout(benchmark.system, benchmark.initial, fine, integrator=integrator)
    torch.testing.assert_close(sparse.q, dense.q[:, [0, 3, 4, 8]], rtol=0, atol=1e-14)
    torch.testing.assert_close(sparse.v, dense.v[:, [0, 3, 4, 8]], rtol=0, atol=1e-14)


@every_member
def test_a_drive_is_read_at_the_times_of_the_grid(name: str) -> None:
    # q'' = t has q = t^3 / 6; every member of order two or more is exact for v = t^2 / 2.
    integrator = INTEGRATORS[name]()
    mass = bind_mass(torch.tensor(1.0), MassSpec(1.0))
    system = Mechanics(torch.zeros_like, mass, None, (False,) if "so2" not in name else (False, True))
    dim = len(system.periodic)
    push = torch.eye(dim)[0]  # only the line is pushed
    start = PhaseState(torch.zeros(2, dim), torch.zeros(2, dim))
    times = torch.tensor([[0.0, 0.1, 0.3, 0.7], [0.0, 0.2, 0.3, 0.5]])
    grid = TimeGrid.from_times(times, max_step_size=0.05)
    path = rollout(system, start, grid, integrator=integrator, drive=lambda t: t.unsqueeze(-1) * push)
    # Euler: v errs by h t / 2.
    atol = 1e-15 * 10 if integrator.order > 1 else 0.05 * 0.7 / 2
    torch.testing.assert_close(path.v[..., 0], times.square() / 2, rtol=0, atol=atol)


@every_member
def test_a_grid_of_one_time_returns_the_initial_state(name: str) -> None:
    start = PhaseState(torch.randn(3, 1), torch.randn(3, 1))
    for drive in (None, lambda t: t.unsqueeze(-1)):
        path = rollout(
            pendulum(), start, TimeGrid.regular(1, 0.1), integrator=INTEGRATORS[name](), drive=drive
        )
        assert torch.equal(path.q, start.q.unsqueeze(-2))
        assert torch.equal(path.v, start.v.unsqueeze(-2))


@every_member
def test_single_precision_stays_single_and_agrees(name: str) -> None:
    integrator = INTEGRATORS[name]()
    start = PhaseState(torch.tensor([0.7]), torch.tensor([0.3]))
    double = rollout(pendulum(), start, TimeGrid.regular(21, 0.1), integrator=integrator)
    mass = bind_mass(torch.tensor(1.0, dtype=torch.float32), MassSpec(1.0))
    system = Mechanics(PendulumPotential(1.0).to(torch.float32).bind().gradient, mass, None, (True,))
    irregular = TimeGrid.from_times(double.time.float() + 0.0, max_step_size=0.1)
    for grid in (TimeGrid.regular(21, 0.1, dtype=torch.float32), irregular):
        single = rollout(system, PhaseState(*(x.float() for x in start)), grid, integrator=integrator)
        assert single.q.dtype == single.v.dtype == torch.float32
        # 20 steps of 15 stages, a few roundings of 6e-8 each.
        torch.testing.assert_close(single.q.double(), double.q, rtol=0, atol=2e-5)


def test_trajectory_views() -> None:
    path = rollout(
        pendulum(),
        PhaseState(torch.ones(2, 1), torch.zeros(2, 1)),
        TimeGrid.regular(5, 0.1),
        integrator=VelocityVerlet(),
    )
    assert torch.equal(path.at(-1).q, path.q[:, 4])
    assert torch.equal(path.sliced(1, 3).v, path.v[:, 1:3])
    assert path.sliced(3).time.tolist() == path.time[3:].tolist()


def test_bad_input() -> None:
    start = PhaseState(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="backend must be one of auto, reference"):
        rollout(pendulum(), start, TimeGrid.regular(2, 0.1), integrator=VelocityVerlet(), backend="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"initial velocity must have shape \(\*batch, 2\)"):
        check_phase_state(PhaseState(torch.zeros(3, 2), torch.zeros(3, 1)), 2)
    with pytest.raises(ValueError, match=r"initial position must have shape"):
        check_phase_state(PhaseState(torch.tensor(0.0), torch.zeros(1)), 1)
