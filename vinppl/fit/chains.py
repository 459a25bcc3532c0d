"""Chains of any engine: run side by side in processes, saved to a file each, heard of while they run."""

from __future__ import annotations

import abc
import hashlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.checkpoint import load_checkpoint, save_checkpoint
from vinppl.fit.nuts import DrawStats
from vinppl.interrupts import INTERRUPTS
from vinppl.logdensity import LogDensity

__all__ = ["ChainJob", "MCMCOptions", "MCMCProgress", "check_same", "run_jobs"]

FREE = ("checkpoint_every", "num_workers", "num_draws", "num_chains")
"""Options that may change when a run is resumed."""


@dataclass(frozen=True)
class MCMCOptions:
    """Options of NUTS.

    Attributes:
        num_chains: independent chains; R-hat needs at least two.
        num_warmup: adapting draws per chain, not kept.
        num_draws: kept draws per chain.
        target_accept: target acceptance probability; raise it against divergences.
        max_tree_depth: doublings of a trajectory at most.
        dense_mass: adapt a dense mass matrix instead of a diagonal one; nutpie adapts a diagonal one and
            the few directions that stand out from it.
        start: `mode` climbs to a mode over growing horizons and whitens by the curvature there;
            `values` takes the model's rough estimates; `prior` the prior medians.
        spread: starting points scatter around the start by this many posterior standard
            deviations (with `mode`) or unconstrained units.
        num_workers: processes; `None` takes one per chain up to the number of cores.
        seed: of everything random; chain i uses its own stream. The draws are those of the seed and
            the engine, however many processes there are.
        checkpoint_every: seconds between checkpoints of a chain (Pyro's engine).
        engine: `pyro` saves a chain at every draw that it may be resumed from. `nutpie` is NUTS in
            Rust, made for compiled densities; it saves finished chains, and starts unfinished ones
            again. `auto` takes nutpie where the density is compiled and nutpie installed.
        max_refinements: runs that nutpie's engine may repeat, from the start, if draws diverged or
            chains disagree: in coordinates whitened by the draws before, with a target acceptance
            probability three quarters nearer to one.
    """

    num_chains: int = 4
    num_warmup: int = 500
    num_draws: int = 1000
    target_accept: float = 0.9
    max_tree_depth: int = 10
    dense_mass: bool = True
    start: Literal["mode", "values", "prior"] = "mode"
    spread: float = 1.0
    num_workers: int | None = None
    seed: int = 0
    checkpoint_every: float = 20.0
    engine: Literal["auto", "pyro", "nutpie"] = "auto"
    max_refinements: int = 2

    def __post_init__(self) -> None:
        for name, least in (("num_chains", 1), ("num_warmup", 1), ("num_draws", 1), ("max_tree_depth", 1)):
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        require(0 < self.target_accept < 1, "target_accept must lie between 0 and 1", self.target_accept)
        require(self.spread >= 0, "spread must not be negative", self.spread)
        require_choice("start", self.start, ("mode", "values", "prior"))
        require_choice("engine", self.engine, ("auto", "pyro", "nutpie"))
        require(self.max_refinements >= 0, "max_refinements must not be negative", self.max_refinements)


@dataclass(frozen=True)
class MCMCProgress:
    """What a progress callback sees of a chain.

    Attributes:
        chain: index of the chain.
        count: its draws so far, warm-up included.
        stats: what the sampler did for the latest one.
        divergences: kept draws so far that diverged.
    """

    chain: int
    count: int
    stats: DrawStats
    divergences: int = 0


Message = MCMCProgress | dict[str, Any]
"""Progress, or the finished chain at the end."""


@dataclass(frozen=True)
class ChainJob(abc.ABC):
    """One chain to run, with all it needs.

    Attributes:
        index: of the chain.
        options: of the run, with the engine that was chosen.
        fingerprint: of the data.
        folder: where it is saved; `None` saves nothing.
        density: log density of the unconstrained vector u.
        centre: u = centre + factor x, where x is what is sampled; shape `(size,)`.
        factor: shape `(size, size)`.
    """

    kind: ClassVar[str]

    index: int
    options: MCMCOptions
    fingerprint: str
    folder: Path | None
    density: LogDensity
    centre: Tensor
    factor: Tensor

    @abc.abstractmethod
    def run(self) -> Iterator[Message]:
        """Yield progress now and then, and the finished chain at the end; closing it stops the chain."""

    @property
    def seed(self) -> int:
        """Seed of the chain's own random stream."""
        return self.options.seed * 1_000_003 + self.index + 1

    def start(self) -> Tensor:
        """Return the starting point, drawn with the chain's seed."""
        generator = torch.Generator().manual_seed(self.seed)
        standard = torch.randn(self.centre.shape, generator=generator, dtype=self.centre.dtype)
        return self.options.spread * standard.to(self.centre.device)

    def whitened(self, x: Tensor) -> Tensor:
        """Return the log density at one point of the sampler's coordinates."""
        return self.density(self.centre + self.factor @ x)

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"chain_{self.index}.pt"

    def save(self, state: Mapping[str, Any]) -> None:
        """Save the chain, with what it can only be resumed with."""
        if self._path is None:
            return
        origin = {"kind": self.kind, "options": asdict(self.options), "data": self.fingerprint}
        save_checkpoint(self._path, origin | {"coordinates": self._coordinates()} | dict(state))

    def _coordinates(self) -> str:
        """Return a fingerprint of the coordinates, outside of which draws mean nothing."""
        numbers = torch.cat([self.centre, self.factor.flatten()]).detach().cpu().numpy()
        return hashlib.sha256(numbers.tobytes()).hexdigest()

    def saved(self) -> dict[str, Any] | None:
        """Return the saved chain, `None` if there is none, or one in other coordinates.

        Raises:
            ValueError: if it began with other options or data.
            DataError: if the file is damaged.
        """
        state = None if self._path is None else load_checkpoint(self._path)
        if state is not None:
            options = {k: v for k, v in asdict(self.options).items() if k not in FREE}
            check_same(state, self.kind, options, self.fingerprint)
            if state.get("coordinates") != self._coordinates():
                return None
        return state

    def finished(self, points: Tensor, stats: Tensor, seconds: float, sampling_seconds: float) -> Message:
        """Return the message of a finished chain, cut to the draws that were asked for.

        Args:
            points: kept draws, `(draw, size)`.
            stats: their `DrawStats`, `(draw, statistic)`.
            seconds: wall time of the chain.
            sampling_seconds: the part of it that went into the kept draws.
        """
        wanted = self.options.num_draws
        return {
            "draws": points[:wanted],
            "stats": stats[:wanted],
            "seconds": seconds,
            "sampling_seconds": sampling_seconds * wanted / len(points),
        }


def check_same(state: Mapping[str, Any], kind: str, options: Mapping[str, Any], fingerprint: str) -> None:
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


def run_jobs(jobs: Sequence[ChainJob], workers: int) -> Generator[tuple[int, Message], None, None]:
    """Run chains, worker w those of `jobs[w::workers]`, and yield (index, message) as they come.

    Closing the generator ends the chains after the draw that each is at, and saves them.

    Raises:
        RuntimeError: if a chain fails, with the chain's own error.
    """
    return _run_here(jobs) if workers == 1 else _run_in_processes(jobs, workers)


def _run_here(jobs: Sequence[ChainJob]) -> Generator[tuple[int, Message], None, None]:
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


def _run_in_processes(jobs: Sequence[ChainJob], workers: int) -> Generator[tuple[int, Message], None, None]:
    """Run the jobs in forked processes, `workers` at a time, and yield their messages."""
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []
    readers: list[Any] = []
    for w in range(workers):
        # A pipe each: a process that is killed leaves no lock behind that the others wait for.
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(jobs[w::workers], writer, os.getpid()), daemon=True)
        process.start()
        writer.close()  # so that the pipe ends with its process
        processes.append(process)
        readers.append(reader)
    open_jobs = {job.index for job in jobs}
    try:
        while open_jobs and readers:
            ready: list[Any] = connection.wait(readers)
            for end in ready:
                try:
                    index, message = end.recv()
                except EOFError:
                    readers.remove(end)
                    continue
                if isinstance(message, OSError):
                    raise message
                if isinstance(message, str):
                    raise RuntimeError(f"chain {index} failed:\n{message}")
                if isinstance(message, dict):
                    open_jobs.discard(index)
                    message = {key: torch.as_tensor(value) for key, value in message.items()}
                yield index, message
        if open_jobs:
            raise RuntimeError("a chain's process ended without a result; was it killed?")
    finally:
        for process in processes:
            if open_jobs and process.is_alive():
                process.terminate()  # once its draw is done and saved
        for process in processes:
            process.join(timeout=30)
            process.kill()


def _work(jobs: Sequence[ChainJob], messages: Any, parent: int) -> None:
    """Run chains one after another in a child process, for as long as its parent lives."""
    torch.set_num_threads(1)
    index = jobs[0].index
    for number in INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background
            signal.signal(number, _end)
    try:
        for job in jobs:
            index = job.index
            for message in job.run():
                if isinstance(message, dict):  # numpy arrays travel by value, tensors by file descriptor
                    message = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in message.items()}
                if os.getppid() != parent:  # killed; nobody reads the pipe any more
                    os._exit(1)
                messages.send((index, message))
    except KeyboardInterrupt:
        return
    except OSError as error:
        messages.send((index, error))
    except Exception:
        messages.send((index, traceback.format_exc()))


def _end(number: int, frame: FrameType | None) -> None:
    """End a child process once: a terminal's Ctrl-C and its parent's termination are one."""
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
