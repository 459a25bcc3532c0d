"""The loop over time, forward and adjoint, as compiled functions.

Trajectories lie side by side: every array has them innermost, `N` of them, a multiple of
the lanes. The forward loop keeps the chart state after each step, the adjoint walks back
through them and recomputes nothing else: memory is O(steps x dim).

Arrays (row-major): q0, v0 `[dim][N]`; parameters `[slots][N]`; h `[steps]` or `[steps][N]`;
drive `[steps][nodes][dim]` or `[steps][nodes][dim][N]`; samples `[steps]`, the number of the sample
that a step ends on or -1; path `[times][2 dim][N]`; carries `[steps + 1][chart][N]`; network
evaluations are numbered through, `M = start_calls + steps x step_calls` of them: positions and
cotangents `[dim][M][N]`, slopes `[M][dim + dim dim][N]` (gradient, then Hessian).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision
from vinppl.native.expressions import Expression, Graph, emit
from vinppl.native.network import emit_force
from vinppl.native.steps import StepProgram

__all__ = ["ADJOINT_ARGUMENTS", "FORWARD_ARGUMENTS", "Layout", "emit_adjoint", "emit_forward"]

FORWARD_ARGUMENTS = (
    "q0 v0 parameters h drive samples weights scratch path carries positions slopes"
).split()
"""Arrays of a forward function, after N and the number of steps."""

ADJOINT_ARGUMENTS = (
    "q0 v0 parameters h drive samples carries positions slopes path_gradient "
    "q0_gradient v0_gradient parameter_gradient h_gradient drive_gradient force_gradient"
).split()
"""Arrays of an adjoint function, after N and the number of steps. Gradients are overwritten."""


class Layout(NamedTuple):
    """What a loop is compiled for.

    Attributes:
        lanes: trajectories advanced together.
        dtype: name of the floating type.
        h_shared: whether all trajectories have the same steps.
        drive_shared: whether they have the same drive.
        keep: whether the forward loop keeps what the adjoint needs.
        h_gradient: whether the adjoint gives the gradient of the steps.
        drive_gradient: whether it gives that of the drive.
    """

    lanes: int
    dtype: str
    h_shared: bool = True
    drive_shared: bool = True
    keep: bool = False
    h_gradient: bool = False
    drive_gradient: bool = False


class _Loop:
    """Common parts of the two loops: reading inputs of the step at a place."""

    def __init__(
        self, module: ir.Module, program: StepProgram, layout: Layout, name: str, arguments: Sequence[str], internal: bool
    ) -> None:
        self.program, self.layout = program, layout
        types = [INDEX, INDEX] + [POINTER] * len(arguments)
        self.b = FunctionBuilder(
            module, name, types, lanes=layout.lanes, precision=Precision(layout.dtype), internal=internal
        )
        self.size, self.steps, *pointers = self.b.arguments
        self.array = dict(zip(arguments, pointers, strict=True))
        self.graph: Graph = program.graph

    def at(self, row: Any, column: Any) -> Any:
        """Return the place of a trajectory in a row of N."""
        ir_ = self.b.ir
        row = self.b.index(row) if isinstance(row, int) else row
        return ir_.add(ir_.mul(row, self.size), column)

    def row(self, outer: Any, width: int, inner: int) -> Any:
        """Return outer * width + inner."""
        ir_ = self.b.ir
        return ir_.add(ir_.mul(outer, self.b.index(width)), self.b.index(inner))

    def rows(self, name: str, count: int, column: Any, outer: Any = None) -> list[Any]:
        """Load `count` neighbouring rows of an array."""
        places = [k if outer is None else self.row(outer, count, k) for k in range(count)]
        return [self.b.load(self.array[name], self.at(p, column)) for p in places]

    def parameters(self, column: Any) -> dict[Any, Any]:
        """Load the slots."""
        values = self.rows("parameters", len(self.program.slots), column)
        return {("p", s): value for s, value in enumerate(values)}

    def state(self, column: Any) -> dict[Any, Any]:
        """Load the initial state."""
        q, v = self.rows("q0", self.program.dim, column), self.rows("v0", self.program.dim, column)
        return {**{("q", k): x for k, x in enumerate(q)}, **{("v", k): x for k, x in enumerate(v)}}

    def inputs(self, step: Any, column: Any) -> dict[Any, Any]:
        """Load the size of a step and the drive at its nodes."""
        b, dim, nodes = self.b, self.program.dim, self.program.num_nodes
        h = self.array["h"]
        values = {("h", 0): b.load_shared(h, step) if self.layout.h_shared else b.load(h, self.at(step, column))}
        return {**values, **self.drive(step, column, nodes, dim)}

    def drive(self, step: Any, column: Any, nodes: int, dim: int) -> dict[Any, Any]:
        """Load the drive at the nodes of a step."""
        values = {}
        for node in range(nodes):
            for k in range(dim):
                row = self.row(step, nodes * dim, node * dim + k)
                drive = self.array["drive"]
                shared = self.layout.drive_shared
                values["d", node, k] = (
                    self.b.load_shared(drive, row) if shared else self.b.load(drive, self.at(row, column))
                )
        return values

    def call_number(self, call: int, step: Any) -> Any:
        """Return the number of a network evaluation among all of them."""
        first = self.program.start_calls
        if call < first:
            return self.b.index(call)
        return self.row(step, self.program.step_calls, call)

    def position_place(self, k: int, number: Any, column: Any) -> Any:
        """Return where a position or cotangent of an evaluation lies, in `[dim][M][N]`."""
        ir_ = self.b.ir
        p = self.program
        count = self.row(self.steps, p.step_calls, p.start_calls)
        return self.at(ir_.add(ir_.mul(self.b.index(k), count), number), column)


def emit_forward(
    module: ir.Module, program: StepProgram, layout: Layout, name: str, *, internal: bool = False
) -> ir.Function:
    """Write the forward loop; arguments are N, the number of steps and `FORWARD_ARGUMENTS`."""
    loop = _Loop(module, program, layout, name, FORWARD_ARGUMENTS, internal)
    b, dim = loop.b, program.dim
    carries = len(program.start)

    with b.loop(loop.size, step=layout.lanes) as column:
        parameters = loop.parameters(column)

        def keep(number: Any, values: Sequence[Any]) -> None:
            if layout.keep:
                for j, value in enumerate(values):
                    b.store(value, loop.array["carries"], loop.at(loop.row(number, carries, j), column))

        def sample(number: Any, values: Sequence[Any]) -> None:
            given = {("c", j): value for j, value in enumerate(values)}
            for k, value in enumerate(emit(b, program.finish, {**given, **parameters})):
                b.store(value, loop.array["path"], loop.at(loop.row(number, 2 * dim, k), column))

        zero = b.index(0)
        given = {**parameters, **loop.state(column), **loop.drive(zero, column, program.num_nodes, dim)}
        values = emit(b, program.start, given, _forward_network(loop, zero, column))
        keep(zero, values)
        sample(zero, values)
        places = [b.variable(value) for value in values]
        with b.loop(loop.steps) as step:
            carry = {("c", j): b.get(place) for j, place in enumerate(places)}
            given = {**parameters, **carry, **loop.inputs(step, column)}
            values = emit(b, program.step, given, _forward_network(loop, step, column))
            for place, value in zip(places, values, strict=True):
                b.set(place, value)
            keep(b.ir.add(step, b.index(1)), values)
            number = b.load_int(loop.array["samples"], step)
            with b.when(b.ir.icmp_signed(">=", number, zero)):
                sample(number, values)
    return b.finish()


def _forward_network(loop: _Loop, step: Any, column: Any) -> Callable[..., Any] | None:
    """Return what evaluates the neural potential, and keeps position and slopes for the adjoint."""
    shape = loop.program.network
    if shape is None:
        return None
    b, dim, known = loop.b, loop.program.dim, {}

    def evaluate(kind: str, payload: tuple[int, ...], position: list[Any]) -> Any:
        call = payload[0]
        if call not in known:
            keep = loop.layout.keep
            weights, scratch = loop.array["weights"], loop.array["scratch"]
            gradient, hessian = emit_force(b, shape, position, weights, scratch, with_hessian=keep)
            known[call] = gradient
            if keep:
                number = loop.call_number(call, step)
                for k, x in enumerate(position):
                    b.store(x, loop.array["positions"], loop.position_place(k, number, column))
                slopes = [*gradient, *(x for row in hessian for x in row)]
                for k, x in enumerate(slopes):
                    b.store(x, loop.array["slopes"], loop.at(loop.row(number, dim + dim * dim, k), column))
        return known[call][payload[1]]

    return evaluate


def emit_adjoint(
    module: ir.Module, program: StepProgram, layout: Layout, name: str, *, internal: bool = False
) -> ir.Function:
    """Write the adjoint loop; arguments are N, the number of steps and `ADJOINT_ARGUMENTS`."""
    loop = _Loop(module, program, layout, name, ADJOINT_ARGUMENTS, internal)
    b, graph, dim = loop.b, program.graph, program.dim
    width = len(program.start)
    carry = [graph.input(("c", j)) for j in range(width)]
    slots = [graph.input(("p", s)) for s in range(len(program.slots))]
    cotangent = [graph.input(("w", j)) for j in range(width)]  # of the chart state
    path = [graph.input(("y", k)) for k in range(2 * dim)]  # of a sample
    zero = b.index(0)

    with b.loop(loop.size, step=layout.lanes) as column:
        parameters = loop.parameters(column)
        totals = [b.variable(b.const(0.0)) for _ in slots]
        places = [b.variable(b.const(0.0)) for _ in range(width)]

        def add(place: Any, value: Any) -> None:
            b.set(place, b.add(b.get(place), value))

        def back(outputs: Sequence[Expression], seeds: Sequence[Expression], targets: Sequence[Expression], given: Any, step: Any) -> list[Any]:
            """Write a vector-Jacobian product, add its parameters up, and return the other cotangents."""
            forces = graph.forces(outputs)
            found = graph.vjp(outputs, seeds, [*slots, *forces, *targets])
            values = emit(b, found, {**parameters, **given}, _stored_network(loop, step, column))
            for total, expression, value in zip(totals, found, values, strict=False):
                if expression.value != 0:
                    add(total, value)
            for force, value in zip(forces, values[len(slots) :], strict=False):
                call, k = graph.payloads[force.index]
                number = loop.call_number(call, step)
                b.store(value, loop.array["force_gradient"], loop.position_place(k, number, column))
            return values[len(slots) + len(forces) :]

        def sample(number: Any, chart: dict[Any, Any]) -> None:
            given = {("y", k): x for k, x in enumerate(loop.rows("path_gradient", 2 * dim, column, number))}
            for place, value in zip(places, back(program.finish, path, carry, {**given, **chart}, zero), strict=True):
                add(place, value)

        def chart_state(number: Any) -> dict[Any, Any]:
            return {("c", j): x for j, x in enumerate(loop.rows("carries", width, column, number))}

        with b.loop(loop.steps, reverse=True) as step:
            number = b.load_int(loop.array["samples"], step)
            with b.when(b.ir.icmp_signed(">=", number, zero)):
                sample(number, chart_state(b.ir.add(step, b.index(1))))
            given = {**chart_state(step), **loop.inputs(step, column)}
            given |= {("w", j): b.get(place) for j, place in enumerate(places)}
            h = [graph.input(("h", 0))] if layout.h_gradient else []
            drive = _drive_inputs(program) if layout.drive_gradient else []
            found = back(program.step, cotangent, [*carry, *h, *drive], given, step)
            for place, value in zip(places, found, strict=False):
                b.set(place, value)
            for value in found[width : width + len(h)]:
                b.store(value, loop.array["h_gradient"], loop.at(step, column))
            for k, value in enumerate(found[width + len(h) :]):
                row = loop.row(step, len(drive), k)
                b.store(value, loop.array["drive_gradient"], loop.at(row, column))
        sample(zero, chart_state(zero))
        given = {**loop.state(column), **loop.drive(zero, column, program.num_nodes, dim)}
        given |= {("w", j): b.get(place) for j, place in enumerate(places)}
        state = [graph.input((name, k)) for name in "qv" for k in range(dim)]
        drive = _drive_inputs(program) if layout.drive_gradient else []
        found = back(program.start, cotangent, [*state, *drive], given, zero)
        for k in range(dim):
            b.store(found[k], loop.array["q0_gradient"], loop.at(k, column))
            b.store(found[dim + k], loop.array["v0_gradient"], loop.at(k, column))
        for k, value in enumerate(found[2 * dim :]):  # the first drive also acts in `start`
            place, pointer = loop.at(k, column), loop.array["drive_gradient"]
            b.store(b.add(b.load(pointer, place), value), pointer, place)
        for s, total in enumerate(totals):
            b.store(b.get(total), loop.array["parameter_gradient"], loop.at(s, column))
    return b.finish()


def _drive_inputs(program: StepProgram) -> list[Expression]:
    graph = program.graph
    return [graph.input(("d", node, k)) for node in range(program.num_nodes) for k in range(program.dim)]


def _stored_network(loop: _Loop, step: Any, column: Any) -> Callable[..., Any] | None:
    """Return what reads the slopes that the forward loop kept."""
    if loop.program.network is None:
        return None
    dim = loop.program.dim

    def read(kind: str, payload: tuple[int, ...], position: list[Any]) -> Any:
        call, *place = payload
        number = loop.call_number(call, step)
        k = place[0] if kind == "force" else dim + place[0] * dim + place[1]
        return loop.b.load(loop.array["slopes"], loop.at(loop.row(number, dim + dim * dim, k), column))

    return read
