"""Markov chain Monte Carlo: several NUTS chains, in parallel, that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.checkpoint import load_checkpoint, save_checkpoint
from vinppl.draws import Draws, prototype, seeded, without_singletons
from vinppl.fit.nuts import Chain, DrawStats
from vinppl.fit.starts import find_start, starting_values
from vinppl.logdensity import LogDensity

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["MCMCOptions", "MCMCProgress", "MCMCResult", "fit_mcmc"]


@dataclass(frozen=True)
class MCMCOptions:
    """Options of NUTS.

    Attributes:
        num_chains: independent chains; R-hat needs at least two.
        num_warmup: adapting draws per chain, not kept.
        num_draws: kept draws per chain.
        target_accept: target acceptance probability; raise it against divergences.
        max_tree_depth: doublings of a trajectory at most.
        dense_mass: adapt a dense mass matrix instead of a diagonal one.
        start: `mode` climbs to a mode over growing horizons and whitens by the curvature there;
            `values` takes the model's rough estimates; `prior` the prior medians.
        spread: starting points scatter around the start by this many posterior standard
            deviations (with `mode`) or unconstrained units.
        num_workers: processes; `None` takes one per chain up to the number of cores.
        seed: of everything random; chain i uses its own stream.
        checkpoint_every: seconds between checkpoints of a chain.
    """

    num_chains: int = 4
    num_warmup: int = 500
    num_draws: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = True
    start: Literal["mode", "values", "prior"] = "mode"
    spread: float = 1.0
    num_workers: int | None = None
    seed: int = 0
    checkpoint_every: float = 20.0

    def __post_init__(self) -> None:
        for name, least in (("num_chains", 1), ("num_warmup", 1), ("num_draws", 1), ("max_tree_depth", 1)):
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        require(0 < self.target_accept < 1, "target_accept must lie between 0 and 1", self.target_accept)
        require(self.spread >= 0, "spread must not be negative", self.spread)
        require_choice("start", self.start, ("mode", "values", "prior"))


@dataclass(frozen=True)
class MCMCProgress:
    """What a progress callback sees after every draw.

    Attributes:
        chain: index of the chain.
        count: its draws so far, warm-up included.
        stats: what the sampler did.
    """

    chain: int
    count: int
    stats: DrawStats


@dataclass
class MCMCResult:
    """Posterior draws of several chains.

    Attributes:
        model: the Pyro model.
        data: what it was fitted to.
        draws: latent sites, each `(chain, draw, *site)`.
        stats: sampler statistics by ArviZ's names, each `(chain, draw)`.
        seconds: wall time of each chain, over all sessions of a resumed run, `(chain,)`.
    """

    model: Any
    data: Trajectories
    draws: Draws
    stats: dict[str, Tensor]
    seconds: Tensor

    def flat(self) -> Draws:
        """Return the draws with chains put one after another, each `(chain * draw, *site)`."""
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}


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
            run gives the same draws as one that was never interrupted.
        on_draw: called after every draw.

    Raises:
        RuntimeError: if a chain fails, with the chain's own error.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    with seeded(options.seed):
        density, centre, factor = _whitening(model, data, options, folder)
    jobs = [
        _Job(i, options, data.fingerprint(), folder, density, centre, factor)
        for i in range(options.num_chains)
    ]
    for job in jobs:
        job.saved()  # refuses here what cannot be resumed
    workers = _num_workers(options, data)
    results: dict[int, dict[str, Any]] = {}
    runner = _run_here if workers == 1 else _run_in_processes
    # Closing ends the chains, which save themselves, at once when `on_draw` raises.
    with contextlib.closing(runner(jobs, workers)) as messages:
        for index, message in messages:
            if isinstance(message, MCMCProgress):
                if on_draw is not None:
                    on_draw(message)
            else:
                results[index] = message
    ordered = [results[i] for i in range(options.num_chains)]
    points = torch.stack([r["draws"] for r in ordered])
    with torch.no_grad():
        values = density.constrain((centre + points @ factor.mT).flatten(0, 1))
        flat = without_singletons(prototype(model, data), values)
        draws = {name: value.unflatten(0, points.shape[:2]) for name, value in flat.items()}
    names = DrawStats._fields
    stats = {name: torch.stack([r["stats"][:, k] for r in ordered]) for k, name in enumerate(names)}
    stats["diverging"] = stats["diverging"] > 0
    for name in ("n_steps", "tree_depth"):
        stats[name] = stats[name].long()
    return MCMCResult(model, data, draws, stats, torch.tensor([r["seconds"] for r in ordered]))


def _whitening(
    model: Any, data: Trajectories, options: MCMCOptions, folder: Path | None
) -> tuple[LogDensity, Tensor, Tensor]:
    """Return the log density, and the centre and factor of the coordinates it is sampled in."""
    path = None if folder is None else folder / "start.pt"
    saved = None if path is None else load_checkpoint(path)
    origin = {"start": options.start, "seed": options.seed}
    if saved is not None:
        _check_same(saved, "start", origin, data.fingerprint())
        density = LogDensity(model, data, initial_values=_values(model, data, options))
        return density, saved["centre"], saved["factor"]
    if options.start == "mode":
        start = find_start(model, data)
        density, centre, covariance = start.density, start.centre, start.covariance
    else:
        density = LogDensity(model, data, initial_values=_values(model, data, options))
        centre, covariance = density.initial, None
    eye = torch.eye(density.size, dtype=centre.dtype, device=centre.device)
    factor = eye if covariance is None else torch.linalg.cholesky(covariance)
    if path is not None:
        state = {"kind": "start", "options": origin, "data": data.fingerprint()}
        save_checkpoint(path, {**state, "centre": centre, "factor": factor})
    return density, centre, factor


def _check_same(state: Mapping[str, Any], kind: str, options: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a checkpoint of another kind of run, of other options or other data."""
    changed = [k for k, value in options.items() if state.get("options", {}).get(k) != value]
    require(
        state.get("kind") == kind and not changed,
        "a run resumes only with the options it began with",
        f"changed: {', '.join(changed) or 'the kind of run'}",
        "Use a new run folder (or --overwrite) for new options.",
    )
    require(
        state.get("data") == fingerprint,
        "a run resumes only on the data it began with",
        "data with another fingerprint",
        "Use a new run folder for new data.",
    )


def _values(model: Any, data: Trajectories, options: MCMCOptions) -> dict[str, Tensor]:
    return {} if options.start == "prior" else starting_values(model, data)


@dataclass(frozen=True)
class _Job:
    """One chain to run, with all it needs."""

    index: int
    options: MCMCOptions
    fingerprint: str
    folder: Path | None
    density: LogDensity
    centre: Tensor
    factor: Tensor

    def whitened(self, x: Tensor) -> Tensor:
        return self.density(self.centre + self.factor @ x)

    def run(self) -> Iterator[MCMCProgress | dict[str, Any]]:
        """Yield progress after every draw, and the finished chain at the end."""
        options = self.options
        began = saved_at = time.monotonic()
        seed = options.seed * 1_000_003 + self.index + 1
        start = options.spread * torch.randn(
            self.centre.shape, generator=torch.Generator().manual_seed(seed), dtype=self.centre.dtype
        ).to(self.centre.device)
        chain = Chain(
            self.whitened,
            start,
            num_warmup=options.num_warmup,
            seed=seed,
            target_accept=options.target_accept,
            max_tree_depth=options.max_tree_depth,
            dense_mass=options.dense_mass,
        )
        points: list[Tensor] = []
        stats: list[tuple[float, ...]] = []
        before = self._restore(chain, points, stats)
        total = options.num_warmup + options.num_draws
        complete = True
        try:
            while chain.count < total:
                keep = not chain.warming_up
                complete = False
                drawn = chain.draw()
                if keep:
                    points.append(chain.point)
                    stats.append(tuple(float(x) for x in drawn))
                complete = True
                yield MCMCProgress(self.index, chain.count, drawn)
                if time.monotonic() - saved_at > options.checkpoint_every:
                    self._save(chain, points, stats, before + time.monotonic() - began)
                    saved_at = time.monotonic()
        finally:
            if complete:
                self._save(chain, points, stats, before + time.monotonic() - began)
        yield {
            "draws": torch.stack(points[: options.num_draws]),
            "stats": torch.tensor(stats[: options.num_draws], dtype=torch.float64),
            "seconds": before + time.monotonic() - began,
        }

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"chain_{self.index}.pt"

    def _save(
        self, chain: Chain, points: list[Tensor], stats: list[tuple[float, ...]], seconds: float
    ) -> None:
        if self._path is None:
            return
        state = {
            "kind": "nuts",
            "options": asdict(self.options),
            "data": self.fingerprint,
            "chain": chain.state(),
            "draws": torch.stack(points) if points else torch.zeros(0, self.centre.numel()),
            "stats": torch.tensor(stats, dtype=torch.float64),
            "seconds": seconds,
        }
        save_checkpoint(self._path, state)

    def saved(self) -> dict[str, Any] | None:
        """Return the saved chain, `None` if there is none.

        Raises:
            ValueError: if it began with other options or data.
            DataError: if the file is damaged.
        """
        state = None if self._path is None else load_checkpoint(self._path)
        if state is not None:
            free = {"checkpoint_every", "num_workers", "num_draws", "num_chains"}
            options = {k: v for k, v in asdict(self.options).items() if k not in free}
            _check_same(state, "nuts", options, self.fingerprint)
        return state

    def _restore(self, chain: Chain, points: list[Tensor], stats: list[tuple[float, ...]]) -> float:
        """Continue a saved chain, if there is one; return the seconds it has run."""
        state = self.saved()
        if state is None:
            return 0.0
        chain.restore(state["chain"])
        points.extend(state["draws"].unbind(0))
        stats.extend(tuple(row) for row in state["stats"].tolist())
        return float(state["seconds"])


def _num_workers(options: MCMCOptions, data: Trajectories) -> int:
    """Return the number of processes: one where forking is not to be had or not safe."""
    if data.values.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    wanted = options.num_workers or min(options.num_chains, len(os.sched_getaffinity(0)))
    return max(1, min(wanted, options.num_chains))


def _run_here(jobs: list[_Job], workers: int) -> Generator[tuple[int, Any], None, None]:
    """Run the jobs one after another in this process, and yield their messages."""
    for job in jobs:
        messages = job.run()
        while True:
            try:
                message = next(messages)
            except StopIteration:
                break
            except OSError:  # a full disk is no failure of the chain
                raise
            except Exception as error:
                raise RuntimeError(f"chain {job.index} failed:\n{traceback.format_exc()}") from error
            yield job.index, message


def _run_in_processes(jobs: list[_Job], workers: int) -> Generator[tuple[int, Any], None, None]:
    """Run the jobs in forked processes, `workers` at a time, and yield their messages."""
    context = multiprocessing.get_context("fork")
    messages: Any = context.Queue()
    processes = [
        context.Process(target=_work, args=(jobs[w::workers], messages, os.getpid()), daemon=True)
        for w in range(workers)
    ]
    for process in processes:
        process.start()
    open_jobs = {job.index for job in jobs}
    try:
        while open_jobs:
            try:
                index, message = messages.get(timeout=1.0)
            except queue.Empty:
                if not any(process.is_alive() for process in processes) and messages.empty():
                    raise RuntimeError("a chain's process ended without a result; was it killed?") from None
                continue
            if isinstance(message, OSError):
                raise message
            if isinstance(message, str):
                raise RuntimeError(f"chain {index} failed:\n{message}")
            if isinstance(message, dict):
                open_jobs.discard(index)
                message = {key: torch.as_tensor(value) for key, value in message.items()}
            yield index, message
    finally:
        for process in processes:
            if open_jobs and process.is_alive():
                process.terminate()
            process.join(timeout=30)


def _work(jobs: list[_Job], messages: Any, parent: int) -> None:
    """Run chains one after another in a child process, for as long as its parent lives."""
    torch.set_num_threads(1)
    index = jobs[0].index
    try:
        for job in jobs:
            index = job.index
            for message in job.run():
                if isinstance(message, dict):  # numpy arrays travel by value, tensors by file descriptor
                    message = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in message.items()}
                if os.getppid() != parent:  # killed; nobody reads the queue any more
                    os._exit(1)
                messages.put((index, message))
    except KeyboardInterrupt:
        return
    except OSError as error:
        messages.put((index, error))
    except Exception:
        messages.put((index, traceback.format_exc()))
