"""Videos through the ffmpeg program that comes with imageio-ffmpeg: grey frames in, grey frames out."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vinppl.errors import DataError

__all__ = ["decode", "encode"]


def decode(path: Path) -> Iterator[tuple[Fraction | None, NDArray[np.uint8]]]:
    """Read a video frame by frame: the rate in frames per second (`None` if unknown) and the luma.

    Frames of a variable rate are repeated or dropped by ffmpeg so that they come at the nominal rate.

    Args:
        path: the video.

    Yields:
        The rate, and a frame of shape `(height, width)`, 0 black and 255 white.

    Raises:
        DataError: if ffmpeg cannot read the file.
        ImportError: if imageio-ffmpeg is not installed.
    """
    command = ["-i", f"file:{path}", "-map", "0:v:0", "-vf", "scale=out_range=full,format=gray"]
    command += ["-strict", "-1", "-f", "yuv4mpegpipe", "-"]
    with _ffmpeg(command) as (process, fault):
        assert process.stdout is not None
        # A line such as YUV4MPEG2 W640 H480 F30000:1001 Ip A1:1 Cmono, then FRAME before every frame.
        header = process.stdout.readline().decode("ascii", "replace").split()
        fields = {word[0]: word[1:] for word in header[1:] if word}
        if header[:1] != ["YUV4MPEG2"]:
            raise DataError(f"{path}: ffmpeg finds no film in it ({fault()}).")
        width, height = int(fields["W"]), int(fields["H"])
        count, unit = (int(number) for number in fields.get("F", "0:0").split(":"))
        rate = Fraction(count, unit) if count > 0 and unit > 0 else None
        while process.stdout.readline().startswith(b"FRAME"):
            content = process.stdout.read(width * height)
            if len(content) < width * height:
                break
            yield rate, np.frombuffer(content, np.uint8).reshape(height, width)


def encode(path: Path, frames: Iterable[NDArray[np.uint8]], frame_rate: float) -> None:
    """Write grey frames as an H.264 video of good quality.

    Args:
        path: the file, replaced if it exists.
        frames: frames of one shape `(height, width)`.
        frame_rate: frames per second.

    Raises:
        DataError: if ffmpeg cannot write it.
        ImportError: if imageio-ffmpeg is not installed.
    """
    iterator = iter(frames)
    first = next(iterator)
    height, width = first.shape
    # Most players want half the resolution for colours, which needs even sides.
    kind = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
    rate = Fraction(frame_rate).limit_denominator(100_000)
    command = ["-y", "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(rate)]
    command += ["-i", "-", "-c:v", "libx264", "-crf", "10", "-pix_fmt", kind, f"file:{path}"]
    with _ffmpeg(command) as (process, fault):
        assert process.stdin is not None
        try:
            process.stdin.write(first.tobytes())
            for frame in iterator:
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            raise DataError(f"{path}: ffmpeg cannot write it ({fault()}).") from None
        if process.wait() != 0:
            raise DataError(f"{path}: ffmpeg cannot write it ({fault()}).")


@contextmanager
def _ffmpeg(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], _Fault]]:
    """Run ffmpeg, and end it in any case."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise ImportError(
            "videos other than GIF need imageio-ffmpeg: pip install vinppl[video]. Or convert them to a "
            "folder of PNG pictures first."
        ) from error
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
        )
        try:
            yield process, _Fault(process, messages)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # of what an ended process has not read
                    if pipe is not None:
                        pipe.close()


class _Fault:
    """What ffmpeg complained about last, in one line."""

    def __init__(self, process: subprocess.Popen[bytes], messages: IO[bytes]) -> None:
        self._process, self._messages = process, messages

    def __call__(self) -> str:
        self._process.wait()
        self._messages.seek(0)
        lines = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip().rstrip(".") if lines else f"exit status {self._process.returncode}"
