"""The battery that every registered integrator passes: order, geometry, gradients, forcing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vinppl.errors import PerformanceWarning, SolveError
from vinppl.forces import (
    BoundDamping,
    CoulombFriction,
    LinearDamping,
    QuadraticDamping,
    combine_damping,
)
from vinppl.integrators import (
    COMPOSITIONS,
    INTEGRATORS,
    AbstractIntegrator,
    Composition,
    CompositionScheme,
    Euler,
    LieVerlet,
    Mechanics,
    StormerVerlet,
    VectorField,
    VelocityVerlet,
    make_integrator,
)
from vinppl.integrators.base import implicit_kick, kick
from vinppl.mass import BoundMass, Diagonal, Full, MassSpec, Scalar, bind_mass
from vinppl.potentials import (
    AbstractPotential,
    CoupledSprings,
    FunctionPotential,
    Harmonic,
    KeplerPotential,
    NeuralPotential,
    PendulumPotential,
)
from vinppl.rollout import rollout
from vinppl.state import PhaseState
from vinppl.systems import AbstractSystem, DampedPendulum, DrivenOscillator, HenonHeiles, Kepler
from vinppl.testing import (
    Convergence,
    check_integrator,
    convergence,
    coupled_pendulums,
    phase_jacobian,
    reversal_error,
    symplectic_defect,
)
from vinppl.timegrid import TimeGrid

MEMBERS: dict[str, AbstractIntegrator] = {name: build() for name, build in INTEGRATORS.items()}
LIE = [name for name, member in MEMBERS.items() if member.chart == "lie_group"]
FLAT = [name for name in MEMBERS if name not in LIE]
SYMPLECTIC = [name for name, member in MEMBERS.items() if member.is_symplectic]
ROUND_OFF = 1e-12

every_member = pytest.mark.parametrize("name", MEMBERS)
every_flat = pytest.mark.parametrize("name", FLAT)
every_lie = pytest.mark.parametrize("name", LIE)
every_symplectic = pytest.mark.parametrize("name", SYMPLECTIC)


def unit_mass(value: float = 1.0) -> BoundMass:
    return bind_mass(torch.tensor(value), MassSpec(value))


def mechanics(
    potential: AbstractPotential, mass: BoundMass | None = None, damping: BoundDamping | None = None
) -> Mechanics:
    return Mechanics(potential.bind().gradient, mass or unit_mass(), damping, potential.manifold.periodic)


def one_state(dim: int, size: float = 0.5) -> PhaseState:
    generator = torch.Generator().manual_seed(dim)
    return PhaseState(*(size * torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(2)))


# --- the public battery --------------------------------------------------------------------------


@every_member
@pytest.mark.parametrize("dim", [1, 2])
def test_member_keeps_the_promises_of_its_attributes(name: str, dim: int) -> None:
    check_integrator(MEMBERS[name], dim=dim, periodic=name in LIE)


class _Misdeclared(Euler):
    order = 2


class _NotSymplectic(Euler):
    is_symplectic = True


class _NotReversible(Euler):
    is_reversible = True


class _Forgetful(VelocityVerlet):
    """Uses the first trajectory's force for the whole batch."""

    def step(self, system, carry, step_size, drive):  # type: ignore[no-untyped-def]
        first = carry.a.reshape(-1, carry.a.shape[-1])[0]
        return super().step(system, carry._replace(a=first.expand_as(carry.a)), step_size, drive)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_Misdeclared(), "declares order 2 but converges with order 1"),
        (_NotSymplectic(), "declares is_symplectic but"),
        (_NotReversible(), "declares is_reversible but"),
    ],
)
def test_the_battery_catches_a_broken_promise(broken: AbstractIntegrator, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_integrator(broken)


def test_the_battery_catches_trajectories_that_leak_into_each_other() -> None:
    notice = pytest.warns(PerformanceWarning, match="an operation across trajectories")
    with notice, pytest.raises(AssertionError, match=r"order|in a batch"):
        check_integrator(_Forgetful())


# --- order ---------------------------------------------------------------------------------------


@every_member
@pytest.mark.parametrize("structure", ["diagonal", "full"])
def test_order_with_every_mass(name: str, structure: str) -> None:
    member = MEMBERS[name]
    if name in LIE and structure == "full":
        benchmark = coupled_pendulums(2, structure="full")
        with pytest.raises(ValueError, match="scalar or diagonal mass"):
            convergence(member, benchmark)
        return
    benchmark = coupled_pendulums(2, structure=structure, periodic=name in LIE)
    # Slopes are within 0.1 of the order: the next term of the error expansion changes the error of
    # the coarsest step by a tenth or so. Order 8 ends at 7e-15, ten times the round-off measured.
    assert abs(convergence(member, benchmark, span=20.0).order - member.order) <= 0.15


@dataclasses.dataclass(frozen=True)
class Forced:
    """A ground truth with damping or a drive, and the same system in the library's terms."""

    truth: AbstractSystem
    potential: AbstractPotential
    damping: Callable[[], BoundDamping]
    speed: float
    span: float
    drive: Callable[[Tensor], Tensor] | None = None
    rates: dict[str, float] = dataclasses.field(default_factory=dict)

    def converge(self, name: str) -> Convergence:
        member = MEMBERS[name]
        rate = self.rates.get(name, {1: 64.0, 2: 16.0, 4: 4.0, 6: 3.0, 8: 1.0}[member.order])
        start = PhaseState(
            torch.tensor([[1.0], [0.3], [0.6]]), torch.tensor([[0.5], [0.6], [0.4]]) + self.speed
        )
        periodic = member.chart == "lie_group"
        system = Mechanics(self.potential.bind().gradient, unit_mass(), self.damping(), (periodic,))
        sizes, errors = [], []
        # Order 8 covers the range from pre-asymptotic to round-off in three halvings.
        for halving in range(5 if member.order < 8 else 4):
            count = round(rate * self.span / 5) * 2**halving
            grid = TimeGrid.regular(6, self.span / 5, num_substeps=count)
            with torch.no_grad():
                path = rollout(system, start, grid, integrator=member, drive=self.drive)
            truth = self.truth.solve(start, grid.times)
            square = (path.q - truth.q).square() + (path.v - truth.v).square()
            sizes.append(self.span / 5 / count)
            errors.append(float(square[..., 1:, :].mean().sqrt()))
        return Convergence.fit(sizes, errors)


LINEARLY_DAMPED = Forced(
    DampedPendulum(gravity=1.0, damping=0.2, quadratic_damping=0.0),
    PendulumPotential(1.0),
    lambda: LinearDamping(0.2).bind(),
    0.0,
    10.0,
    rates={"so2_8": 2.0},
)
# Rotating, so that |v| v stays smooth.
DRAGGED = Forced(
    DampedPendulum(gravity=1.0, damping=0.0, quadratic_damping=0.05),
    PendulumPotential(1.0),
    lambda: QuadraticDamping(0.05).bind(),
    3.0,
    4.0,
    rates={"rk4": 16.0, "so2": 64.0, "so2_4": 16.0, "so2_6": 8.0, "so2_8": 8.0, "verlet8": 2.0},
)
DRIVEN = Forced(
    DrivenOscillator(stiffness=2.0, damping=0.2, drive_amplitude=0.5, drive_frequency=1.0),
    Harmonic(2.0),
    lambda: LinearDamping(0.2).bind(),
    0.0,
    10.0,
    drive=lambda t: 0.5 * t.cos().unsqueeze(-1),
)


@every_member
@pytest.mark.parametrize("forced", [LINEARLY_DAMPED, DRAGGED], ids=["linear", "quadratic"])
def test_damping_keeps_the_order(name: str, forced: Forced) -> None:
    # The damped base is symmetric (implicit half a kick, drift, its adjoint), and linear and quadratic
    # damping are solved in closed form, so compositions keep their order too.
    measured = forced.converge(name)
    assert abs(measured.order - MEMBERS[name].order) <= 0.15, measured


@every_flat
def test_a_drive_keeps_the_order(name: str) -> None:
    # Drives are read at both ends of every sub-step, which keeps the base symmetric.
    measured = DRIVEN.converge(name)
    assert abs(measured.order - MEMBERS[name].order) <= 0.15, measured


@pytest.mark.parametrize("name", ["velocity_verlet", "verlet4", "verlet6", "verlet8"])
def test_drag_through_turning_points_limits_the_order(name: str) -> None:
    # |v| v has a kink in its slope at every turning point: second-order members keep their order,
    # compositions are limited to about three (measured 2.9, 2.6, 3.1).
    slow = dataclasses.replace(
        DRAGGED,
        truth=DampedPendulum(gravity=1.0, damping=0.0, quadratic_damping=0.1),
        damping=lambda: QuadraticDamping(0.1).bind(),
        speed=0.0,
        span=10.0,
        rates=dict.fromkeys(MEMBERS, 8.0),
    )
    assert 1.85 <= slow.converge(name).order <= 3.6


# --- symplecticity -------------------------------------------------------------------------------


def henon_heiles() -> AbstractPotential:
    return FunctionPotential(HenonHeiles().potential, manifold=2)


def neural(dim: int) -> AbstractPotential:
    return NeuralPotential(dim, hidden_sizes=(8, 8), generator=torch.Generator().manual_seed(dim))


POTENTIALS: dict[str, Callable[[], AbstractPotential]] = {
    "neural1": lambda: neural(1),
    "neural2": lambda: neural(2),
    "neural3": lambda: neural(3),
    "springs": lambda: CoupledSprings(torch.tensor([2.0, 1.0, 1.0, 3.0]), dim=3),
    "henon_heiles": henon_heiles,
}
MASSES: dict[str, Callable[[int], BoundMass]] = {
    "scalar": lambda dim: bind_mass(torch.tensor(1.7), Scalar(torch.tensor(1.7))),
    "diagonal": lambda dim: bind_mass(1.0 + torch.arange(dim) / 2.0, Diagonal(torch.ones(dim))),
    "full": lambda dim: bind_mass(torch.eye(dim) + 0.3 * torch.ones(dim, dim), Full(torch.eye(dim))),
}


def angles(system: Mechanics, dim: int) -> Mechanics:
    return system._replace(periodic=(True,) * dim)


def system_of(
    name: str, potential: str, mass: str, damping: BoundDamping | None = None
) -> tuple[Mechanics, int]:
    bound = POTENTIALS[potential]()
    dim = bound.manifold.dim
    system = mechanics(bound, MASSES[mass](dim), damping)
    return (angles(system, dim) if name in LIE else system), dim


@every_symplectic
@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_symplectic_in_canonical_coordinates(name: str, mass: str, potential: str) -> None:
    if name in LIE and mass == "full":
        pytest.skip("defined for a scalar or diagonal mass")
    system, dim = system_of(name, potential, mass)
    for num_steps in (1, 5):
        grid = TimeGrid.regular(num_steps + 1, 0.1)
        jacobian = phase_jacobian(system, one_state(dim), grid, integrator=MEMBERS[name])
        # Products of at most 75 Jacobians of entries about one: 75 * 6 * eps = 1e-13.
        assert symplectic_defect(jacobian) <= ROUND_OFF


@every_symplectic
def test_symplectic_over_irregular_steps_and_through_an_oblique_mix_of_coordinates(name: str) -> None:
    system, dim = system_of(name, "neural2", "diagonal")
    grid = TimeGrid.from_times(torch.tensor([0.0, 0.05, 0.3, 0.37]), max_step_size=0.1)
    jacobian = phase_jacobian(system, one_state(dim), grid, integrator=MEMBERS[name])
    assert symplectic_defect(jacobian) <= ROUND_OFF


@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in SYMPLECTIC])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_others_are_not_symplectic(name: str, potential: str) -> None:
    system, dim = system_of(name, potential, "scalar")
    grid = TimeGrid.regular(2, 0.5)
    jacobian = phase_jacobian(system, one_state(dim, size=1.0), grid, integrator=MEMBERS[name])
    # Euler errs by h^2 V'' = 1e-2 or more, Runge-Kutta by (h omega)^6 / 72, 1e-8 for the soft network.
    assert symplectic_defect(jacobian) >= 1e-9


@every_symplectic
@pytest.mark.parametrize("potential", ["neural1", "springs", "henon_heiles"])
def test_conformally_symplectic_under_linear_damping(name: str, potential: str) -> None:
    # With F = -c v and a scalar mass m each sub-step contracts dq ^ dp by the Pade approximant
    # (1 - z) / (1 + z), z = c gamma h / 2m, of the exact exp(-c gamma h / m).
    c, m, h, num_steps = 0.4, 1.7, 0.1, 3
    member = MEMBERS[name]
    system, dim = system_of(name, potential, "scalar", LinearDamping(c).bind())
    grid = TimeGrid.regular(num_steps + 1, h)
    jacobian = phase_jacobian(system, one_state(dim), grid, integrator=member)
    halves = [0.5 * c * fraction * h / m for fraction in member.fractions]
    contraction = math.prod((1 - z) / (1 + z) for z in halves) ** num_steps
    assert symplectic_defect(jacobian, factor=contraction) <= ROUND_OFF
    assert float(torch.linalg.det(jacobian)) == pytest.approx(contraction**dim, rel=1e-12)
    # |log((1 - z) / (1 + z)) + 2 z| <= z^3 (2/3 + z^2) for each sub-step.
    bound = num_steps * sum(abs(z) ** 3 * (2 / 3 + z * z) for z in halves)
    assert abs(math.log(contraction) + c * h * num_steps / m) <= bound + 1e-15


# --- reversibility -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.is_reversible])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_reversible(name: str, potential: str) -> None:
    system, dim = system_of(name, potential, "diagonal")
    regular = TimeGrid.regular(41, 0.1)
    irregular = TimeGrid.from_times(torch.tensor([0.0, 0.1, 0.35, 0.4, 0.7]), max_step_size=0.1)
    for grid in (regular, irregular):
        assert reversal_error(system, one_state(dim), grid, integrator=MEMBERS[name]) <= ROUND_OFF


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if not member.is_reversible])
def test_the_others_are_not_reversible(name: str) -> None:
    system, dim = system_of(name, "springs", "scalar")
    assert reversal_error(system, one_state(dim), TimeGrid.regular(41, 0.1), integrator=MEMBERS[name]) >= 1e-6


# --- momentum maps and energy --------------------------------------------------------------------


def drift_of(
    name: str, system: Mechanics, start: PhaseState, num_steps: int, invariant: Callable[[PhaseState], Tensor]
) -> float:
    """Return the largest change of an invariant, seen every 50 steps of 0.02."""
    grid = TimeGrid.regular(num_steps // 50 + 1, 1.0, num_substeps=50)
    with torch.no_grad():
        path = rollout(system, start, grid, integrator=MEMBERS[name])
    values = invariant(PhaseState(path.q, path.v))
    return float((values - values[0]).abs().max())


@pytest.mark.parametrize("name", [name for name in SYMPLECTIC if name in FLAT])
def test_angular_momentum_of_kepler(name: str) -> None:
    truth = Kepler(mass=1.3)
    system = mechanics(KeplerPotential(1.3), unit_mass(1.3))
    start = PhaseState(
        torch.tensor([0.6, 0.0]), torch.tensor([0.0, math.sqrt(1.6 / 0.6)])
    )  # eccentricity 0.6
    num_steps = 10_000 // MEMBERS[name].force_evaluations  # 1e4 sub-steps each
    drift = drift_of(name, system, start, num_steps, lambda s: truth.angular_momentum(s.q, s.v))
    # Rounding errors of about eps |L| a sub-step add up like a random walk: 1e4 of them give 1e2
    # eps = 2e-14. Measured: 0.7e-14 to 2.5e-14 (and at most 4.6e-14 over 1e4 whole steps of any member).
    assert drift <= 2e-13


@every_symplectic
def test_linear_momentum_of_a_translation_invariant_potential(name: str) -> None:
    free = FunctionPotential(lambda q: (1 + q.diff(dim=-1).square()).log().sum(-1), manifold=3)
    masses = torch.tensor([1.0, 2.0, 0.5])
    system = mechanics(free, bind_mass(masses, Diagonal(masses)))
    start = one_state(3)
    if name in LIE:
        # On a torus the kinetic part of the discrete Lagrangian is (M/h)(1 - cos increment): what a
        # translation conserves is still sum_i M_i v_i, by Noether's theorem.
        system = angles(system, 3)
    drift = drift_of(name, system, start, 500, lambda s: (masses * s.v).sum(-1))
    assert drift <= 5e-14  # 500 * 15 sub-steps of round-off eps, as a random walk, times |p| = 2


@every_lie
def test_free_rotation_is_exactly_uniform(name: str) -> None:
    system = Mechanics(torch.zeros_like, unit_mass(1.7), None, (True, True))
    start = PhaseState(torch.tensor([0.3, -1.0]), torch.tensor([2.0, -0.7]))
    path = rollout(system, start, TimeGrid.regular(2, 10.0, num_substeps=100), integrator=MEMBERS[name])
    assert torch.equal(path.v[-1], start.v)
    # asin(h v) per sub-step: the group structure turns the angle by that much, uniformly.
    increments = [torch.asin(0.1 * fraction * start.v) for fraction in MEMBERS[name].fractions]
    torch.testing.assert_close(path.q[-1], start.q + 100 * sum(increments), rtol=0, atol=1e-11)


def pendulum_energy_errors(num_steps: int, stride: int, num_chunks: int) -> Tensor:
    """Return the energy errors of velocity Verlet on the pendulum with h = 0.1, `(samples, 3)`."""
    k = 1.0  # g / l; one period takes some 65 steps
    system = mechanics(PendulumPotential(k))
    state = PhaseState(torch.tensor([[1.0], [2.0], [0.5]]), torch.tensor([[0.0], [0.3], [2.2]]))
    samples = num_steps // num_chunks // stride
    grid = TimeGrid.regular(samples + 1, 0.1 * stride, num_substeps=stride)

    def energy(q: Tensor, v: Tensor) -> Tensor:
        return (0.5 * v * v - k * q.cos()).squeeze(-1)

    reference, errors = energy(*state), []
    with torch.no_grad():
        for _ in range(num_chunks):
            path = rollout(system, state, grid, integrator=MEMBERS["velocity_verlet"])
            state = path.at(-1)
            errors.append((energy(path.q, path.v)[:, 1:] - reference.unsqueeze(-1)).T)
    return torch.cat(errors)


def trend_over_noise(errors: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Return the linear trend over the whole run and its standard error, from block means, `(3,)`."""
    blocks = (
        errors[: len(errors) // num_blocks * num_blocks].reshape(num_blocks, -1, errors.shape[-1]).mean(1)
    )
    x = torch.linspace(-0.5, 0.5, num_blocks).unsqueeze(-1)
    slope = (x * blocks).sum(0) / x.square().sum()
    residual = blocks - blocks.mean(0) - slope * x
    return slope, (residual.square().sum(0) / (num_blocks - 2) / x.square().sum()).sqrt()


def test_energy_error_stays_bounded_over_ten_thousand_steps() -> None:
    errors = pendulum_energy_errors(10_000, stride=1, num_chunks=1)
    amplitude = errors.amax(0) - errors.amin(0)
    # The modified energy differs from H by h^2 (v^2 cos q / 12 + sin^2 q / 24), below h^2 (v^2 + 1) / 8.
    assert bool((errors.abs().amax(0) <= 0.01 / 8 * (torch.tensor([1.0, 3.0, 9.0]) + 1)).all())
    trend, _ = trend_over_noise(errors, 20)
    assert bool((trend.abs() <= 0.02 * amplitude).all())  # blocks of 500 steps cut a period of 65: 1/8 each


@pytest.mark.slow
def test_energy_error_has_no_trend_over_a_million_steps() -> None:
    errors = pendulum_energy_errors(1_000_000, stride=7, num_chunks=20)
    amplitude = errors.amax(0) - errors.amin(0)
    trend, noise = trend_over_noise(errors, 100)
    print(f"max |E error| {errors.abs().amax(0).tolist()}, trend {trend.tolist()} +- {noise.tolist()}")
    assert bool((errors.abs().amax(0) <= 0.01 / 8 * (torch.tensor([1.0, 3.0, 9.0]) + 1)).all())
    assert bool((trend.abs() <= torch.maximum(4 * noise, 1e-4 * amplitude)).all())
    assert bool((trend.abs() <= 0.01 * amplitude).all())


def test_the_trend_fit_sees_the_drift_of_euler() -> None:
    grid = TimeGrid.regular(1001, 0.1)
    system = mechanics(PendulumPotential(1.0))
    with torch.no_grad():
        path = rollout(system, one_state(1), grid, integrator=MEMBERS["euler"])
    errors = 0.5 * path.v.square() - path.q.cos()
    trend, noise = trend_over_noise(errors, 20)
    assert float(trend) > 4 * float(noise)


# --- gradients -----------------------------------------------------------------------------------


@every_member
def test_gradcheck_through_a_rollout(name: str) -> None:
    periodic = name in LIE

    def end(
        q: Tensor, v: Tensor, mass: Tensor, stiffness: Tensor, gaps: Tensor, linear: Tensor, drag: Tensor
    ) -> tuple[Tensor, Tensor]:
        damping = BoundDamping(linear, drag, (drag, linear))
        system = Mechanics(
            lambda x: stiffness * x.sin(), bind_mass(mass, Diagonal(mass)), damping, (periodic,) * 2
        )
        times = torch.cat([torch.zeros(1), gaps.cumsum(0)])
        path = rollout(system, PhaseState(q, v), TimeGrid.from_times(times), integrator=MEMBERS[name])
        return path.q, path.v

    values = ([0.4, -0.7], [0.5, 0.3], [1.3, 0.8], [1.1, 2.0], [0.1, 0.2, 0.1], [0.2, 0.1], [0.1, 0.3])
    inputs = tuple(torch.tensor(x, requires_grad=True) for x in values)
    assert torch.autograd.gradcheck(end, inputs)


def test_times_that_carry_gradients_keep_them_on_a_regular_grid() -> None:
    system = mechanics(PendulumPotential(1.0))
    step = torch.tensor(0.1, requires_grad=True)
    times = step * torch.arange(4)
    start = PhaseState(torch.tensor([0.4]), torch.tensor([0.5]))
    grid = TimeGrid.from_times(times)
    path = rollout(system, start, grid, integrator=VelocityVerlet())
    (slope,) = torch.autograd.grad(path.q[-1, 0], step)

    def last(h: float) -> float:
        return float(rollout(system, start, TimeGrid.regular(4, h), integrator=VelocityVerlet()).q[-1, 0])

    # Central differences err by 1e-4^2 / 6 times a third derivative of size 27.
    assert float(slope) == pytest.approx((last(0.1 + 1e-4) - last(0.1 - 1e-4)) / 2e-4, abs=1e-7)


def test_gradcheck_with_a_full_mass() -> None:
    springs = CoupledSprings(torch.tensor([2.0, 1.0, 1.0])).bind()
    linear = LinearDamping(0.3).bind()

    def end(q: Tensor, v: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        mass = root @ root.T + torch.eye(2)
        system = Mechanics(springs.gradient, bind_mass(mass, Full(mass)), linear)
        path = rollout(system, PhaseState(q, v), TimeGrid.regular(4, 0.1), integrator=VelocityVerlet())
        return path.q, path.v

    values = ([0.4, -0.7], [0.5, 0.3], [[1.3, 0.8], [0.1, 0.9]])
    assert torch.autograd.gradcheck(end, tuple(torch.tensor(x, requires_grad=True) for x in values))


# --- the paper's equations -----------------------------------------------------------------------


def paper_path(name: str, periodic: bool = False) -> tuple[Mechanics, Tensor, Tensor, float, Tensor]:
    """Return a system, its path, the step, and the accelerations along the path."""
    h = 0.1
    masses = torch.tensor([1.3, 0.7])
    potential = NeuralPotential(2, hidden_sizes=(6,), generator=torch.Generator().manual_seed(3))
    system = mechanics(potential, bind_mass(masses, Diagonal(masses)))
    if periodic:
        system = angles(system, 2)
    with torch.no_grad():
        path = rollout(system, one_state(2), TimeGrid.regular(30, h), integrator=MEMBERS[name])
        return system, path.q, path.v, h, system.gradient(path.q) / masses


def test_stormer_verlet_satisfies_equation_6() -> None:
    _, q, _, h, force = paper_path("stormer_verlet")
    torch.testing.assert_close(
        q[2:], 2 * q[1:-1] - q[:-2] - h**2 * force[1:-1], rtol=0, atol=1e-14
    )  # a few roundings of numbers of size one


def test_stormer_verlet_has_the_positions_and_velocities_of_velocity_verlet() -> None:
    _, q, v, *_ = paper_path("stormer_verlet")
    _, other_q, other_v, *_ = paper_path("velocity_verlet")
    torch.testing.assert_close(q, other_q, rtol=0, atol=1e-13)
    torch.testing.assert_close(v, other_v, rtol=0, atol=1e-13)


def test_velocity_verlet_satisfies_equations_9_and_10() -> None:
    _, q, v, h, force = paper_path("velocity_verlet")
    torch.testing.assert_close(q[1:], q[:-1] + h * v[:-1] - h**2 / 2 * force[:-1], rtol=0, atol=1e-14)
    torch.testing.assert_close(v[1:], v[:-1] - h / 2 * (force[:-1] + force[1:]), rtol=0, atol=1e-14)


def test_so2_satisfies_equations_11_and_12() -> None:
    _, q, v, h, force = paper_path("so2", periodic=True)
    sine = q.diff(dim=0).sin()
    torch.testing.assert_close(sine[1:], sine[:-1] - h**2 * force[1:-1], rtol=0, atol=1e-14)
    # The discrete Legendre transform, in the form of the docstring divided by M.
    torch.testing.assert_close(v[:-1], sine / h + h / 2 * force[:-1], rtol=0, atol=1e-13)


@every_lie
def test_lines_of_a_mixed_manifold_advance_as_velocity_verlet(name: str) -> None:
    twin = {"so2": "velocity_verlet"}.get(name, name.replace("so2_", "verlet"))
    separable = Mechanics(lambda q: q.sin(), unit_mass(), LinearDamping(0.1).bind(), (False, True))
    start, grid = one_state(2), TimeGrid.regular(20, 0.1)
    mixed = rollout(separable, start, grid, integrator=MEMBERS[name])
    flat = rollout(separable, start, grid, integrator=MEMBERS[twin])
    torch.testing.assert_close(mixed.q[:, 0], flat.q[:, 0], rtol=0, atol=1e-13)
    torch.testing.assert_close(mixed.v[:, 0], flat.v[:, 0], rtol=0, atol=1e-13)
    if name == "so2":  # the angle takes another path, the closer the higher the order
        assert float((mixed.q[:, 1] - flat.q[:, 1]).abs().max()) > 1e-6


# --- d'Alembert kicks ----------------------------------------------------------------------------


def test_implicit_kick_is_the_adjoint_of_kick() -> None:
    v, a = torch.tensor([0.8, -0.5]), torch.tensor([0.3, 0.2])
    both = combine_damping([LinearDamping(0.7).bind(), QuadraticDamping(0.7).bind()])
    friction = CoulombFriction(0.7, smoothing=0.5).bind()
    for damping in (LinearDamping(0.7).bind(), QuadraticDamping(0.7).bind(), both, friction):
        for mass in (unit_mass(), MASSES["diagonal"](2), MASSES["full"](2)):
            for tau in (0.05, -0.05):  # stages of compositions go backwards
                system = Mechanics(torch.zeros_like, mass, damping)
                back = kick(system, implicit_kick(system, v, tau, a), -tau, a)
                # Closed forms are exact. Newton starts e = tau |a + F| = 0.06 off and squares that three
                # times, e <- k e^2 with k = tau f / s^2 / 2 = 0.07 here: below 0.07^7 e^8 = 1e-18.
                torch.testing.assert_close(back, v, rtol=0, atol=1e-14)


# --- unsolvable steps ----------------------------------------------------------------------------


@every_lie
def test_an_unsolvable_step_says_where_and_by_how_much(name: str) -> None:
    # Constant torque: v = t, so that |h v| = 1 is passed at t = 10 with h = 0.1 and unit fractions.
    system = Mechanics(lambda q: -torch.ones_like(q), unit_mass(), None, (True,))
    start = PhaseState(torch.zeros(1), torch.zeros(1))
    grid = TimeGrid.regular(101, 0.2, num_substeps=2)
    with pytest.raises(SolveError, match="has no solution") as caught:
        rollout(system, start, grid, integrator=MEMBERS[name])
    error = caught.value
    fraction = max(abs(f) for f in MEMBERS[name].fractions)
    assert error.step is not None
    assert error.time == pytest.approx(0.1 * error.step)
    assert error.time == pytest.approx(10.0 / fraction, abs=0.2)
    assert error.residual is not None
    assert 0 < error.residual < 0.02


def test_an_unsolvable_step_is_found_in_a_batch_under_a_drive() -> None:
    system = Mechanics(torch.zeros_like, unit_mass(), None, (True,))
    start = PhaseState(torch.zeros(2, 1), torch.tensor([[0.0], [5.0]]))
    times = torch.stack([torch.arange(101) * 0.1, 50 + torch.arange(101) * 0.1])

    def push(t: Tensor) -> Tensor:
        return (t - t.floor().clamp_max(0) - 50).clamp_min(-50).unsqueeze(-1).sign().clamp_min(0)

    with pytest.raises(SolveError) as caught:
        rollout(system, start, TimeGrid.from_times(times), integrator=LieVerlet(), drive=push)
    # Only the second is pushed: v = 5 + (t - 50), unsolvable from v = 10, t = 55.
    assert caught.value.time == pytest.approx(55.0, abs=0.11)


def test_a_solvable_path_is_never_clipped() -> None:
    system = Mechanics(torch.zeros_like, unit_mass(), None, (True,))
    start = PhaseState(torch.zeros(1), torch.tensor([9.999]))
    path = rollout(system, start, TimeGrid.regular(3, 0.1), integrator=LieVerlet())
    torch.testing.assert_close(path.q[1], torch.tensor([math.asin(0.9999)]))
    with pytest.raises(SolveError):
        rollout(
            system,
            PhaseState(torch.zeros(1), torch.tensor([10.001])),
            TimeGrid.regular(3, 0.1),
            integrator=LieVerlet(),
        )


def test_nan_in_the_initial_state_is_not_called_unsolvable() -> None:
    system = Mechanics(torch.sin, unit_mass(), None, (True,))
    start = PhaseState(torch.tensor([math.nan]), torch.zeros(1))
    path = rollout(system, start, TimeGrid.regular(3, 0.1), integrator=LieVerlet())
    assert bool(path.q.isnan().all())


# --- compositions and the registry ---------------------------------------------------------------


def test_compositions_check_their_coefficients() -> None:
    with pytest.raises(ValueError, match="must sum to one"):
        CompositionScheme("wrong sum", 2, (0.3, 0.3))
    with pytest.raises(ValueError, match=r"the sum of gamma\^3 must vanish"):
        CompositionScheme("order 2 only", 4, (0.3, 0.4))
    suzuki = COMPOSITIONS[4]
    with pytest.raises(ValueError, match=r"the sum of gamma\^5 must vanish"):
        CompositionScheme("order 4 called 6", 6, suzuki.half)
    assert suzuki.coefficients == suzuki.coefficients[::-1]


@pytest.mark.parametrize("scheme", COMPOSITIONS.values(), ids=[str(order) for order in COMPOSITIONS])
def test_coefficients_satisfy_their_identities(scheme: CompositionScheme) -> None:
    gamma = scheme.coefficients
    assert gamma == gamma[::-1]
    assert abs(math.fsum(gamma) - 1) <= 1e-15
    for power in range(3, scheme.order, 2):
        assert abs(math.fsum(g**power for g in gamma)) <= 1e-15


@pytest.mark.parametrize("base", ["euler", "rk4", "verlet4"])
def test_compositions_want_a_reversible_second_order_base(base: str) -> None:
    with pytest.raises(ValueError, match="reversible base integrator of order 2"):
        Composition(MEMBERS[base], COMPOSITIONS[4])


def test_registry() -> None:
    assert isinstance(make_integrator("stormer_verlet"), StormerVerlet)
    own = VelocityVerlet()
    assert make_integrator(own) is own
    with pytest.raises(ValueError, match="integrator must be one of stormer_verlet"):
        make_integrator("leapfrog")


@every_member
def test_declared_cost_is_the_number_of_force_evaluations(name: str) -> None:
    calls = 0

    def gradient(q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return q.sin()

    system = Mechanics(gradient, unit_mass(), None, (name in LIE,))
    start = one_state(1)
    member = MEMBERS[name]
    rollout(system, start, TimeGrid.regular(2, 0.01), integrator=member, backend="reference")
    first, calls = calls, 0
    rollout(system, start, TimeGrid.regular(12, 0.01), integrator=member, backend="reference")
    assert calls - first == 10 * member.force_evaluations


@every_member
def test_vector_fields_run_only_where_no_structure_is_needed(name: str) -> None:
    field = VectorField(lambda q, v: (v, -q))
    start, grid = one_state(1), TimeGrid.regular(3, 0.1)
    member = MEMBERS[name]
    if member.needs_mechanics:
        with pytest.raises(ValueError, match="needs a mechanical system"):
            rollout(field, start, grid, integrator=member)
    else:
        as_mechanics = rollout(mechanics(Harmonic(1.0)), start, grid, integrator=member)
        torch.testing.assert_close(rollout(field, start, grid, integrator=member).q, as_mechanics.q)
