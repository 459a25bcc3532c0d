"""The force of a neural potential and its derivatives, as code inside compiled loops.

V(q) = E net(s phi(q)), with the features phi of a manifold, their scales s, and a `ScalarMLP`.
At one position this writes dV/dq and the Hessian; the gradient with respect to the weights is
left to one pass over all positions afterwards, so that nothing of a layer's width is kept on the way.

Notation: x = s phi(q); a unit of a layer has z = W a + b and a = sigma(z), its rates are dz/dq_k,
its tangents da/dq_k, and its adjoint is dnet/da. With sums over units,

    dV/dq_k       = E sum adjoint sigma'(z) dz/dq_k                      (first layer)
    d2V/dq_k dq_m = E sum adjoint sigma''(z) dz/dq_k dz/dq_m             (all layers)
                  + E sum adjoint sigma'(z) d2z/dq_k dq_m                (first layer)

so that one forward sweep with tangents and one backward sweep give both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision
from vinppl.native.compiler import vector_width
from vinppl.native.functions import OPERATIONS, polynomial

__all__ = [
    "NetworkShape",
    "emit_force",
    "emit_parameter_gradient",
    "gradient",
    "parameter_gradient",
    "scratch_size",
    "unpack_weights",
]

# tanh x = x P(x^2) / Q(x^2) on [-8.9, 8.9]: least squares on Chebyshev points, reweighted until the
# error was level; then varied by units in the last place for the smallest error in single precision.
TANH_BOUND = 8.9
TANH_TOP = (1.0, 0.1338754, 0.00350333494, 2.07371413e-05, 1.35336249e-08)
TANH_BOTTOM = (1.0, 0.467208564, 0.0259064268, 0.000329832634, 7.84945996e-07)

# What the scratch memory holds of a unit, beside its tangents and rates. The backward sweep puts
# dnet/dz in place of the value.
VALUE, SLOPE, CURVATURE, TANGENTS = 0, 1, 2, 3

SUMS = 8  # values grown in one loop; each is two registers
CHUNK_BYTES = 2**14  # of samples that `emit_parameter_gradient` takes at once: the nearest cache holds them
BLOCK_BYTES = 2**17  # of an array of samples times units in `parameter_gradient`


class NetworkShape(NamedTuple):
    """What the code for a neural potential depends on.

    Attributes:
        hidden_sizes: widths of the hidden layers.
        activation: a name from `vinppl.nn.ACTIVATIONS`.
        periodic: for each coordinate, whether it is an angle.
        feature_scale: s, one factor for each feature.
        energy_scale: E.
        dtype: name of the floating type.
    """

    hidden_sizes: tuple[int, ...]
    activation: str
    periodic: tuple[bool, ...]
    feature_scale: tuple[float, ...]
    energy_scale: float
    dtype: str

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.periodic)

    @property
    def coordinates(self) -> tuple[int, ...]:
        """For each feature, the coordinate it depends on: lines, then sines, then cosines."""
        lines = [k for k in range(self.dim) if not self.periodic[k]]
        angles = [k for k in range(self.dim) if self.periodic[k]]
        return (*lines, *angles, *angles)

    @property
    def num_features(self) -> int:
        """Number of inputs of the network."""
        return len(self.coordinates)

    @property
    def arrays(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of W_0, b_0, W_1, b_1, ..., c."""
        sizes = itertools.pairwise((self.num_features, *self.hidden_sizes))
        hidden = [shape for fan_in, width in sizes for shape in ((width, fan_in), (width,))]
        return (*hidden, (1, self.hidden_sizes[-1]))

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each of `arrays` begins in the packed weights."""
        return tuple(itertools.accumulate((math.prod(s) for s in self.arrays[:-1]), initial=0))

    @property
    def num_weights(self) -> int:
        """Length of the packed weights: all `arrays`, row-major, one after the other."""
        return sum(math.prod(s) for s in self.arrays)


def scratch_size(shape: NetworkShape, lanes: int) -> int:
    """Return how many numbers of scratch memory `emit_force` needs; none for one hidden layer."""
    return 0 if len(shape.hidden_sizes) == 1 else lanes * _num_fields(shape) * sum(shape.hidden_sizes)


def emit_force(
    b: FunctionBuilder,
    shape: NetworkShape,
    q: Sequence[Any],
    weights: Any,
    scratch: Any,
    *,
    with_hessian: bool,
) -> tuple[list[Any], list[list[Any]]]:
    """Write dV/dq and d2V/dq2 at one position for each lane.

    Args:
        b: of the function to write into.
        shape: of the potential.
        q: one value for each coordinate.
        weights: pointer to the packed weights.
        scratch: pointer to `scratch_size` numbers.
        with_hessian: whether to write the Hessian.

    Returns:
        The gradient, and the rows of the Hessian (no rows without it).
    """
    force = _Force(b, shape, q, weights, scratch, with_hessian)
    if len(shape.hidden_sizes) == 1:
        force.only_layer()
    else:
        force.forward()
        force.backward()
    return force.result()


class _Force:
    """The code of one force evaluation, and the sums over units that it grows."""

    def __init__(
        self,
        b: FunctionBuilder,
        shape: NetworkShape,
        q: Sequence[Any],
        weights: Any,
        scratch: Any,
        with_hessian: bool,
    ) -> None:
        self.b, self.shape, self.weights, self.scratch = b, shape, weights, scratch
        self.sizes, self.top = shape.hidden_sizes, len(shape.hidden_sizes) - 1
        self.features, self.feature_slopes = _features(b, shape, q)
        self.tangents = range(shape.dim if with_hessian else 0)
        pairs = itertools.combinations_with_replacement(self.tangents, 2)
        self.gradient = [b.variable(b.const(0.0)) for _ in range(shape.dim)]
        self.hessian = {pair: b.variable(b.const(0.0)) for pair in pairs}

    def result(self) -> tuple[list[Any], list[list[Any]]]:
        """Return the gradient and the rows of the Hessian."""
        b, energy = self.b, self.b.const(self.shape.energy_scale)
        first = [b.mul(energy, b.get(total)) for total in self.gradient]
        second = {pair: b.mul(energy, b.get(total)) for pair, total in self.hessian.items()}
        return first, [[second[min(k, m), max(k, m)] for m in self.tangents] for k in self.tangents]

    # Sweeps

    def only_layer(self) -> None:
        """Write both sweeps through a single hidden layer, which keep nothing."""
        with self.b.loop(self.b.index(self.sizes[0])) as unit:
            z, rates, bends = self.first_layer(unit)
            _, slope, curvature = EMITTED[self.shape.activation](self.b, z)
            adjoint = self.weight(2, unit)
            self.add_hessian(adjoint, curvature, rates)
            self.add_first_layer(adjoint, slope, rates, bends)

    def forward(self) -> None:
        """Write the forward sweep, and the backward sweep through the last layer."""
        b = self.b
        with b.loop(b.index(self.sizes[0])) as unit:
            z, rates, _ = self.first_layer(unit)
            self.open_unit(0, unit, z, rates)
        fields = [VALUE, *(TANGENTS + k for k in self.tangents)]
        for layer in range(1, self.top + 1):
            strides = (self.sizes[layer - 1], 1)
            for first, count in _blocks(b, self.sizes[layer], max(1, SUMS // len(fields))):
                sums = self.products(layer - 1, fields, layer, first, count, strides)
                for r, (product, *rates) in enumerate(sums):
                    unit = b.plus(first, r)
                    self.open_unit(layer, unit, b.add(product, self.weight(2 * layer + 1, unit)), rates)

    def backward(self) -> None:
        """Write the backward sweep through the layers below the last."""
        b = self.b
        for layer in reversed(range(self.top)):
            strides = (1, self.sizes[layer])
            for first, count in _blocks(b, self.sizes[layer], SUMS):
                sums = self.products(layer + 1, [VALUE], layer + 1, first, count, strides)
                for r, (adjoint,) in enumerate(sums):
                    self.close_unit(layer, b.plus(first, r), adjoint)

    def products(
        self, source: int, fields: Sequence[int], layer: int, first: Any, count: int, strides: tuple[int, int]
    ) -> list[list[Any]]:
        """Write, for some units, sums over the units j of another layer: weights times fields of j.

        Args:
            source: layer of the j.
            fields: which fields of j.
            layer: whose weight matrix it is.
            first: first of the units.
            count: number of units.
            strides: distance in the matrix from one unit to the next, and from one j to the next.
        """
        b = self.b
        sums = [[b.variable(b.const(0.0)) for _ in fields] for _ in range(count)]
        with b.loop(b.index(self.sizes[source])) as j:
            values = [b.load(self.scratch, self.field(source, j, field)) for field in fields]
            start = b.flat(first, strides[0], b.flat(j, strides[1]))
            for r, totals in enumerate(sums):
                weight = self.weight(2 * layer, b.plus(start, r * strides[0]))
                for total, value in zip(totals, values, strict=True):
                    b.grow(total, b.mul(weight, value))
        return [[b.get(total) for total in totals] for totals in sums]

    # Units

    def first_layer(self, unit: Any) -> tuple[Any, list[Any], dict[int, Any]]:
        """Return z, its rates, and its second derivatives along the angles, of a unit."""
        b, shape = self.b, self.shape
        row = [self.weight(0, b.flat(unit, shape.num_features, f)) for f in range(shape.num_features)]
        groups = [[f for f, owner in enumerate(shape.coordinates) if owner == k] for k in range(shape.dim)]
        parts = [_dot(b, row, self.features, group) for group in groups]
        rates = [_dot(b, row, self.feature_slopes, group) for group in groups]
        z = functools.reduce(b.add, parts, self.weight(1, unit))
        return z, rates, {k: b.neg(part) for k, part in enumerate(parts) if shape.periodic[k]}

    def open_unit(self, layer: int, unit: Any, z: Any, rates: Sequence[Any]) -> None:
        """Apply the activation and keep what other units need; a unit of the last layer is closed."""
        b = self.b
        value, slope, curvature = EMITTED[self.shape.activation](b, z)
        if layer == self.top:
            self.add_hessian(self.weight(2 * layer + 2, unit), curvature, rates)
            self.keep(layer, unit, {VALUE: b.mul(self.weight(2 * layer + 2, unit), slope)})
            return
        self.keep(layer, unit, {VALUE: value, SLOPE: slope})
        if self.tangents:
            tangents = [b.mul(slope, rate) for rate in rates]
            self.keep(layer, unit, {CURVATURE: curvature, **dict(enumerate([*tangents, *rates], TANGENTS))})

    def close_unit(self, layer: int, unit: Any, adjoint: Any) -> None:
        """Add to the sums what a unit below the last layer gives."""
        b = self.b
        slope = b.load(self.scratch, self.field(layer, unit, SLOPE))
        if layer == 0:
            _, rates, bends = self.first_layer(unit)
            self.add_first_layer(adjoint, slope, rates, bends)
        else:
            fields = (TANGENTS + self.shape.dim + k for k in self.tangents)
            rates = [b.load(self.scratch, self.field(layer, unit, field)) for field in fields]
            self.keep(layer, unit, {VALUE: b.mul(adjoint, slope)})
        if self.tangents:
            curvature = b.load(self.scratch, self.field(layer, unit, CURVATURE))
            self.add_hessian(adjoint, curvature, rates)

    def add_first_layer(self, adjoint: Any, slope: Any, rates: list[Any], bends: dict[int, Any]) -> None:
        """Add what a unit of the first layer gives to the gradient, and its features' curvature."""
        b = self.b
        for total, rate in zip(self.gradient, rates, strict=True):
            b.grow(total, b.mul(slope, b.mul(adjoint, rate)))
        for k in self.tangents:
            if k in bends:
                b.grow(self.hessian[k, k], b.mul(slope, b.mul(adjoint, bends[k])))

    def add_hessian(self, adjoint: Any, curvature: Any, rates: Sequence[Any]) -> None:
        """Add what the curvature of a unit's activation gives to the Hessian."""
        b = self.b
        for (k, m), total in self.hessian.items():
            b.grow(total, b.mul(curvature, b.mul(b.mul(adjoint, rates[k]), rates[m])))

    # Memory

    def weight(self, array: int, place: Any) -> Any:
        """Load one number of an array of weights."""
        return self.b.load_shared(self.weights, self.b.plus(place, self.shape.offsets[array]))

    def field(self, layer: int, unit: Any, field: int) -> Any:
        """Return where a field of a unit lies in the scratch memory."""
        count, lanes = _num_fields(self.shape), self.b.lanes
        return self.b.flat(unit, count * lanes, (sum(self.sizes[:layer]) * count + field) * lanes)

    def keep(self, layer: int, unit: Any, values: dict[int, Any]) -> None:
        """Store fields of a unit."""
        for field, value in values.items():
            self.b.store(value, self.scratch, self.field(layer, unit, field))


def emit_parameter_gradient(module: ir.Module, shape: NetworkShape, name: str) -> ir.Function:
    """Write the gradient of sum_m sum_k lam_mk dV/dq_k(q_m) with respect to the weights.

    The function is `void f(int64 M, q[dim][M], lam[dim][M], weights[], gradient[])` with packed weights
    and gradient, which is overwritten. A sample with lam = 0 adds nothing, whatever its q.

    Args:
        module: where the function goes.
        shape: of a potential with one hidden layer.
        name: of the function.
    """
    precision = Precision(shape.dtype)
    types = [INDEX, POINTER, POINTER, POINTER, POINTER]
    b = FunctionBuilder(module, name, types, lanes=vector_width(precision.bytes), precision=precision)
    num_samples, q, lam, weights, out = b.arguments
    group = shape.num_features * b.lanes
    chunk = max(1, CHUNK_BYTES // (2 * group * precision.bytes)) * b.lanes
    x = b.scratch(2 * shape.num_features * chunk)
    u = b.offset(x, b.index(shape.num_features * chunk))
    with b.loop(b.index(shape.num_weights)) as i:
        b.store(b.one(0.0), out, i)
    with b.loop(num_samples, step=chunk) as start:
        left = b.ir.sub(num_samples, start)
        count = b.ir.select(b.ir.icmp_signed("<", left, b.index(chunk)), left, b.index(chunk))
        for source, target in ((q, x), (lam, u)):
            _read_chunk(b, shape.dim, chunk, source, num_samples, start, count, target)
        _project_chunk(b, shape, chunk, count, x, u)
        _add_chunk(b, shape, chunk, count, x, u, weights, out)
    return b.finish()


def _read_chunk(
    b: FunctionBuilder, dim: int, chunk: int, source: Any, size: Any, start: Any, count: Any, target: Any
) -> None:
    """Copy some columns of an array `[dim][size]` to one of `[dim][chunk]`, and fill the lanes with zeros."""
    last = b.ir.sub(count, b.ir.srem(b.ir.sub(count, b.index(1)), b.index(b.lanes)))
    for k in range(dim):
        b.store(b.const(0.0), target, b.plus(b.ir.sub(last, b.index(1)), k * chunk))
        with b.loop(count) as i:
            column = b.flat(k, size, b.ir.add(start, i))
            b.store(b.load_one(source, column), target, b.plus(i, k * chunk))


def _project_chunk(b: FunctionBuilder, shape: NetworkShape, chunk: int, count: Any, x: Any, u: Any) -> None:
    """Turn positions q and cotangents lam, in place, into features x and their change u along lam."""
    with b.loop(count, step=b.lanes) as i:
        q = [b.load(x, b.plus(i, k * chunk)) for k in range(shape.dim)]
        lam = [b.load(u, b.plus(i, k * chunk)) for k in range(shape.dim)]
        used = functools.reduce(b.ir.or_, (b.compare("!=", a, b.const(0.0)) for a in lam))
        features, slopes = _features(b, shape, [b.select(used, a, b.const(0.0)) for a in q])
        for f, k in enumerate(shape.coordinates):
            b.store(features[f], x, b.plus(i, f * chunk))
            b.store(b.mul(slopes[f], lam[k]), u, b.plus(i, f * chunk))


def _add_chunk(
    b: FunctionBuilder,
    shape: NetworkShape,
    chunk: int,
    count: Any,
    x: Any,
    u: Any,
    weights: Any,
    out: Any,
) -> None:
    """Add the gradient of a chunk: of E sum c sigma'(z) W u, with z = W x + b."""
    rows, biases, tops = shape.offsets
    inputs = range(shape.num_features)
    energy = b.one(shape.energy_scale)
    with b.loop(b.index(shape.hidden_sizes[0])) as unit:
        places = [b.flat(unit, shape.num_features, rows + f) for f in inputs]
        row = [b.load_shared(weights, place) for place in places]
        bias = b.load_shared(weights, b.plus(unit, biases))
        bent, straight = b.variable(b.const(0.0)), [b.variable(b.const(0.0)) for _ in inputs]
        tilted = [b.variable(b.const(0.0)) for _ in inputs]
        with b.loop(count, step=b.lanes) as i:
            xs, us = ([b.load(a, b.plus(i, f * chunk)) for f in inputs] for a in (x, u))
            _, slope, curvature = EMITTED[shape.activation](b, b.add(_dot(b, row, xs, inputs), bias))
            pull = b.mul(curvature, _dot(b, row, us, inputs))
            b.grow(bent, pull)
            for f in inputs:
                b.grow(straight[f], b.mul(slope, us[f]))
                b.grow(tilted[f], b.mul(pull, xs[f]))
        top = b.mul(energy, b.load_one(weights, b.plus(unit, tops)))
        direct = [b.sum_lanes(b.get(total)) for total in straight]
        b.add_one(b.mul(top, b.sum_lanes(b.get(bent))), out, b.plus(unit, biases))
        for f, place in enumerate(places):
            total = b.add(b.sum_lanes(b.get(tilted[f])), direct[f])
            b.add_one(b.mul(top, total), out, place)
            weight = b.mul(energy, b.load_one(weights, place))
            b.add_one(b.mul(weight, direct[f]), out, b.plus(unit, tops))


def unpack_weights(shape: NetworkShape, weights: Tensor) -> list[Tensor]:
    """Return W_0, b_0, W_1, b_1, ..., c as views of the packed weights."""
    parts = weights.split([math.prod(s) for s in shape.arrays])
    return [part.reshape(s) for part, s in zip(parts, shape.arrays, strict=True)]


def gradient(shape: NetworkShape, weights: Sequence[Tensor], q: Tensor) -> Tensor:
    """Return dV/dq by torch operations, differentiable any number of times.

    Args:
        shape: of the potential.
        weights: W_0, b_0, W_1, b_1, ..., c.
        q: positions, shape `(M, dim)`.
    """
    *hidden, back = weights
    a, feature_slopes = _torch_features(shape, q)
    slopes = []
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        a, slope, _ = ELEMENTWISE[shape.activation](torch.addmm(bias, a, weight.mT))
        slopes.append(slope)
    for weight, slope in zip(reversed(hidden[::2]), reversed(slopes), strict=True):
        back = (slope * back) @ weight
    owners = torch.tensor(shape.coordinates, device=q.device)
    return shape.energy_scale * torch.zeros_like(q).index_add(-1, owners, feature_slopes * back)


def parameter_gradient(
    shape: NetworkShape, weights: Sequence[Tensor], q: Tensor, lam: Tensor
) -> list[Tensor]:
    """Return the gradient of sum_m sum_k lam_mk dV/dq_k(q_m) with respect to the weights.

    A sample with lam = 0 adds nothing, whatever its q. For any number of hidden layers.

    Args:
        shape: of the potential.
        weights: W_0, b_0, W_1, b_1, ..., c.
        q: positions, shape `(M, dim)`.
        lam: cotangents of dV/dq, shape `(M, dim)`.
    """
    total = [torch.zeros_like(w) for w in weights]
    size = max(128, BLOCK_BYTES // (q.element_size() * max(shape.hidden_sizes)))
    with torch.no_grad():
        for q_chunk, lam_chunk in zip(q.split(size), lam.split(size), strict=True):
            _add_samples(shape, weights, q_chunk, lam_chunk, total)
    return [shape.energy_scale * t for t in total]


def _add_samples(
    shape: NetworkShape, weights: Sequence[Tensor], q: Tensor, lam: Tensor, total: Sequence[Tensor]
) -> None:
    """Add the gradient of sum_m d net(x + t u)/dt at t = 0, where u is the change of x along lam."""
    *hidden, top = weights
    a, feature_slopes = _torch_features(shape, torch.where((lam != 0).any(-1, keepdim=True), q, 0.0))
    tangent = feature_slopes * lam[:, list(shape.coordinates)]
    layers = []
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        z, rate = torch.addmm(bias, a, weight.T), tangent @ weight.T
        value, slope, curvature = ELEMENTWISE[shape.activation](z)
        layers.append((a, tangent, rate, slope, curvature))
        a, tangent = value, slope * rate
    total[-1].add_(tangent.sum(0))
    # Adjoints of a unit's value and of its tangent; those of z and of its rate.
    on_tangent, on_value = top, torch.zeros_like(top)
    for layer in reversed(range(len(layers))):
        a, tangent, rate, slope, curvature = layers[layer]
        on_z = slope * on_value + curvature * rate * on_tangent
        on_rate = slope * on_tangent
        total[2 * layer].addmm_(on_z.T, a).addmm_(on_rate.T, tangent)
        total[2 * layer + 1].add_(on_z.sum(0))
        on_value, on_tangent = on_z @ weights[2 * layer], on_rate @ weights[2 * layer]


def _torch_features(shape: NetworkShape, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled features of positions, and the derivative of each along its coordinate."""
    lines = q[:, [k for k in range(shape.dim) if not shape.periodic[k]]]
    angles = q[:, [k for k in range(shape.dim) if shape.periodic[k]]]
    scale = torch.tensor(shape.feature_scale, dtype=q.dtype, device=q.device)
    slopes = torch.cat([torch.ones_like(lines), angles.cos(), -angles.sin()], dim=-1)
    return scale * torch.cat([lines, angles.sin(), angles.cos()], dim=-1), scale * slopes


# Activations


def _emit_tanh(b: FunctionBuilder, z: Any) -> tuple[Any, Any, Any]:
    value = _quick_tanh(b, z) if b.precision.dtype == "float32" else OPERATIONS["tanh"](b, z)
    slope = b.fma(b.neg(value), value, b.const(1.0))
    return value, slope, b.mul(b.const(-2.0), b.mul(value, slope))


def _quick_tanh(b: FunctionBuilder, z: Any) -> Any:
    """Hyperbolic tangent in single precision; the relative error stays below 3.3e-7."""
    z = b.select(b.compare(">", z, b.const(TANH_BOUND)), b.const(TANH_BOUND), z)
    z = b.select(b.compare("<", z, b.const(-TANH_BOUND)), b.const(-TANH_BOUND), z)
    square = b.mul(z, z)
    return b.div(b.mul(z, polynomial(b, square, TANH_TOP)), polynomial(b, square, TANH_BOTTOM))


def _emit_sin(b: FunctionBuilder, z: Any) -> tuple[Any, Any, Any]:
    value = OPERATIONS["sin"](b, z)
    return value, OPERATIONS["cos"](b, z), b.neg(value)


def _emit_softplus(b: FunctionBuilder, z: Any) -> tuple[Any, Any, Any]:
    """As torch has it: the identity above 20."""
    bounded = b.select(b.compare(">", z, b.const(20.0)), b.const(20.0), z)
    near = OPERATIONS["log1p"](b, OPERATIONS["exp"](b, bounded))
    slope = OPERATIONS["sigmoid"](b, z)
    value = b.select(b.compare(">", z, b.const(20.0)), z, near)
    return value, slope, b.mul(slope, b.sub(b.const(1.0), slope))


def _emit_silu(b: FunctionBuilder, z: Any) -> tuple[Any, Any, Any]:
    gate = OPERATIONS["sigmoid"](b, z)
    rise = b.mul(gate, b.sub(b.const(1.0), gate))
    away = b.sub(b.const(1.0), b.add(gate, gate))
    return b.mul(z, gate), b.add(gate, b.mul(z, rise)), b.mul(rise, b.add(b.const(2.0), b.mul(z, away)))


EMITTED: dict[str, Callable[[FunctionBuilder, Any], tuple[Any, Any, Any]]] = {
    "tanh": _emit_tanh,
    "sin": _emit_sin,
    "softplus": _emit_softplus,
    "silu": _emit_silu,
}
"""How value, first and second derivative of every activation are written."""


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = z.tanh()
    slope = 1 - value * value
    return value, slope, -2 * value * slope


def _sin(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = z.sin()
    return value, z.cos(), -value


def _softplus(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = z.sigmoid()
    return torch.nn.functional.softplus(z), slope, slope * (1 - slope)


def _silu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate = z.sigmoid()
    rise = gate * (1 - gate)
    return z * gate, gate + z * rise, rise * (2 + z * (1 - 2 * gate))


ELEMENTWISE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "tanh": _tanh,
    "sin": _sin,
    "softplus": _softplus,
    "silu": _silu,
}
"""Value, first and second derivative of every activation, by torch operations."""


# Parts


def _num_fields(shape: NetworkShape) -> int:
    return TANGENTS + 2 * shape.dim


def _features(b: FunctionBuilder, shape: NetworkShape, q: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the scaled features of a position, and the derivative of each along its coordinate."""
    angles = [x for x, flag in zip(q, shape.periodic, strict=True) if flag]
    lines = [x for x, flag in zip(q, shape.periodic, strict=True) if not flag]
    sines, cosines = ([OPERATIONS[name](b, x) for x in angles] for name in ("sin", "cos"))
    slopes = [*(b.const(1.0) for _ in lines), *cosines, *(b.neg(x) for x in sines)]
    scale = [b.const(s) for s in shape.feature_scale]
    return (
        [b.mul(s, x) for s, x in zip(scale, [*lines, *sines, *cosines], strict=True)],
        [b.mul(s, x) for s, x in zip(scale, slopes, strict=True)],
    )


def _dot(b: FunctionBuilder, weights: Sequence[Any], values: Sequence[Any], places: Sequence[int]) -> Any:
    return functools.reduce(b.add, (b.mul(weights[f], values[f]) for f in places))


def _blocks(b: FunctionBuilder, count: int, size: int) -> Iterator[tuple[Any, int]]:
    """Loop over units in blocks: yield the first unit of a block, and how many it has."""
    full = count - count % size
    if full:
        with b.loop(b.index(full), step=size) as first:
            yield first, size
    if full < count:
        yield b.index(full), count - full
