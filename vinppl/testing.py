"""Contract batteries for one's own integrators and potentials.

`check_integrator` and `check_potential` raise an `AssertionError` that says which promise is
broken and by how much. The measurements behind them (`convergence`, `phase_jacobian`, ...) are
public too: the tests of this library run them over every registered integrator.

Example:
    >>> from vinppl.integrators import VelocityVerlet
    >>> check_integrator(VelocityVerlet(), dim=2)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vinppl.integrators import AbstractIntegrator, Mechanics
from vinppl.mass import Diagonal, Full, Scalar, bind_mass
from vinppl.potentials import AbstractPotential, BoundPotential
from vinppl.rollout import rollout
from vinppl.state import PhaseState, Trajectory
from vinppl.systems import Pendulum
from vinppl.timegrid import TimeGrid

__all__ = [
    "Benchmark",
    "Convergence",
    "check_integrator",
    "check_potential",
    "convergence",
    "coupled_pendulums",
    "phase_jacobian",
    "reversal_error",
    "symplectic_defect",
]

F64 = torch.float64
ROUND_OFF = 1e-12
"""Bound on what must vanish exactly: a thousand operations on numbers of size one in float64."""

COARSEST_RATES = {1: 32.0, 2: 8.0, 3: 6.0, 4: 4.0, 5: 3.0, 6: 2.0}
"""Steps per unit of time on the coarsest grid of an order test, by order.

Errors then run from 1e-3 or less down to 1e-14. Order 8 falls by 4e9 over four halvings, so it
starts at one step a unit of time (an angle's sine equation wants 1.5)."""


class Benchmark(NamedTuple):
    """A mechanical system with its exact motion.

    Attributes:
        system: the system in float64.
        initial: three initial states, shape `(3, dim)`.
        potential: its potential energy.
        mix: matrix A with M = A A^T that turns q into decoupled pendulum angles A^T q.
    """

    system: Mechanics
    initial: PhaseState
    potential: BoundPotential
    mix: Tensor

    def exact(self, times: Tensor) -> Trajectory:
        """Return the exact paths from `initial`, shape `(3, time, dim)`."""
        dim = self.mix.shape[-1]
        angles = [(x @ self.mix).reshape(-1, 1) for x in self.initial]
        path = Pendulum(gravity=1.0).solve(PhaseState(*angles), times)
        back = torch.linalg.inv(self.mix)
        q, v = (x.reshape(-1, dim, len(times)).transpose(-1, -2) @ back for x in (path.q, path.v))
        return Trajectory(times, q, v)

    def energy(self, q: Tensor, v: Tensor) -> Tensor:
        """Return T + V, `(*batch, dim) -> (*batch,)`."""
        return 0.5 * (v * self.system.mass.apply(v)).sum(-1) + self.potential.value(q)


def coupled_pendulums(dim: int = 1, *, structure: str = "scalar", periodic: bool = False) -> Benchmark:
    """Return `dim` pendulums of unit frequency, coupled through rotated coordinates where Euclidean.

    With M = A A^T and x = A^T q the Lagrangian is sum_i x_i'^2 / 2 + cos x_i: exact by elliptic
    functions, nonlinear, and coupled in q. Periodic coordinates must stay the angles
    themselves: A is then diagonal and V = sum_i m_i (1 - cos q_i).

    Args:
        dim: number of coordinates.
        structure: of the mass, `scalar`, `diagonal` or `full`.
        periodic: whether the coordinates are angles; not with a full mass.
    """
    generator = torch.Generator().manual_seed(dim)
    masses = 1.0 + torch.arange(dim, dtype=F64) / 2
    if structure == "scalar":
        masses = torch.full((dim,), 1.5, dtype=F64)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=F64)).Q
    angles = torch.eye(dim, dtype=F64) if periodic else rotation
    mix = masses.sqrt().unsqueeze(-1) * angles
    if structure == "full":
        shear = torch.eye(dim, dtype=F64) + 0.3 * torch.ones(dim, dim, dtype=F64).tril(-1)
        mix = shear @ mix
    specs: dict[str, tuple[Any, Tensor]] = {
        "scalar": (Scalar, masses[0]),
        "diagonal": (Diagonal, masses),
        "full": (Full, mix @ mix.T),
    }
    kind, value = specs[structure]
    weight = masses if periodic else torch.ones(dim, dtype=F64)
    if periodic:
        mix = torch.eye(dim, dtype=F64)
    potential = BoundPotential(
        lambda q: (weight * (1 - (q @ mix).cos())).sum(-1),
        lambda q: (weight * (q @ mix).sin()) @ mix.T,
    )
    system = Mechanics(potential.gradient, bind_mass(value, kind(value)), None, (periodic,) * dim)
    q = torch.tensor([[1.0], [0.3], [0.6]], dtype=F64) * torch.linspace(1.0, 0.7, dim, dtype=F64)
    v = torch.tensor([[0.5], [0.6], [0.4]], dtype=F64) * torch.linspace(1.0, -0.7, dim, dtype=F64)
    back = torch.linalg.inv(mix)
    return Benchmark(system, PhaseState(q @ back, v @ back), potential, mix)


class Convergence(NamedTuple):
    """Errors over a sequence of step sizes.

    Attributes:
        step_sizes: descending.
        errors: root mean square error of the states at each step size.
        order: slope of the straight line through their logarithms.
    """

    step_sizes: list[float]
    errors: list[float]
    order: float

    @classmethod
    def fit(cls, step_sizes: Sequence[float], errors: Sequence[float]) -> Convergence:
        """Fit the slope by least squares."""
        x, y = (torch.tensor(values, dtype=F64).log() for values in (step_sizes, errors))
        x = x - x.mean()
        return cls(list(step_sizes), list(errors), float((x * (y - y.mean())).sum() / x.square().sum()))


def convergence(
    integrator: AbstractIntegrator,
    benchmark: Benchmark,
    *,
    coarsest: float | None = None,
    span: float = 20.0,
    num_samples: int = 10,
    num_halvings: int = 4,
) -> Convergence:
    """Measure the error of `integrator` against the exact motion over halved step sizes.

    Args:
        integrator: the one-step method.
        benchmark: what moves, with its exact path.
        coarsest: integration steps per unit of time on the coarsest grid; by the declared
            order if `None`, so that order 8 stays above round-off and order 1 converges.
        span: length of the path, in units of time.
        num_samples: states per path that are compared.
        num_halvings: how often the step is halved.
    """
    rate = coarsest or COARSEST_RATES.get(integrator.order, 1.5 if any(benchmark.system.periodic) else 1.0)
    between = span / num_samples
    sizes, errors = [], []
    for level in range(num_halvings + 1):
        count = round(rate * between) * 2**level
        grid = TimeGrid.regular(num_samples + 1, between, num_substeps=count, dtype=F64)
        with torch.no_grad():
            path = rollout(benchmark.system, benchmark.initial, grid, integrator=integrator)
        truth = benchmark.exact(grid.times)
        square = (path.q - truth.q).square() + (path.v - truth.v).square()
        sizes.append(between / count)
        errors.append(float(square[..., 1:, :].mean().sqrt()))
    return Convergence.fit(sizes, errors)


def phase_jacobian(
    system: Mechanics, initial: PhaseState, grid: TimeGrid, *, integrator: AbstractIntegrator
) -> Tensor:
    """Return the derivative of the last state by the first in canonical coordinates (q, p = M v).

    Args:
        system: what moves.
        initial: one state, parts of shape `(dim,)`.
        grid: the times.
        integrator: the one-step method.

    Returns:
        Shape `(2 dim, 2 dim)`, by autograd.
    """
    dim = initial.q.shape[-1]

    def flow(x: Tensor) -> Tensor:
        start = PhaseState(x[:dim], system.mass.solve(x[dim:]))
        end = rollout(system, start, grid, integrator=integrator).at(-1)
        return torch.cat([end.q, system.mass.apply(end.v)])

    at = torch.cat([initial.q, system.mass.apply(initial.v)]).detach()
    return torch.autograd.functional.jacobian(flow, at)


def symplectic_defect(jacobian: Tensor, *, factor: float = 1.0) -> float:
    """Return max |D^T Omega D - factor Omega|; a factor below one tests conformal symplecticity."""
    dim = jacobian.shape[-1] // 2
    zero, one = torch.zeros(dim, dim, dtype=jacobian.dtype), torch.eye(dim, dtype=jacobian.dtype)
    omega = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])
    return float((jacobian.T @ omega @ jacobian - factor * omega).abs().max())


def reversal_error(
    system: Mechanics, initial: PhaseState, grid: TimeGrid, *, integrator: AbstractIntegrator
) -> float:
    """Return how far a roll forward, a flip of v and the roll back end from the start."""
    with torch.no_grad():
        there = rollout(system, initial, grid, integrator=integrator).at(-1)
        back_grid = TimeGrid(
            grid.times[..., -1:] - grid.times.flip(-1), grid.num_substeps[::-1], grid.uniform_step
        )
        back = rollout(system, PhaseState(there.q, -there.v), back_grid, integrator=integrator).at(-1)
    return float(torch.maximum((back.q - initial.q).abs(), (back.v + initial.v).abs()).max())


def check_integrator(integrator: AbstractIntegrator, *, dim: int = 1, periodic: bool = False) -> None:
    """Check an integrator against what its class attributes promise.

    Runs on coupled pendulums: order of convergence, symplecticity and reversibility (where
    declared), batches against single trajectories, irregular grids against sub-steps, and
    a finite derivative through a step of length zero.

    Args:
        integrator: the integrator to check.
        dim: number of coordinates.
        periodic: whether they are angles, as the Lie-group integrators need them.

    Raises:
        AssertionError: with the promise that is broken and the number that shows it.
    """
    name = type(integrator).__name__
    benchmark = coupled_pendulums(dim, periodic=periodic)
    measured = convergence(integrator, benchmark)
    _check(
        abs(measured.order - integrator.order) <= 0.15,
        f"{name} declares order {integrator.order} but converges with order {measured.order:.2f} "
        f"(errors {', '.join(f'{e:.1e}' for e in measured.errors)})",
    )
    one = PhaseState(benchmark.initial.q[0], benchmark.initial.v[0])
    grid = TimeGrid.regular(6, 0.1, dtype=F64)
    if integrator.is_symplectic:
        jacobian = phase_jacobian(benchmark.system, one, grid, integrator=integrator)
        defect = symplectic_defect(jacobian)
        _check(defect <= ROUND_OFF, f"{name} declares is_symplectic but |D^T Omega D - Omega| = {defect:.1e}")
    if integrator.is_reversible:
        error = reversal_error(benchmark.system, benchmark.initial, grid, integrator=integrator)
        _check(error <= ROUND_OFF, f"{name} declares is_reversible but misses its start by {error:.1e}")
    _check_batching(integrator, benchmark, name)


def _check_batching(integrator: AbstractIntegrator, benchmark: Benchmark, name: str) -> None:
    """Compare batches, irregular grids and padded grids with single regular trajectories."""
    system, initial = benchmark.system, benchmark.initial
    times = torch.tensor([[0.0, 0.1, 0.3, 0.4], [0.0, 0.2, 0.3, 0.6], [1.0, 1.1, 1.2, 1.2]], dtype=F64)
    batch = rollout(system, initial, TimeGrid.from_times(times), integrator=integrator)
    for i in range(3):
        one = PhaseState(initial.q[i], initial.v[i])
        alone = rollout(system, one, TimeGrid.from_times(times[i]), integrator=integrator)
        error = max(_distance(alone.q, batch.q[i]), _distance(alone.v, batch.v[i]))
        _check(
            error <= ROUND_OFF, f"{name}: a trajectory in a batch differs from itself alone by {error:.1e}"
        )
    padded = (batch.q[2, -1] - batch.q[2, -2]).abs().max() + (batch.v[2, -1] - batch.v[2, -2]).abs().max()
    _check(float(padded) == 0.0, f"{name}: the state moves by {float(padded):.1e} in a step of length zero")
    start = PhaseState(*(x[2].clone().requires_grad_() for x in initial))
    end = rollout(system, start, TimeGrid.from_times(times[2]), integrator=integrator).at(-1)
    slopes = torch.autograd.grad(end.q.sum() + end.v.sum(), list(start))
    finite = all(bool(torch.isfinite(slope).all()) for slope in slopes)
    _check(finite, f"{name}: the derivative through a step of length zero is not finite")
    coarse = TimeGrid.from_times(torch.tensor([0.0, 0.2, 0.3, 0.6], dtype=F64), max_step_size=0.1)
    fine = TimeGrid.regular(7, 0.1, dtype=F64)
    by_substeps = rollout(system, initial, coarse, integrator=integrator).q
    by_samples = rollout(system, initial, fine, integrator=integrator).q[..., [0, 2, 3, 6], :]
    error = _distance(by_substeps, by_samples)
    _check(error <= ROUND_OFF, f"{name}: sub-steps differ from a finer regular grid by {error:.1e}")


def check_potential(potential: AbstractPotential, *, positions: Tensor | None = None) -> None:
    """Check a potential's shapes, its gradient against autograd and finite differences, and its period.

    Works on a copy in float64. Priors are drawn once.

    Args:
        potential: the potential to check.
        positions: where to check, shape `(n, dim)`; by default six normal draws.

    Raises:
        AssertionError: with the promise that is broken and the number that shows it.
    """
    name, manifold = type(potential).__name__, potential.manifold
    bound = copy.deepcopy(potential).to(F64).bind()
    if positions is None:
        positions = torch.randn(6, manifold.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    q = positions.to(F64)
    with torch.no_grad():
        value, gradient = bound.value(q), bound.gradient(q)
    _check(
        value.shape == q.shape[:-1] and gradient.shape == q.shape,
        f"{name} must map positions {tuple(q.shape)} to values {tuple(q.shape[:-1])} and gradients "
        f"{tuple(q.shape)}, not {tuple(value.shape)} and {tuple(gradient.shape)}",
    )
    scale = 1 + float(gradient.abs().max())
    at = q.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bound.value(at).sum(), at)
    error = _distance(slope, gradient)
    _check(
        error <= ROUND_OFF * scale, f"{name}: gradient differs from the derivative of value by {error:.1e}"
    )
    error = _distance(_central_difference(bound, q), gradient)
    # Central differences err by h^2 V'''/6 + eps V / h, about 1e-10 for h = 1e-5.
    _check(error <= 1e-7 * scale, f"{name}: gradient differs from finite differences by {error:.1e}")
    with torch.no_grad():
        alone = torch.stack([bound.gradient(x) for x in q])
        lead = bound.gradient(q.reshape(2, -1, manifold.dim)) if len(q) % 2 == 0 else gradient
    error = max(_distance(alone, gradient), _distance(lead.reshape(gradient.shape), gradient))
    _check(error <= ROUND_OFF * scale, f"{name}: gradients in a batch differ from single ones by {error:.1e}")
    turns = 2 * math.pi * torch.tensor(manifold.periodic, dtype=F64)
    with torch.no_grad():
        error = max(_distance(bound.value(q + turns), value), _distance(bound.gradient(q + turns), gradient))
    _check(error <= 1e-10 * scale, f"{name}: a full turn of its angles changes it by {error:.1e}")


def _central_difference(bound: BoundPotential, q: Tensor, step: float = 1e-5) -> Tensor:
    """Return dV/dq by central differences, shape of `q`."""
    steps = step * torch.eye(q.shape[-1], dtype=q.dtype)
    with torch.no_grad():
        slopes = [(bound.value(q + e) - bound.value(q - e)) / (2 * step) for e in steps]
    return torch.stack(slopes, dim=-1)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def _check(condition: bool, message: str) -> None:
    """Raise `AssertionError` unless `condition` holds, under `python -O` too."""
    if not condition:
        raise AssertionError(message + ".")
