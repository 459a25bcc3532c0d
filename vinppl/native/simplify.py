"""Removes detours from a traced graph: what is computed twice, indexed by the identity, or masked by nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from vinppl.native.elementwise import ELEMENTWISE, IDENTITIES
from vinppl.native.views import RESHAPES, shape_of, view_index

__all__ = ["simplify", "varying_shape"]

aten = torch.ops.aten
ZERO_FILLS = frozenset({aten.full.default, aten.zeros.default, aten.zeros_like.default, aten.full_like.default})


def simplify(module: GraphModule) -> None:
    """Rewrite a graph in place; its results stay equal up to rounding."""
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


def _share_equal_nodes(module: GraphModule) -> None:
    known: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            key: Any = getattr(module, str(node.target))
            key = ("constant", id(key))
        elif node.op == "call_function" and "vinppl" not in str(node.target):
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


def _constant(module: GraphModule, node: Any) -> torch.Tensor | None:
    return getattr(module, str(node.target)) if isinstance(node, Node) and node.op == "get_attr" else None


def _same_as(module: GraphModule, node: Node) -> Node | None:
    """Return an earlier node of the same value and shape, if one is known."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    candidate: Any = None
    if node.target is aten.where.self:
        mask = _constant(module, node.args[0])
        if mask is not None and bool(mask.all()):
            candidate = node.args[1]
        elif mask is not None and not bool(mask.any()):
            candidate = node.args[2]
    elif node.target in IDENTITIES:
        candidate = node.args[0]
    elif node.target is aten.index_select.default:
        candidate = node.args[0] if _is_identity(module, node.args[2]) else None
    elif node.target is aten.index_put.default and _is_zero(node.args[0]):
        places: Any = node.args[1]
        used = [p for p in places if p is not None]
        if len(used) == 1 and _is_identity(module, used[0]):
            candidate = node.args[2]
    elif node.target is aten.cat.default:
        candidate = _joined(node)
    elif node.target is aten.add.Tensor and not node.kwargs:
        candidate = _filled_in(node)
    elif node.target in RESHAPES or node.target is aten.expand.default:
        candidate = node.args[0]
    elif node.target is aten.mul.Tensor or node.target is aten.mul.Scalar:
        candidate = node.args[0] if node.args[1] == 1 else None
    if isinstance(candidate, Node) and shape_of(candidate) == shape_of(node):
        same_type = candidate.meta["val"].dtype == node.meta["val"].dtype
        return candidate if same_type else None
    return None


def _is_identity(module: GraphModule, node: Any) -> bool:
    places = _constant(module, node)
    return places is not None and places.ndim == 1 and bool((places == torch.arange(len(places))).all())


def _is_zero(node: Any) -> bool:
    if not isinstance(node, Node) or node.target not in ZERO_FILLS:
        return False
    filled = node.target in (aten.full.default, aten.full_like.default)
    return not filled or node.args[1] == 0


def _part(node: Any) -> tuple[Node, int, int, int] | None:
    """Return the source, dimension, start and end of a slice of step one."""
    if not isinstance(node, Node) or node.target is not aten.slice.Tensor:
        return None
    return _range(node.args[0], node.args[1:], shape_of(node.args[0]))


def _range(source: Any, arguments: Any, shape: tuple[int, ...]) -> tuple[Node, int, int, int] | None:
    dim, start, end, step = (*arguments, *(0, None, None, 1)[len(arguments) :])
    dim, size = dim % len(shape), shape[dim % len(shape)]
    first = 0 if start is None else max(0, start + size if start < 0 else start)
    last = size if end is None else min(size, end + size if end < 0 else end)
    return (source, dim, first, last) if step == 1 else None


def _joined(node: Node) -> Node | None:
    """Return what a concatenation of neighbouring slices was cut from."""
    parts: Any = node.args[0]
    dim = (node.args[1] if len(node.args) > 1 else 0) % max(1, len(shape_of(node)))  # type: ignore[operator]
    cuts = [_part(p) for p in parts]
    if any(c is None or c[0] is not cuts[0][0] or c[1] != dim for c in cuts):  # type: ignore[index]
        return None
    ends = [0, *(c[3] for c in cuts if c is not None)]
    if any(c[2] != end for c, end in zip(cuts, ends, strict=False)):  # type: ignore[index]
        return None
    return cuts[0][0]  # type: ignore[index]


def _filled_in(node: Node) -> Node | None:
    """Return x where a sum puts all slices of x back to where they were, into zeros."""
    places = []
    for term in node.args:
        if not isinstance(term, Node) or term.target is not aten.slice_scatter.default or term.kwargs:
            return None
        base, source, *rest = term.args
        target = _range(term, rest, shape_of(term))
        cut = _part(source)
        if not _is_zero(base) or cut is None or target is None or cut[1:] != target[1:]:
            return None
        places.append(cut)
    (first, dim, *_), (second, other, *_) = places
    spans = sorted(p[2:] for p in places)
    size = shape_of(node)[dim]
    whole = spans[0][0] == 0 and spans[0][1] == spans[1][0] and spans[1][1] == size
    return first if first is second and dim == other and whole else None


def varying_shape(node: Any, known: dict[Node, tuple[int, ...]]) -> tuple[int, ...]:
    """Return a node's shape with 1 for every dimension along which its values are known to be equal."""
    if not isinstance(node, Node):
        return ()
    if node in known:
        return known[node]
    shape = shape_of(node)
    found = shape
    if node.op == "call_function":
        if node.target is aten.expand.default:
            inner = varying_shape(node.args[0], known)
            found = (1,) * (len(shape) - len(inner)) + inner
        elif node.target in ELEMENTWISE:
            found = torch.broadcast_shapes(*(varying_shape(a, known) for a in node.args if isinstance(a, Node)))
            found = (1,) * (len(shape) - len(found)) + tuple(found)
        elif node.target in (aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.select.int, aten.permute.default, aten.slice.Tensor):
            found = _through_view(node, known)
    known[node] = found
    return found


def _through_view(node: Node, known: dict[Node, tuple[int, ...]]) -> tuple[int, ...]:
    """Return which dimensions of a view vary: those that move along a varying one of its source."""
    shape, inner = shape_of(node), varying_shape(node.args[0], known)
    origin = view_index(node, (0,) * len(shape))
    found = list(shape)
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        moved = view_index(node, tuple(int(d == dim) for d in range(len(shape))))
        assert moved is not None and origin is not None
        along = [d for d, (a, b) in enumerate(zip(moved, origin, strict=True)) if a != b]
        if all(inner[d] == 1 for d in along):
            found[dim] = 1
    return tuple(found)


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
