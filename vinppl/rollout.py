"""The one loop over time: every trajectory of the library comes from `rollout`; how models store one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal

import pyro
import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import SolveError
from vinppl.integrators.base import AbstractIntegrator, Drives, Mechanics, Step, VectorField
from vinppl.native import compiled_path
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid

__all__ = ["BACKENDS", "Backend", "record_path", "rollout", "without_energy"]

Backend = Literal["auto", "reference"]
"""How the loop is run. `reference` is plain torch; `auto` compiles the step where it can (on a CPU, in
single or double precision) and says once why where it cannot. Both give the same numbers up to rounding.
"""

BACKENDS: tuple[Backend, ...] = ("auto", "reference")


def rollout(
    system: Mechanics | VectorField,
    initial: PhaseState,
    grid: TimeGrid,
    *,
    integrator: AbstractIntegrator,
    drive: Callable[[Tensor], Tensor] | None = None,
    backend: Backend = "auto",
    throw: bool = True,
) -> Trajectory:
    """Integrate `system` from `initial` over `grid`, differentiably.

    Args:
        system: what moves, with its parameters read.
        initial: state at the first time of the grid, shapes `(*batch, dim)`.
        grid: sampling times and sub-steps; batched times broadcast with `batch`.
        integrator: the one-step method.
        drive: acceleration M^-1 F(t) by known inputs: `(*batch, n)` times to `(*batch, n, dim)`.
        backend: see `Backend`.
        throw: whether an implicit step without a solution raises; otherwise the path is NaN from there on.

    Returns:
        The path at the grid's times, shapes `(*batch, time, dim)`.

    Raises:
        ValueError: if a structured integrator is given an unstructured field.
        SolveError: if an implicit step has no solution, with its step, time and residual.
    """
    require(backend in BACKENDS, f"backend must be one of {', '.join(BACKENDS)}", backend)
    require(
        isinstance(system, Mechanics) or not integrator.needs_mechanics,
        f"{type(integrator).__name__} needs a mechanical system (potential and mass)",
        type(system).__name__,
        "Use 'euler' or 'rk4' for a free vector field.",
    )
    accelerations = None if drive is None else _accelerations(grid, integrator, drive)
    path = None
    if backend == "auto" and grid.num_steps > 0:
        path = compiled_path(system, initial, grid, integrator, accelerations)
    q, v = path if path is not None else _reference_path(system, initial, grid, integrator, accelerations)
    if throw and integrator.chart == "lie_group" and bool(q.detach().isnan().any()):
        with torch.no_grad():
            _raise_unsolved(system, initial, grid, integrator, accelerations)
    return Trajectory(grid.times, q, v)


_energy_wanted: ContextVar[bool] = ContextVar("energy_wanted", default=True)


@contextlib.contextmanager
def without_energy() -> Iterator[None]:
    """Leave the energy out of what models record in a block that does not look at it."""
    token = _energy_wanted.set(False)
    try:
        yield
    finally:
        _energy_wanted.reset(token)


def record_path(trajectory: Trajectory, energy: Callable[[Trajectory], Tensor] | None = None) -> None:
    """Store a path as deterministic site `states` and, outside of inference, its `energy`.

    `states` has shape `(*batch, time, 2 dim)`: positions, then velocities. The energy
    costs an evaluation of the system everywhere, so it is left out while gradients
    are recorded (inference) and stored under `torch.no_grad()` (forecasts) outside of `without_energy`.

    Args:
        trajectory: the path.
        energy: energy of a path, `(*batch, time)`; `None` for a system that has none.
    """
    pyro.deterministic("states", torch.cat([trajectory.q, trajectory.v], dim=-1), event_dim=2)
    if energy is not None and _energy_wanted.get() and not torch.is_grad_enabled():
        pyro.deterministic("energy", energy(trajectory), event_dim=1)


def _reference_path(
    system: Mechanics | VectorField,
    initial: PhaseState,
    grid: TimeGrid,
    integrator: AbstractIntegrator,
    accelerations: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return positions and velocities at the grid's times, by torch operations."""
    drives = _drives(accelerations)
    carry = integrator.start(system, initial, next(drives))
    states = [integrator.finish(system, carry)]
    steps = _steps(grid, integrator)
    for count in grid.num_substeps:
        for _ in range(count * len(integrator.fractions)):
            carry = integrator.step(system, carry, next(steps), next(drives))
        states.append(integrator.finish(system, carry))
    shape = torch.broadcast_shapes(*(s.q.shape for s in (states[0], states[-1])))
    q = torch.stack([s.q.expand(shape) for s in states], dim=-2)
    v = torch.stack([s.v.expand(shape) for s in states], dim=-2)
    return q, v


def _steps(grid: TimeGrid, integrator: AbstractIntegrator) -> Iterator[Step]:
    """Yield the length of every sub-step: floats where the batch shares them, else `(*batch, 1)` tensors."""
    sizes: list[Step]
    if grid.uniform_step is not None:
        sizes = [grid.uniform_step] * grid.num_steps
    elif grid.times.ndim == 1 and not grid.times.requires_grad:
        sizes = grid.step_sizes.tolist()
    else:
        sizes = [h.unsqueeze(-1) for h in grid.step_sizes.unbind(-1)]
    for size in sizes:
        for fraction in integrator.fractions:
            yield size if fraction == 1.0 else fraction * size


def _accelerations(
    grid: TimeGrid, integrator: AbstractIntegrator, drive: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return the known accelerations at each of the integrator's nodes, `(*batch, sub-steps, dim)`.

    On a grid without steps they are those of its one time.
    """
    if grid.num_steps == 0:
        return [drive(grid.times[..., :1])] * len(integrator.drive_nodes)
    fractions = torch.tensor(integrator.fractions, dtype=grid.times.dtype, device=grid.times.device)
    ends = fractions.cumsum(0)
    begins = ends - fractions
    sizes, starts = grid.step_sizes, grid.step_times
    values = []
    for node in integrator.drive_nodes:
        inside = begins + node * (ends - begins)  # (stages,)
        times = starts.unsqueeze(-1) + sizes.unsqueeze(-1) * inside  # (*batch, steps, stages)
        values.append(drive(times.flatten(-2)))
    return values


def _drives(accelerations: list[Tensor] | None) -> Iterator[Drives]:
    """Yield the accelerations at the nodes of every sub-step; the first twice, for `start`."""
    if accelerations is None:
        while True:
            yield None
    per_node = [a.unbind(-2) for a in accelerations]
    yield tuple(values[0] for values in per_node)
    yield from zip(*per_node, strict=True)


def _raise_unsolved(
    system: Mechanics | VectorField,
    initial: PhaseState,
    grid: TimeGrid,
    integrator: AbstractIntegrator,
    accelerations: list[Tensor] | None,
) -> None:
    """Walk a path that turned NaN once more and raise `SolveError` at the first step without a solution.

    Returns where every step was solvable: the NaN then came with the state or the force.
    """
    drives = _drives(accelerations)
    carry = integrator.start(system, initial, next(drives))
    for index, size in enumerate(_steps(grid, integrator)):
        residual = integrator.residual(system, carry, size)
        if residual is None:
            return
        if bool((residual > 0).any()):
            step = index // len(integrator.fractions)
            worst = residual.nan_to_num().amax(-1)  # (*batch,)
            times = grid.step_times[..., step].expand(worst.shape).reshape(-1)
            size_of_worst, trajectory = worst.reshape(-1).max(0)
            time, excess = float(times[trajectory]), float(size_of_worst)
            raise SolveError(
                f"the Lie-group step from time {time:.6g} (integration step {step}) has no solution: "
                f"|sin(increment)| exceeds one by {excess:.3g}. The angle turns too far in one step; use a "
                "smaller max_step_size, or check that initial velocities and the potential are in the units "
                "of the time axis.",
                step=step,
                time=time,
                residual=excess,
            )
        carry = integrator.step(system, carry, size, next(drives))
