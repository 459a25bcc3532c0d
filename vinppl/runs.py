"""Run folders: one folder for everything a script writes, complete at every moment.

config.json    every option, versions, fingerprint of the data
log.jsonl      one JSON object per line: progress and events
checkpoint/    what a resumed run needs
result.nc      the posterior, for ArviZ
forecast.nc    forecasts, with the same posterior
periods.csv    of films: the posterior of every clip's period
*.png, *.gif   figures and films
report.html    all of it as one page
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinppl._checks import require
from vinppl.checkpoint import write_atomically
from vinppl.errors import DataError

__all__ = ["RunFolder", "versions"]


class RunFolder:
    """A folder that holds one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.log_file = self.path / "log.jsonl"
        self.checkpoint = self.path / "checkpoint"
        self.result = self.path / "result.nc"
        self.forecast = self.path / "forecast.nc"
        self.report = self.path / "report.html"

    def start(
        self, options: Mapping[str, Any], *, data: str, free: Sequence[str] = (), overwrite: bool = False
    ) -> bool:
        """Begin or resume a run with these options on these data.

        Args:
            options: every option, as plain values.
            data: fingerprint of the data.
            free: options that may change when a run is resumed, nested ones with dots (`mcmc.num_draws`).
            overwrite: discard a run that the folder holds.

        Returns:
            Whether the folder holds an earlier part of the same run.

        Raises:
            ValueError: if it holds a run of other options or data and `overwrite` is not set.
        """
        config = {"options": json.loads(json.dumps(options)), "data": data, "versions": versions()}
        resuming = self.config_file.exists() and not overwrite
        if resuming:
            old, new = (_flat(c["options"]) for c in (self.config(), config))
            changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k) and k not in free)
            fix = "Choose another --out, or pass --overwrite to discard that run."
            require(
                not changed,
                f"{self.path} holds a run with other options",
                "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:3]),
                fix,
            )
            require(
                self.config().get("data") == data,
                f"{self.path} holds a run on other data",
                "a file whose content has changed since",
                fix,
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._clear()
        write_atomically(self.config_file, lambda file: file.write(json.dumps(config, indent=2).encode()))
        self.log("resumed" if resuming else "started")
        return resuming

    def config(self) -> dict[str, Any]:
        """Return the options and versions of the run.

        Raises:
            DataError: if the folder holds no run.
        """
        if not self.config_file.exists():
            raise DataError(
                f"{self.path} holds no run: it has no config.json. Name the folder that a script wrote."
            )
        try:
            loaded: dict[str, Any] = json.loads(self.config_file.read_text())
        except json.JSONDecodeError as error:
            raise DataError(f"{self.config_file} is damaged ({error}). Restore it, or run again.") from error
        return loaded

    def log(self, event: str, **values: Any) -> None:
        """Append one line to the log."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values})
        with self.log_file.open("a") as file:
            file.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of the log, without one that was cut off."""
        events: list[dict[str, Any]] = []
        for line in self.log_file.read_text().splitlines() if self.log_file.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    def _clear(self) -> None:
        for pattern in ("*.nc", "*.png", "*.gif", "*.csv", "report.html", "log.jsonl", "checkpoint/**/*.pt"):
            for file in self.path.glob(pattern):
                file.unlink()


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the numbers."""
    names = ("vinppl", "torch", "pyro-ppl", "arviz", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
