"""Regression on derivatives: the field of a spring is recovered, and a forecast follows."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from example_data import simulated
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.export import get_group
from vinppl.fit import DerivativeFit, fit_derivatives
from vinppl.forecast import extend, forecast
from vinppl.models import (
    FreeDynamics,
    FreeDynamicsConfig,
    HamiltonianStates,
    HamiltonianStatesConfig,
    MassSpring,
    NoisyStates,
)

STIFFNESS = 2.0
QUICK: dict[str, Any] = {"num_steps": 800, "learning_rate": 0.02, "weight_decay": 0.0}


def spring(noise_scale: float = 0.0, **options: Any) -> Trajectories:
    return simulated("mass_spring", num_trajectories=20, num_times=25, noise_scale=noise_scale, **options)


def exact(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Derivatives at the states of noise-free data."""
    q, v = data.values.split(1, dim=-1)
    return v, -STIFFNESS * q


def hamiltonian(data: Trajectories, **options: Any) -> HamiltonianStates:
    return HamiltonianStates(data, HamiltonianStatesConfig(**({"hidden_sizes": (8,)} | options)))


def free(data: Trajectories, **options: Any) -> FreeDynamics:
    return FreeDynamics(data, FreeDynamicsConfig(**({"hidden_sizes": (8,), "dynamics": "ode"} | options)))


def field_error(model: Any, data: Trajectories) -> float:
    """Root mean square error of the field over the states of `data`."""
    q, v = data.values.flatten(0, 1).split(1, dim=-1)
    dq, dv = model.dynamics.bind()(q, v)
    return float(torch.cat([dq - v, dv + STIFFNESS * q], -1).square().mean().sqrt().detach())


@pytest.mark.parametrize("build", [hamiltonian, free])
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_field_of_a_spring_is_recovered(build: Any, scale: float) -> None:
    data = spring()
    model = build(data)
    dq, dv = exact(data)
    noisy = (dq + scale * torch.randn_like(dq), dv + scale * torch.randn_like(dv))
    result = fit_derivatives(model, data, derivatives=noisy, **QUICK)
    assert isinstance(result, DerivativeFit)
    assert result.model is model
    assert len(result.losses) == QUICK["num_steps"]
    size = float(torch.cat([dq, dv], -1).square().mean().sqrt())
    count = sum(p.numel() for p in model.dynamics.parameters())
    # Least squares of p parameters on 2 n numbers of noise s errs by s sqrt(p / 2 n) on average; twice
    # that leaves room for chance. A network of 8 units is within 3 % of the linear field by itself.
    statistical = 2 * scale * (count / (2 * data.num_trajectories * data.num_times)) ** 0.5
    assert field_error(model, data) < statistical + 0.03 * size
    if scale:
        # The last loss is the noise's variance within its standard error s^2 sqrt(2 / 2 n) = 3 %, three
        # times that, less the share p / 2 n = 5 % that the parameters fit, plus the 3 % squared above.
        assert result.losses[-1] == pytest.approx(scale**2, rel=0.15)


def test_estimated_derivatives_and_a_forecast() -> None:
    data = spring(0.02)
    model = hamiltonian(data)
    result = fit_derivatives(model, data, **QUICK)
    # Cubics through 7 samples of noise s have accelerations of noise about 2 s / (3 h)^2 = 0.4 with
    # slopes measured too; averaged over some 400 stretches it is below a tenth of the field, as is the
    # curvature that the cubics miss, (omega h)^2 = 2 %.
    assert field_error(model, data) < 0.1 * float(data.values.square().mean().sqrt()) * STIFFNESS
    draws = result.sample(3)
    assert set(draws) == {"initial_position", "initial_velocity", "noise_scale"}
    assert draws["initial_position"].shape == (3, 20, 1)
    # See `noise_estimate`: found within a third.
    assert draws["noise_scale"][0].tolist() == pytest.approx([0.02, 0.02], rel=0.33)
    future = extend(data, horizon=1.0)
    ahead = forecast(model, draws, data, future, parameters=result.parameters)
    states = get_group(ahead, "predictions")["states"].values
    assert states.shape == (1, 3, 20, future.num_times, 2)
    assert (states[0, 0] == states[0, 1]).all()
    other = result.sample(2, data=data.select([4]))
    assert torch.equal(other["initial_position"][0], draws["initial_position"][0, [4]])
    assert {name for name in result.parameters if "weight" in name} == {
        "network.weight_0",
        "network.weight_1",
    }


def test_missing_samples_and_derivatives_are_left_out() -> None:
    data = spring()
    dq, dv = exact(data)
    mask = data.mask.clone()
    mask[:, ::2, 1] = False
    holes = dataclasses.replace(data, mask=mask, values=torch.where(mask, data.values, 7.0))
    dv[:, 1::4] = torch.nan
    model = free(data, dynamics="residual")
    result = fit_derivatives(model, holes, derivatives=(dq, dv), **QUICK)
    assert torch.tensor(result.losses).isfinite().all()
    # As above, on a quarter of the noise-free states.
    assert field_error(model, data) < 0.05 * float(torch.cat(exact(data), -1).square().mean().sqrt())


def test_latent_sites_without_an_estimate_take_their_median() -> None:
    data = spring(0.05)
    result = fit_derivatives(hamiltonian(data, noise="ar1"), data, num_steps=2)
    # The prior's median is three sampling intervals and its logarithm has sd 1, so that the median of
    # 1000 samples is off by sqrt(pi / 2000) = 4 %; four times that.
    assert result.values["correlation_time"].tolist() == pytest.approx([0.3, 0.3], rel=0.16)


def test_weight_decay_shrinks_the_weights() -> None:
    data = spring()
    sizes = []
    for decay in (0.0, 1.0):
        model = hamiltonian(data)
        fit_derivatives(model, data, derivatives=exact(data), num_steps=300, weight_decay=decay)
        sizes.append(sum(float(p.square().sum().detach()) for p in model.dynamics.parameters()))
    assert sizes[1] < sizes[0]


def test_what_cannot_be_fitted_is_named() -> None:
    data = spring()
    pair = exact(data)
    for model in (free(data, dynamics="feed_forward"), MassSpring(data), NoisyStates(data)):
        with pytest.raises(ValueError, match="needs a model with one law in continuous time; got"):
            fit_derivatives(model, data)
    with pytest.raises(ValueError, match="the weights of the field must be point estimates"):
        fit_derivatives(hamiltonian(data, weight_prior_scale=1.0), data, derivatives=pair)
    with pytest.raises(ValueError, match=re.escape("dv/dt must have shape (20, 25, 1)")):
        fit_derivatives(hamiltonian(data), data, derivatives=(pair[0], pair[1][:, 1:]))
    positions = spring(observe=("position",))
    with pytest.raises(ValueError, match="needs samples whose positions and velocities are all observed"):
        fit_derivatives(hamiltonian(positions), positions, derivatives=pair)
