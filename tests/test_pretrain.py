"""What an amortised guide learns before the evidence lower bound takes over."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vinppl import SVIOptions, fit_svi, system
from vinppl.encoders import InitialPosterior
from vinppl.errors import ConvergenceWarning
from vinppl.fit.pretrain import pretrain_encoder
from vinppl.fit.starts import find_start, fit_point
from vinppl.guides import AmortisedGuide
from vinppl.logdensity import LogDensity
from vinppl.models import NoisyStates, NoisyStatesConfig
from vinppl.simulate import simulate

CONFIG = NoisyStatesConfig(hidden_sizes=(16,))


def _posterior(seed: int) -> InitialPosterior:
    stream = torch.Generator().manual_seed(seed)
    loc, scale, coupling = (torch.randn(3, k, generator=stream) for k in (2, 2, 1))
    return InitialPosterior(loc, scale.exp(), coupling)


def _joint(posterior: InitialPosterior) -> MultivariateNormal:
    """The same normal written as one joint density: v = m_v + b (q - m_q) + s_v e."""
    (q, v), b = posterior.scale.T, posterior.coupling[:, 0]
    factor = torch.stack([torch.stack([q, torch.zeros_like(q)], -1), torch.stack([b * q, v], -1)], -2)
    return MultivariateNormal(posterior.loc, scale_tril=factor)


def test_density_and_divergence_are_those_of_the_joint_normal() -> None:
    first, second = _posterior(0), _posterior(1)
    state = torch.randn(5, 3, 2)
    torch.testing.assert_close(first.log_prob(state), _joint(first).log_prob(state))
    torch.testing.assert_close(first.divergence(second), kl_divergence(_joint(first), _joint(second)))


@pytest.mark.filterwarnings("ignore:the model has point-estimated")
def test_a_point_fit_moves_network_and_sites_uphill() -> None:
    data, _ = simulate(system("mass_spring"), num_trajectories=3, num_times=16, noise_scale=0.1)
    model = NoisyStates(data, CONFIG)
    model.pretrain(data)
    start = model.initial_values(data)
    before = LogDensity(model, data, initial_values=start)
    low = before(before.unconstrain(start)).item()
    values = fit_point(model, data, max_iterations=20)
    after = LogDensity(model, data, initial_values=values)
    assert after(after.unconstrain(values)).item() > low + 1.0


def test_the_encoder_learns_what_was_found_on_the_data() -> None:
    data, truth = simulate(system("mass_spring"), num_trajectories=3, num_times=16, noise_scale=0.1)
    model = NoisyStates(data, CONFIG)
    model.pretrain(data)
    values = model.initial_values(data)
    states = torch.cat([truth.q[:, 0], truth.v[:, 0]], -1)
    values |= {"initial_position": truth.q[:, 0], "initial_velocity": truth.v[:, 0]}
    found = InitialPosterior(states, torch.full_like(states, 0.05), torch.zeros_like(truth.q[:, 0]))
    guide = AmortisedGuide(model, data, initial_values={"noise_scale": values["noise_scale"]})
    start = guide.encoder(data).divergence(found).mean().item()
    end = pretrain_encoder(model, guide, data, values, found, num_steps=10, num_matches=150)
    assert end < min(0.5 * start, 5.0)


def test_a_network_with_an_amortised_guide_follows_its_data() -> None:
    """A spring from 3 x 16 samples of noise 0.1: the mean path stays within two noise scales."""
    data, truth = simulate(system("mass_spring"), num_trajectories=3, num_times=16, noise_scale=0.1)
    model = NoisyStates(data, CONFIG)
    result = fit_svi(model, data, SVIOptions(num_steps=60, check_every=10))
    draws = result.sample(200)
    assert (draws["initial_position"].mean(0) - truth.q[:, 0]).abs().max() < 0.2
    assert (draws["noise_scale"].mean(0) < 0.2).all()


def test_a_start_that_calls_the_motion_noise_begins_anew_with_less_of_the_record() -> None:
    """From 25 samples at once, swings near the top are taken for noise of a standard deviation above 1."""
    data, _ = simulate(system("pendulum"), num_trajectories=5, num_times=30, noise_scale=0.33, seed=4)
    model = NoisyStates(data, NoisyStatesConfig(potential="random_features", network_seed=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = find_start(model, data)
    assert float(found.values["noise_scale"].max()) < 0.5
