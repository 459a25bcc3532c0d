"""What the command-line scripts share: options of the data, run folders, errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import textwrap
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import tyro
from torch import Tensor

from vinppl._checks import require
from vinppl.checkpoint import load_checkpoint
from vinppl.data import ColumnSpec, Trajectories, is_video, read_trajectories, read_video
from vinppl.draws import Draws
from vinppl.errors import ConvergenceWarning, DataError, NonFiniteError, NumericalWarning, SolveError
from vinppl.export import get_group, group_names, read_result
from vinppl.loading import build_model
from vinppl.runs import RunFolder

__all__ = [
    "DataOptions",
    "LoadedRun",
    "VideoOptions",
    "load_data",
    "load_run",
    "plain",
    "rebuild",
    "run_options",
    "run_script",
]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which measurements to use.

    Attributes:
        first: use only the first samples of every trajectory; all by default.
        train_fraction: share of every trajectory's samples that is fitted; the later ones are held out.
        dtype: floating type of everything computed; `auto` takes float32 for films, else float64.
        device: torch device, such as cpu or cuda.
    """

    first: int | None = None
    train_fraction: float = 1.0
    dtype: Literal["auto", "float64", "float32"] = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(0 < self.train_fraction <= 1, "train_fraction must lie in (0, 1]", self.train_fraction)
        require(self.first is None or self.first >= 2, "first must be at least 2", self.first)


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """How to read films.

    Attributes:
        size: side, or height and width, of the frames in pixels.
        frame_rate: frames per second, instead of what the file says; a folder of pictures needs it.
        every: keep every so many frames.
        start: seconds to leave out at the beginning.
        duration: seconds to keep from there on; all by default.
        crop: part of the picture: first row and the row after the last, first column and the one after the
            last.
        threshold: level from 0 to 1 above which a pixel becomes white and else black, or otsu, which finds
            it; grey by default.
        invert: for dark bodies on a light background.
        dim: number of generalised coordinates behind the films.
    """

    size: int | tuple[int, int] = 28
    frame_rate: float | None = None
    every: int = 1
    start: float = 0.0
    duration: float | None = None
    crop: tuple[int, int, int, int] | None = None
    threshold: float | Literal["otsu"] | None = None
    invert: bool = False
    dim: int = 1


def load_data(
    file: str | Path, columns: ColumnSpec, options: DataOptions, video: VideoOptions | None = None
) -> tuple[Trajectories, Trajectories | None]:
    """Return the measurements to fit and those held out (`None` for none).

    Their dtype becomes torch's default, so that a user's model makes its own tensors in it.

    Args:
        file: where they are: a table, an archive of arrays, or a film (see `is_video`).
        columns: which column is what; not for films.
        options: which of them to use.
        video: how to read a film.

    Raises:
        DataError: if the file or what it holds cannot be used.
    """
    if columns.trajectory == "None":  # as written on a command line
        columns = dataclasses.replace(columns, trajectory=None)
    film = is_video(file)
    name = options.dtype if options.dtype != "auto" else "float32" if film else "float64"
    dtype = getattr(torch, name)
    torch.set_default_dtype(dtype)
    if film:
        data = read_video(file, **vars(video or VideoOptions()))
    else:
        data = read_trajectories(file, columns, dtype=dtype)
    data = data.to(device=options.device)
    if options.first is not None:
        data = data.first(options.first)
    return data.split_by_time(options.train_fraction) if options.train_fraction < 1 else (data, None)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A finished run, with everything needed to go on from it.

    Attributes:
        folder: where it lies.
        options: its options, as plain values.
        model: its model, built anew.
        fitted: the measurements that were fitted.
        train: all of them, or the last that the posterior's initial states belong to (with windows, or a
            guide that reads a few samples), where forecasts begin.
        held_out: those that were not, `None` for none.
        posterior: its ArviZ object.
        parameters: learned parameters by name, unconstrained; empty for NUTS.
    """

    folder: RunFolder
    options: dict[str, Any]
    model: Any
    fitted: Trajectories
    train: Trajectories
    held_out: Trajectories | None
    posterior: Any
    parameters: dict[str, Tensor]

    def draws(self, num_draws: int) -> Draws:
        """Return evenly thinned posterior draws, each `(num_draws, *site)`."""
        require(num_draws >= 1, "num_draws must be at least 1", num_draws)
        dataset = get_group(self.posterior, "posterior")
        total = dataset.sizes["chain"] * dataset.sizes["draw"]
        chosen = np.unique(np.linspace(0, total - 1, min(num_draws, total)).round().astype(int))
        flat = {
            name: array.values.reshape(total, *array.shape[2:]) for name, array in dataset.data_vars.items()
        }
        return {
            str(name): torch.as_tensor(values[chosen]).to(self.train.values) for name, values in flat.items()
        }


def load_run(path: str | Path) -> LoadedRun:
    """Read the folder of a finished run and rebuild its data and model.

    Raises:
        DataError: if the folder holds no finished run, or its data have changed.
    """
    folder = RunFolder(path)
    config = folder.config()
    options = config["options"]
    if not folder.result.exists():
        raise DataError(
            f"{folder.path} has no result yet. Run inference/{options['kind']}.py again to finish it."
        )
    columns, select = rebuild(ColumnSpec, options["columns"]), rebuild(DataOptions, options["select"])
    video = rebuild(VideoOptions, options.get("video", {}))
    train, held_out = load_data(options["data"], columns, select, video)
    if train.fingerprint() != config.get("data"):
        raise DataError(
            f"{options['data']} has changed since {folder.path} was fitted. Restore it, or fit again."
        )
    model = build_model(options["model"], train, options["set"])
    saved = load_checkpoint(folder.checkpoint / "svi.pt") if options["kind"] == "svi" else None
    parameters = {} if saved is None else {k: v.to(train.values.device) for k, v in saved["best"].items()}
    posterior = read_result(folder.result)
    missing = sorted({"posterior", "constant_data"} - set(group_names(posterior)))
    if missing:
        raise DataError(
            f"{folder.result} holds no {' and no '.join(missing)}. "
            f"Run inference/{options['kind']}.py again to write it anew."
        )
    count = get_group(posterior, "constant_data")["times"].shape[-1]
    return LoadedRun(folder, options, model, train, train.last(count), held_out, posterior, parameters)


def rebuild(config_type: Any, values: dict[str, Any]) -> Any:
    """Return an options dataclass from plain values, nested ones included."""
    hints = typing.get_type_hints(config_type)
    built = {}
    for name, value in values.items():
        nested = dataclasses.is_dataclass(hints[name]) and isinstance(value, dict)
        built[name] = (
            rebuild(hints[name], value) if nested else tuple(value) if isinstance(value, list) else value
        )
    return config_type(**built)


def run_options(kind: str, config: Any) -> dict[str, Any]:
    """Return what identifies a run: its options as plain values, files by their full path.

    Leaves out where it is written (`out`, `overwrite`), so that a folder can be moved or renamed.
    """
    options = {name: value for name, value in plain(config).items() if name not in ("out", "overwrite")}
    options["data"] = str(Path(options["data"]).resolve())
    place, colon, name = options["model"].rpartition(":")
    if place.endswith(".py"):
        options["model"] = f"{Path(place).resolve()}{colon}{name}"
    return {"kind": kind, **options}


def plain(options: Any) -> Any:
    """Return options as values that JSON can hold."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {field.name: plain(getattr(options, field.name)) for field in dataclasses.fields(options)}
    if isinstance(options, Path):
        return str(options)
    if isinstance(options, tuple | list):
        return [plain(item) for item in options]
    return options


def run_script(main: Callable[[Any], None], config_type: type, doc: str | None) -> None:
    """Parse the command line into `config_type` and run `main`; end with a clear line, never a traceback.

    Exit status: 0 done, 2 wrong input or options, 3 a numerical failure, 4 a file that could not be
    read or written, 130 interrupted.
    """
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = _show_warning
    config = _parse(config_type, doc, sys.argv[1:])
    try:
        main(config)
    except (DataError, ImportError, ValueError, TypeError) as error:
        _fail(str(error), 2, error)
    except (NonFiniteError, SolveError) as error:
        _fail(str(error), 3, error)
    except RuntimeError as error:
        _fail(str(error), 3)
    except OSError as error:
        _fail(f"{error}. What was written before is kept; run the same command to resume.", 4, error)
    except KeyboardInterrupt:
        _fail("interrupted. What was done is saved; run the same command to resume.", 130)


def _parse(config_type: type, doc: str | None, arguments: list[str]) -> Any:
    """Return the options; end with one line where the command line or a value is wrong."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            _fail(f"{flag} is given twice. Several values follow one {flag}, separated by spaces.", 2)
    captured = io.StringIO()
    asks_for_help = "--help" in flags or "-h" in arguments
    try:
        with contextlib.nullcontext() if asks_for_help else _framed_messages(captured):
            return tyro.cli(
                config_type,
                description=_with_tables(doc or ""),
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _fail(_unboxed(captured.getvalue()), 2)
    except (ValueError, TypeError) as error:
        _fail(str(error), 2)


def _with_tables(doc: str) -> str:
    """Return a description with its tables indented: tyro flows lines together that begin with a letter."""
    paragraphs = doc.split("\n\n")
    tables = (re.search(r"^\S.* {3}", paragraph, re.MULTILINE) for paragraph in paragraphs)
    pairs = zip(paragraphs, tables, strict=True)
    return "\n\n".join(textwrap.indent(text, "    ") if is_table else text for text, is_table in pairs)


@contextlib.contextmanager
def _framed_messages(captured: io.StringIO) -> Iterator[None]:
    """Capture tyro's messages as it writes them to a wide UTF-8 terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(captured):
            yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _unboxed(text: str) -> str:
    """Return what a framed message of tyro's says, as one line, with the options that it suggests."""
    lines = [line.strip(" │") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    rule = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    message = " ".join(line for line in lines[:rule] if line) or "the command line cannot be read"
    named = list(dict.fromkeys(re.findall(r"^│ {5}([-A-Z]\S+)", text, re.MULTILINE)))
    hint = ""
    if message.startswith("Missing from"):
        message = f"{' and '.join(named)} must be given"
    elif message.startswith("Unrecognized") and named:
        hint = f" Did you mean {' or '.join(named[:2])}?"
    message = re.sub(r"^Error parsing (?!-)[\w.]+: ", "", message)  # names an options class
    return f"{message.rstrip('.')}.{hint} --help lists all options."


def _fail(message: str, status: int, error: BaseException | None = None) -> NoReturn:
    """Print one message; a mistake of the library's own also shows where it came from."""
    print(f"error: {message}", file=sys.stderr)
    if type(error) is TypeError:
        traceback.print_exception(error)
    raise SystemExit(status)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, ConvergenceWarning | NumericalWarning | UserWarning):
        print(f"warning: {message}", file=sys.stderr)
