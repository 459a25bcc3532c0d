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
        return self.precision.type if self.lanes == 1 else ir.VectorType(self.precision.type, self.lanes)

    @property
    def integer_type(self) -> ir.Type:
        """Integers as wide as, and as many as, the floating values."""
        return self.precision.integer if self.lanes == 1 else ir.VectorType(self.precision.integer, self.lanes)

    @property
    def mask_type(self) -> ir.Type:
        """Truth values, one for each lane."""
        return ir.IntType(1) if self.lanes == 1 else ir.VectorType(ir.IntType(1), self.lanes)

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
        return self._splat_constant(ir.Constant(self.precision.type, self.precision.round(value)), self.type)

    def int_const(self, value: int) -> ir.Constant:
        """Return an integer in all lanes."""
        return self._splat_constant(ir.Constant(self.precision.integer, value), self.integer_type)

    def mask_const(self, value: bool) -> ir.Constant:
        """Return a truth value in all lanes."""
        return self._splat_constant(ir.Constant(ir.IntType(1), int(value)), self.mask_type)

    def _splat_constant(self, scalar: ir.Constant, kind: ir.Type) -> ir.Constant:
        return scalar if self.lanes == 1 else ir.Constant(kind, [scalar] * self.lanes)

    def splat(self, scalar: Any) -> Any:
        """Return a scalar in all lanes."""
        if self.lanes == 1:
            return scalar
        one = self.ir.insert_element(ir.Constant(self.type, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.ir.shuffle_vector(one, ir.Constant(self.type, ir.Undefined), zeros)

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
        return self.ir.call(self.declare(f"llvm.{name}.{suffix}", self.type, *(a.type for a in arguments)), arguments)

    def declare(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """Return a function of the module, declared if it is not there."""
        known = self.module.globals.get(name)
        return known if known is not None else ir.Function(self.module, ir.FunctionType(result, arguments), name)

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
            at = ir.Constant(ir.IntType(32), lane)
            result = self.ir.insert_element(result, one([self.ir.extract_element(a, at) for a in arguments]), at)
        return result

    # Memory

    def index(self, value: int) -> ir.Constant:
        """Return an index."""
        return ir.Constant(INDEX, value)

    def offset(self, pointer: Any, elements: Any) -> Any:
        """Return the pointer moved by a number of floating elements (not lanes)."""
        typed = self.ir.bitcast(pointer, self.precision.type.as_pointer())
        return self.ir.bitcast(self.ir.gep(typed, [elements]), POINTER)

    def load(self, pointer: Any, element: Any) -> Any:
        """Return the lanes that begin at a floating element."""
        return self.ir.load(self._address(pointer, element, self.type), align=self.precision.bytes)

    def load_shared(self, pointer: Any, element: Any) -> Any:
        """Return one number in all lanes."""
        address = self._address(pointer, element, self.precision.type)
        return self.splat(self.ir.load(address, align=self.precision.bytes))

    def store(self, value: Any, pointer: Any, element: Any) -> None:
        """Store the lanes from a floating element on."""
        self.ir.store(value, self._address(pointer, element, self.type), align=self.precision.bytes)

    def load_int(self, pointer: Any, element: Any) -> Any:
        """Return one 64-bit integer of an array."""
        typed = self.ir.bitcast(pointer, INDEX.as_pointer())
        return self.ir.load(self.ir.gep(typed, [element]), align=8)

    def _address(self, pointer: Any, element: Any, kind: ir.Type) -> Any:
        typed = self.ir.bitcast(pointer, self.precision.type.as_pointer())
        return self.ir.bitcast(self.ir.gep(typed, [element]), kind.as_pointer())

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
