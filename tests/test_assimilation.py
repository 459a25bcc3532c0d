"""Initial states of new trajectories, against the closed form of a linear oscillator with known noise."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro
import pytest
import torch
from example_data import ragged, simulated, with_gaps
from linear_spring import NOISE, SITE, Exact, Spring, exact, measured
from pyro.distributions import Normal
from torch import Tensor

from vinppl.assimilation import assimilate
from vinppl.data import Trajectories
from vinppl.draws import predict
from vinppl.dynamics import VIN
from vinppl.errors import NumericalWarning
from vinppl.forecast import extend
from vinppl.models import NoisyStates, Pendulum
from vinppl.posterior import prior_draws
from vinppl.potentials import Harmonic
from vinppl.state import PhaseState


def late(data: Trajectories) -> Trajectories:
    """Return the data with the first half of the second trajectory missing, which tilts its posterior."""
    mask = data.mask.clone()
    mask[1, :6] = False
    return dataclasses.replace(data, mask=mask, values=torch.where(mask, data.values, 0.0))


DATA = {
    "positions": measured,
    "positions and velocities": lambda: measured(observe=("position", "velocity")),
    "velocities": lambda: measured(observe=("velocity",)),
    "a late start": lambda: late(measured()),
    "gaps and ragged": lambda: ragged(with_gaps(measured(observe=("position", "velocity")))),
}


def stiffnesses(*values: float) -> dict[str, Tensor]:
    return {SITE: torch.tensor(values)}


def check_normal(states: Tensor, truth: Exact, num_independent: float) -> None:
    """Compare draws `(draw, trajectory, 2)` with the posterior, within four standard errors."""
    sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    z = (states - truth.mean) / sd
    assert float(z.mean(0).abs().max()) < 4 / math.sqrt(num_independent)
    covariance = torch.einsum("lni,lnj->nij", z, z) / len(z)
    correlation = truth.covariance / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
    # Products of two normal variables of correlation r have variance 1 + r^2, at most 2.
    assert float((covariance - correlation).abs().max()) < 4 * math.sqrt(2 / num_independent)


# Exactness


@pytest.mark.parametrize("name", DATA)
def test_initial_states_have_the_exact_posterior(name: str) -> None:
    data = DATA[name]()
    found = assimilate(Spring(), stiffnesses(2.0), data, num_draws=4000, num_proposals=8000)
    assert found.states.shape == (4000, 3, 2)
    assert bool((found.index == 0).all())
    # The last proposal has the posterior's shape: a t of 5 degrees on 1.2 times its covariance would be
    # efficient to 0.87, and that covariance itself comes from some 50 draws or more.
    assert bool((found.effective_sizes > 0.6 * 8000).all())
    for n in range(3):  # resampling 4000 of some 6000 adds less than 1 / 4000 to the variance
        num_independent = 1 / (1 / float(found.effective_sizes[n]) + 1 / 4000)
        truth = exact(2.0, data)
        one = Exact(*(part[n : n + 1] for part in truth))
        check_normal(found.states[:, n : n + 1], one, num_independent)


def test_units_of_velocity_do_not_matter() -> None:
    # Time in units a thousandth as long: velocities are a thousand times as large.
    data = measured()
    fast = dataclasses.replace(data, times=data.times / 1000)
    found = assimilate(
        Spring(velocity_unit=1000.0), stiffnesses(2e6), fast, num_draws=1000, num_proposals=4000
    )
    assert bool((found.effective_sizes > 0.6 * 4000).all())
    truth = exact(2.0, data)
    check_normal(found.states / torch.tensor([1.0, 1000.0]), truth, 1 / (1 / 2400 + 1 / 1000))


@pytest.mark.parametrize("copies", [1, 700])  # 1400 draws for 2100 proposals: every other draw has two
def test_shared_draws_are_weighed_by_their_evidence(copies: int) -> None:
    data = late(measured())
    first, second = exact(1.6, data), exact(3.2, data)
    odds = (second.log_evidence - first.log_evidence).exp()
    expected = odds / (1 + odds)
    assert bool(((expected > 0.02) & (expected < 0.98)).all())  # a test of both
    assert float((expected - 0.5).abs().max()) > 0.1
    shared = stiffnesses(*[1.6, 3.2] * copies)
    found = assimilate(Spring(), shared, data, num_draws=2000, num_proposals=2100)
    share = (found.index % 2).double().mean(0)
    num_independent = 1 / (1 / found.effective_sizes + 1 / 2000)
    assert bool(((share - expected).abs() < 4 * (expected * (1 - expected) / num_independent).sqrt()).all())
    for n in range(3):
        for k, truth in enumerate((first, second)):
            own = found.states[found.index[:, n] % 2 == k, n : n + 1]
            if len(own) > 300:
                # Its part of the effective sample, which is never less than half by these weights.
                check_normal(own, Exact(*(part[n : n + 1] for part in truth)), 0.5 * len(own))


def test_shared_draws_count_the_same_without_reweighing() -> None:
    data = late(measured())
    values = (1.6, 2.6, 5.0)  # the last explains nothing
    found = assimilate(
        Spring(), stiffnesses(*values), data, num_draws=3000, num_proposals=6000, num_rounds=8, reweigh=False
    )
    for n in range(3):
        assert found.index[:, n].bincount().tolist() == pytest.approx([1000] * 3, abs=1)
    for k, value in enumerate(values):
        truth = exact(value, data)
        for n in range(3):
            own = found.states[found.index[:, n] == k, n : n + 1]
            # 1000 draws of 2000 proposals, which cover three posteriors and are efficient to a sixth or more.
            check_normal(own, Exact(*(part[n : n + 1] for part in truth)), 1 / (1 / 1000 + 6 / 2000))


def test_without_reweighing_many_shared_draws_are_thinned() -> None:
    data = measured()
    shared = stiffnesses(*torch.linspace(1.6, 2.6, 1000).tolist())
    found = assimilate(Spring(), shared, data, num_draws=600, num_proposals=600, reweigh=False)
    used = found.index.unique()
    assert len(used) == 600 // 20
    # Evenly from all of them, whose order may be that of chains.
    assert used.diff().min() >= 33
    assert used.diff().max() <= 34
    # One lane a draw would have a weight of one, whatever its state: what normalising uses up is not counted.
    assert bool((found.effective_sizes < 600 - 29).all())
    plenty = assimilate(Spring(), shared, data, num_draws=600, num_proposals=600)
    assert len(plenty.index.unique()) > 200


# Predictions


def after(data: Trajectories) -> Trajectories:
    return extend(data, horizon=1.0)


@pytest.mark.parametrize("name", DATA)
def test_predictions_from_one_shared_draw_are_those_by_hand(name: str) -> None:
    data = DATA[name]()
    found = assimilate(Spring(), stiffnesses(2.0), data, num_draws=20)
    future = after(data)
    draws = {
        SITE: torch.full((20,), 2.0),
        "initial_position": found.states[..., :1],
        "initial_velocity": found.states[..., 1:],
    }
    expected = predict(Spring(), draws, future, seed=4)
    predicted = found.predict(future, seed=4)
    assert set(predicted) == {"states", "energy", "obs"}
    for site, value in predicted.items():
        assert torch.equal(value, expected[site]), site


def test_predictions_from_different_shared_draws_are_those_by_hand() -> None:
    data = ragged(measured())
    shared = stiffnesses(1.6, 2.0, 2.6)
    found = assimilate(Spring(), shared, data, num_draws=20)
    assert bool((found.index != found.index[:, :1]).any())
    future = after(data)
    predicted = found.predict(future, seed=4)
    assert predicted["obs"].shape == (20, 3, future.num_times, 1)
    for d in range(20):
        for n in range(3):
            vin = VIN(Harmonic(float(shared[SITE][found.index[d, n]])))
            start = PhaseState(found.states[d, n, :1], found.states[d, n, 1:])
            path = vin(start, future.select([n]).grid())
            # `select` drops padding that a ragged set repeats; rounding of some 20 steps.
            length = path.q.shape[-2]
            states = torch.cat([path.q, path.v], -1).reshape(length, 2)
            torch.testing.assert_close(predicted["states"][d, n, :length], states, rtol=0, atol=1e-12)
    noise = predicted["obs"] - predicted["states"][..., :1]
    # 20 x 3 x times values: four standard errors of a standard deviation.
    assert float(noise.std()) == pytest.approx(NOISE, rel=4 / math.sqrt(2 * noise.numel()))
    assert not torch.allclose(noise[:, 0], noise[:, 1])  # a stream for every trajectory


def test_ragged_futures_of_different_shared_draws_are_padded() -> None:
    data = ragged(measured(), cut=5)
    found = assimilate(Spring(), stiffnesses(1.6, 2.6), data, num_draws=10)
    future = after(data)
    assert bool((future.lengths != future.lengths[0]).any())
    predicted = found.predict(future)
    assert predicted["states"].shape == (10, 3, future.num_times, 2)
    length = int(future.lengths[2])
    # After its end a trajectory stands still, as in `predict` on all at once.
    last = predicted["states"][:, 2, length - 1 : length]
    assert torch.equal(predicted["states"][:, 2, length:], last.expand(-1, future.num_times - length, -1))


def test_seeds() -> None:
    data = measured()
    state = torch.random.get_rng_state()
    first, again, other = (
        assimilate(Spring(), stiffnesses(1.6, 2.6), data, num_draws=30, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first.states, again.states)
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.states, other.states)
    future = after(data)
    assert torch.equal(first.predict(future, seed=3)["obs"], again.predict(future, seed=3)["obs"])
    assert not torch.equal(first.predict(future, seed=3)["obs"], again.predict(future, seed=4)["obs"])
    assert torch.equal(state, torch.random.get_rng_state())


# Models of the suite


def test_a_pendulum_of_the_suite() -> None:
    train, new = simulated(num_times=30), with_gaps(simulated(num_times=20, seed=9))
    model = Pendulum(train)
    shared = {k: v[:1].expand(5, *v.shape[1:]) for k, v in prior_draws(model, train, 1).items()}
    shared["potential.gravity_over_length"] = torch.linspace(9.6, 10.0, 5)
    shared["damping.coefficient"] = torch.full((5,), 1e-3)
    shared["noise_scale"] = torch.full((5, 2), 0.05)
    found = assimilate(model, shared, new, num_draws=50)
    states = found.predict(new)["states"].mean(0)
    error = (states - new.values)[new.mask].square().mean().sqrt()
    assert float(error) < 2 * 0.05  # the noise of the measurements


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
def test_random_features(dtype: torch.dtype) -> None:
    data = simulated(num_times=30).to(dtype=dtype)
    model = NoisyStates(data, NoisyStates.Config(potential="random_features", integrator="so2"))
    values = model.initial_values(data)
    shared = {k: v.unsqueeze(0).expand(3, *v.shape) for k, v in values.items() if "initial" not in k}
    shared["noise_scale"] = torch.full((3, 2), 0.3, dtype=dtype)
    found = assimilate(model, shared, data.first(8), num_draws=20, num_proposals=400)
    assert found.states.dtype == dtype
    assert found.predict(data)["states"].shape == (20, 3, 30, 2)


@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
def test_learned_parameters_are_used() -> None:
    data = simulated(num_times=10)
    model = NoisyStates(data, NoisyStates.Config(hidden_sizes=(4,)))
    shared = {"noise_scale": torch.full((1, 2), 0.3)}
    with pyro.get_param_store().scope():
        model(data)
        parameters = {k: 1.5 * v.detach() for k, v in pyro.get_param_store().named_parameters()}
    assert parameters
    plain, changed = (assimilate(model, shared, data, parameters=p) for p in (None, parameters))
    assert changed.parameters is parameters
    assert not torch.allclose(plain.states.mean(0), changed.states.mean(0), atol=1e-6)


# Warnings and errors


def test_few_effective_draws_are_reported() -> None:
    with pytest.warns(NumericalWarning, match=r"3 of 3 trajectories rests on too few .*, \d+ at worst"):
        assimilate(Spring(), stiffnesses(2.0), measured(), num_proposals=12)
    with pytest.warns(NumericalWarning, match="too few effective draws"):  # nothing left but normalisation
        assimilate(Spring(), stiffnesses(*[2.0] * 9), measured(), num_proposals=25, reweigh=False)


def test_a_part_of_the_proposals_may_be_impossible() -> None:
    data = measured()
    middle = exact(2.0, data).mean[:, 0]
    assert bool((middle > -3.0).all())
    found = assimilate(Spring(wall=float(middle.min())), stiffnesses(2.0), data, num_draws=400)
    assert bool((found.states[..., 0] > float(middle.min())).all())


@pytest.mark.parametrize(
    ("shared", "options", "message"),
    [
        (
            {},
            {},
            r"every site but the initial states; got none of \['potential\.stiffness'\]",
        ),
        (stiffnesses(2.0), {"num_rounds": 0}, "num_rounds must be at least 1; got 0"),
        (stiffnesses(2.0), {"num_draws": 0}, "num_draws must be at least 1; got 0"),
        (stiffnesses(2.0), {"num_proposals": 0}, "num_proposals must be at least 1; got 0"),
    ],
)
def test_bad_arguments(shared: dict[str, Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assimilate(Spring(), shared, measured(), **options)


def test_impossible_trajectories_are_named() -> None:
    with pytest.raises(ValueError, match=r"a proposal of finite density; got none for \[.*Check that"):
        assimilate(Spring(wall=math.inf), stiffnesses(2.0), measured())


def test_shared_draws_of_different_numbers() -> None:
    data = simulated(num_times=10)
    shared = prior_draws(Pendulum(data), data, 4)
    shared["noise_scale"] = shared["noise_scale"][:3]
    with pytest.raises(ValueError, match=r"must have the same number of draws; got \[3, 4\]"):
        assimilate(Pendulum(data), shared, data)


def test_other_sites_of_trajectories_are_refused() -> None:
    def model(data: Trajectories) -> None:
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            pyro.sample("level", Normal(torch.tensor(0.0), 1.0))
            pyro.sample("obs", Normal(torch.zeros_like(data.values), 1.0).to_event(2), obs=data.values)

    with pytest.raises(ValueError, match=r"in plates but the initial states.*got \['level'\]"):
        assimilate(model, {}, measured())


def test_a_future_of_other_trajectories_is_refused() -> None:
    data = measured()
    found = assimilate(Spring(), stiffnesses(2.0), data, num_draws=5)
    with pytest.raises(ValueError, match="future must continue the same 3 trajectories; got 2"):
        found.predict(after(data).select([0, 1]))
