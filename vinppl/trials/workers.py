"""Where trials run: in this process, in processes on its cores, or on the workers of a dask scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import math
import os
import pickle
import queue
import time
import traceback
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import torch

from vinppl._checks import require
from vinppl.runs import versions
from vinppl.trials.local import LocalWorkers
from vinppl.trials.records import Trial, TrialResult, as_json

__all__ = ["run_here", "run_on_cores", "run_on_scheduler"]

Function = Callable[..., Sequence[dict[str, Any]]]
Results = Generator[TrialResult, None, None]

CONNECT_SECONDS = 5
NO_WORKER_SECONDS = 30
MAX_DEATHS = 3
SETTINGS = {
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.scheduler.allowed-failures": 0,  # deaths are counted here
    "distributed.scheduler.worker-ttl": None,  # compiled code may keep a worker silent for long
}


def run_here(function: Function, trials: Sequence[Trial]) -> Results:
    """Run trials one after another in this process."""
    for trial in trials:
        yield TrialResult(trial, **_attempt(function, trial.arguments))


def run_on_cores(function: Function, trials: Sequence[Trial], num_workers: int | None) -> Results:
    """Run trials in processes of this machine, by default one for each core."""
    import dask
    from distributed import Client, LocalCluster

    wanted = num_workers or len(os.sched_getaffinity(0))
    with dask.config.set(SETTINGS), _quiet(), contextlib.ExitStack() as stack:
        # dask's web server takes any free port; without an address it would warn where its usual is taken.
        hub = LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)
        stack.enter_context(hub)
        client = stack.enter_context(Client(hub, set_as_default=False))
        processes = LocalWorkers(hub.scheduler_address, min(wanted, len(trials)))
        stack.callback(processes.stop)
        yield from _run(client, function, trials, processes)


def run_on_scheduler(function: Function, trials: Sequence[Trial], address: str) -> Results:
    """Run trials on the workers of the scheduler at `address`."""
    import dask
    from distributed import Client

    with _quiet(), dask.config.set({"distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s"}):
        _check_scheduler(address)
        with Client(address, set_as_default=False) as client:
            yield from _run(client, function, trials)


def _check_scheduler(address: str) -> None:
    """Raise an error unless something answers; a client that cannot connect leaves threads behind."""
    from distributed.comm import connect

    async def answer() -> None:
        comm = await connect(address, timeout=CONNECT_SECONDS)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # this one may run a loop of its own, as in a notebook
            thread.submit(asyncio.run, answer()).result()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"a dask scheduler must answer at {address!r}; got none within {CONNECT_SECONDS} s ({error}). "
            "Start one by `dask scheduler`, or leave the address out to use this machine's cores."
        ) from error


def _run(
    client: Any, function: Function, trials: Sequence[Trial], processes: LocalWorkers | None = None
) -> Results:
    """Yield results as they come, with no more trials under way than there are workers.

    A worker's death counts against every trial that it holds, so it should hold none that waits.
    """
    import cloudpickle

    code = cloudpickle.dumps(function)
    waiting = deque(trials)
    running: dict[str, tuple[Trial, Any]] = {}
    deaths: Counter[str] = Counter()
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    watch = _Workers(client, processes)
    try:
        while waiting or running:
            for _ in range(min(len(waiting), watch.count() - len(running))):
                trial = waiting.popleft()
                future = client.submit(_work, code, trial.arguments, key=f"{trial.name}-{uuid.uuid4().hex}")
                running[future.key] = (trial, future)  # a future that nobody holds is cancelled
                future.add_done_callback(events.put)
            with contextlib.suppress(queue.Empty):
                future = events.get(timeout=1.0)
                watch.worked = True
                trial, _ = running.pop(future.key)
                result = _result(trial, future, deaths)
                if result is None:
                    waiting.appendleft(trial)
                else:
                    yield result
    except (OSError, CancelledError) as error:
        raise ConnectionError(
            f"the connection to the dask scheduler at {client.scheduler.address} was lost ({error})"
        ) from error


class _Workers:
    """The workers of a scheduler, counted, checked, and replaced where they were started here."""

    def __init__(self, client: Any, processes: LocalWorkers | None = None) -> None:
        self.client = client
        self.processes = processes
        self.worked = False  # since the last count
        self.seen = time.monotonic()

    def count(self) -> int:
        """Return how many there are; warn when a scheduler has had none for long."""
        threads = self.client.nthreads()
        require(
            all(number == 1 for number in threads.values()),
            "dask workers must have one thread each, since Pyro's state is one for each process",
            f"workers with {max(threads.values(), default=1)} threads",
            "Start them by `dask worker --nthreads 1 --nworkers NUMBER`.",
        )
        if self.processes is not None:
            self.processes.replace_dead(useful=self.worked or bool(threads))
        self.worked = False
        if threads or self.processes is not None:
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > NO_WORKER_SECONDS:
            self.seen = math.inf
            warnings.warn(
                f"the dask scheduler at {self.client.scheduler.address} has no workers; waiting for some. "
                "Start them by `dask worker --nthreads 1`.",
                UserWarning,
                stacklevel=2,
            )
        return len(threads)


def _result(trial: Trial, future: Any, deaths: Counter[str]) -> TrialResult | None:
    """Return what became of a trial, `None` if it should run again because its worker died."""
    from distributed import KilledWorker

    if future.status == "finished":
        return TrialResult(trial, **future.result())
    if future.status != "error":
        raise CancelledError(future.status)
    error = future.exception()
    if not isinstance(error, KilledWorker):  # the function could not be sent or read
        return _failure(trial, error)
    deaths[trial.name] += error.allowed_failures + 1
    if deaths[trial.name] < MAX_DEATHS:
        return None
    number = deaths[trial.name]
    return _failure(
        trial, RuntimeError(f"its worker process died {number} times, perhaps for lack of memory")
    )


def _failure(trial: Trial, error: BaseException) -> TrialResult:
    return TrialResult(
        trial, [], math.nan, versions(), _one_line(error), "".join(traceback.format_exception(error))
    )


def _work(code: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial in a worker."""
    torch.set_num_threads(1)
    return _attempt(pickle.loads(code), arguments)


def _attempt(function: Function, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial and return the fields of its result."""
    began = time.monotonic()
    fields: dict[str, Any]
    try:
        # A copy, so that the function cannot change what will be recorded.
        fields = {"rows": _plain_rows(function(**copy.deepcopy(dict(arguments))))}
    except (Exception, SystemExit) as error:
        fields = {"rows": [], "error": _one_line(error), "traceback": traceback.format_exc()}
    return {**fields, "seconds": time.monotonic() - began, "versions": versions()}


def _plain_rows(rows: Any) -> list[dict[str, Any]]:
    """Return rows as they will be read back."""
    require(
        isinstance(rows, list | tuple) and all(isinstance(row, dict) for row in rows),
        "a trial's function must return a list of dicts",
        rows,
        error=TypeError,
    )
    plain: list[dict[str, Any]] = json.loads(as_json(rows))
    return plain


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence dask's log: what matters in it is said by errors here."""
    import distributed  # noqa: F401  its import sets another level

    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
