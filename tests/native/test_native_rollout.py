"""Compiled rollouts against the torch loop: paths, all gradients, and what falls back to it."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vinppl import native
from vinppl.dynamics import VIN
from vinppl.errors import PerformanceWarning, SolveError
from vinppl.forces import (
    ControlSignal,
    CoulombFriction,
    Drive,
    LinearDamping,
    QuadraticDamping,
    combine_damping,
)
from vinppl.integrators import INTEGRATORS, Composition, Mechanics, VectorField, VelocityVerlet
from vinppl.integrators.compose import COMPOSITIONS
from vinppl.manifolds import Manifold, Torus
from vinppl.mass import Diagonal, Full, MassSpec, Scalar, bind_mass
from vinppl.native import rollout as native_rollout
from vinppl.nn import Activation
from vinppl.parameters import Learned
from vinppl.potentials import (
    AbstractPotential,
    BoundPotential,
    CoupledSprings,
    DuffingPotential,
    FunctionPotential,
    Harmonic,
    KeplerPotential,
    NetworkGradient,
    NeuralPotential,
    PendulumPotential,
)
from vinppl.rollout import Backend, rollout
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid

RTOL = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by every path that compiled code gives."""
    found: list[Any] = []
    inner = native_rollout.native_path

    def spy(*arguments: Any) -> Any:
        path = inner(*arguments)
        found.append(path)
        return path

    monkeypatch.setattr(native_rollout, "native_path", spy)
    return found


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare relative to the largest element."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    rtol = RTOL[expected.dtype]
    scale = float(expected.detach().nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale, equal_nan=True)


def agree(run: Callable[[Backend], Tensor], leaves: Sequence[Tensor], paths: list[Any]) -> None:
    """Check that both backends give the same numbers and the same gradients of a random sum of them."""
    results = []
    for backend in ("auto", "reference"):
        before = len(paths)
        value = run(backend)
        assert len(paths) - before == (backend == "auto")
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=value.dtype)
        gradients = torch.autograd.grad((weights * value).sum(), leaves, allow_unused=True) if leaves else ()
        results.append((value.detach(), gradients))
    (actual, found), (expected, wanted) = results
    close(actual, expected)
    for a, e in zip(found, wanted, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            assert a is not None
            close(a, e)


def joined(path: Trajectory) -> Tensor:
    return torch.cat([path.q, path.v], -1)


# The agreement of everything with everything

MATRIX = torch.tensor([[1.0, 0.3, -0.2], [0.1, 0.8, 0.4], [0.2, -0.5, 1.1]], dtype=torch.float64)
PLACES = torch.tensor([2, 0, 1])

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pow": lambda q, a: (a * (q * q + 0.1) ** 1.7).sum(-1),
    "softplus": lambda q, a: F.softplus(a * q, beta=2.0).sum(-1) + (q * q).sum(-1),
    "where": lambda q, a: torch.where(q > 0.1, a * q * q, 0.5 * q**4).sum(-1),
    "cat": lambda q, a: (a * torch.cat([q[..., 1:], q[..., :1].sin()], -1).square()).sum(-1),
    "matmul": lambda q, a: torch.einsum("...i,ij,...j->...", a * q, MATRIX.to(q.dtype), q),
    "index": lambda q, a: (a * q[..., [0, 2]] * q[..., PLACES[:2]]).sum(-1) + q[..., 1] ** 2,
    "norm": lambda q, a: a[..., 0] * (q - 2.0).norm(dim=-1) + (q.roll(1, -1) * q).sum(-1),
    "atan2": lambda q, a: a[..., 0] * torch.atan2(q[..., 0], 2 + q[..., 1] * q[..., 2]) + q.square().sum(-1),
}


class Kind(NamedTuple):
    """A potential: how it is made, and where a trajectory begins."""

    make: Callable[[], AbstractPotential]
    centre: float = 0.3


def neural(manifold: Manifold | int, sizes: tuple[int, ...], activation: str) -> NeuralPotential:
    generator = torch.Generator().manual_seed(5)
    scales = {"input_scale": 1.3, "energy_scale": 2.0}
    return NeuralPotential(manifold, hidden_sizes=sizes, activation=activation, generator=generator, **scales)


def function(name: str) -> FunctionPotential:
    return FunctionPotential(FUNCTIONS[name], {"a": Learned(0.7)}, manifold=3)


ANGULAR: dict[str, Kind] = {
    "pendulum": Kind(lambda: PendulumPotential(Learned(3.0), angle_offset=Learned(0.2))),
    "torus": Kind(
        lambda: FunctionPotential(
            lambda q, a: -(a * q.cos()).sum(-1) - (q[..., 0] - q[..., 1]).cos(),
            {"a": Learned(1.4)},
            manifold=Torus(2),
        )
    ),
    "deep network": Kind(lambda: neural(Manifold((True, False)), (5, 4), "silu")),
}
LINEAR: dict[str, Kind] = {
    "harmonic": Kind(lambda: Harmonic(Learned(2.0))),
    "harmonic 3": Kind(lambda: Harmonic(Learned(torch.tensor([1.0, 2.0, 3.0])), dim=3)),
    "duffing": Kind(lambda: DuffingPotential(Learned(-1.0), Learned(0.8))),
    "kepler": Kind(lambda: KeplerPotential(Learned(1.2), dim=2), 1.0),
    "springs": Kind(lambda: CoupledSprings(Learned(1.5), dim=3)),
    "free end": Kind(lambda: CoupledSprings(Learned(1.5), dim=2, fixed_ends=False)),
    "network": Kind(lambda: neural(2, (9,), "tanh")),
    **{name: Kind(lambda name=name: function(name)) for name in FUNCTIONS},
}
POTENTIALS = ANGULAR | LINEAR

BATCHES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 4), (40,)]
MASSES = ["unit", "scalar", "diagonal", "full"]
FORCES = ["none", "linear", "quadratic", "friction", "linear+quadratic", "linear+quadratic+friction"]
FORCES += ["drive", "linear+drive", "quadratic+friction+drive"]
GRIDS = ["regular", "sub-steps", "irregular", "gradients of times", "batched", "repeated", "one step"]


class Case(NamedTuple):
    """One choice of everything."""

    integrator: str
    potential: str
    batch: tuple[int, ...]
    grid: str
    mass: str
    forces: str


def cases() -> Iterator[Case]:
    """Yield every integrator with every potential; the rest is drawn such that all pairs come up."""
    rng = random.Random(2)
    bags: dict[str, list[Any]] = {}

    def draw(name: str, options: Sequence[Any]) -> Any:
        if not bags.get(name):
            bags[name] = rng.sample(list(options), len(options))
        return bags[name].pop()

    for integrator, potential in itertools.product(INTEGRATORS, POTENTIALS):
        lie = integrator.startswith("so2")
        if lie and potential not in ANGULAR:
            continue
        mass = draw(f"mass {lie}", MASSES[:3] if lie else MASSES)
        batch, grid, forces = draw("batch", BATCHES), draw("grid", GRIDS), draw("forces", FORCES)
        yield Case(integrator, potential, batch, grid, mass, forces)


def grid_for(name: str, batch: tuple[int, ...]) -> TimeGrid:
    gaps = torch.tensor([0.1, 0.25, 0.07, 0.13])
    times = torch.cat([torch.zeros(1), gaps.cumsum(0)])
    if name == "regular":
        return TimeGrid.regular(5, 0.1)
    if name == "one step":
        return TimeGrid.regular(2, 0.1)
    if name == "sub-steps":
        return TimeGrid.regular(4, 0.2, num_substeps=2)
    if name == "repeated":
        times = times[[0, 1, 1, 2, 3]]
    if name in ("batched", "gradients of times"):
        times = times * (1 + 0.3 * torch.rand(*batch, 1))
        times.requires_grad_(name != "batched")
    return TimeGrid.from_times(times, max_step_size=0.15)


def mass_for(name: str, dim: int) -> float | MassSpec:
    if name == "unit":
        return 1.0
    if name == "scalar":
        return Scalar(Learned(1.3))
    if name == "diagonal":
        return Diagonal(Learned(torch.linspace(0.8, 1.5, dim)))
    return Full(Learned(torch.eye(dim) + 0.2 * torch.ones(dim, dim)))


def forces_for(names: str, dim: int) -> list[Any]:
    channels = 2
    gain = torch.linspace(-0.5, 1.0, dim * channels).reshape(dim, channels)
    made = {
        "linear": lambda: LinearDamping(Learned(0.3)),
        "quadratic": lambda: QuadraticDamping(Learned(torch.linspace(0.2, 0.4, dim)), dim=dim),
        "friction": lambda: CoulombFriction(Learned(0.1), smoothing=Learned(0.2)),
        "drive": lambda: Drive(Learned(gain), offset=Learned(0.1), dim=dim, num_channels=channels),
    }
    return [made[name]() for name in names.split("+") if name != "none"]


def check(case: Case, paths: list[Any], dtype: torch.dtype = torch.float64) -> None:
    kind = POTENTIALS[case.potential]
    potential = kind.make()
    dim = potential.manifold.dim
    vin = VIN(
        potential,
        mass=mass_for(case.mass, dim),
        forces=forces_for(case.forces, dim),
        integrator=case.integrator,
    ).to(dtype)
    grid = grid_for(case.grid, case.batch)
    if dtype != torch.float64:
        times = grid.times.detach().to(dtype).requires_grad_(grid.times.requires_grad)
        grid = TimeGrid(times, grid.num_substeps, grid.uniform_step)
    q = (kind.centre + 0.1 * torch.randn(*case.batch, dim)).to(dtype).requires_grad_()
    v = (0.3 * torch.randn(*case.batch, dim)).to(dtype).requires_grad_()
    leaves = [q, v, *vin.parameters()]
    leaves += [grid.times] if grid.times.requires_grad else []
    control = None
    if "drive" in case.forces:
        at = torch.linspace(-1, 2, 7, dtype=dtype)
        values = torch.stack([at.cos(), at.sin()], -1).requires_grad_()
        control = ControlSignal(at, values)
        leaves.append(values)

    def run(backend: Backend) -> Tensor:
        vin.backend = backend
        return joined(vin(PhaseState(q, v), grid, control=control))

    agree(run, leaves, paths)


CASES = list(cases())
SLOW = {"verlet6", "verlet8", "so2_6", "so2_8"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c.integrator in SLOW else []) for c in CASES],
    ids=lambda c: ", ".join(map(str, c)),
)
def test_every_integrator_on_every_potential(case: Case, paths: list[Any]) -> None:
    check(case, paths)


def test_all_pairs_come_up() -> None:
    for a, b in itertools.combinations(range(2, len(Case._fields)), 2):
        assert len({(c[a], c[b]) for c in CASES}) > 0.9 * len({c[a] for c in CASES}) * len(
            {c[b] for c in CASES}
        ), (
            Case._fields[a],
            Case._fields[b],
        )


@pytest.mark.parametrize("case", CASES[:: len(CASES) // 20], ids=lambda c: ", ".join(map(str, c)))
def test_single_precision(case: Case, paths: list[Any]) -> None:
    check(case, paths, torch.float32)


# Batches, types and layouts


def unit_mass() -> Any:
    return bind_mass(torch.tensor(1.0), MassSpec(1.0))


def mechanics(gradient: Callable[[Tensor], Tensor], dim: int = 1, *, angular: bool = False) -> Mechanics:
    return Mechanics(gradient, unit_mass(), None, (angular,) * dim)


def path(
    system: Mechanics | VectorField,
    q: Tensor,
    v: Tensor,
    backend: Backend = "auto",
    *,
    grid: TimeGrid | None = None,
    integrator: str = "velocity_verlet",
) -> Tensor:
    grid = grid or TimeGrid.regular(5, 0.1, dtype=q.dtype)
    return joined(
        rollout(system, PhaseState(q, v), grid, integrator=INTEGRATORS[integrator](), backend=backend)
    )


@pytest.mark.parametrize("integrator", ["stormer_verlet", "so2", "rk4", "verlet4"])
@pytest.mark.parametrize("particles", [(3, 2), (3, 1)])
def test_parameters_with_particle_dimensions(
    integrator: str, particles: tuple[int, ...], paths: list[Any]
) -> None:
    k = (torch.rand(*particles, 1) + 0.5).requires_grad_()
    mass = (torch.rand(3, 1) + 0.5).requires_grad_()
    system = Mechanics(lambda q: k * q.sin(), bind_mass(mass, Scalar(mass)), None, (True,))
    for shape in ((2, 1), (3, 2, 1), (1,)):
        q, v = (torch.randn(shape).requires_grad_() for _ in range(2))
        # The mass is read once more for each backend: its inverse belongs to the graph.
        agree(
            lambda b, q=q, v=v: path(
                system._replace(mass=bind_mass(mass, Scalar(mass))), q, 0.3 * v, b, integrator=integrator
            ),
            [q, v, k, mass],
            paths,
        )
        assert paths[-1][0].shape == torch.broadcast_shapes((*particles, 5, 1), (*shape[:-1], 5, 1))


def test_a_parameter_transposed_over_the_batch(paths: list[Any]) -> None:
    k = (torch.rand(4, 3) + 0.5).requires_grad_()
    q, v = torch.randn(3, 4, 1), torch.randn(3, 4, 1)
    agree(lambda b: path(mechanics(lambda q: k.T[..., None] * q), q, v, b), [k], paths)
    agree(lambda b: path(mechanics(lambda q: k[:, 1, None] * q), q, v, b), [k], paths)


def test_networks_of_user_systems_are_written_out(paths: list[Any]) -> None:
    network = neural(2, (3, 3), "tanh")
    leaves = list(network.parameters())
    bound = network.bind().gradient
    q, v = torch.randn(5, 2), torch.randn(5, 2)
    agree(lambda b: path(mechanics(lambda q: bound(q) + q, 2), q, v, b), leaves, paths)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_free_vector_fields(integrator: str, dtype: torch.dtype, paths: list[Any]) -> None:
    a = torch.tensor([[0.2, 1.0], [-1.0, 0.1]], dtype=dtype, requires_grad=True)
    field = VectorField(lambda q, v: (a[0, 0] * q + a[0, 1] * v, a[1, 0] * q.sin() + a[1, 1] * v))
    q, v = (torch.randn(7, 1, dtype=dtype, requires_grad=True) for _ in range(2))
    agree(lambda b: path(field, q, v, b, integrator=integrator), [q, v, a], paths)


def test_layouts_of_the_inputs(paths: list[Any]) -> None:
    k = torch.rand(6)[::2]
    system = mechanics(lambda q: k * q, 3)
    wide = torch.randn(3, 4, 2)
    for q in (wide[..., 0].T, wide.permute(1, 2, 0)[:, 0], torch.randn(1, 3).expand(4, 3), torch.randn(3)):
        v = torch.randn(4, 3).flip(0)
        q = q.detach().requires_grad_()
        agree(lambda b, q=q, v=v: path(system, q, v, b), [q], paths)


@pytest.mark.parametrize("shape", [(0, 1), (2, 0, 1)])
def test_no_trajectories(shape: tuple[int, ...], paths: list[Any]) -> None:
    q = torch.zeros(shape, requires_grad=True)
    k = torch.tensor([2.0], requires_grad=True)
    agree(lambda b: path(mechanics(lambda q: k * q), q, torch.zeros(shape), b), [q, k], paths)


def test_a_grid_without_steps(paths: list[Any]) -> None:
    q = torch.randn(2, 1)
    once = path(mechanics(lambda q: q), q, q, grid=TimeGrid.regular(1, 0.1))
    assert torch.equal(once, torch.cat([q, q], -1).unsqueeze(-2))
    assert not paths


@pytest.mark.parametrize("repeats", [17, 200])
def test_many_trajectories_equal_single_ones(repeats: int, paths: list[Any]) -> None:
    k = torch.tensor([2.0])
    q, v = torch.randn(repeats, 1), torch.randn(repeats, 1)
    together = path(mechanics(lambda q: k * q.sin()), q, v)
    alone = torch.stack([path(mechanics(lambda q: k * q.sin()), q[i], v[i]) for i in range(repeats)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


def test_a_trajectory_that_is_not_a_number_leaves_the_others_alone(paths: list[Any]) -> None:
    k = torch.tensor([2.0], requires_grad=True)
    q = torch.tensor([[0.1], [torch.nan], [0.3], [torch.inf]], requires_grad=True)
    agree(lambda b: path(mechanics(lambda q: k * q), q, torch.zeros(4, 1), b)[::2], [q, k], paths)
    value = path(mechanics(lambda q: k * q), q, torch.zeros(4, 1))
    assert value.isfinite().all(-1).all(-1).tolist() == [True, False, True, False]


def test_without_gradients(paths: list[Any]) -> None:
    k = torch.tensor([2.0], requires_grad=True)
    q = torch.randn(3, 1, requires_grad=True)
    system = mechanics(lambda q: k * q)
    with torch.no_grad():
        assert not path(system, q, q).requires_grad
    with torch.inference_mode():
        assert path(system, q, q).is_inference()
    value = path(system, q, q)  # sizes of steps that inference made serve here, too
    assert value.requires_grad
    assert torch.autograd.grad(value.sum(), k)[0].isfinite().all()
    assert path(system, q.detach(), q.detach()).requires_grad
    assert len(paths) == 4


# Higher derivatives and function transforms


@pytest.mark.parametrize("integrator", ["velocity_verlet", "stormer_verlet", "so2", "rk4", "verlet4"])
@pytest.mark.parametrize("forces", ["none", "linear+quadratic+friction"])
def test_hessian(integrator: str, forces: str, paths: list[Any]) -> None:
    dampings = [f.bind() for f in forces_for(forces, 1)]
    damping = combine_damping(dampings)

    def function(x: Tensor, backend: Backend) -> Tensor:
        q, v, k, mass, end = x.split(1)
        times = torch.stack([torch.zeros(()), torch.tensor(0.15), 0.3 * end[0]])
        bound = bind_mass(mass[0], Scalar(mass[0]))
        system = Mechanics(lambda q: k * q.sin() + 0.1 * q.clamp(-0.2, 5.0) ** 3, bound, damping, (True,))
        value = path(system, q, v, backend, grid=TimeGrid.from_times(times), integrator=integrator)
        return (value * torch.tensor([1.0, 0.3])).square().sum()

    x = torch.tensor([0.3, 0.4, 2.0, 1.3, 1.1])
    actual, expected = (
        torch.autograd.functional.hessian(lambda x, b=b: function(x, b), x) for b in ("auto", "reference")
    )
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    assert paths


@pytest.mark.parametrize("sizes", [(6,), (4, 3)])
def test_hessian_by_the_weights_of_a_network(sizes: tuple[int, ...], paths: list[Any]) -> None:
    network = neural(1, sizes, "tanh")
    weights = list(network.parameters())
    q, v = torch.randn(2, 1), torch.randn(2, 1)

    def slope(backend: Backend) -> Tensor:
        value = path(mechanics(network.bind().gradient), q, v, backend).square().sum()
        first = torch.autograd.grad(value, weights, create_graph=True)
        direction = sum((g * torch.ones_like(g)).sum() for g in first)
        return torch.cat([g.flatten() for g in torch.autograd.grad(direction, weights)])

    torch.testing.assert_close(slope("auto"), slope("reference"), rtol=1e-8, atol=1e-10)
    assert len(paths) == 1


def test_numerical_and_third_derivatives(paths: list[Any]) -> None:
    def function(x: Tensor, backend: Backend = "auto") -> Tensor:
        q, v, k = x.split(1)
        return path(mechanics(lambda q: k * q.sin()), q, v, backend, integrator="rk4").square().sum()

    x = torch.tensor([0.3, 0.4, 2.0], requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
    third = [
        torch.autograd.functional.jacobian(
            lambda y, b=b: torch.autograd.functional.hessian(lambda z: function(z, b), y, create_graph=True),
            x.detach(),
        )
        for b in ("auto", "reference")
    ]
    torch.testing.assert_close(*third, rtol=1e-8, atol=1e-8)
    together = torch.autograd.functional.jacobian(function, x.detach(), vectorize=True)
    torch.testing.assert_close(together, torch.autograd.grad(function(x), x)[0])


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(f)(x),
        lambda f, x: torch.func.jacrev(torch.func.grad(f))(x),
        lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
        lambda f, x: torch.func.jvp(f, (x,), (torch.ones(2),))[1],
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by `torch.func.jvp`
def test_function_transforms_fall_back(transform: Callable[..., Tensor], paths: list[Any]) -> None:
    def function(x: Tensor, backend: Backend) -> Tensor:
        return path(mechanics(lambda q: q.sin()), x[:1], x[1:], backend).square().sum()

    x = torch.tensor([0.3, 0.4])
    with notice("a function transform of torch.func"):
        actual = transform(lambda x: function(x, "auto"), x)
    torch.testing.assert_close(actual, transform(lambda x: function(x, "reference"), x))
    assert not paths


def test_forward_mode_falls_back() -> None:
    x = torch.tensor([0.3])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(1))
        with notice("forward-mode differentiation"):
            value = path(mechanics(lambda q: q.sin()), dual, x)
        assert torch.autograd.forward_ad.unpack_dual(value).tangent is not None


# Failures


def test_a_step_without_a_solution_says_where(paths: list[Any]) -> None:
    system = mechanics(lambda q: 40.0 * q.sin(), angular=True)
    q, v = torch.tensor([[0.1], [1.5]]), torch.zeros(2, 1)
    grid = TimeGrid.regular(6, 0.25, start=2.0)
    errors = []
    for backend in ("auto", "reference"):
        with pytest.raises(SolveError, match="has no solution") as error:
            path(system, q, v, backend, grid=grid, integrator="so2")  # type: ignore[arg-type]
        errors.append((error.value.step, error.value.time, pytest.approx(error.value.residual)))
    assert errors[0] == errors[1]
    assert len(paths) == 1
    silent = rollout(system, PhaseState(q, v), grid, integrator=INTEGRATORS["so2"](), throw=False)
    assert silent.q[1].isnan().any()


def test_what_fails_in_the_users_code_fails_as_before() -> None:
    system = mechanics(lambda q: q @ torch.ones(3, 3), 2)
    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        path(system, torch.zeros(2), torch.zeros(2))


# One program for equal code, and only for equal code


def count_entries() -> int:
    return len(native_rollout._entries)


def test_programs_are_kept_and_values_are_not(paths: list[Any]) -> None:
    k = torch.tensor([2.0])
    q, v = torch.randn(3, 1), torch.randn(3, 1)

    def run(backend: Backend = "auto") -> Tensor:
        return path(mechanics(PendulumPotential(k[0]).bind().gradient), q, v, backend)

    first = run()
    entries = count_entries()
    k.fill_(5.0)
    q += 1
    second = run()
    assert count_entries() == entries
    assert not torch.allclose(first, second)
    close(second, run("reference"))
    path(mechanics(PendulumPotential(9.0).bind().gradient), torch.randn(3, 1), v)
    assert count_entries() == entries


def test_numbers_are_part_of_the_program(paths: list[Any]) -> None:
    q, v = torch.randn(2, 1), torch.randn(2, 1)

    def system(k: float, factor: float = 1.0) -> Mechanics:
        def gradient(q: Tensor, factor: float = factor) -> Tensor:
            return k * q * factor

        return mechanics(gradient)

    for k, factor in ((2.0, 1.0), (3.0, 1.0), (2.0, 4.0), (-0.0, 1.0), (0.0, 1.0), (2, 1.0), (True, 1.0)):
        close(path(system(k, factor), q, v), path(system(k, factor), q, v, "reference"))


STIFFNESS: Any = 2.0
SETTINGS = {"k": 1.0, "powers": [1, 2]}


class Constants:
    """Numbers in a class."""

    k = 1.5


def helper(q: Tensor) -> Tensor:
    return STIFFNESS * q


def test_what_is_read_elsewhere_is_part_of_the_program(
    monkeypatch: pytest.MonkeyPatch, paths: list[Any]
) -> None:
    q, v = torch.randn(2, 1), torch.randn(2, 1)
    module = types.ModuleType("settings")
    module.k = 1.0  # type: ignore[attr-defined]
    numbers, pair = np.array([1.0, 2.0]), [1.0, 2.0]
    systems = {
        "global": lambda q: STIFFNESS * q,
        "through a function": lambda q: helper(q),
        "dictionary": lambda q: SETTINGS["k"] * q,
        "class": lambda q: Constants.k * q,
        "module": lambda q: module.k * q,
        "array": lambda q: float(numbers[0]) * q,
        "list": lambda q: pair[0] * q,
    }
    before = {name: path(mechanics(gradient), q, v) for name, gradient in systems.items()}
    monkeypatch.setitem(helper.__globals__, "STIFFNESS", 3.0)
    monkeypatch.setitem(SETTINGS, "k", 3.0)
    monkeypatch.setattr(Constants, "k", 3.0)
    monkeypatch.setattr(module, "k", 3.0)
    numbers[0] = pair[0] = 3.0
    for name, gradient in systems.items():
        after = path(mechanics(gradient), q, v)
        assert not torch.allclose(after, before[name]), name
        close(after, path(mechanics(gradient), q, v, "reference"))


class Spring:
    """A user's object with all kinds of state."""

    __slots__ = ("__dict__", "slot")

    def __init__(self, k: float) -> None:
        self.k, self.slot = k, 1.0
        self.tensor = torch.tensor([k])

    def gradient(self, q: Tensor) -> Tensor:
        return self.k * q * self.slot

    def __call__(self, q: Tensor) -> Tensor:
        return self.tensor * q


def test_objects_are_known_by_what_they_hold(paths: list[Any]) -> None:
    q, v = torch.randn(2, 1), torch.randn(2, 1)
    spring = Spring(2.0)
    path(mechanics(spring.gradient), q, v)
    entries = count_entries()
    path(mechanics(Spring(2.0).gradient), q, v)
    assert count_entries() == entries
    spring.k = 3.0
    close(path(mechanics(spring.gradient), q, v), path(mechanics(spring.gradient), q, v, "reference"))
    spring.slot = 2.0
    close(path(mechanics(spring.gradient), q, v), path(mechanics(spring.gradient), q, v, "reference"))
    path(mechanics(spring), q, v)
    spring.tensor = torch.tensor([7.0])
    close(path(mechanics(spring), q, v), path(mechanics(spring), q, v, "reference"))


class Lazy(AbstractPotential):
    """Reads its parameters at every step rather than in `bind`."""

    def __init__(self) -> None:
        super().__init__()
        self.manifold = Manifold((False,))
        self.power = 2
        self.register_buffer("buffer", torch.tensor([2.0]))
        self.declare("learned", Learned(1.5))

    def bind(self) -> BoundPotential:
        return BoundPotential(
            lambda q: (self.buffer * q).sum(-1), lambda q: self.buffer * q**self.power * self.learned
        )


def test_potentials_that_read_themselves_while_stepping(paths: list[Any]) -> None:
    potential = Lazy()
    q, v = torch.rand(2, 1), torch.rand(2, 1)
    leaves = list(potential.parameters())
    agree(lambda b: path(mechanics(potential.bind().gradient), q, v, b), leaves, paths)
    potential.power = 3
    potential.buffer.fill_(0.5)
    agree(lambda b: path(mechanics(potential.bind().gradient), q, v, b), leaves, paths)


def test_integrators_are_known_by_what_they_are(paths: list[Any]) -> None:
    q, v = torch.randn(2, 1), 0.1 * torch.randn(2, 1)
    system = mechanics(lambda q: 3.0 * q.sin(), angular=True)
    for name in ("verlet4", "so2_4", "verlet6", "verlet4", "so2_4"):
        close(path(system, q, v, integrator=name), path(system, q, v, "reference", integrator=name))
    entries = count_entries()
    start, grid = PhaseState(q, v), TimeGrid.regular(5, 0.1)
    rollout(system, start, grid, integrator=Composition(VelocityVerlet(), COMPOSITIONS[4]))
    assert count_entries() == entries


def test_one_program_serves_every_grid(paths: list[Any]) -> None:
    q, v = torch.randn(2, 1), torch.randn(2, 1)
    system = mechanics(lambda q: 2.5 * q)
    path(system, q, v)
    entries = count_entries()
    for grid in (
        TimeGrid.regular(9, 0.05, num_substeps=2),
        TimeGrid.from_times(torch.tensor([0.0, 0.1, 0.4])),
    ):
        close(path(system, q, v, grid=grid), path(system, q, v, "reference", grid=grid))
    assert count_entries() == entries


def test_numbers_that_never_stay_the_same_are_not_compiled_for_ever() -> None:
    q = torch.randn(1)

    def run(k: float) -> Tensor:
        return path(mechanics(lambda q: k * q + q.cosh()), q, q)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(native_rollout.MAX_VARIANTS):
            run(1.0 + i)
    with pytest.warns(PerformanceWarning, match="change from call to call; make them tensors"):
        run(1000.0)
    run(1.0)  # what was compiled still serves


def test_several_threads(paths: list[Any]) -> None:
    q, v = torch.randn(4, 1), torch.randn(4, 1)
    k = torch.tensor([1.7], requires_grad=True)
    system = mechanics(lambda q: k * q.sin() ** 3)
    expected = path(system, q, v, "reference").detach()
    found: list[Tensor] = []

    def work() -> None:
        for _ in range(20):
            value = path(system, q, v)
            value.sum().backward()
            found.append(value.detach())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for value in found:
        close(value, expected)


# What has no compiled form


def notice(reason: str) -> Any:
    return pytest.warns(PerformanceWarning, match=f"^a rollout runs without compiled code: .*{reason}")


def falls_back(reason: str, system: Mechanics, q: Tensor, v: Tensor | None = None, **options: Any) -> None:
    """Check that the reference runs instead, with a notice at the first time only."""
    v = q if v is None else v
    with notice(reason) as record:
        actual = path(system, q, v, **options)
    assert len([w for w in record if w.category is PerformanceWarning]) == 1
    expected = path(system, q, v, "reference", **options)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
    assert torch.equal(path(system, q, v, **options), expected)  # a second notice would be an error


TWO_TYPES = "numbers of several types"


def branch(q: Tensor) -> Tensor:
    return q if bool((q > 0).all()) else 2 * q


FIXED = torch.tensor([2.0])


def without_gradient(q: Tensor) -> Tensor:
    with torch.no_grad():
        return q.sin()


def slope_without_graph(q: Tensor) -> Tensor:
    with torch.enable_grad():
        at = q if q.requires_grad else q.detach().requires_grad_()
        return torch.autograd.grad(at.cosh().sum(), at)[0]


class Straight(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def in_store(q: Tensor) -> Tensor:
    return pyro.param("stiffness", torch.tensor([2.0])) * q


@pytest.mark.parametrize(
    ("gradient", "reason"),
    [
        (branch, "control flow that depends on the values of tensors"),
        (lambda q: q if q.sum() > 0 else 2 * q, "control flow that depends on the values of tensors"),
        (lambda q: q * q.max().item(), "control flow that depends on the values of tensors"),
        (lambda q: torch.special.i0(q), "the operation aten.i0.default"),
        (lambda q: q.sort(-1).values, "the operation aten.sort.default"),
        (lambda q: q + 0.0 * torch.rand_like(q), "random numbers"),
        (lambda q: q * q.detach(), "a gradient that is cut off"),
        (lambda q: q * q.data, "a gradient that is cut off"),
        (lambda q: q * without_gradient(q), "a gradient that is cut off"),
        (lambda q: Straight.apply(q.round()), "a gradient that is cut off"),
        (lambda q: FIXED.detach() * q, "a gradient that is cut off"),
        (slope_without_graph, "a gradient that is cut off"),
        (lambda q: q.lgamma() + q.digamma(), "digamma, whose derivative has no compiled form"),
        (in_store, "a tensor that is read while stepping; read it before"),
        (lambda q: q - q.mean(0), "an operation across trajectories"),
        (lambda q: q.flip(0), "an operation across trajectories"),
        (lambda q: torch.tensor([1.0, 1.0, 5.0])[:, None] * q, "treats trajectories differently"),
        (lambda q: torch.arange(3.0)[:, None].sin() * q, "treats trajectories differently"),
        (lambda q: torch.arange(3)[:, None].eq(1) * q, "treats trajectories differently"),
        (lambda q: torch.polar(q.abs(), q).real, TWO_TYPES),
        (lambda q: chain(q, 900), "more than 4000 scalar operations in one step"),
    ],
)
def test_functions_without_a_compiled_form(gradient: Callable[[Tensor], Tensor], reason: str) -> None:
    falls_back(reason, mechanics(gradient, 2), torch.rand(3, 2) + 0.1)


def chain(q: Tensor, length: int) -> Tensor:
    for _ in range(length):
        q = (q + 0.001 * q.sin()) * 0.999 + 0.0001 * q.cos()
    return q


def test_long_steps_are_written_out(paths: list[Any]) -> None:
    q = torch.rand(2, 1)
    agree(lambda b: path(mechanics(lambda q: chain(q, 60)), q, q, b, integrator="rk4"), [], paths)


@pytest.mark.parametrize("kind", ["parameter", "drive", "times", "network"])
def test_states_of_a_narrower_type(kind: str) -> None:
    q = torch.rand(3, 1, dtype=torch.float32)
    k = torch.tensor([2.0], dtype=torch.float64 if kind == "parameter" else torch.float32)
    system = mechanics(lambda q: k * q)
    if kind == "network":
        system = mechanics(neural(1, (4,), "tanh").bind().gradient)
    grid = TimeGrid.regular(4, 0.1)
    if kind == "times":
        grid = TimeGrid.from_times(torch.rand(3, 4, dtype=torch.float64).cumsum(-1))
    drive = (lambda t: t.double().unsqueeze(-1)) if kind == "drive" else None
    for backend in ("auto", "reference"):
        context = notice(TWO_TYPES) if backend == "auto" else contextlib.nullcontext()
        with context:
            found = rollout(
                system, PhaseState(q, q), grid, integrator=VelocityVerlet(), drive=drive, backend=backend
            )
        assert found.q.dtype == torch.float64


def test_wider_states_and_whole_numbers(paths: list[Any]) -> None:
    single, count = torch.tensor([2.0], dtype=torch.float32), torch.tensor(3)
    mask = torch.tensor([True, False])
    q = torch.rand(3, 2)
    system = mechanics(lambda q: single * q + count * q.sin() + torch.where(mask, q, 0.0) ** count, 2)
    agree(lambda b: path(system, q, q, b), [], paths)
    count += 1
    mask.logical_not_()
    agree(lambda b: path(system, q, q, b), [], paths)
    start, grid = PhaseState(q, q), TimeGrid.regular(4, 0.1)
    drive = {"drive": lambda t: t.float().unsqueeze(-1).expand(*t.shape, 2), "integrator": VelocityVerlet()}
    agree(lambda b: joined(rollout(system, start, grid, backend=b, **drive)), [], paths)


def test_parameters_for_more_coordinates() -> None:
    k = torch.tensor([1.0, 2.0, 3.0])
    falls_back("parameters for more coordinates", mechanics(lambda q: k * q), torch.rand(4, 1))


def test_weights_of_several_particles() -> None:
    bound = neural(1, (3,), "tanh").bind().gradient
    assert isinstance(bound, NetworkGradient)
    several = bound._replace(weights=tuple(w.expand(2, 1, *w.shape) for w in bound.weights))
    falls_back("weights of several particles", mechanics(several), torch.rand(2, 4, 1))


def test_other_types_and_activations() -> None:
    falls_back("numbers of type torch.float16", mechanics(lambda q: q), torch.rand(2, 1).half())
    network = NeuralPotential(1, hidden_sizes=(3,), activation=Activation(torch.sin, torch.cos))
    falls_back("an activation without a name", mechanics(network.bind().gradient), torch.rand(2, 1))


def test_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    falls_back("llvmlite could not be imported", mechanics(lambda q: q), torch.rand(2, 1))


def test_the_reference_never_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(native_rollout, "native_path", fail)
    path(mechanics(lambda q: q), torch.rand(2, 1), torch.rand(2, 1), "reference")
    vin = VIN(Harmonic(2.0), backend="reference")
    vin(PhaseState(torch.zeros(1), torch.ones(1)), TimeGrid.regular(4, 0.1))


def test_a_program_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from vinppl.native.elementwise import ELEMENTWISE

    monkeypatch.setitem(ELEMENTWISE, torch.ops.aten.sinh.default, lambda x: x)
    falls_back("a step that was written out wrongly", mechanics(lambda q: q.sinh()), torch.rand(2, 1))


def test_notices_name_every_reason_once() -> None:
    native._said.clear()
    q = torch.rand(2, 1)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            path(mechanics(lambda q: torch.special.i0(q)), q, q)
            path(mechanics(lambda q: torch.special.i1(q)), q, q)
    assert len(record) == 2
    assert all(w.category is PerformanceWarning for w in record)
    assert all(w.filename == __file__ or "rollout" in w.filename for w in record)


# Every torch function that potentials may reasonably use

SQUARE = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.0]], dtype=torch.float64)

COMPILED: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in (
            *("sin", "cos", "tan", "sinh", "cosh", "tanh", "atan", "asinh", "atanh", "erf", "erfc", "exp"),
            *("exp2", "expm1", "abs", "square", "sigmoid", "sinc", "sgn", "positive", "neg", "relu"),
            *("floor", "ceil", "round", "trunc"),
        )
    },
    **{
        name: getattr(F, name)
        for name in ("gelu", "elu", "leaky_relu", "silu", "mish", "softplus", "logsigmoid")
    },
    "asin": lambda q: torch.asin(0.4 * q),
    "acos": lambda q: torch.acos(0.4 * q),
    "inverses": lambda q: q.asinh() ** 2 + (q * q + 1.1).acosh() ** 2 + (0.3 * q).atanh() ** 2,
    "log": lambda q: (q * q + 1).log(),
    "log2": lambda q: (q * q + 1).log2() + (q * q + 1).log10() + (q * q).log1p(),
    "sqrt": lambda q: (q * q + 1).sqrt() + (q * q + 1).rsqrt() + (q * q + 1).reciprocal(),
    "acosh": lambda q: torch.acosh(q.abs() + 1.1),
    "cubes": lambda q: q**3 - q**-2 + q.abs() ** 2.5 + (q * q + 1) ** -1.5,
    "powers": lambda q: 2.0**q + (q.abs() + 0.1) ** (0.3 * q) + q.abs() ** 0.3,
    "remainder": lambda q: torch.remainder(q, 0.3) * q + torch.fmod(q, 0.7) * q,
    "hypot": lambda q: torch.hypot(q, q.flip(-1)),
    "clamp": lambda q: q.clamp(-0.5, 0.5) * q + q.clamp_min(0.1) + q.clamp_max(0.2),
    "extrema": lambda q: torch.maximum(q, q * q) + torch.minimum(q, q.flip(-1)),
    "comparisons": lambda q: ((q > 0.1) & (q <= 0.5) | ~(q >= -0.5)) * q * q + (q == 0.3) + (q != 0.3) * q,
    "masks": lambda q: q.masked_fill(q < 0, 0.1) * q + torch.where(q.isnan() | ~q.isfinite(), 0.0, q),
    "huber": lambda q: F.huber_loss(q, torch.zeros_like(q), reduction="none"),
    "combined": lambda q: torch.addcmul(q, q, q, value=2) + torch.lerp(q, q * q, 0.3) + q.addcdiv(q, q + 9),
    "xlogy": lambda q: torch.xlogy(q * q, q * q + 1) + torch.logaddexp(q, -q),
    "mean": lambda q: q.mean(-1, keepdim=True) * q + q.sum(-1, keepdim=True),
    "norms": lambda q: q.norm(dim=-1) + q.norm(p=1, dim=-1) + torch.linalg.vector_norm(q, dim=-1),
    "products": lambda q: torch.einsum("...i,...i->...", q, q) + torch.linalg.vecdot(q, q.flip(-1)),
    "quadratic form": lambda q: ((q.unsqueeze(-2) @ SQUARE) @ q.unsqueeze(-1)).squeeze(-1).squeeze(-1),
    "linear": lambda q: F.linear(q, SQUARE, SQUARE[0]) ** 2 + q @ SQUARE + (q @ SQUARE[1]).unsqueeze(-1),
    "outer": lambda q: (q.unsqueeze(-1) * q.unsqueeze(-2)).tril().flatten(-2),
    "diff": lambda q: q.diff(dim=-1) ** 2,
    "stack": lambda q: torch.stack([q[..., 0], q[..., 1] ** 2], -1),
    "pad": lambda q: F.pad(q, (1, 2)).diff(dim=-1) ** 2,
    "roll": lambda q: (q - q.roll(1, -1)).square() + q.flip(-1) * q,
    "cross": lambda q: torch.linalg.cross(q, q.roll(1, -1)) ** 2,
    "split": lambda q: sum(x * x for x in q.unbind(-1)),
    "movedim": lambda q: q.movedim(-1, 0).movedim(0, -1) ** 2 + q.mT.mT**3 if q.ndim > 1 else q,
    "views": lambda q: (q.reshape(*q.shape[:-1], 3, 1) * q.unsqueeze(-2)).flatten(-2),
    "indices": lambda q: q[..., [0, 2]] * q[..., [1, 1]] + q[..., PLACES[1:]] + q[..., 1:] * q[..., ::2],
    "copies": lambda q: q.clone().contiguous() * q + torch.zeros_like(q) + torch.ones_like(q) * q,
    "constants": lambda q: (
        q * torch.tensor([1.0, 2.0, 3.0]) + q * torch.arange(3) + torch.full((3,), 2.0) * q
    ),
    "types": lambda q: q.to(torch.float64) * (q > 0).to(q.dtype) + q.bool().double() * q,
}


@pytest.mark.parametrize("name", COMPILED)
def test_every_torch_function(name: str, paths: list[Any]) -> None:
    def energy(q: Tensor) -> Tensor:
        value = COMPILED[name](q)
        return value if value.shape == q.shape[:-1] else value.reshape(*q.shape[:-1], -1).sum(-1)

    q = (0.7 * torch.randn(4, 3) + 0.05).requires_grad_()
    v = torch.randn(4, 3)
    system = mechanics(FunctionPotential(energy, manifold=3).bind().gradient, 3)
    agree(
        lambda b: path(system, q, v, b, grid=TimeGrid.regular(3, 0.1)), [q] if name != "floor" else [], paths
    )


def test_assignment(paths: list[Any]) -> None:
    def gradient(q: Tensor) -> Tensor:
        force = torch.zeros_like(q)
        force[..., 0] = q[..., 1] * 2
        force[..., 1:] = q[..., 1:].sin()
        force[..., 0] += q[..., 0] ** 3
        force *= 1.5
        return force

    q = torch.randn(4, 3).requires_grad_()
    agree(lambda b: path(mechanics(gradient, 3), q, q, b), [q], paths)


def test_slopes_at_kinks(paths: list[Any]) -> None:
    q = torch.tensor([[0.0], [0.5], [-0.5], [20.0]], requires_grad=True)
    kinks: list[Callable[[Tensor], Tensor]] = [
        torch.relu,
        torch.abs,
        F.softplus,
        lambda q: q.clamp(-0.5, 0.5),
        lambda q: torch.relu(q) ** 1.5,
        lambda q: torch.maximum(q, -q),
    ]
    for kink in kinks:
        agree(lambda b, kink=kink: path(mechanics(kink), q, torch.zeros(4, 1), b), [q], paths)
