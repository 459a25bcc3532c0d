"""Elementary functions over lanes, as straight-line code that stays in vector registers.

Arguments are reduced to a small interval, where a polynomial is exact to the last
bits (Taylor series, and for the arc sine an interpolation at Chebyshev points); see
Muller, Elementary Functions, chapters 3 and 11. Errors are a few units in the last
place. What has no rule here is left to the C library, lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vinppl.native.builder import FunctionBuilder

__all__ = ["BOOLEAN_OPERATIONS", "OPERATIONS", "half_power"]

# pi/2 and log 2 as sums of doubles, for reductions that do not lose digits.
HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
HALF_PI_32 = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15)
LOG_2 = (0.6931471805599453, 2.3190468138462996e-17)
LOG_2_32 = (0.6931471824645996, -1.9046542121259336e-09)

# (asin(sqrt z) / sqrt z - 1) / z on [0, 1/4], interpolated at 14 Chebyshev points in 60 digits.
ASIN = (
    0.16666666666666666,
    0.07500000000000118,
    0.044642857142551895,
    0.03038194447553234,
    0.02237215744350722,
    0.017352816540325496,
    0.01396378001220357,
    0.011566459612121669,
    0.009621842970100282,
    0.009319560794767446,
    0.0030448799094556773,
    0.019554513336123378,
    -0.01924167174674304,
    0.02961201126495512,
)


def polynomial(b: FunctionBuilder, x: Any, coefficients: Sequence[float]) -> Any:
    """Return sum_i c_i x^i by Horner's rule."""
    total = b.const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = b.fma(total, x, b.const(c))
    return total


def _single(b: FunctionBuilder) -> bool:
    return b.precision.dtype == "float32"


def _reduce(b: FunctionBuilder, x: Any, parts: Sequence[float]) -> tuple[Any, Any]:
    """Return n = round(x / c) and x - n c for the constant c = sum(parts)."""
    n = b.intrinsic("rint", b.mul(x, b.const(1 / parts[0])))
    for part in parts:
        x = b.fma(b.neg(n), b.const(part), x)
    return n, x


def _sin_cos(b: FunctionBuilder, x: Any) -> tuple[Any, Any, Any]:
    """Return sin r, cos r and the quadrant n mod 4 of x = r + n pi/2."""
    n, r = _reduce(b, x, HALF_PI_32 if _single(b) else HALF_PI)
    s = b.mul(r, r)
    top = 5 if _single(b) else 9
    odd = [(-1) ** k / math.factorial(2 * k + 1) for k in range(1, top)]
    even = [(-1) ** k / math.factorial(2 * k) for k in range(2, top + 1)]
    sine = b.fma(b.mul(s, r), polynomial(b, s, odd), r)
    cosine = b.fma(b.mul(s, s), polynomial(b, s, even), b.fma(s, b.const(-0.5), b.const(1.0)))
    quadrant = b.sub(n, b.mul(b.const(4.0), b.intrinsic("floor", b.mul(n, b.const(0.25)))))
    return sine, cosine, quadrant


def _circular(b: FunctionBuilder, x: Any, shift: int) -> Any:
    sine, cosine, quadrant = _sin_cos(b, x)

    def is_one_of(first: int, second: int) -> Any:
        a = b.compare("==", quadrant, b.const(first % 4))
        return b.ir.or_(a, b.compare("==", quadrant, b.const(second % 4)))

    magnitude = b.select(is_one_of(1 - shift, 3 - shift), cosine, sine)
    signed = b.select(is_one_of(2 - shift, 3 - shift), b.neg(magnitude), magnitude)
    # Beyond 2^40 the nearest numbers are so far apart that an angle means nothing.
    known = b.compare("<", b.intrinsic("fabs", x), b.const(2.0**40 if not _single(b) else 2.0**20))
    return b.select(known, signed, b.const(math.nan))


def sin(b: FunctionBuilder, x: Any) -> Any:
    """Sine; NaN for arguments beyond 2^40 (2^20 in single precision)."""
    return _circular(b, x, 0)


def cos(b: FunctionBuilder, x: Any) -> Any:
    """Cosine; NaN for arguments beyond 2^40 (2^20 in single precision)."""
    return _circular(b, x, 1)


def _power_of_two(b: FunctionBuilder, k: Any) -> Any:
    """Return 2^k for whole k in the range of normal exponents."""
    bits = b.ir.add(b.ir.fptosi(k, b.integer_type), b.int_const(b.precision.bias))
    return b.ir.bitcast(b.ir.shl(bits, b.int_const(b.precision.mantissa)), b.type)


def _clamp(b: FunctionBuilder, x: Any, low: float, high: float) -> Any:
    """Return x within bounds, and `low` where it is NaN."""
    x = b.select(b.compare(">", x, b.const(low)), x, b.const(low))
    return b.select(b.compare("<", x, b.const(high)), x, b.const(high))


def _keep_nan(b: FunctionBuilder, x: Any, value: Any) -> Any:
    return b.select(b.compare("!=", x, x), x, value)


def _exp_minus_one(b: FunctionBuilder, x: Any) -> tuple[Any, Any]:
    """Return exp(r) - 1 and k of x = r + k log 2, for x within the range of the type."""
    k, r = _reduce(b, x, LOG_2_32 if _single(b) else LOG_2)
    top = 8 if _single(b) else 14
    series = polynomial(b, r, [1 / math.factorial(i) for i in range(2, top)])
    return b.fma(b.mul(r, r), series, r), k


def exp(b: FunctionBuilder, x: Any) -> Any:
    """Exponential, with gradual underflow."""
    low, high = (-104.0, 89.0) if _single(b) else (-746.0, 710.0)
    part, k = _exp_minus_one(b, _clamp(b, x, low, high))
    half = b.intrinsic("floor", b.mul(k, b.const(0.5)))
    value = b.mul(b.add(part, b.const(1.0)), _power_of_two(b, half))
    return _keep_nan(b, x, b.mul(value, _power_of_two(b, b.sub(k, half))))


def expm1(b: FunctionBuilder, x: Any) -> Any:
    """exp(x) - 1 without cancellation."""
    low, high = (-20.0, 88.0) if _single(b) else (-40.0, 709.0)
    part, k = _exp_minus_one(b, _clamp(b, x, low, high))
    scale = _power_of_two(b, k)
    near = b.fma(scale, part, b.sub(scale, b.const(1.0)))
    return _keep_nan(b, x, b.select(b.compare(">", x, b.const(high)), exp(b, x), near))


def log(b: FunctionBuilder, x: Any) -> Any:
    """Natural logarithm; NaN below zero."""
    p = b.precision
    tiny = b.compare("<", x, b.const(p.smallest_normal))
    lift = 2.0 ** (p.mantissa + 2)
    scaled = b.select(tiny, b.mul(x, b.const(lift)), x)
    bits = b.ir.bitcast(scaled, b.integer_type)
    # m in [sqrt(1/2), sqrt 2): subtract the bits of sqrt(1/2), take what is now the exponent.
    root = b.ir.bitcast(b.const(math.sqrt(0.5)), b.integer_type)
    exponent = b.ir.ashr(b.ir.sub(bits, root), b.int_const(p.mantissa))
    m = b.ir.bitcast(b.ir.sub(bits, b.ir.shl(exponent, b.int_const(p.mantissa))), b.type)
    e = b.ir.sitofp(exponent, b.type)
    e = b.select(tiny, b.sub(e, b.const(p.mantissa + 2.0)), e)
    d = b.sub(m, b.const(1.0))
    z = b.div(d, b.add(m, b.const(1.0)))
    s = b.mul(z, z)
    # log m = 2 atanh z = d - z (d - 2 (s/3 + s^2/5 + ...))
    tail = b.mul(s, polynomial(b, s, [2 / (2 * i + 3) for i in range(5 if _single(b) else 11)]))
    high, low = LOG_2_32 if _single(b) else LOG_2
    value = b.add(b.fma(e, b.const(high), d), b.sub(b.mul(e, b.const(low)), b.mul(z, b.sub(d, tail))))
    value = b.select(b.compare("==", x, b.const(0.0)), b.const(-math.inf), value)
    value = b.select(b.compare("==", x, b.const(math.inf)), x, value)
    return b.select(b.compare(">=", x, b.const(0.0)), value, b.const(math.nan))


def log1p(b: FunctionBuilder, x: Any) -> Any:
    """log(1 + x) without cancellation: log of the rounded sum, plus its rounding error over it."""
    u = b.add(x, b.const(1.0))
    lost = b.div(b.sub(x, b.sub(u, b.const(1.0))), u)
    inside = b.ir.and_(b.compare(">", u, b.const(0.0)), b.compare("<", u, b.const(math.inf)))
    value = log(b, u)
    return b.select(inside, b.add(value, lost), value)


def tanh(b: FunctionBuilder, x: Any) -> Any:
    """Hyperbolic tangent, through expm1 of twice the argument."""
    size = b.intrinsic("fabs", x)
    limit = b.const(10.0 if _single(b) else 22.0)
    bounded = b.select(b.compare("<", size, limit), size, limit)
    part, k = _exp_minus_one(b, b.add(bounded, bounded))
    scale = _power_of_two(b, k)
    e = b.fma(scale, part, b.sub(scale, b.const(1.0)))
    value = b.intrinsic("copysign", b.div(e, b.add(e, b.const(2.0))), x)
    return _keep_nan(b, x, value)


def sigmoid(b: FunctionBuilder, x: Any) -> Any:
    """1 / (1 + exp(-x))"""
    return b.div(b.const(1.0), b.add(b.const(1.0), exp(b, b.neg(x))))


def asin(b: FunctionBuilder, x: Any) -> Any:
    """Arc sine; NaN outside [-1, 1]."""
    size = b.intrinsic("fabs", x)
    large = b.compare(">", size, b.const(0.5))
    far = b.mul(b.const(0.5), b.sub(b.const(1.0), size))
    z = b.select(large, far, b.mul(x, x))
    root = b.select(large, b.intrinsic("sqrt", far), size)
    near = b.fma(b.mul(root, z), polynomial(b, z, ASIN), root)
    folded = b.sub(b.const(math.pi / 2), b.sub(b.add(near, near), b.const(HALF_PI[1])))
    return b.intrinsic("copysign", b.select(large, folded, near), x)


def sign(b: FunctionBuilder, x: Any) -> Any:
    """-1, 0 or 1; NaN of NaN."""
    one = b.intrinsic("copysign", b.const(1.0), x)
    return _keep_nan(b, x, b.select(b.compare("==", x, b.const(0.0)), b.const(0.0), one))


def minimum(b: FunctionBuilder, x: Any, y: Any) -> Any:
    """The smaller one; NaN if either is."""
    return _keep_nan(b, x, _keep_nan(b, y, b.select(b.compare("<", x, y), x, y)))


def maximum(b: FunctionBuilder, x: Any, y: Any) -> Any:
    """The larger one; NaN if either is."""
    return _keep_nan(b, x, _keep_nan(b, y, b.select(b.compare(">", x, y), x, y)))


def digamma(b: FunctionBuilder, x: Any) -> Any:
    """Logarithmic derivative of the gamma function for x > 0: recurrence up to 10, then Stirling's series."""
    total = b.const(0.0)
    for _ in range(10):
        small = b.compare("<", x, b.const(10.0))
        total = b.sub(total, b.select(small, b.div(b.const(1.0), x), b.const(0.0)))
        x = b.select(small, b.add(x, b.const(1.0)), x)
    inverse = b.div(b.const(1.0), x)
    s = b.mul(inverse, inverse)
    bernoulli = [-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12]
    series = b.mul(s, polynomial(b, s, bernoulli))
    return b.add(total, b.add(log(b, x), b.fma(b.const(-0.5), inverse, series)))


def half_power(b: FunctionBuilder, x: Any, exponent: float) -> Any:
    """x^n for a small n that is a whole number and a half: products and a root."""
    value, square, whole = b.intrinsic("sqrt", x), x, int(abs(exponent))
    while whole:
        value = b.mul(value, square) if whole & 1 else value
        square, whole = b.mul(square, square), whole >> 1
    return value if exponent > 0 else b.div(b.const(1.0), value)


def _intrinsic(name: str) -> Callable[..., Any]:
    return lambda b, *x: b.intrinsic(name, *x)


def _library(name: str) -> Callable[..., Any]:
    return lambda b, *x: b.call_libm(name, *x)


def _compare(relation: str) -> Callable[..., Any]:
    return lambda b, x, y: b.compare(relation, x, y)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": FunctionBuilder.add,
    "sub": FunctionBuilder.sub,
    "mul": FunctionBuilder.mul,
    "div": FunctionBuilder.div,
    "neg": FunctionBuilder.neg,
    "sqrt": _intrinsic("sqrt"),
    "abs": _intrinsic("fabs"),
    "floor": _intrinsic("floor"),
    "round": _intrinsic("rint"),
    "sin": sin,
    "cos": cos,
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "asin": asin,
    "sign": sign,
    "minimum": minimum,
    "maximum": maximum,
    "digamma": digamma,
    "lgamma": _library("lgamma"),
    "erf": _library("erf"),
    "acos": _library("acos"),
    "atan": _library("atan"),
    "atan2": _library("atan2"),
    "sinh": _library("sinh"),
    "cosh": _library("cosh"),
    "pow": _library("pow"),
    "where": FunctionBuilder.select,
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "eq": _compare("=="),
    "ne": _compare("!="),
    "and": lambda b, x, y: b.ir.and_(x, y),
    "or": lambda b, x, y: b.ir.or_(x, y),
    "not": lambda b, x: b.ir.xor(x, b.mask_const(True)),
}
"""How every operation of an expression is written; arguments are the builder and the operands."""

BOOLEAN_OPERATIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})
"""Operations whose results are truth values."""
