"""Checkpoints: whole or not at all, and no code in them."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from vinppl.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from vinppl.errors import DataError

STATE = {"kind": "x", "a": torch.arange(5), "nested": {"list": [1, 2.5, "text", None, True]}, "t": (1, 2)}


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.pt"
    assert load_checkpoint(file) is None
    save_checkpoint(file, STATE)
    state = load_checkpoint(file)
    assert state is not None
    assert torch.equal(state["a"], STATE["a"])
    assert state["nested"] == STATE["nested"]
    assert os.listdir(file.parent) == ["a.pt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_failed_write_keeps_the_old_file(error: BaseException, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, STATE)
    before = file.read_bytes()

    def fail(stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(file, fail)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, STATE)
    before = file.read_bytes()

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(file, {"a": 1})
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_damage_is_a_data_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save_checkpoint(file, STATE)
    content = file.read_bytes()
    rng = random.Random(1)
    damaged = [b"", b"text", content[:-1], content[: len(content) // 2], pickle.dumps([1, 2]), b"\x80\x02."]
    for _ in range(60):
        flipped = bytearray(content)
        for _ in range(40):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        damaged.append(bytes(flipped))
    messages = []
    for blob in damaged:
        file.write_bytes(blob)
        try:
            load_checkpoint(file)  # damage to a number cannot be seen
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all("Delete it to start the run afresh." in message for message in messages)
    assert not any("\n" in message for message in messages)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def test_foreign_objects_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_checkpoint("a.pt")
    assert not Path("evil").exists()
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(DataError, match="not a checkpoint of this library"):
        load_checkpoint("b.pt")
