"""Where the tensors of a compiled function lie: indices, places in memory, and blocks of constants."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Affine", "Buffer", "Constants", "Memory", "Place", "dot", "row_major"]

Array = np.ndarray[Any, Any]


class Affine:
    """An index that is a whole-number combination of values, such as the counters of loops.

    Attributes:
        terms: the factor of each value.
        constant: what is added to them.
    """

    __slots__ = ("constant", "terms")

    def __init__(self, terms: Mapping[Any, int], constant: int = 0) -> None:
        self.terms = {value: factor for value, factor in terms.items() if factor}
        self.constant = constant

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.constant + other)
        terms = dict(self.terms)
        for value, factor in other.terms.items():
            terms[value] = terms.get(value, 0) + factor
        return Affine(terms, self.constant + other.constant)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        return Affine({v: f * factor for v, f in self.terms.items()}, self.constant * factor)

    __rmul__ = __mul__

    def __sub__(self, other: Affine | int) -> Affine:
        return self + other * -1

    def __rsub__(self, other: int) -> Affine:
        return self * -1 + other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and (self.terms, self.constant) == (other.terms, other.constant)

    def __hash__(self) -> int:
        return hash((frozenset(self.terms.items()), self.constant))


Place = Affine | int
"""One entry of an index."""


def dot(index: Sequence[Place], strides: Sequence[int]) -> Place:
    """Return the distance of an element from the first one."""
    total: Place = 0
    for i, stride in zip(index, strides, strict=True):
        total = i * stride + total
    return total


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array without gaps."""
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return tuple(reversed(strides))


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
    constant: bool = False
    truth: bool = False

    def place(self, index: Sequence[Place]) -> Place:
        """Return where an element lies."""
        return dot(index, self.strides) + self.offset


class Memory:
    """Hands out places in a block, first fit.

    Attributes:
        size: length of the block.
    """

    def __init__(self) -> None:
        self.size = 0
        self._used: dict[Hashable, tuple[int, int]] = {}

    def take(self, owner: Hashable, size: int) -> int:
        """Return the offset, a multiple of 8, of `size` elements that are the owner's until released."""
        size = -(-max(1, size) // 8) * 8
        offset = 0
        for start, length in sorted(self._used.values()):
            if start - offset >= size:
                break
            offset = max(offset, start + length)
        self._used[owner] = (offset, size)
        self.size = max(self.size, offset + size)
        return offset

    def release(self, owner: Hashable) -> None:
        """Let the elements of an owner be used again."""
        self._used.pop(owner, None)


class Constants:
    """The constant tensors of a graph: numbers in one block, tables of indices in another."""

    def __init__(self) -> None:
        self._numbers, self._tables = _Block(torch.float64), _Block(torch.int64)

    def number(self, name: str, tensor: Tensor) -> int:
        """Return the place of a tensor's numbers; a name stands for one tensor."""
        return self._numbers.place(name, tensor)

    def table(self, name: str, tensor: Tensor) -> int:
        """Return the place of a tensor of indices; a name stands for one tensor."""
        return self._tables.place(name, tensor)

    def arrays(self) -> tuple[Array, Array]:
        """Return both blocks: numbers in double precision, indices as 64-bit integers."""
        return self._numbers.array(), self._tables.array()


class _Block:
    """Tensors one after the other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._parts, self._size = dtype, [torch.zeros(0, dtype=dtype)], 0
        self._places: dict[str, int] = {}

    def place(self, name: str, tensor: Tensor) -> int:
        if name not in self._places:
            self._places[name] = self._size
            self._parts.append(tensor.detach().to(self._dtype).reshape(-1))
            self._size += tensor.numel()
        return self._places[name]

    def array(self) -> Array:
        return torch.cat(self._parts).numpy()
