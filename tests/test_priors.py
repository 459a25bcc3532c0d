"""Priors: their medians and scales, units, and refusals."""

from __future__ import annotations

import math
import re

import pytest
import torch
from example_data import ragged, simulated, with_gaps

from vinppl.data import Trajectories
from vinppl.priors import (
    correlation_prior,
    half_normal,
    initial_scales,
    log_normal,
    noise_prior,
    normal,
    state_scales,
)


def scaled(data: Trajectories, factor: float) -> Trajectories:
    """The same motion in another unit of length."""
    return Trajectories.from_arrays(data.times, factor * data.values, channels=data.channels)


def test_log_normal_has_its_median_and_width() -> None:
    prior = log_normal(3.0, 0.5)
    assert float(prior.icdf(torch.tensor(0.5))) == pytest.approx(3.0)
    inside = prior.cdf(torch.tensor(3.0) * math.exp(1.0)) - prior.cdf(torch.tensor(3.0) * math.exp(-1.0))
    assert float(inside) == pytest.approx(0.9545, abs=1e-4)  # two sds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_normal(0.0, 1.0), "median of a log-normal prior must be positive; got 0.0"),
        (lambda: log_normal(1.0, -1.0), "log_scale must be positive; got -1.0"),
        (lambda: half_normal(0.0), "scale of a half-normal prior must be positive"),
        (lambda: normal(1.0, 0.0), "scale of a normal prior must be positive"),
        (lambda: initial_scales(simulated(), (1.0, -1.0)), "initial_scale must be positive"),
    ],
)
def test_bad_scales_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_priors_follow_the_unit_of_the_data() -> None:
    data = simulated("mass_spring")
    other = scaled(data, 1000.0)
    for first, second in zip(state_scales(data), state_scales(other), strict=True):
        assert torch.allclose(1000 * first, second)
    assert torch.allclose(1000 * noise_prior(data).loc.exp(), noise_prior(other).loc.exp())
    assert noise_prior(data).batch_shape == (2,)
    assert noise_prior(data, (0.2, 1.0)).batch_shape == ()
    rms = data.values.square().mean((0, 1)).sqrt()
    assert torch.allclose(noise_prior(data).loc.exp(), 0.1 * rms)


def test_missing_values_and_padding_do_not_count() -> None:
    data = simulated("mass_spring")
    for other in (with_gaps(data), ragged(data)):
        expected = (other.values.square().sum((0, 1)) / other.mask.sum((0, 1))).sqrt()
        found = torch.cat(state_scales(other))
        assert torch.allclose(found, expected)
    gaps = with_gaps(simulated("mass_spring", num_times=40, observe=("position",)), every=5)
    assert torch.isfinite(torch.cat(state_scales(gaps))).all()


def test_scales_of_what_is_not_measured() -> None:
    # Differences of neighbouring positions: for a slow, noiseless oscillation they are the velocity.
    both = simulated("mass_spring", num_times=200, step_size=0.02, noise_scale=0.0)
    alone = simulated("mass_spring", num_times=200, step_size=0.02, noise_scale=0.0, observe=("position",))
    assert float(state_scales(alone)[1]) == pytest.approx(float(state_scales(both)[1]), rel=0.01)
    velocity = simulated("mass_spring", num_times=200, step_size=0.02, noise_scale=0.0, observe=("velocity",))
    q, v = state_scales(velocity)
    assert float(q) == pytest.approx(float(v) * 199 * 0.02 / (2 * math.pi))
    assert torch.allclose(initial_scales(velocity)[0], 2 * q)
    assert initial_scales(velocity, (0.5, 2.0))[1].tolist() == [2.0]


def test_memory_is_a_few_samples() -> None:
    prior = correlation_prior(simulated(step_size=0.1))
    assert float(prior.loc.exp()) == pytest.approx(0.3)
    assert float(correlation_prior(simulated(), (5.0, 0.1)).loc.exp()) == pytest.approx(5.0)
