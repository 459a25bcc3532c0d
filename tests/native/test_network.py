"""Compiled neural forces against `NeuralPotential`: gradient, Hessian and the gradient of the weights."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from vinppl.manifolds import Circle, Euclidean, Manifold, Torus
from vinppl.native.builder import INDEX, POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.compiler import compile_module, vector_width
from vinppl.native.network import (
    EMITTED,
    NetworkShape,
    emit_force,
    emit_parameter_gradient,
    gradient,
    parameter_gradient,
    scratch_size,
    unpack_weights,
)
from vinppl.nn import ACTIVATIONS
from vinppl.potentials import NetworkGradient, NeuralPotential

HIDDEN_SIZES = [(1,), (7,), (64,), (16, 8), (5, 5, 5)]
MANIFOLDS = {
    "line": Euclidean(1),
    "space": Euclidean(3),
    "circle": Circle(),
    "torus": Torus(2),
    "cylinder": Manifold((True, False)),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINPPL_CACHE_DIR", "")


def neural(
    manifold: Manifold, hidden_sizes: tuple[int, ...], activation: str = "tanh"
) -> tuple[NeuralPotential, NetworkShape]:
    """Return a potential with scales, and weights that reach into the bends of the activation."""
    potential = NeuralPotential(
        manifold,
        hidden_sizes=hidden_sizes,
        activation=activation,
        input_scale=1.7,
        energy_scale=2.5,
        generator=torch.Generator().manual_seed(4),
    )
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(2.0)
    bound = potential.bind().gradient
    assert isinstance(bound, NetworkGradient)
    shape = NetworkShape(
        hidden_sizes,
        activation,
        manifold.periodic,
        bound.feature_scale,
        bound.energy_scale,
        "float64",
    )
    return potential, shape


def arrays(potential: NeuralPotential) -> list[Tensor]:
    """Return W_0, b_0, W_1, b_1, ..., c."""
    network = potential.network.bind()
    hidden = zip(network.weights, network.biases, strict=False)
    return [*(a for pair in hidden for a in pair), network.weights[-1]]


def packed(potential: NeuralPotential, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([a.detach().reshape(-1) for a in arrays(potential)]).to(dtype)


def call(module: Any, name: str, size: int, *tensors: Tensor) -> None:
    """Compile a module and call `void name(int64, pointers ...)`."""
    library = compile_module(module)
    function = library.function(name, [ctypes.c_int64] + [ctypes.c_void_p] * len(tensors))
    function(size, *(t.data_ptr() for t in tensors))


def compiled_force(
    shape: NetworkShape, weights: Tensor, q: Tensor, *, lanes: int, with_hessian: bool = True
) -> tuple[Tensor, Tensor]:
    """Return gradients (N, dim) and Hessians (N, dim, dim) at positions (N, dim); N in whole lanes."""
    module, dim = new_module("force"), shape.dim
    precision = Precision(shape.dtype)
    b = FunctionBuilder(module, "force", [INDEX, *[POINTER] * 5], lanes=lanes, precision=precision)
    size, q_in, weights_in, scratch_in, *out = b.arguments
    with b.loop(size, step=lanes) as i:
        places = [b.ir.add(b.ir.mul(b.index(k), size), i) for k in range(dim * dim)]
        position = [b.load(q_in, place) for place in places[:dim]]
        slopes, hessian = emit_force(b, shape, position, weights_in, scratch_in, with_hessian=with_hessian)
        for pointer, values in zip(out, (slopes, [x for row in hessian for x in row]), strict=True):
            for value, place in zip(values, places, strict=False):
                b.store(value, pointer, place)
    b.finish()
    count = len(q)
    scratch = torch.full((scratch_size(shape, lanes),), torch.nan, dtype=q.dtype)
    results = torch.full((dim, count), torch.nan, dtype=q.dtype), torch.zeros(dim * dim, count, dtype=q.dtype)
    call(module, "force", count, q.T.contiguous(), weights, scratch, *results)
    return results[0].T, results[1].T.reshape(count, dim, dim)


def compiled_parameter_gradient(shape: NetworkShape, weights: Tensor, q: Tensor, lam: Tensor) -> Tensor:
    module = new_module("weights")
    emit_parameter_gradient(module, shape, "pull")
    out = torch.full_like(weights, torch.nan)
    call(module, "pull", len(q), q.T.contiguous(), lam.T.contiguous(), weights, out)
    return out


def expected_parameter_gradient(potential: NeuralPotential, q: Tensor, lam: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((lam * potential.bind().gradient(q)).sum(), arrays(potential)))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare relative to the largest element: sums over units and samples cancel in the small ones."""
    bound = TOLERANCE[actual.dtype] * float(expected.detach().abs().max())
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=0, atol=bound)


def check_force(potential: NeuralPotential, shape: NetworkShape, lanes: int) -> None:
    q = 2 * torch.randn(2 * lanes, shape.dim)
    value, slope = potential.bind()
    expected = torch.stack([torch.autograd.functional.hessian(value, x) for x in q])
    actual, hessian = compiled_force(shape, packed(potential), q, lanes=lanes)
    assert_close(actual, slope(q))
    assert_close(hessian, expected)


@pytest.mark.parametrize("lanes", [1, vector_width(8)])
@pytest.mark.parametrize("hidden_sizes", HIDDEN_SIZES, ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_force_on_every_manifold(manifold: str, hidden_sizes: tuple[int, ...], lanes: int) -> None:
    check_force(*neural(MANIFOLDS[manifold], hidden_sizes), lanes)


@pytest.mark.parametrize("lanes", [1, vector_width(8)])
@pytest.mark.parametrize("hidden_sizes", HIDDEN_SIZES, ids=str)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "tanh"])
def test_force_with_every_activation(activation: str, hidden_sizes: tuple[int, ...], lanes: int) -> None:
    check_force(*neural(MANIFOLDS["cylinder"], hidden_sizes, activation), lanes)


@pytest.mark.parametrize("hidden_sizes", [(7,), (5, 4, 3)], ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_force_without_hessian(manifold: str, hidden_sizes: tuple[int, ...]) -> None:
    potential, shape = neural(MANIFOLDS[manifold], hidden_sizes)
    q = torch.randn(4, shape.dim)
    actual, none = compiled_force(shape, packed(potential), q, lanes=4, with_hessian=False)
    assert_close(actual, potential.bind().gradient(q))
    assert not none.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(64,), (16, 8)], ids=str)
@pytest.mark.parametrize("manifold", ["line", "cylinder"])
def test_force_in_single_precision(manifold: str, hidden_sizes: tuple[int, ...], activation: str) -> None:
    potential, shape = neural(MANIFOLDS[manifold], hidden_sizes, activation)
    lanes = vector_width(4)
    q = torch.randn(lanes, shape.dim)
    single = shape._replace(dtype="float32")
    actual, hessian = compiled_force(single, packed(potential, torch.float32), q.float(), lanes=lanes)
    value, slope = potential.bind()
    assert_close(actual, slope(q))
    assert_close(hessian, torch.stack([torch.autograd.functional.hessian(value, x) for x in q]))


@pytest.mark.parametrize("hidden_sizes", [(7,), (5, 5)], ids=str)
def test_force_is_not_a_number_where_the_position_is_not(hidden_sizes: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        potential, shape = neural(Euclidean(1), hidden_sizes)
        shape = shape._replace(dtype=str(dtype).removeprefix("torch."))
        q = torch.tensor([[0.3], [torch.nan]], dtype=dtype)
        actual, hessian = compiled_force(shape, packed(potential, dtype), q, lanes=2)
        assert actual.isnan().flatten().tolist() == [False, True]
        assert hessian.isnan().flatten().tolist() == [False, True]


@pytest.mark.parametrize("num_samples", [1, 7, 1000])
@pytest.mark.parametrize("hidden_sizes", HIDDEN_SIZES, ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_parameter_gradient(manifold: str, hidden_sizes: tuple[int, ...], num_samples: int) -> None:
    check_parameter_gradient(*neural(MANIFOLDS[manifold], hidden_sizes), num_samples)


@pytest.mark.parametrize("hidden_sizes", HIDDEN_SIZES, ids=str)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "tanh"])
def test_parameter_gradient_with_every_activation(activation: str, hidden_sizes: tuple[int, ...]) -> None:
    check_parameter_gradient(*neural(MANIFOLDS["cylinder"], hidden_sizes, activation), 19)


def check_parameter_gradient(potential: NeuralPotential, shape: NetworkShape, num_samples: int) -> None:
    q, lam = 2 * torch.randn(num_samples, shape.dim), torch.randn(num_samples, shape.dim)
    expected = expected_parameter_gradient(potential, q, lam)
    actual = parameter_gradient(shape, arrays(potential), q, lam)
    assert [a.shape for a in actual] == list(shape.arrays)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)
    if len(shape.hidden_sizes) == 1:
        flat = compiled_parameter_gradient(shape, packed(potential), q, lam)
        parts = flat.tensor_split(list(shape.offsets[1:]))
        for a, e in zip(parts, expected, strict=True):
            assert_close(a, e.flatten())


def test_parameter_gradient_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinppl.native.network.BLOCK_BYTES", 1)  # 128 samples at a time
    check_parameter_gradient(*neural(MANIFOLDS["torus"], (16, 8)), 300)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (5, 4, 3)], ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_gradient_by_torch(manifold: str, hidden_sizes: tuple[int, ...], activation: str) -> None:
    potential, shape = neural(MANIFOLDS[manifold], hidden_sizes, activation)
    weights = packed(potential).requires_grad_()
    q, lam = torch.randn(6, shape.dim), torch.randn(6, shape.dim)
    actual = gradient(shape, unpack_weights(shape, weights), q)
    assert_close(actual, potential.bind().gradient(q))
    (pulled,) = torch.autograd.grad((lam * actual).sum(), weights)
    expected = expected_parameter_gradient(potential, q, lam)
    assert_close(pulled, torch.cat([e.flatten() for e in expected]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parameter_gradient_in_single_precision(activation: str) -> None:
    potential, shape = neural(MANIFOLDS["cylinder"], (64,), activation)
    q, lam = torch.randn(301, shape.dim), torch.randn(301, shape.dim)
    expected = expected_parameter_gradient(potential, q, lam)
    weights = packed(potential, torch.float32)
    flat = compiled_parameter_gradient(shape._replace(dtype="float32"), weights, q.float(), lam.float())
    for a, e in zip(flat.tensor_split(list(shape.offsets[1:])), expected, strict=True):
        assert_close(a, e.flatten())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (4, 3)], ids=str)
def test_samples_without_a_cotangent_add_nothing(hidden_sizes: tuple[int, ...], activation: str) -> None:
    potential, shape = neural(MANIFOLDS["cylinder"], hidden_sizes, activation)
    q, lam = torch.randn(70, 2), torch.randn(70, 2)
    unused = torch.rand(70) < 0.5
    lam[unused] = 0.0
    wild = torch.where(unused[:, None], torch.tensor([1e300, -1e300]), q)

    def pull(q: Tensor, lam: Tensor) -> Tensor:
        if len(hidden_sizes) == 1:
            return compiled_parameter_gradient(shape, packed(potential), q, lam)
        return torch.cat([g.flatten() for g in parameter_gradient(shape, arrays(potential), q, lam)])

    assert torch.equal(pull(wild, lam), pull(q, lam))
    assert not pull(wild, torch.zeros_like(lam)).any()
    assert not pull(wild[:0], lam[:0]).any()


def test_tanh_in_single_precision() -> None:
    lanes = vector_width(4)
    z = torch.cat([torch.linspace(-12, 12, 1_000_001), torch.logspace(-30, 30, 100_000)])
    z = z[: len(z) // lanes * lanes].float()
    module = new_module("tanh")
    b = FunctionBuilder(module, "f", [INDEX, POINTER, POINTER], lanes=lanes, precision=Precision("float32"))
    with b.loop(b.arguments[0], step=lanes) as i:
        b.store(EMITTED["tanh"](b, b.load(b.arguments[1], i))[0], b.arguments[2], i)
    b.finish()
    value = torch.empty_like(z)
    call(module, "f", len(z), z, value)
    exact = z.double().tanh()
    relative = (value.double() - exact).abs() / exact.abs().clamp(min=1e-300)
    assert float(relative[z != 0].max()) < 3.3e-7
    assert bool((value[z.abs() >= 8.9].abs() == 1).all())  # so that a saturated unit has no slope


@pytest.mark.parametrize("hidden_sizes", HIDDEN_SIZES, ids=str)
def test_packed_weights(hidden_sizes: tuple[int, ...]) -> None:
    potential, shape = neural(MANIFOLDS["cylinder"], hidden_sizes)
    assert (shape.dim, shape.num_features, shape.coordinates) == (2, 3, (1, 0, 0))
    assert shape.num_weights == len(packed(potential))
    for start, array, expected in zip(shape.offsets, arrays(potential), shape.arrays, strict=True):
        assert array.shape == expected
        assert torch.equal(packed(potential)[start : start + array.numel()], array.detach().flatten())
    for part, array in zip(unpack_weights(shape, packed(potential)), arrays(potential), strict=True):
        assert torch.equal(part, array)
    assert (scratch_size(shape, 4) == 0) == (len(hidden_sizes) == 1)
