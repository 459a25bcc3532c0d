"""Traced torch functions as scalar expressions.

`make_fx` records what a function does in elementary tensor operations. Here each of them
says what one element of its result is, given elements of its arguments; an element is
worked out when it is asked for, so that an operation over a large batch costs no more
than over a small one.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vinppl.native.expressions import Expression, Graph, Number

__all__ = ["ELEMENTWISE", "Scalariser", "Unsupported", "decompositions", "view_index"]

aten = torch.ops.aten
Index = tuple[Any, ...]


class Unsupported(Exception):
    """An operation or a shape that has no compiled form; the text names it."""


def num(x: Number) -> Number:
    """Return truth values as 0 and 1."""
    if isinstance(x, Expression) and x.is_truth:
        return x.graph.make("where", x, 1.0, 0.0)
    return float(x) if isinstance(x, bool) else x


def truth(x: Number) -> Number:
    """Return numbers as truth values: whether they are not zero."""
    if isinstance(x, Expression) and not x.is_truth:
        return x.apply("ne", 0.0)
    return bool(x) if not isinstance(x, Expression) else x


def _numeric(name: str) -> Callable[..., Expression]:
    def rule(*arguments: Number) -> Expression:
        return _make(name, *(num(a) for a in arguments))

    return rule


def _logical(name: str) -> Callable[..., Expression]:
    def rule(*arguments: Number) -> Expression:
        return _make(name, *(truth(a) for a in arguments))

    return rule


def _make(name: str, *arguments: Number) -> Expression:
    graph = next(a.graph for a in arguments if isinstance(a, Expression))
    return graph.make(name, *arguments)


def _add(x: Number, y: Number, *, alpha: float = 1) -> Expression:
    return _make("add", num(x), _make("mul", alpha, num(y)) if alpha != 1 else num(y))


def _sub(x: Number, y: Number, *, alpha: float = 1) -> Expression:
    return _make("sub", num(x), _make("mul", alpha, num(y)) if alpha != 1 else num(y))


def _divide(x: Number, y: Number, *, rounding_mode: str | None = None) -> Expression:
    quotient = _make("div", num(x), num(y))
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        return quotient.apply("floor")
    raise Unsupported(f"division with rounding_mode={rounding_mode!r}")


def power(x: Expression, n: Number) -> Expression:
    """Return x^n; small whole and half powers by products and roots."""
    if isinstance(x, Expression) and isinstance(n, int | float) and not isinstance(n, bool):
        if n == 0:
            return x.graph.constant(1.0)
        if n < 0 and abs(n) <= 8 and float(2 * n).is_integer():
            return 1.0 / power(x, -n)
        if 0 < n <= 8 and float(2 * n).is_integer():
            whole, result = int(n), x.apply("sqrt") if not float(n).is_integer() else None
            square = x
            while whole:
                if whole & 1:
                    result = square if result is None else result * square
                square, whole = square * square, whole >> 1
            assert result is not None
            return result
    return _make("pow", num(x), num(n))


def _clamp(x: Number, low: Number | None = None, high: Number | None = None) -> Expression:
    result: Any = x
    result = result if low is None else _make("maximum", result, num(low))
    return result if high is None else _make("minimum", result, num(high))


def _softplus(x: Expression, beta: float = 1, threshold: float = 20) -> Expression:
    z = x * beta
    inside = z.apply("minimum", threshold).apply("exp").apply("log1p")
    return _make("where", z.apply("gt", threshold), x, inside / beta)


def _softplus_backward(g: Expression, x: Expression, beta: float, threshold: float) -> Expression:
    z = x * beta
    return _make("where", z.apply("gt", threshold), g, g * z.apply("sigmoid"))


def _where(mask: Number, x: Number, y: Number) -> Expression:
    return _make("where", truth(mask), num(x), num(y))


def _silu_backward(g: Expression, x: Expression) -> Expression:
    gate = x.apply("sigmoid")
    return g * gate * (1.0 + x * (1.0 - gate))


def _remainder(x: Number, y: Number) -> Expression:
    return _make("sub", num(x), _make("mul", num(y), _make("div", num(x), num(y)).apply("floor")))


def _same(x: Number, *_: Any, **__: Any) -> Number:
    return x


def _convert(x: Number, *, dtype: torch.dtype | None = None, **_: Any) -> Number:
    if dtype is torch.bool:
        return truth(x)
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported(f"conversion to {dtype}")
    return num(x)


ELEMENTWISE: dict[Any, Callable[..., Number]] = {
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Scalar: lambda x, y, alpha=1: _sub(y, x, alpha=alpha),
    aten.rsub.Tensor: lambda x, y, alpha=1: _sub(y, x, alpha=alpha),
    aten.mul.Tensor: _numeric("mul"),
    aten.mul.Scalar: _numeric("mul"),
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.div.Tensor_mode: _divide,
    aten.neg.default: _numeric("neg"),
    aten.reciprocal.default: lambda x: 1.0 / x,
    aten.square.default: lambda x: x * x,
    aten.sqrt.default: _numeric("sqrt"),
    aten.rsqrt.default: lambda x: 1.0 / x.apply("sqrt"),
    aten.abs.default: _numeric("abs"),
    aten.sign.default: _numeric("sign"),
    aten.sgn.default: _numeric("sign"),
    aten.floor.default: _numeric("floor"),
    aten.round.default: _numeric("round"),
    aten.exp.default: _numeric("exp"),
    aten.exp2.default: lambda x: (x * math.log(2)).apply("exp"),
    aten.expm1.default: _numeric("expm1"),
    aten.log.default: _numeric("log"),
    aten.log2.default: lambda x: x.apply("log") * (1 / math.log(2)),
    aten.log10.default: lambda x: x.apply("log") * (1 / math.log(10)),
    aten.log1p.default: _numeric("log1p"),
    aten.sin.default: _numeric("sin"),
    aten.cos.default: _numeric("cos"),
    aten.tan.default: lambda x: x.apply("sin") / x.apply("cos"),
    aten.asin.default: _numeric("asin"),
    aten.acos.default: _numeric("acos"),
    aten.atan.default: _numeric("atan"),
    aten.atan2.default: _numeric("atan2"),
    aten.sinh.default: _numeric("sinh"),
    aten.cosh.default: _numeric("cosh"),
    aten.tanh.default: _numeric("tanh"),
    aten.tanh_backward.default: lambda g, y: g * (1.0 - y * y),
    aten.sigmoid.default: _numeric("sigmoid"),
    aten.sigmoid_backward.default: lambda g, y: g * y * (1.0 - y),
    aten.silu.default: lambda x: x * x.apply("sigmoid"),
    aten.silu_backward.default: _silu_backward,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
    aten.log_sigmoid_forward.default: None,  # type: ignore[dict-item]
    aten.relu.default: lambda x: x.apply("maximum", 0.0),
    aten.threshold_backward.default: lambda g, x, t: _make("where", x.apply("le", t), 0.0, g),
    aten.erf.default: _numeric("erf"),
    aten.lgamma.default: _numeric("lgamma"),
    aten.digamma.default: _numeric("digamma"),
    aten.pow.Tensor_Scalar: power,
    aten.pow.Tensor_Tensor: power,
    aten.pow.Scalar: lambda x, n: (n * math.log(x)).apply("exp"),
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: lambda x, low: _clamp(x, low),
    aten.clamp_min.Tensor: lambda x, low: _clamp(x, low),
    aten.clamp_max.default: lambda x, high: _clamp(x, None, high),
    aten.minimum.default: _numeric("minimum"),
    aten.maximum.default: _numeric("maximum"),
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.addcmul.default: lambda x, a, b, value=1: _add(x, _make("mul", num(a), num(b)), alpha=value),
    aten.addcdiv.default: lambda x, a, b, value=1: _add(x, _make("div", num(a), num(b)), alpha=value),
    aten.lerp.Scalar: lambda a, b, w: a + w * (b - a),
    aten.lerp.Tensor: lambda a, b, w: a + w * (b - a),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: lambda x, mask, value: _where(mask, value, x),
    aten.masked_fill.Tensor: lambda x, mask, value: _where(mask, value, x),
    aten.isnan.default: lambda x: x.apply("ne", x),
    aten.isfinite.default: lambda x: x.apply("abs").apply("lt", math.inf),
    aten.logical_not.default: _logical("not"),
    aten.bitwise_not.default: _logical("not"),
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.contiguous.default: _same,
    aten._to_copy.default: _convert,
}
"""What an element of a pointwise operation is, from the elements of its arguments at the same place."""

for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    ELEMENTWISE[getattr(aten, _name).Tensor] = _numeric(_name)
    ELEMENTWISE[getattr(aten, _name).Scalar] = _numeric(_name)
for _name in ("and", "or"):
    ELEMENTWISE[getattr(aten, f"logical_{_name}").default] = _logical(_name)
    ELEMENTWISE[getattr(aten, f"bitwise_{_name}").Tensor] = _logical(_name)
del ELEMENTWISE[aten.log_sigmoid_forward.default]


@functools.cache
def decompositions() -> dict[Any, Any]:
    """Return torch's decompositions of composed operations, except those that have a rule here."""
    table = torch._decomp.core_aten_decompositions()
    return {key: rule for key, rule in table.items() if key not in ELEMENTWISE}


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's value; of a number, `()`."""
    if not isinstance(node, Node):
        return ()
    return tuple(node.meta["val"].shape)


def broadcast(index: Index, shape: Sequence[int]) -> Index:
    """Return the place in an argument of `shape` that belongs to a place in the broadcast result."""
    kept = index[len(index) - len(shape) :]
    return tuple(0 if n == 1 else i for i, n in zip(kept, shape, strict=True))


def _dim(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


# Views: which element of the argument an element of the result is.


def _select(index: Index, source: tuple[int, ...], dim: int, at: int) -> Index:
    dim = _dim(dim, len(source))
    return (*index[:dim], at + source[dim] if at < 0 else at, *index[dim:])


def _slice(
    index: Index, source: tuple[int, ...], dim: int = 0, start: int | None = None, end: Any = None, step: int = 1
) -> Index:
    dim = _dim(dim, len(source))
    first = 0 if start is None else max(0, start + source[dim] if start < 0 else start)
    return (*index[:dim], index[dim] * step + min(first, source[dim]), *index[dim + 1 :])


def _unsqueeze(index: Index, source: tuple[int, ...], dim: int) -> Index:
    dim = _dim(dim, len(source) + 1)
    return (*index[:dim], *index[dim + 1 :])


def _squeeze(index: Index, source: tuple[int, ...], dims: Any = None) -> Index:
    dims = range(len(source)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_dim(d, len(source)) for d in dims if source[_dim(d, len(source))] == 1}
    rest = iter(index)
    return tuple(0 if d in gone else next(rest) for d in range(len(source)))


def _permute(index: Index, source: tuple[int, ...], order: Sequence[int]) -> Index:
    place: list[Any] = [None] * len(source)
    for i, d in zip(index, order, strict=True):
        place[_dim(d, len(source))] = i
    return tuple(place)


def _transpose(index: Index, source: tuple[int, ...], a: int, b: int) -> Index:
    order = list(range(len(source)))
    a, b = _dim(a, len(source)), _dim(b, len(source))
    order[a], order[b] = order[b], order[a]
    return _permute(index, source, order)


def _expand(index: Index, source: tuple[int, ...], *_: Any, **__: Any) -> Index:
    return broadcast(index, source)


def _flip(index: Index, source: tuple[int, ...], dims: Sequence[int]) -> Index:
    turned = {_dim(d, len(source)) for d in dims}
    return tuple(source[d] - 1 - i if d in turned else i for d, i in enumerate(index))


VIEWS: dict[Any, Callable[..., Index]] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze_.dim: _squeeze,
    aten.unsqueeze_.default: _unsqueeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: lambda index, source: tuple(reversed(index)),
    aten.expand.default: _expand,
    aten.flip.default: _flip,
}

RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})


def view_index(node: Node, index: Index) -> Index | None:
    """Return which element of its argument an element of a view is; `None` if `node` is no view."""
    rule = VIEWS.get(node.target)
    if rule is None:
        return None
    return rule(index, shape_of(node.args[0]), *node.args[1:], **node.kwargs)


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


class Scalariser:
    """Elements of a traced function's values, as expressions.

    Args:
        graph: where the expressions go.
        inputs: for each argument of the function, the expression of an element.
        constants: the same for tensors that the function holds, by their name in the module.
        limit: number of values of the graph at which to give up.

    Raises:
        Unsupported: from `element`, for an operation without a rule or a graph that is too large.
    """

    def __init__(
        self,
        graph: Graph,
        module: torch.fx.GraphModule,
        inputs: Sequence[Callable[[tuple[int, ...]], Expression]],
        constants: Callable[[Tensor, tuple[int, ...]], Expression],
        *,
        limit: int = 20_000,
    ) -> None:
        self.graph, self.module, self.limit = graph, module, limit
        self._constants = constants
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._inputs = dict(zip(placeholders, inputs, strict=True))
        self._memo: dict[Any, Any] = {}

    @property
    def outputs(self) -> list[Node]:
        """The nodes that the function returns."""
        node = next(n for n in self.module.graph.nodes if n.op == "output")
        returned = node.args[0]
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    def element(self, node: Any, index: Index) -> Number:
        """Return one element of a value."""
        if not isinstance(node, Node):
            return node  # type: ignore[no-any-return]
        key = (node, index)
        if key not in self._memo:
            if len(self.graph) > self.limit:
                raise Unsupported(f"more than {self.limit} scalar operations in one step")
            self._memo[key] = self._compute(node, index)
        return self._memo[key]  # type: ignore[no-any-return]

    def _compute(self, node: Node, index: Index) -> Number:
        if node.op == "placeholder":
            return self._inputs[node](index)
        if node.op == "get_attr":
            tensor = getattr(self.module, str(node.target))
            literal = any(u.target is aten.lift_fresh_copy.default for u in node.users)
            return _literal(self.graph, tensor, index) if literal else self._constants(tensor, index)
        if node.target in ELEMENTWISE:
            arguments = [
                self.element(a, broadcast(index, shape_of(a))) if isinstance(a, Node) else a for a in node.args
            ]
            return ELEMENTWISE[node.target](*arguments, **node.kwargs)
        place = view_index(node, index)
        if place is not None:
            return self.element(node.args[0], place)
        if node.target in RESHAPES:
            return self.element(node.args[0], _unflat(_flat(index, shape_of(node)), shape_of(node.args[0])))
        rule = STRUCTURED.get(node.target)
        if rule is None:
            raise Unsupported(f"the operation {node.target}")
        return rule(self, node, index)

    def matrix(self, node: Any, batch: Index) -> list[list[Number]]:
        """Return one matrix of a value, by rows."""
        rows, columns = shape_of(node)[-2:]
        place = broadcast(batch, shape_of(node)[:-2])
        return [[self.element(node, (*place, i, j)) for j in range(columns)] for i in range(rows)]

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return what `compute` gives, worked out the first time."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def _literal(graph: Graph, tensor: Tensor, index: Index) -> Expression:
    value = tensor[index].item()
    return graph.constant(value if isinstance(value, bool) else float(value))


def _sum(s: Scalariser, node: Node, index: Index) -> Number:
    """Sums over dimensions (`dim`, `keepdim`); over all of them without `dim`."""
    source = shape_of(node.args[0])
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = range(len(source)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    reduced = {_dim(d, len(source)) for d in dims}
    keep = len(shape_of(node)) == len(source)
    rest = iter(i for d, i in enumerate(index) if not (keep and d in reduced))
    fixed = [None if d in reduced else next(rest) for d in range(len(source))]
    spans = [range(source[d]) if i is None else [i] for d, i in enumerate(fixed)]
    total: Number = s.graph.constant(0.0)
    for place in itertools.product(*spans):
        total = _make("add", total, num(s.element(node.args[0], place)))
    return total


def _mean(s: Scalariser, node: Node, index: Index) -> Number:
    count = math.prod(shape_of(node.args[0])) / math.prod(shape_of(node))
    return _make("mul", 1 / count, _sum(s, node, index))


def _product_sum(pairs: Sequence[tuple[Number, Number]]) -> Number:
    total: Any = _make("mul", num(pairs[0][0]), num(pairs[0][1]))
    for a, b in pairs[1:]:
        total = total + _make("mul", num(a), num(b))
    return total  # type: ignore[no-any-return]


def _matmul(s: Scalariser, a: Node, b: Node, index: Index) -> Number:
    *batch, i, j = index
    inner = shape_of(a)[-1]
    return _product_sum(
        [(s.element(a, (*batch, i, k)), s.element(b, (*batch, k, j))) for k in range(inner)]
    )


def _addmm(s: Scalariser, node: Node, index: Index) -> Number:
    bias, a, b = node.args[:3]
    product = _matmul(s, a, b, index)
    scaled = _make("mul", node.kwargs.get("alpha", 1), product)
    start = s.element(bias, broadcast(index, shape_of(bias)))
    return _make("add", scaled, _make("mul", node.kwargs.get("beta", 1), num(start)))


def _cat(s: Scalariser, node: Node, index: Index) -> Number:
    parts: Any = node.args[0]
    dim = _dim(node.args[1] if len(node.args) > 1 else 0, len(index))  # type: ignore[arg-type]
    at = index[dim]
    for part in parts:
        size = shape_of(part)[dim] if len(shape_of(part)) == len(index) else 0  # torch skips empty vectors
        if at < size:
            return s.element(part, (*index[:dim], at, *index[dim + 1 :]))
        at -= size
    raise AssertionError("index outside of a concatenation")


def _stack(s: Scalariser, node: Node, index: Index) -> Number:
    parts: Any = node.args[0]
    dim = _dim(node.args[1] if len(node.args) > 1 else 0, len(index))  # type: ignore[arg-type]
    return s.element(parts[index[dim]], (*index[:dim], *index[dim + 1 :]))


def _pad(s: Scalariser, node: Node, index: Index) -> Number:
    source, pad = shape_of(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0.0)
    place = list(index)
    for k in range(len(pad) // 2):
        place[-1 - k] -= pad[2 * k]
    if all(0 <= i < n for i, n in zip(place, source, strict=True)):
        return s.element(node.args[0], tuple(place))
    return s.graph.constant(float(value or 0.0))  # type: ignore[arg-type]


def _select_backward(s: Scalariser, node: Node, index: Index) -> Number:
    gradient, sizes, dim, at = node.args[:4]
    dim = _dim(dim, len(sizes))  # type: ignore[arg-type]
    at = at + sizes[dim] if at < 0 else at  # type: ignore[operator,index]
    if index[dim] != at:
        return s.graph.constant(0.0)
    return s.element(gradient, (*index[:dim], *index[dim + 1 :]))


def _slice_backward(s: Scalariser, node: Node, index: Index) -> Number:
    gradient, sizes, dim, start, end, step = node.args  # type: ignore[misc]
    dim = _dim(dim, len(sizes))  # type: ignore[arg-type]
    size = sizes[dim]  # type: ignore[index]
    start = max(0, start + size if start < 0 else start)  # type: ignore[operator]
    offset, left = divmod(index[dim] - start, step)
    if left or not 0 <= offset < shape_of(gradient)[dim]:
        return s.graph.constant(0.0)
    return s.element(gradient, (*index[:dim], offset, *index[dim + 1 :]))


def _slice_scatter(s: Scalariser, node: Node, index: Index) -> Number:
    base, source, *rest = node.args
    named = {**dict(zip(("dim", "start", "end", "step"), rest, strict=False)), **node.kwargs}
    dim = _dim(named.get("dim", 0), len(index))  # type: ignore[arg-type]
    start: Any = named.get("start") or 0
    start = max(0, start + shape_of(node)[dim] if start < 0 else start)
    offset, left = divmod(index[dim] - start, named.get("step", 1))
    if left or not 0 <= offset < shape_of(source)[dim]:
        return s.element(base, index)
    return s.element(source, (*index[:dim], offset, *index[dim + 1 :]))


def _select_scatter(s: Scalariser, node: Node, index: Index) -> Number:
    base, source, dim, at = node.args
    dim = _dim(dim, len(index))  # type: ignore[arg-type]
    at = at + shape_of(node)[dim] if at < 0 else at  # type: ignore[operator,index]
    return s.element(base, index) if index[dim] != at else s.element(source, (*index[:dim], *index[dim + 1 :]))


def _take(s: Scalariser, node: Node, index: Index) -> Number:
    """Indexing by tensors of constants, on any dimensions next to one another."""
    source, places = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    used = [d for d, p in enumerate(places) if p is not None]
    if used != list(range(used[0], used[-1] + 1)):
        raise Unsupported("indexing by separated dimensions")
    rank = max(len(shape_of(places[d])) for d in used)
    inner = index[used[0] : used[0] + rank]
    picked = []
    for d in used:
        at = s.element(places[d], broadcast(inner, shape_of(places[d])))
        value = at.value if isinstance(at, Expression) else at
        if value is None:
            raise Unsupported("indexing by computed values")
        picked.append(int(value) % shape_of(source)[d])
    return s.element(source, (*index[: used[0]], *picked, *index[used[0] + rank :]))


def _filled(value: float) -> Callable[[Scalariser, Node, Index], Number]:
    return lambda s, node, index: s.graph.constant(value)


def _full(s: Scalariser, node: Node, index: Index) -> Number:
    value: Any = node.args[1]
    return s.graph.constant(value if isinstance(value, bool) else float(value))


def _arange(s: Scalariser, node: Node, index: Index) -> Number:
    numbers: Any = [a for a in node.args if isinstance(a, int | float)]
    start, step = (0, 1) if len(numbers) == 1 else (numbers[0], numbers[2] if len(numbers) > 2 else 1)
    return s.graph.constant(float(start + index[0] * step))


def _getitem(s: Scalariser, node: Node, index: Index) -> Number:
    source, part = node.args
    if source.target is aten.linalg_cholesky_ex.default and part == 0:  # type: ignore[union-attr]
        *batch, i, j = index
        factor = s.once((source, "factor", *batch), lambda: cholesky(s.matrix(source.args[0], tuple(batch))))  # type: ignore[union-attr]
        return factor[i][j]  # type: ignore[no-any-return]
    if source.target is aten._linalg_solve_ex.default and part == 0:  # type: ignore[union-attr]
        matrix, right = source.args[:2]  # type: ignore[union-attr]
        if not source.kwargs.get("left", True) or len(shape_of(right)) == len(shape_of(matrix)) - 1:  # type: ignore[union-attr]
            raise Unsupported("linalg.solve from the right, or of a vector")
        *batch, i, j = index
        rows = (source, "solution", *batch)
        solution = s.once(rows, lambda: solve(s.matrix(matrix, tuple(batch)), s.matrix(right, tuple(batch))))
        return solution[i][j]  # type: ignore[no-any-return]
    raise Unsupported(f"the operation {source.target}")  # type: ignore[union-attr]


def solve(a: list[list[Any]], b: list[list[Any]]) -> list[list[Any]]:
    """Return a^-1 b of small matrices, by elimination with row exchanges."""
    n = len(a)
    rows = [[*x, *y] for x, y in zip(a, b, strict=True)]
    for k in range(n):
        for i in range(k + 1, n):
            larger = rows[i][k].apply("abs").apply("gt", rows[k][k].apply("abs"))
            pairs = list(zip(rows[k], rows[i], strict=True))
            rows[k] = [_where(larger, y, x) for x, y in pairs]
            rows[i] = [_where(larger, x, y) for x, y in pairs]
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [y - factor * x if c > k else y for c, (x, y) in enumerate(zip(rows[k], rows[i], strict=True))]
    for k in reversed(range(n)):
        for c in range(n, len(rows[k])):
            rest = rows[k][c]
            for m in range(k + 1, n):
                rest = rest - rows[k][m] * rows[m][c]
            rows[k][c] = rest / rows[k][k]
    return [row[n:] for row in rows]


def cholesky(a: list[list[Any]]) -> list[list[Any]]:
    """Return the lower Cholesky factor of a small matrix."""
    n = len(a)
    zero = next(x.graph for row in a for x in row if isinstance(x, Expression)).constant(0.0)
    factor: list[list[Any]] = [[zero] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            rest = a[i][j]
            for k in range(j):
                rest = rest - factor[i][k] * factor[j][k]
            factor[i][j] = rest.apply("sqrt") if i == j else rest / factor[j][j]
    return factor


def _solve_lower(factor: list[list[Any]], right: list[Any], transposed: bool) -> list[Any]:
    n = len(right)
    x: list[Any] = list(right)
    for i in reversed(range(n)) if transposed else range(n):
        for k in range(i + 1, n) if transposed else range(i):
            x[i] = x[i] - (factor[k][i] if transposed else factor[i][k]) * x[k]
        x[i] = x[i] / factor[i][i]
    return x


def _cholesky_solve(s: Scalariser, node: Node, index: Index) -> Number:
    right, factor = node.args[:2]
    if len(node.args) > 2 and node.args[2]:
        raise Unsupported("cholesky_solve with an upper factor")
    *batch, i, j = index

    def column() -> list[Any]:
        lower = s.matrix(factor, tuple(batch))
        b = [row[j] for row in s.matrix(right, tuple(batch))]
        return _solve_lower(lower, _solve_lower(lower, b, False), True)

    return s.once((node, "column", *batch, j), column)[i]  # type: ignore[no-any-return]


STRUCTURED: dict[Any, Callable[[Scalariser, Node, Index], Number]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.mm.default: lambda s, n, i: _matmul(s, n.args[0], n.args[1], i),  # type: ignore[arg-type]
    aten.bmm.default: lambda s, n, i: _matmul(s, n.args[0], n.args[1], i),  # type: ignore[arg-type]
    aten.mv.default: lambda s, n, i: _product_sum(
        [(s.element(n.args[0], (*i, k)), s.element(n.args[1], (k,))) for k in range(shape_of(n.args[1])[0])]
    ),
    aten.dot.default: lambda s, n, i: _product_sum(
        [(s.element(n.args[0], (k,)), s.element(n.args[1], (k,))) for k in range(shape_of(n.args[1])[0])]
    ),
    aten.addmm.default: _addmm,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.constant_pad_nd.default: _pad,
    aten.select_backward.default: _select_backward,
    aten.slice_backward.default: _slice_backward,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index.Tensor: _take,
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.zeros.default: _filled(0.0),
    aten.ones.default: _filled(1.0),
    aten.new_zeros.default: _filled(0.0),
    aten.new_ones.default: _filled(1.0),
    aten.full.default: _full,
    aten.full_like.default: _full,
    aten.new_full.default: lambda s, n, i: s.graph.constant(float(n.args[2])),  # type: ignore[arg-type]
    aten.scalar_tensor.default: lambda s, n, i: s.graph.constant(n.args[0]),  # type: ignore[arg-type]
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    operator.getitem: _getitem,
    aten.cholesky_solve.default: _cholesky_solve,
}
"""Operations of which an element needs several elements, or none, of the arguments."""
