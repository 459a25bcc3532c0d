"""Pointwise operations: what one element of a result is, from the elements of the arguments at its place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from vinppl.native.errors import Unsupported
from vinppl.native.expressions import Expression, Number

__all__ = ["ELEMENTWISE", "IDENTITIES", "decompositions", "make", "num", "power", "truth", "where"]

aten = torch.ops.aten


@overload
def num(x: Expression) -> Expression: ...
@overload
def num(x: float) -> float: ...
def num(x: Number) -> Number:
    """Return truth values as 0 and 1."""
    if isinstance(x, Expression) and x.is_truth:
        return x.graph.make("where", x, 1.0, 0.0)
    return float(x) if isinstance(x, bool) else x


@overload
def truth(x: Expression) -> Expression: ...
@overload
def truth(x: float) -> bool: ...
def truth(x: Number) -> Expression | bool:
    """Return numbers as truth values: whether they are not zero."""
    if isinstance(x, Expression):
        return x if x.is_truth else x.apply("ne", 0.0)
    return bool(x)


def make(operation: str, *arguments: Number) -> Expression:
    """Return an operation on expressions, of which there is at least one, and numbers."""
    graph = next(a.graph for a in arguments if isinstance(a, Expression))
    return graph.make(operation, *arguments)


def where(mask: Number, x: Number, y: Number) -> Expression:
    """Return x where the mask holds, else y, as numbers."""
    return make("where", truth(mask), num(x), num(y))


def _numeric(operation: str) -> Callable[..., Expression]:
    return lambda *arguments: make(operation, *map(num, arguments))


def _logical(operation: str) -> Callable[..., Expression]:
    return lambda *arguments: make(operation, *map(truth, arguments))


def _add(x: Number, y: Number, *, alpha: float = 1) -> Expression:
    return make("add", num(x), make("mul", alpha, num(y)) if alpha != 1 else num(y))


def _sub(x: Number, y: Number, *, alpha: float = 1) -> Expression:
    return make("sub", num(x), make("mul", alpha, num(y)) if alpha != 1 else num(y))


def _divide(x: Number, y: Number, *, rounding_mode: str | None = None) -> Expression:
    quotient = make("div", num(x), num(y))
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        return quotient.apply("floor")
    raise Unsupported(f"division with rounding_mode={rounding_mode!r}")


def power(x: Expression, n: Number) -> Expression:
    """Return x^n; small whole powers by products."""
    if isinstance(n, Expression | bool) or abs(n) > 8 or not float(n).is_integer():
        return make("pow", num(x), num(n))
    if n < 0:
        return 1.0 / power(x, -n)
    result: Number = 1.0
    square, whole = x, int(n)
    while whole:
        result = result * square if whole & 1 else result
        square, whole = square * square, whole >> 1
    return result if isinstance(result, Expression) else x.graph.constant(result)


def _clamp(x: Expression, low: Number | None = None, high: Number | None = None) -> Expression:
    """Return x within bounds; at a bound its slope is one, as torch has it."""
    x = x if low is None else where(make("lt", num(x), num(low)), low, x)
    return num(x) if high is None else where(make("gt", num(x), num(high)), high, x)


def _softplus(x: Expression, beta: float = 1, threshold: float = 20) -> Expression:
    z = x * beta
    far = z.apply("gt", threshold)
    return where(far, x, where(far, threshold, z).apply("exp").apply("log1p") / beta)


def _softplus_backward(g: Expression, x: Expression, beta: float, threshold: float) -> Expression:
    z = x * beta
    return where(z.apply("gt", threshold), g, g * z.apply("sigmoid"))


def _silu_backward(g: Expression, x: Expression) -> Expression:
    gate = x.apply("sigmoid")
    return g * gate * (1.0 + x * (1.0 - gate))


def _asinh(x: Expression) -> Expression:
    size = x.apply("abs")
    square = size * size
    return x.apply("sign") * (size + square / (1.0 + (1.0 + square).apply("sqrt"))).apply("log1p")


def _acosh(x: Expression) -> Expression:
    above = x - 1.0
    return (above + (above * (above + 2.0)).apply("sqrt")).apply("log1p")


def _atanh(x: Expression) -> Expression:
    size = x.apply("abs")
    return x.apply("sign") * (2.0 * size / (1.0 - size)).apply("log1p") * 0.5


def _remainder(x: Number, y: Number) -> Expression:
    return make("sub", num(x), make("mul", num(y), make("div", num(x), num(y)).apply("floor")))


def _truncated(x: Expression) -> Expression:
    return x.apply("sign") * x.apply("abs").apply("floor")


def _fmod(x: Number, y: Number) -> Expression:
    return make("sub", num(x), make("mul", num(y), _truncated(make("div", num(x), num(y)))))


def _convert(x: Expression, *, dtype: torch.dtype | None = None, **_: Any) -> Expression:
    if dtype is torch.bool:
        return truth(x)
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported(f"conversion to {dtype}")
    return num(x)


IDENTITIES = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.clone.default,
        aten.lift_fresh_copy.default,
        aten.contiguous.default,
    }
)
"""Operations whose result is their argument."""

ELEMENTWISE: dict[Any, Callable[..., Expression]] = {
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Scalar: lambda x, y, alpha=1: _sub(y, x, alpha=alpha),
    aten.rsub.Tensor: lambda x, y, alpha=1: _sub(y, x, alpha=alpha),
    aten.mul.Tensor: _numeric("mul"),
    aten.mul.Scalar: _numeric("mul"),
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.div.Tensor_mode: _divide,
    aten.neg.default: _numeric("neg"),
    aten.reciprocal.default: lambda x: 1.0 / x,
    aten.square.default: lambda x: x * x,
    aten.sqrt.default: _numeric("sqrt"),
    aten.rsqrt.default: lambda x: 1.0 / x.apply("sqrt"),
    aten.abs.default: _numeric("abs"),
    aten.sign.default: _numeric("sign"),
    aten.sgn.default: _numeric("sign"),
    aten.floor.default: _numeric("floor"),
    aten.ceil.default: lambda x: -(-x).apply("floor"),
    aten.trunc.default: _truncated,
    aten.round.default: _numeric("round"),
    aten.exp.default: _numeric("exp"),
    aten.exp2.default: lambda x: (x * math.log(2)).apply("exp"),
    aten.expm1.default: _numeric("expm1"),
    aten.log.default: _numeric("log"),
    aten.log2.default: lambda x: x.apply("log") * (1 / math.log(2)),
    aten.log10.default: lambda x: x.apply("log") * (1 / math.log(10)),
    aten.log1p.default: _numeric("log1p"),
    aten.sin.default: _numeric("sin"),
    aten.cos.default: _numeric("cos"),
    aten.tan.default: lambda x: x.apply("sin") / x.apply("cos"),
    aten.asin.default: _numeric("asin"),
    aten.acos.default: _numeric("acos"),
    aten.atan.default: _numeric("atan"),
    aten.atan2.default: _numeric("atan2"),
    aten.asinh.default: _asinh,
    aten.acosh.default: _acosh,
    aten.atanh.default: _atanh,
    aten.sinh.default: _numeric("sinh"),
    aten.cosh.default: _numeric("cosh"),
    aten.tanh.default: _numeric("tanh"),
    aten.tanh_backward.default: lambda g, y: g * (1.0 - y * y),
    aten.sigmoid.default: _numeric("sigmoid"),
    aten.sigmoid_backward.default: lambda g, y: g * y * (1.0 - y),
    aten.silu.default: lambda x: x * x.apply("sigmoid"),
    aten.silu_backward.default: _silu_backward,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
    aten.relu.default: lambda x: where(x.apply("le", 0.0), 0.0, x),
    aten.threshold_backward.default: lambda g, x, t: where(x.apply("le", t), 0.0, g),
    aten.erf.default: _numeric("erf"),
    aten.lgamma.default: _numeric("lgamma"),
    aten.digamma.default: _numeric("digamma"),
    aten.pow.Tensor_Scalar: power,
    aten.pow.Tensor_Tensor: power,
    aten.pow.Scalar: _numeric("pow"),
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: lambda x, low: _clamp(x, low),
    aten.clamp_min.Tensor: lambda x, low: _clamp(x, low),
    aten.clamp_max.default: lambda x, high: _clamp(x, None, high),
    aten.minimum.default: _numeric("minimum"),
    aten.maximum.default: _numeric("maximum"),
    aten.hypot.default: lambda x, y: (x * x + y * y).apply("sqrt"),
    aten.fmod.Scalar: _fmod,
    aten.fmod.Tensor: _fmod,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.addcmul.default: lambda x, a, b, value=1: _add(x, make("mul", num(a), num(b)), alpha=value),
    aten.addcdiv.default: lambda x, a, b, value=1: _add(x, make("div", num(a), num(b)), alpha=value),
    aten.lerp.Scalar: lambda a, b, w: a + w * (b - a),
    aten.lerp.Tensor: lambda a, b, w: a + w * (b - a),
    aten.where.self: where,
    aten.where.ScalarOther: where,
    aten.where.ScalarSelf: where,
    aten.where.Scalar: where,
    aten.masked_fill.Scalar: lambda x, mask, value: where(mask, value, x),
    aten.masked_fill.Tensor: lambda x, mask, value: where(mask, value, x),
    aten.isnan.default: lambda x: x.apply("ne", x),
    aten.isfinite.default: lambda x: x.apply("abs").apply("lt", math.inf),
    aten.logical_not.default: _logical("not"),
    aten.bitwise_not.default: _logical("not"),
    aten._to_copy.default: _convert,
    aten.copy.default: lambda x, y, *_: num(y),
}
"""What an element of a pointwise operation is, from the elements of its arguments at the same place."""

ELEMENTWISE |= dict.fromkeys(IDENTITIES, lambda x, **_: x)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    ELEMENTWISE |= dict.fromkeys((getattr(aten, _name).Tensor, getattr(aten, _name).Scalar), _numeric(_name))
for _name in ("and", "or"):
    ELEMENTWISE[getattr(aten, f"logical_{_name}").default] = _logical(_name)
    ELEMENTWISE[getattr(aten, f"bitwise_{_name}").Tensor] = _logical(_name)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat([x.unsqueeze(dim) for x in tensors], dim)


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    places = [*[None] * (dim % max(1, x.ndim)), index.reshape(-1)]
    result: Tensor = aten.index_put(x, places, source if alpha == 1 else alpha * source, accumulate=True)
    return result


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return rules for composed operations, torch's mostly, except where there is one of their elements.

    A rule returns `NotImplemented` for arguments that it is not for.
    """
    table = torch._decomp.core_aten_decompositions()
    rules = {key: rule for key, rule in table.items() if key not in ELEMENTWISE}
    # Those of torch load a computer algebra system.
    return {**rules, aten.stack.default: _stack, aten.index_add.default: _index_add}
