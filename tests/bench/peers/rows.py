"""Rows of the speed table: what is in one, how it is timed, printed and written. Standard library only."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        quick: few repeats and small sizes, for a look; numbers to keep come without it.
        full: also what takes hours.
        convergence_csv: where runs that are counted are kept, and resumed from.
    """

    quick: bool = False
    full: bool = False
    convergence_csv: Path = Path("convergence.csv")

    @property
    def repeats(self) -> int:
        """Interleaved repeats of a short measurement."""
        return 5 if self.quick else 9

    @property
    def least_seconds(self) -> float:
        """CPU time of one such repeat, at least."""
        return 0.02 if self.quick else 0.2

    @property
    def num_runs(self) -> int:
        """Repeats of a measurement that takes a fit."""
        return 1 if self.quick else 5


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what is measured.
        ours: the library's number.
        peer: the peer's, `None` where the number stands for itself.
        peer_name: what it is compared with.
        unit: of both numbers.
        asked: the ratio to reach, `None` for a number that is only of interest.
        more_is_better: whether the larger number wins, as for a rate.
    """

    name: str
    ours: float
    peer: float | None
    peer_name: str | None
    unit: str
    asked: float | None
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How much better ours is than the peer's; ours itself where there is no peer."""
        if self.peer is None:
            return self.ours
        return self.ours / self.peer if self.more_is_better else self.peer / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the ratio is what was asked for, if anything was."""
        return None if self.asked is None else self.ratio >= self.asked

    def columns(self) -> dict[str, Any]:
        """Return the row as it is written to JSON."""
        columns = {k: v for k, v in asdict(self).items() if k != "more_is_better"}
        asked = columns.pop("asked")
        return {**columns, "ratio": self.ratio, "asked": asked}

    def __str__(self) -> str:
        """Return the row as one line of a table."""
        peer = "" if self.peer is None else f"{self.peer:.4g}"
        asked = "" if self.asked is None else f"{self.asked:.3g}"
        verdict = {None: "", True: "met", False: "not met"}[self.met]
        return (
            f"{self.name:34s} {self.ours:>10.4g} {peer:>10s} {self.unit:12s} "
            f"{self.ratio:>9.3g} {asked:>8s}  {verdict:8s} {self.peer_name or ''}"
        )


HEAD = f"{'':34s} {'ours':>10s} {'peer':>10s} {'unit':12s} {'ratio':>9s} {'asked':>8s}  {'':8s} peer"


class SkippedRow(Exception):
    """A row that cannot be measured here, and why."""


def interleaved(
    functions: Sequence[Callable[[], object]], *, repeats: int, least_seconds: float
) -> list[float]:
    """Return the median seconds that each function takes, measured in turns: A B A B ...

    Seconds of CPU time, which for one thread is wall time without the neighbours'. Functions are called
    twice beforehand, which compiles what is compiled on a first call.

    Args:
        functions: what to time.
        repeats: turns.
        least_seconds: a turn calls its function until about that much has passed, once at least.
    """
    counts = []
    for function in functions:
        function()
        counts.append(max(1, round(least_seconds / max(_seconds(function, 1), 1e-9))))
    turns = [[_seconds(f, n) / n for f, n in zip(functions, counts, strict=True)] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def _seconds(function: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        function()
    return time.process_time() - began


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps([row.columns() for row in rows], indent=2) + "\n")
    partial.replace(path)
