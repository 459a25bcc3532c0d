"""Variational families: geometry, amortisation, and every guide on every model."""

from __future__ import annotations

from typing import Any, get_args

import pyro
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps
from pyro import poutine
from pyro.distributions import Normal

from vinppl.data import Trajectories
from vinppl.draws import latent_sites, prototype
from vinppl.encoders import InitialPosterior, WindowEncoder
from vinppl.fit import SVIOptions, fit_svi
from vinppl.guides import GUIDES, AmortisedGuide, FullRankGuide, GuideName, channel_scale, make_guide
from vinppl.logdensity import LogDensity
from vinppl.models import Duffing, Hierarchical, MassSpring, NoisyStates, NoisyStatesConfig, Pendulum


def test_names_and_bad_names() -> None:
    assert get_args(GuideName) == GUIDES
    data = simulated()
    with pytest.raises(ValueError, match=r"guide must be one of .*; got full"):
        make_guide("full", MassSpring(data), data)  # type: ignore[arg-type]


def test_full_rank_takes_the_given_geometry() -> None:
    data = simulated("mass_spring", num_trajectories=2)
    model = MassSpring(data)
    density = LogDensity(model, data)
    guide = make_guide("full_rank", model, data)
    assert isinstance(guide, FullRankGuide)
    guide(data)
    root = torch.randn(density.size, density.size, generator=torch.Generator().manual_seed(0))
    covariance = root @ root.mT + torch.eye(density.size)
    centre = torch.arange(density.size) * 1.0
    # The order of the sites is the caller's: reversed here.
    names = density.names[::-1]
    parts = density.split(torch.arange(density.size))
    order = torch.cat([parts[name].reshape(-1).long() for name in names])
    guide.set_geometry(names, centre[order], covariance[order][:, order])
    posterior = guide.get_posterior()
    own = torch.cat([parts[name].reshape(-1).long() for name in guide._unconstrained_shapes])
    assert torch.allclose(posterior.loc, centre[own])
    assert torch.allclose(posterior.covariance_matrix, covariance[own][:, own])
    # Setting it again forgets what was learned in between.
    with torch.no_grad():
        guide.shift.fill_(3.0)
    guide.set_geometry(names, centre[order], covariance[order][:, order])
    assert torch.allclose(guide.get_posterior().loc, centre[own])


def test_full_rank_begins_at_the_values_with_the_given_scale() -> None:
    data = simulated("mass_spring", num_trajectories=2)
    model = MassSpring(data)
    values = {"potential.stiffness": torch.tensor(2.5)}
    guide = make_guide("full_rank", model, data, initial_values=values, init_scale=0.03)
    guide(data)
    covariance = guide.get_posterior().covariance_matrix
    assert torch.allclose(covariance, 0.03**2 * torch.eye(guide.latent_dim))
    assert float(guide.median(data)["potential.stiffness"]) == pytest.approx(2.5)


# Amortised


def test_encoder_reads_masks_and_starts_at_the_first_measurement() -> None:
    data = with_gaps(simulated("mass_spring", num_times=12), every=2)
    encoder = WindowEncoder(2, 1, channel_index=data.channel_index, scale=channel_scale(data))
    posterior = encoder(data)
    assert posterior.loc.shape == posterior.scale.shape == (3, 2)
    assert posterior.coupling.shape == (3, 1)
    assert torch.allclose(posterior.loc, data.values[:, 0])  # the head begins at zero
    assert bool((posterior.scale > 0).all())


def test_encoder_can_be_aimed_at_a_posterior() -> None:
    data = simulated("mass_spring", num_trajectories=4)
    encoder = WindowEncoder(2, 1, channel_index=data.channel_index, scale=channel_scale(data), num_shared=3)
    stream = torch.Generator().manual_seed(0)
    loc, coupling, response = (torch.randn(4, *k, generator=stream) for k in ((2,), (1,), (2, 3)))
    wanted = InitialPosterior(loc, torch.tensor([[0.3, 1e-4]]).expand(4, 2), coupling, response)
    encoder.aim(data, wanted)
    for found, truth in zip(encoder(data), wanted, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_encoder_does_not_see_what_is_missing() -> None:
    data = simulated("mass_spring")
    gaps = with_gaps(data)
    guide = AmortisedGuide(MassSpring(data), data)
    torch.nn.init.normal_(guide.encoder.head.weight)
    assert not torch.allclose(guide.encoder(gaps).loc, guide.encoder(data).loc)
    # A value under the mask is stored as zero, so nothing of it can matter.
    assert bool((gaps.values[~gaps.mask] == 0).all())


@pytest.mark.filterwarnings("ignore:the model has point-estimated parameters")
def test_amortised_guide_works_on_new_trajectories() -> None:
    data = simulated(num_times=12)
    model = NoisyStates(data, NoisyStatesConfig(hidden_sizes=(4,)))
    options = SVIOptions(num_steps=4, check_every=2, start="prior", num_particles=2)
    result = fit_svi(model, data, options)
    new = simulated(num_trajectories=5, num_times=17, seed=9)
    for other in (new, ragged(new), with_gaps(new), new.select([2])):
        draws = result.sample(6, data=other)
        assert draws["initial_position"].shape == (6, other.num_trajectories, 1)
        assert draws["noise_scale"].shape == (6, 2)
        assert all(bool(torch.isfinite(value).all()) for value in draws.values())


def test_amortised_guide_of_a_model_of_initial_states_only() -> None:
    def free_fall(data: Trajectories) -> None:
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            q = pyro.sample("initial_position", Normal(torch.zeros(1), 1.0).to_event(1))
            v = pyro.sample("initial_velocity", Normal(torch.zeros(1), 1.0).to_event(1))
            t = data.times.unsqueeze(-1)
            path = q.unsqueeze(-2) + v.unsqueeze(-2) * t
            pyro.sample("obs", Normal(path, 0.1).to_event(2), obs=data.values)

    data = simulated("mass_spring", observe=("position",))
    guide = AmortisedGuide(free_fall, data)
    assert not guide.has_rest
    assert sorted(guide(data)) == ["initial_position", "initial_velocity"]


# Every guide on every model

MODELS: dict[str, Any] = {
    "MassSpring": lambda data: MassSpring(data),
    "Pendulum": lambda data: Pendulum(data),
    "Duffing": lambda data: Duffing(data),
    "Hierarchical": lambda data: Hierarchical(data),
    "NoisyStates": lambda data: NoisyStates(data, NoisyStatesConfig(hidden_sizes=(4,))),
    "NoisyStates, Bayesian": lambda data: NoisyStates(
        data, NoisyStatesConfig(hidden_sizes=(4,), weight_prior_scale=1.0)
    ),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("model", MODELS)
# Only the order of sites that depend on one another in the guide matters: that of the initial states.
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
# The particles of a Bayesian network have weights of their own, which have no compiled form.
@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
def test_every_guide_covers_every_model(model: str, name: GuideName) -> None:
    data = with_gaps(simulated())
    data = driven(data) if model == "Duffing" else data
    program = MODELS[model](data)
    wanted = latent_sites(prototype(program, data))
    guide = make_guide(name, program, data)
    trace = prototype(guide, data)
    covered = [site for site in latent_sites(trace) if not trace.nodes[site]["infer"].get("is_auxiliary")]
    assert sorted(covered) == sorted(wanted)
    replayed = poutine.trace(poutine.replay(program, trace)).get_trace(data)
    for site in wanted:
        assert replayed.nodes[site]["value"].shape == trace.nodes[site]["value"].shape, site
    pyro.clear_param_store()
    seen: list[float] = []
    result = fit_svi(
        MODELS[model](data),
        data,
        SVIOptions(guide=name, num_steps=2, check_every=1, start="prior", num_particles=2),
        on_step=lambda step: seen.append(step.loss),
    )
    assert len(seen) == 2
    assert torch.isfinite(torch.tensor(seen)).all()
    draws = result.sample(3)
    assert sorted(draws) == sorted(wanted)
    for site in wanted:
        assert draws[site].shape == (3, *replayed.nodes[site]["value"].shape), site
