"""Readers: what they accept, and one clear message for everything that they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vinppl.data import ColumnSpec, Trajectories, column_spec, read_trajectories, write_csv
from vinppl.errors import DataError

MEASURED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WriteText = Callable[..., Path]


@pytest.fixture
def write_text(tmp_path: Path) -> WriteText:
    def write(text: str | bytes, name: str = "swing.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def table(num_trajectories: int = 3, num_times: int = 6, **columns: object) -> pd.DataFrame:
    t = np.tile(0.1 * np.arange(num_times), num_trajectories)
    n = np.repeat(np.arange(num_trajectories), num_times)
    return pd.DataFrame({"trajectory": n, "time": t, "q": np.sin(t + n), "v": np.cos(t + n), **columns})


def same(a: Trajectories, b: Trajectories) -> bool:
    return a.fingerprint() == b.fingerprint()


# What is accepted


def test_csv_with_default_columns(write_text: WriteText) -> None:
    data = read_trajectories(
        write_text("trajectory,time,q,v\na,0,1,2\na,1,3,\nb,0.5,5,6\nb,0.75,7,8\nb,1,9,10\n")
    )
    assert data.names == ("a", "b")
    assert data.lengths.tolist() == [2, 3]
    assert data.times.tolist() == [[0.0, 1.0, 1.0], [0.5, 0.75, 1.0]]
    assert data.values[0].tolist() == [[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]]
    assert data.mask[0].tolist() == [[True, True], [True, False], [False, False]]
    assert data.num_observed == 9
    assert [c.quantity for c in data.channels] == ["position", "velocity"]
    assert data.coordinate_names == ("q",)


@pytest.mark.parametrize(
    ("name", "separator", "joint"),
    [
        ("a.csv", "auto", ","),
        ("a.tsv", "auto", "\t"),
        ("a.dat", "auto", "  "),
        ("a.txt", "auto", ";"),
        ("a.TXT", "space", " \t"),
        ("a.txt", "tab", "\t"),
        ("a.txt", ";", " ; "),
        ("a.csv", ",", ", "),
    ],
)
def test_separators(write_text: WriteText, name: str, separator: str, joint: str) -> None:
    rows = [["time", "q"], ["0", "1.5"], ["1", "2.5"]]
    path = write_text("\r\n".join(joint.join(row) for row in rows) + "\r\n", name)
    data = read_trajectories(path, ColumnSpec(separator=separator))  # type: ignore[arg-type]
    assert data.values[0, :, 0].tolist() == [1.5, 2.5]
    assert data.names == ("0",)


def test_numbered_columns_are_found_by_default(write_text: WriteText) -> None:
    data = read_trajectories(write_text("time,q0,q1,v0,q3\n0,1,2,3,4\n1,2,3,4,5\n"))
    assert [c.name for c in data.channels] == ["q0", "q1", "v0"]
    assert [c.coordinate for c in data.channels] == [0, 1, 0]
    assert data.channel_index.tolist() == [0, 1, 2]
    assert data.dim == 2


def test_velocity_only_and_empty_position() -> None:
    data = read_trajectories(table(), ColumnSpec(position=()))
    assert [c.name for c in data.channels] == ["v"]
    assert data.coordinate_names == ("q0",)
    assert data.channel_index.tolist() == [1]


def test_comments_blank_lines_byte_order_mark_and_trailing_separators(write_text: WriteText) -> None:
    text = "\ufeff# made by a logger\ntime,q,\n\n0,1,\n# pause\n1,2,\n\n"
    data = read_trajectories(write_text(text), ColumnSpec(comment="#"))
    assert data.values[0, :, 0].tolist() == [1.0, 2.0]


def test_headerless_file(write_text: WriteText) -> None:
    path = write_text("%o v\r\n  0 0.0 1.0 \r\n  0 0.5 2.0 \r\n", "p.txt")
    spec = ColumnSpec(time="t", position=("x",), names=("k", "t", "x"), skip_rows=1, trajectory="k")
    assert read_trajectories(path, spec).values[0, :, 0].tolist() == [1.0, 2.0]


def test_interleaved_trajectories_are_grouped() -> None:
    frame = table()
    assert same(read_trajectories(frame.sort_values("time", kind="stable")), read_trajectories(frame))


def test_sort_orders_rows_by_time() -> None:
    frame = table()
    shuffled = frame.iloc[np.random.default_rng(0).permutation(len(frame))]
    data = read_trajectories(shuffled, ColumnSpec(sort=True))
    expected = read_trajectories(frame)
    assert same(data.select([data.names.index(name) for name in expected.names]), expected)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 1, 2, 2], ("1", "2")),
        ([1.0, 1.0, 2.0, 2.0], ("1", "2")),
        (["007", "007", "8", "8"], ("007", "8")),
        ([0.5, 0.5, 2.0, 2.0], ("0.5", "2.0")),
        (["a", "a", "b", "b"], ("a", "b")),
    ],
)
def test_labels(labels: list[object], names: tuple[str, ...], tmp_path: Path) -> None:
    frame = pd.DataFrame({"trajectory": labels, "time": [0, 1, 0, 1], "q": [1, 2, 3, 4]})
    assert read_trajectories(frame).names == names
    frame.to_csv(tmp_path / "labels.csv", index=False)
    assert read_trajectories(tmp_path / "labels.csv").names == names


def test_labels_written_in_two_ways_are_one_trajectory() -> None:
    frame = pd.DataFrame({"trajectory": ["1", "1.0", "2", "2"], "time": [0, 1, 0, 1], "q": [1, 2, 3, 4]})
    assert read_trajectories(frame).names == ("1", "2")


def test_drive_and_units() -> None:
    spec = ColumnSpec(drive=("u",), angle=("q",), position_unit="rad", velocity_unit="rad/s", time_unit="s")
    data = read_trajectories(table(u=2.0), spec)
    assert data.drive is not None
    assert data.drive.shape == (3, 6, 1)
    assert bool((data.drive == 2).all())
    assert data.drive_names == ("u",)
    assert data.channels[0].angle
    assert not data.channels[1].angle
    assert [c.unit for c in data.channels] == ["rad", "rad/s"]
    assert data.time_unit == "s"


def test_dtype() -> None:
    assert read_trajectories(table(), dtype=torch.float32).values.dtype == torch.float32


def test_nullable_integer_and_object_columns() -> None:
    frame = pd.DataFrame(
        {"time": [0, 1, 2], "q": pd.array([1, None, 3], dtype="Int64"), "v": [1, "nan", "2.5"]}
    )
    data = read_trajectories(frame)
    assert data.mask[0].tolist() == [[True, True], [False, False], [True, True]]
    assert data.values[0, 2].tolist() == [3.0, 2.5]


# Round trips


def ragged() -> Trajectories:
    frame = table(u0=np.linspace(0, 1, 18), u1=0.1).drop(index=[5, 16, 17])
    frame.loc[[2, 9], "q"] = np.nan
    return read_trajectories(frame, ColumnSpec(drive=("u0", "u1")))


def test_frame_round_trip() -> None:
    data = ragged()
    assert same(read_trajectories(data.to_frame(), column_spec(data)), data)


def test_csv_round_trip_is_exact(tmp_path: Path) -> None:
    data = ragged()
    write_csv(data, tmp_path / "out.csv")
    assert same(read_trajectories(tmp_path / "out.csv", column_spec(data)), data)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_parquet_round_trip(tmp_path: Path) -> None:
    data = ragged()
    data.to_frame().to_parquet(tmp_path / "out.parquet")
    assert same(read_trajectories(str(tmp_path / "out.parquet"), column_spec(data)), data)


def test_parquet_with_named_index(tmp_path: Path) -> None:
    table().set_index("time").to_parquet(tmp_path / "indexed.parquet")
    assert same(read_trajectories(tmp_path / "indexed.parquet"), read_trajectories(table()))


def test_npz_round_trip(tmp_path: Path) -> None:
    data = ragged()
    arrays = data.to_numpy()
    np.savez(
        tmp_path / "out.npz",
        time=arrays["times"],
        q=arrays["values"][..., :1],
        v=arrays["values"][..., 1:],
        drive=arrays["drive"],
        names=np.array(data.names),
    )
    assert same(read_trajectories(tmp_path / "out.npz"), data)


def test_npz_with_shared_times_mask_and_two_coordinates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, v = rng.normal(size=(4, 5, 2)), rng.normal(size=(4, 5, 2))
    mask = rng.random((4, 5)) > 0.3
    np.savez(tmp_path / "x.npz", time=np.arange(5), q=q, v=v, mask=mask)
    data = read_trajectories(tmp_path / "x.npz", ColumnSpec(angle=("q1",)))
    assert [c.name for c in data.channels] == ["q0", "q1", "v0", "v1"]
    assert [c.angle for c in data.channels] == [False, True, False, False]
    assert data.num_observed == 4 * mask.sum()
    assert data.grid().times.shape == (5,)


def test_npz_named_drives(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", t=[0, 1, 2], x=[1, 2, 4], force=[5, 6, 7])
    data = read_trajectories(tmp_path / "x.npz", ColumnSpec(time="t", position=("x",), drive=("force",)))
    assert data.drive is not None
    assert data.drive[0, :, 0].tolist() == [5.0, 6.0, 7.0]
    assert data.drive_names == ("force",)


def test_schmidt_lipson_pendulum() -> None:
    path = MEASURED / "schmidt_lipson" / "real_pend_h_1.txt"
    if not path.exists():
        pytest.skip("the measured pendulum of Schmidt and Lipson (2009) is not here")
    spec = ColumnSpec(
        time="t",
        trajectory="trial",
        position=("theta",),
        velocity=("omega",),
        angle=("theta",),
        names=("trial", "t", "theta", "omega"),
        skip_rows=1,
        separator="space",
    )
    data = read_trajectories(path, spec)
    assert (data.num_trajectories, data.num_times, data.dim) == (1, 556, 1)
    assert data.values[0, 0].tolist() == [1.1383885512243586, 0.9197795905867725]
    gaps = data.times.diff()
    assert int((gaps > 0.2).sum()) == 10  # dropped frames are kept as gaps
    assert float(gaps.max()) == pytest.approx(0.5)
    assert data.grid(max_step_size=1 / 6).num_steps > 555
    assert bool(data.mask.all())


# What is refused. Each entry: text of the file, options, and what the message must say.

GOOD = "trajectory,time,q,v\n"
ROWS = "0,0,1,1\n0,1,2,3\n"
BAD_TEXT = {
    "missing column": ("tme,q\n0,1\n1,2\n", {}, r"no column 'time'.*'tme', 'q'.*Did you mean 'tme'"),
    "missing columns": ("time,q\n0,1\n", {"drive": ("u", "w")}, r"no column 'u', 'w'.*Set drive to"),
    "no channel": ("time,x\n0,1\n1,2\n", {}, r"no position or velocity column.*'time', 'x'"),
    "explicit velocity": ("time,q\n0,1\n1,2\n", {"velocity": ("v",)}, r"no column 'v'.*Set velocity"),
    "explicit trajectory": ("time,q\n0,1\n1,2\n", {"trajectory": "run"}, r"no column 'run'.*Set trajectory"),
    "no header": ("0,1\n1,2\n2,5\n", {}, r"no header: give names="),
    "text": (
        GOOD + ROWS + "0,2,oops,1\n0,3,x,1\n",
        {},
        r"line 4, column 'q': 'oops' is not a number \(2 such",
    ),
    "text in time": ("time,q\n0,1\n12:30,2\n", {}, r"line 3, column 'time': '12:30' is not a number"),
    "text in drive": ("time,q,u\n0,1,on\n1,2,1\n", {"drive": ("u",)}, r"line 2, column 'u': 'on'"),
    "decimal comma": ("time;q\n0;1,5\n1;2,5\n", {}, r"line 2, column 'q': '1,5'.*with a point"),
    "decimal commas": ("time,q\n0,0,1,5\n0,1,2,5\n", {}, r"line 2: the row has 4 fields.*header gives 2"),
    "wide row": ("time,q\n0,1\n1,2\n2,3,4\n", {}, r"line 4: the row has 3 fields where 2 are expected"),
    "names too short": ("0 1 2\n1 2 3\n", {"names": ("time", "q")}, r"line 1: .*3 fields, but names gives 2"),
    "unsorted": (GOOD + ROWS + "0,0.5,1,1\n", {}, r"line 4, column 'time': time 0.5 follows 1 .*sort=True"),
    "restart": (
        "time,q\n0,1\n1,2\n0,1\n1,3\n",
        {},
        r"line 4.*If a new trajectory starts here, name a column",
    ),
    "repeated time": (GOOD + ROWS + "0,1,5,5\n", {}, r"line 4, column 'time': time 1 is repeated"),
    "all missing": (
        GOOD + "0,0,1,\n0,1,2,\n",
        {},
        r"column 'v': every value is missing. Leave the column out",
    ),
    "constant": (GOOD + "0,0,3,1\n0,1,3,2\n", {}, r"column 'q': the value is 3 in every row.*Leave the col"),
    "one sample": (GOOD + ROWS + "7,0,1,1\n", {}, r"line 4: trajectory '7' has only one sample. Remove it"),
    "many single": (GOOD + "1,0,1,1\n2,0,1,1\n", {}, r"line 2: trajectory '1'.*and so have 1 others"),
    "one row": ("time,q\n0,1\n", {}, r"line 2: .*only one sample. At least two rows"),
    "infinite": (GOOD + ROWS + "0,2,-inf,1\n", {}, r"line 4, column 'q': the value is infinite"),
    "missing time": (GOOD + ROWS + "0,,3,1\n", {}, r"line 4, column 'time': the time is missing"),
    "infinite time": (GOOD + ROWS + "0,inf,3,1\n", {}, r"line 4, column 'time': the time is infinite"),
    "missing label": (GOOD + ROWS + ",2,3,1\n", {}, r"line 4, column 'trajectory': the label .*missing"),
    "missing drive": (
        "time,q,u\n0,1,1\n1,2,\n",
        {"drive": ("u",)},
        r"line 3, drive 'u': the input is missing",
    ),
    "infinite drive": ("time,q,u\n0,1,1\n1,2,inf\n", {"drive": ("u",)}, r"line 3, drive 'u': .* infinite"),
    "wrapped angle": ("time,q\n0,3\n1,-3\n2,-2.9\n", {"angle": ("q",)}, r"line 3, column 'q': .*unwrap=True"),
    "unknown angle": ("time,q\n0,3\n1,4\n", {"angle": ("Q",)}, r"angle names 'Q'.*Did you mean 'q'"),
    "repeated column": ("time,q,q\n0,1,2\n1,2,3\n", {}, r"more than one column is called 'q'.*Rename"),
    "used twice": ("time,q\n0,1\n1,2\n", {"drive": ("q",)}, r"'q' is used as position and as drive"),
    "twice in a role": ("time,q\n0,1\n1,2\n", {"position": ("q", "q")}, r"'q' is used twice as position"),
    "header only": ("time,q\n", {}, r"no rows of data below the header"),
    "blank": ("\n\n \n", {}, r"holds no lines"),
    "skipped": ("time,q\n0,1\n", {"skip_rows": 5}, r"holds no lines below those skipped"),
    "empty": ("", {}, r"the file is empty \(0 bytes\)"),
    "open quote": ('time,q\n0,1\n1,"2\n2,3\n', {}, r"swing.csv.*(not a number|cannot be read as a table)"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_refused(write_text: WriteText, case: str) -> None:
    text, options, message = BAD_TEXT[case]
    path = write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_trajectories(path, ColumnSpec(**options))  # type: ignore[arg-type]
    assert str(path) in str(caught.value)


def test_line_numbers_count_comments_blank_lines_and_skipped_rows(write_text: WriteText) -> None:
    path = write_text("junk\n# c\n\ntime,q\n\n0,1\n# c\n1,2\n\n2,oops\n")
    with pytest.raises(DataError, match="line 10, column 'q'"):
        read_trajectories(path, ColumnSpec(skip_rows=1, comment="#"))


def test_line_of_a_wide_row_below_skipped_rows(write_text: WriteText) -> None:
    path = write_text("junk\njunk\ntime,q\n0,1\n1,2\n2,3,4\n")
    with pytest.raises(DataError, match="line 6"):
        read_trajectories(path, ColumnSpec(skip_rows=2))


def test_line_number_of_sorted_rows(write_text: WriteText) -> None:
    path = write_text("trajectory,time,q\nb,1,1\na,0,2\nb,0,3\na,1,inf\n")
    with pytest.raises(DataError, match="line 5, column 'q'"):
        read_trajectories(path, ColumnSpec(sort=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\0\0\0", "looks like binary"),
        ("time,q\n0,1\n".encode("utf-16"), "looks like UTF-16 text"),
        (b"time,q,\xb0\n0,1,2\n", r"not UTF-8 text \(byte 7"),
        (b"time,q\n0,1\n1,2\n\xff\xfe,3\n", "not UTF-8 text"),
    ],
)
def test_undecodable_files(write_text: WriteText, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_trajectories(write_text(content))


def test_paths_that_are_no_data_file(write_text: WriteText, tmp_path: Path) -> None:
    path = write_text(GOOD + ROWS)
    with pytest.raises(DataError, match=r"there is no such file. Did you mean 'swing.csv'"):
        read_trajectories(tmp_path / "swings.csv")
    with pytest.raises(DataError, match=r"no such file. Check the path"):
        read_trajectories(tmp_path / "nowhere" / "swing.csv")
    with pytest.raises(DataError, match=r"is a directory. Name a file in it: 'swing.csv'"):
        read_trajectories(tmp_path)
    with pytest.raises(DataError, match=r"unknown extension '.xlsx'. Convert or rename"):
        read_trajectories(path.rename(tmp_path / "swing.xlsx"))
    with pytest.raises(DataError, match="must be a path or a data frame"):
        read_trajectories([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "what"), [("x.parquet", "Parquet file"), ("x.npz", "NumPy archive")])
@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04 cut short", b"PAR1"])
def test_broken_archives(write_text: WriteText, name: str, what: str, content: bytes) -> None:
    with pytest.raises(DataError, match=f"not a readable {what}"):
        read_trajectories(write_text(content, name))


def test_missing_parquet_column(tmp_path: Path) -> None:
    table().drop(columns="time").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: no column 'time'"):
        read_trajectories(tmp_path / "x.parquet")


BAD_ARRAYS = {
    "missing": ({"t": [0, 1], "q": [1, 2]}, {}, "no column 'time'.*'t', 'q'"),
    "short": ({"time": [0, 1, 2], "q": [1, 2]}, {}, r"array 'q' of shape \(2,\) does not fit times"),
    "axis": ({"time": [0, 1, 2], "q": np.ones((4, 3))}, {}, r"Add the axis of columns"),
    "drive": (
        {"time": [0, 1, 2], "q": [1, 2, 4], "drive": [1, 2]},
        {},
        r"drive of shape \(2,\) does not fit",
    ),
    "mask": ({"time": [0, 1, 2], "q": [1, 2, 4], "mask": [True]}, {}, "mask must be boolean with shape"),
    "text": ({"time": [0, 1], "q": ["a", "b"]}, {}, "array 'q' must be an array of real numbers"),
    "objects": ({"time": [0, 1], "q": np.array([1, None])}, {}, "without arrays of objects"),
    "unsorted": ({"time": [0, 2, 1], "q": [1, 2, 4]}, {}, r"trajectory '0', sample 2 .*sort=True"),
    "repeated": ({"time": [0, 1, 1], "q": [1, 2, 4]}, {}, r"trajectory '0', sample 2 .*is repeated"),
    "numbers": (
        {"time": [0, 1], "q": np.ones((2, 2, 1)), "v": np.ones((3, 2, 1))},
        {},
        "different numbers of tr",
    ),
    "angle": ({"time": [0, 1], "q": [1, 2]}, {"angle": ("v",)}, "angle names 'v', which is not a position"),
    "names": ({"time": [0, 1], "q": [1, 2], "names": ["a", "b"]}, {}, "2 names are given for 1"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_archives_are_refused(tmp_path: Path, case: str) -> None:
    arrays, options, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        read_trajectories(tmp_path / "x.npz", ColumnSpec(**options))  # type: ignore[arg-type]


def test_bad_frames_are_refused() -> None:
    frame = table()
    with pytest.raises(DataError, match="no rows of data"):
        read_trajectories(frame.iloc[:0])
    with pytest.raises(DataError, match=r"holds dates or durations.*total_seconds"):
        read_trajectories(frame.assign(time=pd.Timestamp("2020-01-01")))
    with pytest.raises(DataError, match="complex numbers"):
        read_trajectories(frame.assign(q=1j))
    with pytest.raises(
        DataError, match=r"data frame, row 7 \(counting from 0\), column 'q': the value is inf"
    ):
        read_trajectories(frame.assign(q=frame["q"].where(frame.index != 7, np.inf)))
    with pytest.raises(DataError, match="more than one column is called 'v'"):
        read_trajectories(frame.set_axis(["trajectory", "time", "v", "v"], axis=1), ColumnSpec(position=()))
    with pytest.raises(DataError, match="must be a pandas DataFrame"):
        Trajectories.from_frame({"time": [0, 1]})  # type: ignore[arg-type]


def test_padding_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinppl.data.frames._MAX_PADDED_CELLS", 1000)
    lengths = np.array([2] * 200 + [100])
    frame = pd.DataFrame({"trajectory": np.repeat(np.arange(201), lengths)})
    frame["time"] = frame.groupby("trajectory").cumcount()
    frame["q"] = np.sin(frame["time"])
    with pytest.raises(DataError, match="padding would take most of the memory"):
        read_trajectories(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": (), "velocity": ()}, "at least one position or velocity"),
        ({"position": "theta"}, r"position must be a tuple of column names.*Write \('theta',\)"),
        ({"separator": "|"}, "separator must be one of"),
        ({"comment": "//"}, "a single character"),
        ({"skip_rows": -1}, "skip_rows must be 0 or more"),
        ({"names": ("a", "a")}, "names must differ"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ColumnSpec(**options)  # type: ignore[arg-type]


def test_unwrap_counts_revolutions_of_each_trajectory() -> None:
    t = np.linspace(0, 3, 31)
    true = np.concatenate([4 * t, 1 - 5 * t])
    wrapped = np.angle(np.exp(1j * true))
    wrapped[[4, 17, 31, 50]] = np.nan  # one of them the first sample of a trajectory
    frame = pd.DataFrame({"trajectory": np.repeat([0, 1], 31), "time": np.tile(t, 2), "q": wrapped})
    data = read_trajectories(frame, ColumnSpec(angle=("q",), unwrap=True))
    # Exact up to the rounding of angles of at most 15 rad.
    torch.testing.assert_close(
        data.values[data.mask], torch.from_numpy(true[~np.isnan(wrapped)]), atol=1e-13, rtol=0
    )
    with pytest.raises(DataError, match="about -1 full turn"):
        read_trajectories(frame, ColumnSpec(angle=("q",)))


def test_a_jump_between_trajectories_or_in_a_plain_position_is_no_fault() -> None:
    frame = pd.DataFrame({"trajectory": [0, 0, 1, 1], "time": [0, 1, 0, 1], "q": [3.0, 3.1, -3.1, -3.0]})
    assert read_trajectories(frame, ColumnSpec(angle=("q",))).num_trajectories == 2
    assert read_trajectories(frame.assign(trajectory=0, time=range(4))).num_trajectories == 1


def test_column_spec_refuses_channels_out_of_order() -> None:
    data = Trajectories.from_arrays([0, 1], [[1.0, 2.0], [2.0, 3.0]], quantities=("velocity", "position"))
    with pytest.raises(DataError, match=r"channel 'q' .* is out of order"):
        column_spec(data)
