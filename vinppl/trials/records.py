"""Trials and the files that keep their results.

FOLDER/trials/NAME.json      a finished trial: arguments, rows, seconds, versions
FOLDER/failures/NAME.json    a failed one: arguments, error, traceback
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vinppl._checks import require
from vinppl.checkpoint import write_atomically
from vinppl.errors import DataError

__all__ = ["Records", "Trial", "TrialResult", "as_json"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,199}")


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        name: a file name, unique in the study, for example `pendulum-5-vin_vv-seed3`.
        arguments: keyword arguments of the study's function, as values that JSON can hold; tuples
            become lists.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None,
            "a trial's name must be a file name of letters, digits and _ . + = , -",
            repr(self.name),
        )
        try:
            # What runs is what the file says: a rerun from it gets the very same values.
            plain = json.loads(as_json(dict(self.arguments)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the arguments of trial {self.name} must be values that JSON can hold; got {error}. "
                "Pass numbers, strings, lists and dicts, and build objects inside the function."
            ) from error
        object.__setattr__(self, "arguments", plain)

    def fingerprint(self, version: str) -> str:
        """Return a digest of the arguments and the version of the study's function."""
        content = json.dumps([self.arguments, version], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Attributes:
        trial: what was run.
        rows: the rows that its function returned, none if it failed.
        seconds: how long the function took, NaN if that is unknown.
        versions: of Python and of the packages where it ran.
        error: why it failed, one line; empty if it did not.
        traceback: where it failed, empty if that is unknown.
        reused: whether an earlier call had run it.
    """

    trial: Trial
    rows: list[dict[str, Any]]
    seconds: float
    versions: dict[str, str]
    error: str = ""
    traceback: str = ""
    reused: bool = False

    @property
    def failed(self) -> bool:
        """Whether the function raised or its worker died too often."""
        return bool(self.error)


def as_json(value: Any) -> str:
    """Return `value` as JSON, NumPy's numbers included.

    Raises:
        TypeError: if JSON cannot hold it.
    """
    return json.dumps(value, default=_plain_number)


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__}, which JSON cannot hold")


class Records:
    """The files of a study.

    Args:
        folder: the study's folder.
        version: changes when the study's function changes what it computes.
    """

    def __init__(self, folder: str | Path, version: str) -> None:
        self.folder = Path(folder)
        self.version = version

    def finished(self, trials: Sequence[Trial], *, rerun_changed: bool) -> dict[str, TrialResult]:
        """Return the trials that the folder holds.

        Raises:
            ValueError: if it holds one with other arguments or of another version, unless `rerun_changed`.
        """
        found: dict[str, TrialResult] = {}
        for trial in trials:
            try:
                record = self._read(self._file("trials", trial))
            except DataError as error:
                warnings.warn(f"{error}; the trial is run again", UserWarning, stacklevel=4)
                continue
            if record is None:
                continue
            if record["fingerprint"] == trial.fingerprint(self.version):
                found[trial.name] = TrialResult(
                    trial, record["rows"], record["seconds"], record["versions"], reused=True
                )
            elif not rerun_changed:
                self._refuse(trial, record)
        return found

    def write(self, result: TrialResult) -> None:
        """Write a result, whole or not at all; that of a trial which failed before replaces the failure.

        Raises:
            OSError: if the disk is full or the folder cannot be written.
        """
        record = {
            "name": result.trial.name,
            "arguments": result.trial.arguments,
            "version": self.version,
            "fingerprint": result.trial.fingerprint(self.version),
            "seconds": result.seconds,
            "versions": result.versions,
        }
        outcome = (
            {"error": result.error, "traceback": result.traceback} if result.failed else {"rows": result.rows}
        )
        content = json.dumps({**record, **outcome}, indent=1).encode()
        kind = "failures" if result.failed else "trials"
        write_atomically(self._file(kind, result.trial), lambda file: file.write(content))
        if not result.failed:
            self._file("failures", result.trial).unlink(missing_ok=True)

    def _file(self, kind: str, trial: Trial) -> Path:
        return self.folder / kind / f"{trial.name}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a finished trial's record, `None` if there is none; `DataError` if it is damaged."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error})") from error
        wanted = {"fingerprint": str, "arguments": dict, "rows": list, "seconds": float, "versions": dict}
        wrong = [
            k
            for k, kind in wanted.items()
            if not isinstance(record, dict) or not isinstance(record.get(k), kind)
        ]
        if wrong:
            raise DataError(f"{path} is damaged (it has no {wrong[0]})")
        return dict(record)

    def _refuse(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Raise an error that says what differs."""
        old, new = (
            {**r, "version": v}
            for r, v in ((record["arguments"], record.get("version")), (trial.arguments, self.version))
        )
        changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        require(
            False,
            f"{self._file('trials', trial)} must hold the same trial",
            "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:3])
            or "another one",
            "Choose another folder, or pass rerun_changed=True to run such trials again.",
        )
