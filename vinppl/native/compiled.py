"""A compiled log density: called from Python, from other compiled code, and over batches of chains."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision
from vinppl.native.compiler import compile_module, vector_width
from vinppl.native.density import DensityModule, emit_density
from vinppl.native.errors import Unsupported
from vinppl.native.simplify import simplify
from vinppl.native.tracing import trace_value_and_gradient

__all__ = ["CompiledDensity", "Whitened"]

Array = np.ndarray[Any, Any]
DOUBLE = Precision("float64")
CONTEXT = ("constants", "tables", "centre", "factor")
"""Pointers that a call gets besides its point; without a factor, the point is taken as it is."""

SINGLE = [ctypes.c_uint64] + [ctypes.c_void_p] * 4
BATCH = [ctypes.c_int64] + [ctypes.c_void_p] * 4


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
        graph = trace_value_and_gradient(function, example)
        simplify(graph)
        self.size = example.numel()
        self._module = DensityModule(graph)
        workspace = emit_density(self._module, "evaluate_1", 1)
        _emit_single(self._module.llvm, workspace)
        self._library = compile_module(self._module.llvm)
        self._arrays = self._module.constants.arrays()
        self._single = self._library.function("single", SINGLE, ctypes.c_int64)
        self._context = self._make_context(None, None)
        self._batch: Any = None

    @property
    def address(self) -> int:
        """Address of `int64 f(uint64 size, const double *x, double *gradient, double *value, void *context)`.

        It may be called by several threads at once, and returns 0 where the density is finite.
        """
        return self._library.address("single")

    @property
    def context(self) -> int:
        """Address that the function wants as its last argument."""
        return int(self._context.ctypes.data)

    def value_and_gradient(self, u: Array) -> tuple[float, Array]:
        """Return the log density and its gradient at one point, `(size,)`."""
        u = np.ascontiguousarray(u, dtype=np.float64)
        value, gradient = np.empty(1), np.empty(self.size)
        self._single(self.size, u.ctypes.data, gradient.ctypes.data, value.ctypes.data, self.context)
        return float(value[0]), gradient

    def batch_value_and_gradient(self, points: Array) -> tuple[Array, Array]:
        """Return log densities `(chains,)` and gradients `(chains, size)` at points `(chains, size)`."""
        points = np.ascontiguousarray(points, dtype=np.float64)
        values, gradients = np.empty(len(points)), np.empty_like(points)
        if self._batch is None:
            self._batch = self._compile_batch()
        context = self.context
        if self._batch is False:
            for point, gradient, i in zip(points, gradients, range(len(points)), strict=True):
                self._single(self.size, point.ctypes.data, gradient.ctypes.data, values[i:].ctypes.data, context)
        else:
            arrays = (points.ctypes.data, values.ctypes.data, gradients.ctypes.data)
            self._batch[0](len(points), *arrays, context)
        return values, gradients

    def whitened(self, centre: Array, factor: Array) -> Whitened:
        """Return the density as a function of x, where u = centre + factor x."""
        return Whitened(self, centre, factor)

    def _make_context(self, centre: Array | None, factor: Array | None) -> Array:
        arrays = (*self._arrays, centre, factor)
        return np.array([0 if a is None else a.ctypes.data for a in arrays], dtype=np.uintp)

    def _compile_batch(self) -> Any:
        """Return the function for several chains side by side; false where it has no compiled form."""
        module = DensityModule(self._module.graph)
        lanes = vector_width(DOUBLE.bytes)
        try:
            workspace = emit_density(module, "evaluate", lanes)
        except Unsupported:
            return False
        _emit_batch(module.llvm, workspace, lanes, self.size)
        library = compile_module(module.llvm)
        # Constants are laid out in the order they are met, which need not be that of one chain.
        arrays = module.constants.arrays()
        function = library.function("batch", BATCH)
        context = np.array([a.ctypes.data for a in arrays] + [0, 0], dtype=np.uintp)

        def call(count: int, points: int, values: int, gradients: int, _: int) -> None:
            function(count, points, values, gradients, context.ctypes.data)

        return call, library, arrays, context


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
        self._context = density._make_context(self._centre, self._factor)
        self.address = density.address
        self.user_data = int(self._context.ctypes.data)

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        """Return the log density and its gradient with respect to x, at one point `(size,)`."""
        x = np.ascontiguousarray(x, dtype=np.float64)
        value, gradient = np.empty(1), np.empty(self._density.size)
        self._density._single(len(x), x.ctypes.data, gradient.ctypes.data, value.ctypes.data, self.user_data)
        return float(value[0]), gradient


def _context_pointer(b: FunctionBuilder, context: Any, name: str) -> Any:
    pointers = b.ir.bitcast(context, POINTER.as_pointer())
    return b.ir.load(b.ir.gep(pointers, [b.index(CONTEXT.index(name))]))


def _allocate(b: FunctionBuilder, numbers: int, lanes: int) -> tuple[Any, Any]:
    """Return allocated memory, and its first address that is a multiple of a vector register."""
    malloc = b.declare("malloc", POINTER, INDEX)
    memory = b.ir.call(malloc, [b.index(8 * numbers + 64)])
    start = b.ir.and_(b.ir.add(b.ir.ptrtoint(memory, INDEX), b.index(63)), b.index(-64))
    return memory, b.ir.inttoptr(start, POINTER)


def _free(b: FunctionBuilder, memory: Any) -> None:
    b.ir.call(b.declare("free", ir.VoidType(), POINTER), [memory])


def _emit_single(module: ir.Module, workspace: int) -> None:
    """Write `single`, which moves a point into the density's coordinates and its gradient back."""
    b = FunctionBuilder(module, "single", [INDEX] + [POINTER] * 4, lanes=1, precision=DOUBLE, result=INDEX)
    size, x, gradient, value, context = b.arguments
    constants, tables, centre, factor = (_context_pointer(b, context, name) for name in CONTEXT)
    malloc = b.declare("malloc", POINTER, INDEX)
    bytes_ = b.ir.mul(b.ir.add(b.index(workspace), b.ir.mul(size, b.index(2))), b.index(8))
    memory = b.ir.call(malloc, [bytes_])
    u, slope = b.offset(memory, b.index(workspace)), b.offset(memory, b.ir.add(b.index(workspace), size))
    plain = b.ir.icmp_unsigned("==", b.ir.ptrtoint(factor, INDEX), b.index(0))
    evaluate = module.globals["evaluate_1"]
    with b.ir.if_else(plain) as (as_it_is, moved):
        with as_it_is:
            b.ir.call(evaluate, [x, value, gradient, constants, tables, memory])
        with moved:
            with b.loop(size) as i:
                total = b.variable(b.load(centre, i))
                with b.loop(size) as j:
                    product = b.mul(b.load(factor, b.ir.add(b.ir.mul(i, size), j)), b.load(x, j))
                    b.set(total, b.accumulate(b.get(total), product))
                b.store(b.get(total), u, i)
            b.ir.call(evaluate, [u, value, slope, constants, tables, memory])
            with b.loop(size) as j:
                b.store(b.const(0.0), gradient, j)
            with b.loop(size) as i:
                weight = b.load(slope, i)
                with b.loop(size) as j:
                    product = b.mul(weight, b.load(factor, b.ir.add(b.ir.mul(i, size), j)))
                    b.store(b.add(b.load(gradient, j), product), gradient, j)
    _free(b, memory)
    total = b.variable(b.intrinsic("fabs", b.load(value, b.index(0))))
    with b.loop(size) as i:
        b.set(total, b.add(b.get(total), b.intrinsic("fabs", b.load(gradient, i))))
    finite = b.compare("<", b.get(total), b.const(float("inf")))
    b.finish(b.ir.select(finite, b.index(0), b.index(1)))


def _emit_batch(module: ir.Module, workspace: int, lanes: int, size: int) -> None:
    """Write `batch`, which advances through the chains a block of lanes at a time."""
    b = FunctionBuilder(module, "batch", [INDEX] + [POINTER] * 4, lanes=1, precision=DOUBLE)
    count, points, values, gradients, context = b.arguments
    constants, tables = (_context_pointer(b, context, name) for name in CONTEXT[:2])
    memory, start = _allocate(b, workspace + lanes * (2 * size + 1), lanes)
    x = b.offset(start, b.index(workspace))
    slope, value = b.offset(x, b.index(lanes * size)), b.offset(x, b.index(2 * lanes * size))
    last = b.ir.sub(count, b.index(1))

    def chain(first: Any, lane: Any) -> tuple[Any, Any]:
        """Return the chain of a lane, the last one for lanes beyond it, and whether it is beyond."""
        number = b.ir.add(first, lane)
        beyond = b.ir.icmp_signed(">", number, last)
        return b.ir.select(beyond, last, number), beyond

    with b.loop(count, step=lanes) as first:
        with b.loop(b.index(lanes)) as lane:
            number, _ = chain(first, lane)
            with b.loop(b.index(size)) as i:
                one = b.load(points, b.ir.add(b.ir.mul(number, b.index(size)), i))
                b.store(one, x, b.ir.add(b.ir.mul(i, b.index(lanes)), lane))
        b.ir.call(module.globals["evaluate"], [x, value, slope, constants, tables, start])
        with b.loop(b.index(lanes)) as lane:
            number, _ = chain(first, lane)
            b.store(b.load(value, lane), values, number)
            with b.loop(b.index(size)) as i:
                one = b.load(slope, b.ir.add(b.ir.mul(i, b.index(lanes)), lane))
                b.store(one, gradients, b.ir.add(b.ir.mul(number, b.index(size)), i))
    _free(b, memory)
    b.finish()
