"""What the scripts of studies share: where a study runs, and one call that runs what is missing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinppl.trials.records import Trial, TrialResult
from vinppl.trials.run import print_progress, run_trials

__all__ = ["StudyOptions", "run_study"]


@dataclass(frozen=True)
class StudyOptions:
    """Where a study runs and what it writes to.

    Attributes:
        out: folder for everything it writes.
        num_workers: processes on this machine; 0 takes one for each core.
        scheduler: address of a dask scheduler to send the trials to; empty runs them here.
        quick: little of everything, in minutes: to try the machinery.
    """

    out: Path = Path("runs/study")
    num_workers: int = 0
    scheduler: str = ""
    quick: bool = False


def run_study(
    function: Callable[..., Sequence[dict[str, Any]]],
    trials: Iterable[Trial],
    options: StudyOptions,
    *,
    version: str,
) -> list[TrialResult]:
    """Run what `options.out` does not hold yet, print a line for each trial, and return all results.

    Args:
        function: see `run_trials`, whose errors it raises too.
        trials: what to run it on.
        options: where.
        version: to be changed when `function` changes what it computes.

    Raises:
        RuntimeError: if no trial has a row of results.
    """
    results = run_trials(
        function,
        trials,
        options.out,
        version=version,
        scheduler=options.scheduler or None,
        num_workers=options.num_workers or None,
        on_result=print_progress,
    )
    if not any(result.rows for result in results):
        raise RuntimeError(
            f"no trial has a result; what went wrong, if any ran, is in {options.out / 'failures'}"
        )
    return results
