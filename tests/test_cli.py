"""What the scripts share: data options, plain values and back, finished runs, and how errors end."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from example_data import simulated

from vinppl.cli import DataOptions, VideoOptions, load_data, load_run, plain, rebuild, run_script
from vinppl.data import ColumnSpec, write_csv, write_video
from vinppl.errors import DataError, NonFiniteError
from vinppl.export import write_result
from vinppl.fit import MCMCOptions, SVIOptions, fit_svi
from vinppl.loading import build_model
from vinppl.posterior import from_svi
from vinppl.render import simulate_clips
from vinppl.runs import RunFolder


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "data.csv"
    write_csv(simulated(num_times=20), file)
    return file


def test_data_are_split_in_time(file: Path) -> None:
    whole, none = load_data(file, ColumnSpec(), DataOptions())
    assert none is None
    assert whole.num_times == 20
    assert whole.values.dtype == torch.float64
    train, held_out = load_data(file, ColumnSpec(), DataOptions(train_fraction=0.6))
    assert held_out is not None
    assert (train.num_times, held_out.num_times) == (12, 8)
    assert torch.equal(torch.cat([train.values, held_out.values], 1), whole.values)
    # The type becomes the default one, for models of the user's.
    first, rest = load_data(file, ColumnSpec(), DataOptions(first=10, train_fraction=0.5, dtype="float32"))
    assert rest is not None
    assert (first.num_times, rest.num_times) == (5, 5)
    assert first.values.dtype == torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    alone, _ = load_data(file, ColumnSpec(velocity=()), DataOptions())
    assert alone.num_channels == 1


def test_films_are_data_too(file: Path, tmp_path: Path) -> None:
    film, _ = simulate_clips("pendulum", num_clips=1, num_times=20)
    write_video(film.frames[0], tmp_path / "swing.gif", 10.0)
    write_video(film.frames[0], tmp_path / "swing", 10.0)
    for name, options in (("swing.gif", None), ("swing", VideoOptions(frame_rate=10.0))):
        whole, none = load_data(tmp_path / name, ColumnSpec(), DataOptions(), options)
        assert none is None
        assert torch.equal(whole.frames, film.frames)
    select = DataOptions(first=10, train_fraction=0.6, dtype="float32")
    video = VideoOptions(size=(7, 14), every=2, invert=True, threshold="otsu", dim=2)
    train, held_out = load_data(tmp_path / "swing.gif", ColumnSpec(), select, video)
    assert held_out is not None
    assert train.values.dtype == torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    assert (train.num_times, held_out.num_times, train.dim) == (6, 4, 2)
    assert train.image_shape == held_out.image_shape == (7, 14)
    assert train.values.unique().tolist() == [0.0, 1.0]
    with pytest.raises(DataError, match="Give frame_rate"):
        load_data(tmp_path / "swing", ColumnSpec(), DataOptions())
    file.rename(tmp_path / "swing" / "data.csv")
    for picture in (tmp_path / "swing").glob("*.png"):
        picture.unlink()
    with pytest.raises(DataError, match=r"is a directory.*data\.csv"):
        load_data(tmp_path / "swing", ColumnSpec(), DataOptions())


def test_bad_data_options_are_named(file: Path) -> None:
    for options, message in (
        ({"train_fraction": 0.0}, r"train_fraction must lie in \(0, 1\]"),
        ({"first": 1}, "first must be at least 2; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DataOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leaves one part empty"):
        load_data(file, ColumnSpec(), DataOptions(train_fraction=0.99))
    with pytest.raises((DataError, FileNotFoundError), match=r"gone\.csv"):
        load_data(file.with_name("gone.csv"), ColumnSpec(), DataOptions())


@pytest.mark.parametrize(
    "options",
    [
        ColumnSpec(position=("a", "b"), drive=("u",)),
        DataOptions(first=5),
        SVIOptions(num_steps=3),
        MCMCOptions(num_workers=None),
        VideoOptions(size=(20, 30), crop=(0, 5, 0, 5), threshold="otsu", frame_rate=12.5),
    ],
)
def test_options_survive_json(options: Any) -> None:
    text = json.dumps(plain(options))
    assert rebuild(type(options), json.loads(text)) == options


def finished_run(file: Path, out: Path) -> RunFolder:
    select = DataOptions(train_fraction=0.5)
    options = {"kind": "svi", "model": "NoisyStates", "data": str(file), "set": ["hidden_sizes=[4]"]}
    train, _ = load_data(file, ColumnSpec(), select)
    model = build_model("NoisyStates", train, options["set"])
    folder = RunFolder(out)
    folder.start(
        {**options, "columns": plain(ColumnSpec()), "select": plain(select)}, data=train.fingerprint()
    )
    svi = SVIOptions(guide="mean_field", num_steps=3, check_every=1, start="prior", num_particles=1)
    result = fit_svi(model, train, svi, checkpoint=folder.checkpoint / "svi.pt")
    write_result(from_svi(result, num_draws=10), folder.result)
    return folder


def test_finished_runs_load(file: Path, tmp_path: Path) -> None:
    folder = finished_run(file, tmp_path / "run")
    run = load_run(folder.path)
    assert run.train.num_times == 10
    assert run.held_out is not None
    draws = run.draws(4)
    assert draws["initial_position"].shape == (4, 3, 1)
    assert run.draws(100)["noise_scale"].shape[0] == 10
    name = next(name for name in run.parameters if "weight" in name)
    saved = torch.load(folder.checkpoint / "svi.pt", weights_only=True)["best"]
    assert torch.equal(run.parameters[name], saved[name])
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        run.draws(0)


def test_unfinished_and_changed_runs_are_named(file: Path, tmp_path: Path) -> None:
    folder = finished_run(file, tmp_path / "run")
    content = folder.result.read_bytes()
    folder.result.unlink()
    with pytest.raises(DataError, match=r"has no result yet\. Run inference/svi\.py again"):
        load_run(folder.path)
    folder.result.write_bytes(content)
    write_csv(simulated(num_times=20, seed=8), file)
    with pytest.raises(DataError, match="has changed since"):
        load_run(folder.path)
    with pytest.raises(DataError, match="holds no run"):
        load_run(tmp_path / "none")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a script."""

    steps: int = 1


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, None, ""),
        (DataError("row 3 is bad."), 2, "error: row 3 is bad."),
        (ImportError("videos need a plugin"), 2, "error: videos need a plugin"),
        (NonFiniteError("the loss is not finite"), 3, "error: the loss is not finite"),
        (OSError("disk full"), 4, "error: disk full. What was written before is kept"),
        (KeyboardInterrupt(), 130, "error: interrupted. What was done is saved"),
    ],
)
def test_scripts_end_with_a_line_and_a_status(
    error: BaseException | None,
    status: int | None,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--steps", "3"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    seen = []

    def main(config: Config) -> None:
        seen.append(config.steps)
        if error is not None:
            raise error

    with warnings.catch_warnings():
        if status is None:
            run_script(main, Config, "A script.")
        else:
            with pytest.raises(SystemExit) as caught:
                run_script(main, Config, "A script.")
            assert caught.value.code == status
    assert seen == [3]
    shown = capsys.readouterr().err
    assert shown.startswith(text)
    assert "Traceback" not in shown
