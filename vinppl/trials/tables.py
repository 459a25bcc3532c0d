"""Tables of results, as CSV files that say how they were made."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vinppl._checks import require
from vinppl.checkpoint import write_atomically
from vinppl.trials.records import TrialResult

__all__ = ["code_version", "read_table", "table", "write_table"]


def table(results: Iterable[TrialResult]) -> pd.DataFrame:
    """Return the rows of all trials that did not fail, in the order of the trials.

    Columns: `trial`, the arguments that are numbers or strings, then what the rows hold; where a row
    and an argument share a name, the row's value stands.
    """
    rows = []
    for result in results:
        single = {k: v for k, v in result.trial.arguments.items() if not isinstance(v, list | dict)}
        rows += [{"trial": result.trial.name, **single, **row} for row in result.rows]
    return pd.DataFrame(rows)


def write_table(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    command: str,
    seeds: Sequence[int] | str,
    commit: str | None = None,
) -> None:
    """Write a CSV file with the command, seeds and commit that made it in its first two lines.

    Args:
        frame: the table, without its index.
        path: the file.
        command: the command line, such as `python inference/study.py --num-seeds 5`.
        seeds: the seeds used, or a few words about them.
        commit: the code that was run, by default `code_version()`.
    """
    require("\n" not in command, "command must be one line", command)
    used = seeds if isinstance(seeds, str) else _listed(seeds)
    head = f"# command: {command}\n# seeds: {used}; commit: {commit or code_version()}\n"
    content = head + frame.to_csv(index=False, float_format="%.5g", lineterminator="\n")
    write_atomically(path, lambda file: file.write(content.encode()))


def read_table(path: str | Path) -> pd.DataFrame:
    """Return a table that `write_table` wrote."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]
    # Only an empty cell is a missing value: `None` and `NA` may be names.
    return pd.read_csv(io.StringIO("".join(lines)), keep_default_na=False, na_values=[""])


def code_version() -> str:
    """Return the commit of the checkout that this library runs from, otherwise its version."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "rev-parse", "--short", "HEAD"]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or one that does not trust the folder
            pass
    return importlib.metadata.version("vinppl")


def _listed(seeds: Sequence[int]) -> str:
    """Return seeds as `0 to 4` where they are consecutive, otherwise one by one."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
