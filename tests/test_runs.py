"""Run folders: begin, resume, refuse, overwrite, log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vinppl.errors import DataError
from vinppl.runs import RunFolder, versions


def lines(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.log_file.read_text().splitlines()]


def test_begin_and_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    options = {"model": "Pendulum", "nested": {"steps": 3, "pair": (1, 2)}}
    assert folder.start(options, data="abc") is False
    assert folder.config()["options"] == {"model": "Pendulum", "nested": {"steps": 3, "pair": [1, 2]}}
    assert folder.config()["versions"]["torch"] == versions()["torch"]
    assert folder.config()["data"] == "abc"
    assert RunFolder(folder.path).start(options, data="abc") is True
    assert [line["event"] for line in lines(folder)] == ["started", "resumed"]
    folder.log("step", loss=1.5)
    assert lines(folder)[-1]["loss"] == 1.5
    assert lines(folder)[-1]["time"] > 0


def test_other_options_are_refused_unless_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start({"model": "Pendulum", "steps": 3}, data="abc")
    for name in ("result.nc", "loss.png", "scores.csv", "checkpoint/svi.pt", "keep.txt"):
        file = folder.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    message = r"holds a run with other options; got steps: 3 there, 4 here\. .*--overwrite"
    with pytest.raises(ValueError, match=message):
        folder.start({"model": "Pendulum", "steps": 4}, data="abc")
    with pytest.raises(ValueError, match="extra: None there, 1 here"):
        folder.start({"model": "Pendulum", "steps": 3, "extra": 1}, data="abc")
    with pytest.raises(ValueError, match="holds a run on other data"):
        folder.start({"model": "Pendulum", "steps": 3}, data="abd")
    assert folder.result.exists()
    assert folder.start({"model": "Pendulum", "steps": 5}, data="abc", free=("steps",)) is True
    assert folder.start({"model": "Pendulum", "steps": 4}, data="abc", overwrite=True) is False
    assert sorted(p.name for p in folder.path.rglob("*") if p.is_file()) == [
        "config.json",
        "keep.txt",
        "log.jsonl",
    ]
    assert [line["event"] for line in lines(folder)] == ["started"]


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run: it has no config\.json"):
        RunFolder(tmp_path / "none").config()
    folder = RunFolder(tmp_path)
    folder.config_file.write_text("{")
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        folder.config()
