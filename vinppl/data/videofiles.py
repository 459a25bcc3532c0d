"""Clips in files: which there are, and their frames one by one, whatever the format."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vinppl._checks import require
from vinppl.data.columns import did_you_mean, listed
from vinppl.data.ffmpeg import decode
from vinppl.data.images import as_levels
from vinppl.errors import DataError

__all__ = ["FILMS", "PICTURES", "Clip", "find_clips", "is_video", "open_clips", "pictures_in"]

FILMS = (".mp4", ".avi", ".mov", ".mkv")
"""Files that ffmpeg reads and writes."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Single pictures; those in a folder that have numbers in their names make a clip."""

Frames = Generator[tuple[float, NDArray[Any]], None, None]
"""Times in seconds and grey levels `(height, width)`, of one of the types that `as_levels` knows."""


@dataclass(frozen=True)
class Clip:
    """A film that is read frame by frame.

    Attributes:
        name: label of the trajectory.
        source: where it comes from, for messages.
        frames: times and frames; they can be read once.
    """

    name: str
    source: str
    frames: Frames


def is_video(path: str | Path) -> bool:
    """Return whether a path is a film: a video, a folder of pictures or videos, or an archive of frames."""
    path = Path(path)
    if path.is_dir():
        return bool(pictures_in(path) or _clips_in(path))
    return path.suffix.lower() in (".gif", *FILMS) or (path.suffix.lower() == ".npz" and _has_frames(path))


def find_clips(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the clips that a path or several paths stand for, in natural order within a folder.

    Raises:
        DataError: if a path does not exist, or is no film.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    require(len(paths) > 0, "at least one path of a film is needed", "none", error=DataError)
    return [clip for one in paths for clip in _expand(Path(one))]


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        pictures, clips = pictures_in(path), _clips_in(path)
        if pictures and clips:
            raise DataError(
                f"{path} holds {len(pictures)} pictures and also the clips "
                f"{listed(clip.name for clip in clips)}. Name one of the clips, or keep pictures and clips "
                "in separate folders."
            )
        if not pictures and not clips:
            found = listed(sorted(file.name for file in path.iterdir()), 5)
            raise DataError(
                f"{path} holds no numbered pictures and no videos, but {found or 'nothing'}. Name a film."
            )
        return [path] if pictures else clips
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or " Check the path and the working directory."
        raise DataError(f"{path}: there is no such file or folder.{hint}")
    if path.suffix.lower() not in (".gif", ".npz", *FILMS):
        also = " Name the folder of the pictures." if path.suffix.lower() in PICTURES else ""
        raise DataError(
            f"{path}: unknown extension {path.suffix!r} of a film. Convert it to .gif, .npz, "
            f"{', '.join(FILMS)}, or to a folder of PNG pictures.{also}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes).")
    return [path]


def pictures_in(folder: Path) -> list[Path]:
    """Return the numbered pictures in a folder in natural order: 2 before 10. Others are no frames."""
    return _sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURES and any(letter.isdecimal() for letter in file.stem)
    )


def _clips_in(folder: Path) -> list[Path]:
    """Return the videos, archives of frames and folders of pictures in a folder."""
    return _sorted(
        entry
        for entry in folder.iterdir()
        if (entry.is_dir() and pictures_in(entry))
        or entry.suffix.lower() in (".gif", *FILMS)
        or (entry.suffix.lower() == ".npz" and _has_frames(entry))
    )


def _sorted(entries: Iterator[Path]) -> list[Path]:
    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=key)


def open_clips(path: Path, frame_rate: float | None) -> list[Clip]:
    """Return the clips of one file or folder; only an archive may hold several.

    Args:
        path: one of those that `find_clips` returns.
        frame_rate: frames per second, instead of what the file says.
    """
    if path.is_dir():
        return [Clip(path.name, str(path), _pictures(path, frame_rate))]
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _archive(path, frame_rate)
    return [Clip(path.stem, str(path), (_gif if suffix == ".gif" else _film)(path, frame_rate))]


def _no_rate(source: Path, what: str) -> DataError:
    return DataError(f"{source}: {what}. Give frame_rate, in frames per second.")


def _pictures(folder: Path, frame_rate: float | None) -> Frames:
    if frame_rate is None:
        raise _no_rate(folder, "a folder of pictures does not say how fast they were taken")
    from PIL import Image

    for index, file in enumerate(pictures_in(folder)):
        try:
            with Image.open(file) as picture:
                levels = _grey(picture)
        except OSError as error:
            raise DataError(f"{file}: not a readable picture ({error}).") from error
        yield index / frame_rate, levels


def _grey(picture: Any) -> NDArray[Any]:
    """Return the luma of a picture, `(height, width)`; transparency is left out of account."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    return np.array(picture.convert("L"))


def _gif(path: Path, frame_rate: float | None) -> Frames:
    from PIL import Image, ImageSequence

    time = 0.0
    try:
        with Image.open(path) as film:
            for index, picture in enumerate(ImageSequence.Iterator(film)):
                yield (time if frame_rate is None else index / frame_rate), _grey(picture)
                shown = float(picture.info.get("duration", 0))  # in milliseconds
                if frame_rate is None and shown <= 0:
                    raise _no_rate(path, f"frame {index} of the GIF does not say how long it is shown")
                time += shown / 1000.0
    except OSError as error:
        raise DataError(f"{path}: not a readable GIF ({error}).") from error


def _film(path: Path, frame_rate: float | None) -> Frames:
    for index, (rate, frame) in enumerate(decode(path)):
        if frame_rate is None and rate is None:
            raise _no_rate(path, "the video does not say its frame rate")
        yield float(index / (frame_rate or rate)), frame  # type: ignore[operator]


def _has_frames(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "frames" in archive.files
    except (AttributeError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        return False  # left to the reader of tables to complain about


def _archive(path: Path, frame_rate: float | None) -> list[Clip]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (AttributeError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a readable NumPy archive ({error}). Write it with np.savez, without arrays of "
            "objects."
        ) from error
    require(
        "frames" in arrays,
        f"{path} must hold an array 'frames'",
        listed(arrays) or "no arrays",
        error=DataError,
    )
    frames = arrays["frames"]
    colours = frames.ndim in (4, 5) and frames.shape[-1] in (3, 4)
    require(
        frames.ndim in (3, 4) and not colours,
        f"{path}: frames must have shape (time, height, width) or (clip, time, height, width)",
        f"shape {frames.shape}" + (", which looks like colours" if colours else ""),
        "Average colours to grey levels first." if colours else "",
        error=DataError,
    )
    whole = frames.ndim == 3
    frames = frames[None] if whole else frames
    num, count = frames.shape[:2]
    levels = as_levels(frames, f"{path}: frames").numpy()
    times = _archive_times(path, arrays, frame_rate, num, count)
    names = [str(name) for name in arrays.get("names", ())]
    if len(names) != num:
        names = [path.stem] if num == 1 else [f"{path.stem}-{n}" for n in range(num)]
    return [
        Clip(
            names[n],
            str(path) if whole else f"{path}, clip {n}",
            ((float(time), frame) for time, frame in zip(times[n], levels[n], strict=True)),
        )
        for n in range(num)
    ]


def _archive_times(
    path: Path, arrays: dict[str, NDArray[Any]], frame_rate: float | None, num: int, count: int
) -> NDArray[np.float64]:
    """Return the times of the frames of every clip, `(clip, time)`."""
    if frame_rate is None and "times" in arrays:
        times = arrays["times"]
        require(
            times.shape in ((count,), (num, count)) and times.dtype.kind in "fiu",
            f"{path}: times must be numbers of shape ({count},) or ({num}, {count}), one for each frame",
            times,
            error=DataError,
        )
        return np.broadcast_to(times.astype(np.float64), (num, count))
    if frame_rate is None and "frame_rate" not in arrays:
        raise _no_rate(path, "the archive has neither 'times' nor 'frame_rate'")
    rate = float(arrays["frame_rate"]) if frame_rate is None else frame_rate
    require(rate > 0 and np.isfinite(rate), f"{path}: frame_rate must be positive", rate, error=DataError)
    return np.broadcast_to(np.arange(count) / rate, (num, count))
