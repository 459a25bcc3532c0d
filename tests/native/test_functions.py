"""Elementary functions over lanes against mpmath, in units of the last place, and NumPy at special values."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.compiler import Library, compile_module, vector_width
from vinppl.native.functions import BOOLEAN_OPERATIONS, OPERATIONS, half_power

Array = np.ndarray[Any, Any]

BINARY = {
    "add",
    "sub",
    "mul",
    "div",
    "minimum",
    "maximum",
    "atan2",
    "pow",
    "and",
    "or",
} | BOOLEAN_OPERATIONS - {"not"}
HALVES = (0.5, 1.5, 2.5, 7.5, -0.5, -3.5)


def arity(name: str) -> int:
    return 3 if name == "where" else 2 if name in BINARY else 1


def truth_arguments(name: str) -> int:
    return {"where": 1, "and": 2, "or": 2, "not": 1}.get(name, 0)


@functools.cache
def library(dtype: str, lanes: int) -> Library:
    """Return every operation as `f(int64 N, result, operands ...)`; truth values are numbers."""
    module = new_module("operations")
    halves = {f"half {n}": functools.partial(_half, n) for n in HALVES}
    for name, rule in {**OPERATIONS, **halves}.items():
        types = [INDEX] + [POINTER] * (1 + arity(name))
        b = FunctionBuilder(module, f"test {name}", types, lanes=lanes, precision=Precision(dtype))
        size, out, *operands = b.arguments
        with b.loop(size, step=lanes) as i:
            values = [b.load(pointer, i) for pointer in operands]
            for k in range(truth_arguments(name)):
                values[k] = b.compare("!=", values[k], b.const(0.0))
            result = rule(b, *values)
            if name in BOOLEAN_OPERATIONS:
                result = b.select(result, b.const(1.0), b.const(0.0))
            b.store(result, out, i)
        b.finish()
    return compile_module(module)


def _half(exponent: float, b: FunctionBuilder, x: Any) -> Any:
    return half_power(b, x, exponent)


def evaluate(name: str, *operands: Array, lanes: int = 1) -> Array:
    """Return an operation on arrays of one type, filled up to whole lanes."""
    dtype, count = operands[0].dtype.name, len(operands[0])
    size = -(-count // lanes) * lanes
    arrays = [np.concatenate([x, np.full(size - count, x[-1])]).astype(dtype) for x in operands]
    out = np.full(size, np.nan, dtype=dtype)
    types = [ctypes.c_int64] + [ctypes.c_void_p] * (1 + len(arrays))
    function = library(dtype, lanes).function(f"test {name}", types)
    function(size, out.ctypes.data, *(x.ctypes.data for x in arrays))
    return out[:count]


def points(low: float, high: float, *, tiny: float = 0.0, count: int = 300, seed: int = 0) -> Array:
    """Return points of an interval, and as many of either sign that come close to zero if `tiny` is not."""
    rng = np.random.default_rng(seed)
    found = [rng.uniform(low, high, count)]
    if tiny:
        near = 10 ** rng.uniform(np.log10(tiny), np.log10(max(abs(low), abs(high))), count)
        found += [s * near for s in (1.0, -1.0) if low <= s * near.max() <= high]
    return np.concatenate(found)


PI = np.pi
DOMAINS: dict[str, Array] = {
    "sqrt": points(0, 1e10, tiny=1e-300),
    "exp": np.concatenate([points(-700, 700), points(-1, 1, tiny=1e-20), points(-745, -700)]),
    "expm1": np.concatenate([points(-700, 700), points(-1, 1, tiny=1e-300), points(-45, 2)]),
    "log": np.concatenate([points(0, 1e300, tiny=1e-320), points(0.5, 2), 1 + points(-1e-6, 1e-6)]),
    "log1p": np.concatenate([points(-0.999999, 1e6), points(-0.9, 0.9, tiny=1e-300)]),
    "sin": np.concatenate([points(-1e6, 1e6), points(-7, 7, tiny=1e-300), PI / 4 * np.arange(-9, 10.0)]),
    "tanh": np.concatenate([points(-30, 30), points(-1, 1, tiny=1e-300)]),
    "sigmoid": points(-700, 700, tiny=1e-10),
    "asin": np.concatenate([points(-1, 1, tiny=1e-300), 1 - points(0, 1e-6, tiny=1e-16), [0.5, -0.5]]),
    "atan": points(-1e10, 1e10, tiny=1e-300),
    "sinh": points(-700, 700, tiny=1e-300),
    "cosh": points(-700, 700, tiny=1e-300),
    "erf": points(-6, 6, tiny=1e-300),
    "lgamma": np.concatenate([points(0.01, 1e6), points(0.5, 20)]),
}
DOMAINS["cos"] = DOMAINS["sin"]
DOMAINS["acos"] = DOMAINS["asin"]

EXACT: dict[str, Callable[..., Any]] = {
    **{name: getattr(mpmath, name) for name in ("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos")},
    **{name: getattr(mpmath, name) for name in ("tanh", "asin", "acos", "atan", "sinh", "cosh", "erf")},
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "lgamma": mpmath.loggamma,
}

# Units in the last place that an operation may be off; those of the C library are as good as it is.
ULPS = {"log1p": 3.0, "tanh": 4.0, "sigmoid": 3.0, "expm1": 3.0, "lgamma": 8.0}


def exact(name: str, *operands: Array) -> list[Any]:
    with mpmath.workdps(60):
        return [EXACT[name](*(mpmath.mpf(float(x)) for x in row)) for row in zip(*operands, strict=True)]


def ulps(value: Array, truth: list[Any]) -> float:
    """Return the largest error in units of the last place of the exact value."""
    with mpmath.workdps(60):
        spacing = np.spacing(np.abs(np.array([float(t) for t in truth])).astype(value.dtype))
        errors = [abs(mpmath.mpf(float(v)) - t) for v, t in zip(value, truth, strict=True)]
        return max(float(e / mpmath.mpf(float(s))) for e, s in zip(errors, spacing, strict=True))


@pytest.mark.parametrize("name", DOMAINS)
def test_double_precision(name: str) -> None:
    x = DOMAINS[name]
    value = evaluate(name, x)
    assert ulps(value, exact(name, x)) <= ULPS.get(name, 2.0)
    assert np.array_equal(evaluate(name, x, lanes=vector_width(8)), value)


@pytest.mark.parametrize("name", DOMAINS)
def test_single_precision(name: str) -> None:
    # Arguments and results within single precision.
    limit = {"exp": 87, "sinh": 88, "cosh": 88, "expm1": 87, "sigmoid": 80}.get(name, 1e30)
    size = np.abs(DOMAINS[name])
    x = DOMAINS[name][(size < limit) & ((size == 0) | (size > 1e-30))].astype(np.float32)
    if name in ("sin", "cos"):
        x = np.concatenate([x, points(-1000, 1000).astype(np.float32)])
    value = evaluate(name, x)
    assert value.dtype == np.float32
    assert ulps(value, exact(name, x)) <= 4.0
    assert np.array_equal(evaluate(name, x, lanes=vector_width(4)), value)


def test_digamma() -> None:
    x = np.concatenate([points(1e-3, 1e6), points(0.01, 12)])
    root = 1.4616321449683623
    with mpmath.workdps(40):
        truth = np.array([float(mpmath.digamma(mpmath.mpf(float(v)))) for v in x])
    for lanes in (1, vector_width(8)):
        value = evaluate("digamma", x, lanes=lanes)
        far = np.abs(x - root) > 0.1
        assert np.max(np.abs(value / truth - 1)[far]) < 1e-13
        assert np.max(np.abs(value - truth)[~far], initial=0) < 1e-15
        single = evaluate("digamma", x.astype(np.float32), lanes=lanes)
        exact_there = scipy.special.digamma(x.astype(np.float32).astype(float))
        assert np.max(np.abs(single - exact_there) / (1 + np.abs(exact_there))) < 1e-6


@pytest.mark.parametrize("exponent", HALVES)
def test_half_powers(exponent: float) -> None:
    x = points(1e-3, 1e3)
    with mpmath.workdps(60):
        truth = [mpmath.mpf(float(v)) ** exponent for v in x]
    assert ulps(evaluate(f"half {exponent}", x), truth) <= 6.0
    edges = np.array([0.0, np.inf, np.nan, -1.0])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(evaluate(f"half {exponent}", edges), edges**exponent)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "atan2", "pow"])
def test_binary_operations(name: str, dtype: str) -> None:
    x, y = (points(-5, 5, tiny=1e-10, seed=s).astype(dtype) for s in (1, 2))
    x, y = (np.abs(x) + 0.1, y) if name == "pow" else (x, y)
    truth = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "atan2": np.arctan2,
        "pow": np.power,
    }[name](x.astype(np.longdouble), y.astype(np.longdouble))
    for lanes in (1, vector_width(np.dtype(dtype).itemsize)):
        value = evaluate(name, x, y, lanes=lanes)
        assert np.max(np.abs(value - truth) / np.spacing(np.abs(value))) <= 1.0


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e300, -1e300])
NUMPY: dict[str, Callable[..., Array]] = {
    "neg": np.negative,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "floor": np.floor,
    "round": np.rint,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "erf": scipy.special.erf,
    "sign": np.sign,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "atan2": np.arctan2,
    "pow": np.power,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NUMPY)
def test_special_values(name: str, dtype: str) -> None:
    with np.errstate(all="ignore"):
        values = SPECIAL.astype(dtype)
        operands = [x.reshape(-1) for x in np.meshgrid(*[values] * arity(name))]
        truth = NUMPY[name](*operands).astype(dtype)
    for lanes in (1, vector_width(np.dtype(dtype).itemsize)):
        value = evaluate(name, *operands, lanes=lanes)
        np.testing.assert_allclose(value, truth, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_angles_without_a_meaning(name: str) -> None:
    for dtype, limit in (("float64", 2.0**40), ("float32", 2.0**20)):
        x = np.array([limit, -limit, 10 * limit, np.inf, -np.inf, np.nan], dtype=dtype)
        assert np.isnan(evaluate(name, x)).all()
        near = np.array([0.999 * limit], dtype=dtype)
        assert ulps(evaluate(name, near), exact(name, near)) <= 4.0
    zero = np.array([0.0, -0.0])
    assert evaluate(name, zero).tolist() == ([0.0, 0.0] if name == "sin" else [1.0, 1.0])


def test_gradual_underflow_and_overflow_of_the_exponential() -> None:
    x = np.array([-745.1, -740.0, -720.0, 709.78, 709.79, -746.0, 1e308, -1e308])
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(evaluate("exp", x), np.exp(x), rtol=1e-15, atol=5e-324)
        small = x.astype(np.float32)
        np.testing.assert_allclose(evaluate("exp", small), np.exp(small), rtol=3e-7, atol=2e-45)


def test_digamma_and_lgamma_at_the_edge() -> None:
    edges = np.array([0.0, np.inf, np.nan])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(evaluate("lgamma", edges), scipy.special.gammaln(edges))
        np.testing.assert_array_equal(evaluate("digamma", edges), scipy.special.digamma(edges))


def test_every_operation_is_tested() -> None:
    assert set(OPERATIONS) == set(DOMAINS) | set(NUMPY) | {"digamma"}
