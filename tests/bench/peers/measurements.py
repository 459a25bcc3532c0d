"""The rows of the speed table, each a function from an `Effort` to a `Row`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import convergence, densities, forecast, sampling, training
from peers.problems import PROBLEMS
from peers.rows import Effort, Row, SkippedRow, interleaved

PEERS = {"jax", "jaxlib", "numpyro"}

torch.set_num_threads(1)


def training_time(side: str, effort: Effort) -> Row:
    """Time a training step of a neural potential."""
    task = training.make_task()
    ours, peer = training.vinppl_step(task), training.STEPS[side](task)
    check_steps(ours, peer)
    a, b = interleaved([ours, peer], repeats=effort.repeats, least_seconds=effort.least_seconds)
    return Row(f"training_step_vs_{side}", 1e3 * a, 1e3 * b, side, "ms", 8)


def check_steps(ours: training.Step, peer: training.Step) -> None:
    """Raise `AssertionError` unless two steps have the same loss and gradients, in float32."""
    (f, df), (g, dg) = ours(), peer()
    for a, b in zip([np.array(f), *df], [np.array(g), *dg], strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), rtol=0, atol=1e-4 * np.abs(b).max())


def training_memory(effort: Effort) -> Row:
    """Compare the memory that the step takes beyond weights, states and targets; see `peers.memory`."""
    if not Path("/proc/self/clear_refs").exists():
        raise SkippedRow("the peak of resident memory cannot be reset on this system")
    pairs = [(_step_memory("vinppl"), _step_memory("torch")) for _ in range(min(3, effort.num_runs))]
    ours, peer = (statistics.median(sizes) for sizes in zip(*pairs, strict=True))
    return Row("training_step_memory", ours, peer, "torch", "MiB", 4)


def _step_memory(side: str) -> float:
    sizes = [str(n) for n in (1000, 200, 20)]
    command = [sys.executable, "-m", "peers.memory", side, *sizes]
    done = subprocess.run(command, cwd=sampling.BENCH, check=True, stdout=subprocess.PIPE, text=True)
    return max(int(done.stdout), 4096) / 2**20


def forecast_vs_c(effort: Effort) -> Row:
    """Time a forecast of many draws against a loop in C."""
    draws = forecast.make_draws(*((100, 25, 500) if effort.quick else (1000, 25, 2000)))
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = forecast.vinppl_forecast(draws), forecast.c_forecast(draws, Path(folder))
        check_paths(ours(), peer())
        a, b = interleaved([ours, peer], repeats=effort.repeats, least_seconds=0.0)
    return Row("forecast_vs_c", a, b, "C, one thread", "s", 1 / 3)


def check_paths(ours: forecast.Paths, peer: forecast.Paths) -> None:
    """Raise `AssertionError` unless both took the same paths, up to rounding that grows near the top."""
    for a, b in zip(ours, peer, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def check() -> None:
    """Compare everything that is timed with its peers, at small sizes, and say so."""
    for name in PROBLEMS:
        densities.both_sides(name)
        print(f"{name}: same posterior")
    task = training.make_task(20, 3, 4)
    for side in ("torch", "jax"):
        check_steps(training.vinppl_step(task), training.STEPS[side](task))
        print(f"training step: same as {side}")
    draws = forecast.make_draws(3, 70, 50)
    with tempfile.TemporaryDirectory() as folder:
        check_paths(forecast.vinppl_forecast(draws)(), forecast.c_forecast(draws, Path(folder))())
    print("forecast: same as C")


ROWS: dict[str, Callable[[Effort], Row]] = {
    "gradient_pendulum_150_vs_pyro": densities.gradient_vs_pyro,
    "gradient_pendulum_150_vs_numpyro": densities.gradient_vs_numpyro,
    "gradient_batch_64": partial(densities.gradient_batch, 64),
    "gradient_batch_1024": partial(densities.gradient_batch, 1024),
    "nuts_pendulum": partial(sampling.nuts, "pendulum", 3),
    "nuts_cold_process": sampling.nuts_cold,
    "nuts_cold_process_warm_cache": partial(sampling.nuts_cold, warm_cache=True),
    "nuts_duffing": partial(sampling.nuts, "duffing", 2),
    "nuts_hierarchical": partial(sampling.nuts, "hierarchical", 2),
    "nuts_chain": partial(sampling.nuts, "chain", 2),
    "training_step_vs_torch": partial(training_time, "torch"),
    "training_step_vs_jax": partial(training_time, "jax"),
    "training_step_memory": training_memory,
    "forecast_vs_c": forecast_vs_c,
    **{
        f"convergence_{name}_{num_points}": partial(convergence.count, name, num_points)
        for name in convergence.RECORDS
        for num_points in (150, 600)
    },
}
"""Every row by its name."""

SLOW = tuple(name for name in ROWS if name.startswith("convergence"))
"""Rows that take hours."""

NOT_QUICK = (
    "nuts_cold_process",
    "nuts_cold_process_warm_cache",
    "nuts_duffing",
    "nuts_hierarchical",
    "nuts_chain",
)
"""Rows that take minutes however little is measured: NumPyro's compilation alone does."""


def measure(name: str, effort: Effort, *, by_name: bool) -> Row:
    """Return a row.

    Args:
        name: a key of `ROWS`.
        effort: how long to measure.
        by_name: whether just this row was asked for; otherwise it may take too long.

    Raises:
        SkippedRow: if it takes too long, or its peer is not installed.
    """
    if name in SLOW and not (effort.full or by_name):
        raise SkippedRow("takes hours; ask by --full or --only")
    if name in NOT_QUICK and effort.quick and not by_name:
        raise SkippedRow("takes minutes; leave out --quick, or ask by --only")
    try:
        return ROWS[name](effort)
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        raise SkippedRow(f"{error.name} is not installed") from None
