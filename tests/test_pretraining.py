"""Networks taught on rough estimates: what they explain, exactly where that can be said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from example_data import ragged, simulated, with_gaps

from vinppl.data import Trajectories
from vinppl.estimates import local_states
from vinppl.manifolds import Circle, Euclidean, Manifold
from vinppl.nn import RandomFeatures
from vinppl.potentials import NeuralPotential
from vinppl.pretraining import descend, pretrain_potential, regress_weights


def test_pretraining_explains_the_accelerations() -> None:
    data = simulated(num_times=60, step_size=0.05, noise_scale=1e-3)
    potential = NeuralPotential(
        Euclidean(1), hidden_sizes=(20,), generator=torch.Generator().manual_seed(0)
    ).double()
    assert pretrain_potential(potential, data, num_steps=600, learning_rate=0.02) < 0.1
    assert all(parameter.grad is None for parameter in potential.parameters())


def test_descent_reaches_a_minimum_and_clears_the_gradient() -> None:
    x = torch.zeros(2, requires_grad=True)
    target = torch.tensor([1.0, -2.0])
    losses = descend([x], lambda: (x - target).square().sum(), num_steps=400, learning_rate=0.05)
    assert losses[0] == 5.0
    assert len(losses) == 400
    torch.testing.assert_close(x.detach(), target, rtol=0, atol=1e-3)
    assert x.grad is None


# Random features


def random_features(manifold: Manifold, **options: float) -> NeuralPotential:
    stream = torch.Generator().manual_seed(0)
    return NeuralPotential(
        manifold, network=RandomFeatures(manifold.num_features, 32, generator=stream), **options
    )


def force(potential: NeuralPotential, weights: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return -torch.einsum("k,knd->nd", weights, potential.feature_gradients(q))


@pytest.mark.parametrize(
    ("system", "manifold", "law"),
    [
        ("mass_spring", Euclidean(1), lambda q: -4.0 * q),
        ("pendulum", Circle(), lambda q: -9.82 * q.sin()),
        ("pendulum", Euclidean(1), lambda q: -9.82 * q.sin()),
    ],
)
def test_regression_recovers_the_force(
    system: str, manifold: Manifold, law: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    parameters = {"stiffness": 4.0} if system == "mass_spring" else {}
    data = simulated(
        system, num_trajectories=5, num_times=60, step_size=0.03, noise_scale=0.0, parameters=parameters
    )
    potential = random_features(manifold, input_scale=2.0, energy_scale=4.0)
    weights = regress_weights(potential, data)
    states = local_states(data)
    size = float(law(states.q).square().mean().sqrt())
    # Minimising |r|^2 / s^2 + |w|^2 / A^2 leaves |r|^2 <= |r0|^2 + s^2 |w0|^2 / A^2 for any weights w0. With
    # the smallest s^2 tried, a hundredth of the mean square, |w0|^2 / A^2 some num_units = 32 and the 270
    # points of this record, the force errs by sqrt(0.01 * 32 / 270) = 3.4 % of its size where r0 is nothing.
    error = (force(potential, weights, states.q) - law(states.q)).square().mean().sqrt()
    assert float(error) < math.sqrt(0.01 * 32 / states.t.numel()) * size
    assert weights.shape == (32,)


def test_regression_of_several_coordinates() -> None:
    data = simulated(
        "coupled_oscillators", num_trajectories=10, num_times=60, noise_scale=0.0, step_size=0.05
    )
    potential = random_features(Euclidean(data.dim), input_scale=2.0, energy_scale=2.0)
    states = local_states(data)
    left = force(potential, regress_weights(potential, data), states.q) - states.a
    assert float(left.square().mean() / states.a.square().mean()) < 0.01  # the smallest scatter tried


def test_a_record_without_stretches_gives_zeros() -> None:
    data = simulated(num_times=2, num_trajectories=1, observe=("position",))
    assert local_states(data).t.numel() == 0
    weights = regress_weights(random_features(Euclidean(1)), data)
    assert torch.equal(weights, torch.zeros(32))


@pytest.mark.parametrize("change", [with_gaps, ragged, lambda d: d.first(5), lambda d: ragged(with_gaps(d))])
@pytest.mark.parametrize("observe", [("position", "velocity"), ("position",), ("velocity",)])
def test_regression_of_incomplete_records_is_finite(
    change: Callable[[Trajectories], Trajectories], observe: tuple
) -> None:
    data = change(simulated(noise_scale=0.1, observe=observe))
    hidden = torch.where(data.mask, data.values, 77.0)  # what is masked is not looked at
    weights, same = (
        regress_weights(random_features(Circle()), d)
        for d in (data, dataclasses.replace(data, values=hidden))
    )
    assert bool(torch.isfinite(weights).all())
    torch.testing.assert_close(weights, same, rtol=0, atol=1e-9)


def test_a_record_at_rest_gives_zeros() -> None:
    data = simulated(noise_scale=0.0)
    still = dataclasses.replace(data, values=torch.zeros_like(data.values))
    # Nothing accelerates, up to the ridge of `local_states`.
    assert float(regress_weights(random_features(Euclidean(1)), still).abs().max()) < 1e-9


def test_regression_keeps_the_type_of_the_data() -> None:
    data = simulated().to(dtype=torch.float32)
    weights = regress_weights(random_features(Circle()).to(torch.float32), data)
    assert weights.dtype == torch.float32
    assert bool(torch.isfinite(weights).all())
