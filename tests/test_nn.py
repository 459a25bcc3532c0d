"""Scalar networks: the closed-form gradient, activations, priors with particles, and bad options."""

from __future__ import annotations

import pytest
import torch

from vinppl.nn import ACTIVATIONS, Activation, ScalarMLP


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
