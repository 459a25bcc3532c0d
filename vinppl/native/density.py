"""Compiles a traced log density and its gradient into one function, for one chain or several side by side.

Every tensor of the graph is either written to memory once, by a loop over its elements, or (a
pointwise operation with a single reader, or a view) worked out inside the loops of its readers. All
memory is one block whose places are used again when their values are no longer read.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor
from torch.fx import GraphModule, Node

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.expressions import Expression, Graph, Number, emit
from vinppl.native.kernels import ADJOINT_ARGUMENTS, FORWARD_ARGUMENTS, Layout, emit_adjoint, emit_forward
from vinppl.native.lowering import ELEMENTWISE, RESHAPES, VIEWS, Unsupported, broadcast, num, shape_of, view_index
from vinppl.native.network import emit_parameter_gradient, scratch_size
from vinppl.native.rollout import PLANS, choose_lanes
from vinppl.native.simplify import varying_shape
from vinppl.native.steps import StepProgram

__all__ = ["Constants", "DensityModule", "emit_density"]

aten = torch.ops.aten
ROLLOUT = torch.ops.vinppl.rollout.default
ADJOINT = torch.ops.vinppl.rollout_adjoint.default

DOUBLE = Precision("float64")
SMALL = 16
"""Pointwise results of up to this many elements are written to memory rather than worked out again."""


class Affine:
    """An index that is a whole-number combination of loop variables."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms: dict[int, int], constant: int = 0) -> None:
        self.terms = {v: c for v, c in terms.items() if c}
        self.constant = constant

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.constant + other)
        terms = dict(self.terms)
        for variable, factor in other.terms.items():
            terms[variable] = terms.get(variable, 0) + factor
        return Affine(terms, self.constant + other.constant)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        return Affine({v: c * factor for v, c in self.terms.items()}, self.constant * factor)

    __rmul__ = __mul__

    def __rsub__(self, other: int) -> Affine:
        return self * -1 + other

    def __sub__(self, other: int) -> Affine:
        return self + -other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and (self.terms, self.constant) == (other.terms, other.constant)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.terms.items())), self.constant))


class Buffer(NamedTuple):
    """Where a tensor lies: in the workspace, or among the constants.

    Attributes:
        offset: its first element, in elements (of all lanes, in the workspace).
        strides: distance of neighbours along each dimension, in elements.
        constant: whether it is a constant, the same in all lanes.
        truth: whether its values are truth values, kept as 0 and 1.
    """

    offset: int
    strides: tuple[int, ...]
    constant: bool
    truth: bool


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array without gaps."""
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return tuple(reversed(strides))


class Constants:
    """The constant tensors of a graph in one block of numbers, and index tables in another."""

    def __init__(self) -> None:
        self.numbers: list[np.ndarray[Any, Any]] = []
        self.tables: list[np.ndarray[Any, Any]] = []
        self._sizes = [0, 0]
        self._known: dict[tuple[str, int], int] = {}

    def number(self, name: str, tensor: Tensor) -> int:
        """Return the place of a tensor's numbers."""
        return self._add(0, self.numbers, name, tensor.detach().to(torch.float64))

    def table(self, name: str, tensor: Tensor) -> int:
        """Return the place of a tensor of indices."""
        return self._add(1, self.tables, name, tensor.detach().to(torch.int64))

    def arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return both blocks."""
        numbers = np.concatenate([np.zeros(0), *self.numbers])
        return numbers, np.concatenate([np.zeros(0, dtype=np.int64), *self.tables])

    def _add(self, block: int, parts: list[np.ndarray[Any, Any]], name: str, tensor: Tensor) -> int:
        if (name, block) not in self._known:
            self._known[name, block] = self._sizes[block]
            flat = tensor.contiguous().reshape(-1).numpy()
            parts.append(flat)
            self._sizes[block] += flat.size
        return self._known[name, block]


def is_truth(node: Node) -> bool:
    """Whether a node's values are truth values."""
    return bool(node.meta["val"].dtype == torch.bool)


def numel(node: Node) -> int:
    """Return the number of a node's elements."""
    return math.prod(shape_of(node))


FILLED = {
    aten.full.default: lambda n: n.args[1],
    aten.full_like.default: lambda n: n.args[1],
    aten.new_full.default: lambda n: n.args[2],
    aten.scalar_tensor.default: lambda n: n.args[0],
    aten.zeros.default: lambda n: 0.0,
    aten.zeros_like.default: lambda n: 0.0,
    aten.new_zeros.default: lambda n: 0.0,
    aten.ones.default: lambda n: 1.0,
    aten.ones_like.default: lambda n: 1.0,
    aten.new_ones.default: lambda n: 1.0,
}

SPLITS = frozenset({aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int})


class _Plan:
    """Decides which nodes are written to memory, and where.

    Attributes:
        order: the nodes in order.
        written: those that have memory.
        flat: those whose elements all lie in memory, in order.
        varying: their shapes, with 1 for dimensions along which all values are equal.
    """

    def __init__(self, module: GraphModule) -> None:
        self.varying: dict[Node, tuple[int, ...]] = {}
        self.order = [n for n in module.graph.nodes if n.op == "call_function"]
        self.written: set[Node] = {n for n in self.order if self._is_structured(n)}
        self.written |= {n for n in self.order if n not in self.written and self._is_shared(n)}
        self.flat: set[Node] = set()
        for node in self.order:
            if node.target in RESHAPES and not _same_up_to_ones(shape_of(node), shape_of(node.args[0])):
                self._need_flat(node.args[0])  # type: ignore[arg-type]

    def _is_structured(self, node: Node) -> bool:
        return node.target in STRUCTURED

    def _is_shared(self, node: Node) -> bool:
        """Whether a pointwise result is better kept than worked out by each reader."""
        if node.target not in ELEMENTWISE or ELEMENTWISE[node.target].__name__ == "_same":
            return False
        domains = [d for user in node.users for d in self._domains(user)]
        size = self.size(node)
        return len(domains) > 1 or size <= SMALL or any(d > size for d in domains)

    def size(self, node: Node) -> int:
        """Return the number of elements of a node that may differ."""
        return math.prod(varying_shape(node, self.varying))

    def _domains(self, user: Node) -> list[int]:
        """Return the number of elements that each reader of a node, through views, goes over."""
        if user.op == "output":
            return [0]
        if user.target in ELEMENTWISE and ELEMENTWISE[user.target].__name__ != "_same":
            return [self.size(user)]
        if user.target in VIEWS or user.target in RESHAPES or user.target in ELEMENTWISE or user.target in SPLITS:
            return [d for u in user.users for d in self._domains(u)]
        if user.target is operator.getitem:
            return [d for u in user.users for d in self._domains(u)]
        return [math.inf] if user.target in GATHERED else [0]  # type: ignore[list-item]

    def _need_flat(self, source: Node) -> None:
        """See to it that the elements of a node lie in memory in order."""
        while source.target in RESHAPES or (
            source.target in ELEMENTWISE and ELEMENTWISE[source.target].__name__ == "_same"
        ):
            source = source.args[0]  # type: ignore[assignment]
        if source.op == "call_function" and source.target not in FILLED:
            self.written.add(source)
            self.flat.add(source)


def _same_up_to_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    return [n for n in a if n != 1] == [n for n in b if n != 1]


class _Body:
    """The innermost block of some loops: values of elements at its indices."""

    def __init__(self, owner: _Writer, variables: dict[int, Any]) -> None:
        self.owner, self.variables = owner, variables
        self.graph = Graph()
        self._loaded: dict[Any, Any] = {}

    def index(self, at: Affine | int) -> Any:
        """Return an index as a value."""
        b = self.owner.b
        if isinstance(at, int):
            return b.index(at)
        total = b.index(at.constant)
        for variable, factor in at.terms.items():
            total = b.ir.add(total, b.ir.mul(self.variables[variable], b.index(factor)))
        return total

    def variable(self, value: Any) -> Affine:
        """Return an index whose value was loaded."""
        number = len(self.variables) + 1_000_000
        self.variables[number] = value
        return Affine({number: 1})

    def load(self, buffer: Buffer, place: Affine | int) -> Expression:
        """Return the element at a flat place of a buffer."""
        key = (buffer.constant, place + buffer.offset)
        if key not in self._loaded:
            b, owner = self.owner.b, self.owner
            at = self.index(place + buffer.offset)
            if buffer.constant:
                self._loaded[key] = b.load_shared(owner.constants_pointer, at)
            else:
                self._loaded[key] = b.load(owner.workspace, b.ir.mul(at, b.index(b.lanes)))
        value = self.graph.input(key)
        return value.apply("ne", 0.0) if buffer.truth else value

    def value(self, expression: Number) -> Any:
        """Write an expression, and return its value; truth values as 0 and 1."""
        number = num(expression)
        if not isinstance(number, Expression):
            return self.owner.b.const(number)
        return emit(self.owner.b, [number], self._loaded)[0]

    def element(self, node: Any, index: tuple[Any, ...]) -> Number:
        """Return an element of a node."""
        if not isinstance(node, Node):
            return node  # type: ignore[no-any-return]
        owner = self.owner
        buffer = owner.buffer(node)
        if buffer is not None:
            return self.load(buffer, _dot(index, buffer.strides))
        if node.target in FILLED:
            value: Any = FILLED[node.target](node)
            return self.graph.constant(value if isinstance(value, bool) else float(value))
        if node.target in ELEMENTWISE:
            arguments = [
                self._argument(a, broadcast(index, shape_of(a))) if isinstance(a, Node) else a for a in node.args
            ]
            return ELEMENTWISE[node.target](*arguments, **node.kwargs)
        place = view_index(node, index)
        if place is not None:
            return self.element(node.args[0], place)
        if node.target in RESHAPES:
            return self._reshaped(node, index)
        if node.target is operator.getitem and node.args[0].target in SPLITS:  # type: ignore[union-attr]
            return self._part(node, index)
        if node.target is aten.arange.start_step:
            start, _, *step = node.args
            return self._number(index[0] * (step[0] if step else 1) + start)
        raise Unsupported(f"the operation {node.target}")

    def _number(self, index: Affine | int) -> Expression:
        """Return an index as a number."""
        if isinstance(index, int):
            return self.graph.constant(float(index))
        b = self.owner.b
        self._loaded["index", index] = b.splat(b.ir.sitofp(self.index(index), b.precision.type))
        return self.graph.input(("index", index))

    def _argument(self, node: Node, index: tuple[Any, ...]) -> Number:
        value = self.element(node, index)
        return self.graph.constant(value) if not isinstance(value, Expression) else value

    def _reshaped(self, node: Node, index: tuple[Any, ...]) -> Number:
        source: Any = node.args[0]
        shape, old = shape_of(node), shape_of(source)
        if _same_up_to_ones(shape, old):
            rest = iter(i for i, n in zip(index, shape, strict=True) if n != 1)
            return self.element(source, tuple(0 if n == 1 else next(rest) for n in old))
        flat = _dot(index, row_major(shape))
        while self.owner.buffer(source) is None and source.target not in FILLED:
            source = source.args[0]
        if source.target in FILLED:
            return self.element(source, (0,) * len(shape_of(source)))
        buffer = self.owner.buffer(source)
        assert buffer is not None
        if buffer.strides != row_major(shape_of(source)):
            raise Unsupported("a reshaped rollout")
        return self.load(buffer, flat)

    def _part(self, node: Node, index: tuple[Any, ...]) -> Number:
        whole, number = node.args
        source, sizes, *rest = whole.args  # type: ignore[union-attr]
        if whole.target is aten.unbind.int:  # type: ignore[union-attr]
            dim = sizes if len(whole.args) > 1 else 0  # type: ignore[union-attr]
            dim %= len(shape_of(source))
            return self.element(source, (*index[:dim], number, *index[dim:]))
        dim = (rest[0] if rest else 0) % len(shape_of(source))
        first = sizes * number if isinstance(sizes, int) else sum(sizes[:number])  # type: ignore[operator]
        return self.element(source, (*index[:dim], index[dim] + first, *index[dim + 1 :]))


def _dot(index: Sequence[Any], strides: Sequence[int]) -> Any:
    total: Any = 0
    for i, stride in zip(index, strides, strict=True):
        total = i * stride + total
    return total


class DensityModule:
    """A module under construction, and what its functions share.

    Args:
        graph: the traced value and gradient.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.llvm = new_module("density")
        self.graph, self.constants = graph, Constants()
        self._functions: dict[Any, ir.Function] = {}

    def function(self, key: Any, write: Callable[[str], ir.Function]) -> ir.Function:
        """Return an internal function, written the first time."""
        if key not in self._functions:
            self._functions[key] = write(f"part_{len(self._functions)}")
        return self._functions[key]


class _Writer:
    """Writes one function `(x, value, gradient, constants, tables, workspace)`."""

    def __init__(self, module: DensityModule, name: str, lanes: int) -> None:
        self.module, self.graph, self.constants, self.lanes = module, module.graph, module.constants, lanes
        self.b = FunctionBuilder(
            module.llvm, name, [POINTER] * 6, lanes=lanes, precision=DOUBLE, internal=True
        )
        self.x, self.out_value, self.out_gradient, *rest = self.b.arguments
        self.constants_pointer, self.tables, self.workspace = rest
        self._buffers: dict[Node, Buffer] = {}
        self._variables = itertools.count()
        self.plan = _Plan(module.graph)
        self._memory = _Memory()
        self._last = self._last_readers()
        self.raw: dict[Node, dict[str, Any]] = {}
        """Places of what a rollout keeps for its adjoint."""

    @property
    def workspace_size(self) -> int:
        """Numbers of the workspace, in all lanes."""
        return self._memory.size * self.lanes

    def write(self) -> None:
        """Write the function."""
        nodes = list(self.graph.graph.nodes)
        (placeholder,) = [n for n in nodes if n.op == "placeholder"]
        self._copy_input(placeholder)
        for node in self.plan.order:
            if node in self.plan.written:
                rule = STRUCTURED.get(node.target)
                if rule is None:
                    self._write_pointwise(node)
                else:
                    rule(self, node)
            self._release(node)
        output = next(n for n in nodes if n.op == "output")
        value, gradient = output.args[0]
        with self.loops(()) as (body, _):
            self.b.store(body.value(body.element(value, ())), self.out_value, self.b.index(0))
        with self.loops(shape_of(gradient)) as (body, index):
            place = self.b.ir.mul(body.index(index[0]), self.b.index(self.lanes))
            self.b.store(body.value(body.element(gradient, index)), self.out_gradient, place)
        self.b.finish()

    # Memory

    def buffer(self, node: Node) -> Buffer | None:
        """Return where a node lies; `None` if it is worked out where it is read."""
        if node.op == "get_attr" and node not in self._buffers:
            tensor = getattr(self.graph, str(node.target))
            place = self.constants.number(str(node.target), tensor)
            truth = tensor.dtype == torch.bool
            self._buffers[node] = Buffer(place, row_major(tensor.shape), True, truth)
        return self._buffers.get(node)

    def allocate(self, node: Node, shape: Sequence[int] | None = None) -> Buffer:
        """Give a node memory."""
        shape = shape_of(node) if shape is None else shape
        truth = "val" in node.meta and isinstance(node.meta["val"], Tensor) and is_truth(node)
        buffer = Buffer(self._memory.take(node, math.prod(shape)), row_major(shape), False, truth)
        self._buffers[node] = buffer
        return buffer

    def place(self, node: Node, buffer: Buffer) -> None:
        """Say where a node lies."""
        self._buffers[node] = buffer

    def take(self, owner: Any, size: int) -> int:
        """Return the offset of a block of elements that belongs to `owner` until it is released."""
        return self._memory.take(owner, size)

    def release(self, owner: Any) -> None:
        """Let a block be used again."""
        self._memory.give(owner)

    def _copy_input(self, node: Node) -> None:
        buffer = self.allocate(node)
        with self.loops(shape_of(node)) as (body, index):
            at = self.b.ir.mul(body.index(index[0]), self.b.index(self.lanes))
            self.store(body, self.b.load(self.x, at), buffer, index)

    def _last_readers(self) -> dict[Node, list[Node]]:
        """Return, for every node of the order, the written ones that are not read after it."""
        position = {n: i for i, n in enumerate(self.plan.order)}
        end = len(self.plan.order)

        def last(node: Node) -> int:
            """Position of the last node that reads this one, through those that are not written."""
            found = position[node]
            for user in node.users:
                if user.op == "output":
                    return end
                found = max(found, position[user] if user in self.plan.written else last(user))
            return found

        table: dict[Node, list[Node]] = {}
        for node in self.plan.written:
            at = last(node)
            if at < end:
                table.setdefault(self.plan.order[at], []).append(node)
        return table

    def _release(self, reader: Node) -> None:
        for node in self._last.get(reader, ()):
            self._memory.give(node)

    # Loops

    @staticmethod
    def _spans(shape: Sequence[int]) -> list[int]:
        return [d for d, n in enumerate(shape) if n != 1]

    def loops(self, shape: Sequence[int], body: _Body | None = None) -> Any:
        """Return a context of nested loops over a shape: yields the body and the index."""
        return _Loops(self, shape, body)

    def store(self, body: _Body, value: Any, buffer: Buffer, index: Sequence[Any]) -> None:
        """Store an element of a buffer."""
        at = body.index(_dot(index, buffer.strides) + buffer.offset)
        self.b.store(value, self.workspace, self.b.ir.mul(at, self.b.index(self.lanes)))

    def _write_pointwise(self, node: Node) -> None:
        before = self._buffers.get(node)  # a part of a rollout, in another order
        shape = shape_of(node) if node in self.plan.flat else varying_shape(node, self.plan.varying)
        buffer = self.allocate(node, shape)
        del self._buffers[node]  # its own elements are worked out here
        if before is not None:
            self._buffers[node] = before
        with self.loops(shape) as (body, index):
            value = body.value(body.element(node, index))
            self.store(body, value, buffer, index)
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, buffer.strides, strict=True))
        self._buffers[node] = buffer if node in self.plan.flat else buffer._replace(strides=strides)

    def fill(self, buffer: Buffer, shape: Sequence[int], source: Any) -> None:
        """Fill a buffer with a node, or a number."""
        with self.loops(shape) as (body, index):
            value = body.value(body.element(source, index)) if isinstance(source, Node) else self.b.const(source)
            self.store(body, value, buffer, index)

    def pointer(self, offset: int) -> Any:
        """Return the address of an element of the workspace."""
        return self.b.offset(self.workspace, self.b.index(offset * self.lanes))


class _Loops:
    """Nested loops over the dimensions of a shape that are longer than one."""

    def __init__(self, writer: _Writer, shape: Sequence[int], body: _Body | None) -> None:
        self._writer, self._shape, self._body = writer, tuple(shape), body
        self._stack = ExitStack()

    def __enter__(self) -> tuple[_Body, tuple[Any, ...]]:
        writer = self._writer
        variables = dict(self._body.variables) if self._body is not None else {}
        index: list[Any] = []
        for n in self._shape:
            if n == 1:
                index.append(0)
                continue
            number = next(writer._variables)
            variables[number] = self._stack.enter_context(writer.b.loop(writer.b.index(n)))
            index.append(Affine({number: 1}))
        return _Body(writer, variables), tuple(index)

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()


class _Memory:
    """Hands out places in a block, first fit."""

    def __init__(self) -> None:
        self.size = 0
        self._used: dict[Any, tuple[int, int]] = {}

    def take(self, owner: Any, size: int) -> int:
        """Return the offset of `size` free elements; a multiple of 8."""
        size = -(-max(1, size) // 8) * 8
        offset = 0
        for start, length in sorted(self._used.values()):
            if start - offset >= size:
                break
            offset = max(offset, start + length)
        self._used[owner] = (offset, size)
        self.size = max(self.size, offset + size)
        return offset

    def give(self, owner: Any) -> None:
        """Free what an owner has."""
        self._used.pop(owner, None)


# Operations that are written by loops of their own


def _sum(w: _Writer, node: Node) -> None:
    source: Any = node.args[0]
    shape = shape_of(source)
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = range(len(shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    reduced = {d % len(shape) for d in dims} if shape else set()
    kept = [n for d, n in enumerate(shape) if d not in reduced]
    scale = math.prod(kept) / max(1, math.prod(shape)) if node.target in (aten.mean.default, aten.mean.dim) else None
    buffer = w.allocate(node)
    with w.loops(kept) as (outer, outer_index):
        total = w.b.variable(w.b.const(0.0))
        with w.loops([shape[d] for d in sorted(reduced)], outer) as (body, inner_index):
            inner, rest = iter(inner_index), iter(outer_index)
            index = tuple(next(inner) if d in reduced else next(rest) for d in range(len(shape)))
            w.b.set(total, w.b.accumulate(w.b.get(total), body.value(body.element(source, index))))
        value = w.b.get(total) if scale is None else w.b.mul(w.b.get(total), w.b.const(scale))
        w.store(outer, value, buffer, _with_ones(outer_index, node, reduced, len(shape)))


def _with_ones(kept: Sequence[Any], node: Node, reduced: set[int], rank: int) -> tuple[Any, ...]:
    """Return the index of a reduction's result, with zeros where it keeps reduced dimensions."""
    if len(shape_of(node)) == len(kept):
        return tuple(kept)
    rest = iter(kept)
    return tuple(0 if d in reduced else next(rest) for d in range(rank))


def _cumsum(w: _Writer, node: Node) -> None:
    source, dim = node.args[:2]
    shape = shape_of(node)
    dim = dim % len(shape)  # type: ignore[operator]
    buffer = w.allocate(node)
    with w.loops([n for d, n in enumerate(shape) if d != dim]) as (outer, kept):
        total = w.b.variable(w.b.const(0.0))
        with w.loops([shape[dim]], outer) as (body, inner):
            index = (*kept[:dim], *inner, *kept[dim:])
            w.b.set(total, w.b.add(w.b.get(total), body.value(body.element(source, index))))
            w.store(body, w.b.get(total), buffer, index)


def _cat(w: _Writer, node: Node) -> None:
    parts: Any = node.args[0]
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(node))  # type: ignore[operator]
    buffer = w.allocate(node)
    first = 0
    for part in parts:
        if len(shape_of(part)) != len(shape_of(node)) or numel(part) == 0:  # torch skips empty vectors
            continue
        with w.loops(shape_of(part)) as (body, index):
            place = (*index[:dim], index[dim] + first, *index[dim + 1 :])
            w.store(body, body.value(body.element(part, index)), buffer, place)
        first += shape_of(part)[dim]


def _stack(w: _Writer, node: Node) -> None:
    parts: Any = node.args[0]
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(node))  # type: ignore[operator]
    buffer = w.allocate(node)
    for number, part in enumerate(parts):
        with w.loops(shape_of(part)) as (body, index):
            w.store(body, body.value(body.element(part, index)), buffer, (*index[:dim], number, *index[dim:]))


def _pad(w: _Writer, node: Node) -> None:
    source, pad = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    if min(pad) < 0:
        raise Unsupported("padding by negative amounts")
    value: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0.0)
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), float(value or 0.0))
    shape = shape_of(source)
    first = [pad[2 * (len(shape) - 1 - d)] if 2 * (len(shape) - 1 - d) < len(pad) else 0 for d in range(len(shape))]
    with w.loops(shape) as (body, index):
        place = [i + f for i, f in zip(index, first, strict=True)]
        w.store(body, body.value(body.element(source, index)), buffer, place)


def _slice_scatter(w: _Writer, node: Node) -> None:
    base, source, *rest = node.args
    named = {**dict(zip(("dim", "start", "end", "step"), rest, strict=False)), **node.kwargs}
    dim = named.get("dim", 0) % len(shape_of(node))  # type: ignore[operator]
    size = shape_of(node)[dim]
    start = named.get("start") or 0
    start = max(0, start + size if start < 0 else start)  # type: ignore[operator]
    _scatter_part(w, node, base, source, lambda i: (*i[:dim], i[dim] * named.get("step", 1) + start, *i[dim + 1 :]))


def _select_scatter(w: _Writer, node: Node) -> None:
    base, source, dim, at = node.args
    dim = dim % len(shape_of(node))  # type: ignore[operator]
    at = at % shape_of(node)[dim]  # type: ignore[operator]
    _scatter_part(w, node, base, source, lambda i: (*i[:dim], at, *i[dim:]))


def _scatter_part(w: _Writer, node: Node, base: Any, source: Any, move: Callable[[Any], Any]) -> None:
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), base)
    with w.loops(shape_of(source)) as (body, index):
        w.store(body, body.value(body.element(source, index)), buffer, move(index))


def _table(w: _Writer, node: Any) -> tuple[int, tuple[int, ...]]:
    """Return the place of a constant tensor of indices, and its strides."""
    if not (isinstance(node, Node) and node.op == "get_attr"):
        raise Unsupported("indexing by computed values")
    tensor = getattr(w.graph, str(node.target))
    if tensor.dtype == torch.bool:
        raise Unsupported("indexing by truth values")
    if bool((tensor < 0).any()):
        raise Unsupported("indexing by negative places")
    return w.constants.table(str(node.target), tensor), row_major(tensor.shape)


def _look_up(w: _Writer, body: _Body, table: tuple[int, tuple[int, ...]], index: Sequence[Any]) -> Affine:
    offset, strides = table
    return body.variable(w.b.load_int(w.tables, body.index(_dot(index, strides) + offset)))


def _advanced(w: _Writer, places: Sequence[Any]) -> tuple[list[int], int, Callable[..., tuple[Any, ...]]]:
    """Return the indexed dimensions, the rank they become, and what finds the element."""
    used = [d for d, p in enumerate(places) if p is not None]
    if used != list(range(used[0], used[-1] + 1)):
        raise Unsupported("indexing by separated dimensions")
    tables = {d: _table(w, places[d]) for d in used}
    rank = max(len(shape_of(places[d])) for d in used)

    def move(body: _Body, index: Sequence[Any]) -> tuple[Any, ...]:
        inner = tuple(index[used[0] : used[0] + rank])
        picked = [_look_up(w, body, tables[d], broadcast(inner, shape_of(places[d]))) for d in used]
        return (*index[: used[0]], *picked, *index[used[0] + rank :])

    return used, rank, move


def _index(w: _Writer, node: Node) -> None:
    source, places = node.args
    _, _, move = _advanced(w, list(places))  # type: ignore[arg-type]
    _gathered(w, node, source, move)


def _gathered(w: _Writer, node: Node, source: Any, move: Callable[..., tuple[Any, ...]]) -> None:
    buffer = w.allocate(node)
    with w.loops(shape_of(node)) as (body, index):
        w.store(body, body.value(body.element(source, move(body, index))), buffer, index)


def _index_put(w: _Writer, node: Node) -> None:
    base, places, values, *rest = node.args
    accumulate = bool(rest[0]) if rest else bool(node.kwargs.get("accumulate", False))
    used, rank, move = _advanced(w, list(places))  # type: ignore[arg-type]
    inner = torch.broadcast_shapes(*(shape_of(places[d]) for d in used))  # type: ignore[index]
    shape = shape_of(node)
    domain = (*shape[: used[0]], *inner, *shape[used[0] + len(used) :])
    _scattered(w, node, base, values, domain, move, accumulate)


def _scattered(
    w: _Writer, node: Node, base: Any, values: Any, domain: Sequence[int], move: Any, accumulate: bool
) -> None:
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), base)
    with w.loops(domain) as (body, index):
        place = move(body, index)
        value = body.value(body.element(values, broadcast(index, shape_of(values))))
        if accumulate:
            value = w.b.add(value, body.value(body.load(buffer, _dot(place, buffer.strides))))
        w.store(body, value, buffer, place)


def _along(w: _Writer, node: Node, dim: int, places: Any) -> Callable[..., tuple[Any, ...]]:
    """Return what replaces one dimension of an index by what a table of the same rank holds."""
    table = _table(w, places)

    def move(body: _Body, index: Sequence[Any]) -> tuple[Any, ...]:
        return (*index[:dim], _look_up(w, body, table, index), *index[dim + 1 :])

    return move


def _gather(w: _Writer, node: Node) -> None:
    source, dim, places = node.args[:3]
    _gathered(w, node, source, _along(w, node, dim % len(shape_of(node)), places))  # type: ignore[operator]


def _scatter_add(w: _Writer, node: Node) -> None:
    base, dim, places, values = node.args[:4]
    move = _along(w, node, dim % len(shape_of(node)), places)  # type: ignore[operator]
    _scattered(w, node, base, values, shape_of(places), move, True)


def _index_select(w: _Writer, node: Node) -> None:
    source, dim, places = node.args
    dim = dim % len(shape_of(node))  # type: ignore[operator]
    table = _table(w, places)
    _gathered(w, node, source, lambda body, i: (*i[:dim], _look_up(w, body, table, (i[dim],)), *i[dim + 1 :]))


def _index_add(w: _Writer, node: Node) -> None:
    base, dim, places, values = node.args[:4]
    dim = dim % len(shape_of(node))  # type: ignore[operator]
    table = _table(w, places)
    _scattered(
        w,
        node,
        base,
        values,
        shape_of(values),
        lambda body, i: (*i[:dim], _look_up(w, body, table, (i[dim],)), *i[dim + 1 :]),
        True,
    )


def _matmul(w: _Writer, node: Node) -> None:
    start: Any = None
    arguments = node.args
    if node.target is aten.addmm.default:
        start, *arguments = node.args  # type: ignore[assignment]
        if node.kwargs:
            raise Unsupported("addmm with factors")
    a, b = arguments[:2]
    left = shape_of(a)
    vector = len(shape_of(b)) == 1
    buffer = w.allocate(node)
    with w.loops(shape_of(node)) as (outer, index):
        total = w.b.variable(w.b.const(0.0))
        with w.loops([left[-1]], outer) as (body, (k,)):
            if vector:
                row, column = (*index, k), (k,)
            else:
                row, column = (*index[:-1], k), (*index[:-2], k, index[-1])
            product = w.b.mul(body.value(body.element(a, row)), body.value(body.element(b, column)))
            w.b.set(total, w.b.accumulate(w.b.get(total), product))
        value = w.b.get(total)
        if start is not None:
            value = w.b.add(value, outer.value(outer.element(start, broadcast(index, shape_of(start)))))
        w.store(outer, value, buffer, index)


# Rollouts


class _Rollout:
    """A rollout inside a density: its arrays in the layout of the kernels."""

    def __init__(self, w: _Writer, arguments: Sequence[Any], number: int) -> None:
        self.w, self.plan = w, PLANS[number]
        self.program = self.plan.program
        self.q0, self.v0, self.parameters, self.h, self.drive, self.weights = arguments
        self.count, self.dim = shape_of(self.q0)
        self.lanes = w.lanes if w.lanes > 1 else choose_lanes(self.count, "float64")
        self.row = self.count if w.lanes > 1 else -(-self.count // self.lanes) * self.lanes
        self.steps = self.plan.num_steps
        self.h_shared = self.h.op == "get_attr" and len(shape_of(self.h)) == 1
        nodes = self.program.num_nodes
        self.driven = nodes > 0
        self.drive_shared = not self.driven or (self.drive.op == "get_attr" and len(shape_of(self.drive)) <= 3)
        network = self.program.network
        if network is not None and w.lanes > 1 and self.weights.op != "get_attr":
            raise Unsupported("several chains with different network weights side by side")

    def layout(self, **flags: bool) -> Layout:
        """Return the layout of the kernels."""
        return Layout(self.lanes, "float64", self.h_shared, self.drive_shared, keep=True, **flags)

    def rows(self, node: Any, shape: Sequence[int], move: Callable[[Any, Any], tuple[Any, ...]], owner: Any) -> int:
        """Write an array `(*shape, row)`; `move(index, n)` is the place in `node`. Rows are filled up."""
        w = self.w
        offset = w.take(owner, math.prod(shape) * self.row)
        strides = tuple(s * self.row for s in row_major(shape))
        with w.loops(shape) as (outer, index):
            start = _dot(index, strides)
            with w.loops([self.count], outer) as (body, (n,)):
                value = body.value(body.element(node, move(index, n)))
                w.store(body, value, Buffer(offset, (1,), False, False), (start + n,))
            for n in range(self.count, self.row):
                value = outer.value(outer.element(node, move(index, self.count - 1)))
                w.store(outer, value, Buffer(offset, (1,), False, False), (start + n,))
        return offset

    def inputs(self, owner: Any) -> dict[str, Any]:
        """Write the inputs of both kernels, and return their addresses."""
        w = self.w
        slots = len(self.program.slots)
        state = [
            self.rows(x, [self.dim], lambda i, n: (n, i[0]), (owner, name))
            for name, x in (("q0", self.q0), ("v0", self.v0))
        ]
        offset = self.rows(self.parameters, [slots], lambda i, n: (i[0], n), (owner, "p")) if slots else 0
        return {
            "q0": w.pointer(state[0]),
            "v0": w.pointer(state[1]),
            "parameters": w.pointer(offset),
            "h": self._steps(owner),
            "drive": self._drive(owner),
            "samples": w.b.ir.bitcast(
                w.b.ir.gep(w.b.ir.bitcast(w.tables, INDEX.as_pointer()), [w.b.index(self._samples())]), POINTER
            ),
        }

    def _samples(self) -> int:
        number = PLANS.index(self.plan)
        return self.w.constants.table(f"samples {number}", torch.from_numpy(self.plan.samples))

    def _constant(self, node: Node) -> Any:
        buffer = self.w.buffer(node)
        assert buffer is not None
        return self.w.b.offset(self.w.constants_pointer, self.w.b.index(buffer.offset))

    def _steps(self, owner: Any) -> Any:
        if self.h_shared:
            return self._constant(self.h)
        shared = len(shape_of(self.h)) == 1
        offset = self.rows(self.h, [self.steps], lambda i, n: (i[0],) if shared else (n, i[0]), (owner, "h"))
        return self.w.pointer(offset)

    def _drive(self, owner: Any) -> Any:
        if not self.driven:
            return self.w.workspace
        if self.drive_shared:
            return self._constant(self.drive)
        shape = shape_of(self.drive)[-3:]
        shared = len(shape_of(self.drive)) == 3
        offset = self.rows(self.drive, shape, lambda i, n: i if shared else (n, *i), (owner, "drive"))
        return self.w.pointer(offset)

    def _weights(self, owner: Any) -> Any:
        """Return the address of the network's weights: constants, or one chain's own."""
        if self.program.network is None:
            return self.w.workspace
        if self.weights.op == "get_attr":
            return self._constant(self.weights)
        buffer = self.w.buffer(self.weights)
        assert buffer is not None and buffer.strides == (1,)
        return self.w.pointer(buffer.offset)

    def forward(self, node: Node) -> None:
        """Write a call of the forward loop; the path is the node's first part."""
        w, program = self.w, self.program
        given = self.inputs(node)
        calls = program.start_calls + self.steps * program.step_calls
        sizes = {
            "path": self.plan.num_times * 2 * self.dim * self.row,
            "carries": (self.steps + 1) * len(program.start) * self.row,
            "positions": self.dim * calls * self.row,
            "slopes": calls * (self.dim + self.dim**2) * self.row,
        }
        keep = {name: w.take((node, name), size) for name, size in sizes.items()}
        scratch = 0 if program.network is None else scratch_size(program.network, self.lanes)
        given["scratch"] = w.pointer(w.take((node, "scratch"), -(-scratch // w.lanes)))
        given["weights"] = self._weights(node)
        given |= {name: w.pointer(offset) for name, offset in keep.items()}
        layout = self.layout()
        function = _kernel(w, program, layout, "forward")
        self._call(function, [given[name] for name in FORWARD_ARGUMENTS])
        for name in ("q0", "v0", "p", "h", "drive"):
            w.release((node, name))
        w.release((node, "scratch"))
        w.raw[node] = keep
        for user in node.users:
            if user.args[1] == 0:
                w.place(user, Buffer(keep["path"], (1, 2 * self.dim * self.row, self.row), False, False))

    def adjoint(self, node: Node, forward: Node, seed: Any, flags: Sequence[bool]) -> None:
        """Write a call of the adjoint loop; its parts are the gradients."""
        w, program = self.w, self.program
        by_h, by_drive, by_weights = flags
        by_h, by_drive = bool(by_h), bool(by_drive)
        kept = w.raw[forward]
        given = self.inputs(node)
        times = self.plan.num_times
        offset = w.take((node, "seed"), times * 2 * self.dim * self.row)
        with w.loops([times, 2 * self.dim]) as (outer, (t, k)):
            start = t * (2 * self.dim * self.row) + k * self.row
            with w.loops([self.count], outer) as (body, (n,)):
                w.store(body, body.value(body.element(seed, (n, t, k))), Buffer(offset, (1,), False, False), (start + n,))
            for n in range(self.count, self.row):
                w.store(outer, w.b.const(0.0), Buffer(offset, (1,), False, False), (start + n,))
        nodes, slots = program.num_nodes, len(program.slots)
        calls = program.start_calls + self.steps * program.step_calls
        sizes = {
            "q0_gradient": self.dim * self.row,
            "v0_gradient": self.dim * self.row,
            "parameter_gradient": slots * self.row,
            "h_gradient": self.steps * self.row if by_h else 1,
            "drive_gradient": max(1, self.steps) * nodes * self.dim * self.row if by_drive else 1,
            "force_gradient": self.dim * calls * self.row,
        }
        found = {name: w.take((node, name), size) for name, size in sizes.items()}
        given |= {name: w.pointer(kept[name]) for name in ("carries", "positions", "slopes")}
        given |= {"path_gradient": w.pointer(offset)}
        given |= {name: w.pointer(place) for name, place in found.items()}
        function = _kernel(w, program, self.layout(h_gradient=by_h, drive_gradient=by_drive), "adjoint")
        self._call(function, [given[name] for name in ADJOINT_ARGUMENTS])
        for name in ("q0", "v0", "p", "h", "drive", "seed"):
            w.release((node, name))
        parts = {user.args[1]: user for user in node.users}
        row = self.row
        if 0 in parts:
            w.place(parts[0], Buffer(found["q0_gradient"], (1, row), False, False))
        if 1 in parts:
            w.place(parts[1], Buffer(found["v0_gradient"], (1, row), False, False))
        if 2 in parts:
            w.place(parts[2], Buffer(found["parameter_gradient"], (row, 1), False, False))
        if 3 in parts and by_h:
            self._part(parts[3], found["h_gradient"], [self.steps], len(shape_of(self.h)) == 1)
        if 4 in parts and by_drive:
            shape = [max(1, self.steps), nodes, self.dim]
            self._part(parts[4], found["drive_gradient"], shape, len(shape_of(self.drive)) == 3)
        if 5 in parts and by_weights:
            self._weight_gradient(parts[5], node, kept["positions"], found["force_gradient"], calls)

    def _part(self, node: Node, offset: int, shape: Sequence[int], shared: bool) -> None:
        """Place a gradient `(*shape, row)`: summed over trajectories, or one for each."""
        w = self.w
        strides = tuple(s * self.row for s in row_major(shape))
        if not shared:
            w.place(node, Buffer(offset, (1, *strides), False, False))
            return
        buffer = w.allocate(node)
        with w.loops(shape) as (outer, index):
            total = w.b.variable(w.b.const(0.0))
            with w.loops([self.count], outer) as (body, (n,)):
                source = Buffer(offset, (*strides, 1), False, False)
                w.b.set(total, w.b.add(w.b.get(total), body.value(body.load(source, _dot((*index, n), source.strides)))))
            w.store(outer, w.b.get(total), buffer, index)

    def _weight_gradient(self, node: Node, owner: Node, positions: int, cotangents: int, calls: int) -> None:
        network = self.program.network
        w = self.w
        if network is None or len(network.hidden_sizes) > 1 or w.lanes > 1:
            raise Unsupported("latent weights of a network with several hidden layers")
        llvm = w.module.llvm
        function = w.module.function(network, lambda name: emit_parameter_gradient(llvm, network, name))
        buffer = w.allocate(node)
        # The kernel wants [dim][samples]: exactly how positions and cotangents lie.
        w.b.ir.call(
            function,
            [
                w.b.index(calls * self.row),
                w.pointer(positions),
                w.pointer(cotangents),
                self._weights(owner),
                w.pointer(buffer.offset),
            ],
        )

    def _call(self, function: ir.Function, arrays: Sequence[Any]) -> None:
        b = self.w.b
        b.ir.call(function, [b.index(self.row * self.w.lanes), b.index(self.steps), *arrays])


def _kernel(w: _Writer, program: StepProgram, layout: Layout, kind: str) -> ir.Function:
    """Return a loop of the module."""
    emitter = emit_forward if kind == "forward" else emit_adjoint
    llvm = w.module.llvm
    return w.module.function(
        (id(program), layout, kind), lambda name: emitter(llvm, program, layout, name, internal=True)
    )


def _forward(w: _Writer, node: Node) -> None:
    *arguments, number, _ = node.args
    _Rollout(w, arguments, number).forward(node)  # type: ignore[arg-type]


def _adjoint(w: _Writer, node: Node) -> None:
    seed, *rest = node.args
    arguments, (carries, _, _, number, *flags) = rest[:6], rest[6:]
    forward: Any = carries.args[0]  # type: ignore[union-attr]
    _Rollout(w, arguments, number).adjoint(node, forward, seed, flags)  # type: ignore[arg-type]


STRUCTURED: dict[Any, Callable[[_Writer, Node], None]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _sum,
    aten.mean.dim: _sum,
    aten.cumsum.default: _cumsum,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.constant_pad_nd.default: _pad,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.gather.default: _gather,
    aten.scatter_add.default: _scatter_add,
    aten.index_select.default: _index_select,
    aten.index_add.default: _index_add,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.addmm.default: _matmul,
    ROLLOUT: _forward,
    ADJOINT: _adjoint,
}
"""Operations with loops of their own; their results are always in memory."""

GATHERED = frozenset(
    {
        aten.index.Tensor,
        aten.gather.default,
        aten.index_select.default,
        aten.mm.default,
        aten.bmm.default,
        aten.mv.default,
        aten.dot.default,
        aten.addmm.default,
        ROLLOUT,
        ADJOINT,
    }
)
"""Readers that may look at an element more than once: what they read is written to memory."""


def emit_density(module: DensityModule, name: str, lanes: int) -> int:
    """Write `name(x, value, gradient, constants, tables, workspace)`; return the numbers of its workspace.

    Arrays: x and gradient `[size][lanes]`, value `[lanes]`; constants and tables from the module's.

    Raises:
        Unsupported: for an operation without a compiled form, which it names.
    """
    writer = _Writer(module, name, lanes)
    writer.write()
    return writer.workspace_size
