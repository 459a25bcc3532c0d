"""Writes LLVM functions whose values are lanes: one number, or several trajectories side by side.

A thin layer over `llvmlite.ir`. Every floating value of a function has the same
number of lanes, so that arithmetic on several trajectories (or chains) is one
vector instruction. Arrays are plain pointers, indexed in units of the lanes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

__all__ = ["INDEX", "POINTER", "FunctionBuilder", "Precision", "new_module"]

INDEX = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
LANE = ir.IntType(32)  # the number of a lane
BIT = ir.IntType(1)
CACHE_LINE = 64  # bytes; also those of the longest vector register
FLAGS = ("contract",)  # lets a product and a sum become one fused operation; keeps NaN and infinity


class Precision:
    """A floating type: its LLVM type, and the layout of its bits."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.type = {"float64": ir.DoubleType(), "float32": ir.FloatType()}[dtype]
        self.integer = ir.IntType({"float64": 64, "float32": 32}[dtype])
        info = np.finfo(dtype)
        self.mantissa, self.bytes, self.suffix = int(info.nmant), info.bits // 8, f"f{info.bits}"
        self.bias = int(info.maxexp) - 1
        self.smallest_normal = float(info.smallest_normal)

    def round(self, value: float) -> float:
        """Return the nearest number of this type."""
        return float(np.dtype(self.dtype).type(value))


def new_module(name: str) -> ir.Module:
    """Return an empty module."""
    return ir.Module(name=name)


class FunctionBuilder:
    """One function under construction.

    Args:
        module: where it goes.
        name: its name.
        arguments: types of its arguments.
        lanes: numbers in every floating value.
        precision: their type.
        result: return type; void if `None`.
    """

    def __init__(
        self,
        module: ir.Module,
        name: str,
        arguments: Sequence[ir.Type],
        *,
        lanes: int,
        precision: Precision,
        result: ir.Type | None = None,
        internal: bool = False,
    ) -> None:
        self.module, self.lanes, self.precision = module, lanes, precision
        self.function = ir.Function(module, ir.FunctionType(result or ir.VoidType(), arguments), name)
        if internal:
            self.function.linkage = "internal"
        for argument in self.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        self._entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.ir = ir.IRBuilder(self.function.append_basic_block("body"))
        self._start = self.ir.block
        self.arguments = list(self.function.args)

    @property
    def type(self) -> ir.Type:
        """Type of a floating value."""
        return self._of_lanes(self.precision.type)

    @property
    def integer_type(self) -> ir.Type:
        """Integers as wide as, and as many as, the floating values."""
        return self._of_lanes(self.precision.integer)

    @property
    def mask_type(self) -> ir.Type:
        """Truth values, one for each lane."""
        return self._of_lanes(BIT)

    def _of_lanes(self, kind: ir.Type) -> ir.Type:
        return kind if self.lanes == 1 else ir.VectorType(kind, self.lanes)

    def finish(self, value: Any = None) -> ir.Function:
        """Return from the function and close it."""
        if value is None:
            self.ir.ret_void()
        else:
            self.ir.ret(value)
        self._entry.branch(self._start)
        return self.function

    # Values

    def const(self, value: float) -> ir.Constant:
        """Return a number in all lanes."""
        return self._splat_constant(self.one(value), self.type)

    def one(self, value: float) -> ir.Constant:
        """Return a number in one lane, whatever the lanes."""
        return ir.Constant(self.precision.type, self.precision.round(value))

    def int_const(self, value: int) -> ir.Constant:
        """Return an integer in all lanes."""
        return self._splat_constant(ir.Constant(self.precision.integer, value), self.integer_type)

    def mask_const(self, value: bool) -> ir.Constant:
        """Return a truth value in all lanes."""
        return self._splat_constant(ir.Constant(BIT, int(value)), self.mask_type)

    def _splat_constant(self, scalar: ir.Constant, kind: ir.Type) -> ir.Constant:
        return scalar if self.lanes == 1 else ir.Constant(kind, [scalar] * self.lanes)

    def splat(self, scalar: Any) -> Any:
        """Return a scalar in all lanes."""
        if self.lanes == 1:
            return scalar
        empty = ir.Constant(self.type, ir.Undefined)
        first = self.ir.insert_element(empty, scalar, ir.Constant(LANE, 0))
        return self.ir.shuffle_vector(first, empty, ir.Constant(self._of_lanes(LANE), [0] * self.lanes))

    def add(self, a: Any, b: Any) -> Any:
        """a + b"""
        return self.ir.fadd(a, b, flags=FLAGS)

    def sub(self, a: Any, b: Any) -> Any:
        """a - b"""
        return self.ir.fsub(a, b, flags=FLAGS)

    def mul(self, a: Any, b: Any) -> Any:
        """a b"""
        return self.ir.fmul(a, b, flags=FLAGS)

    def div(self, a: Any, b: Any) -> Any:
        """a / b"""
        return self.ir.fdiv(a, b)

    def neg(self, a: Any) -> Any:
        """-a"""
        return self.ir.fneg(a)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def accumulate(self, total: Any, term: Any) -> Any:
        """total + term, where the order of the sum is free."""
        return self.ir.fadd(total, term, flags=("contract", "reassoc"))

    def compare(self, relation: str, a: Any, b: Any) -> Any:
        """Compare as C does: false against NaN, except `!=`."""
        unordered = relation == "!="
        return (self.ir.fcmp_unordered if unordered else self.ir.fcmp_ordered)(relation, a, b)

    def select(self, mask: Any, a: Any, b: Any) -> Any:
        """a where the mask holds, else b."""
        return self.ir.select(mask, a, b)

    def intrinsic(self, name: str, *arguments: Any) -> Any:
        """Call LLVM's own function of that name (`sqrt`, `fabs`, `rint`, `floor`, `fma`, ...)."""
        suffix = self.precision.suffix if self.lanes == 1 else f"v{self.lanes}{self.precision.suffix}"
        function = self.declare(f"llvm.{name}.{suffix}", self.type, *(a.type for a in arguments))
        return self.ir.call(function, arguments)

    def sum_lanes(self, x: Any) -> Any:
        """Return the sum over the lanes of a value, one number, in any order."""
        if self.lanes == 1:
            return x
        kind = self.precision.type
        name = f"llvm.vector.reduce.fadd.v{self.lanes}{self.precision.suffix}"
        reduce = self.declare(name, kind, kind, x.type)
        return self.ir.call(reduce, [ir.Constant(kind, -0.0), x], fastmath=("reassoc",))

    def declare(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """Return a function of the module, declared if it is not there."""
        known = self.module.globals.get(name)
        return ir.Function(self.module, ir.FunctionType(result, arguments), name) if known is None else known

    def call_libm(self, name: str, *arguments: Any) -> Any:
        """Call the C library's function lane by lane, in double precision."""
        double = ir.DoubleType()
        function = self.declare(name, double, *([double] * len(arguments)))
        narrow = self.precision.dtype == "float32"

        def one(values: Sequence[Any]) -> Any:
            wide = [self.ir.fpext(v, double) if narrow else v for v in values]
            out = self.ir.call(function, wide)
            return self.ir.fptrunc(out, self.precision.type) if narrow else out

        if self.lanes == 1:
            return one(arguments)
        result: Any = ir.Constant(self.type, ir.Undefined)
        for lane in range(self.lanes):
            at = ir.Constant(LANE, lane)
            value = one([self.ir.extract_element(a, at) for a in arguments])
            result = self.ir.insert_element(result, value, at)
        return result

    # Memory

    def index(self, value: Any) -> Any:
        """Return an index, of a whole number."""
        return ir.Constant(INDEX, value) if isinstance(value, int) else value

    def flat(self, row: Any, width: Any, column: Any = 0) -> Any:
        """Return row * width + column, where each is an index or a whole number."""
        if isinstance(row, int) and isinstance(width, int):
            return self.plus(column, row * width)
        one = isinstance(width, int) and width == 1
        return self.plus(row if one else self.ir.mul(self.index(row), self.index(width)), column)

    def plus(self, index: Any, other: Any) -> Any:
        """Return index + other, where each is an index or a whole number."""
        if isinstance(index, int) and isinstance(other, int):
            return self.index(index + other)
        nothing = isinstance(other, int) and other == 0
        return index if nothing else self.ir.add(self.index(index), self.index(other))

    def offset(self, pointer: Any, elements: Any) -> Any:
        """Return the pointer moved by a number of floating elements (not lanes)."""
        return self.ir.bitcast(self._address(pointer, elements, self.precision.type), POINTER)

    def load(self, pointer: Any, element: Any) -> Any:
        """Return the lanes that begin at a floating element."""
        return self.ir.load(self._address(pointer, element, self.type), align=self.precision.bytes)

    def load_one(self, pointer: Any, element: Any) -> Any:
        """Return one number, whatever the lanes."""
        return self.ir.load(self._address(pointer, element, self.precision.type), align=self.precision.bytes)

    def load_shared(self, pointer: Any, element: Any) -> Any:
        """Return one number in all lanes."""
        return self.splat(self.load_one(pointer, element))

    def store(self, value: Any, pointer: Any, element: Any) -> None:
        """Store a value from a floating element on: all lanes, or one number."""
        self.ir.store(value, self._address(pointer, element, value.type), align=self.precision.bytes)

    def add_one(self, value: Any, pointer: Any, element: Any) -> None:
        """Add to one number of an array."""
        self.store(self.add(self.load_one(pointer, element), value), pointer, element)

    def load_int(self, pointer: Any, element: Any) -> Any:
        """Return one 64-bit integer of an array."""
        return self.ir.load(self.ir.gep(self.ir.bitcast(pointer, INDEX.as_pointer()), [element]), align=8)

    def load_pointer(self, pointer: Any, element: int) -> Any:
        """Return one pointer of an array."""
        pointers = self.ir.bitcast(pointer, POINTER.as_pointer())
        return self.ir.load(self.ir.gep(pointers, [self.index(element)]))

    def _address(self, pointer: Any, element: Any, kind: ir.Type) -> Any:
        typed = self.ir.bitcast(pointer, self.precision.type.as_pointer())
        return self.ir.bitcast(self.ir.gep(typed, [element]), kind.as_pointer())

    def scratch(self, size: int) -> Any:
        """Return memory for some numbers that lasts until the function returns."""
        memory = self._entry.alloca(self.precision.type, size=size)
        memory.align = CACHE_LINE
        return self.ir.bitcast(memory, POINTER)

    def allocate(self, size: Any) -> tuple[Any, Any]:
        """Return memory for some numbers, to be freed, and the address in it from which to use it."""
        malloc = self.declare("malloc", POINTER, INDEX)
        memory = self.ir.call(malloc, [self.flat(size, self.precision.bytes, CACHE_LINE)])
        address = self.ir.ptrtoint(memory, INDEX)
        gap = self.ir.and_(self.ir.neg(address), self.index(CACHE_LINE - 1))
        return memory, self.ir.gep(memory, [gap])

    def free(self, memory: Any) -> None:
        """Free allocated memory."""
        self.ir.call(self.declare("free", ir.VoidType(), POINTER), [memory])

    def variable(self, init: Any) -> ir.AllocaInstr:
        """Return a place for a value that changes, filled with `init`."""
        place = self._entry.alloca(init.type)
        self.ir.store(init, place)
        return place

    def get(self, place: Any) -> Any:
        """Read a variable."""
        return self.ir.load(place)

    def set(self, place: Any, value: Any) -> None:
        """Write a variable."""
        self.ir.store(value, place)

    def grow(self, place: Any, term: Any) -> None:
        """Add to a variable, where the order of the sum is free."""
        self.set(place, self.accumulate(self.get(place), term))

    # Control

    @contextlib.contextmanager
    def loop(self, count: Any, *, step: int = 1, reverse: bool = False) -> Iterator[Any]:
        """Repeat the block for 0, step, .. below `count` (an index), or backwards in steps of one."""
        head, body, tail = (self.function.append_basic_block(n) for n in ("head", "loop", "done"))
        place = self._entry.alloca(INDEX)
        self.ir.store(count if reverse else self.index(0), place)
        self.ir.branch(head)
        self.ir.position_at_end(head)
        i = self.ir.load(place)
        more = self.ir.icmp_signed(">", i, self.index(0)) if reverse else self.ir.icmp_signed("<", i, count)
        self.ir.cbranch(more, body, tail)
        self.ir.position_at_end(body)
        if reverse:
            i = self.ir.sub(i, self.index(1), flags=("nsw",))
            self.ir.store(i, place)
        yield i
        if not reverse:
            self.ir.store(self.ir.add(i, self.index(step), flags=("nsw",)), place)
        self.ir.branch(head)
        self.ir.position_at_end(tail)

    @contextlib.contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Run the block if a single truth value holds."""
        with self.ir.if_then(condition):
            yield
