"""Runs compiled rollouts on torch tensors, differentiably."""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from vinppl.integrators import AbstractIntegrator
from vinppl.native.builder import Precision, new_module
from vinppl.native.capture import Capture, capture
from vinppl.native.compiler import compile_module, vector_width
from vinppl.native.errors import Unsupported
from vinppl.native.interpret import interpret
from vinppl.native.kernels import (
    ADJOINT_ARGUMENTS,
    FORWARD_ARGUMENTS,
    Layout,
    emit_adjoint,
    emit_forward,
)
from vinppl.native.network import emit_parameter_gradient, parameter_gradient, scratch_size, unpack_weights
from vinppl.native.steps import StepProgram, System, pack, trace_step
from vinppl.potentials import NetworkGradient
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

__all__ = ["MAX_VARIANTS", "PLANS", "Plan", "native_path"]

DTYPES = {torch.float64: "float64", torch.float32: "float32"}

MAX_VARIANTS = 32
"""Programs that differ in their constants alone; beyond them, compiling costs more than it saves."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A step program on a grid.

    Attributes:
        program: the step.
        samples: for each sub-step, the number of the sample it ends on, or -1.
        num_times: number of samples.
    """

    program: StepProgram
    samples: np.ndarray[Any, Any]
    num_times: int

    @property
    def num_steps(self) -> int:
        """Number of sub-steps."""
        return len(self.samples)


PLANS: list[Plan] = []
"""Every plan of this process, by the number that its operator calls carry."""


def native_path(
    system: System,
    initial: PhaseState,
    grid: TimeGrid,
    integrator: AbstractIntegrator,
    drives: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return positions and velocities at the grid's times, each `(*batch, time, dim)`.

    Args:
        system: what moves.
        initial: its state at the first time.
        grid: sampling times and sub-steps.
        integrator: the one-step method.
        drives: accelerations by known inputs at each of the integrator's drive nodes, each
            `(*batch, sub-steps, dim)`.

    Raises:
        Unsupported: if something in it has no compiled form.
    """
    _check_environment(initial)
    found = capture(system, integrator)
    h = _step_sizes(grid, integrator, initial.q)
    entry = _entry(system, initial, integrator, found, h, drives)
    plan = entry.plan(grid.num_substeps, len(integrator.fractions))
    tensors = _arguments(entry.program, entry.batch, system, initial, found, h, drives)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        path = _Rollout.apply(*tensors, plan)
    else:
        path, *_ = torch.ops.vinppl.rollout(*tensors, plan, False)
    path = path.reshape(*entry.batch, *path.shape[1:])
    dim = initial.q.shape[-1]
    return path[..., :dim], path[..., dim:]


def _arguments(
    program: StepProgram,
    batch: tuple[int, ...],
    system: System,
    initial: PhaseState,
    found: Capture,
    h: Tensor,
    drives: Sequence[Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return the tensors that the operator takes, all of the type of the state; differentiable."""
    dim, dtype = initial.q.shape[-1], initial.q.dtype
    q0 = initial.q.expand(*batch, dim).reshape(-1, dim)
    v0 = initial.v.expand(*batch, dim).reshape(-1, dim)
    packed = [pack(slot, found.tensors, batch).to(dtype) for slot in program.slots]
    parameters = torch.stack(packed).reshape(len(packed), -1) if packed else q0.new_zeros(0, q0.shape[0])
    if h.ndim > 1:
        h = h.expand(*batch, -1).reshape(q0.shape[0], -1)
    drive = q0.new_zeros(0)
    if drives is not None:
        drive = torch.stack(tuple(drives), -2).to(dtype)  # (*batch, sub-steps, nodes, dim)
        if drive.ndim > 3:
            drive = drive.expand(*batch, -1, -1, -1).reshape(q0.shape[0], *drive.shape[-3:])
    gradient = getattr(system, "gradient", None)
    weights = _pack_weights(gradient) if isinstance(gradient, NetworkGradient) else q0.new_zeros(0)
    return q0, v0, parameters, h.to(dtype), drive, weights


def _check_environment(initial: PhaseState) -> None:
    q = initial.q
    if q.device.type != "cpu":
        raise Unsupported(f"tensors on {q.device}")
    if q.dtype not in DTYPES:
        raise Unsupported(f"numbers of type {q.dtype}")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise Unsupported("a function transform of torch.func")
    if forward_ad._current_level >= 0:
        raise Unsupported("forward-mode differentiation")


def _pack_weights(gradient: NetworkGradient) -> Tensor:
    """Return all weights and biases in one vector, layer by layer."""
    *hidden, last = gradient.weights
    parts = [x for layer in zip(hidden, gradient.biases, strict=True) for x in layer]
    return torch.cat([x.reshape(-1) for x in (*parts, last)])


def _step_sizes(grid: TimeGrid, integrator: AbstractIntegrator, like: Tensor) -> Tensor:
    """Return the length of every sub-step, `(sub-steps,)` or `(*batch, sub-steps)`."""
    if grid.uniform_step is not None:
        return _uniform(grid.uniform_step, grid.num_steps, integrator.fractions, like.dtype)
    sizes = grid.step_sizes
    if sizes.ndim == 1 and not sizes.requires_grad:  # plain numbers, in the reference
        sizes = sizes.to(like.dtype)
    if len(integrator.fractions) == 1:
        return sizes
    fractions = torch.tensor(integrator.fractions, dtype=sizes.dtype, device=sizes.device)
    return (sizes.unsqueeze(-1) * fractions).flatten(-2)


@functools.lru_cache(maxsize=64)
def _uniform(step: float, count: int, fractions: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([f * step for f in fractions], dtype=dtype).repeat(count)


class _Entry:
    """A traced step, and its plans for the grids it was used on."""

    def __init__(self, program: StepProgram, batch: tuple[int, ...], kept: Sequence[Any]) -> None:
        self.program, self.batch, self._kept = program, batch, kept
        self._plans: dict[tuple[Any, ...], int] = {}

    def plan(self, num_substeps: tuple[int, ...], stages: int) -> int:
        """Return the number of the plan for a grid."""
        key = (num_substeps, stages)
        if key not in self._plans:
            counts = np.array(num_substeps, dtype=np.int64) * stages
            samples = np.full(int(counts.sum()), -1, dtype=np.int64)
            samples[counts.cumsum() - 1] = np.arange(1, len(counts) + 1)
            self._plans[key] = len(PLANS)
            PLANS.append(Plan(self.program, samples, len(counts) + 1))
        return self._plans[key]


_entries: dict[Any, _Entry | str] = {}
"""Traced steps, or why there is none, by all that they depend on."""

_variants: Counter[Any] = Counter()
"""Number of entries by all but their constants."""


def _entry(
    system: System,
    initial: PhaseState,
    integrator: AbstractIntegrator,
    found: Capture,
    h: Tensor,
    drives: Sequence[Tensor] | None,
) -> _Entry:
    """Return the traced step of a system, from the last time where its key is the same."""
    like = [initial.q, initial.v, h[..., :1], *(d[..., :1, :] for d in drives or ())]
    shapes = tuple((x.shape, x.dtype) for x in like)
    key = (found.key, shapes)
    entry = _entries.get(key)
    if entry is None:
        family = (found.structure, shapes)
        if _variants[family] >= MAX_VARIANTS:
            raise Unsupported("numbers in the system that change from call to call; make them tensors")
        try:
            entry = _trace(system, initial, integrator, found, h, drives)
        except Unsupported as error:
            entry = str(error)
        _entries[key] = entry
        _variants[family] += 1
    if isinstance(entry, str):
        raise Unsupported(entry)
    return entry


def _trace(
    system: System,
    initial: PhaseState,
    integrator: AbstractIntegrator,
    found: Capture,
    h: Tensor,
    drives: Sequence[Tensor] | None,
) -> _Entry:
    with _disable_current_modes(), torch.no_grad():
        _, after = _step(system, integrator, initial, h, drives)
    shape = np.broadcast_shapes(after.q.shape, after.v.shape)
    if shape[-1] != initial.q.shape[-1]:
        raise Unsupported("parameters for more coordinates than there are")
    if not after.q.dtype == after.v.dtype == initial.q.dtype:
        raise Unsupported("numbers of several types")
    batch = tuple(shape[:-1])
    try:
        program = trace_step(integrator, system, found, initial, batch, len(drives or ()))
        with _disable_current_modes(), torch.no_grad():
            _try(program, batch, system, initial, integrator, found, h, drives)
    except Unsupported:
        raise
    except Exception as error:  # the step itself runs: what fails is its tracing
        text = str(error).partition("\n")[0]
        raise Unsupported(f"a step that cannot be traced ({type(error).__name__}: {text})") from error
    return _Entry(program, batch, found.kept)


def _step(
    system: System,
    integrator: AbstractIntegrator,
    initial: PhaseState,
    h: Tensor,
    drives: Sequence[Tensor] | None,
) -> tuple[PhaseState, PhaseState]:
    """Return the states before and after the first step, by torch operations."""
    known = None if drives is None else tuple(d[..., 0, :] for d in drives)
    carry = integrator.start(system, initial, known)
    step = h[..., :1] if h.ndim > 1 or h.requires_grad else float(h[0])
    after = integrator.step(system, carry, step, known)
    return integrator.finish(system, carry), integrator.finish(system, after)


def _try(
    program: StepProgram,
    batch: tuple[int, ...],
    system: System,
    initial: PhaseState,
    integrator: AbstractIntegrator,
    found: Capture,
    h: Tensor,
    drives: Sequence[Tensor] | None,
) -> None:
    """Take one step, from near the first state, by the program and by the integrator.

    Raises:
        Unsupported: if they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def near(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    state = PhaseState(near(initial.q), near(initial.v))
    known = None if drives is None else [near(d[..., :1, :]) for d in drives]
    longest = h.amax(-1, keepdim=True)
    arguments = _arguments(program, batch, system, state, found, longest, known)
    path = interpret(program, [1], *arguments).reshape(*batch, 2, 2, program.dim)
    tolerance = 1e-6 if initial.q.dtype == torch.float64 else 1e-3
    for at, expected in enumerate(_step(system, integrator, state, longest, known)):
        for actual, x in zip(path[..., at, :, :].unbind(-2), expected, strict=True):
            atol = tolerance * (1 + float(x.nan_to_num(posinf=0.0, neginf=0.0).abs().sum()))
            if not torch.allclose(actual, x, rtol=tolerance, atol=atol, equal_nan=True):
                raise Unsupported("a step that was written out wrongly")


# Operators


class _Rollout(torch.autograd.Function):
    """The rollout as a differentiable function of tensors."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, plan = arguments
        path, *kept = torch.ops.vinppl.rollout(*tensors, plan, True)
        ctx.save_for_backward(*tensors, *kept)
        ctx.plan = plan
        return path

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, carries, positions, slopes = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return (*_differentiable_gradient(ctx.plan, tensors, gradient, needed), None)
        found = torch.ops.vinppl.rollout_adjoint(
            gradient, *tensors, carries, positions, slopes, ctx.plan, needed[3], needed[4], needed[5]
        )
        return (*(g if need else None for g, need in zip(found, needed, strict=False)), None)


def _differentiable_gradient(
    plan: int, tensors: Sequence[Tensor], gradient: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients by torch's own operations, for higher derivatives."""
    path = interpret(PLANS[plan].program, PLANS[plan].samples.tolist(), *tensors)
    wanted = [t for t, need in zip(tensors, needed, strict=False) if need]
    found = iter(torch.autograd.grad(path, wanted, gradient, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for _, need in zip(tensors, needed, strict=False)]


_compiled: dict[Any, Any] = {}


def _function(program: StepProgram, layout: Layout, kind: str) -> Any:
    """Return a compiled loop, to call with integers and addresses."""
    key = (id(program), layout, kind)
    if key not in _compiled:
        module = new_module(kind)
        emitter: Callable[..., Any] = emit_forward if kind == "forward" else emit_adjoint
        emitter(module, program, layout, kind)
        count = len(FORWARD_ARGUMENTS if kind == "forward" else ADJOINT_ARGUMENTS)
        library = compile_module(module)
        arguments = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * count
        _compiled[key] = (library.function(kind, arguments), program)  # the key holds while the program lives
    return _compiled[key][0]


def choose_lanes(num_trajectories: int, dtype: str) -> int:
    """Return how many trajectories to advance together: one alone, otherwise up to two registers."""
    lanes, limit = 1, vector_width(Precision(dtype).bytes)
    while lanes < min(num_trajectories, limit):
        lanes *= 2
    return lanes


def _lay_out(x: Tensor, size: int) -> Tensor:
    """Return `(N, *rest)` as `(*rest, size)`, filled up with copies of the last trajectory."""
    moved = x.movedim(0, -1)
    extra = size - moved.shape[-1]
    if extra:
        moved = torch.cat([moved, moved[..., -1:].expand(*moved.shape[:-1], extra)], -1)
    return moved.contiguous()


class _Arrays:
    """The inputs of a rollout in the layout of the kernels."""

    def __init__(self, tensors: Sequence[Tensor], plan: Plan) -> None:
        q0, v0, parameters, h, drive, weights = (t.detach() for t in tensors)
        self.dtype = DTYPES[q0.dtype]
        self.count, self.dim = q0.shape
        self.lanes = choose_lanes(self.count, self.dtype)
        self.size = -(-self.count // self.lanes) * self.lanes
        self.h_shared, self.drive_shared = h.ndim == 1, drive.ndim <= 3
        self.q0, self.v0 = _lay_out(q0, self.size), _lay_out(v0, self.size)
        self.parameters = _lay_out(parameters.mT, self.size)
        self.h = h.contiguous() if self.h_shared else _lay_out(h, self.size)
        self.drive = drive.contiguous() if self.drive_shared else _lay_out(drive, self.size)
        self.weights = weights.contiguous()
        network = plan.program.network
        scratch = 0 if network is None else scratch_size(network, self.lanes)
        self.scratch = q0.new_empty(scratch)

    def layout(self, **flags: bool) -> Layout:
        """Return the layout of these arrays."""
        return Layout(self.lanes, self.dtype, self.h_shared, self.drive_shared, **flags)


def _pointers(*arrays: Tensor) -> list[int]:
    return [a.data_ptr() for a in arrays]


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, number, keep = arguments
    plan = PLANS[number]
    a = _Arrays(tensors, plan)
    program, steps = plan.program, plan.num_steps
    new = a.q0.new_empty
    calls = program.start_calls + steps * program.step_calls
    path = new(plan.num_times, 2 * a.dim, a.size)
    carries = new(steps + 1, len(program.start), a.size) if keep else new(0)
    positions = new(a.dim, calls, a.size) if keep else new(0)
    slopes = new(calls, a.dim + a.dim**2, a.size) if keep and calls else new(0)
    _function(program, a.layout(keep=keep), "forward")(
        a.size,
        steps,
        *_pointers(a.q0, a.v0, a.parameters, a.h, a.drive),
        plan.samples.ctypes.data,
        *_pointers(a.weights, a.scratch, path, carries, positions, slopes),
    )
    return path[..., : a.count].permute(2, 0, 1), carries, positions, slopes


def _adjoint(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradient, *tensors, carries, positions, slopes, number, by_h, by_drive, by_weights = arguments
    plan = PLANS[number]
    a = _Arrays(tensors, plan)
    program, steps, network = plan.program, plan.num_steps, plan.program.network
    new = a.q0.new_empty
    seed = gradient.new_zeros(*gradient.shape[1:], a.size)
    seed[..., : a.count] = gradient.permute(1, 2, 0)
    q0_gradient, v0_gradient = torch.empty_like(a.q0), torch.empty_like(a.v0)
    parameter_gradient_ = torch.empty_like(a.parameters)
    h_gradient = new(steps, a.size) if by_h else new(0)
    nodes = program.num_nodes
    drive_gradient = a.q0.new_zeros(max(1, steps), nodes, a.dim, a.size) if by_drive else new(0)
    force_gradient = a.q0.new_zeros(positions.shape)
    _function(program, a.layout(keep=True, h_gradient=by_h, drive_gradient=by_drive), "adjoint")(
        a.size,
        steps,
        *_pointers(a.q0, a.v0, a.parameters, a.h, a.drive),
        plan.samples.ctypes.data,
        *_pointers(carries, positions, slopes, seed, q0_gradient, v0_gradient, parameter_gradient_),
        *_pointers(h_gradient, drive_gradient, force_gradient),
    )
    weight_gradient = a.q0.new_zeros(a.weights.shape)
    if network is not None and by_weights:
        weight_gradient = _weight_gradient(network, a.weights, positions, force_gradient)

    def gathered(x: Tensor, shared: bool) -> Tensor:
        """Return `(*rest, size)` as the input had it: summed over trajectories, or one each."""
        x = x[..., : a.count]
        return x.sum(-1) if shared else x.movedim(-1, 0)

    return (
        q0_gradient[:, : a.count].mT.contiguous(),
        v0_gradient[:, : a.count].mT.contiguous(),
        parameter_gradient_[:, : a.count].contiguous(),
        gathered(h_gradient, a.h_shared).contiguous() if by_h else h_gradient,
        gathered(drive_gradient, a.drive_shared).contiguous() if by_drive else drive_gradient,
        weight_gradient,
    )


def _weight_gradient(network: Any, weights: Tensor, positions: Tensor, cotangents: Tensor) -> Tensor:
    """Return the gradient of the packed weights from all evaluations, `(dim, M, N)` each."""
    q, lam = positions.flatten(1), cotangents.flatten(1)
    if len(network.hidden_sizes) > 1:
        layers = unpack_weights(network, weights)
        return torch.cat([g.reshape(-1) for g in parameter_gradient(network, layers, q.mT, lam.mT)])
    out = torch.empty_like(weights)
    _weight_kernel(network)(q.shape[1], *_pointers(q, lam, weights, out))
    return out


@functools.cache
def _weight_kernel(network: Any) -> Any:
    module = new_module("weights")
    emit_parameter_gradient(module, network, "weights")
    return compile_module(module).function("weights", [ctypes.c_int64] + [ctypes.c_void_p] * 4)


_library = torch.library.Library("vinppl", "FRAGMENT")
_INPUTS = "Tensor q0, Tensor v0, Tensor parameters, Tensor h, Tensor drive, Tensor weights"
_library.define(f"rollout({_INPUTS}, int plan, bool keep) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"rollout_adjoint(Tensor gradient, {_INPUTS}, Tensor carries, Tensor positions, Tensor slopes, int plan, "
    "bool by_h, bool by_drive, bool by_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("rollout", _forward, "CPU")
_library.impl("rollout_adjoint", _adjoint, "CPU")
