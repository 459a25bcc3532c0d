"""Expression graphs: what is simplified, and values and derivatives against torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.compiler import compile_module, vector_width
from vinppl.native.expressions import DERIVATIVES, Expression, Graph, emit
from vinppl.native.functions import BOOLEAN_OPERATIONS, OPERATIONS


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINPPL_CACHE_DIR", "")


def compiled(outputs: list[Expression], points: Tensor, lanes: int = 1) -> Tensor:
    """Return the values `(outputs, N)` of expressions of inputs 0, 1, ... at points `(inputs, N)`."""
    count, width = points.shape[-1], -(-points.shape[-1] // lanes) * lanes
    module = new_module("expressions")
    b = FunctionBuilder(module, "f", [INDEX] + [POINTER] * 2, lanes=lanes, precision=Precision("float64"))
    size, x, out = b.arguments

    def row(k: int, column: Any) -> Any:
        return b.ir.add(b.ir.mul(b.index(k), size), column)

    with b.loop(size, step=lanes) as i:
        inputs = {k: b.load(x, row(k, i)) for k in range(len(points))}
        for k, value in enumerate(emit(b, outputs, inputs)):
            b.store(value, out, row(k, i))
    b.finish()
    filled = torch.cat([points, points[:, -1:].expand(-1, width - count)], -1).contiguous()
    result = torch.full((len(outputs), width), torch.nan)
    function = compile_module(module).function("f", [ctypes.c_int64] + [ctypes.c_void_p] * 2)
    function(width, filled.data_ptr(), result.data_ptr())
    return result[:, :count]


# Simplification


def inputs(count: int = 2) -> tuple[Graph, list[Expression]]:
    graph = Graph()
    return graph, [graph.input(k) for k in range(count)]


def test_equal_values_are_one() -> None:
    graph, (x, y) = inputs()
    assert (x * y + 1.0).index == (x * y + 1.0).index
    assert (x * y).index != (y * x).index
    assert graph.constant(2).index == graph.constant(2.0).index
    assert graph.constant(math.nan).index == graph.constant(float("nan")).index
    assert graph.constant(0.0).index != graph.constant(-0.0).index
    assert graph.constant(True).index != graph.constant(1.0).index


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x, y: x + 0.0, lambda x, y: x),
        (lambda x, y: 0.0 + x, lambda x, y: x),
        (lambda x, y: x - 0.0, lambda x, y: x),
        (lambda x, y: 0.0 - x, lambda x, y: -x),
        (lambda x, y: x + -y, lambda x, y: x - y),
        (lambda x, y: x * 1.0, lambda x, y: x),
        (lambda x, y: -1.0 * x, lambda x, y: -x),
        (lambda x, y: x * 0.0, lambda x, y: x.graph.constant(0.0)),
        (lambda x, y: x / 1.0, lambda x, y: x),
        (lambda x, y: x / 4.0, lambda x, y: x * 0.25),
        (lambda x, y: 0.0 / x, lambda x, y: x.graph.constant(0.0)),
        (lambda x, y: (-x).apply("neg"), lambda x, y: x),
        (lambda x, y: x.apply("pow", 0.0), lambda x, y: x.graph.constant(1.0)),
        (lambda x, y: x.apply("pow", 1.0), lambda x, y: x),
        (lambda x, y: x.apply("pow", 2.0), lambda x, y: x * x),
        (lambda x, y: x.apply("pow", 0.5), lambda x, y: x.apply("sqrt")),
        (lambda x, y: x.graph.make("where", True, x, y), lambda x, y: x),
        (lambda x, y: x.graph.make("where", x.apply("lt", y), x, x), lambda x, y: x),
        (lambda x, y: x.graph.make("where", x.apply("lt", y), True, False), lambda x, y: x.apply("lt", y)),
        (lambda x, y: x.apply("lt", y).apply("and", True), lambda x, y: x.apply("lt", y)),
        (lambda x, y: x.apply("lt", y).apply("or", True), lambda x, y: x.graph.constant(True)),
        (lambda x, y: x.graph.make("add", 2.0, 3.0), lambda x, y: x.graph.constant(5.0)),
        (lambda x, y: x.graph.make("lt", 2.0, 3.0), lambda x, y: x.graph.constant(True)),
        (lambda x, y: x.graph.make("floor", -2.5), lambda x, y: x.graph.constant(-3.0)),
        (lambda x, y: x.graph.make("sign", -2.5), lambda x, y: x.graph.constant(-1.0)),
    ],
)
def test_simplification(build: Callable[..., Expression], expected: Callable[..., Expression]) -> None:
    _, (x, y) = inputs()
    assert build(x, y).index == expected(x, y).index


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("div", (1.0, 0.0)), ("log", (-1.0,)), ("exp", (1e4,)), ("floor", (math.inf,))],
)
def test_what_python_cannot_work_out_is_left_to_the_machine(
    operation: str, arguments: tuple[float, ...]
) -> None:
    graph, _ = inputs()
    value = graph.make(operation, *arguments)
    assert value.value is None
    expected = {"div": math.inf, "log": math.nan, "exp": math.inf, "floor": math.inf}[operation]
    torch.testing.assert_close(
        compiled([value], torch.zeros(1, 1)), torch.tensor([[expected]]), equal_nan=True
    )


def test_a_division_by_three_stays_a_division() -> None:
    graph, (x, _) = inputs()
    assert graph.operations[(x / 3.0).index] == "div"


def test_truth_values() -> None:
    graph, (x, y) = inputs()
    less = x.apply("lt", y)
    nested = graph.make("where", less, less, x.apply("gt", 0.0))
    assert less.is_truth
    assert nested.is_truth
    assert graph.constant(False).is_truth
    assert not x.is_truth
    deep = x
    for _ in range(5000):
        deep = graph.make("where", less, deep, y + deep)
    assert not deep.is_truth
    points = torch.tensor([[0.1, 0.3, -0.2], [0.2, 0.1, -0.3]])
    number = graph.make("where", nested, 1.0, 0.0)
    assert compiled([number], points).tolist() == [[1.0, 1.0, 0.0]]


def test_needed_and_inputs() -> None:
    graph, (x, y) = inputs()
    unused = x * 3.0
    wanted = (y + 1.0).apply("sin")
    assert graph.inputs([wanted]) == [1]
    assert unused.index not in graph.needed([wanted])
    assert graph.needed([wanted]) == sorted(graph.needed([wanted]))
    assert emit(None, [], {}) == []  # type: ignore[arg-type]


# Derivatives

TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
}


def by_torch(operation: str, *arguments: Any) -> Any:
    function = TORCH.get(operation, getattr(torch, operation, None))
    assert function is not None
    return function(*(torch.as_tensor(a) for a in arguments))


POSITIVE, UNIT = ("sqrt", "log", "lgamma", "digamma", "pow"), ("asin", "acos")
DIFFERENTIABLE = sorted(set(DERIVATIVES) - {"where"})


def arguments_for(operation: str) -> Tensor:
    count = 1 if DERIVATIVES[operation].__code__.co_argcount == 3 else 2
    x = torch.randn(count, 40)
    if operation in POSITIVE:
        x[0] = x[0].abs() + 0.1
    if operation == "log1p":
        x = x.abs() - 0.9
    return 0.95 * x.tanh() if operation in UNIT else x


def check(outputs: list[Expression], points: Tensor, expected: list[Tensor], rtol: float = 1e-12) -> None:
    """Compare values and gradients, worked out alone and side by side."""
    for lanes in (1, vector_width(8)):
        values = compiled(outputs, points, lanes)
        for value, reference in zip(values, expected, strict=True):
            scale = reference[reference.isfinite()].abs().max() if reference.isfinite().any() else 1.0
            torch.testing.assert_close(
                value, reference, rtol=rtol, atol=rtol * float(scale) * 1e-3, equal_nan=True
            )


@pytest.mark.parametrize("operation", DIFFERENTIABLE)
def test_derivative(operation: str) -> None:
    points = arguments_for(operation)
    graph, variables = inputs(len(points))
    value = graph.make(operation, *variables)
    slopes = graph.vjp([value], [graph.input("seed") * 0.0 + 0.7], variables)
    leaves = [p.clone().requires_grad_() for p in points]
    reference = by_torch(operation, *leaves)
    expected = torch.autograd.grad(reference.sum() * 0.7, leaves)
    check([value, *slopes], points, [reference.detach(), *expected])


@pytest.mark.parametrize("exponent", [-2.5, -1.0, 0.5, 1.5, 2.5, 3.0, 0.3, 9.5])
def test_powers_by_a_number(exponent: float) -> None:
    points = torch.cat([torch.rand(1, 30) + 0.1, torch.zeros(1, 1)], -1)
    graph, (x,) = inputs(1)
    value = x.apply("pow", exponent)
    slope = graph.vjp([value], [1.0], [x])
    leaf = points[0].clone().requires_grad_()
    reference = leaf**exponent
    expected = torch.autograd.grad(reference.sum(), leaf)
    check([value, *slope], points, [reference.detach(), *expected])


def test_powers_at_zero_are_as_flat_as_torch_has_them() -> None:
    points = torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 2.0, 0.0, 1.0]])
    graph, variables = inputs()
    value = graph.make("pow", *variables)
    slopes = graph.vjp([value], [1.0], variables)
    leaves = [p.clone().requires_grad_() for p in points]
    reference = leaves[0] ** leaves[1]
    expected = torch.autograd.grad(reference.sum(), leaves)
    check([value, *slopes], points, [reference.detach(), *expected])


@pytest.mark.parametrize("operation", ["minimum", "maximum", "abs"])
def test_slopes_at_a_kink(operation: str) -> None:
    points = torch.tensor([[0.3, 0.0, -0.2], [0.3, 0.0, -0.2]])[: 1 if operation == "abs" else 2]
    graph, variables = inputs(len(points))
    value = graph.make(operation, *variables)
    slopes = graph.vjp([value], [1.0], variables)
    leaves = [p.clone().requires_grad_() for p in points]
    expected = torch.autograd.grad(by_torch(operation, *leaves).sum(), leaves)
    check(slopes, points, list(expected))


def test_a_masked_value_does_not_spoil_the_derivative() -> None:
    graph, (x,) = inputs(1)
    inside = x.apply("gt", 0.0)
    value = graph.make("where", inside, x.apply("log"), 0.0)
    (slope,) = graph.vjp([value], [1.0], [x])
    values = compiled([value, slope], torch.tensor([[-1.0, 1.0]]))
    assert values.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_operations_without_a_rule_are_flat() -> None:
    graph, (x, y) = inputs()
    for operation in ("floor", "round", "sign", "digamma"):
        (slope,) = graph.vjp([x.apply(operation)], [1.0], [x])
        assert slope.value == 0.0
    (slope,) = graph.vjp([y], [1.0], [x])
    assert slope.value == 0.0
    assert set(OPERATIONS) - set(DERIVATIVES) == BOOLEAN_OPERATIONS | {"floor", "round", "sign", "digamma"}


def test_targets_may_be_values_on_the_way() -> None:
    graph, (x, y) = inputs()
    middle = x * y
    (slope,) = graph.vjp([middle.apply("sin") * x], [1.0], [middle])
    points = torch.randn(2, 5)
    expected = (points[0] * points[1]).cos() * points[0]
    torch.testing.assert_close(compiled([slope], points)[0], expected)


def test_forces_are_differentiated_by_their_hessian() -> None:
    graph, (x, y) = inputs()
    forces = [graph.force(3, k, [x, y * 2.0]) for k in range(2)]
    slopes = graph.vjp(forces, [5.0, 7.0], [x, y])
    assert [graph.payloads[f.index] for f in graph.forces(slopes)] == []
    hessians = [graph.payloads[i] for i in graph.needed(slopes) if graph.operations[i] == "hessian"]
    assert sorted(hessians) == [(3, 0, 0), (3, 0, 1), (3, 1, 0), (3, 1, 1)]
    b = FunctionBuilder(
        new_module("m"), "f", [INDEX] + [POINTER] * 2, lanes=1, precision=Precision("float64")
    )
    table = {(3, k, m): 10.0 * k + m + 1 for k in range(2) for m in range(2)}
    values = emit(b, slopes, {0: b.const(0.0), 1: b.const(0.0)}, lambda kind, key, at: b.const(table[key]))
    assert len(values) == 2


# Random expressions

SAFE: dict[str, Callable[..., Any]] = {
    "log": lambda f, x: f("log", f("add", f("mul", x, x), 0.5)),
    "sqrt": lambda f, x: f("sqrt", f("add", f("mul", x, x), 0.5)),
    "asin": lambda f, x: f("asin", f("mul", f("tanh", x), 0.9)),
    "acos": lambda f, x: f("acos", f("mul", f("tanh", x), 0.9)),
    "lgamma": lambda f, x: f("lgamma", f("add", f("abs", x), 0.5)),
    "log1p": lambda f, x: f("log1p", f("abs", x)),
    "exp": lambda f, x: f("exp", f("tanh", x)),
    "expm1": lambda f, x: f("expm1", f("tanh", x)),
    "sinh": lambda f, x: f("sinh", f("tanh", x)),
    "cosh": lambda f, x: f("cosh", f("tanh", x)),
    "div": lambda f, x, y: f("div", x, f("add", f("mul", y, y), 0.5)),
    "pow": lambda f, x, y: f("pow", f("add", f("abs", x), 0.3), f("tanh", y)),
    "where": lambda f, x, y, z: f("where", f("lt", x, 0.3), y, z),
}
BOTH = {name: SAFE.get(name, lambda f, *x, name=name: f(name, *x)) for name in [*DIFFERENTIABLE, "where"]}
UNARY = sorted(n for n in BOTH if DERIVATIVES[n].__code__.co_argcount == 3)
BINARY = sorted(set(BOTH) - set(UNARY) - {"where"})

LEAVES = st.one_of(
    st.sampled_from([("input", 0), ("input", 1), ("input", 2)]),
    st.tuples(st.just("number"), st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, -0.0, 1.7])),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(UNARY), inner),
        st.tuples(st.sampled_from(BINARY), inner, inner),
        st.tuples(st.just("where"), inner, inner, inner),
    ),
    max_leaves=12,
)


def build(tree: Any, variables: list[Any], apply: Callable[..., Any]) -> Any:
    kind, *rest = tree
    if kind == "input":
        return variables[rest[0]]
    if kind == "number":
        return rest[0]
    return BOTH[kind](apply, *(build(part, variables, apply) for part in rest))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tree=TREES, seed=st.integers(0, 100))
def test_random_expressions(tree: Any, seed: int) -> None:
    points = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    graph, variables = inputs(3)
    value = build(tree, list(variables), graph.make)
    value = value if isinstance(value, Expression) else graph.constant(value)
    slopes = graph.vjp([value], [1.0], variables)
    leaves = [p.clone().requires_grad_() for p in points]
    reference = torch.as_tensor(build(tree, list(leaves), by_torch), dtype=torch.float64).expand(6)
    expected = [torch.zeros(6, dtype=torch.float64)] * 3
    if reference.requires_grad:
        found = torch.autograd.grad(reference.sum(), leaves, materialize_grads=True)
        expected = list(found)
    values = compiled([value, *slopes], points)
    for actual, wanted in zip(values, [reference.detach(), *expected], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_operators_of_expressions() -> None:
    _, (x, y) = inputs()
    points = torch.randn(2, 4)
    a, b = points
    pairs = [(x + y, a + b), (2.0 - x, 2 - a), (x / y, a / b), (3.0 / y, 3 / b), (2.0 * x, 2 * a), (-x, -a)]
    values = compiled([e for e, _ in pairs], points)
    for value, (_, expected) in zip(values, pairs, strict=True):
        torch.testing.assert_close(value, expected)
