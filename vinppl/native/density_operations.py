"""Operations of a compiled density that are written by loops of their own: sums, joins, tables, products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from vinppl.native.arrays import Place, dot, row_major
from vinppl.native.errors import Unsupported
from vinppl.native.views import (
    Index,
    arguments_of,
    broadcast,
    reduced_dims,
    shape_of,
    size_of,
    slice_ends,
)
from vinppl.native.writer import Body, Writer

__all__ = ["STRUCTURED"]

aten = torch.ops.aten

Move = Callable[[Body, Index], Index]
"""Where the element at an index is taken from, or put to."""


def _sum(w: Writer, node: Node) -> None:
    source: Any = node.args[0]
    shape, reduced = shape_of(source), reduced_dims(node)
    kept = [n for d, n in enumerate(shape) if d not in reduced]
    with_ones = len(shape_of(node)) > len(kept)
    buffer = w.allocate(node)
    with w.loops(kept) as (outer, outer_index):
        total = w.b.variable(w.b.const(0.0))
        with w.loops([shape[d] for d in sorted(reduced)]) as (body, inner_index):
            inner, rest = iter(inner_index), iter(outer_index)
            index = tuple(next(inner) if d in reduced else next(rest) for d in range(len(shape)))
            w.b.set(total, w.b.accumulate(w.b.get(total), body.read(source, index)))
        value = w.b.get(total)
        if node.target in (aten.mean.default, aten.mean.dim):
            value = w.b.mul(value, w.b.const(math.prod(kept) / max(1, math.prod(shape))))
        rest = iter(outer_index)
        place = [0 if d in reduced else next(rest) for d in range(len(shape))] if with_ones else outer_index
        outer.store(value, buffer, place)


def _cumsum(w: Writer, node: Node) -> None:
    source, dim, _ = arguments_of(node)
    shape = list(shape_of(node))
    dim %= len(shape)
    length = shape.pop(dim)
    buffer = w.allocate(node)
    with w.loops(shape) as (_, kept):
        total = w.b.variable(w.b.const(0.0))
        with w.loops([length]) as (body, inner):
            index = (*kept[:dim], *inner, *kept[dim:])
            w.b.set(total, w.b.add(w.b.get(total), body.read(source, index)))
            body.store(w.b.get(total), buffer, index)


# Joins


def _cat(w: Writer, node: Node) -> None:
    parts, dim = arguments_of(node)
    dim %= len(shape_of(node))
    buffer = w.allocate(node)
    first = 0
    for part in parts:
        if len(shape_of(part)) != len(shape_of(node)) or size_of(part) == 0:  # torch skips empty vectors
            continue
        with w.loops(shape_of(part)) as (body, index):
            body.store(body.read(part, index), buffer, _shifted(index, dim, first))
        first += shape_of(part)[dim]


def _pad(w: Writer, node: Node) -> None:
    """Padding, by negative amounts too: these cut off."""
    source, pad, value = arguments_of(node)
    sizes = shape_of(source)
    untouched = [0] * (len(sizes) - len(pad) // 2)
    before, after = untouched + pad[-2::-2], untouched + pad[::-2]
    kept = [n + min(0, b) + min(0, a) for n, b, a in zip(sizes, before, after, strict=True)]
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), float(value))
    with w.loops(kept) as (body, index):
        taken = tuple(i + max(0, -b) for i, b in zip(index, before, strict=True))
        place = [i + max(0, b) for i, b in zip(index, before, strict=True)]
        body.store(body.read(source, taken), buffer, place)


def _slice_scatter(w: Writer, node: Node) -> None:
    base, source, dim, start, end, step = arguments_of(node)
    dim %= len(shape_of(node))
    first, _ = slice_ends(shape_of(node)[dim], start, end)
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), base)
    with w.loops(shape_of(source)) as (body, index):
        body.store(body.read(source, index), buffer, _shifted(index, dim, first, step))


def _shifted(index: Index, dim: int, first: int, step: int = 1) -> Index:
    return (*index[:dim], index[dim] * step + first, *index[dim + 1 :])


# Tables of indices


def _index(w: Writer, node: Node) -> None:
    source, places = arguments_of(node)
    _gather_by(w, node, source, _Picked(w, places))


def _index_select(w: Writer, node: Node) -> None:
    source, dim, places = arguments_of(node)
    dim %= len(shape_of(node))
    table = _Table(w, places)
    _gather_by(w, node, source, lambda body, i: (*i[:dim], table.look_up(body, (i[dim],)), *i[dim + 1 :]))


def _gather(w: Writer, node: Node) -> None:
    source, dim, places, _ = arguments_of(node)
    _gather_by(w, node, source, _along(w, dim % len(shape_of(node)), places))


def _gather_by(w: Writer, node: Node, source: Node, move: Move) -> None:
    buffer = w.allocate(node)
    with w.loops(shape_of(node)) as (body, index):
        body.store(body.read(source, move(body, index)), buffer, index)


def _index_put(w: Writer, node: Node) -> None:
    base, places, values, accumulate = arguments_of(node)
    picked = _Picked(w, places)
    _scatter_by(w, node, base, values, picked.domain(shape_of(node)), picked, accumulate)


def _scatter_add(w: Writer, node: Node) -> None:
    base, dim, places, values = arguments_of(node)
    move = _along(w, dim % len(shape_of(node)), places)
    _scatter_by(w, node, base, values, shape_of(places), move, True)


def _scatter_by(
    w: Writer, node: Node, base: Node, values: Node, domain: Sequence[int], move: Move, accumulate: bool
) -> None:
    buffer = w.allocate(node)
    w.fill(buffer, shape_of(node), base)
    with w.loops(domain) as (body, index):
        place = move(body, index)
        value = body.read(values, broadcast(index, shape_of(values)))
        if accumulate:
            value = w.b.add(value, body.write(body.load(buffer, place)))
        body.store(value, buffer, place)


class _Picked:
    """Where an element lies in a tensor that is indexed by tensors, on dimensions next to one another.

    Args:
        w: of the function.
        places: for each of the first dimensions, a node of constant indices, or `None` for all.
    """

    def __init__(self, w: Writer, places: Sequence[Node | None]) -> None:
        self._tables = {d: _Table(w, p) for d, p in enumerate(places) if p is not None}
        self._first, self._count = min(self._tables), len(self._tables)
        if max(self._tables) - self._first + 1 != self._count:
            raise Unsupported("indexing by separated dimensions")
        self._inner = np.broadcast_shapes(*(t.shape for t in self._tables.values()))

    def domain(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is picked from a tensor."""
        return (*shape[: self._first], *self._inner, *shape[self._first + self._count :])

    def __call__(self, body: Body, index: Index) -> Index:
        """Return where the element at an index of what is picked comes from."""
        first, last = self._first, self._first + len(self._inner)
        picked = [table.look_up(body, index[first:last]) for table in self._tables.values()]
        return (*index[:first], *picked, *index[last:])


def _along(w: Writer, dim: int, places: Node) -> Move:
    """Return what replaces one dimension of an index by what a table of the same rank holds."""
    table = _Table(w, places)
    return lambda body, index: (*index[:dim], table.look_up(body, index), *index[dim + 1 :])


class _Table:
    """A constant tensor of indices.

    Raises:
        Unsupported: for indices that are computed, negative, or truth values.
    """

    def __init__(self, w: Writer, node: Node) -> None:
        if node.op != "get_attr":
            raise Unsupported("indexing by computed values")
        tensor = w.tensor(node)
        if tensor.dtype == torch.bool:
            raise Unsupported("indexing by truth values")
        if bool((tensor < 0).any()):
            raise Unsupported("indexing by negative places")
        self.shape = tuple(tensor.shape)
        self._offset = w.module.constants.table(str(node.target), tensor)

    def look_up(self, body: Body, index: Index) -> Place:
        """Return what stands at an index that broadcasts with the table."""
        return body.look_up(dot(broadcast(index, self.shape), row_major(self.shape)) + self._offset)


# Products


def _matmul(w: Writer, node: Node) -> None:
    a, b = arguments_of(node)
    _product(w, node, a, b, None)


def _addmm(w: Writer, node: Node) -> None:
    start, a, b, beta, alpha = arguments_of(node)
    if beta != 1 or alpha != 1:
        raise Unsupported("addmm with factors")
    _product(w, node, a, b, start)


def _product(w: Writer, node: Node, a: Node, b: Node, start: Node | None) -> None:
    """Write a product of matrices, with a common batch dimension or without."""
    buffer = w.allocate(node)
    with w.loops(shape_of(node)) as (outer, index):
        *batch, row, column = index
        total = w.b.variable(w.b.const(0.0))
        with w.loops([shape_of(a)[-1]]) as (body, (k,)):
            product = w.b.mul(body.read(a, (*batch, row, k)), body.read(b, (*batch, k, column)))
            w.b.set(total, w.b.accumulate(w.b.get(total), product))
        value = w.b.get(total)
        if start is not None:
            value = w.b.add(value, outer.read(start, broadcast(index, shape_of(start))))
        outer.store(value, buffer, index)


STRUCTURED: dict[Any, Callable[[Writer, Node], None]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _sum,
    aten.mean.dim: _sum,
    aten.cumsum.default: _cumsum,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.slice_scatter.default: _slice_scatter,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.gather.default: _gather,
    aten.scatter_add.default: _scatter_add,
    aten.index_select.default: _index_select,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
}
"""How they are written."""
