"""What a function depends on: the tensors that its closures hold, and a key for everything else.

A bound potential, mass or force is a closure over tensors that Pyro has just sampled. The code is
the same at every call and only the tensors change, so that what was compiled for one call serves
for all others whose key is equal.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Capture", "capture"]


class Capture:
    """The tensors and the key of a structure of functions.

    Attributes:
        tensors: every tensor found, once, in a fixed order.
        kept: objects whose identity is part of the key; they must stay alive while it is used.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.kept: list[Any] = []
        self._places: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self.key: Hashable = None

    def position(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor, `None` if it was not found."""
        return self._places.get(id(tensor))

    def walk(self, x: Any) -> Hashable:
        """Return the key of `x`, and note its tensors."""
        if isinstance(x, Tensor):
            return self._tensor(x)
        if x is None or isinstance(x, bool | int | float | str | bytes | torch.dtype | torch.device):
            return (type(x).__name__, x)
        if id(x) in self._seen:
            return ("seen", self._seen[id(x)])
        self._seen[id(x)] = len(self._seen)
        if isinstance(x, tuple | list):
            return (type(x), *(self.walk(item) for item in x))
        if isinstance(x, dict):
            return ("dict", *((str(key), self.walk(value)) for key, value in x.items()))
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return ("method", self.walk(x.__func__), self.walk(x.__self__))
        if isinstance(x, functools.partial):
            return ("partial", self.walk(x.func), self.walk(x.args), self.walk(x.keywords))
        if isinstance(x, torch.nn.Module):
            return self._module(x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return (type(x), *(self.walk(getattr(x, f.name)) for f in dataclasses.fields(x)))
        self.kept.append(x)
        return ("object", id(x))

    def _tensor(self, x: Tensor) -> Hashable:
        if id(x) not in self._places:
            self._places[id(x)] = len(self.tensors)
            self.tensors.append(x)
        return ("tensor", self._places[id(x)], tuple(x.shape), x.dtype)

    def _function(self, f: types.FunctionType) -> Hashable:
        cells = [_content(cell) for cell in f.__closure__ or ()]
        names = _global_names(f.__code__)
        outside = [(n, self.walk(f.__globals__[n])) for n in names if _is_walked(f.__globals__.get(n))]
        inside = [self.walk(v) for v in (*cells, f.__defaults__, f.__kwdefaults__)]
        return ("function", f.__code__, *inside, *outside)

    def _module(self, module: torch.nn.Module) -> Hashable:
        self.kept.append(module)
        held = [*module.parameters(), *module.buffers()]
        return ("module", id(module), module.training, *(self._tensor(t) for t in held))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@functools.cache
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that a function and those inside it may read from its module."""
    inner = [n for c in code.co_consts if isinstance(c, types.CodeType) for n in _global_names(c)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_walked(x: Any) -> bool:
    """Whether a global can change what a function computes: tensors, numbers and plain functions."""
    if isinstance(x, types.FunctionType):
        return (inspect.getmodule(x) or x).__name__.partition(".")[0] not in ("torch", "vinppl", "math")
    return isinstance(x, Tensor | bool | int | float)


def capture(*structures: Any) -> Capture:
    """Return the tensors and the key of some structures of functions."""
    found = Capture()
    found.key = tuple(found.walk(s) for s in structures)
    return found
