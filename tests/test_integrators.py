"""The battery that every registered integrator passes: order, geometry, gradients, forcing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vinppl.errors import SolveError
from vinppl.forces import BoundDamping, LinearDamping, QuadraticDamping
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


@every_lie
def test_lie_members_keep_them_on_mixed_periodic_systems_of_three_angles(name: str) -> None:
    check_integrator(MEMBERS[name], dim=3, periodic=True)


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
    with pytest.raises(AssertionError, match="order|in a batch"):
        check_integrator(_Forgetful())


# --- order ---------------------------------------------------------------------------------------


@every_member
@pytest.mark.parametrize("structure", ["scalar", "diagonal", "full"])
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
    rates: dict[int, float] = dataclasses.field(default_factory=dict)

    def converge(self, member: AbstractIntegrator) -> Convergence:
        rate = self.rates.get(member.order, {1: 64.0, 2: 16.0, 4: 4.0, 6: 3.0, 8: 1.0}[member.order])
        start = PhaseState(
            torch.tensor([[1.0], [0.3], [0.6]]), torch.tensor([[0.5], [0.6], [0.4]]) + self.speed
        )
        periodic = member.chart == "lie_group"
        system = Mechanics(self.potential.bind().gradient, unit_mass(), self.damping(), (periodic,))
        sizes, errors = [], []
        for halving in range(5):
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
)
# Rotating, so that |v| v stays smooth.
DRAGGED = Forced(
    DampedPendulum(gravity=1.0, damping=0.0, quadratic_damping=0.05),
    PendulumPotential(1.0),
    lambda: QuadraticDamping(0.05).bind(),
    3.0,
    4.0,
    rates={1: 256.0, 2: 64.0, 4: 16.0, 6: 6.0, 8: 2.0},
)
DRIVEN = Forced(
    DrivenOscillator(stiffness=2.0, damping=0.2, drive_amplitude=0.5, drive_frequency=1.0),
    Harmonic(2.0),
    lambda: LinearDamping(0.2).bind(),
    0.0,
    10.0,
    drive=lambda t: 0.5 * t.cos().unsqueeze(-1),
)
