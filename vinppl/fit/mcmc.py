"""Markov chain Monte Carlo: several NUTS chains, in parallel, that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from vinppl.checkpoint import load_checkpoint, save_checkpoint
from vinppl.diagnostics import MAX_RHAT, Convergence, convergence
from vinppl.draws import Draws, prototype, seeded, without_singletons
from vinppl.errors import ConvergenceWarning
from vinppl.fit import nutpie_engine
from vinppl.fit.chains import ChainJob, MCMCOptions, MCMCProgress, check_same, run_jobs
from vinppl.fit.nutpie_engine import NutpieJob
from vinppl.fit.nuts import DrawStats
from vinppl.fit.pyro_engine import PyroJob
from vinppl.fit.starts import find_start, starting_values
from vinppl.logdensity import LogDensity

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["MCMCOptions", "MCMCProgress", "MCMCResult", "fit_mcmc"]

LOST = 20.0
"""Nats by which the mean log density of a chain may fall short of the best one's before it counts as lost."""

MIN_JUDGED = 100
"""Draws of a chain below which a run is a trial, whose convergence is not judged."""


@dataclass
class MCMCResult:
    """Posterior draws of several chains.

    Attributes:
        model: the Pyro model.
        data: what it was fitted to.
        draws: latent sites, each `(chain, draw, *site)`.
        stats: sampler statistics by ArviZ's names, each `(chain, draw)`.
        seconds: wall time of each chain, over all sessions of a resumed run, `(chain,)`.
        sampling_seconds: wall time of the kept draws of all chains: what the busiest process spent on
            those of its chains. Pyro's engine measures it; nutpie's takes the share of a chain's time
            that the kept draws have in its gradient evaluations.
        engine: what sampled, `pyro` or `nutpie`.
        problem: what its chains show against it (see `convergence`), which was warned of; empty for nothing.
    """

    model: Any
    data: Trajectories
    draws: Draws
    stats: dict[str, Tensor]
    seconds: Tensor
    sampling_seconds: float = math.nan
    engine: str = "pyro"
    problem: str = ""

    def flat(self) -> Draws:
        """Return the draws with chains put one after another, each `(chain * draw, *site)`."""
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}

    def convergence(self, *, max_tree_depth: int = MCMCOptions.max_tree_depth) -> Convergence:
        """Return what the chains say about themselves.

        Args:
            max_tree_depth: that of the run.
        """
        import xarray as xr  # slow to import

        groups = {
            group: xr.Dataset(
                {
                    name: (
                        ["chain", "draw", *(f"{name}_{k}" for k in range(value.ndim - 2))],
                        value.cpu().numpy(),
                    )
                    for name, value in values.items()
                }
            )
            for group, values in (("posterior", self.draws), ("sample_stats", self.stats))
        }
        return convergence(xr.DataTree.from_dict(groups), max_tree_depth=max_tree_depth)


def fit_mcmc(
    model: Any,
    data: Trajectories,
    options: MCMCOptions = MCMCOptions(),
    *,
    checkpoint: str | Path | None = None,
    on_draw: Callable[[MCMCProgress], None] | None = None,
) -> MCMCResult:
    """Draw from the posterior by NUTS.

    Sampling runs in coordinates that are whitened by the curvature at a mode, so that the
    posterior has about unit scale in every direction.

    Args:
        model: Pyro model of one argument, the data.
        data: the measurements.
        options: see `MCMCOptions`.
        checkpoint: folder to save chains to and, where it has them, to resume from; a resumed
            run gives the same draws as one that was never interrupted. Pyro's chains go on where
            they were, nutpie's unfinished ones begin again.
        on_draw: called after every draw (Pyro's engine) or a few times a second (nutpie's).

    Raises:
        RuntimeError: if a chain fails, with the chain's own error.
        ValueError: if the folder holds another run, or the engine asked for is not installed.

    Warns:
        ConvergenceWarning: if R-hat shows that chains disagree, or if draws diverged.
    """
    if options.engine == "nutpie":
        nutpie_engine.require_installed()
    folder = None if checkpoint is None else Path(checkpoint)
    with _parameters_of(model):
        with seeded(options.seed):
            density, centre, factor = _whitening(model, data, options, folder)
        compiled = density.compile()
        if options.engine == "auto":
            options = replace(
                options, engine="nutpie" if compiled and nutpie_engine.is_installed() else "pyro"
            )
        refinements = options.max_refinements if options.engine == "nutpie" else 0
        for remaining in range(refinements, -1, -1):
            points, result = _sample(model, data, options, folder, density, centre, factor, on_draw)
            problem = _problem(result, options)
            if not problem or not remaining:
                break
            centre, factor = _geometry(density, points, result.stats["lp"], centre, factor)
            folder = None if folder is None else folder / "refined"
            options = replace(options, target_accept=1 - 0.25 * (1 - options.target_accept))
    result.problem = problem
    if problem:
        warnings.warn(problem, ConvergenceWarning, stacklevel=2)
    return result


def _parameters_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a block with a parameter store of its own, so that no other model's values are read.

    Those of a module are the module's. Of a function they are what the store has.
    """
    store = pyro.get_param_store()
    return store.scope(None if isinstance(model, torch.nn.Module) else store.get_state())


def _sample(
    model: Any,
    data: Trajectories,
    options: MCMCOptions,
    folder: Path | None,
    density: LogDensity,
    centre: Tensor,
    factor: Tensor,
    on_draw: Callable[[MCMCProgress], None] | None,
) -> tuple[Tensor, MCMCResult]:
    """Run all chains once; return their points in the sampler's coordinates, and the result."""
    common = (options, data.fingerprint(), folder, density, centre, factor)
    jobs: list[ChainJob] = [PyroJob(i, *common) for i in range(options.num_chains)]
    if options.engine == "nutpie":
        target = nutpie_engine.prepare(density.native, centre, factor)
        jobs = [NutpieJob(i, *common, target) for i in range(options.num_chains)]
    for job in jobs:
        job.saved()  # refuses here what cannot be resumed
    workers = _num_workers(options, data)
    chains = _run(jobs, workers, on_draw)
    points = torch.stack([chain["draws"] for chain in chains])
    with torch.no_grad():
        values = density.constrain((centre + points @ factor.mT).flatten(0, 1))
        flat = without_singletons(prototype(model, data), values)
        draws = {name: value.unflatten(0, points.shape[:2]) for name, value in flat.items()}
    sampling = [float(chain["sampling_seconds"]) for chain in chains]
    result = MCMCResult(
        model,
        data,
        draws,
        _statistics(chains),
        torch.tensor([float(chain["seconds"]) for chain in chains]),
        max(sum(sampling[w::workers]) for w in range(workers)),
        options.engine,
    )
    return points, result


def _geometry(
    density: LogDensity, points: Tensor, lp: Tensor, centre: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Return centre and factor that whiten the draws of a run, but for chains that were lost.

    The centre is the mean of the draws, or the best of them where the mean is less likely than any: between
    two modes, or inside of a bend.

    Args:
        density: log density of the unconstrained vector.
        points: draws in the coordinates of `centre` and `factor`, `(chain, draw, size)`.
        lp: their log densities, `(chain, draw)`.
        centre: of those coordinates.
        factor: likewise.
    """
    level = lp.double().mean(1)
    chosen = level > level.max() - LOST
    kept, lp = points[chosen].flatten(0, 1), lp[chosen].flatten()
    covariance = torch.cov(kept.mT).reshape(len(centre), len(centre))
    scale = covariance.diagonal().sqrt().clamp_min(1e-8)
    correlation = covariance / scale.outer(scale) + 1e-6 * torch.eye(len(scale), dtype=scale.dtype)
    inner, failed = torch.linalg.cholesky_ex(correlation)
    if int(failed) or not bool(torch.isfinite(inner).all()):
        return centre, factor
    middle = centre + factor @ kept.mean(0)
    if not float(density.value_and_gradient(middle)[0]) >= float(lp.min()):
        middle = centre + factor @ kept[lp.argmax()]
    return middle, factor @ (scale.unsqueeze(-1) * inner)


def _run(
    jobs: Sequence[ChainJob], workers: int, on_draw: Callable[[MCMCProgress], None] | None
) -> list[dict[str, Any]]:
    """Run the chains and return what they drew, in their order."""
    results: dict[int, dict[str, Any]] = {}
    # Closing ends the chains, which save themselves, at once when `on_draw` raises.
    with contextlib.closing(run_jobs(jobs, workers)) as messages:
        for index, message in messages:
            if not isinstance(message, MCMCProgress):
                results[index] = message
            elif on_draw is not None:
                on_draw(message)
    return [results[job.index] for job in jobs]


def _statistics(chains: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the statistics of all chains by name, each `(chain, draw)`."""
    table = torch.stack([chain["stats"] for chain in chains])
    stats = dict(zip(DrawStats._fields, table.unbind(-1), strict=True))
    stats["diverging"] = stats["diverging"] > 0
    for name in ("n_steps", "tree_depth"):
        stats[name] = stats[name].long()
    return stats


def _problem(result: MCMCResult, options: MCMCOptions) -> str:
    """Return the verdict if chains disagree or a draw diverged; "" if not, or of a run too short to judge."""
    if options.num_draws < MIN_JUDGED:
        return ""
    found = result.convergence(max_tree_depth=options.max_tree_depth)
    return found.verdict if found.max_rhat > MAX_RHAT or found.divergences else ""


def _whitening(
    model: Any, data: Trajectories, options: MCMCOptions, folder: Path | None
) -> tuple[LogDensity, Tensor, Tensor]:
    """Return the log density, and the centre and factor of the coordinates it is sampled in."""
    path = None if folder is None else folder / "start.pt"
    saved = None if path is None else load_checkpoint(path)
    origin = {"start": options.start, "seed": options.seed}
    if saved is not None:
        check_same(saved, "start", origin, data.fingerprint())
        density = LogDensity(model, data, initial_values=saved["initial"], soften=True)
        return density, saved["centre"], saved["factor"]
    if options.start == "mode":
        start = find_start(model, data, soften=True)
        density, centre, covariance = start.density, start.centre, start.covariance
    else:
        values = {} if options.start == "prior" else starting_values(model, data)
        density = LogDensity(model, data, initial_values=values, soften=True)
        centre, covariance = density.initial, None
    eye = torch.eye(density.size, dtype=centre.dtype, device=centre.device)
    factor = eye if covariance is None else torch.linalg.cholesky(covariance)
    if path is not None:
        state = {"kind": "start", "options": origin, "data": data.fingerprint()}
        initial = {name: value.detach() for name, value in density.constrain(density.initial).items()}
        save_checkpoint(path, {**state, "initial": initial, "centre": centre, "factor": factor})
    return density, centre, factor


def _num_workers(options: MCMCOptions, data: Trajectories) -> int:
    """Return the number of processes: one where forking is not to be had or not safe."""
    if data.values.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    wanted = options.num_workers or min(options.num_chains, len(os.sched_getaffinity(0)))
    return max(1, min(wanted, options.num_chains))
