"""The log density as a function of a vector: against Pyro's own, by hand, and by differences."""

from __future__ import annotations

import pyro
import pytest
import torch
from example_data import simulated
from pyro import poutine
from pyro.distributions import Beta, Dirichlet, LogNormal, Normal

from vinppl.errors import NumericalWarning
from vinppl.logdensity import LogDensity
from vinppl.models import Hierarchical, MassSpring, NoisyStates, NoisyStatesConfig, Pendulum


def model(y: torch.Tensor) -> None:
    scale = pyro.sample("scale", LogNormal(torch.tensor(0.2), 0.5))
    share = pyro.sample("share", Beta(torch.tensor(2.0), 3.0))
    with pyro.plate("n", 3):
        x = pyro.sample("x", Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("obs", Normal(x.sum(-1) * share, scale).to_event(1), obs=y)


def test_density_by_hand() -> None:
    y = torch.tensor([0.1, -0.4, 0.9])
    density = LogDensity(model, y)
    assert density.names == ("scale", "share", "x")
    assert density.size == 8
    u = torch.linspace(-0.7, 0.6, 8)
    scale, share, x = u[0].exp(), u[1].sigmoid(), u[2:].reshape(3, 2)
    expected = (
        LogNormal(torch.tensor(0.2), 0.5).log_prob(scale)
        + u[0]  # log d scale / du
        + Beta(torch.tensor(2.0), 3.0).log_prob(share)
        + share.log()
        + (1 - share).log()
        + Normal(0.0, 1.0).log_prob(x).sum()
        + Normal(x.sum(-1) * share, scale).log_prob(y).sum()
    )
    assert float(density(u)) == pytest.approx(float(expected), rel=1e-12)
    values = density.constrain(u)
    assert float(values["scale"]) == pytest.approx(float(scale))
    assert values["x"].shape == (3, 2)


@pytest.mark.parametrize("kind", [MassSpring, Pendulum, Hierarchical])
def test_density_of_the_suite_is_the_trace_and_the_jacobian(kind: type) -> None:
    data = simulated()
    program = kind(data)
    density = LogDensity(program, data, initial_values=program.initial_values(data))
    u = density.initial + 0.01 * torch.randn(density.size)
    values = density.constrain(u)
    trace = poutine.trace(poutine.condition(program, values)).get_trace(data)
    # Every constrained site of the suite is positive: z = exp(u), so log dz/du = u.
    jacobian = sum(
        float(part.sum()) for name, part in density.split(u).items() if not torch.equal(part, values[name])
    )
    assert float(density(u)) == pytest.approx(float(trace.log_prob_sum()) + jacobian, rel=1e-9)


def test_round_trip_and_batches() -> None:
    density = LogDensity(model, torch.zeros(3))
    u = torch.randn(5, 4, 8)
    values = density.constrain(u)
    assert values["scale"].shape == (5, 4)
    assert values["x"].shape == (5, 4, 3, 2)
    again = density.unconstrain({name: value[2, 1] for name, value in values.items()})
    assert torch.allclose(again, u[2, 1])
    reordered = dict(reversed(values.items()))
    assert torch.allclose(density.unconstrain({k: v[0, 0] for k, v in reordered.items()}), u[0, 0])


@pytest.mark.parametrize("kind", [MassSpring, Pendulum])
def test_gradient_against_differences(kind: type) -> None:
    data = simulated(num_times=20)
    program = kind(data)
    density = LogDensity(program, data, initial_values=program.initial_values(data))
    u = density.initial + 0.02 * torch.randn(density.size)
    value, gradient = density.value_and_gradient(u)
    assert float(value) == pytest.approx(float(density(u)))
    h = 1e-5
    for i in range(density.size):
        step = torch.zeros_like(u)
        step[i] = h
        with torch.no_grad():
            difference = (density(u + step) - density(u - step)) / (2 * h)
        # Central differences: error h^2/6 f''' with f''' up to about 1e4 f', and rounding 1e-16 |f| / h.
        assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-4, abs=1e-4)


def test_initial_values_are_where_it_starts() -> None:
    density = LogDensity(model, torch.zeros(3), initial_values={"scale": torch.tensor(0.7)})
    assert float(density.constrain(density.initial)["scale"]) == pytest.approx(0.7)


def test_point_parameters_are_warned_of() -> None:
    data = simulated()
    program = NoisyStates(data, NoisyStatesConfig(hidden_sizes=(4,)))
    with pytest.warns(NumericalWarning, match=r"point-estimated parameters \(.*weight_0.*holds fixed"):
        density = LogDensity(program, data)
    assert "initial_position" in density.names
    assert not any("weight" in name for name in density.names)


def test_a_model_without_latents_is_refused() -> None:
    def empty() -> None:
        pyro.sample("obs", Normal(torch.tensor(0.0), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="at least one latent site"):
        LogDensity(empty)


def test_simplices_change_their_size() -> None:
    def shares() -> None:
        pyro.sample("p", Dirichlet(torch.ones(3)))

    density = LogDensity(shares)
    assert density.size == 2
    values = density.constrain(torch.randn(4, 2))
    assert values["p"].shape == (4, 3)
