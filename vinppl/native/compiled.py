"""A compiled log density: called from Python, from other compiled code, and over batches of chains."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from vinppl._checks import require
from vinppl.native.builder import INDEX, POINTER, FunctionBuilder
from vinppl.native.compiler import compile_module, vector_width
from vinppl.native.density import DensityModule, emit_density
from vinppl.native.errors import Unsupported
from vinppl.native.simplify import simplify
from vinppl.native.tracing import trace_value_and_gradient
from vinppl.native.writer import DOUBLE

__all__ = ["CompiledDensity", "Whitened"]

Array = np.ndarray[Any, Any]
CONTEXT = ("constants", "tables", "centre", "factor")
"""Pointers that a call gets besides its point, in this order; without a factor, it is taken as it is."""

SINGLE = (ctypes.c_uint64, *[ctypes.c_void_p] * 4)
BATCH = (ctypes.c_int64, *[ctypes.c_void_p] * 4)


def _address(array: Array) -> int:
    """Return where an array lies; several times faster than its attribute `ctypes`."""
    address: int = array.__array_interface__["data"][0]
    return address


class CompiledDensity:
    """Value and gradient of a log density, in machine code.

    Args:
        function: differentiable function of a vector; what it holds besides is taken as constant.
        example: a vector in its domain, double precision.

    Attributes:
        size: number of variables.

    Raises:
        Unsupported: if something in it has no compiled form; the text names it.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        if example.dtype != torch.float64 or example.device.type != "cpu":
            raise Unsupported(f"a density of {example.dtype} on {example.device}")
        function(example)  # rollouts are traced on their own, beforehand
        self._graph = trace_value_and_gradient(function, example)
        simplify(self._graph)
        self.size = example.numel()
        module = DensityModule(self._graph)
        _emit_single(module.llvm, emit_density(module, "evaluate", 1))
        self._single = _Code(module, "single", SINGLE, ctypes.c_int64)
        self._context = self._single.context()

    @property
    def address(self) -> int:
        """Address of `int64 f(uint64 size, const double *x, double *gradient, double *value, void *context)`.

        It may be called by several threads at once, and returns 0 where the density is finite.
        """
        return self._single.address

    @property
    def context(self) -> int:
        """Address that the function wants as its last argument."""
        return _address(self._context)

    def value_and_gradient(self, u: Array) -> tuple[float, Array]:
        """Return the log density and its gradient at one point, shapes `()` and `(size,)`.

        Raises:
            ValueError: if the point is not of shape `(size,)`.
        """
        return self._evaluate(u, self.context)

    def batch_value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        """Return log densities `(chains,)` and gradients `(chains, size)` at points `(chains, size)`.

        Raises:
            ValueError: if the points are not of shape `(chains, size)`.
        """
        points = np.ascontiguousarray(points, dtype=np.float64)
        require(
            points.ndim == 2 and points.shape[1] == self.size,
            f"the points must have shape (chains, {self.size})",
            points,
        )
        values, gradients = np.empty(len(points)), np.empty_like(points)
        if self._batch is None:
            for i, point in enumerate(points):
                values[i], gradients[i] = self.value_and_gradient(point)
            return values, gradients
        code, context = self._batch
        arrays = (points, values, gradients, context)
        code.function(len(points), *(a.ctypes.data for a in arrays))
        return values, gradients

    def whitened(self, centre: Array, factor: Array) -> Whitened:
        """Return the density as a function of x, where u = centre + factor x.

        Args:
            centre: shape `(size,)`.
            factor: shape `(size, size)`.

        Raises:
            ValueError: for other shapes.
        """
        require(centre.shape == (self.size,), f"the centre must have shape ({self.size},)", centre)
        require(
            factor.shape == (self.size, self.size), f"the factor must be {self.size} x {self.size}", factor
        )
        return Whitened(self, centre, factor)

    def _evaluate(self, u: Array, context: int) -> tuple[float, Array]:
        u = np.ascontiguousarray(u, dtype=np.float64)
        if u.shape != (self.size,):
            require(False, f"the point must have shape ({self.size},)", u)
        found = np.empty(self.size + 1)  # the value, then the gradient
        place = _address(found)
        self._single.function(self.size, _address(u), place + 8, place, context)
        return float(found[0]), found[1:]

    @functools.cached_property
    def _batch(self) -> tuple[_Code, Array] | None:
        """The function for several chains side by side, and its context; `None` where there is none."""
        module, lanes = DensityModule(self._graph), vector_width(DOUBLE.bytes)
        try:
            workspace = emit_density(module, "evaluate", lanes)
        except Unsupported:
            return None
        _emit_batch(module.llvm, workspace, lanes, self.size)
        code = _Code(module, "batch", BATCH)
        return code, code.context()


class _Code:
    """A compiled function, and the constants that it reads.

    Attributes:
        function: to call with integers and addresses.
        address: of the function.
    """

    def __init__(
        self, module: DensityModule, name: str, arguments: Sequence[Any], result: Any = None
    ) -> None:
        library = compile_module(module.llvm)
        self.function, self.address = library.function(name, arguments, result), library.address(name)
        self._constants = module.constants.arrays()

    def context(self, centre: Array | None = None, factor: Array | None = None) -> Array:
        """Return the array of pointers that a call wants; both arguments must outlive it."""
        arrays = (*self._constants, centre, factor)
        return np.array([0 if a is None else a.ctypes.data for a in arrays], dtype=np.uintp)


class Whitened:
    """A compiled density in other coordinates, for samplers written in compiled languages.

    Attributes:
        address: as of `CompiledDensity`.
        user_data: address to pass as the last argument.
    """

    def __init__(self, density: CompiledDensity, centre: Array, factor: Array) -> None:
        self._density = density  # keeps code and constants alive
        self._centre = np.array(centre, dtype=np.float64, order="C")
        self._factor = np.array(factor, dtype=np.float64, order="C")
        self._context = density._single.context(self._centre, self._factor)
        self.address = density.address
        self.user_data = int(self._context.ctypes.data)

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        """Return the log density and its gradient with respect to x, at one point `(size,)`.

        Raises:
            ValueError: if the point is not of shape `(size,)`.
        """
        return self._density._evaluate(x, self.user_data)


def _emit_single(module: ir.Module, workspace: int) -> None:
    """Write `single`, which moves a point into the density's coordinates and its gradient back."""
    b = FunctionBuilder(module, "single", [INDEX] + [POINTER] * 4, lanes=1, precision=DOUBLE, result=INDEX)
    size, x, gradient, value, context = b.arguments
    constants, tables, centre, factor = (b.load_pointer(context, i) for i in range(len(CONTEXT)))
    memory, start = b.allocate(b.flat(size, 2, workspace))
    u = b.offset(start, b.index(workspace))
    slope = b.offset(u, size)
    evaluate = module.globals["evaluate"]
    plain = b.ir.icmp_unsigned("==", b.ir.ptrtoint(factor, INDEX), b.index(0))
    with b.ir.if_else(plain) as (as_it_is, moved):
        with as_it_is:
            b.ir.call(evaluate, [x, value, gradient, constants, tables, start])
        with moved:
            _move_point(b, x, centre, factor, u)
            b.ir.call(evaluate, [u, value, slope, constants, tables, start])
            _pull_gradient(b, slope, factor, gradient)
    b.free(memory)
    total = b.variable(b.intrinsic("fabs", b.load(value, b.index(0))))
    with b.loop(size) as i:
        b.set(total, b.add(b.get(total), b.intrinsic("fabs", b.load(gradient, i))))
    finite = b.compare("<", b.get(total), b.const(math.inf))
    b.finish(b.ir.select(finite, b.index(0), b.index(1)))


def _move_point(b: FunctionBuilder, x: Any, centre: Any, factor: Any, u: Any) -> None:
    """Write u = centre + factor x."""
    size = b.arguments[0]
    with b.loop(size) as i:
        total = b.variable(b.load(centre, i))
        with b.loop(size) as j:
            b.grow(total, b.mul(b.load(factor, b.flat(i, size, j)), b.load(x, j)))
        b.store(b.get(total), u, i)


def _pull_gradient(b: FunctionBuilder, slope: Any, factor: Any, gradient: Any) -> None:
    """Write gradient = factor^T slope."""
    size = b.arguments[0]
    with b.loop(size) as j:
        b.store(b.const(0.0), gradient, j)
    with b.loop(size) as i:
        weight = b.load(slope, i)
        with b.loop(size) as j:
            b.add_one(b.mul(weight, b.load(factor, b.flat(i, size, j))), gradient, j)


def _emit_batch(module: ir.Module, workspace: int, lanes: int, size: int) -> None:
    """Write `batch`, which advances through the chains a block of lanes at a time."""
    b = FunctionBuilder(module, "batch", [INDEX] + [POINTER] * 4, lanes=1, precision=DOUBLE)
    count, points, values, gradients, context = b.arguments
    constants, tables = (b.load_pointer(context, i) for i in range(2))
    memory, start = b.allocate(workspace + lanes * (2 * size + 1))
    x = b.offset(start, b.index(workspace))
    slope = b.offset(x, b.index(lanes * size))
    value = b.offset(slope, b.index(lanes * size))
    last = b.ir.sub(count, b.index(1))

    def chain(first: Any, lane: Any) -> Any:
        """Return the chain of a lane; the last one for lanes beyond it."""
        number = b.plus(first, lane)
        return b.ir.select(b.ir.icmp_signed(">", number, last), last, number)

    with b.loop(count, step=lanes) as first:
        with b.loop(b.index(lanes)) as lane:
            number = chain(first, lane)
            with b.loop(b.index(size)) as i:
                b.store(b.load(points, b.flat(number, size, i)), x, b.flat(i, lanes, lane))
        b.ir.call(module.globals["evaluate"], [x, value, slope, constants, tables, start])
        with b.loop(b.index(lanes)) as lane:
            number = chain(first, lane)
            b.store(b.load(value, lane), values, number)
            with b.loop(b.index(size)) as i:
                b.store(b.load(slope, b.flat(i, lanes, lane)), gradients, b.flat(number, size, i))
    b.free(memory)
    b.finish()
