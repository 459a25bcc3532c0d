"""Removes detours from a traced graph: what is computed twice, indexed by the identity or not masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vinppl.native.elementwise import ELEMENTWISE, IDENTITIES
from vinppl.native.views import (
    RESHAPES,
    arguments_of,
    fill_value,
    shape_of,
    slice_ends,
    view_index,
)

__all__ = ["simplify", "varying_shape"]

aten = torch.ops.aten


def simplify(module: GraphModule) -> None:
    """Rewrite a graph in place; its results stay equal up to rounding."""
    _name_equal_numbers(module)
    for _ in range(2):
        _share_equal_nodes(module)
        for node in list(module.graph.nodes):
            same = _same_as(module, node)
            if same is not None:
                node.replace_all_uses_with(same)
        module.graph.eliminate_dead_code()
    _multiply_by_reciprocals(module)
    _share_equal_nodes(module)
    module.graph.eliminate_dead_code()


def _name_equal_numbers(module: GraphModule) -> None:
    """Turn constants whose elements are all equal into fills, where an operation takes these."""
    graph = module.graph
    for node in list(graph.nodes):
        tensor = _constant(module, node)
        if tensor is None or tensor.numel() == 0 or any(_is_rollout(user) for user in node.users):
            continue  # rollouts want their constants in memory
        first = tensor.reshape(-1)[0]
        if (tensor.is_floating_point() or tensor.dtype == torch.bool) and bool((tensor == first).all()):
            with graph.inserting_before(node):
                fill = graph.call_function(aten.full.default, (list(tensor.shape), first.item()))
            fill.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(fill)
            graph.erase_node(node)


def _is_rollout(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "vinppl"


def _share_equal_nodes(module: GraphModule) -> None:
    known: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        key: Any
        if node.op == "get_attr":
            key = ("constant", id(_constant(module, node)))
        elif node.op == "call_function" and not _is_rollout(node):
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        else:
            continue
        if key in known:
            node.replace_all_uses_with(known[key])
            module.graph.erase_node(node)
        else:
            known[key] = node


def _frozen(x: Any) -> Any:
    """Return arguments as something that compares by value; numbers of different types differ."""
    if isinstance(x, list | tuple):
        return tuple(_frozen(i) for i in x)
    if isinstance(x, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in x.items()))
    return x if isinstance(x, Node) else (type(x), repr(x))


def _same_as(module: GraphModule, node: Node) -> Node | None:
    """Return an earlier node of the same value, shape and type, if one is known."""
    rule = SHORTCUTS.get(node.target)
    candidate = rule(module, node) if rule is not None else None
    if not isinstance(candidate, Node) or shape_of(candidate) != shape_of(node):
        return None
    return candidate if candidate.meta["val"].dtype == node.meta["val"].dtype else None


def _first(module: GraphModule, node: Node) -> Any:
    return node.args[0]


def _chosen(module: GraphModule, node: Node) -> Any:
    """Return what a mask takes everywhere."""
    mask, x, y = node.args
    value = fill_value(mask) if isinstance(mask, Node) else None
    return None if value is None else x if value else y


def _selected(module: GraphModule, node: Node) -> Any:
    source, _, places = arguments_of(node)
    return source if _is_identity(module, places) else None


def _put(module: GraphModule, node: Node) -> Any:
    """Return what is put into zeros, each element in its own place."""
    base, places, values, _ = arguments_of(node)
    used = [p for p in places if p is not None]
    return values if _is_zero(base) and len(used) == 1 and _is_identity(module, used[0]) else None


def _scaled(module: GraphModule, node: Node) -> Any:
    x, factor = node.args
    return x if factor == 1 else None


def _joined(module: GraphModule, node: Node) -> Any:
    """Return what a concatenation of neighbouring slices was cut from."""
    parts, dim = arguments_of(node)
    source, end = None, 0
    for part in parts:
        cut = _cut(part)
        if cut is None or cut[1:3] != (dim % len(shape_of(node)), end) or source not in (None, cut.source):
            return None
        source, end = cut.source, cut.end
    return source


def _filled_in(module: GraphModule, node: Node) -> Any:
    """Return x where a sum puts both parts of x back to where they were, into zeros."""
    if node.kwargs:
        return None
    cuts = []
    for term in node.args:
        if not isinstance(term, Node) or term.target is not aten.slice_scatter.default:
            return None
        base, source, *where = arguments_of(term)
        cut, target = _cut(source), _range(term, *where)
        if not _is_zero(base) or cut is None or target is None or cut[1:] != target[1:]:
            return None
        cuts.append(cut)
    first, second = sorted(cuts, key=lambda cut: cut.start)
    whole = first.start == 0 and first.end == second.start and second.end == shape_of(node)[first.dim]
    return first.source if first[:2] == second[:2] and whole else None


SHORTCUTS: dict[Any, Callable[[GraphModule, Node], Any]] = {
    **dict.fromkeys((*IDENTITIES, *RESHAPES, aten.expand.default), _first),
    aten.where.self: _chosen,
    aten.index_select.default: _selected,
    aten.index_put.default: _put,
    aten.mul.Tensor: _scaled,
    aten.mul.Scalar: _scaled,
    aten.cat.default: _joined,
    aten.add.Tensor: _filled_in,
}
"""What a node of an operation may be equal to, up to its shape and type."""


class _Cut(NamedTuple):
    """Neighbouring places along a dimension of a tensor."""

    source: Node
    dim: int
    start: int
    end: int


def _cut(node: Any) -> _Cut | None:
    """Return what a slice of step one takes."""
    if not isinstance(node, Node) or node.target is not aten.slice.Tensor:
        return None
    return _range(*arguments_of(node))


def _range(source: Node, dim: int, start: int | None, end: int | None, step: int) -> _Cut | None:
    dim %= len(shape_of(source))
    return _Cut(source, dim, *slice_ends(shape_of(source)[dim], start, end)) if step == 1 else None


def _constant(module: GraphModule, node: Any) -> Tensor | None:
    return getattr(module, str(node.target)) if isinstance(node, Node) and node.op == "get_attr" else None


def _is_identity(module: GraphModule, node: Any) -> bool:
    places = _constant(module, node)
    return places is not None and places.ndim == 1 and bool((places == torch.arange(len(places))).all())


def _is_zero(node: Any) -> bool:
    return isinstance(node, Node) and fill_value(node) == 0


def varying_shape(node: Node, known: dict[Node, tuple[int, ...]]) -> tuple[int, ...]:
    """Return a node's shape with 1 for every dimension along which its values are known to be equal.

    Args:
        node: any.
        known: shapes found so far; it grows.
    """
    if node not in known:
        known[node] = _varying_shape(node, known)
    return known[node]


def _varying_shape(node: Node, known: dict[Node, tuple[int, ...]]) -> tuple[int, ...]:
    shape = shape_of(node)
    if fill_value(node) is not None:
        return (1,) * len(shape)
    if node.target in ELEMENTWISE:
        parts = [varying_shape(a, known) for a in node.args if isinstance(a, Node)]
        found = np.broadcast_shapes(*parts)
        return (1,) * (len(shape) - len(found)) + tuple(found)
    origin = view_index(node, (0,) * len(shape))
    if origin is None:
        return shape
    source: Any = node.args[0]
    inner, varying = varying_shape(source, known), list(shape)
    for dim in range(len(shape)):
        moved = view_index(node, tuple(int(d == dim) for d in range(len(shape))))
        assert moved is not None
        along = [n for n, a, b in zip(inner, moved, origin, strict=True) if a != b]
        if all(n == 1 for n in along):
            varying[dim] = 1
    return tuple(varying)


def _multiply_by_reciprocals(module: GraphModule) -> None:
    """Turn divisions of many numbers by few into products with their reciprocals."""
    known: dict[Node, tuple[int, ...]] = {}
    reciprocals: dict[Node, Node] = {}
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.div.Tensor or node.kwargs or not isinstance(node.args[1], Node):
            continue
        over: Any = node.args[1]
        if math.prod(varying_shape(over, known)) >= math.prod(varying_shape(node, known)):
            continue
        if not over.meta["val"].dtype.is_floating_point:
            continue
        if over not in reciprocals:
            with graph.inserting_after(over):
                reciprocals[over] = graph.call_function(aten.reciprocal.default, (over,))
                reciprocals[over].meta["val"] = over.meta["val"]
        with graph.inserting_before(node):
            product = graph.call_function(aten.mul.Tensor, (node.args[0], reciprocals[over]))
            product.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(product)
        graph.erase_node(node)
