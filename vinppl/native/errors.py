"""Why something runs without compiled code."""

from __future__ import annotations

__all__ = ["Unsupported"]


class Unsupported(Exception):
    """An operation, a shape or a type that has no compiled form; the text names it."""
