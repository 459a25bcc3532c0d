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

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision
from vinppl.native.expressions import Expression, External, emit
from vinppl.native.network import emit_force
from vinppl.native.steps import StepProgram

__all__ = ["ADJOINT_ARGUMENTS", "FORWARD_ARGUMENTS", "Layout", "emit_adjoint", "emit_forward"]

FORWARD_ARGUMENTS = (
    "q0",
    "v0",
    "parameters",
    "h",
    "drive",
    "samples",
    "weights",
    "scratch",
    "path",
    "carries",
    "positions",
    "slopes",
)
"""Arrays of a forward function, after N and the number of steps."""

ADJOINT_ARGUMENTS = (
    "q0",
    "v0",
    "parameters",
    "h",
    "drive",
    "samples",
    "carries",
    "positions",
    "slopes",
    "path_gradient",
    "q0_gradient",
    "v0_gradient",
    "parameter_gradient",
    "h_gradient",
    "drive_gradient",
    "force_gradient",
)
"""Arrays of an adjoint function, after N and the number of steps. Gradients are overwritten."""

Values = dict[Hashable, Any]
"""Values of inputs of expressions."""


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


def emit_forward(
    module: ir.Module, program: StepProgram, layout: Layout, name: str, *, internal: bool = False
) -> ir.Function:
    """Write the forward loop; arguments are N, the number of steps and `FORWARD_ARGUMENTS`.

    Args:
        module: where it goes.
        program: what a step does.
        layout: what it is for.
        name: of the function.
        internal: whether only the module calls it.
    """
    loop = _Forward(module, program, layout, name, FORWARD_ARGUMENTS, internal)
    b = loop.b
    with loop.trajectories():
        loop.start()
        with b.loop(loop.steps) as step:
            loop.step(step)
    return b.finish()


def emit_adjoint(
    module: ir.Module, program: StepProgram, layout: Layout, name: str, *, internal: bool = False
) -> ir.Function:
    """Write the adjoint loop; arguments are N, the number of steps and `ADJOINT_ARGUMENTS`.

    Args:
        module: where it goes.
        program: what a step does.
        layout: what it is for; the forward loop kept what it needs.
        name: of the function.
        internal: whether only the module calls it.
    """
    loop = _Adjoint(module, program, layout, name, ADJOINT_ARGUMENTS, internal)
    b = loop.b
    with loop.trajectories():
        loop.begin()
        with b.loop(loop.steps, reverse=True) as step:
            with loop.sampled(step) as number:
                loop.sample(number, b.plus(step, 1))
            loop.step(step)
        loop.sample(b.index(0), b.index(0))
        loop.start()
    return b.finish()


class _Loop:
    """What both loops have: reading and writing the arrays at the trajectories of a place.

    Attributes:
        b: writes the instructions.
        steps: number of steps.
        array: addresses of the arrays, by name.
        column: first of the trajectories that are advanced together.
        parameters: values of the slots.
    """

    column: Any
    parameters: Values

    def __init__(
        self,
        module: ir.Module,
        program: StepProgram,
        layout: Layout,
        name: str,
        arguments: Sequence[str],
        internal: bool,
    ) -> None:
        self.program, self.layout, self.graph, self.dim = program, layout, program.graph, program.dim
        types = [INDEX, INDEX] + [POINTER] * len(arguments)
        precision = Precision(layout.dtype)
        self.b = FunctionBuilder(
            module, name, types, lanes=layout.lanes, precision=precision, internal=internal
        )
        self.size, self.steps, *pointers = self.b.arguments
        self.array = dict(zip(arguments, pointers, strict=True))

    @contextlib.contextmanager
    def trajectories(self) -> Iterator[None]:
        """Repeat the block for all trajectories, some side by side."""
        with self.b.loop(self.size, step=self.layout.lanes) as column:
            self.column = column
            self.parameters = _named("p", self.rows("parameters", len(self.program.slots)))
            yield

    @contextlib.contextmanager
    def sampled(self, step: Any) -> Iterator[Any]:
        """Run the block if a step ends on a sample; yields its number."""
        number = self.b.load_int(self.array["samples"], step)
        with self.b.when(self.b.ir.icmp_signed(">=", number, self.b.index(0))):
            yield number

    # Arrays

    def load(self, name: str, row: Any) -> Any:
        """Load the trajectories of a row of N."""
        return self.b.load(self.array[name], self.b.flat(row, self.size, self.column))

    def store(self, name: str, row: Any, value: Any) -> None:
        """Store the trajectories of a row of N."""
        self.b.store(value, self.array[name], self.b.flat(row, self.size, self.column))

    def rows(self, name: str, count: int, outer: Any = 0) -> list[Any]:
        """Load the rows of an array `[..][count][N]` at an outer index."""
        return [self.load(name, self.b.flat(outer, count, k)) for k in range(count)]

    def store_rows(self, name: str, values: Sequence[Any], outer: Any = 0) -> None:
        """Store the rows of an array `[..][count][N]` at an outer index."""
        for k, value in enumerate(values):
            self.store(name, self.b.flat(outer, len(values), k), value)

    def initial(self) -> Values:
        """Load what a trajectory starts with: position, velocity and the first drive."""
        q, v = self.rows("q0", self.dim), self.rows("v0", self.dim)
        return {**_named("q", q), **_named("v", v), **self.drive(self.b.index(0))}

    def inputs(self, step: Any) -> Values:
        """Load the size of a step, and the drive at its nodes."""
        shared = self.layout.h_shared
        h = self.b.load_shared(self.array["h"], step) if shared else self.load("h", step)
        return {("h", 0): h, **self.drive(step)}

    def drive(self, step: Any) -> Values:
        """Load the drive at the nodes of a step."""
        keys = _drive_keys(self.program)
        rows = [self.b.flat(step, len(keys), k) for k in range(len(keys))]
        if self.layout.drive_shared:
            return {
                key: self.b.load_shared(self.array["drive"], row) for key, row in zip(keys, rows, strict=True)
            }
        return {key: self.load("drive", row) for key, row in zip(keys, rows, strict=True)}

    # Evaluations of a neural potential

    def call_number(self, call: int, step: Any) -> Any:
        """Return the number of an evaluation among all of them."""
        first = self.program.start_calls
        return self.b.index(call) if call < first else self.b.flat(step, self.program.step_calls, call)

    def component_row(self, k: int, number: Any) -> Any:
        """Return the row of a component of an evaluation, in `[dim][M][N]`."""
        count = self.b.flat(self.steps, self.program.step_calls, self.program.start_calls)
        return self.b.flat(k, count, number)

    def slope_row(self, k: int, number: Any) -> Any:
        """Return the row of one of its slopes, in `[M][dim + dim dim][N]`."""
        return self.b.flat(number, self.dim + self.dim**2, k)


class _Forward(_Loop):
    """The forward loop."""

    places: list[Any]
    """Variables of the chart state."""

    def start(self) -> None:
        """Write the beginning of a trajectory."""
        zero = self.b.index(0)
        values = self._emit(self.program.start, self.initial(), zero)
        self._keep(zero, values)
        self._sample(zero, values)
        self.places = [self.b.variable(value) for value in values]

    def step(self, step: Any) -> None:
        """Write a step."""
        chart = _named("c", map(self.b.get, self.places))
        values = self._emit(self.program.step, {**chart, **self.inputs(step)}, step)
        for place, value in zip(self.places, values, strict=True):
            self.b.set(place, value)
        self._keep(self.b.plus(step, 1), values)
        with self.sampled(step) as number:
            self._sample(number, values)

    def _emit(self, outputs: Sequence[Expression], given: Values, step: Any) -> list[Any]:
        return emit(self.b, outputs, {**self.parameters, **given}, self._network(step))

    def _keep(self, number: Any, values: Sequence[Any]) -> None:
        if self.layout.keep:
            self.store_rows("carries", values, number)

    def _sample(self, number: Any, values: Sequence[Any]) -> None:
        given = {**self.parameters, **_named("c", values)}
        self.store_rows("path", emit(self.b, self.program.finish, given), number)

    def _network(self, step: Any) -> External:
        """Return what evaluates the neural potential, and keeps position and slopes for the adjoint."""
        known: dict[int, list[Any]] = {}

        def evaluate(kind: str, payload: tuple[int, ...], position: list[Any]) -> Any:
            call, component = payload
            if call not in known:
                known[call] = self._force(self.call_number(call, step), position)
            return known[call][component]

        return evaluate

    def _force(self, number: Any, position: list[Any]) -> list[Any]:
        """Write the evaluation of a number, and return the gradient of the potential."""
        shape, keep = self.program.network, self.layout.keep
        assert shape is not None
        weights, scratch = self.array["weights"], self.array["scratch"]
        gradient, hessian = emit_force(self.b, shape, position, weights, scratch, with_hessian=keep)
        if keep:
            for k, x in enumerate(position):
                self.store("positions", self.component_row(k, number), x)
            for k, x in enumerate([*gradient, *(x for row in hessian for x in row)]):
                self.store("slopes", self.slope_row(k, number), x)
        return gradient


class _Adjoint(_Loop):
    """The adjoint loop."""

    totals: list[Any]
    """Variables of the gradient of the slots."""

    places: list[Any]
    """Variables of the cotangents of the chart state."""

    def begin(self) -> None:
        """Write the beginning: all gradients are zero."""
        self.totals = [self.b.variable(self.b.const(0.0)) for _ in self.program.slots]
        self.places = [self.b.variable(self.b.const(0.0)) for _ in self.program.start]

    def sample(self, number: Any, state: Any) -> None:
        """Add the gradient of a sample to the cotangents of a kept state."""
        path = [self.graph.input(("y", k)) for k in range(2 * self.dim)]
        given = {**_named("y", self.rows("path_gradient", 2 * self.dim, number)), **self._chart(state)}
        for place, value in zip(
            self.places, self._pull(self.program.finish, path, self._state, given), strict=True
        ):
            self.b.set(place, self.b.add(self.b.get(place), value))

    def step(self, step: Any) -> None:
        """Write a step backwards."""
        h = [self.graph.input(("h", 0))] if self.layout.h_gradient else []
        given = {**self._chart(step), **self.inputs(step), **self._cotangents()}
        found = self._pull(self.program.step, self._seeds, [*self._state, *h, *self._drive], given, step)
        for place in self.places:
            self.b.set(place, found.pop(0))
        if h:
            self.store("h_gradient", step, found.pop(0))
        self.store_rows("drive_gradient", found, step)

    def start(self) -> None:
        """Write the start of a trajectory backwards, and store the gradients."""
        b, dim = self.b, self.dim
        state = [self.graph.input((name, k)) for name in "qv" for k in range(dim)]
        given = {**self.initial(), **self._cotangents()}
        found = self._pull(self.program.start, self._seeds, [*state, *self._drive], given)
        self.store_rows("q0_gradient", found[:dim])
        self.store_rows("v0_gradient", found[dim : 2 * dim])
        for k, value in enumerate(found[2 * dim :]):  # the first drive also acts in `start`
            self.store("drive_gradient", k, b.add(self.load("drive_gradient", k), value))
        self.store_rows("parameter_gradient", [b.get(total) for total in self.totals])

    @property
    def _state(self) -> list[Expression]:
        """Chart state."""
        return [self.graph.input(("c", j)) for j in range(len(self.program.start))]

    @property
    def _seeds(self) -> list[Expression]:
        """Cotangents of the chart state."""
        return [self.graph.input(("w", j)) for j in range(len(self.program.start))]

    @property
    def _drive(self) -> list[Expression]:
        """The drive, if its gradient is wanted."""
        return (
            [self.graph.input(key) for key in _drive_keys(self.program)] if self.layout.drive_gradient else []
        )

    def _chart(self, number: Any) -> Values:
        return _named("c", self.rows("carries", len(self.program.start), number))

    def _cotangents(self) -> Values:
        return _named("w", map(self.b.get, self.places))

    def _pull(
        self,
        outputs: Sequence[Expression],
        seeds: Sequence[Expression],
        targets: Sequence[Expression],
        given: Values,
        step: Any = 0,
    ) -> list[Any]:
        """Write a vector-Jacobian product, and return the cotangents of the targets.

        Those of the slots are added up, those of the forces stored.
        """
        b, graph, forces = self.b, self.graph, self.graph.forces(outputs)
        slots = [graph.input(("p", s)) for s in range(len(self.totals))]
        found = graph.vjp(outputs, seeds, [*slots, *forces, *targets])
        values = emit(b, found, {**self.parameters, **given}, self._network(step))
        for total, expression in zip(self.totals, found, strict=False):
            value = values.pop(0)
            if expression.value != 0:
                b.set(total, b.add(b.get(total), value))
        for force in forces:
            call, k = graph.payloads[force.index]
            self.store("force_gradient", self.component_row(k, self.call_number(call, step)), values.pop(0))
        return values

    def _network(self, step: Any) -> External:
        """Return what reads the slopes that the forward loop kept."""

        def read(kind: str, payload: tuple[int, ...], position: list[Any]) -> Any:
            call, *place = payload
            k = place[0] if kind == "force" else self.dim + place[0] * self.dim + place[1]
            return self.load("slopes", self.slope_row(k, self.call_number(call, step)))

        return read


def _named(name: str, values: Iterable[Any]) -> Values:
    return {(name, k): value for k, value in enumerate(values)}


def _drive_keys(program: StepProgram) -> list[Hashable]:
    """Return the inputs that are drives, in the order of the array."""
    return [("d", node, k) for node in range(program.num_nodes) for k in range(program.dim)]
