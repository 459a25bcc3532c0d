"""Compiles modules for this machine, and keeps the machine code on disk for the next process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

__all__ = ["Library", "cache_folder", "compile_module", "vector_width"]

X86_FEATURES = (
    *("sse4.2", "popcnt", "avx", "avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt"),
    *("avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512cd"),
)
"""What may be used of an x86 processor that says it has it; virtual machines report more than is there."""

MAX_OPTIMISED = 2_000_000
"""Length of the text of a module whose registers are assigned with care: the time goes with its square."""

_lock = threading.Lock()


class Library:
    """Compiled functions of one module; they live as long as this object."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def address(self, name: str) -> int:
        """Return the address of a function."""
        found = int(self._engine.get_function_address(name))
        if found == 0:
            raise KeyError(name)
        return found

    def function(self, name: str, arguments: Sequence[Any], result: Any = None) -> Any:
        """Return a function to call through ctypes; it releases Python's lock meanwhile."""
        function = ctypes.CFUNCTYPE(result, *arguments)(self.address(name))
        function.library = self  # type: ignore[attr-defined]  # keeps the code alive
        return function


def cache_folder() -> Path | None:
    """Return where machine code is kept: `$VINPPL_CACHE_DIR`, else the user's cache folder.

    `None` where `$VINPPL_CACHE_DIR` is empty, and for a user without a home: nothing is kept then.
    """
    named = os.environ.get("VINPPL_CACHE_DIR")
    if named is not None:
        return Path(named) if named else None
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    below = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    base = os.environ.get(variable)
    try:
        return (Path(base) if base else Path.home() / below) / "vinppl"
    except RuntimeError:  # a user without a home
        return None


def vector_width(bytes_per_number: int) -> int:
    """Return how many numbers fit into two vector registers, which hides most of the latency."""
    features = _target()[1]
    register = 64 if "+avx512f" in features else 32 if "+avx2" in features else 16
    return 2 * register // bytes_per_number


def compile_module(module: ir.Module) -> Library:
    """Return the compiled functions of a module.

    The machine code is read from the cache where it is there. Files are written whole and renamed
    into place, so that any number of processes may compile the same module at once; a damaged
    file is compiled again, and a folder that cannot be written to is left alone.
    """
    text = str(module)
    with _lock:
        machine = _machine(len(text))
        name = hashlib.sha256("\0".join((text, *_target(), llvmlite.__version__)).encode()).hexdigest()
        code = _read(name)
        if code is None:
            code = _compile(text, machine)
            _write(name, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return Library(engine)


def _compile(text: str, machine: Any) -> bytes:
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    # Level 3 takes up to three times as long, and its code is no faster.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


@functools.cache
def _target() -> tuple[str, str]:
    """Return the processor's name and features, as LLVM spells them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    has = llvm.get_host_cpu_features()
    return "x86-64", ",".join(f"+{name}" for name in X86_FEATURES if has.get(name))


def _machine(size: int) -> Any:
    """Return what writes machine code for a module with a text of that size."""
    cpu, features = _target()
    opt = 3 if size <= MAX_OPTIMISED else 0
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=opt, reloc="pic", codemodel="jitdefault"
    )


def _read(name: str) -> bytes | None:
    folder = cache_folder()
    if folder is None:
        return None
    try:
        content = (folder / f"{name}.o").read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(name: str, code: bytes) -> None:
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, folder / f"{name}.o")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
