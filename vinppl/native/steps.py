"""One step of an integrator on one system, as scalar expressions.

The integrator's own `start`, `step` and `finish` are traced with the system's potential, mass and
forces inside, so that the compiled path is the reference path written out: there is no second
implementation of any integrator.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from vinppl.integrators import AbstractIntegrator, Mechanics, VectorField
from vinppl.native.capture import Capture
from vinppl.native.errors import Unsupported
from vinppl.native.expressions import Expression, Graph
from vinppl.native.lowering import STRUCTURED, Scalariser
from vinppl.native.network import NetworkShape
from vinppl.native.recorder import READS, record
from vinppl.native.views import broadcast, shape_of
from vinppl.potentials import NetworkGradient
from vinppl.state import PhaseState

__all__ = ["Slot", "StepProgram", "pack", "trace_step"]

System = Mechanics | VectorField

NO_DIMENSION = "a parameter indexed in a way that is not one of its dimensions"


class Slot(NamedTuple):
    """One number that a step reads from the tensors of its system, for every trajectory.

    Attributes:
        tensor: which of the captured tensors.
        place: for each of its dimensions, a fixed place, or `None` where it runs along a batch dimension.
        dims: the batch dimension that each `None` runs along.
    """

    tensor: int
    place: tuple[int | None, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class StepProgram:
    """A step written out.

    Inputs of the expressions: `("q", k)` and `("v", k)` of `start`; `("c", j)` the chart state, `("h",)`
    the step size and `("d", node, k)` the accelerations by drives of `step` and `start`; `("c", j)` of
    `finish`; `("p", s)` the slots, everywhere.

    Attributes:
        graph: holds all expressions.
        dim: number of coordinates.
        slots: where the parameters come from.
        start: chart state at the beginning.
        step: chart state after a step.
        finish: positions, then velocities, of a chart state.
        num_nodes: times in a step at which a drive is wanted; 0 without a drive.
        network: shape of the neural potential, if there is one.
        start_calls: evaluations of the neural potential in `start`.
        step_calls: the same in `step`, numbered after those of `start`.
    """

    graph: Graph
    dim: int
    slots: tuple[Slot, ...]
    start: tuple[Expression, ...]
    step: tuple[Expression, ...]
    finish: tuple[Expression, ...]
    num_nodes: int
    network: NetworkShape | None
    start_calls: int
    step_calls: int


def pack(slot: Slot, tensors: Sequence[Tensor], batch: tuple[int, ...]) -> Tensor:
    """Return the numbers of a slot, shape `batch`; differentiable."""
    value = tensors[slot.tensor]
    for dim in reversed(range(value.ndim)):
        at = slot.place[dim]
        if at is not None:
            value = value.select(dim, at)
    value = value.permute(sorted(range(value.ndim), key=slot.dims.__getitem__))
    shape = [1] * len(batch)
    for dim in slot.dims:
        shape[dim] = batch[dim]
    return value.reshape(shape).expand(batch)


def trace_step(
    integrator: AbstractIntegrator,
    system: System,
    found: Capture,
    state: PhaseState,
    batch: tuple[int, ...],
    num_nodes: int,
) -> StepProgram:
    """Write out a step.

    Args:
        integrator: traced with all it does.
        system: its closures are traced through.
        found: their tensors.
        state: an example, shapes broadcastable to `(*batch, dim)`.
        batch: shape of the batch.
        num_nodes: times in a step at which there is a drive; 0 without.

    Raises:
        Unsupported: if something in the step has no compiled form.
    """
    network = _network_shape(system, state.q.dtype)
    traced = _trace(integrator, system, found, state, batch, num_nodes)
    base = _Probe(traced, found, batch, (0,) * len(batch))
    moves: list[dict[int, tuple[float, ...]]] = [{} for _ in base.slots]
    for dim, size in enumerate(batch):
        for place in {1, size - 1} if size > 1 else ():
            probe = _Probe(traced, found, batch, tuple(place * (d == dim) for d in range(len(batch))))
            if probe.code != base.code:
                raise Unsupported("a step that treats trajectories differently")
            for moved, (_, at), (_, before) in zip(moves, probe.slots, base.slots, strict=True):
                change = tuple((a - b) / place for a, b in zip(at, before, strict=True))
                if moved.setdefault(dim, change) != change:
                    raise Unsupported(NO_DIMENSION)
    slots = tuple(
        _slot(found.tensors[tensor], tensor, at, moved, batch)
        for (tensor, at), moved in zip(base.slots, moves, strict=True)
    )
    start, step, finish = base.outputs
    if any(base.graph.operations[i] == "digamma" for i in base.graph.needed([*start, *step, *finish])):
        raise Unsupported("digamma, whose derivative has no compiled form")
    dim, calls = state.q.shape[-1], base.calls
    return StepProgram(base.graph, dim, slots, start, step, finish, num_nodes, network, *calls)


def _network_shape(system: System, dtype: torch.dtype) -> NetworkShape | None:
    """Return the shape of the system's neural potential, `None` if it has none."""
    gradient = getattr(system, "gradient", None)
    if not isinstance(gradient, NetworkGradient):
        return None
    if gradient.activation is None:
        raise Unsupported("an activation without a name")
    if any(w.ndim != 2 for w in gradient.weights):
        raise Unsupported("a neural potential with weights of several particles")
    return NetworkShape(
        tuple(len(bias) for bias in gradient.biases),
        gradient.activation,
        gradient.manifold.periodic,
        gradient.feature_scale,
        gradient.energy_scale,
        str(dtype).removeprefix("torch."),
    )


class _Traced(NamedTuple):
    """The three functions of an integrator, traced; `sizes` are those of the parts of the chart state."""

    start: torch.fx.GraphModule
    step: torch.fx.GraphModule
    finish: torch.fx.GraphModule
    sizes: tuple[int, ...]
    dim: int
    num_nodes: int


def _trace(
    integrator: AbstractIntegrator,
    system: System,
    found: Capture,
    state: PhaseState,
    batch: tuple[int, ...],
    num_nodes: int,
) -> _Traced:
    dim = state.q.shape[-1]
    if isinstance(system, Mechanics) and isinstance(system.gradient, NetworkGradient):
        system = system._replace(gradient=torch.ops.vinppl.external_gradient)
    with _disable_current_modes(), torch.no_grad():
        q = state.q.detach().expand(*batch, dim).clone(memory_format=torch.contiguous_format)
        v = state.v.detach().expand(*batch, dim).clone(memory_format=torch.contiguous_format)
        drive = tuple(torch.zeros_like(q) for _ in range(num_nodes))
        h = torch.zeros((), dtype=q.dtype, device=q.device)

        def start(q: Tensor, v: Tensor, *drive: Tensor) -> list[Any]:
            return pytree.tree_leaves(integrator.start(system, PhaseState(q, v), drive or None))

        carry, spec = pytree.tree_flatten(integrator.start(system, PhaseState(q, v), drive or None))
        vectors = [isinstance(x, Tensor) and x.ndim > 0 for x in carry]
        sizes = tuple(dim if vector else 1 for vector in vectors)
        example = [(q if vector else h).clone() for vector in vectors]  # one tensor twice is one input

        def step(h: Tensor, *rest: Tensor) -> list[Any]:
            carry = pytree.tree_unflatten(list(rest[: len(sizes)]), spec)
            return pytree.tree_leaves(integrator.step(system, carry, h, rest[len(sizes) :] or None))

        def finish(*leaves: Tensor) -> list[Any]:
            return list(integrator.finish(system, pytree.tree_unflatten(list(leaves), spec)))

        return _Traced(
            _record(start, found, q, v, *drive),
            _record(step, found, h, *example, *drive),
            _record(finish, found, *example),
            sizes,
            dim,
            num_nodes,
        )


def _record(function: Callable[..., Any], found: Capture, *examples: Tensor) -> torch.fx.GraphModule:
    """Return what a function does with tensors that are to be differentiated."""

    def tracked(*inputs: Tensor) -> Any:
        with torch.enable_grad(), _Uncut((*inputs, *found.tensors)):
            return function(*inputs)

    module = record(tracked, *(x.clone().requires_grad_() for x in examples))
    for node in module.graph.nodes:
        value = node.meta.get("val")
        wide = isinstance(value, Tensor) and value.ndim > 0
        if wide and torch.promote_types(value.dtype, examples[0].dtype) != examples[0].dtype:
            raise Unsupported("numbers of several types")
    return module


CUTS = frozenset({Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, Tensor.data.__get__})  # type: ignore[attr-defined]

WITHOUT_VALUES = frozenset(f"{name}_like" for name in ("zeros", "ones", "full", "empty", "rand", "randn")) | {
    f"new_{name}" for name in ("zeros", "ones", "full", "empty", "tensor")
}
"""Functions of the shape and the type of a tensor alone."""


class _Uncut(TorchFunctionMode):
    """Sees to it that gradients go wherever values go, as they do through what is written out.

    Args:
        tensors: what there may be gradients of.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._live = {id(x): x for x in tensors if x.is_floating_point()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sources = [x for x in pytree.tree_leaves((args, kwargs)) if id(x) in self._live]
        if sources and func in READS:
            raise Unsupported("control flow that depends on the values of tensors")
        result = func(*args, **(kwargs or {}))
        parts = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
        if sources and parts and func.__name__ not in WITHOUT_VALUES:
            if func is torch.autograd.grad:  # which need not depend on what its function depends on
                cut = not inspect.signature(func).bind(*args, **(kwargs or {})).arguments.get("create_graph")
            else:
                cut = any(x.requires_grad for x in sources) and not all(x.requires_grad for x in parts)
            if cut or func in CUTS or not torch.is_grad_enabled():
                raise Unsupported(f"a gradient that is cut off ({func.__name__})")
            self._live |= {id(x): x for x in parts}
        return result


class _Probe:
    """The expressions of one trajectory of the batch.

    Attributes:
        slots: pairs of a captured tensor's number and the place in it.
        outputs: expressions of start, step and finish.
        calls: evaluations of the external potential in start and step.
    """

    def __init__(self, traced: _Traced, found: Capture, batch: tuple[int, ...], at: tuple[int, ...]) -> None:
        self.graph = Graph()
        self.slots: list[tuple[int, tuple[int, ...]]] = []
        self._found, self._batch, self._at = found, batch, at
        self._calls: list[Any] = []
        self._fixed: list[Any] = []
        dim, nodes = traced.dim, traced.num_nodes
        ends = list(itertools.accumulate(traced.sizes))
        carry = [self._input("c", end - size, size) for end, size in zip(ends, traced.sizes, strict=True)]
        drive = [self._input(("d", node), 0, dim) for node in range(nodes)]
        position, velocity = self._input("q", 0, dim), self._input("v", 0, dim)
        sizes = traced.sizes
        start = self._lower(traced.start, [position, velocity, *drive], sizes)
        first = len(self._calls)
        step = self._lower(traced.step, [self._input("h", 0, 1), *carry, *drive], sizes)
        self.calls = (first, len(self._calls) - first)
        finish = self._lower(traced.finish, carry, (dim, dim))
        if len(self._calls) != sum(self.calls):
            raise Unsupported("a neural potential in the integrator's finish")
        self.outputs = (start, step, finish)

    @property
    def code(self) -> tuple[Any, ...]:
        """The program without the places in captured tensors, but with those in constants."""
        tensors = [tensor for tensor, _ in self.slots]
        return self.graph.operations, self.graph.operands, self.graph.payloads, tensors, self._fixed

    def _input(self, name: Any, first: int, size: int) -> Callable[[tuple[int, ...]], Expression]:
        key = name if isinstance(name, tuple) else (name,)

        def element(index: tuple[int, ...]) -> Expression:
            if not index:
                return self.graph.input((*key, first))
            if index[:-1] != self._at:
                raise Unsupported("an operation across trajectories")
            return self.graph.input((*key, first + index[-1]))

        return element

    def _constant(self, tensor: Tensor, index: tuple[int, ...]) -> Expression:
        number = self._found.position(tensor)
        if number is None:
            raise Unsupported(
                "a tensor that is read while stepping; read it before, where the potential is bound"
            )
        key = (number, index)
        if number in self._found.known:
            self._fixed.append(key)
            return self.graph.constant(float(tensor[index]))
        if key not in self.slots:
            self.slots.append(key)
        value = self.graph.input(("p", self.slots.index(key)))
        return value.apply("ne", 0.0) if tensor.dtype == torch.bool else value

    def _lower(
        self, module: torch.fx.GraphModule, inputs: Sequence[Any], sizes: Sequence[int]
    ) -> tuple[Expression, ...]:
        scalars = _StepScalariser(self.graph, module, inputs, self._constant)
        scalars.calls = self._calls
        result: list[Expression] = []
        for node, size in zip(scalars.outputs, sizes, strict=True):
            for k in range(size):
                if isinstance(node, Node):
                    shape = shape_of(node)
                    result.append(scalars.value(node, broadcast((*self._at, k), shape) if shape else ()))
                else:
                    result.append(self.graph.constant(node))
        self._fixed += scalars.fixed
        return tuple(result)


class _StepScalariser(Scalariser):
    """Also knows the external potential, whose evaluations it numbers in `calls`."""

    calls: list[Any]


def _external(s: Scalariser, node: Any, index: tuple[int, ...]) -> Expression:
    assert isinstance(s, _StepScalariser)
    (position,) = node.args
    dim = shape_of(position)[-1]
    place = [s.element(position, (*index[:-1], k)) for k in range(dim)]
    key = (node, index[:-1])
    if key not in s.calls:
        s.calls.append(key)
    return s.graph.force(s.calls.index(key), index[-1], place)


def _slot(
    value: Tensor,
    tensor: int,
    at: tuple[int, ...],
    moved: dict[int, tuple[float, ...]],
    batch: tuple[int, ...],
) -> Slot:
    index: list[int | None] = list(at)
    along: dict[int, int] = {}
    for batch_dim, change in moved.items():
        for dim, amount in enumerate(change):
            if amount == 0:
                continue
            if amount != 1 or dim in along or value.shape[dim] != batch[batch_dim]:
                raise Unsupported(NO_DIMENSION)
            index[dim], along[dim] = None, batch_dim
    return Slot(tensor, tuple(index), tuple(along[d] for d in sorted(along)))


_library = torch.library.Library("vinppl", "DEF")
_library.define("external_gradient(Tensor q) -> Tensor")
_library.impl("external_gradient", lambda q: torch.zeros_like(q), "CompositeExplicitAutograd")
STRUCTURED[torch.ops.vinppl.external_gradient.default] = _external
