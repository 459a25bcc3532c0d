"""How often default settings converge, over many simulated records."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peers.rows import Effort, Row
from peers.sampling import MAX_RHAT, worst

from vinppl.fit import MCMCOptions, fit_mcmc
from vinppl.models import MassSpring, Pendulum
from vinppl.simulate import simulate
from vinppl.systems import system

NUM_SEEDS = 100
RECORDS = {"pendulum": Pendulum, "mass_spring": MassSpring}
COLUMNS = ("system", "num_points", "seed", "max_rhat", "min_ess", "divergences", "seconds")


def count(name: str, num_points: int, effort: Effort) -> Row:
    """Count the fits by default options that converge without a divergence, of a hundred records."""
    path = effort.convergence_csv
    known = {(r["system"], int(r["num_points"]), int(r["seed"])): r for r in _read(path)}
    good = 0
    for seed in range(NUM_SEEDS):
        run = known.get((name, num_points, seed)) or _append(path, _fit(name, num_points, seed))
        good += float(run["max_rhat"]) <= MAX_RHAT and int(run["divergences"]) == 0
    return Row(f"convergence_{name}_{num_points}", good, None, None, "runs of 100", 95)


def _fit(name: str, num_points: int, seed: int) -> dict[str, str]:
    """Fit one simulated record and return the columns of the run; R-hat is NaN where the fit failed."""
    data, _ = simulate(system(name), num_trajectories=1, num_times=num_points, seed=seed)
    ess, rhat, divergences = 0.0, math.nan, 0
    began = time.perf_counter()
    try:
        result = fit_mcmc(RECORDS[name](data), data, MCMCOptions(seed=seed))
        divergences = int(result.stats["diverging"].sum())
        ess, rhat = worst({site: x.numpy() for site, x in result.draws.items()})
    except (RuntimeError, ValueError) as error:
        print(f"    {name}, {num_points} points, seed {seed}: {str(error).splitlines()[0]}", flush=True)
    seconds = time.perf_counter() - began
    values = (name, num_points, seed, f"{rhat:.5f}", f"{ess:.0f}", divergences, f"{seconds:.1f}")
    return {column: str(value) for column, value in zip(COLUMNS, values, strict=True)}


def _read(path: Path) -> Iterator[dict[str, str]]:
    """Yield the runs of a file, if there is one."""
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(line for line in file if not line.startswith("#"))


def _append(path: Path, run: dict[str, str]) -> dict[str, str]:
    """Add a run to the file, and return it."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        if new:
            file.write(f"# command: python tests/bench/speed.py {' '.join(sys.argv[1:])}\n")
            file.write(",".join(COLUMNS) + "\n")
        file.write(",".join(run[column] for column in COLUMNS) + "\n")
    return run
