"""nutpie's NUTS: the right posterior, the same draws from a seed, interrupts, resuming, failures, ArviZ."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from example_data import simulated
from pyro.distributions import MultivariateNormal
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.errors import ConvergenceWarning, NumericalWarning
from vinppl.export import get_group, read_result, write_result
from vinppl.fit import MCMCOptions, MCMCProgress, MCMCResult, fit_mcmc, nutpie_engine
from vinppl.fit import mcmc as mcmc_module
from vinppl.logdensity import LogDensity
from vinppl.models import MassSpring, Pendulum
from vinppl.posterior import from_mcmc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nutpie")

COMPILE = LogDensity.compile

SMALL = MCMCOptions(
    num_chains=2,
    num_warmup=12,
    num_draws=10,
    start="values",
    spread=0.05,
    max_tree_depth=3,
    num_workers=1,
    engine="nutpie",
)
GAUSSIAN_OPTIONS = dataclasses.replace(
    SMALL, num_warmup=100, num_draws=50, start="prior", spread=1.0, max_tree_depth=10
)

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [1.8, 0.5, 0.0], [-0.9, 0.3, 2.0]], dtype=torch.float64)

# A Gaussian around MEAN in coordinates x, u = centre + factor x, as the compiled densities are: user data are
# centre, factor (row by row), and where the density ends (u[0] beyond it is refused).
GAUSSIAN = """
#include <stdint.h>
static const double mean[3] = {1.0, -2.0, 0.5};
static const double precision[9] = {%s};

int64_t density(uint64_t size, const double *x, double *gradient, double *value, void *user_data) {
    const double *centre = user_data, *factor = centre + 3;
    double away[3], pull[3];
    for (int i = 0; i < 3; i++) {
        away[i] = centre[i] - mean[i];
        for (int j = 0; j < 3; j++) away[i] += factor[3 * i + j] * x[j];
    }
    if (away[0] + mean[0] > centre[12]) return 1;
    *value = 0;
    for (int i = 0; i < 3; i++) {
        pull[i] = 0;
        for (int j = 0; j < 3; j++) pull[i] -= precision[3 * i + j] * away[j];
        *value += 0.5 * pull[i] * away[i];
    }
    for (int j = 0; j < 3; j++) {
        gradient[j] = 0;
        for (int i = 0; i < 3; i++) gradient[j] += factor[3 * i + j] * pull[i];
    }
    return 0;
}
"""


def gaussian(data: Trajectories) -> None:
    """A model whose posterior is the Gaussian of MEAN and FACTOR."""
    pyro.sample("x", MultivariateNormal(MEAN, scale_tril=FACTOR))


class Native:
    """Stands in for a compiled density; the coordinates are around `centre`, if that is given."""

    def __init__(self, address: int, *, end: float = math.inf, centre: Tensor | None = None) -> None:
        self.address, self._end, self._centre = address, end, centre

    def whitened(self, centre: np.ndarray, factor: np.ndarray) -> Native:
        other = Native(self.address)
        at = centre if self._centre is None else self._centre.numpy()
        other.data = np.concatenate([at, factor.ravel(), [self._end]])  # type: ignore[attr-defined]
        other.user_data = other.data.ctypes.data  # type: ignore[attr-defined]
        return other

    def value_and_gradient(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        plain = self.whitened(np.zeros(3), np.eye(3))
        return nutpie_engine.Compiled(plain, direct=True)(u)  # type: ignore[arg-type]


def compile_to(native: Native | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every log density compile to `native`, or to nothing."""

    def compile(density: LogDensity) -> bool:
        density.native = native  # type: ignore[assignment]
        return native is not None

    monkeypatch.setattr(LogDensity, "compile", compile)


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave models in Python, unless a test says otherwise."""
    compile_to(None, monkeypatch)


@pytest.fixture(name="address", scope="module")
def _address(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Address of the compiled Gaussian."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("gaussian")
    precision = torch.cholesky_inverse(FACTOR).flatten().tolist()
    (folder / "density.c").write_text(GAUSSIAN % ", ".join(map(repr, precision)))
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", "density.so", "density.c"]
    subprocess.run(command, cwd=folder, check=True)
    function = ctypes.CDLL(str(folder / "density.so")).density
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


@pytest.fixture(name="compiled")
def _compiled(address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every log density compile to the Gaussian."""
    compile_to(Native(address), monkeypatch)


def anything() -> Trajectories:
    return simulated("mass_spring", num_trajectories=1, num_times=8)


def spring() -> tuple[MassSpring, Trajectories]:
    data = anything()
    return MassSpring(data), data


def same(first: MCMCResult, second: MCMCResult, draws: int | None = None) -> None:
    """Two results agree in every bit of their first draws."""
    for name, value in (first.draws | first.stats).items():
        assert torch.equal(value[:, :draws], (second.draws | second.stats)[name][:, :draws]), name


def close(draws: Tensor, mean: Tensor, sd: Tensor) -> None:
    """Means within 4 standard errors of as many draws, were half of them independent, and sds within 15 %."""
    flat = draws.flatten(0, 1)
    error = sd * (2 / len(flat)) ** 0.5
    assert bool(((flat.mean(0) - mean).abs() < 4 * error).all())
    assert bool(((flat.std(0) / sd - 1).abs() < 0.15).all())


# The right posterior


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dense", [True, False])
def test_a_compiled_gaussian(dense: bool) -> None:
    options = MCMCOptions(num_chains=2, num_warmup=200, num_draws=1000, dense_mass=dense, num_workers=2)
    result = fit_mcmc(gaussian, anything(), options)
    assert result.engine == "nutpie"  # `auto` takes it where the density is compiled
    close(result.draws["x"], MEAN, FACTOR.square().sum(1).sqrt())
    correlation = torch.corrcoef(result.flat()["x"].mT)
    covariance = FACTOR @ FACTOR.mT
    scale = covariance.diagonal().sqrt()
    assert torch.allclose(correlation, covariance / scale.outer(scale), atol=0.08)
    # lp is the density of the draw, and the energy is above it by a kinetic term of mean 3/2.
    density = MultivariateNormal(MEAN, scale_tril=FACTOR)
    offset = result.stats["lp"] - density.log_prob(result.draws["x"])
    assert torch.allclose(offset, offset[0, 0], atol=1e-9)
    kinetic = result.stats["energy"][:, 1:] + result.stats["lp"][:, :-1]
    assert bool((kinetic > 0).all())
    assert float(kinetic.mean()) == pytest.approx(1.5, abs=0.15)


@pytest.mark.usefixtures("compiled")
def test_the_python_density_gives_the_draws_of_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = GAUSSIAN_OPTIONS
    compiled = fit_mcmc(gaussian, anything(), options)
    compile_to(None, monkeypatch)
    python = fit_mcmc(gaussian, anything(), options)
    # Rounding differs, and grows along the chain.
    assert torch.allclose(compiled.draws["x"][:, :5], python.draws["x"][:, :5], atol=1e-5)


def test_a_spring_as_pyro_samples_it() -> None:
    model, data = spring()
    options = MCMCOptions(num_chains=2, num_warmup=50, num_draws=60, num_workers=2, max_tree_depth=3)
    first, second = (
        fit_mcmc(model, data, dataclasses.replace(options, engine=engine)) for engine in ("pyro", "nutpie")
    )
    assert (first.engine, second.engine) == ("pyro", "nutpie")
    for name, value in first.draws.items():
        a, b = value.flatten(0, 1), second.draws[name].flatten(0, 1)
        # 120 draws each, of which a third count as independent: 4 standard errors of the difference.
        error = ((a.var(0) + b.var(0)) / 40).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 4 * error).all()), name
    for name, value in first.stats.items():
        assert second.stats[name].dtype == value.dtype, name
        assert second.stats[name].shape == value.shape, name
    assert list(first.stats) == list(second.stats)
    for result in (first, second):
        assert 0 < result.sampling_seconds < float(result.seconds.sum())
        assert bool((result.stats["n_steps"] <= 2**3 - 1).all())
        assert bool((result.stats["tree_depth"] <= 3).all())


def test_a_pendulum_compiled_and_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    data = simulated(num_trajectories=1, num_times=10)
    options = dataclasses.replace(GAUSSIAN_OPTIONS, num_warmup=20, num_draws=10, start="values", spread=0.01)
    python = fit_mcmc(Pendulum(data), data, dataclasses.replace(options, max_tree_depth=3))
    monkeypatch.setattr(LogDensity, "compile", COMPILE)
    compiled = fit_mcmc(Pendulum(data), data, dataclasses.replace(options, max_tree_depth=3, engine="auto"))
    assert compiled.engine == "nutpie"
    for name, value in python.draws.items():
        assert torch.allclose(value[:, :3], compiled.draws[name][:, :3], rtol=1e-4), name


# Seeds


@pytest.mark.usefixtures("compiled")
def test_draws_depend_on_the_seed_and_not_on_the_cores() -> None:
    options = dataclasses.replace(GAUSSIAN_OPTIONS, num_chains=3)
    whole = fit_mcmc(gaussian, anything(), options)
    for workers in (1, 2, 3):
        same(whole, fit_mcmc(gaussian, anything(), dataclasses.replace(options, num_workers=workers)))
    more = fit_mcmc(gaussian, anything(), dataclasses.replace(options, num_draws=80, num_chains=2))
    assert torch.equal(more.draws["x"][:, :50], whole.draws["x"][:2])
    other = fit_mcmc(gaussian, anything(), dataclasses.replace(options, seed=1))
    assert not torch.equal(other.draws["x"], whole.draws["x"])
    assert not torch.equal(whole.draws["x"][0], whole.draws["x"][1])
    negative = fit_mcmc(
        gaussian, anything(), dataclasses.replace(options, seed=-1, num_warmup=1, num_draws=1)
    )
    assert negative.draws["x"].shape == (3, 1, 3)


# Interrupts, resuming, failures


@pytest.fixture(name="whole", scope="module")
def _whole() -> MCMCResult:
    torch.set_default_dtype(torch.float64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        compile_to(None, monkeypatch)
        result = fit_mcmc(*spring(), SMALL)
    torch.set_default_dtype(torch.float32)
    return result


class Faulty:
    """A model that does something at one of its calls."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._model, _ = spring()
        self.initial_values = self._model.initial_values
        self._at, self._act, self.calls = at, act, 0

    def __call__(self, data: Trajectories) -> Any:
        self.calls += 1
        if self.calls == self._at:
            self._act()
        return self._model(data)


def test_progress_is_told_of(whole: MCMCResult) -> None:
    seen: list[MCMCProgress] = []
    result = fit_mcmc(*spring(), dataclasses.replace(SMALL, num_workers=2), on_draw=seen.append)
    same(whole, result)
    for chain in (0, 1):
        counts = [p.count for p in seen if p.chain == chain]
        assert counts == sorted(counts)
        assert counts[-1] == 22
    last = next(p for p in reversed(seen) if p.chain == 1)
    for name, value in last.stats._asdict().items():
        assert value == result.stats[name][1, -1].item()
        assert isinstance(value, type(result.stats[name][1, -1].item()))
    assert last.divergences == int(result.stats["diverging"][1].sum())


def test_an_interrupt_keeps_the_finished_chains(whole: MCMCResult, tmp_path: Path) -> None:
    def interrupt(progress: MCMCProgress) -> None:
        if progress.chain == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_mcmc(*spring(), SMALL, checkpoint=tmp_path, on_draw=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain_0.pt", "start.pt"]
    resumed = fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)
    same(whole, resumed)
    again = fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)  # only reads
    same(whole, again)
    assert torch.equal(again.seconds, resumed.seconds)
    assert again.sampling_seconds == pytest.approx(resumed.sampling_seconds)
    fewer = fit_mcmc(*spring(), dataclasses.replace(SMALL, num_draws=4), checkpoint=tmp_path)
    same(fewer, whole, 4)
    more = fit_mcmc(*spring(), dataclasses.replace(SMALL, num_draws=14), checkpoint=tmp_path)
    same(whole, more, 10)


@pytest.fixture(name="interruptible")
def _interruptible() -> Iterator[None]:
    """Ctrl-C interrupts also where the tests run in the background, which begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_at_once(workers: int, tmp_path: Path) -> None:
    slow = Faulty(40, lambda: time.sleep(0.2))  # the signal arrives while the model runs
    options = dataclasses.replace(SMALL, num_warmup=100_000, num_workers=workers)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fit_mcmc(slow, anything(), options, checkpoint=tmp_path)
    finally:
        timer.cancel()
    assert [path.name for path in tmp_path.iterdir()] == ["start.pt"]
    calls = slow.calls
    time.sleep(0.3)
    assert slow.calls == calls  # nothing runs on


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_chain_gives_its_own_message(workers: int) -> None:
    def fail() -> None:
        raise ZeroDivisionError("the user's model broke")

    with pytest.raises(
        RuntimeError, match=r"(?s)chain \d failed:.*ZeroDivisionError: the user's model broke"
    ) as caught:
        fit_mcmc(Faulty(40, fail), anything(), dataclasses.replace(SMALL, num_workers=workers))
    if workers == 1:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_density_that_ends_is_sampled_up_to_there(address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_to(Native(address, end=1.5), monkeypatch)
    options = dataclasses.replace(GAUSSIAN_OPTIONS, num_draws=90, spread=3.0)
    result = fit_mcmc(gaussian, anything(), options)
    assert float(result.draws["x"][..., 0].amax()) <= 1.5
    assert bool(result.stats["diverging"].any())
    assert bool(result.stats["lp"].isfinite().all())
    compile_to(Native(address, end=-9.0), monkeypatch)
    with pytest.raises(RuntimeError, match=r"(?s)chain 0 failed:.*the density is not finite"):
        fit_mcmc(gaussian, anything(), options)


def test_a_start_where_there_is_no_slope(address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_to(Native(address, centre=MEAN), monkeypatch)
    result = fit_mcmc(gaussian, anything(), dataclasses.replace(GAUSSIAN_OPTIONS, spread=0.0))
    assert bool((result.flat()["x"].std(0) > 0.1).all())


def test_a_run_resumes_with_its_own_engine_and_options(tmp_path: Path) -> None:
    fit_mcmc(*spring(), SMALL, checkpoint=tmp_path)
    for change in ({"engine": "pyro"}, {"seed": 1}, {"num_warmup": 13}, {"dense_mass": False}):
        with pytest.raises(ValueError, match=f"options it began with; got changed: {next(iter(change))}"):
            fit_mcmc(*spring(), dataclasses.replace(SMALL, **change), checkpoint=tmp_path)
    other = simulated("mass_spring", num_trajectories=1, num_times=8, seed=7)
    with pytest.raises(ValueError, match="only on the data it began with"):
        fit_mcmc(MassSpring(other), other, SMALL, checkpoint=tmp_path)


@pytest.mark.usefixtures("compiled")
def test_draws_in_other_coordinates_are_drawn_again(tmp_path: Path) -> None:
    first = fit_mcmc(gaussian, anything(), GAUSSIAN_OPTIONS, checkpoint=tmp_path)
    start = torch.load(tmp_path / "start.pt", weights_only=True)
    start["centre"] += 0.1
    torch.save(start, tmp_path / "start.pt")
    second = fit_mcmc(gaussian, anything(), GAUSSIAN_OPTIONS, checkpoint=tmp_path)
    density = MultivariateNormal(MEAN, scale_tril=FACTOR)
    for result in (first, second):
        offset = result.stats["lp"] - density.log_prob(result.draws["x"])
        assert torch.allclose(offset, offset[0, 0], atol=1e-9)


# Choosing, versions, verdict, ArviZ


def test_auto_takes_pyro_for_what_is_not_compiled() -> None:
    options = dataclasses.replace(SMALL, engine="auto", num_warmup=2, num_draws=2, max_tree_depth=2)
    assert fit_mcmc(*spring(), options).engine == "pyro"


@pytest.mark.usefixtures("compiled")
def test_without_nutpie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nutpie_engine, "is_installed", lambda: False)
    with pytest.raises(ValueError, match="engine='nutpie' needs the package nutpie; got no such package"):
        fit_mcmc(gaussian, anything(), SMALL)
    options = dataclasses.replace(SMALL, engine="auto", num_warmup=2, num_draws=2, start="prior")
    assert fit_mcmc(gaussian, anything(), options).engine == "pyro"


@pytest.mark.usefixtures("compiled")
def test_a_nutpie_with_other_inner_parts_samples_through_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from nutpie import _lib

    options = GAUSSIAN_OPTIONS
    direct = fit_mcmc(gaussian, anything(), options)
    monkeypatch.delattr(_lib, "LogpFunc")
    with pytest.warns(NumericalWarning, match=r"takes no compiled function .*LogpFunc.* slower") as caught:
        through_python = fit_mcmc(gaussian, anything(), options)
    assert len(caught) == 1
    same(direct, through_python)


@pytest.mark.usefixtures("compiled")
def test_chains_that_disagree_are_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    options = MCMCOptions(
        num_chains=2, num_warmup=1, num_draws=100, max_tree_depth=1, spread=30.0, num_workers=1, start="prior"
    )
    with pytest.warns(ConvergenceWarning, match=r"R-hat of x\[\d\] is .* To do: run longer") as caught:
        result = fit_mcmc(gaussian, anything(), options)
    assert result.problem == str(caught[0].message)
    assert [str(w.message).startswith("Not converged") for w in caught] == [True]
    assert caught[0].filename == __file__
    short = dataclasses.replace(options, num_draws=mcmc_module.MIN_JUDGED - 1)
    assert not fit_mcmc(gaussian, anything(), short).problem


def test_arviz_file(whole: MCMCResult, tmp_path: Path) -> None:
    write_result(from_mcmc(whole), tmp_path / "result.nc")
    read = read_result(tmp_path / "result.nc")
    posterior, stats = get_group(read, "posterior"), get_group(read, "sample_stats")
    assert posterior["initial_position"].dims == ("chain", "draw", "trajectory", "coordinate")
    for name, value in whole.draws.items():
        assert np.array_equal(posterior[name].values, value.numpy()), name
    for name, value in whole.stats.items():
        assert stats[name].dims == ("chain", "draw")
        assert np.array_equal(stats[name].values, value.numpy()), name
