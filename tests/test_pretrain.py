"""What an amortised guide learns before the evidence lower bound takes over."""

from __future__ import annotations

import dataclasses
import warnings

import pyro
import pytest
import torch
from pyro.distributions import LogNormal, Normal
from torch.distributions import MultivariateNormal, kl_divergence

from vinppl import SVIOptions, fit_svi, system
from vinppl.data import Trajectories
from vinppl.encoders import INITIAL_SITES, InitialPosterior
from vinppl.errors import ConvergenceWarning
from vinppl.fit.amortised import AmortisedELBO
from vinppl.fit.pretrain import pretrain_encoder
from vinppl.fit.starts import _half_growth, _next_horizon, find_start, fit_point
from vinppl.guides import AmortisedGuide
from vinppl.logdensity import LogDensity
from vinppl.models import MassSpring, NoisyStates, NoisyStatesConfig, Pendulum
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
    return MultivariateNormal(posterior.loc, scale_tril=factor.expand(*posterior.loc.shape, -1))


def test_density_and_divergence_are_those_of_the_joint_normal() -> None:
    first, second = _posterior(0), _posterior(1)
    state = torch.randn(5, 3, 2)
    torch.testing.assert_close(first.log_prob(state), _joint(first).log_prob(state))
    torch.testing.assert_close(first.divergence(second), kl_divergence(_joint(first), _joint(second)))


def test_conditional_posteriors() -> None:
    """E over w of the divergence of normals whose means follow w; the marginal; the normal given w."""
    first, second = _posterior(0), _posterior(1)
    stream = torch.Generator().manual_seed(2)
    first, second = (p._replace(response=torch.randn(3, 2, 4, generator=stream)) for p in (first, second))
    w = torch.randn(40_000, 1, 4, generator=stream)
    given = [_joint(p.given(w)) for p in (first, second)]
    each = kl_divergence(*given)
    error = 4 * each.std(0) / len(w) ** 0.5
    assert ((first.divergence(second) - each.mean(0)).abs() < error).all()
    covariance = first.marginal_factor @ first.marginal_factor.mT
    states = given[0].sample() - first.loc
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    difference = torch.einsum("lni,lnj->nij", states, states) / len(w) - covariance
    assert (difference.abs() < 5 * (2 / len(w)) ** 0.5 * scale.unsqueeze(-1) * scale.unsqueeze(-2)).all()


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


def test_an_amortised_guide_starts_as_the_normal_of_the_curvature() -> None:
    """Stiffness, damping and noise with the states that follow them, as a full-rank guide has them."""
    data, _ = simulate(system("mass_spring"), num_trajectories=2, num_times=30, noise_scale=0.1)
    model = MassSpring(data)
    draws = {}
    for name in ("full_rank", "amortised", "amortised_mean_field"):
        result = fit_svi(model, data, SVIOptions(guide=name, num_steps=1, learning_rate=1e-9, check_every=1))
        found = result.sample(4000)
        parts = [found[n].log() if (found[n] > 0).all() else found[n] for n in sorted(found)]
        draws[name] = torch.cat([part.reshape(4000, -1) for part in parts], dim=-1)
    sds = {name: value.std(0) for name, value in draws.items()}
    shift = (draws["amortised"].mean(0) - draws["full_rank"].mean(0)) / sds["full_rank"]
    assert shift.abs().max() < 0.3  # the encoder is a network, which does not fit them exactly
    torch.testing.assert_close(sds["amortised"], sds["full_rank"], rtol=0.15, atol=0.0)
    near = torch.corrcoef(draws["amortised"].T) - torch.corrcoef(draws["full_rank"].T)
    assert near.abs().max() < 0.15
    far = torch.corrcoef(draws["amortised_mean_field"].T) - torch.corrcoef(draws["full_rank"].T)
    assert far.abs().max() > 0.3


def test_the_bound_of_an_amortised_guide_counts_the_jacobian() -> None:
    """Without data a guide that is the prior has a bound of zero."""

    def prior(data: Trajectories) -> None:
        pyro.sample("rate", LogNormal(torch.tensor(0.7), torch.tensor(1.5)))
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            for site in INITIAL_SITES:
                pyro.sample(site, Normal(torch.zeros(1), 1.0).to_event(1))

    data, _ = simulate(system("mass_spring"), num_trajectories=2, num_times=5)
    data = dataclasses.replace(data, values=torch.zeros_like(data.values))
    for joint in (True, False):
        guide = AmortisedGuide(prior, data, initial_values={"rate": torch.tensor(0.7).exp()}, joint=joint)
        guide(data)
        if joint:
            guide.rest.scale = torch.tensor([1.5])
        else:
            guide.rest.scales.rate = torch.tensor(1.5)
        spread = guide.encoder(data).scale[0]
        encoder = 2 * float((0.5 * spread.square() - 0.5 - spread.log()).sum().detach())
        bound = AmortisedELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = bound.loss(prior, guide, data)
        assert loss == pytest.approx(encoder, abs=0.01), joint


def test_a_motion_that_seems_to_begin_elsewhere_is_looked_for_there() -> None:
    """Angles with a scatter of 3 rad put one start a whole turn off, which no climb from there undoes."""
    data, truth = simulate(
        system("pendulum"), num_trajectories=3, num_times=25, step_size=0.1, noise_scale=0.05, seed=1
    )
    angles = 3 * torch.randn(data.values.shape[:2], generator=torch.Generator().manual_seed(1))
    noisy = dataclasses.replace(
        data, values=data.values + torch.stack([angles, torch.zeros_like(angles)], dim=-1)
    )
    start = find_start(Pendulum(noisy), noisy)
    assert (start.values["initial_position"] - truth.q[:, 0]).abs().max() < 2


def test_half_of_the_way_is_shorter() -> None:
    """Growth is a number with rounding: from 12 to 14 samples half of the way was 14 again, for ever."""
    for reached in range(1, 200):
        for length in range(reached + 2, 3 * reached + 3):
            half = _next_horizon(reached, _half_growth(reached, length))
            assert reached < half < length, (reached, length)


def test_long_parts_of_a_record_are_compiled_and_found_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = simulate(system("mass_spring"), num_trajectories=2, num_times=70, noise_scale=0.1)
    model = MassSpring(data)
    lengths: list[int] = []
    original = LogDensity.compile

    def counted(self: LogDensity) -> bool:
        lengths.append(self._args[0].num_times)
        return original(self)

    monkeypatch.setattr(LogDensity, "compile", counted)
    plain = find_start(model, data)
    monkeypatch.setattr("vinppl.fit.starts.LONG", 30)
    found = find_start(model, data)
    assert lengths == [70, 63, 70]  # 25, 63 and 70 samples are fitted in turn
    torch.testing.assert_close(found.centre, plain.centre, rtol=0, atol=1e-4)
