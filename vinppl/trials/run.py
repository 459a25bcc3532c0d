"""Run the trials of a study, keep every result at once, and go on where an earlier call was stopped."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinppl._checks import require
from vinppl.trials.records import Records, Trial, TrialResult
from vinppl.trials.workers import run_here, run_on_cores, run_on_scheduler

__all__ = ["Progress", "print_progress", "run_trials"]


@dataclass(frozen=True)
class Progress:
    """How far a study has come.

    Attributes:
        done: trials that have a result, those of earlier calls included.
        failed: trials that failed in this call.
        total: all trials.
        seconds_left: estimate from the trials that this call has run.
    """

    done: int
    failed: int
    total: int
    seconds_left: float


def run_trials(
    function: Callable[..., Sequence[dict[str, Any]]],
    trials: Iterable[Trial],
    folder: str | Path,
    *,
    version: str = "",
    scheduler: str | None = None,
    num_workers: int | None = None,
    rerun_changed: bool = False,
    on_result: Callable[[TrialResult, Progress], object] | None = None,
) -> list[TrialResult]:
    """Run `function(**trial.arguments)` for every trial that `folder` does not hold yet.

    Every result is written at once, so a call that was stopped in any way goes on where it stopped.
    A trial that fails does not stop the others: it is recorded, and run again by the next call. So is
    one whose worker died; it runs again elsewhere, and fails when that has happened three times (with
    `scheduler`, as often as that scheduler allows). A worker serves one trial after another.

    Args:
        function: what to run; returns rows of a result table, dicts of numbers and strings. It is sent
            to the workers by value if it is defined in a script, and must not depend on what ran before.
        trials: what to run it on, submitted in this order.
        folder: where results are kept, one file for each trial.
        version: to be changed when `function` changes what it computes.
        scheduler: address of a running dask scheduler, such as `tcp://host:8786`, whose workers have one
            thread each (`dask worker --nthreads 1`) and this library; by default workers are started here.
        num_workers: processes to start, by default one for each core; 0 runs the trials in this process.
        rerun_changed: run trials again whose arguments or version have changed since, and replace their
            results. Otherwise they are refused: hours of work are not overwritten by a slip.
        on_result: called with each trial that was run, such as `print_progress`.

    Returns:
        One result for each trial, in the order of `trials`.

    Raises:
        ValueError: if two trials have one name, if the folder holds one with other arguments, or if no
            usable scheduler answers.
        ConnectionError: if the connection to the scheduler is lost.
        OSError: if a result cannot be written.
    """
    trials = list(trials)
    _check(trials, scheduler, num_workers)
    records = Records(folder, version)
    results = records.finished(trials, rerun_changed=rerun_changed)
    pending = [trial for trial in trials if trial.name not in results]
    if not pending:
        return [results[trial.name] for trial in trials]
    if scheduler is not None:
        outcomes = run_on_scheduler(function, pending, scheduler)
    elif num_workers == 0:
        outcomes = run_here(function, pending)
    else:
        outcomes = run_on_cores(function, pending, num_workers)
    began, earlier = math.inf, len(results)
    with contextlib.closing(outcomes):
        for result in outcomes:
            records.write(result)
            results[result.trial.name] = result
            if on_result is not None:
                spent = 0.0 if math.isnan(result.seconds) else result.seconds
                began = min(began, time.monotonic() - spent)  # not while workers start
                each = (time.monotonic() - began) / (len(results) - earlier)
                failed = sum(r.failed for r in results.values())
                left = each * (len(trials) - len(results))
                on_result(result, Progress(len(results) - failed, failed, len(trials), left))
    ordered = [results[trial.name] for trial in trials]
    _warn_of_failures(ordered, records.folder / "failures")
    return ordered


def print_progress(result: TrialResult, progress: Progress) -> None:
    """Print one line for a trial that was run; an `on_result` for scripts."""
    ending = f"FAILED, {result.error}" if result.failed else f"{result.seconds:.1f} s"
    failed = f", {progress.failed} failed" if progress.failed else ""
    seconds = progress.seconds_left
    left = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    print(
        f"{progress.done} of {progress.total} done{failed}, {left} left: {result.trial.name} ({ending})",
        flush=True,
    )


def _check(trials: Sequence[Trial], scheduler: str | None, num_workers: int | None) -> None:
    seen: set[str] = set()
    for trial in trials:
        # Some file systems do not tell A from a.
        new = trial.name.lower() not in seen
        require(new, "each trial of a study must have a name of its own", repr(trial.name))
        seen.add(trial.name.lower())
    require(num_workers is None or num_workers >= 0, "num_workers must not be negative", num_workers)
    require(
        scheduler is None or num_workers is None,
        "num_workers must be left out with a scheduler",
        num_workers,
        "Its workers are started by `dask worker`.",
    )


def _warn_of_failures(results: Sequence[TrialResult], folder: Path) -> None:
    failed = [result for result in results if result.failed]
    if failed:
        first = failed[0]
        warnings.warn(
            f"{len(failed)} of {len(results)} trials failed, first {first.trial.name}: {first.error}. "
            f"Tracebacks are in {folder}; the next call runs them again.",
            UserWarning,
            stacklevel=3,
        )
