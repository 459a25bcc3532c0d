"""Input checks with one message format: requirement, what was got, the usual fix."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["describe", "require", "require_choice", "require_choices"]


def describe(value: Any) -> str:
    """Describe `value` in a few words: shape for arrays, repr for the rest."""
    shape = getattr(value, "shape", None)
    if shape is not None and len(tuple(shape)) > 0:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def require(
    condition: bool,
    requirement: str,
    got: Any,
    fix: str = "",
    *,
    error: type[Exception] = ValueError,
) -> None:
    """Raise `error` with one format of message unless `condition` holds.

    Args:
        condition: what must hold.
        requirement: a clause that says what is required, without a final stop.
        got: the offending value, or a string that describes it.
        fix: what usually helps.
        error: the exception type.
    """
    if condition:
        return
    message = f"{requirement}; got {got if isinstance(got, str) else describe(got)}."
    raise error(f"{message} {fix}".rstrip())


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    require(value in choices, f"{name} must be one of {', '.join(sorted(choices))}", value)


def require_choices(name: str, values: Iterable[str], choices: Collection[str]) -> None:
    """Raise `ValueError` unless each of `values` is one of `choices`."""
    unknown = sorted(set(values) - set(choices))
    require(not unknown, f"{name} must be among {', '.join(choices)}", ", ".join(unknown))
