"""Compiles a traced log density and its gradient into one function, for one chain or several side by side.

Every tensor of the graph is either written to memory once, by a loop over its elements, or (a
pointwise operation with a single reader, or a view) worked out inside the loops of its readers. All
memory is one block whose places are used again when their values are no longer read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from vinppl.native.density_operations import STRUCTURED
from vinppl.native.density_rollout import ROLLOUTS
from vinppl.native.elementwise import ELEMENTWISE, IDENTITIES
from vinppl.native.simplify import varying_shape
from vinppl.native.views import FILLS, RESHAPES, SPLITS, VIEWS, same_up_to_ones, shape_of
from vinppl.native.writer import DensityModule, Writer

__all__ = ["DensityModule", "emit_density"]

aten = torch.ops.aten

SMALL = 16
"""Pointwise results of up to this many elements are written to memory rather than worked out again."""

RULES: dict[Any, Callable[[Writer, Node], None]] = {**STRUCTURED, **ROLLOUTS}
"""Operations with loops of their own; their results are always in memory."""

PASSING = frozenset({*VIEWS, *RESHAPES, *IDENTITIES, *SPLITS, operator.getitem})
"""Operations that are never written: their readers read what they are taken from."""

REREADING = frozenset(
    {
        aten.index.Tensor,
        aten.gather.default,
        aten.index_select.default,
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        *ROLLOUTS,
    }
)
"""Readers that may look at an element more than once: what they read is written to memory."""


def emit_density(module: DensityModule, name: str, lanes: int) -> int:
    """Write `name(x, value, gradient, constants, tables, workspace)`; return the numbers of its workspace.

    Arrays: x and gradient `[size][lanes]`, value `[lanes]`; constants and tables from the module's.

    Raises:
        Unsupported: for an operation without a compiled form, which it names.
    """
    writer, plan = Writer(module, name, lanes), _Plan(module.graph)
    _copy_input(writer, plan.input)
    for node in plan.order:
        if node in plan.written:
            writer.go_on()
            rule = RULES.get(node.target)
            if rule is None:
                _write_pointwise(writer, plan, node)
            else:
                rule(writer, node)
        for done in plan.finished.get(node, ()):
            writer.memory.release(done)
    _copy_results(writer, *plan.results)
    writer.b.finish()
    return writer.memory.size * lanes


def _copy_input(w: Writer, node: Node) -> None:
    buffer = w.allocate(node)
    with w.loops(shape_of(node)) as (body, index):
        at = w.b.flat(body.index(index[0]), w.lanes)
        body.store(w.b.load(w.x, at), buffer, index)


def _write_pointwise(w: Writer, plan: _Plan, node: Node) -> None:
    """Write the elements of a node that may differ; those that are equal share one."""
    flat = node in plan.flat
    shape = shape_of(node) if flat else plan.varying_shape(node)
    buffer = w.reserve(node, shape)
    with w.loops(shape) as (body, index):
        body.store(body.read(node, index), buffer, index)
    if not flat:
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, buffer.strides, strict=True))
        buffer = buffer._replace(strides=strides)
    w.place(node, buffer)


def _copy_results(w: Writer, value: Node, gradient: Node) -> None:
    with w.loops(()) as (body, _):
        w.b.store(body.read(value, ()), w.value, w.b.index(0))
    with w.loops(shape_of(gradient)) as (body, index):
        at = w.b.flat(body.index(index[0]), w.lanes)
        w.b.store(body.read(gradient, index), w.gradient, at)


class _Plan:
    """Decides which nodes are written to memory, and how long they stay there.

    Attributes:
        input: the point.
        order: the operations in order.
        results: value and gradient.
        written: operations whose results have memory.
        flat: those of them that must lie there in order.
        finished: for an operation, the written ones that are not read after it.
    """

    def __init__(self, module: GraphModule) -> None:
        nodes = list(module.graph.nodes)
        (self.input,) = (n for n in nodes if n.op == "placeholder")
        self.order = [n for n in nodes if n.op == "call_function"]
        (self.results,) = (n.args[0] for n in nodes if n.op == "output")
        self._varying: dict[Node, tuple[int, ...]] = {}
        self.written = {n for n in self.order if n.target in RULES or self._is_shared(n)}
        self.flat: set[Node] = set()
        for node in self.order:
            if node.target in RESHAPES and not same_up_to_ones(shape_of(node), shape_of(node.args[0])):
                self._need_flat(node.args[0])
        self.finished = self._last_reads()

    def varying_shape(self, node: Node) -> tuple[int, ...]:
        """Return a node's shape with 1 for dimensions along which all values are equal."""
        return varying_shape(node, self._varying)

    def _is_shared(self, node: Node) -> bool:
        """Whether a pointwise result is better kept than worked out by each reader."""
        if node.target not in ELEMENTWISE or node.target in IDENTITIES:
            return False
        size = self._size(node)
        domains = [d for user in node.users for d in self._domains(user)]
        return len(domains) > 1 or size <= SMALL or any(d > size for d in domains)

    def _size(self, node: Node) -> int:
        return math.prod(self.varying_shape(node))

    def _domains(self, reader: Node) -> list[float]:
        """Return how many elements a reader, and through views those behind it, go over."""
        if reader.target in PASSING:
            return [d for user in reader.users for d in self._domains(user)]
        if reader.target in ELEMENTWISE:
            return [self._size(reader)]
        return [math.inf if reader.target in REREADING else 0]

    def _need_flat(self, source: Any) -> None:
        """See to it that the elements of a node lie in memory in order."""
        while source.target in RESHAPES or source.target in IDENTITIES:
            source = source.args[0]
        if source.op == "call_function" and source.target not in FILLS:
            self.written.add(source)
            self.flat.add(source)

    def _last_reads(self) -> dict[Node, list[Node]]:
        """Return, for an operation, the written ones whose last reader it is, through those not written."""
        position, end = {node: i for i, node in enumerate(self.order)}, len(self.order)
        last: dict[Node, int] = {}
        table: dict[Node, list[Node]] = {}
        for node in reversed(self.order):
            reads = (
                end if u.op == "output" else position[u] if u in self.written else last[u] for u in node.users
            )
            last[node] = max(reads, default=position[node])
            if node in self.written and last[node] < end:
                table.setdefault(self.order[last[node]], []).append(node)
        return table
