"""Models by name: from the suite, from an installed package, or from a file of the user's."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinppl._checks import require

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["ModelError", "build_model", "find_model"]


class ModelError(ValueError):
    """A model that cannot be found, imported or built; the message names the place and the cause."""


def find_model(spec: str) -> Any:
    """Return the object that `spec` names.

    Args:
        spec: `package.module:Name`, `path/to/file.py:Name`, or the bare name of a model of the suite.

    Raises:
        ModelError: if the file or module is missing or fails to import, or has no such name.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        place = "vinppl.models"
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = (
            f"Did you mean {close[0]}?" if close else f"It has {', '.join(sorted(public)[:12]) or 'nothing'}."
        )
        raise ModelError(f"{place} has no model called {name!r}. {hint}")
    return getattr(module, name)


def build_model(spec: str, data: Trajectories, settings: Sequence[str] = ()) -> Any:
    """Return the Pyro model that `spec` names, ready to be called on `data`.

    A class is built with the data, and with its `Config` if it has one; a function is the model itself.

    Args:
        spec: see `find_model`.
        data: the measurements.
        settings: options of the model as `name=value`, values written as in JSON or plain text.

    Raises:
        ModelError: if the model cannot be found or built, or an option is unknown or of the wrong type.
    """
    found: Any = find_model(spec)
    if not inspect.isclass(found):
        if not callable(found):
            raise ModelError(f"{spec} is not a model: it must be a class or a function of the data.")
        if settings:
            raise ModelError(f"{spec} is a function and has no options; got {', '.join(settings)}.")
        return found
    config_type = getattr(found, "Config", None)
    if config_type is None and settings:
        raise ModelError(f"{spec} has no Config and so no options; got {', '.join(settings)}.")
    try:
        build: Any = found
        return build(data) if config_type is None else build(data, parse_config(config_type, settings))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{spec} could not be built: {_where(error)}") from error


def parse_config(config_type: Any, settings: Sequence[str]) -> Any:
    """Return the options dataclass with the settings applied; unknown names are refused."""
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    hints = typing.get_type_hints(config_type)
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ModelError(f"options are written name=value; got {setting!r}.")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(fields)}."
            raise ModelError(f"{config_type.__name__} has no option {name!r}. {hint}")
        values[name] = _parse(name, text, hints[name])
    try:
        return config_type(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"options of {config_type.__name__}: {error}") from error


def _parse(name: str, text: str, hint: Any) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None if text in ("None", "none") else text
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        shown = str(hint).replace("typing.", "") if not inspect.isclass(hint) else hint.__name__
        raise ModelError(f"option {name} must be {shown}; got {text!r}. Pairs are written [3.0, 1.5].")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a parsed value is of the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else hint is Any or isinstance(value, hint)


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"there is no module {name!r}. A model is named package.module:Name, path/to/file.py:Name, "
                "or by the bare name of a model of vinppl.models."
            ) from error
        raise ModelError(f"module {name} failed to import: {_where(error)}") from error
    except Exception as error:
        raise ModelError(f"module {name} failed to import: {_where(error)}") from error


def _load_file(place: str) -> Any:
    path = Path(place)
    require(path.is_file(), "the model file must exist", str(path), error=ModelError)
    name = f"_vinppl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(f"{path} failed to import: {_where(error, path)}") from error
    return module


def _where(error: BaseException, path: Path | None = None) -> str:
    """Return type, message and line of an error, in the user's file where it passed through one."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if path is None or Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno if path is not None else line
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    message = error.msg if isinstance(error, SyntaxError) else error  # whose text repeats the line
    return f"{type(error).__name__}: {message}{place}"
