"""Interruptions that wait until a step is done, so that what is saved of it can be resumed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["INTERRUPTS", "deferred_interrupts"]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and a polite termination."""


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold Ctrl-C, and a termination that has a handler, back until the block has ended.

    The same signal a second time is not held back, for blocks that take too long. Nor is anything held back
    outside of the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {n: handler for n in INTERRUPTS if callable(handler := signal.getsignal(n))}
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if number in held:
            handlers[signal.Signals(number)](number, frame)
        held.append(number)

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        handlers[signal.Signals(held[0])](held[0], None)
