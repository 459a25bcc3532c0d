"""Machine code: compiled, kept on disk, and read again by any number of processes."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llvmlite import ir

from vinppl.native import compiler
from vinppl.native.builder import POINTER, FunctionBuilder, Precision, new_module
from vinppl.native.compiler import Library, cache_folder, compile_module, vector_width


def times(factor: float, lines: int = 0) -> ir.Module:
    """Return a module whose `f` multiplies a number in place; `lines` make it longer."""
    module = new_module("times")
    b = FunctionBuilder(module, "f", [POINTER], lanes=1, precision=Precision("float64"))
    (x,) = b.arguments
    value = b.mul(b.load(x, b.index(0)), b.const(factor))
    for _ in range(lines):
        value = b.add(b.mul(value, b.const(0.5)), b.mul(value, b.const(0.5)))
    b.store(value, x, b.index(0))
    b.finish()
    return module


def call(library: Library) -> float:
    """Return f(3)."""
    number = ctypes.c_double(3.0)
    library.function("f", [ctypes.c_void_p])(ctypes.addressof(number))
    return number.value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "below" / "cache"
    monkeypatch.setenv("VINPPL_CACHE_DIR", str(path))
    return path


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", fail)


def test_the_second_time_is_read_from_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(compile_module(times(2.0))) == 6.0
    (file,) = folder.iterdir()
    assert file.suffix == ".o"
    content = file.read_bytes()
    assert hashlib.sha256(content[32:]).digest() == content[:32]
    refuse(monkeypatch)
    assert call(compile_module(times(2.0))) == 6.0
    with pytest.raises(AssertionError, match="compiled again"):
        compile_module(times(4.0))


def test_other_processors_and_versions_have_files_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_module(times(2.0))
    cpu, features = compiler._target()
    monkeypatch.setattr(compiler, "_target", lambda: (cpu, features.partition(",")[0]))
    assert call(compile_module(times(2.0))) == 6.0
    monkeypatch.setattr(compiler.llvmlite, "__version__", "0")
    assert call(compile_module(times(2.0))) == 6.0
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_compiled_again(folder: Path, damage: bytes | None) -> None:
    compile_module(times(2.0))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    assert call(compile_module(times(2.0))) == 6.0
    assert file.read_bytes() == content


def test_a_folder_in_place_of_the_file_is_left_alone(folder: Path) -> None:
    compile_module(times(2.0))
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    assert call(compile_module(times(2.0))) == 6.0
    assert [path.name for path in folder.iterdir()] == [file.name]  # no temporary file stays behind


def test_nothing_is_kept_where_nothing_can_be_written(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    assert call(compile_module(times(2.0))) == 6.0
    assert folder.read_text() == "a file"


def test_nothing_is_kept_when_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINPPL_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() is None
    assert call(compile_module(times(2.0))) == 6.0
    assert list(tmp_path.iterdir()) == []


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VINPPL_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, variable, below in (
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
        ("darwin", None, "Library/Caches"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        if variable is not None:
            monkeypatch.setenv(variable, "/elsewhere")
            assert cache_folder() == Path("/elsewhere/vinppl")
            monkeypatch.delenv(variable)
        assert cache_folder() == tmp_path / below / "vinppl"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("VINPPL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    assert call(compile_module(times(2.0))) == 6.0


SCRIPT = """
import ctypes, runpy, sys

compiler = runpy.run_path(sys.argv[1])  # by itself: nothing else needs to be imported
print("ready", flush=True)
text = sys.stdin.read()
library = compiler["compile_module"](text)  # which takes of a module what it is written as
number = ctypes.c_double(3.0)
library.function("f", [ctypes.c_void_p])(ctypes.addressof(number))
print(number.value, flush=True)
"""


def test_several_processes_at_once_leave_one_whole_file(folder: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, compiler.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    text = str(times(2.0, 300))
    for process in processes:  # none begins before all are there
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.read() == "6.0\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    (file,) = folder.iterdir()
    content = file.read_bytes()
    assert hashlib.sha256(content[32:]).digest() == content[:32]


def test_libraries_name_what_is_missing_and_live_as_long_as_their_functions(folder: Path) -> None:
    library = compile_module(times(2.0))
    with pytest.raises(KeyError, match="nothing"):
        library.address("nothing")
    function = library.function("f", [ctypes.c_void_p])
    del library
    number = ctypes.c_double(3.0)
    function(ctypes.addressof(number))
    assert number.value == 6.0


def test_long_modules_are_compiled_in_a_hurry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = times(2.0, 10)
    monkeypatch.setattr(compiler, "MAX_OPTIMISED", len(str(module)) - 1)
    assert call(compile_module(module)) == 6.0


def test_two_registers_are_filled() -> None:
    assert vector_width(4) == 2 * vector_width(8)
    assert vector_width(8) in (4, 8, 16)
