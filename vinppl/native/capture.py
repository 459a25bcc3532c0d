"""What a function depends on: the tensors that it reaches, and a key for everything else.

A bound potential, mass or force is a closure over tensors that Pyro has just sampled. The code is
the same at every call and only the tensors change, so that what was compiled for one call serves
for all others whose key is equal. Closures, arguments and attributes are followed, and what
functions read from their modules; numbers are part of the key, since they are compiled in.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinppl.native.errors import Unsupported

__all__ = ["Capture", "capture"]

LIMIT = 20_000
"""Objects to follow at most: who reaches more holds something that is not meant to be followed."""

MAX_KNOWN = 1000
"""Elements of a tensor of whole numbers whose values are part of a key."""

LIBRARIES = frozenset({"builtins", "math", "numpy", "pyro", "scipy", "torch", "vinppl"})
"""Packages whose modules and classes do not change while a program runs."""

HEAP_TYPE = 1 << 9
"""The flag of types that are made while a program runs, such as by a class statement."""


class Capture:
    """The tensors and the key of a structure of functions.

    Attributes:
        tensors: every tensor found, once, in a fixed order.
        known: those of whole numbers (indices, as a rule), whose values are part of the key.
        structure: the part of the key without numbers and identities.
        constants: those, in the order in which they were found.
        kept: objects whose identity is among them; they must stay alive while the key is used.
    """

    def __init__(self, structures: tuple[Any, ...]) -> None:
        self.tensors: list[Tensor] = []
        self.known: set[int] = set()
        self.constants: list[Hashable] = []
        self.kept: list[Any] = []
        self._places: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self.structure: Hashable = tuple(self._walk(s) for s in structures)

    @property
    def key(self) -> Hashable:
        """What must be equal for the same code."""
        return self.structure, tuple(self.constants)

    def position(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor, `None` if it was not found."""
        return self._places.get(id(tensor))

    def _walk(self, x: Any) -> Hashable:
        """Return the structure of `x`, and note its tensors and constants."""
        if isinstance(x, Tensor):
            return self._tensor(x)
        if isinstance(x, int | float | complex) and not isinstance(x, bool):
            self.constants.append((type(x), x.hex() if isinstance(x, float) else x))
            return None
        if x is None or isinstance(x, bool | str | bytes | torch.dtype | torch.device):
            return (type(x), x)
        if isinstance(x, np.ndarray | np.generic) and not x.dtype.hasobject:
            self.constants.append((x.dtype.str, x.shape, x.tobytes()))
            return None
        if id(x) in self._seen:
            return self._seen[id(x)]
        self._seen[id(x)] = len(self._seen)
        if len(self._seen) > LIMIT:
            raise Unsupported(f"a system that refers to more than {LIMIT} objects")
        if isinstance(x, tuple | list | set | frozenset):
            return (type(x), *(self._walk(item) for item in x))
        if isinstance(x, dict):
            return ("dict", *(self._walk(part) for item in x.items() for part in item))
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return ("method", self._walk(x.__func__), self._walk(x.__self__))
        if isinstance(x, functools.partial):
            return ("partial", self._walk(x.func), self._walk(x.args), self._walk(x.keywords))
        if isinstance(x, types.BuiltinMethodType) and isinstance(x.__self__, Tensor):
            return ("method", x.__name__, self._walk(x.__self__))
        kind: Any = type(x)
        if _is_written_in_python(kind):
            return (type(x), *(self._walk(part) for part in _state(x)))
        self.kept.append(x)
        self.constants.append(id(x))
        shared = _shared(x) if isinstance(x, type) else ()
        return (type(x), *(self._walk(v) for v in shared))

    def _tensor(self, x: Tensor) -> Hashable:
        if id(x) not in self._places:
            if _is_whole(x) and x.numel() <= MAX_KNOWN:
                self.known.add(len(self.tensors))
                self.constants.append(tuple(x.reshape(-1).tolist()))
            self._places[id(x)] = len(self.tensors)
            self.tensors.append(x)
        return ("tensor", self._places[id(x)], tuple(x.shape), x.dtype)

    def _function(self, f: types.FunctionType) -> Hashable:
        held = [*(_content(cell) for cell in f.__closure__ or ()), f.__defaults__, f.__kwdefaults__]
        if not _is_library(f.__module__):
            read, attributes = _names(f.__code__)
            held += [f.__globals__[n] for n in read if n in f.__globals__]
            modules = [x for x in held if isinstance(x, types.ModuleType) and not _is_library(x.__name__)]
            held += [vars(m)[n] for m in modules for n in attributes if n in vars(m)]
        return ("function", f.__code__, *map(self._walk, held))


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES


@functools.cache
def _is_written_in_python(kind: type) -> bool:
    """Whether all that an object of this type holds is in its attributes."""
    heap = all(c is object or c.__flags__ & HEAP_TYPE for c in kind.__mro__)
    plain = kind.__new__ is object.__new__ or isinstance(kind.__new__, types.FunctionType)
    return heap and plain and not issubclass(kind, type)


def _state(x: Any) -> list[Any]:
    """Return what an object written in Python holds."""
    slots = [s for c in type(x).__mro__ for s in vars(c).get("__slots__", ())]
    held = [getattr(x, s, None) for s in slots if s not in ("__dict__", "__weakref__")]
    return [getattr(x, "__dict__", None), *held, *_shared(type(x))]


def _shared(kind: type) -> list[Any]:
    """Return the attributes of a class that are numbers or tensors."""
    classes = [c for c in kind.__mro__ if not _is_library(c.__module__)]
    return [v for c in classes for v in vars(c).values() if isinstance(v, Tensor | bool | int | float)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@functools.cache
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the global names and the attributes that a function and those inside it may read."""
    read = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    attributes = list(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more, other = _names(inner)
            read, attributes = [*read, *more], [*attributes, *other]
    return tuple(dict.fromkeys(read)), tuple(dict.fromkeys(attributes))


def capture(*structures: Any) -> Capture:
    """Return the tensors and the key of some structures of functions.

    Raises:
        Unsupported: if they refer to more than `LIMIT` objects.
    """
    return Capture(structures)
