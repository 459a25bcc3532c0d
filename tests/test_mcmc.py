"""NUTS: resuming to the same bits, also after a kill; refusals; failing chains; unsolvable steps."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from example_data import simulated
from pyro.distributions import Normal
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.errors import DataError, NumericalWarning
from vinppl.fit import MCMCOptions, MCMCProgress, MCMCResult, find_start, fit_mcmc
from vinppl.fit.mcmc import _geometry
from vinppl.fit.nuts import Chain
from vinppl.logdensity import LogDensity
from vinppl.models import Duffing, FreeDynamics, FreeDynamicsConfig, MassSpring, Pendulum, PendulumConfig

SMALL = MCMCOptions(
    num_chains=2,
    num_warmup=12,
    num_draws=10,
    start="values",
    spread=0.05,
    max_tree_depth=3,
    num_workers=1,
    engine="pyro",
)


@pytest.fixture(name="through_pyro")
def _through_pyro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation of the density runs the model."""
    monkeypatch.setattr(LogDensity, "compile", lambda self: False)


def spring() -> tuple[MassSpring, Trajectories]:
    data = simulated("mass_spring", num_trajectories=1, num_times=8)
    return MassSpring(data), data


def same(first: MCMCResult, second: MCMCResult, draws: int | None = None) -> None:
    """Two results agree in every bit of their first draws."""
    for name, value in first.draws.items():
        assert torch.equal(value[:, :draws], second.draws[name][:, :draws]), name
    for name, value in first.stats.items():
        assert torch.equal(value[:, :draws], second.stats[name][:, :draws]), name


@pytest.fixture(name="whole", scope="module")
def _whole() -> MCMCResult:
    torch.set_default_dtype(torch.float64)
    try:
        return fit_mcmc(*spring(), SMALL)
    finally:
        torch.set_default_dtype(torch.float32)


def test_shapes_and_statistics(whole: MCMCResult) -> None:
    assert whole.draws["initial_position"].shape == (2, 10, 1, 1)
    assert whole.draws["noise_scale"].shape == (2, 10, 2)
    assert whole.flat()["potential.stiffness"].shape == (20,)
    assert set(whole.stats) == {
        "lp",
        "energy",
        "acceptance_rate",
        "step_size",
        "n_steps",
        "tree_depth",
        "diverging",
    }
    assert all(value.shape == (2, 10) for value in whole.stats.values())
    assert whole.stats["diverging"].dtype == torch.bool
    assert bool((whole.stats["tree_depth"] <= 3).all())
    assert bool((whole.stats["n_steps"] <= 2**3 - 1).all())
    rate = whole.stats["acceptance_rate"]
    assert bool(((rate >= -1e-9) & (rate <= 1 + 1e-9)).all())


def test_lp_is_the_log_density_of_the_draw() -> None:
    # NUTS on a standard normal: lp = -x^2 / 2, and the energy is above it by a kinetic term that is positive.
    chain = Chain(lambda u: -0.5 * u.square().sum(), torch.ones(2), num_warmup=5, seed=1)
    for _ in range(10):
        stats = chain.draw()
        assert stats.lp == pytest.approx(-0.5 * float(chain.point.square().sum()))
        assert math.isfinite(stats.energy)


def test_processes_give_the_same_draws(whole: MCMCResult) -> None:
    seen: list[MCMCProgress] = []
    options = dataclasses.replace(SMALL, num_workers=2)
    result = fit_mcmc(*spring(), options, on_draw=seen.append)
    same(whole, result)
    assert sorted({p.chain for p in seen}) == [0, 1]
    assert [p.count for p in seen if p.chain == 1] == list(range(1, 23))


@pytest.mark.parametrize("stops", [(5,), (12,), (17,), (3, 12, 15, 30)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_chains_resume_to_the_same_bits(
    whole: MCMCResult, stops: tuple[int, ...], error: type, tmp_path: Path
) -> None:
    for stop in stops:  # draws over both chains of 22, so that 30 stops in the second one

        def interrupt(progress: MCMCProgress, stop: int = stop) -> None:
            if progress.chain * 22 + progress.count == stop:
                raise error("stop")

        with pytest.raises(error):
            fit_mcmc(*spring(), SMALL, checkpoint=tmp_path, on_draw=interrupt)
        chain, count = divmod(stop - 1, 22)
        assert torch.load(tmp_path / f"chain_{chain}.pt", weights_only=True)["chain"]["count"] == count + 1
    same(whole, fit_mcmc(*spring(), SMALL, checkpoint=tmp_path))


@pytest.mark.usefixtures("through_pyro")
def test_an_interrupt_inside_of_a_draw_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    model, data = spring()
    whole = fit_mcmc(model, data, SMALL)
    calls = 0

    def failing(data: Trajectories) -> Any:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return model(data)

    failing.initial_values = model.initial_values  # type: ignore[attr-defined]
    often = dataclasses.replace(SMALL, checkpoint_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        fit_mcmc(failing, data, often, checkpoint=tmp_path)
    assert (tmp_path / "chain_0.pt").exists()
    same(whole, fit_mcmc(model, data, SMALL, checkpoint=tmp_path))


def test_more_draws_continue_and_fewer_are_cut(whole: MCMCResult, tmp_path: Path) -> None:
    fit_mcmc(*spring(), dataclasses.replace(SMALL, num_draws=4), checkpoint=tmp_path)
    more = fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)
    same(whole, more)
    fewer = fit_mcmc(*spring(), dataclasses.replace(SMALL, num_draws=3), checkpoint=tmp_path)
    assert fewer.draws["noise_scale"].shape == (2, 3, 2)
    same(fewer, whole, 3)
    extra = fit_mcmc(*spring(), dataclasses.replace(SMALL, num_chains=3), checkpoint=tmp_path)
    assert extra.draws["noise_scale"].shape[:2] == (3, 10)
    same(
        whole,
        MCMCResult(
            extra.model,
            extra.data,
            *({k: v[:2] for k, v in x.items()} for x in (extra.draws, extra.stats)),
            extra.seconds,
        ),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_changes_refuse_to_resume(workers: int, tmp_path: Path) -> None:
    model, data = spring()
    first = dataclasses.replace(SMALL, num_workers=workers)
    fit_mcmc(model, data, first, checkpoint=tmp_path)
    for change in ({"num_warmup": 13}, {"target_accept": 0.95}, {"dense_mass": False}, {"seed": 1}):
        name = next(iter(change))
        with pytest.raises(ValueError, match=f"options it began with; got changed: {name}"):
            fit_mcmc(model, data, dataclasses.replace(first, **change), checkpoint=tmp_path)
    other = simulated("mass_spring", num_trajectories=1, num_times=8, seed=7)
    with pytest.raises(ValueError, match="only on the data it began with"):
        fit_mcmc(MassSpring(other), other, first, checkpoint=tmp_path)
    # What the start was computed from counts as well, before a chain has saved anything.
    for file in tmp_path.glob("chain_*.pt"):
        file.unlink()
    with pytest.raises(ValueError, match="only on the data it began with"):
        fit_mcmc(MassSpring(other), other, first, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="options it began with; got changed: start"):
        fit_mcmc(model, data, dataclasses.replace(first, start="prior"), checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)
    content = (tmp_path / "chain_1.pt").read_bytes()
    (tmp_path / "chain_1.pt").write_bytes(content[: len(content) // 2])
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"chain_1\.pt: not a readable checkpoint"):
            fit_mcmc(*spring(), dataclasses.replace(SMALL, num_workers=workers), checkpoint=tmp_path)


PROGRAM = """
import sys, warnings
import torch
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
sys.path.insert(0, sys.argv[2])
import dataclasses
from test_mcmc import SMALL, spring
from vinppl.fit import fit_mcmc

def tell(progress):
    print(progress.chain, progress.count, flush=True)

options = dataclasses.replace(SMALL, num_workers=int(sys.argv[3]), checkpoint_every=float(sys.argv[4]))
fit_mcmc(*spring(), options, checkpoint=sys.argv[1], on_draw=tell)
"""


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find children")
@pytest.mark.parametrize(
    ("victim", "workers", "after"),
    [
        pytest.param("parent", 1, 6, marks=pytest.mark.slow),
        ("parent", 2, 30),
        ("child", 2, 8),
        pytest.param("child", 2, 30, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_resume_to_the_same_bits(
    whole: MCMCResult, victim: str, workers: int, after: int, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent), str(workers)]
    process = subprocess.Popen([*arguments, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    for _ in range(after):
        assert process.stdout.readline(), process.stderr.read()
    mine = children(process.pid)
    os.kill(process.pid if victim == "parent" else mine[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    if victim == "parent":
        assert process.returncode == -signal.SIGKILL
        for child in mine:  # orphans
            deadline = time.monotonic() + 20
            while Path(f"/proc/{child}/task").exists() and time.monotonic() < deadline:
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    break
                time.sleep(0.05)
    else:
        assert process.returncode == 1
        assert "a chain's process ended without a result" in errors
    result = fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)
    same(whole, result)


def test_coordinates_of_a_refinement_are_centred_where_draws_are() -> None:
    """The mean of draws from two modes, at +-5, is where no draw is."""

    def model(data: None) -> None:
        x = pyro.sample("x", Normal(0.0, 10.0))
        pyro.factor("modes", -0.5 * (x.square() - 25).square())

    density = LogDensity(model, None)
    eye = torch.eye(1)
    spread = torch.linspace(-0.2, 0.2, 50).unsqueeze(-1)
    apart = torch.stack([5 + spread, -5 + spread])
    lp = torch.stack([torch.stack([density(u) for u in chain]) for chain in apart])
    centre, factor = _geometry(density, apart, lp, torch.zeros(1), eye)
    assert abs(abs(float(centre)) - 5) < 0.1
    assert float(factor) == pytest.approx(5, rel=0.05)
    one, _ = _geometry(density, apart[:1], lp[:1], torch.zeros(1), eye)
    assert float(one) == pytest.approx(5, abs=1e-5)  # the mean, where that is a likely place


@pytest.mark.parametrize(("workers", "to_all"), [(1, False), (2, False), (2, True)])
def test_ctrl_c_saves_every_draw_that_was_done(
    whole: MCMCResult, workers: int, to_all: bool, tmp_path: Path
) -> None:
    """It nearly always arrives inside of a draw; a terminal sends it to the chains' processes as well."""
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent), str(workers)]
    process = subprocess.Popen(
        [*arguments, "1000"],  # seconds until they would be saved anyhow
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    told = [process.stdout.readline().split() for _ in range(8)]
    assert all(told), process.stderr.read()
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    told += [line.split() for line in rest.splitlines()]
    for chain, count in {int(chain): int(count) for chain, count in told}.items():
        saved = torch.load(tmp_path / f"chain_{chain}.pt", weights_only=True)
        assert saved["chain"]["count"] >= count
    same(whole, fit_mcmc(*spring(), SMALL, checkpoint=tmp_path))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("through_pyro")
def test_a_failing_chain_gives_its_own_message(workers: int) -> None:
    model, data = spring()
    calls = 0

    def failing(data: Trajectories) -> Any:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise ZeroDivisionError("the user's model broke")
        return model(data)

    failing.initial_values = model.initial_values  # type: ignore[attr-defined]
    began = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"(?s)chain \d failed:.*ZeroDivisionError: the user's model broke"
    ):
        fit_mcmc(failing, data, dataclasses.replace(SMALL, num_workers=workers))
    assert time.monotonic() - began < 30


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's validation remarks on the path
def test_unsolvable_steps_count_as_divergences() -> None:
    # SO(2) steps have no solution where |h^2 g/l sin q| > 1; with h = 1 that is most of the prior's g/l.
    data = simulated(num_trajectories=1, num_times=8, step_size=0.6)
    model = Pendulum(data, PendulumConfig(integrator="so2", damping=None, gravity_over_length=(2.0, 2.0)))
    options = dataclasses.replace(SMALL, num_chains=1, num_warmup=30, num_draws=30, spread=0.5, seed=2)
    result = fit_mcmc(model, data, options)
    assert all(bool(torch.isfinite(value).all()) for value in result.draws.values())


class _Wall:
    """A standard normal that is not defined beyond 1."""

    def __init__(self, beyond: float) -> None:
        self.beyond = beyond

    def __call__(self, u: Tensor) -> Tensor:
        density = -0.5 * u.square().sum()
        return torch.where(u[0] > 1.0, u.new_tensor(self.beyond) * u[0], density)


@pytest.mark.parametrize("beyond", [math.nan, -math.inf])
def test_points_without_a_density_are_rejected_and_counted(beyond: float) -> None:
    chain = Chain(_Wall(beyond), torch.zeros(2), num_warmup=50, seed=3)
    stats = [chain.draw() for _ in range(150)]
    assert any(s.diverging for s in stats[50:])
    assert float(chain.point[0]) <= 1.0


def test_options_are_checked() -> None:
    for options, message in (
        ({"num_chains": 0}, "num_chains must be at least 1; got 0"),
        ({"num_warmup": 0}, "num_warmup must be at least 1"),
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"max_tree_depth": 0}, "max_tree_depth must be at least 1"),
        ({"target_accept": 1.0}, "target_accept must lie between 0 and 1"),
        ({"spread": -1.0}, "spread must not be negative"),
        ({"start": "middle"}, "start must be one of mode, prior, values"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            MCMCOptions(**options)


def test_models_do_not_read_one_anothers_parameters() -> None:
    data = simulated("pendulum", num_trajectories=2, num_times=6)

    def sampled(seed: int) -> Tensor:
        config = FreeDynamicsConfig(dynamics="ode", hidden_sizes=(4,), network_seed=seed)
        options = dataclasses.replace(SMALL, num_chains=1, num_warmup=3, num_draws=3, start="values")
        with pytest.warns(NumericalWarning, match="holds fixed at their present"):
            return fit_mcmc(FreeDynamics(data, config), data, options).draws["noise_scale"]

    first = sampled(1)
    sampled(0)  # the same site names, other weights
    assert torch.equal(sampled(1), first)
    assert not dict(pyro.get_param_store().items())


def test_starting_values_whose_path_runs_away_are_tamed() -> None:
    data = simulated("duffing", num_trajectories=2, num_times=20, noise_scale=0.05)

    class Eager(Duffing):
        """Rough estimates under which the mass leaves the well: at once, or well before the record ends."""

        cubic = -1e4

        def initial_values(self, data: Trajectories) -> dict[str, Tensor]:
            return {**super().initial_values(data), "potential.cubic": torch.tensor(self.cubic)}

    usual = find_start(Duffing(data), data)
    for cubic in (-1e4, -1e9):
        model = Eager(data)
        model.cubic = cubic
        start = find_start(model, data)
        # The same mode, or one as good.
        assert float(start.density(start.centre)) > float(usual.density(usual.centre)) - 1.0


def test_the_global_store_and_stream_are_left_alone() -> None:
    def line(data: Trajectories) -> None:
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            level = pyro.sample("level", Normal(torch.tensor(0.0), 1.0))
            noise = Normal(level[..., None, None].expand(data.values.shape), 0.3).to_event(2)
            pyro.sample("obs", noise, obs=data.values)

    data = simulated("mass_spring", num_trajectories=2, num_times=8, observe=("position",))
    state = torch.random.get_rng_state()
    result = fit_mcmc(line, data, dataclasses.replace(SMALL, start="prior"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not dict(pyro.get_param_store().items())
    assert result.draws["level"].shape == (2, 10, 2)
