"""The one loop over time: every trajectory of the library comes from `rollout`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import SolveError
from vinppl.integrators.base import AbstractIntegrator, Drives, Mechanics, Step, VectorField
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid

__all__ = ["BACKENDS", "Backend", "rollout"]

Backend = Literal["auto", "reference"]
"""How the loop is run. `reference` is plain torch; `auto` picks the fastest that applies."""

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
    drives = _drives(grid, integrator, drive)
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
    if throw and integrator.chart == "lie_group" and bool(q.detach().isnan().any()):
        with torch.no_grad():
            _raise_unsolved(system, initial, grid, integrator, drive)
    return Trajectory(grid.times, q, v)


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


def _drives(
    grid: TimeGrid, integrator: AbstractIntegrator, drive: Callable[[Tensor], Tensor] | None
) -> Iterator[Drives]:
    """Yield the known accelerations at the nodes of every sub-step; the first twice, for `start`."""
    if drive is None:
        while True:
            yield None
    ends = torch.tensor(integrator.fractions, dtype=grid.times.dtype, device=grid.times.device).cumsum(0)
    begins = ends - torch.tensor(integrator.fractions, dtype=grid.times.dtype, device=grid.times.device)
    sizes, starts = grid.step_sizes, grid.step_times
    per_node = []
    for node in integrator.drive_nodes:
        inside = begins + node * (ends - begins)  # (stages,)
        times = starts.unsqueeze(-1) + sizes.unsqueeze(-1) * inside  # (*batch, steps, stages)
        per_node.append(drive(times.flatten(-2)).unbind(-2))
    if not per_node[0]:
        first = drive(grid.times[..., :1]).unbind(-2)[0]
        yield tuple(first for _ in integrator.drive_nodes)
        return
    yield tuple(values[0] for values in per_node)
    for i in range(len(per_node[0])):
        yield tuple(values[i] for values in per_node)


def _raise_unsolved(
    system: Mechanics | VectorField,
    initial: PhaseState,
    grid: TimeGrid,
    integrator: AbstractIntegrator,
    drive: Callable[[Tensor], Tensor] | None,
) -> None:
    """Walk a path that turned NaN once more and raise `SolveError` at the first step without a solution.

    Returns where every step was solvable: the NaN then came with the state or the force.
    """
    drives = _drives(grid, integrator, drive)
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
