"""Films: what was written reads back, whatever the format; sizes, thresholds, and errors in words."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from torch.nn.functional import interpolate

from vinppl.data import Trajectories, is_video, read_video, write_video
from vinppl.data.ffmpeg import decode
from vinppl.data.images import otsu_threshold, resizer
from vinppl.errors import DataError
from vinppl.render import draw_disc

FORMATS = ["clip.gif", "clip", "clip.npz", "clip.mp4", "clip.avi", "clip.mov", "clip.mkv"]


def frames_of(num: int = 6, size: int = 12) -> torch.Tensor:
    """A disc that rests for a frame and then moves, black and white."""
    position = torch.linspace(-1.5, 1.5, num - 1)
    return draw_disc(torch.cat([position[:1], position]), size=size)


def grey_frames(num: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (num, height, width), generator=generator)
    return levels.double() / 255.0


def rate_for(name: str) -> float | None:
    return None if "." in name else 10.0


# There and back


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_reads_back(tmp_path: Path, name: str, scale: int) -> None:
    frames = frames_of()
    write_video(frames, tmp_path / name, 10.0, scale=scale)
    data = read_video(tmp_path / name, size=12, frame_rate=rate_for(name))
    assert data.names == ("clip",)
    assert data.time_unit == "s"
    assert data.values.dtype == torch.float64
    torch.testing.assert_close(data.times[0], 0.1 * torch.arange(6), rtol=0, atol=1e-9)
    # H.264 loses a little, at the edges of pixels that are not enlarged most.
    tolerance = 0.0 if name in FORMATS[:3] else 0.1
    torch.testing.assert_close(data.frames[0], frames, rtol=0, atol=tolerance)
    assert [file.name for file in tmp_path.iterdir()] == [name], "nothing else is left behind"


def test_grey_levels_read_back(tmp_path: Path) -> None:
    frames = grey_frames(4, 7, 10)
    for name in ("grey.gif", "grey", "grey.npz", "grey.mp4"):
        write_video(frames, tmp_path / name, 25.0, scale=4)
        data = read_video(tmp_path / name, size=(7, 10), frame_rate=25.0)
        tolerance = 0.02 if name.endswith("mp4") else 1e-12
        torch.testing.assert_close(data.frames[0], frames, rtol=0, atol=tolerance)


def test_archives_keep_levels_and_missing_pixels_exactly(tmp_path: Path) -> None:
    frames = torch.rand(2, 5, 6, 6)
    frames[1, 2] = float("nan")
    write_video(frames, tmp_path / "pair.npz", 4.0)
    data = read_video(tmp_path / "pair.npz", size=6)
    assert data.names == ("pair-0", "pair-1")
    assert torch.equal(data.frames[0], frames[0])
    assert data.mask[1].all(-1).tolist() == [True, True, False, True, True]
    np.savez(tmp_path / "timed.npz", frames=frames[0] > 0.5, times=[0.0, 0.1, 0.3, 0.4, 0.9])
    timed = read_video(tmp_path / "timed.npz", size=6)
    assert timed.times[0].tolist() == [0.0, 0.1, 0.3, 0.4, 0.9]
    assert torch.equal(timed.frames[0], (frames[0] > 0.5).double())
    np.savez(tmp_path / "named.npz", frames=frames, times=np.arange(10.0).reshape(2, 5), names=["a", "b"])
    named = read_video(tmp_path / "named.npz", size=6)
    assert named.names == ("a", "b")
    assert named.times[1, 0] == 5.0
    assert read_video(tmp_path / "timed.npz", size=6, frame_rate=2.0).times[0, -1] == 2.0


def test_gifs_keep_their_own_times(tmp_path: Path) -> None:
    frames = frames_of(8)
    write_video(frames, tmp_path / "fast.gif", 30.0)
    data = read_video(tmp_path / "fast.gif", size=12)
    # Hundredths of a second, rounded at every frame and not added up.
    torch.testing.assert_close(data.times[0], torch.arange(8) / 30.0, rtol=0, atol=0.005 + 1e-9)
    exact = read_video(tmp_path / "fast.gif", size=12, frame_rate=30.0)
    torch.testing.assert_close(exact.times[0], torch.arange(8) / 30.0)
    pictures = [Image.fromarray(np.uint8(255 * frame.numpy())) for frame in frames]
    pictures[0].save(tmp_path / "other.gif", save_all=True, append_images=pictures[1:], duration=[100] * 8)
    other = read_video(tmp_path / "other.gif", size=12)  # equal neighbours are one frame, shown longer
    torch.testing.assert_close(other.times[0], torch.tensor([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
    assert torch.equal(other.frames[0], frames[1:])


def test_videos_come_at_their_own_rate(tmp_path: Path) -> None:
    frames = frames_of(12)
    write_video(frames, tmp_path / "even.mkv", 10.0)
    assert {rate for rate, _ in decode(tmp_path / "even.mkv")} == {10}
    write_video(frames, tmp_path / "rate.mp4", 30000 / 1001)
    times = read_video(tmp_path / "rate.mp4", size=12).times[0]
    torch.testing.assert_close(times, torch.arange(12) * 1001 / 30000, rtol=1e-6, atol=0)


def test_videos_of_a_changing_rate_come_at_a_constant_one(tmp_path: Path) -> None:
    frames = frames_of(8)
    write_video(frames, tmp_path / "even.mp4", 10.0)
    # Frames 0 to 4 at 0, 0.1, .., 0.4 s, and then every 0.2 s.
    slower = ["-vf", "setpts='if(lt(N,5),N,2*N-4)/10/TB'", "-fps_mode", "vfr", "-crf", "10"]
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "even.mp4"), *slower]
    subprocess.run([*command, str(tmp_path / "vary.mp4")], check=True)
    data = read_video(tmp_path / "vary.mp4", size=12, threshold=0.5)
    for frame, time in zip(frames, (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0), strict=True):
        assert torch.equal(data.frames[0, int((data.times[0] - time).abs().argmin())], frame)


# Folders


def test_pictures_are_read_in_natural_order(tmp_path: Path) -> None:
    frames = grey_frames(11, 5, 5)
    for index, frame in enumerate(frames):
        Image.fromarray(np.uint8(255 * frame.numpy())).save(tmp_path / f"shot{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "loss.png")  # a figure, no frame
    data = read_video(tmp_path, size=5, frame_rate=2.0)
    torch.testing.assert_close(data.frames[0], frames, rtol=0, atol=1e-12)
    assert data.times[0, -1] == 5.0
    assert data.names == (tmp_path.name,)


def test_pictures_of_many_kinds_become_grey(tmp_path: Path) -> None:
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    kinds: dict[str, Image.Image] = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(np.stack([grey] * 3, -1)),
        "RGBA": Image.fromarray(np.stack([*[grey] * 3, np.full_like(grey, 255)], -1)),
        "P": Image.fromarray(grey).convert("P"),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, picture in kinds.items():
        folder = tmp_path / name.replace(";", "")
        folder.mkdir()
        picture.save(folder / "0.png")
        Image.fromarray(grey.T).save(folder / "1.png")
        data = read_video(folder, size=2, frame_rate=1.0)
        torch.testing.assert_close(
            data.frames[0, 0], torch.tensor([[0.0, 0.2], [0.4, 1.0]]), rtol=0, atol=1e-9, msg=name
        )
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0, 0] = colours[0, 1, 1] = colours[1, 0, 2] = 255
    Image.fromarray(colours).save(tmp_path / "L" / "0.png")
    luma = read_video(tmp_path / "L", size=2, frame_rate=1.0).frames[0, 0].flatten()
    torch.testing.assert_close(luma, torch.tensor([0.299, 0.587, 0.114, 0.0]), rtol=0, atol=1 / 255)


def test_a_folder_or_a_list_of_clips_gives_a_trajectory_for_each(tmp_path: Path) -> None:
    long, short = frames_of(8), frames_of(5)
    write_video(long, tmp_path / "swing10.gif", 10.0)
    write_video(short, tmp_path / "swing9.mp4", 10.0)
    write_video(short, tmp_path / "swing11.npz", 10.0)
    write_video(short, tmp_path / "pictures", 10.0)
    (tmp_path / "figures").mkdir()
    (tmp_path / "table.csv").write_text("time,q")
    np.savez(tmp_path / "states.npz", time=[0, 1], q=[0, 1])
    data = read_video(tmp_path, size=12, frame_rate=10.0)
    assert data.names == ("pictures", "swing9", "swing10", "swing11")
    assert data.lengths.tolist() == [5, 5, 8, 5]
    assert torch.equal(data.frames[2], long)
    pair = read_video([tmp_path / "swing11.npz", str(tmp_path / "swing10.gif")], size=12, dim=2)
    assert pair.names == ("swing11", "swing10")
    assert pair.dim == 2


# Parts, sizes and levels


def test_frames_are_chosen_in_time(tmp_path: Path) -> None:
    frames = grey_frames(20, 4, 4)
    write_video(frames, tmp_path / "clip.npz", 10.0)

    def indices(**options: Any) -> list[int]:
        data = read_video(tmp_path / "clip.npz", size=4, **options)
        found = [int((frames == frame).all(-1).all(-1).nonzero()) for frame in data.frames[0]]
        torch.testing.assert_close(data.times[0], 0.1 * torch.tensor(found))
        return found

    assert indices() == list(range(20))
    assert indices(every=3) == list(range(0, 20, 3))
    assert indices(start=0.3, duration=0.4) == [3, 4, 5, 6]
    assert indices(start=0.1, duration=0.2) == [1, 2]
    assert indices(start=1.65, every=2) == [17, 19]


def test_early_ends_leave_no_process_behind(tmp_path: Path) -> None:
    write_video(frames_of(60), tmp_path / "clip.mp4", 10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        data = read_video(tmp_path / "clip.mp4", size=12, duration=0.45)
    assert data.num_times == 5


def test_crops_are_parts_of_the_original(tmp_path: Path) -> None:
    frames = grey_frames(3, 9, 11)
    write_video(frames, tmp_path / "clip.npz", 1.0)
    data = read_video(tmp_path / "clip.npz", size=(4, 5), crop=(2, 6, 3, 8))
    assert torch.equal(data.frames[0], frames[:, 2:6, 3:8])


@pytest.mark.parametrize("after", [(5, 4), (7, 9), (12, 10), (30, 30), (13, 3)])
def test_sizes_change_by_areas_or_bilinearly(after: tuple[int, int]) -> None:
    frames = torch.rand(4, 12, 20)
    fitted = resizer((12, 20), after)(frames)
    assert fitted.shape == (4, *after)
    if after[0] <= 12 and after[1] <= 20:
        torch.testing.assert_close(fitted.mean((1, 2)), frames.mean((1, 2)))
    if all(before % side == 0 for before, side in zip((12, 20), after, strict=True)):
        torch.testing.assert_close(fitted, interpolate(frames[:, None], after, mode="area")[:, 0])
    if after == (30, 30):
        torch.testing.assert_close(fitted, interpolate(frames[:, None], after, mode="bilinear")[:, 0])
    assert torch.equal(resizer((12, 20), after)(torch.ones(12, 20)).round(decimals=12), torch.ones(after))


def test_black_and_white_stays_so_at_every_whole_scale() -> None:
    frames = frames_of()
    for scale in range(1, 12):
        large = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        assert torch.equal(resizer(large.shape[1:], (12, 12))(large), frames)  # type: ignore[arg-type]


def test_otsu_parts_two_classes() -> None:
    dark, light = 0.2 + 0.05 * torch.randn(4000), 0.7 + 0.05 * torch.randn(1000)
    both = torch.cat([dark, light]).clamp(0, 1)
    assert otsu_threshold(both) == pytest.approx(0.45, abs=0.08)
    assert otsu_threshold(both[:2000], both[2000:]) == otsu_threshold(both)
    assert otsu_threshold(frames_of()) == pytest.approx(0.5, abs=0.01)
    # By definition: the level that maximises the variance between the classes.
    few = torch.tensor([0.1, 0.15, 0.3, 0.85, 0.9])
    level = otsu_threshold(few)
    assert 0.3 < level < 0.85
    assert 0 <= otsu_threshold(torch.full((5,), 0.5)) <= 1
    assert otsu_threshold(torch.tensor([0.0, float("nan"), 1.0])) == pytest.approx(0.5, abs=0.01)


def test_thresholds_make_black_and_white(tmp_path: Path) -> None:
    frames = frames_of(size=24)
    dim = 0.15 + 0.4 * frames + 0.02 * torch.rand_like(frames)
    dim[3] = float("nan")
    write_video(dim, tmp_path / "dim.npz", 1.0)
    expected = torch.where(dim.isnan(), 0.0, frames)
    for threshold in ("otsu", 0.3):
        data = read_video(tmp_path / "dim.npz", size=24, threshold=threshold)  # type: ignore[arg-type]
        assert torch.equal(data.frames[0], expected)
        assert data.mask[0].all(-1).tolist() == [True, True, True, False, True, True]
    inverted = read_video(tmp_path / "dim.npz", size=24, threshold="otsu", invert=True)
    assert torch.equal(inverted.frames[0], torch.where(dim.isnan(), 0.0, 1.0 - frames))
    grey = read_video(tmp_path / "dim.npz", size=24, invert=True)
    torch.testing.assert_close(grey.frames[0, 0], 1.0 - dim[0])


def test_the_default_type_is_used(tmp_path: Path) -> None:
    write_video(frames_of(), tmp_path / "clip.gif", 10.0)
    torch.set_default_dtype(torch.float32)
    try:
        data = read_video(tmp_path / "clip.gif", size=12)
    finally:
        torch.set_default_dtype(torch.float64)
    assert data.values.dtype == data.times.dtype == torch.float32


def test_films_are_told_from_tables(tmp_path: Path) -> None:
    write_video(frames_of(), tmp_path / "film.npz", 10.0)
    np.savez(tmp_path / "states.npz", time=[0, 1], q=[0, 1])
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    (tmp_path / "table.csv").write_text("time,q")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "run" / "loss.png")
    assert is_video(tmp_path / "film.npz")
    assert is_video(tmp_path)
    assert is_video("gone.mp4")
    for name in ("states.npz", "broken.npz", "table.csv", "empty", "run", "gone.npz", "gone"):
        assert not is_video(tmp_path / name)


# Errors

Write = Callable[[Path], Any]


def _save(**arrays: Any) -> Write:
    def write(path: Path) -> Any:
        np.savez(path / "x.npz", **arrays)

    return write


def _pictures(*sizes: tuple[int, int]) -> Write:
    def write(path: Path) -> None:
        (path / "shots").mkdir()
        for index, size in enumerate(sizes):
            Image.fromarray(np.zeros(size, np.uint8)).save(path / "shots" / f"{index}.png")

    return write


def _bytes(name: str, content: bytes) -> Write:
    def write(path: Path) -> Any:
        (path / name).write_bytes(content)

    return write


def _clip(name: str) -> Write:
    return lambda path: write_video(frames_of(), path / name, 10.0)


def _still_gif(path: Path) -> None:
    pictures = [Image.fromarray(np.uint8(255 * frame.numpy())) for frame in frames_of()]
    pictures[0].save(path / "x.gif", save_all=True, append_images=pictures[1:])


def _mixed(path: Path) -> None:
    _pictures((4, 4))(path)
    _clip("shots/x.gif")(path)


BAD: dict[str, tuple[Write, str, dict[str, Any], str]] = {
    "missing": (_clip("clip.gif"), "clp.gif", {}, r"clp\.gif: there is no such file.*'clip\.gif'"),
    "missing folder": (_clip("clip.gif"), "nowhere", {}, "there is no such file or folder"),
    "extension": (_bytes("x.webm", b"x"), "x.webm", {}, r"unknown extension '\.webm'.*Convert it to"),
    "picture": (_bytes("x.png", b"x"), "x.png", {}, r"Name the folder of the pictures"),
    "no bytes": (_bytes("x.mp4", b""), "x.mp4", {}, r"the file is empty \(0 bytes\)"),
    "damaged mp4": (_bytes("x.mp4", b"x" * 99), "x.mp4", {}, r"x\.mp4: ffmpeg finds no film in it \(.*data"),
    "damaged gif": (_bytes("x.gif", b"x" * 99), "x.gif", {}, r"x\.gif: not a readable GIF"),
    "damaged npz": (_bytes("x.npz", b"PK" * 99), "x.npz", {}, "not a readable NumPy archive"),
    "other npz": (_save(q=[1]), "x.npz", {}, "must hold an array 'frames'; got 'q'"),
    "no rate": (_save(frames=np.eye(2)[None]), "x.npz", {}, "neither 'times' nor 'frame_rate'. Give frame_"),
    "no rate of pictures": (_pictures((4, 4)), "shots", {}, "does not say how fast.*Give frame_rate"),
    "no rate of a gif": (_still_gif, "x.gif", {}, "does not say how long it is shown. Give frame_rate"),
    "bad rate": (_save(frames=np.eye(2)[None], frame_rate=0), "x.npz", {}, "frame_rate must be positive"),
    "times": (_save(frames=np.zeros((3, 2, 2)), times=[0, 1]), "x.npz", {}, r"times must be .*\(3,\)"),
    "colours": (_save(frames=np.zeros((3, 5, 5, 3)), frame_rate=1), "x.npz", {}, "like colours.*Average"),
    "axes": (_save(frames=np.zeros((5, 5)), frame_rate=1), "x.npz", {}, "frames must have shape"),
    "levels": (_save(frames=3 * np.eye(3)[None], frame_rate=1), "x.npz", {}, r"x\.npz: frames must lie in"),
    "bytes of 0 and 1": (
        _save(frames=np.eye(3, dtype=np.uint8)[None], frame_rate=1),
        "x.npz",
        {},
        "1 means white",
    ),
    "sizes": (
        _pictures((4, 4), (4, 5)),
        "shots",
        {"frame_rate": 2},
        r"the first, \(4, 4\); got \(4, 5\) at 0\.5 s",
    ),
    "no films": (
        lambda path: (path / "a").mkdir(),
        "a",
        {},
        "no numbered pictures and no videos",
    ),
    "mixed": (_mixed, "shots", {}, "holds 1 pictures and also the clips 'x.gif'"),
    "still": (_pictures((4, 4), (4, 4)), "shots", {"frame_rate": 1}, "nothing moves in 'shots'.*from 0 to 0"),
    "late start": (_clip("x.gif"), "x.gif", {"start": 9.0}, "two frames are needed; got none. Check start"),
    "short": (_clip("x.mp4"), "x.mp4", {"duration": 0.1}, "at least two frames are needed; got 1"),
    "crop": (_clip("x.gif"), "x.gif", {"crop": (0, 97, 0, 96)}, r"crop must be .* within frames of 96 x 96"),
    "size": (_clip("x.gif"), "x.gif", {"size": 0}, "size must be a number of pixels"),
    "every": (_clip("x.gif"), "x.gif", {"every": 0}, "every must be at least 1"),
    "start": (_clip("x.gif"), "x.gif", {"start": -1.0}, "start must be 0 or more"),
    "duration": (_clip("x.gif"), "x.gif", {"duration": 0.0}, "duration must be a positive number"),
    "frame_rate": (_clip("x.gif"), "x.gif", {"frame_rate": -1.0}, "frame_rate must be a positive number"),
    "threshold": (_clip("x.gif"), "x.gif", {"threshold": 1.0}, "threshold must be 'otsu' or lie between"),
    "threshold word": (_clip("x.gif"), "x.gif", {"threshold": "half"}, "threshold must be 'otsu' or"),
    "dim": (_clip("x.gif"), "x.gif", {"dim": 0}, "dim must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_films_are_refused_in_words(tmp_path: Path, case: str) -> None:
    write, name, options, message = BAD[case]
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        read_video(tmp_path / name, **options)


def test_no_path_is_no_film() -> None:
    with pytest.raises(DataError, match="at least one path"):
        read_video([])


def test_a_missing_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(frames_of(), tmp_path / "clip.mp4", 10.0)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for call in (
        lambda: read_video(tmp_path / "clip.mp4"),
        lambda: write_video(frames_of(), tmp_path / "new.mp4", 10.0),
    ):
        with pytest.raises(ImportError, match=r"pip install vinppl\[video\]"):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("name", "frames", "options", "message"),
    [
        ("x.webm", frames_of(), {}, r"unknown extension '\.webm' of a film\. Write \.gif"),
        ("x.gif", frames_of()[None], {}, "Write one clip at a time"),
        ("x.gif", frames_of()[0], {}, "must have shape"),
        ("x.npz", frames_of()[:0], {}, "not be empty"),
        ("x.gif", 2 * frames_of(), {}, r"must lie in \[0, 1\]"),
        ("x.gif", frames_of() / 0, {}, r"must lie in \[0, 1\]"),
        ("x.gif", frames_of().clone().fill_(float("nan")), {}, "must all be known.*npz"),
        ("x.gif", frames_of(), {"scale": 0}, "scale must be at least 1"),
        ("x.gif", frames_of(), {"frame_rate": 0.0}, "frame_rate must be positive"),
        ("x.gif", frames_of(), {"frame_rate": 200.0}, "more than 100 frames per second"),
        ("x/y.mp4", frames_of(), {}, "ffmpeg cannot write it"),
    ],
)
def test_films_that_cannot_be_written_are_refused(
    tmp_path: Path, name: str, frames: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_video(frames, tmp_path / name, **{"frame_rate": 10.0, **options})
    assert not list(tmp_path.iterdir())


def test_pictures_are_never_mixed_with_others(tmp_path: Path) -> None:
    write_video(frames_of(), tmp_path, 10.0)
    with pytest.raises(DataError, match="must not hold numbered pictures yet; got 6 of them"):
        write_video(frames_of(), tmp_path, 10.0)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_video(frames_of(), tmp_path / "clip.gif", 10.0)
    before = (tmp_path / "clip.gif").read_bytes()
    with contextlib.suppress(DataError):
        write_video(frames_of(), tmp_path / "clip.gif", 200.0)
    assert (tmp_path / "clip.gif").read_bytes() == before
    assert isinstance(read_video(tmp_path / "clip.gif"), Trajectories)
