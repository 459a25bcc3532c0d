"""Scalar expressions as a graph: built once, simplified on the way, differentiated in reverse.

A `Graph` holds every value once (common subexpressions are found when they are
made). `Expression` is a handle with the usual operators. Graphs come from traced
torch functions (`lowering`) and are written out by a `FunctionBuilder`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Union

from vinppl.native.builder import FunctionBuilder
from vinppl.native.functions import BOOLEAN_OPERATIONS, OPERATIONS, half_power

__all__ = ["Expression", "External", "Graph", "Number", "emit"]

Number = Union[float, bool, "Expression"]


class Graph:
    """Values of a straight-line program, each an operation on earlier ones."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.operands: list[tuple[int, ...]] = []
        self.payloads: list[Any] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def __len__(self) -> int:
        return len(self.operations)

    def input(self, key: Hashable) -> Expression:
        """Return the input called `key`."""
        return self._new("input", (), key)

    def constant(self, value: float | bool) -> Expression:
        """Return a constant."""
        if isinstance(value, bool):
            return self._new("truth", (), value)
        value = float(value) if value == value else math.nan  # the one NaN that is found again
        return self._new("constant", (), (0.0, math.copysign(1.0, value)) if value == 0 else value)

    def make(self, operation: str, *arguments: Number) -> Expression:
        """Return an operation on expressions and numbers, simplified."""
        x = [a if isinstance(a, Expression) else self.constant(a) for a in arguments]
        values = [a.value for a in x]
        if all(v is not None for v in values) and operation in _FOLD:
            try:
                return self.constant(_FOLD[operation](*values))
            except (ArithmeticError, ValueError):
                pass
        simple = _simplify(self, operation, x, values)
        return simple if simple is not None else self._new(operation, tuple(a.index for a in x), None)

    def _new(self, operation: str, operands: tuple[int, ...], payload: Any) -> Expression:
        key = (operation, operands, payload)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.operations)
            self.operations.append(operation)
            self.operands.append(operands)
            self.payloads.append(payload)
        return Expression(self, found)

    def inputs(self, outputs: Iterable[Expression]) -> list[Hashable]:
        """Return the keys of the inputs that some outputs depend on."""
        return [self.payloads[i] for i in self.needed(outputs) if self.operations[i] == "input"]

    def needed(self, outputs: Iterable[Expression]) -> list[int]:
        """Return the values that some outputs depend on, in order."""
        wanted, stack = set(), [o.index for o in outputs]
        while stack:
            i = stack.pop()
            if i not in wanted:
                wanted.add(i)
                stack.extend(self.operands[i])
        return sorted(wanted)

    def force(self, call: int, component: int, position: Sequence[Expression]) -> Expression:
        """Return one component of the gradient of a potential that is evaluated elsewhere."""
        return self._new("force", tuple(x.index for x in position), (call, component))

    def vjp(
        self, outputs: Sequence[Expression], cotangents: Sequence[Number], targets: Sequence[Expression]
    ) -> list[Expression]:
        """Return the vector–Jacobian product: cotangents of `targets`, inputs or other values.

        Args:
            outputs: values of the graph.
            cotangents: one for each output.
            targets: values to differentiate by.
        """
        total: dict[int, Expression] = {}

        def give(index: int, amount: Number) -> None:
            amount = amount if isinstance(amount, Expression) else self.constant(amount)
            total[index] = total[index] + amount if index in total else amount

        for output, cotangent in zip(outputs, cotangents, strict=True):
            give(output.index, cotangent)
        for i in reversed(self.needed(outputs)):
            if i not in total:
                continue
            if self.operations[i] == "force":
                call, component = self.payloads[i]
                for column, j in enumerate(self.operands[i]):
                    give(j, total[i] * self._new("hessian", self.operands[i], (call, component, column)))
            rule = DERIVATIVES.get(self.operations[i])
            if rule is None:
                continue
            arguments = [Expression(self, j) for j in self.operands[i]]
            amounts = rule(total[i], Expression(self, i), *arguments)
            for j, amount in zip(self.operands[i], amounts, strict=True):
                if amount is not None:
                    give(j, amount)
        zero = self.constant(0.0)
        return [total.get(target.index, zero) for target in targets]

    def forces(self, outputs: Iterable[Expression]) -> list[Expression]:
        """Return the components of external forces that some outputs depend on."""
        return [Expression(self, i) for i in self.needed(outputs) if self.operations[i] == "force"]


class Expression:
    """One value of a graph, with arithmetic."""

    __slots__ = ("graph", "index")

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index

    @property
    def value(self) -> float | bool | None:
        """The number, if the expression is a constant."""
        kind, payload = self.graph.operations[self.index], self.graph.payloads[self.index]
        if kind == "constant":
            return payload[0] * payload[1] if isinstance(payload, tuple) else payload
        return payload if kind == "truth" else None

    @property
    def is_truth(self) -> bool:
        """Whether the value is a truth value."""
        index = self.index
        while self.graph.operations[index] == "where":
            index = self.graph.operands[index][1]
        return self.graph.operations[index] in ("truth", *BOOLEAN_OPERATIONS)

    def __add__(self, other: Number) -> Expression:
        return self.graph.make("add", self, other)

    def __radd__(self, other: Number) -> Expression:
        return self.graph.make("add", other, self)

    def __sub__(self, other: Number) -> Expression:
        return self.graph.make("sub", self, other)

    def __rsub__(self, other: Number) -> Expression:
        return self.graph.make("sub", other, self)

    def __mul__(self, other: Number) -> Expression:
        return self.graph.make("mul", self, other)

    def __rmul__(self, other: Number) -> Expression:
        return self.graph.make("mul", other, self)

    def __truediv__(self, other: Number) -> Expression:
        return self.graph.make("div", self, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return self.graph.make("div", other, self)

    def __neg__(self) -> Expression:
        return self.graph.make("neg", self)

    def apply(self, operation: str, *others: Number) -> Expression:
        """Return another operation on this value."""
        return self.graph.make(operation, self, *others)


def _simplify(graph: Graph, operation: str, x: list[Expression], values: list[Any]) -> Expression | None:
    """Return a simpler value that is equal for finite operands, if there is one."""
    if operation == "add":
        if values[0] == 0:
            return x[1]
        if values[1] == 0:
            return x[0]
        if graph.operations[x[1].index] == "neg":
            return x[0] - Expression(graph, graph.operands[x[1].index][0])
    elif operation == "sub":
        if values[1] == 0:
            return x[0]
        if values[0] == 0:
            return -x[1]
    elif operation == "mul":
        for i in (0, 1):
            other = x[1 - i]
            if values[i] == 0:
                return graph.constant(0.0)
            if values[i] == 1:
                return other
            if values[i] == -1:
                return -other
    elif operation == "div":
        if values[1] == 1:
            return x[0]
        if values[0] == 0:
            return graph.constant(0.0)
        if values[1] is not None and values[1] != 0 and math.frexp(values[1])[0] in (0.5, -0.5):
            return x[0] * (1 / values[1])
    elif operation == "neg" and graph.operations[x[0].index] == "neg":
        return Expression(graph, graph.operands[x[0].index][0])
    elif operation == "where":
        if values[0] is not None:
            return x[1] if values[0] else x[2]
        if x[1].index == x[2].index:
            return x[1]
        if values[1] is True and values[2] is False:
            return x[0]
        if x[1].is_truth:
            return (x[0].apply("and", x[1])).apply("or", x[0].apply("not").apply("and", x[2]))
    elif operation == "pow" and values[1] in (0, 0.5, 1, 2):
        return (graph.constant(1.0), x[0].apply("sqrt"), x[0], x[0] * x[0])[(0, 0.5, 1, 2).index(values[1])]
    elif operation in ("and", "or"):
        for i in (0, 1):
            if values[i] is not None:
                return x[1 - i] if values[i] == (operation == "and") else x[i]
    return None


_FOLD: dict[str, Callable[..., float | bool]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "sqrt": math.sqrt,
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "sign": lambda x: math.copysign(1.0, x) if x else 0.0,
    "sin": math.sin,
    "cos": math.cos,
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "pow": math.pow,
    "lgamma": math.lgamma,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.not_,
}


def _where(g: Expression, out: Expression, mask: Expression, a: Expression, b: Expression) -> tuple[Any, ...]:
    return None, g.graph.make("where", mask, g, 0.0), g.graph.make("where", mask, 0.0, g)


def _extremum(relation: str) -> Callable[..., tuple[Any, ...]]:
    def rule(g: Expression, out: Expression, a: Expression, b: Expression) -> tuple[Any, ...]:
        first, tie = a.apply(relation, b), a.apply("eq", b)
        share = g.graph.make("where", tie, 0.5, g.graph.make("where", first, 1.0, 0.0))
        return g * share, g * (1.0 - share)

    return rule


def _power(g: Expression, out: Expression, a: Expression, n: Expression) -> tuple[Any, ...]:
    by_base = g * n * a.apply("pow", n - 1.0)
    if n.value is not None:
        return by_base, None
    # As torch has it: flat in x for n = 0, and in n for x = 0 if n is not negative.
    flat = a.apply("eq", 0.0).apply("and", n.apply("ge", 0.0))
    make = g.graph.make
    return make("where", n.apply("eq", 0.0), 0.0, by_base), g * make("where", flat, 0.0, out * a.apply("log"))


DERIVATIVES: dict[str, Callable[..., tuple[Number | None, ...]]] = {
    "add": lambda g, out, a, b: (g, g),
    "sub": lambda g, out, a, b: (g, -g),
    "mul": lambda g, out, a, b: (g * b, g * a),
    "div": lambda g, out, a, b: (g / b, -(g / b) * out),
    "neg": lambda g, out, a: (-g,),
    "sqrt": lambda g, out, a: (0.5 * g / out,),
    "abs": lambda g, out, a: (g * a.apply("sign"),),
    "sin": lambda g, out, a: (g * a.apply("cos"),),
    "cos": lambda g, out, a: (-(g * a.apply("sin")),),
    "exp": lambda g, out, a: (g * out,),
    "expm1": lambda g, out, a: (g * (out + 1.0),),
    "log": lambda g, out, a: (g / a,),
    "log1p": lambda g, out, a: (g / (a + 1.0),),
    "tanh": lambda g, out, a: (g * (1.0 - out * out),),
    "sigmoid": lambda g, out, a: (g * out * (1.0 - out),),
    "asin": lambda g, out, a: (g / (1.0 - a * a).apply("sqrt"),),
    "acos": lambda g, out, a: (-(g / (1.0 - a * a).apply("sqrt")),),
    "atan": lambda g, out, a: (g / (1.0 + a * a),),
    "atan2": lambda g, out, a, b: (g * b / (a * a + b * b), -(g * a) / (a * a + b * b)),
    "sinh": lambda g, out, a: (g * a.apply("cosh"),),
    "cosh": lambda g, out, a: (g * a.apply("sinh"),),
    "lgamma": lambda g, out, a: (g * a.apply("digamma"),),
    "erf": lambda g, out, a: (g * (2 / math.sqrt(math.pi)) * (-(a * a)).apply("exp"),),
    "minimum": _extremum("lt"),
    "maximum": _extremum("gt"),
    "pow": _power,
    "where": _where,
}
"""Cotangents of the operands of an operation, from that of its result. Operations without a rule are flat."""


def _is_half(exponent: Any) -> bool:
    """Whether a constant is a whole number and a half, and small."""
    return exponent is not None and abs(exponent) <= 8 and abs(exponent) % 1 == 0.5


External = Callable[[str, tuple[int, ...], list[Any]], Any]
"""Gives a component of an external force or of its derivative: its kind, payload and the position."""


def emit(
    builder: FunctionBuilder,
    outputs: Sequence[Expression],
    inputs: Mapping[Hashable, Any],
    external: External | None = None,
) -> list[Any]:
    """Write the values that the outputs need, and return the outputs.

    Args:
        builder: of the function to write into.
        outputs: expressions of one graph.
        inputs: value of every input.
        external: gives the values of external forces.
    """
    if not outputs:
        return []
    graph = outputs[0].graph
    values: dict[int, Any] = {}
    for i in graph.needed(outputs):
        kind, payload = graph.operations[i], graph.payloads[i]
        if kind == "input":
            values[i] = inputs[payload]
        elif kind == "constant":
            values[i] = builder.const(payload[0] * payload[1] if isinstance(payload, tuple) else payload)
        elif kind == "truth":
            values[i] = builder.mask_const(payload)
        elif kind in ("force", "hessian"):
            assert external is not None
            values[i] = external(kind, payload, [values[j] for j in graph.operands[i]])
        elif kind == "pow" and _is_half(Expression(graph, graph.operands[i][1]).value):
            base, exponent = graph.operands[i]
            power: Any = Expression(graph, exponent).value
            values[i] = half_power(builder, values[base], power)
        else:
            values[i] = OPERATIONS[kind](builder, *(values[j] for j in graph.operands[i]))
    return [values[o.index] for o in outputs]
