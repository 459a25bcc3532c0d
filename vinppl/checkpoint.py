"""Checkpoints: plain tensors and values, written whole and renamed into place.

Files hold nothing but tensors, numbers, strings, lists and dicts and are read with
`weights_only=True`: loading a file of unknown origin runs no code of its author's.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vinppl.errors import DataError

__all__ = ["load_checkpoint", "save_checkpoint", "write_atomically"]


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file through `write` beside its target and rename it into place.

    A reader sees the old file or the new one, never half of either; on failure the
    old file stays and nothing is left behind.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            error.filename = str(path)
        raise
    return path


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Save a state of tensors and plain values."""
    # Encoded in memory: torch would turn a full disk into an error of its own.
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(path, lambda file: file.write(content.getbuffer()))


def load_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Return the saved state, or `None` if there is no file.

    Raises:
        DataError: if the file is damaged or holds foreign objects.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes can stop the reader in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"{path}: not a readable checkpoint ({reason}). Delete it to start the run afresh."
        ) from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: not a checkpoint of this library. Delete it to start the run afresh.")
    return state
