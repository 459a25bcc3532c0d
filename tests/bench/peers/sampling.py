"""NUTS against NumPyro's: effective draws a second, and the wall time of a cold process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
from numpy.typing import NDArray
from peers.densities import Sides, both_sides
from peers.problems import PROBLEMS
from peers.rows import Effort, Row

from vinppl.fit import MCMCOptions, fit_mcmc

BENCH = Path(__file__).resolve().parents[1]
MAX_RHAT, MIN_ESS = 1.01, 1000
Sampler = Callable[[int], tuple[dict[str, NDArray[Any]], float]]
"""From a number of draws to those of all chains, `(chain, draw, *site)`, and the seconds they took."""


def worst(draws: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Return the smallest bulk ESS and the largest R-hat of all scalars of `(chain, draw, *site)` draws.

    Both are made of ranks, so that constrained and unconstrained draws give the same.
    """
    data = az.convert_to_dataset(dict(draws))
    ess, rhat = az.ess(data, method="bulk"), az.rhat(data, method="rank")
    return min(float(ess[n].min()) for n in draws), max(float(rhat[n].max()) for n in draws)


def nuts(name: str, asked: float, effort: Effort) -> Row:
    """Compare effective draws a second, start, compilation and warm-up taken out."""
    sides = both_sides(name)
    num_warmup, num_draws = (200, 250) if effort.quick else (500, 1000)

    def our_rate(seed: int) -> float:
        options = MCMCOptions(num_warmup=num_warmup, num_draws=num_draws, num_workers=1, seed=seed)
        result = fit_mcmc(sides.problem.model, sides.problem.data, options)
        return _rate("vinppl", {k: x.numpy() for k, x in result.draws.items()}, result.sampling_seconds)

    peer_name, peer_run = _best_peer(sides, num_warmup, effort)
    pairs = [(our_rate(seed), _rate(peer_name, *peer_run(num_draws))) for seed in range(effort.num_runs)]
    ours, peer = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Row(f"nuts_{name}", ours, peer, peer_name, "ESS/s", asked, more_is_better=True)


def _best_peer(sides: Sides, num_warmup: int, effort: Effort) -> tuple[str, Sampler]:
    """Return NumPyro's fastest way to sample, found by a short run of each.

    Tried are its two chain methods and mass matrices; the mass matrix that is the slower one in
    `sequential` is left out of `vectorized`.
    """
    from peers.numpyro_nuts import BLOCK, ChainMethod, CompiledNUTS

    def candidate(chain_method: ChainMethod, dense_mass: bool) -> tuple[float, str, Sampler]:
        title = f"NumPyro, {chain_method}, {'dense' if dense_mass else 'diagonal'} mass"
        chains = CompiledNUTS(
            sides.peer_model,
            sides.peer,
            sides.peer_point,
            chain_method=chain_method,
            dense_mass=dense_mass,
            num_chains=4,
            num_warmup=num_warmup,
        )
        return _rate(title, *chains.run(BLOCK)), title, chains.run

    if effort.quick:
        return candidate("sequential", True)[1:]
    tried = [candidate("sequential", dense_mass) for dense_mass in (False, True)]
    tried.append(candidate("vectorized", dense_mass=tried[1][0] > tried[0][0]))
    return max(tried, key=lambda c: c[0])[1:]


def _rate(side: str, draws: Mapping[str, NDArray[Any]], seconds: float) -> float:
    """Return the smallest ESS a second, and print what it is made of."""
    ess, rhat = worst(draws)
    print(f"    {side}: ESS {ess:.0f} in {seconds:.3g} s, R-hat {rhat:.4f}", flush=True)
    return ess / seconds


def nuts_cold(effort: Effort, *, warm_cache: bool = False) -> Row:
    """Compare the wall time from the start of Python to R-hat 1.01 and 1,000 effective draws everywhere.

    The compile cache is empty and JAX's off, as it is unless asked for; with `warm_cache` both were filled.
    """
    import numpyro  # noqa: F401  (without it, leave the row out)

    methods = ("sequential", "vectorized")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **PROBLEMS["pendulum"]().observed())  # type: ignore[arg-type]

        def seconds(side: str) -> float:
            if warm_cache:
                return cold_seconds(side, folder, caches(folder / side))
            with tempfile.TemporaryDirectory() as empty:
                return cold_seconds(side, folder, {"VINPPL_CACHE_DIR": empty})

        if warm_cache:
            for side in ("vinppl", *methods):
                seconds(side)
        method = min(methods, key=seconds)
        pairs = [(seconds("vinppl"), seconds(method)) for _ in range(effort.num_runs)]
    ours, peer = (statistics.median(times) for times in zip(*pairs, strict=True))
    title, asked = ("nuts_cold_process_warm_cache", None) if warm_cache else ("nuts_cold_process", 4)
    return Row(title, ours, peer, f"NumPyro, {method}", "s", asked)


def caches(folder: Path) -> dict[str, str]:
    """Return the environment that keeps compiled code of both sides in a folder, whatever its size."""
    return {
        "VINPPL_CACHE_DIR": str(folder),
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def cold_seconds(side: str, folder: Path, environment: Mapping[str, str]) -> float:
    """Return how long a process of its own takes to enough draws of the data in `folder`.

    Raises:
        RuntimeError: if it ends early, or does not get there in five rounds.
    """
    out = folder / "draws.npz"
    command = [sys.executable, "-m", "peers.cold", side, str(folder / "data.npz"), str(out)]
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=BENCH,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(5):
            if process.stdout.readline().strip() != "saved":
                raise RuntimeError(f"the cold process of {side} ended without draws")
            with np.load(out) as draws:
                ess, rhat = worst(draws)
            seconds = time.perf_counter() - began
            print(f"    {side}: {seconds:.1f} s, ESS {ess:.0f}, R-hat {rhat:.4f}", flush=True)
            enough = ess >= MIN_ESS and rhat <= MAX_RHAT
            process.stdin.write("\n" if enough else "more\n")
            process.stdin.flush()
            if enough:
                return seconds
        process.kill()
    raise RuntimeError(f"the cold process of {side} did not converge")
