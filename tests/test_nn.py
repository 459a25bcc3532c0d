"""Networks: the closed-form gradient, activations, scales, particles, random features, bad options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vinppl.nn import ACTIVATIONS, MLP, Activation, BoundNetwork, RandomFeatures, ScalarMLP


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_activations(name: str) -> None:
    x = torch.linspace(-4, 4, 31, requires_grad=True)
    (expected,) = torch.autograd.grad(ACTIVATIONS[name].value(x).sum(), x)
    torch.testing.assert_close(ACTIVATIONS[name].derivative(x.detach()), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(5,), (4, 6), (3, 4, 2)])
def test_gradient_is_the_derivative_of_value(name: str, hidden_sizes: tuple[int, ...]) -> None:
    network = ScalarMLP(3, hidden_sizes, activation=name)
    value, gradient, *_ = network.bind()
    x = torch.randn(2, 7, 3, requires_grad=True)
    assert value(x).shape == (2, 7)
    (expected,) = torch.autograd.grad(value(x).sum(), x)
    torch.testing.assert_close(gradient(x.detach()), expected, rtol=0, atol=1e-14)
    assert value(x[0, 0]).shape == ()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_weight_gets_a_gradient_through_the_force(name: str) -> None:
    network = ScalarMLP(2, (4, 3), activation=name)
    gradient = network.bind().gradient
    gradient(torch.randn(6, 2)).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert bool(torch.isfinite(parameter.grad).all()), label
        assert float(parameter.grad.abs().max()) > 0, label


def test_own_activation_and_generator() -> None:
    cube = Activation(lambda x: x**3, lambda x: 3 * x**2)
    first, second = (
        ScalarMLP(2, (4,), activation=cube, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first.weight_0, second.weight_0)
    assert float(first.weight_0.detach().abs().max()) <= 2**-0.5


@pytest.mark.parametrize("num_trajectories", [1, 5])
def test_weights_with_particle_dimensions(num_trajectories: int) -> None:
    # Drawn outside the trajectory plate under vectorised particles: (particles, 1, out, in).
    num_particles = 3
    singles = [ScalarMLP(2, (4, 3), generator=torch.Generator().manual_seed(i)) for i in range(num_particles)]
    together = ScalarMLP(2, (4, 3), weight_prior_scale=1.0)
    names = ("weight_0", "bias_0", "weight_1", "bias_1", "weight_2")
    stacked = {name: torch.stack([getattr(s, name) for s in singles]).unsqueeze(1) for name in names}

    class Fixed(ScalarMLP):
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return stacked[name] if name in stacked else super().__getattr__(name)

    together.__class__ = Fixed
    value, gradient, *_ = together.bind()
    per_particle = torch.randn(num_particles, num_trajectories, 2)
    shared = per_particle[0]
    for x, of in ((per_particle, lambda i: per_particle[i]), (shared, lambda i: shared)):
        assert value(x).shape == (num_particles, num_trajectories)
        for i, single in enumerate(singles):
            single_value, single_gradient, *_ = single.bind()
            torch.testing.assert_close(value(x)[i], single_value(of(i)), rtol=0, atol=1e-14)
            torch.testing.assert_close(gradient(x)[i], single_gradient(of(i)), rtol=0, atol=1e-14)
    in_time = torch.randn(6, num_particles, num_trajectories, 2)  # as in VIN.energy
    torch.testing.assert_close(value(in_time)[2], value(in_time[2]), rtol=0, atol=1e-14)


def test_prior_scale_is_divided_by_the_root_of_the_fan_in() -> None:
    network = ScalarMLP(4, (10_000,), weight_prior_scale=3.0)
    # The standard error of a standard deviation from n draws is 1 / sqrt(2 n): 0.5 % and 0.7 %.
    assert float(network.weight_0.std()) == pytest.approx(3.0 / 2, rel=0.02)
    assert float(network.bias_0.std()) == pytest.approx(3.0, rel=0.03)
    assert float(network.weight_1.std()) == pytest.approx(3.0 / 100, rel=0.03)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="activation must be one of tanh"):
        ScalarMLP(1, (3,), activation="relu")
    with pytest.raises(ValueError, match="at least one hidden layer"):
        ScalarMLP(1, ())
    with pytest.raises(ValueError, match="every width in hidden_sizes must be at least 1"):
        ScalarMLP(1, (3, 0))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("output_bias", [True, False])
def test_a_vector_network_is_the_explicit_formula(name: str, output_bias: bool) -> None:
    network = MLP(3, 2, (5, 4), activation=name, output_bias=output_bias)
    assert hasattr(network, "bias_2") == output_bias
    x, inside, outside = torch.randn(2, 7, 3), torch.tensor([0.5, 2.0, 1.5]), torch.tensor([3.0, 0.1])
    y = inside * x
    for i in range(2):
        weight, bias = getattr(network, f"weight_{i}"), getattr(network, f"bias_{i}")
        y = ACTIVATIONS[name].value(y @ weight.T + bias)
    y = y @ network.weight_2.T + (network.bias_2 if output_bias else 0.0)
    # Rounding of sums of a few numbers of size one, in another order.
    torch.testing.assert_close(network.bind(inside, outside)(x), outside * y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_weight_of_a_vector_network_gets_the_right_gradient(name: str) -> None:
    network = MLP(2, 2, (3,), activation=name)
    x, scale = torch.randn(4, 2), torch.tensor([2.0, 0.5])
    parameters = [p.detach().requires_grad_() for p in network.parameters()]
    names = [n.removesuffix("_unconstrained") for n, _ in network.named_parameters()]

    def output(*values: torch.Tensor) -> torch.Tensor:
        class Fixed(MLP):
            def __getattr__(self, key: str):  # type: ignore[no-untyped-def]
                return values[names.index(key)] if key in names else super().__getattr__(key)

        network.__class__ = Fixed
        return network.bind(scale, scale)(x)

    assert torch.autograd.gradcheck(output, parameters)


def test_scales_of_a_scalar_network() -> None:
    network = ScalarMLP(3, (4, 5))
    x, inside, outside = torch.randn(6, 3), torch.tensor([0.5, 2.0, 1.5]), torch.tensor([3.0])
    plain, scaled = network.bind(), network.bind(inside, outside)
    # Rounding of sums of a few numbers of size one, in another order.
    torch.testing.assert_close(scaled.value(x), 3 * plain.value(inside * x), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        scaled.gradient(x), 3 * inside * plain.gradient(inside * x), rtol=0, atol=1e-14
    )


def test_particles_of_a_vector_network() -> None:
    singles = [MLP(2, 3, (4, 3), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    together = MLP(2, 3, (4, 3), weight_prior_scale=1.0)
    names = [f"{kind}_{i}" for i in range(3) for kind in ("weight", "bias")]
    stacked = {name: torch.stack([getattr(s, name) for s in singles]).unsqueeze(1) for name in names}

    class Fixed(MLP):
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return stacked[name] if name in stacked else super().__getattr__(name)

    together.__class__ = Fixed
    x = torch.randn(3, 5, 2)
    for i, single in enumerate(singles):
        torch.testing.assert_close(together.bind()(x)[i], single.bind()(x[i]), rtol=0, atol=1e-14)


# Random features


def features(num_units: int = 6, num_inputs: int = 3, **options: Any) -> RandomFeatures:
    return RandomFeatures(num_inputs, num_units, generator=torch.Generator().manual_seed(4), **options)


def test_random_features_have_the_kernel_of_a_gaussian_process() -> None:
    num_units, num_draws, length_scale = 4000, 2000, 0.7
    network = features(num_units, 1, length_scale=length_scale)
    x = torch.linspace(0, 2, 9).unsqueeze(-1)
    kernel = torch.exp(-0.5 * ((x - x.mT) / length_scale).square())
    phi = torch.sin(x @ network.weight_0.mT + network.bias_0)
    # 2 sin(u) sin(v) has mean k and variance at most 3/2 over units; four standard errors.
    of_units = 4 * math.sqrt(1.5 / num_units)
    assert float((2 * phi @ phi.mT / num_units - kernel).abs().max()) < of_units
    drawn = []
    for _ in range(num_draws):
        value, _, (_, weights), _ = network.bind()
        # Weights of two degrees of freedom have no variance: compare at their own size.
        drawn.append(value(x) / weights.square().mean().sqrt() / math.sqrt(num_units / 2))
    f = torch.stack(drawn)
    # f f' has mean k and variance at most 2 over draws.
    assert float((f.mT @ f / num_draws - kernel).abs().max()) < of_units + 4 * math.sqrt(2 / num_draws)


def test_random_features_have_the_amplitude_asked_for() -> None:
    network = features(400, 1, amplitude=3.0)
    value = torch.stack([network.bind().value(torch.zeros(20, 1))[0] for _ in range(4000)])
    # f(x) is Student-t of 2 degrees of freedom, scale amplitude * sqrt(2 mean sin^2), whose quartiles are at
    # +- 0.8165 scales. The density there is 0.1925 a scale: the standard error of a quartile of 4000 draws
    # is sqrt(3 / 16 / 4000) / 0.1925 = 0.036 scales; of their mean less.
    scale = 3.0 * math.sqrt(2 * float(network.bias_0.sin().square().mean()))
    low, high = (float(value.quantile(p)) / scale for p in (0.25, 0.75))
    assert 0.5 * (high - low) == pytest.approx(0.8165, abs=4 * 0.036)
    assert scale == pytest.approx(3.0, rel=4 * math.sqrt(0.5 / 400))  # 2 sin^2 has variance 1/2


def test_the_gradient_of_random_features_is_the_derivative() -> None:
    value, gradient, (hidden, output), (bias,) = features().bind()
    assert (hidden.shape, output.shape, bias.shape) == ((6, 3), (1, 6), (6,))
    x = torch.randn(2, 7, 3, requires_grad=True)
    torch.testing.assert_close(value(x), torch.sin(x @ hidden.mT + bias) @ output[0])
    (expected,) = torch.autograd.grad(value(x).sum(), x)
    # Rounding of a sum of six products.
    torch.testing.assert_close(
        gradient(x.detach()), expected, rtol=0, atol=1e-14 * float(1 + output.abs().sum())
    )
    assert value(x[0, 0]).shape == ()


@pytest.mark.parametrize("num_trajectories", [1, 5])
def test_output_weights_with_particle_dimensions(num_trajectories: int) -> None:
    network, weights = features(), torch.randn(3, 6)

    def bound(output: torch.Tensor) -> BoundNetwork:
        network.output = output
        return network.bind()

    together = bound(weights.unsqueeze(1))  # outside of the plate of trajectories: (particles, 1, units)
    x = torch.randn(3, num_trajectories, 3)
    in_time = torch.randn(4, 3, num_trajectories, 3)  # as in VIN.energy
    for at in (x, x[0], in_time):
        value, gradient = together.value(at), together.gradient(at)
        assert value.shape == torch.broadcast_shapes(at.shape[:-1], (3, num_trajectories))
        assert gradient.shape == (*value.shape, 3)
        for i in range(3):
            one, point = bound(weights[i]), at if at.ndim == 2 else at[..., i, :, :]
            torch.testing.assert_close(value[..., i, :], one.value(point), rtol=0, atol=1e-14)
            torch.testing.assert_close(gradient[..., i, :, :], one.gradient(point), rtol=0, atol=1e-14)


def test_only_the_output_of_random_features_is_inferred() -> None:
    network, same = features(), features()
    assert list(network.parameters()) == []
    assert {"weight_0", "bias_0"} <= set(network.state_dict())
    assert torch.equal(network.weight_0, same.weight_0)
    assert torch.equal(network.bias_0, same.bias_0)
    assert not torch.equal(network.weight_0, RandomFeatures(3, 6).weight_0)
    torch.testing.assert_close(features(length_scale=3.0).weight_0, network.weight_0 * (1.5 / 3.0))
    assert bool(((network.bias_0 >= 0) & (network.bias_0 < 2 * math.pi)).all())
    assert (
        network.to(torch.float32).bind().value(torch.zeros(2, 3, dtype=torch.float32)).dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inputs": 0}, "num_inputs must be at least 1; got 0"),
        ({"num_units": 0}, "num_units must be at least 1; got 0"),
        ({"length_scale": 0.0}, "length_scale must be positive; got 0.0"),
        ({"amplitude": -1.0}, "amplitude must be positive; got -1.0"),
    ],
)
def test_bad_options_of_random_features(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomFeatures(**({"num_inputs": 1} | options))
