"""SVI: resuming to the same bits, refusals, failures with a place, user models and parameter stores."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from example_data import simulated
from pyro.distributions import LogNormal, Normal, constraints
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.draws import predict
from vinppl.errors import DataError, NonFiniteError, SolveError
from vinppl.export import get_group
from vinppl.fit import SVIOptions, SVIResult, fit_svi
from vinppl.models import MassSpring, NoisyStates, NoisyStatesConfig, Pendulum, PendulumConfig
from vinppl.posterior import from_svi

DATA = {"full_rank": 12, "mean_field": 12, "amortised": 40, "growing": 40}
OPTIONS = {
    "full_rank": SVIOptions(guide="full_rank", num_steps=30, check_every=5, start="values", num_particles=2),
    "mean_field": SVIOptions(
        guide="mean_field", num_steps=30, check_every=5, start="values", num_particles=2
    ),
    "amortised": SVIOptions(
        guide="amortised", num_steps=24, check_every=5, start="prior", num_particles=2, window=10
    ),
    "growing": SVIOptions(
        guide="amortised",
        num_steps=24,
        check_every=3,
        start="prior",
        num_particles=2,
        window=6,
        final_window=20,
        kl_weight=0.5,
    ),
}


def build(guide: str) -> tuple[Any, Trajectories]:
    data = simulated(num_times=DATA[guide])
    if guide in ("amortised", "growing"):
        return NoisyStates(data, NoisyStatesConfig(hidden_sizes=(8,))), data
    return Pendulum(data), data


def same(first: SVIResult, second: SVIResult) -> None:
    """Two results agree in every bit."""
    assert first.losses == second.losses
    assert (first.best_step, first.best_loss) == (second.best_step, second.best_loss)
    assert first.parameters.keys() == second.parameters.keys()
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name]), name
    draws, others = first.sample(5, seed=3), second.sample(5, seed=3)
    for name, value in draws.items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("guide", OPTIONS)
def test_interrupted_runs_resume_to_the_same_bits(guide: str, error: type, tmp_path: Path) -> None:
    model, data = build(guide)
    whole = fit_svi(model, data, OPTIONS[guide])
    file = tmp_path / "svi.pt"
    for stop in (1, 7, 20):

        def interrupt(step: Any, stop: int = stop) -> None:
            if step.step == stop:
                raise error("stop")

        with pytest.raises(error):
            fit_svi(build(guide)[0], data, OPTIONS[guide], checkpoint=file, on_step=interrupt)
        assert torch.load(file, weights_only=True)["step"] == stop
    seen = []
    resumed = fit_svi(
        build(guide)[0], data, OPTIONS[guide], checkpoint=file, on_step=lambda s: seen.append(s.step)
    )
    same(whole, resumed)
    assert seen[0] == 21
    again = fit_svi(build(guide)[0], data, OPTIONS[guide], checkpoint=file)  # nothing is left to do
    same(whole, again)


def test_a_start_at_the_mode_resumes_too(tmp_path: Path) -> None:
    data = simulated("mass_spring", num_times=8)
    options = SVIOptions(num_steps=12, check_every=4, num_particles=2)
    whole = fit_svi(MassSpring(data), data, options)

    def interrupt(step: Any) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_svi(MassSpring(data), data, options, checkpoint=tmp_path / "a.pt", on_step=interrupt)
    same(whole, fit_svi(MassSpring(data), data, options, checkpoint=tmp_path / "a.pt"))


def test_an_early_stop_stays_stopped(tmp_path: Path) -> None:
    data = simulated("mass_spring", num_times=8)
    options = SVIOptions(guide="map", num_steps=400, check_every=2, patience=2, num_particles=1)
    result = fit_svi(MassSpring(data), data, options, checkpoint=tmp_path / "a.pt")
    assert result.stopped_early
    assert len(result.losses) < 400
    again = fit_svi(MassSpring(data), data, options, checkpoint=tmp_path / "a.pt")
    assert again.stopped_early
    same(result, again)


def test_changes_refuse_to_resume(tmp_path: Path) -> None:
    model, data = build("mean_field")
    options = SVIOptions(guide="mean_field", num_steps=3, start="values", check_every=1)
    file = tmp_path / "svi.pt"
    fit_svi(model, data, options, checkpoint=file)
    for changed in ({"num_steps": 4}, {"learning_rate": 0.1}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"options it began with; got changed: {next(iter(changed))}"):
            fit_svi(model, data, SVIOptions(**{**vars(options), **changed}), checkpoint=file)
    other = simulated(num_times=12, seed=5)
    with pytest.raises(ValueError, match="only on the data it began with"):
        fit_svi(model, other, options, checkpoint=file)
    with pytest.raises(ValueError, match="only with the model it began with"):
        fit_svi(Pendulum(data, PendulumConfig(damping=None)), data, options, checkpoint=file)
    fit_svi(model, data, SVIOptions(**{**vars(options), "checkpoint_every": 1.0}), checkpoint=file)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    model, data = build("mean_field")
    file = tmp_path / "svi.pt"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        fit_svi(model, data, OPTIONS["mean_field"], checkpoint=file)


def test_windows_double_in_equal_shares_of_the_steps() -> None:
    _, data = build("growing")
    seen = []

    def model(part: Trajectories) -> None:
        seen.append(part.num_times)
        with pyro.plate("trajectory", part.num_trajectories, dim=-1):
            q = pyro.sample("initial_position", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("initial_velocity", Normal(q, 1.0).to_event(1))

    options = SVIOptions(guide="amortised", num_steps=9, start="prior", window=6, final_window=20, patience=0)
    result = fit_svi(model, data, options)
    assert seen[-9:] == [6] * 3 + [12] * 3 + [20] * 3
    assert result.data.num_times == 20
    assert result.best_step > 6, "losses of shorter windows are others"


def test_the_divergence_is_weighted() -> None:
    data = simulated(num_times=12)

    def model(part: Trajectories) -> None:
        x = pyro.sample("x", Normal(0.0, 1.0))
        pyro.sample("y", Normal(x, 1.0), obs=torch.tensor(3.0))

    # The mean of x minimises (3 - x)^2 / 2 + weight x^2 / 2.
    for weight in (1.0, 0.25):
        options = SVIOptions(
            guide="mean_field", num_steps=600, kl_weight=weight, start="prior", learning_rate=0.05
        )
        draws = fit_svi(model, data, options).sample(4000)["x"]
        assert float(draws.mean()) == pytest.approx(3 / (1 + weight), abs=0.1)


def test_draws_without_a_solution_are_drawn_again() -> None:
    data = simulated(num_times=12)
    calls = []

    def model(part: Trajectories) -> None:
        calls.append(0)
        pyro.sample("x", Normal(0.0, 1.0))
        if len(calls) > 20 and (len(calls) % 3 or len(calls) > 200):
            raise SolveError("no solution")

    options = SVIOptions(guide="mean_field", num_steps=20, start="prior")
    assert len(fit_svi(model, data, options).losses) == 20
    calls[:] = [0] * 200
    with pytest.raises(SolveError, match="no solution"):
        fit_svi(model, data, options)


def test_what_options_leave_open_the_model_says() -> None:
    plain, own = (
        SimpleNamespace(),
        SimpleNamespace(default_guide="amortised", default_num_steps=100, default_learning_rate=1e-5),
    )
    assert SVIOptions().for_model(plain).schedule == (2000, 0.02, pytest.approx(0.0002))
    assert SVIOptions(guide="amortised").for_model(plain).schedule[1] == 0.0005
    found = SVIOptions().for_model(own)
    assert (found.guide, found.schedule) == ("amortised", (100, 1e-5, pytest.approx(1e-7)))
    given = SVIOptions(guide="mean_field", num_steps=7, learning_rate=0.1, final_learning_rate=0.05)
    assert given.for_model(own) == given
    assert given.schedule == (7, 0.1, 0.05)


def test_options_are_checked() -> None:
    for options, message in (
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"window": 2}, "window must be 0 or at least 3"),
        ({"window": 10, "final_window": 5}, "final_window must be 0 or at least window"),
        ({"final_window": 5}, "final_window must be 0 or at least window"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative"),
        ({"learning_rate": -0.1}, "learning rates must be positive"),
        ({"learning_rate": 0.1, "final_learning_rate": 0.2}, "must not grow"),
        ({"patience": -1}, "patience must not be negative"),
        ({"start": "middle"}, "start must be one of mode, prior, values; got middle"),
        ({"guide": "full"}, "guide must be one of"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"check_every": 0}, "check_every must be at least 1"),
        ({"latent_rate": 0.0}, "latent_rate must be positive"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            SVIOptions(**options)
    model, data = build("mean_field")
    with pytest.raises(ValueError, match="windows need an amortised guide"):
        fit_svi(model, data, SVIOptions(guide="mean_field", window=5, start="prior"))


# Failures


def runaway(data: Trajectories) -> None:
    """A trajectory that leaves every bound."""
    with pyro.plate("trajectory", data.num_trajectories, dim=-1):
        rate = pyro.sample("rate", Normal(torch.tensor(400.0), 1.0))
        path = (rate.unsqueeze(-1) * data.times).exp().square()
        pyro.deterministic("path", path, event_dim=1)
        pyro.sample("obs", Normal(path.unsqueeze(-1), 1.0, validate_args=False).to_event(2), obs=data.values)


def test_a_runaway_names_step_and_site() -> None:
    data = simulated()
    with pytest.raises(
        NonFiniteError, match=r"non-finite at step 0: the value of path is not finite"
    ) as caught:
        fit_svi(runaway, data, SVIOptions(guide="mean_field", start="prior", num_steps=3))
    assert caught.value.step == 0
    assert caught.value.quantity == "loss"


def collapsing(data: Trajectories) -> None:
    with pyro.plate("trajectory", data.num_trajectories, dim=-1):
        x = pyro.sample("x", Normal(torch.tensor(0.0), 1.0))
        scale = torch.where(x < 1e9, 0.0, x)[..., None, None]
        pyro.sample(
            "obs",
            Normal(0.0, scale, validate_args=False).expand(x.shape + data.values.shape[1:]).to_event(2),
            obs=data.values,
        )


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's validation sees it too
def test_a_collapsed_scale_names_its_site() -> None:
    with pytest.raises(NonFiniteError, match=r"step 0: the log density of obs is not finite"):
        fit_svi(
            collapsing,
            simulated(),
            SVIOptions(guide="mean_field", start="values", num_steps=3, num_particles=1),
        )


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_the_suite_under_a_runaway_step_size_names_the_states() -> None:
    # Velocity Verlet is unstable beyond omega h = 2; a stiffness of 1e6 runs away within the record.
    data = simulated("mass_spring", num_times=80)
    model = MassSpring(data, MassSpring.Config(stiffness=(1e12, 0.1)))
    with pytest.raises(NonFiniteError, match=r"at step 0: the value of states is not finite"):
        fit_svi(model, data, SVIOptions(guide="mean_field", start="prior", num_steps=3))


# Models of the user's own, and parameter stores


def drag(data: Trajectories) -> None:
    """A function with a learned parameter and a latent one."""
    slope = pyro.param("slope", torch.tensor(0.5), constraint=constraints.positive)
    scale = pyro.sample("noise_scale", LogNormal(torch.tensor(-1.0), 1.0))
    with pyro.plate("trajectory", data.num_trajectories, dim=-1):
        level = pyro.sample("level", Normal(torch.tensor(0.0), 1.0))
        loc = level[..., None, None] - slope * data.times.unsqueeze(-1)
        pyro.deterministic("line", loc, event_dim=2)
        noise = Normal(loc, scale[..., None, None]).to_event(2)
        pyro.sample("obs", noise, obs=data.values)


def line_data(slope: float = 2.0) -> Trajectories:
    times = torch.arange(8) * 0.25
    levels = torch.tensor([0.3, -0.4, 1.0])
    noise = 0.05 * torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    return Trajectories.from_arrays(times, (levels[:, None] - slope * times + noise)[..., None])


def store() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@pytest.mark.parametrize("guide", ["full_rank", "mean_field", "low_rank", "map"])
@pytest.mark.filterwarnings("ignore:the model has point-estimated parameters")
def test_functions_with_parameters_work_end_to_end(guide: str, tmp_path: Path) -> None:
    pyro.param("slope", torch.tensor(-7.0))  # someone else's
    before = store()
    data = line_data()
    options = SVIOptions(
        guide=guide, num_steps=400, check_every=20, patience=0, learning_rate=0.05, start="prior"
    )
    result = fit_svi(drag, data, options, checkpoint=tmp_path / "a.pt")
    slope = float(result.parameters["slope"].exp())
    assert slope == pytest.approx(2.0, abs=0.1)  # its standard error is about 0.05 / sqrt(24) / 0.57 = 0.02
    draws = result.sample(6)
    ahead = Trajectories.from_arrays(torch.arange(3) * 10.0, torch.randn(3, 3, 1))
    line = predict(drag, draws, ahead, sites=["line"], parameters=result.parameters)["line"]
    expected = draws["level"][..., None, None] - slope * ahead.times.unsqueeze(-1)
    assert torch.allclose(line, expected)
    posterior = from_svi(result, num_draws=10)
    assert get_group(posterior, "posterior")["level"].dims == ("chain", "draw", "trajectory")
    assert store().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in store().items())
    saved = fit_svi(drag, data, options, checkpoint=tmp_path / "a.pt")
    same(result, saved)


def test_models_of_the_same_site_names_do_not_pollute_one_another() -> None:
    data = simulated(num_times=20)
    options = SVIOptions(num_steps=6, check_every=2, start="prior", num_particles=2)

    def fitted(seed: int) -> SVIResult:
        return fit_svi(
            NoisyStates(data, NoisyStatesConfig(hidden_sizes=(4,), network_seed=seed)), data, options
        )

    alone = fitted(1)
    pyro.clear_param_store()
    other = fitted(2)
    second = fitted(1)
    same(alone, second)
    name = next(name for name in alone.parameters if "weight" in name and "potential" in name)
    assert not torch.equal(alone.parameters[name], other.parameters[name])
    assert not store()
    # Other runs touched neither the global store nor the first result.
    same(alone, second)
    # Predicting with one model's parameters leaves the other's and its own values alone.
    draws = alone.sample(3)
    first = predict(alone.model, draws, data, seed=1, parameters=alone.parameters)
    predict(other.model, draws, data, seed=1, parameters=other.parameters)
    again = predict(alone.model, draws, data, seed=1, parameters=alone.parameters)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not store()


def test_a_guide_of_the_users_own_is_used() -> None:
    data = line_data()

    def guide(data: Trajectories) -> None:
        pyro.sample("noise_scale", LogNormal(pyro.param("m", torch.tensor(-2.0)), 0.1))
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            pyro.sample("level", Normal(pyro.param("levels", torch.zeros(3)), 0.05))

    options = SVIOptions(num_steps=300, learning_rate=0.05, check_every=20)
    result = fit_svi(drag, data, options, guide=guide)
    assert set(result.parameters) == {"m", "levels", "slope"}
    assert result.parameters["levels"].tolist() == pytest.approx([0.3, -0.4, 1.0], abs=0.15)
