"""One function of a compiled density under construction: loops over the elements of tensors.

A tensor of the graph either lies in memory, or its elements are worked out inside the loops of those
that read it. A `Writer` knows where everything lies; a `Body` is the inside of some loops.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor
from torch.fx import GraphModule, Node

from vinppl.native.arrays import Affine, Buffer, Constants, Memory, Place, dot, row_major
from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.elementwise import num
from vinppl.native.errors import Unsupported
from vinppl.native.expressions import Expression, Graph, emit
from vinppl.native.lowering import Elements
from vinppl.native.views import FILLS, Index, arguments_of, is_truth, same_up_to_ones, shape_of

__all__ = ["DOUBLE", "Body", "DensityModule", "Writer"]

aten = torch.ops.aten
DOUBLE = Precision("float64")

MAX_BLOCKS = 100
"""Basic blocks after which a function goes on in another: the time to compile one goes with their square."""


class DensityModule:
    """A module under construction, and what its functions share.

    Args:
        graph: the traced value and gradient.

    Attributes:
        llvm: the module.
        graph: as given.
        constants: the graph's constant tensors.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.llvm = new_module("density")
        self.graph, self.constants = graph, Constants()
        self._functions: dict[Hashable, ir.Function] = {}

    def function(self, key: Hashable, write: Callable[[str], ir.Function]) -> ir.Function:
        """Return an internal function; `write` makes it the first time, under the name that it is given."""
        if key not in self._functions:
            self._functions[key] = write(f"part_{len(self._functions)}")
        return self._functions[key]


class Writer:
    """A function `(x, value, gradient, constants, tables, workspace)`, all of them pointers.

    Args:
        module: where it goes.
        name: its name.
        lanes: chains side by side.

    Attributes:
        module: as given.
        lanes: as given.
        b: writes its instructions.
        memory: of the workspace, in elements of all lanes.
        kept: the arrays that a rollout keeps for its adjoint, by their names.
    """

    def __init__(self, module: DensityModule, name: str, lanes: int) -> None:
        self.module = module
        self.lanes, self._name = lanes, name
        self._begin(name)
        self.memory = Memory()
        self.kept: dict[Node, dict[str, int]] = {}
        self._buffers: dict[Node, Buffer] = {}

    def go_on(self) -> None:
        """Go on in another function, which this one ends by calling, if it is long already."""
        if len(self.b.function.blocks) <= MAX_BLOCKS:
            return
        before = self.b
        self._begin(self.module.llvm.get_unique_name(f"{self._name}_goes_on"))
        self.b.function.attributes.add("noinline")
        before.ir.call(self.b.function, before.arguments)
        before.finish()

    def _begin(self, name: str) -> None:
        """Begin a function."""
        self.b = FunctionBuilder(
            self.module.llvm, name, [POINTER] * 6, lanes=self.lanes, precision=DOUBLE, internal=True
        )
        self.x, self.value, self.gradient, self.constants, self.tables, self.workspace = self.b.arguments

    def buffer(self, node: Node) -> Buffer | None:
        """Return where a node lies; `None` if it is worked out where it is read."""
        if node.op == "get_attr" and node not in self._buffers:
            tensor = self.tensor(node)
            place = self.module.constants.number(str(node.target), tensor)
            truth = tensor.dtype == torch.bool
            self._buffers[node] = Buffer(place, row_major(tensor.shape), constant=True, truth=truth)
        return self._buffers.get(node)

    def tensor(self, node: Node) -> Tensor:
        """Return the tensor of a `get_attr` node."""
        tensor: Tensor = getattr(self.module.graph, str(node.target))
        return tensor

    def reserve(self, node: Node, shape: Sequence[int]) -> Buffer:
        """Return memory for a node, row-major; nothing is read from it before the node is placed there."""
        offset = self.memory.take(node, math.prod(shape))
        return Buffer(offset, row_major(shape), truth=is_truth(node))

    def place(self, node: Node, buffer: Buffer) -> None:
        """Say where a node lies."""
        self._buffers[node] = buffer

    def allocate(self, node: Node) -> Buffer:
        """Place a node in memory of its own."""
        buffer = self.reserve(node, shape_of(node))
        self.place(node, buffer)
        return buffer

    def pointer(self, offset: int) -> Any:
        """Return the address of an element of the workspace."""
        return self.b.offset(self.workspace, self.b.index(offset * self.lanes))

    def constant_pointer(self, node: Node) -> Any:
        """Return the address of a constant tensor."""
        buffer = self.buffer(node)
        assert buffer is not None
        return self.b.offset(self.constants, self.b.index(buffer.offset))

    def table_pointer(self, offset: int) -> Any:
        """Return the address of an entry of the tables."""
        tables = self.b.ir.bitcast(self.tables, INDEX.as_pointer())
        return self.b.ir.bitcast(self.b.ir.gep(tables, [self.b.index(offset)]), POINTER)

    @contextmanager
    def loops(self, shape: Sequence[int]) -> Iterator[tuple[Body, Index]]:
        """Repeat the block for every index of a shape: yields the inside of the loops, and the index."""
        with ExitStack() as stack:
            index: list[Place] = []
            for n in shape:
                counter = stack.enter_context(self.b.loop(self.b.index(n))) if n != 1 else None
                index.append(0 if counter is None else Affine({counter: 1}))
            yield Body(self), tuple(index)

    def fill(self, buffer: Buffer, shape: Sequence[int], source: Node | float) -> None:
        """Fill an array with a node of its shape, or a number."""
        with self.loops(shape) as (body, index):
            value = body.read(source, index) if isinstance(source, Node) else self.b.const(source)
            body.store(value, buffer, index)


class Body(Elements):
    """The inside of some loops, where elements are read, worked out and stored.

    What was loaded is not loaded again: nothing is read from a place after it is stored to.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__(Graph())
        self.writer = writer
        self._inputs: dict[Hashable, Any] = {}

    def read(self, node: Node, index: Index) -> Any:
        """Return the value of an element, truth values as 0 and 1."""
        return self.write(self.element(node, index))

    def write(self, expression: Expression) -> Any:
        """Return the value of an expression, truth values as 0 and 1."""
        return emit(self.writer.b, [num(expression)], self._inputs)[0]

    def store(self, value: Any, buffer: Buffer, index: Sequence[Place]) -> None:
        """Store an element of an array."""
        b = self.writer.b
        b.store(value, self.writer.workspace, b.flat(self.index(buffer.place(index)), b.lanes))

    def load(self, buffer: Buffer, index: Sequence[Place]) -> Expression:
        """Return an element of an array."""
        place = buffer.place(index)
        key = (buffer.constant, place)
        if key not in self._inputs:
            b, at = self.writer.b, self.index(place)
            if buffer.constant:
                self._inputs[key] = b.load_shared(self.writer.constants, at)
            else:
                self._inputs[key] = b.load(self.writer.workspace, b.flat(at, b.lanes))
        value = self.graph.input(key)
        return value.apply("ne", 0.0) if buffer.truth else value

    def look_up(self, offset: Place) -> Affine:
        """Return an index that stands in a table."""
        return Affine({self.writer.b.load_int(self.writer.tables, self.index(offset)): 1})

    def index(self, place: Place) -> Any:
        """Return an index as a value."""
        b = self.writer.b
        if isinstance(place, int):
            return b.index(place)
        total: Any = place.constant
        for value, factor in place.terms.items():
            total = b.flat(value, factor, total)
        return b.index(total)

    def element(self, node: Node, index: Index) -> Expression:
        """Return an element of a node, from memory or worked out."""
        buffer = self.writer.buffer(node)
        return super().element(node, index) if buffer is None else self.load(buffer, index)

    def reshaped(self, node: Node, index: Index) -> Expression:
        """Return an element of a reshaped node, which lies in memory in order or is all one number."""
        source: Any = node.args[0]
        shape, old = shape_of(node), shape_of(source)
        if same_up_to_ones(shape, old):
            rest = iter(i for i, n in zip(index, shape, strict=True) if n != 1)
            return self.element(source, tuple(0 if n == 1 else next(rest) for n in old))
        flat = dot(index, row_major(shape))
        while self.writer.buffer(source) is None and source.target not in FILLS:
            source = source.args[0]
        buffer = self.writer.buffer(source)
        if buffer is None:
            return self.element(source, (0,) * len(shape_of(source)))
        if buffer.strides != row_major(shape_of(source)):
            raise Unsupported("a reshaped rollout")
        return self.load(buffer._replace(strides=(1,)), (flat,))

    def other(self, node: Node, index: Index) -> Expression:
        """Return an element of a range of numbers; nothing else is worked out where it is read."""
        if node.target is not aten.arange.start_step:
            operation: Any = node.args[0] if node.target is operator.getitem else node
            raise Unsupported(f"the operation {operation.target}")
        start, _, step, *_ = arguments_of(node)
        place = index[0] * step + start
        if isinstance(place, int):
            return self.graph.constant(float(place))
        b, key = self.writer.b, ("index", place)
        self._inputs[key] = b.splat(b.ir.sitofp(self.index(place), b.precision.type))
        return self.graph.input(key)
