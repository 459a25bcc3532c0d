"""Films of moving systems: reading them as trajectories of small grey frames, and writing them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.data.columns import listed
from vinppl.data.ffmpeg import encode
from vinppl.data.images import as_levels, otsu_threshold, resizer
from vinppl.data.trajectories import Trajectories
from vinppl.data.videofiles import FILMS, Clip, Frames, find_clips, open_clips, pictures_in
from vinppl.errors import DataError

__all__ = ["read_video", "write_video"]


def read_video(
    path: str | Path | Sequence[str | Path],
    *,
    size: int | tuple[int, int] = 28,
    frame_rate: float | None = None,
    every: int = 1,
    start: float = 0.0,
    duration: float | None = None,
    crop: tuple[int, int, int, int] | None = None,
    threshold: float | Literal["otsu"] | None = None,
    invert: bool = False,
    dim: int = 1,
) -> Trajectories:
    """Read films as trajectories whose channels are pixels, in the default dtype.

    Films are `.gif`; `.mp4`, `.avi`, `.mov` and `.mkv` (with imageio-ffmpeg, `pip install vinppl[video]`);
    a folder of PNG or other pictures with numbers in their names, in natural order; and `.npz` archives
    with an array `frames`, `(time, height, width)` or `(clip, time, height, width)`, beside `times` or
    `frame_rate`. A folder of films gives one trajectory for each, and so does a list of paths; they are
    named after their files. Every frame is made grey (luma), cropped and resized at once, so that long
    films of high resolution need little memory.

    Args:
        path: a film, a folder, or a list of them.
        size: side, or height and width, of the frames in pixels. Smaller frames average areas, larger
            ones interpolate; another ratio of sides than the film's squashes the picture.
        frame_rate: frames per second, instead of what the file says (GIF: the durations of its frames,
            whose hundredths of a second may be rounded); a folder of pictures needs it.
        every: keep every so many frames.
        start: leave out the beginning, in seconds from the first frame.
        duration: seconds to keep from there on; all by default.
        crop: part of the original picture, `(top, bottom, left, right)`: rows `top` to `bottom - 1` and
            columns `left` to `right - 1`.
        threshold: make frames black and white: lighter than this level, from 0 to 1, becomes 1. `otsu`
            finds the level that parts all frames of all films best. By default frames stay grey.
        invert: for dark bodies on a light background; before the threshold.
        dim: number of generalised coordinates behind the films.

    Raises:
        DataError: if a file is missing or cannot be read, says no frame rate, or holds no frames.
        ImportError: if a video needs imageio-ffmpeg and it is not installed.

    Example:
        The pendulum in the middle of a film, two of three frames left out, black on white::

            read_video("swing.mp4", crop=(40, 680, 320, 960), every=3, threshold="otsu", invert=True)
    """
    shape = _image_shape(size)
    _check_options(frame_rate, every, start, duration, threshold)
    times, films, names = [], [], []
    for file in find_clips(path):
        for clip in open_clips(file, frame_rate):
            moments, frames = _small(clip, _chosen(clip, start, duration, every), shape, crop)
            times.append(moments)
            films.append(1.0 - frames if invert else frames)
            names.append(clip.name)
    if threshold is not None:
        level = otsu_threshold(*films) if threshold == "otsu" else threshold
        films = [torch.where(frames.isnan(), frames, (frames > level).to(frames)) for frames in films]
    _check_motion(films, names)
    return Trajectories.from_frames(films, times, names=names, dim=dim)


def _image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    require(
        len(sides) == 2 and all(isinstance(side, int) and side >= 1 for side in sides),
        "size must be a number of pixels, or height and width, at least 1",
        size,
        error=DataError,
    )
    return sides[0], sides[1]


def _check_options(
    frame_rate: float | None,
    every: int,
    start: float,
    duration: float | None,
    threshold: float | str | None,
) -> None:
    for name, value in (("frame_rate", frame_rate), ("duration", duration)):
        require(
            value is None or (value > 0 and math.isfinite(value)),
            f"{name} must be a positive number",
            value,
            error=DataError,
        )
    require(every >= 1, "every must be at least 1", every, error=DataError)
    require(start >= 0, "start must be 0 or more", start, error=DataError)
    level = isinstance(threshold, int | float) and 0 < threshold < 1
    require(
        threshold is None or threshold == "otsu" or level,
        "threshold must be 'otsu' or lie between 0 and 1",
        threshold,
        error=DataError,
    )


def _check_motion(films: Sequence[Tensor], names: Sequence[str]) -> None:
    if any(bool((frames.diff(dim=0).abs() > 0).any()) for frames in films):
        return
    low, high = min(float(x.min()) for x in films), max(float(x.max()) for x in films)
    raise DataError(
        f"nothing moves in {listed(names, 3)}: all frames are the same, with grey levels from {low:.3g} to "
        f"{high:.3g}. Check crop, size, start and threshold."
    )


def _chosen(clip: Clip, start: float, duration: float | None, every: int) -> Frames:
    """Yield the frames that are kept."""
    slack = 1e-6  # of rounding, in seconds
    first, count = None, 0
    for time, frame in clip.frames:
        first = time if first is None else first
        if time - first < start - slack:
            continue
        if duration is not None and time - first >= start + duration - slack:
            break
        if count % every == 0:
            yield time, frame
        count += 1


def _small(
    clip: Clip,
    frames: Frames,
    shape: tuple[int, int],
    crop: tuple[int, int, int, int] | None,
) -> tuple[list[float], Tensor]:
    """Return the times and the grey levels `(time, height, width)` of a clip's frames in their new size."""
    times: list[float] = []
    small: list[Tensor] = []
    with contextlib.closing(frames), contextlib.closing(clip.frames):
        fit, before = None, None
        for time, frame in frames:
            if fit is None:
                fit, before = _fitting(clip.source, frame.shape, shape, crop), frame.shape
            require(
                frame.shape == before,
                f"{clip.source}: all frames must have the size of the first, {before}",
                f"{frame.shape} at {time:.6g} s",
                error=DataError,
            )
            times.append(time)
            small.append(fit(frame))
    require(
        len(times) >= 2,
        f"{clip.source}: at least two frames are needed",
        f"{len(times) or 'none'}",
        "Check start, duration and every.",
        error=DataError,
    )
    return times, torch.stack(small)


def _fitting(
    source: str, before: tuple[int, ...], after: tuple[int, int], crop: tuple[int, int, int, int] | None
) -> Callable[[NDArray[Any]], Tensor]:
    """Return a function from frames of one size to grey levels, cropped and resized."""
    top, bottom, left, right = crop or (0, before[0], 0, before[1])
    require(
        0 <= top < bottom <= before[0] and 0 <= left < right <= before[1],
        f"{source}: crop must be (top, bottom, left, right) within frames of {before[0]} x {before[1]}",
        f"({top}, {bottom}, {left}, {right})",
        error=DataError,
    )
    fit = resizer((bottom - top, right - left), after)
    name = f"{source}: frames"
    return lambda frame: fit(as_levels(frame[top:bottom, left:right], name, decoded=True))


def write_video(frames: ArrayLike | Tensor, path: str | Path, frame_rate: float, *, scale: int = 8) -> None:
    """Write frames as a film, whole or not at all.

    Args:
        frames: grey levels as for `Trajectories.from_frames`, shape `(time, height, width)`; an archive
            also takes several clips, `(clip, time, height, width)`.
        path: the file, replaced if it exists: `.gif`; `.mp4`, `.avi`, `.mov` or `.mkv` (H.264, nearly
            without loss); or `.npz`, which keeps the levels as they are. A path without extension is a
            folder for PNG pictures, which must not hold numbered ones yet.
        frame_rate: frames per second. A GIF counts time in hundredths of a second, so that its frames may
            be displaced by half of one.
        scale: side of the square that shows one pixel; not for `.npz`.

    Raises:
        DataError: if frames or path cannot be used.
        ImportError: if a video needs imageio-ffmpeg and it is not installed.
    """
    path = Path(path)
    levels = as_levels(frames).cpu()
    require(frame_rate > 0, "frame_rate must be positive", frame_rate, error=DataError)
    require(scale >= 1, "scale must be at least 1", scale, error=DataError)
    suffix = path.suffix.lower()
    require(
        levels.numel() > 0 and levels.ndim in ((3, 4) if suffix == ".npz" else (3,)),
        "frames must have shape (time, height, width) and not be empty",
        levels,
        "Write one clip at a time.",
        error=DataError,
    )
    if suffix == ".npz":
        rate = np.float64(frame_rate)
        _whole(path, lambda part: np.savez_compressed(part, frames=levels.numpy(), frame_rate=rate))
        return
    require(
        not bool(levels.isnan().any()),
        "frames of a picture format must all be known",
        "NaN",
        "Write an .npz archive, or fill them in.",
        error=DataError,
    )
    pictures = (_enlarged(frame, scale) for frame in levels)
    if suffix == ".gif":
        _whole(path, lambda part: _write_gif(part, pictures, frame_rate))
    elif suffix in FILMS:
        _whole(path, lambda part: encode(part, pictures, frame_rate))
    elif suffix == "":
        _write_pictures(path, pictures)
    else:
        raise DataError(
            f"{path}: unknown extension {path.suffix!r} of a film. Write .gif, .npz, {', '.join(FILMS)}, or "
            "a folder without extension."
        )


def _enlarged(frame: Tensor, scale: int) -> NDArray[np.uint8]:
    picture = (255.0 * frame).round().to(torch.uint8)
    return np.ascontiguousarray(
        picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy(), dtype=np.uint8
    )


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place and move it there when it is complete."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_gif(path: Path, pictures: Iterator[NDArray[np.uint8]], frame_rate: float) -> None:
    """Write a GIF that keeps equal neighbouring frames apart, which `Image.save` would merge."""
    from PIL import GifImagePlugin, Image

    require(
        frame_rate <= 100,
        "a GIF cannot show more than 100 frames per second",
        frame_rate,
        "Write an .mp4 or .npz file.",
        error=DataError,
    )
    with path.open("wb") as file:
        for index, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            if index == 0:
                for chunk in GifImagePlugin.getheader(image.copy(), info={"loop": 0})[0]:
                    file.write(chunk)
            ends = [round(100 * i / frame_rate) for i in (index, index + 1)]
            for chunk in GifImagePlugin.getdata(image, duration=10 * (ends[1] - ends[0]), interlace=0):
                file.write(chunk)
        file.write(b";")


def _write_pictures(folder: Path, pictures: Iterator[NDArray[np.uint8]]) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    require(
        not pictures_in(folder),
        f"{folder} must not hold numbered pictures yet",
        f"{len(pictures_in(folder))} of them",
        "Name a new folder.",
        error=DataError,
    )
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"frame_{index:05d}.png")
