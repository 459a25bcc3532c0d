"""Traced torch functions as scalar expressions.

A recorded function is a graph of elementary tensor operations. Here each of them says what one
element of its result is, given elements of its arguments; an element is worked out when it is asked
for, so that an operation over a large batch costs no more than over a small one.
"""

from __future__ import annotations

import itertools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vinppl.native.elementwise import ELEMENTWISE, decompositions, num
from vinppl.native.errors import Unsupported
from vinppl.native.expressions import Expression, Graph
from vinppl.native.matrices import Matrix, cholesky, solve, solve_lower
from vinppl.native.views import (
    RESHAPES,
    Index,
    arguments_of,
    broadcast,
    fill_value,
    reduced_dims,
    shape_of,
    slice_ends,
    source_of,
    view_index,
)

__all__ = ["ELEMENTWISE", "Elements", "Scalariser", "Unsupported", "decompositions", "view_index"]

aten = torch.ops.aten

MAX_DEPTH = 40
"""Operations worked out inside one another at most; each takes some frames of Python's stack."""


class Elements(ABC):
    """Elements of the values of a traced function, as expressions of one graph.

    Pointwise operations and views are the same wherever the elements are wanted; subclasses say what
    other nodes are.

    Args:
        graph: where the expressions go.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def element(self, node: Node, index: Index) -> Expression:
        """Return one element of a value.

        Raises:
            Unsupported: for an operation without a rule.
        """
        value = fill_value(node)
        if value is not None:
            return self.graph.constant(value)
        if node.target in ELEMENTWISE:
            arguments = [
                self.element(a, broadcast(index, shape_of(a))) if isinstance(a, Node) else a
                for a in node.args
            ]
            return ELEMENTWISE[node.target](*arguments, **node.kwargs)
        source = source_of(node, index)
        if source is not None:
            return self.element(*source)
        if node.target in RESHAPES:
            return self.reshaped(node, index)
        return self.other(node, index)

    @abstractmethod
    def reshaped(self, node: Node, index: Index) -> Expression:
        """Return one element of a reshaped value."""

    @abstractmethod
    def other(self, node: Node, index: Index) -> Expression:
        """Return one element of the value of any other operation."""


class _TooDeep(Exception):
    """An element that lies too many operations back, and must be worked out first."""

    def __init__(self, node: Node, index: Index) -> None:
        super().__init__()
        self.node, self.index = node, index


class Scalariser(Elements):
    """Elements of a traced function's values in terms of elements of its arguments.

    Args:
        graph: where the expressions go.
        module: the function.
        inputs: for each argument of the function, the expression of an element.
        constants: the same for tensors that the function holds.
        limit: number of values of the graph at which to give up.

    Attributes:
        fixed: which elements of literals were read, by the name of their node.

    Raises:
        Unsupported: from `value`, for an operation without a rule or a graph that is too large.
    """

    def __init__(
        self,
        graph: Graph,
        module: GraphModule,
        inputs: Sequence[Callable[[Index], Expression]],
        constants: Callable[[Tensor, Index], Expression],
        *,
        limit: int = 4_000,
    ) -> None:
        super().__init__(graph)
        self.module, self.limit = module, limit
        self._constants = constants
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._inputs = dict(zip(placeholders, inputs, strict=True))
        self._memo: dict[Hashable, Any] = {}
        self._depth = 0
        self.fixed: list[tuple[str, Index]] = []

    @property
    def outputs(self) -> list[Node]:
        """The nodes that the function returns."""
        node = next(n for n in self.module.graph.nodes if n.op == "output")
        returned = node.args[0]
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    def value(self, node: Node, index: Index) -> Expression:
        """Return one element of a value, however many operations lie behind it."""
        wanted = [(node, index)]
        while True:
            try:
                found = self.element(*wanted[-1])
            except _TooDeep as deeper:
                wanted.append((deeper.node, deeper.index))
                continue
            wanted.pop()
            if not wanted:
                return found

    def element(self, node: Node, index: Index) -> Expression:
        """Return one element of a value, to the rules."""
        if (node, index) not in self._memo:
            if self._depth == MAX_DEPTH:
                raise _TooDeep(node, index)
            self._depth += 1
            try:
                self._memo[node, index] = self._element(node, index)
            finally:
                self._depth -= 1
        return self._memo[node, index]

    def _element(self, node: Node, index: Index) -> Expression:
        if len(self.graph) > self.limit:
            raise Unsupported(f"more than {self.limit} scalar operations in one step")
        if node.op == "placeholder":
            return self._inputs[node](index)
        if node.op == "get_attr":
            tensor = getattr(self.module, str(node.target))
            if any(u.target is aten.lift_fresh_copy.default for u in node.users):
                self.fixed.append((node.name, index))
                return self.graph.constant(tensor[index].item())
            return self._constants(tensor, index)
        return super().element(node, index)

    def reshaped(self, node: Node, index: Index) -> Expression:
        """Return one element of a reshaped value."""
        source: Any = node.args[0]
        return self.element(source, _unflat(_flat(index, shape_of(node)), shape_of(source)))

    def other(self, node: Node, index: Index) -> Expression:
        """Return one element of the value of a structured operation."""
        rule = STRUCTURED.get(node.target)
        if rule is None:
            raise Unsupported(f"the operation {node.target}")
        return rule(self, node, index)

    def matrix(self, node: Node, batch: Index) -> Matrix:
        """Return one matrix of a value, by rows."""
        rows, columns = shape_of(node)[-2:]
        place = broadcast(batch, shape_of(node)[:-2])
        return [[self.element(node, (*place, i, j)) for j in range(columns)] for i in range(rows)]

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what `compute` gives, worked out the first time."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def _flat(index: Sequence[int], shape: Sequence[int]) -> int:
    position = 0
    for i, n in zip(index, shape, strict=True):
        position = position * n + i
    return position


def _unflat(position: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for n in reversed(shape):
        position, i = divmod(position, n)
        index.append(i)
    return tuple(reversed(index))


# Structured operations


def _sum(s: Scalariser, node: Node, index: Index) -> Expression:
    source: Any = node.args[0]
    terms = (num(s.element(source, place)) for place in _summed(node, index, reduced_dims(node)))
    return sum(terms, s.graph.constant(0.0))


def _summed(node: Node, index: Index, reduced: set[int]) -> Iterator[Index]:
    """Return which elements of its argument an element of a reduction is made of."""
    shape = shape_of(node.args[0])
    kept = len(shape_of(node)) == len(shape)
    rest = iter(i for d, i in enumerate(index) if not (kept and d in reduced))
    return itertools.product(*(range(n) if d in reduced else [next(rest)] for d, n in enumerate(shape)))


def _mean(s: Scalariser, node: Node, index: Index) -> Expression:
    count = math.prod(shape_of(node.args[0])) / math.prod(shape_of(node))
    return (1 / count) * _sum(s, node, index)


def _product(s: Scalariser, a: Node, b: Node, index: Index) -> Expression:
    """Return an element of a product of matrices, with a common batch dimension or without."""
    *batch, i, j = index
    terms = (
        num(s.element(a, (*batch, i, k))) * num(s.element(b, (*batch, k, j))) for k in range(shape_of(a)[-1])
    )
    return sum(terms, s.graph.constant(0.0))


def _matmul(s: Scalariser, node: Node, index: Index) -> Expression:
    a, b = arguments_of(node)
    return _product(s, a, b, index)


def _addmm(s: Scalariser, node: Node, index: Index) -> Expression:
    bias, a, b, beta, alpha = arguments_of(node)
    start = s.element(bias, broadcast(index, shape_of(bias)))
    return alpha * _product(s, a, b, index) + beta * num(start)


def _cat(s: Scalariser, node: Node, index: Index) -> Expression:
    parts, dim = arguments_of(node)
    dim %= len(index)
    at = index[dim]
    for part in parts:
        size = shape_of(part)[dim] if len(shape_of(part)) == len(index) else 0  # torch skips empty vectors
        if at < size:
            return s.element(part, (*index[:dim], at, *index[dim + 1 :]))
        at -= size
    raise AssertionError("index outside of a concatenation")


def _pad(s: Scalariser, node: Node, index: Index) -> Expression:
    source, pad, value = arguments_of(node)
    place = list(index)
    for k, before in enumerate(pad[::2]):
        place[-1 - k] -= before
    if all(0 <= i < n for i, n in zip(place, shape_of(source), strict=True)):
        return s.element(source, tuple(place))
    return s.graph.constant(float(value))


def _slice_scatter(s: Scalariser, node: Node, index: Index) -> Expression:
    base, source, dim, start, end, step = arguments_of(node)
    dim %= len(index)
    first, _ = slice_ends(shape_of(node)[dim], start, end)
    offset, left = divmod(index[dim] - first, step)
    if left or not 0 <= offset < shape_of(source)[dim]:
        return s.element(base, index)
    return s.element(source, (*index[:dim], offset, *index[dim + 1 :]))


def _take(s: Scalariser, node: Node, index: Index) -> Expression:
    """Indexing by tensors of constants, on any dimensions next to one another."""
    source, places = arguments_of(node)
    used = _indexed(places)
    rank = max(len(shape_of(places[d])) for d in used)
    inner = index[used[0] : used[0] + rank]
    picked = _looked_up(s, [places[d] for d in used], inner, [shape_of(source)[d] for d in used])
    return s.element(source, (*index[: used[0]], *picked, *index[used[0] + rank :]))


def _put(s: Scalariser, node: Node, index: Index) -> Expression:
    """Assignment, or addition, to places that tensors of constants name."""
    base, places, values, accumulate = arguments_of(node)
    used = _indexed(places)
    tables, sizes = [places[d] for d in used], [shape_of(node)[d] for d in used]
    before, here, after = index[: used[0]], index[used[0] : used[-1] + 1], index[used[-1] + 1 :]
    result = s.element(base, index)
    for place in itertools.product(*map(range, np.broadcast_shapes(*map(shape_of, tables)))):
        if _looked_up(s, tables, place, sizes) == here:
            value = s.element(values, broadcast((*before, *place, *after), shape_of(values)))
            result = num(result) + num(value) if accumulate else value
    return result


def _indexed(places: Sequence[Node | None]) -> list[int]:
    """Return the dimensions that are indexed by tensors."""
    used = [d for d, p in enumerate(places) if p is not None]
    if used != list(range(used[0], used[-1] + 1)):
        raise Unsupported("indexing by separated dimensions")
    return used


def _looked_up(s: Scalariser, tables: Sequence[Node], index: Index, sizes: Sequence[int]) -> Index:
    """Return what tables of constants hold at a place; each counts from the end where it is negative."""
    found = []
    for table, size in zip(tables, sizes, strict=True):
        at = s.element(table, broadcast(index, shape_of(table))).value
        if at is None:
            raise Unsupported("indexing by computed values")
        found.append(int(at) % size)
    return tuple(found)


def _index_select(s: Scalariser, node: Node, index: Index) -> Expression:
    source, dim, table = arguments_of(node)
    dim %= len(index)
    picked = _looked_up(s, [table], (index[dim],), [shape_of(source)[dim]])
    return s.element(source, (*index[:dim], *picked, *index[dim + 1 :]))


def _norm(s: Scalariser, node: Node, index: Index) -> Expression:
    source, order, dim, *_ = arguments_of(node)
    if order not in (1, 2):
        raise Unsupported(f"a norm of order {order}")
    rank = len(shape_of(source))
    reduced = {d % rank for d in (range(rank) if dim is None else dim)}
    terms = (s.element(source, place) for place in _summed(node, index, reduced))
    if order == 1:
        return sum((x.apply("abs") for x in terms), s.graph.constant(0.0))
    return sum((x * x for x in terms), s.graph.constant(0.0)).apply("sqrt")


def _arange(s: Scalariser, node: Node, index: Index) -> Expression:
    start, _, step, *_ = arguments_of(node)
    s.fixed.append((node.name, index))
    return s.graph.constant(float(start + index[0] * step))


def _getitem(s: Scalariser, node: Node, index: Index) -> Expression:
    """A result of an operation that has several."""
    source: Any
    source, part = node.args
    *batch, i, j = index
    if source.target is aten.linalg_cholesky_ex.default and part == 0:
        matrix, upper, _ = arguments_of(source)
        if upper:
            raise Unsupported("an upper Cholesky factor")
        key = (source, "factor", *batch)
        return s.once(key, lambda: cholesky(s.matrix(matrix, tuple(batch))))[i][j]
    if source.target is aten._linalg_solve_ex.default and part == 0:
        matrix, right, left, _ = arguments_of(source)
        if not left or len(shape_of(right)) == len(shape_of(matrix)) - 1:
            raise Unsupported("linalg.solve from the right, or of a vector")
        key = (source, "solution", *batch)
        rows = s.once(key, lambda: solve(s.matrix(matrix, tuple(batch)), s.matrix(right, tuple(batch))))
        return rows[i][j]
    raise Unsupported(f"the operation {source.target}")


def _cholesky_solve(s: Scalariser, node: Node, index: Index) -> Expression:
    right, factor, upper = arguments_of(node)
    if upper:
        raise Unsupported("cholesky_solve with an upper factor")
    *batch, i, j = index

    def column() -> list[Expression]:
        lower = s.matrix(factor, tuple(batch))
        b = [row[j] for row in s.matrix(right, tuple(batch))]
        return solve_lower(lower, solve_lower(lower, b), transposed=True)

    return s.once((node, "column", *batch, j), column)[i]


STRUCTURED: dict[Any, Callable[[Scalariser, Node, Index], Expression]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.slice_scatter.default: _slice_scatter,
    aten.index.Tensor: _take,
    aten.index_put.default: _put,
    aten.index_select.default: _index_select,
    aten.linalg_vector_norm.default: _norm,
    aten.arange.start_step: _arange,
    operator.getitem: _getitem,
    aten.cholesky_solve.default: _cholesky_solve,
}
"""Operations of which an element needs several elements, or none, of the arguments."""
