"""Nodes of a traced graph: their shapes and arguments, and where the elements of views come from.

A view computes nothing: an element of it is an element of its argument at another place, or, where
an operation fills a tensor, a number. An index has an entry for each dimension, a whole number or
anything that can be added and multiplied like one.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

__all__ = [
    "FILLS",
    "RESHAPES",
    "SPLITS",
    "VIEWS",
    "Index",
    "arguments_of",
    "broadcast",
    "fill_value",
    "is_truth",
    "reduced_dims",
    "same_up_to_ones",
    "shape_of",
    "size_of",
    "slice_ends",
    "source_of",
    "view_index",
]

aten = torch.ops.aten
Index = tuple[Any, ...]


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's value; of a number, `()`."""
    return tuple(node.meta["val"].shape) if isinstance(node, Node) else ()


def size_of(node: Any) -> int:
    """Return the number of elements of a node's value."""
    return math.prod(shape_of(node))


def is_truth(node: Node) -> bool:
    """Whether a node's values are truth values."""
    return bool(node.meta["val"].dtype == torch.bool)


def arguments_of(node: Node) -> list[Any]:
    """Return all arguments of a node's operation in the order of its signature, defaults filled in."""
    names = _signature(node.target)
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return [given.get(name, default) for name, default in names.items()]


@functools.cache
def _signature(target: Any) -> dict[str, Any]:
    """Return the names of an operation's arguments, and their defaults."""
    return {a.name: a.default_value for a in target._schema.arguments}


def reduced_dims(node: Node) -> set[int]:
    """Return the dimensions that a sum or a mean goes over: its second argument, or all of them."""
    rank = len(shape_of(node.args[0]))
    dims: Any = arguments_of(node)[1] if "dim" in _signature(node.target) else None
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    return {d % rank for d in dims if rank}


def broadcast(index: Sequence[Any], shape: Sequence[int]) -> Index:
    """Return the place in an argument of `shape` that belongs to a place in the broadcast result."""
    kept = index[len(index) - len(shape) :]
    return tuple(0 if n == 1 else i for i, n in zip(kept, shape, strict=True))


def same_up_to_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes differ in dimensions of length one only."""
    return [n for n in a if n != 1] == [n for n in b if n != 1]


# Views


def _select(index: Index, source: tuple[int, ...], dim: int, at: int) -> Index:
    dim %= len(source)
    return (*index[:dim], at % source[dim], *index[dim:])


def _slice(
    index: Index,
    source: tuple[int, ...],
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Index:
    dim %= len(source)
    first, _ = slice_ends(source[dim], start, end)
    return (*index[:dim], index[dim] * step + first, *index[dim + 1 :])


def slice_ends(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return where a slice of a dimension of that size begins and ends."""
    first, last, _ = slice(start, end).indices(size)
    return first, last


def _unsqueeze(index: Index, source: tuple[int, ...], dim: int) -> Index:
    dim %= len(source) + 1
    return (*index[:dim], *index[dim + 1 :])


def _squeeze(index: Index, source: tuple[int, ...], dims: int | Sequence[int] | None = None) -> Index:
    dims = range(len(source)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(source) for d in dims if source and source[d] == 1}
    rest = iter(index)
    return tuple(0 if d in gone else next(rest) for d in range(len(source)))


def _permute(index: Index, source: tuple[int, ...], order: Sequence[int]) -> Index:
    place: list[Any] = [None] * len(source)
    for i, d in zip(index, order, strict=True):
        place[d] = i
    return tuple(place)


def _transpose(index: Index, source: tuple[int, ...], a: int, b: int) -> Index:
    place = list(index)
    place[a], place[b] = place[b], place[a]
    return tuple(place)


def _expand(index: Index, source: tuple[int, ...], *_: Any, **__: Any) -> Index:
    return broadcast(index, source)


def _flip(index: Index, source: tuple[int, ...], dims: Sequence[int]) -> Index:
    turned = {d % len(source) for d in dims}
    return tuple(source[d] - 1 - i if d in turned else i for d, i in enumerate(index))


VIEWS: dict[Any, Callable[..., Index]] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unsqueeze.default: _unsqueeze,
    aten.unsqueeze_.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze_.dim: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: lambda index, source: tuple(reversed(index)),
    aten.expand.default: _expand,
    aten.flip.default: _flip,
}
"""Which element of the argument an element of the result is."""

RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
"""Operations that keep the elements and their order."""

SPLITS = frozenset({aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int})
"""Operations whose results are parts of their argument along a dimension."""


def view_index(node: Node, index: Index) -> Index | None:
    """Return which element of its argument an element of a view is; `None` if `node` is no view."""
    rule = VIEWS.get(node.target)
    return None if rule is None else rule(index, shape_of(node.args[0]), *node.args[1:], **node.kwargs)


def source_of(node: Node, index: Index) -> tuple[Any, Index] | None:
    """Return the node and its element that an element of a view, or of a part of a split, is.

    `None` for other nodes.
    """
    if node.target is operator.getitem:
        return _source_of_part(node, index)
    place = view_index(node, index)
    return None if place is None else (node.args[0], place)


def _source_of_part(node: Node, index: Index) -> tuple[Any, Index] | None:
    split: Any
    number: Any
    split, number = node.args
    if split.target not in SPLITS:
        return None
    source, *sizes, dim = arguments_of(split)
    dim %= len(shape_of(source))
    if split.target is aten.unbind.int:
        return source, (*index[:dim], number, *index[dim:])
    first = sizes[0] * number if isinstance(sizes[0], int) else sum(sizes[0][:number])
    return source, (*index[:dim], index[dim] + first, *index[dim + 1 :])


# Tensors of one number

FILLS: dict[Any, Callable[[Node], Any]] = {
    aten.full.default: lambda node: node.args[1],
    aten.full_like.default: lambda node: node.args[1],
    aten.new_full.default: lambda node: node.args[2],
    aten.scalar_tensor.default: lambda node: node.args[0],
    aten.zeros.default: lambda node: 0,
    aten.zeros_like.default: lambda node: 0,
    aten.new_zeros.default: lambda node: 0,
    aten.ones.default: lambda node: 1,
    aten.ones_like.default: lambda node: 1,
    aten.new_ones.default: lambda node: 1,
    aten.empty.memory_format: lambda node: 0,
    aten.empty_like.default: lambda node: 0,
    aten.empty_permuted.default: lambda node: 0,
    aten.new_empty.default: lambda node: 0,
    aten.new_empty_strided.default: lambda node: 0,
}
"""Operations whose result has one number everywhere, and which; any would do for an empty tensor."""


def fill_value(node: Node) -> float | bool | None:
    """Return what a node is filled with, a truth value if it holds such; `None` for other operations."""
    rule = FILLS.get(node.target)
    return None if rule is None else (bool if is_truth(node) else float)(rule(node))
