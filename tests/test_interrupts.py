"""Interruptions wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vinppl.data import Trajectories
from vinppl.fit import SVIOptions, fit_svi
from vinppl.fit.svi import SVIResult
from vinppl.interrupts import deferred_interrupts
from vinppl.models import MassSpring
from vinppl.simulate import simulate
from vinppl.systems import system


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Handlers are those of before, whatever a test does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(count: int, done: list[str]) -> None:
    """A step that a signal, or several of one kind, falls into."""
    with deferred_interrupts():
        for _ in range(count):
            signal.raise_signal(signal.SIGINT)
        done.append("step")


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        signalled(1, done)
    assert done == ["step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_does_not_wait() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        signalled(2, done)
    assert not done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_kinds_of_signals_wait_and_one_is_delivered() -> None:
    """A terminal's Ctrl-C and the termination by a parent that had it too."""
    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: heard.append(number))
    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert not heard
    assert heard == [signal.SIGINT]


def test_an_error_of_the_block_comes_first() -> None:
    def failing() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_termination_without_a_handler_is_not_held_back() -> None:
    with deferred_interrupts():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_are_left_alone() -> None:
    handlers: list[Any] = []

    def work() -> None:
        with deferred_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


class InterruptedSpring(MassSpring):
    """A model in which an interruption arrives, the next time that it is `armed`."""

    armed = False

    def forward(self, data: Trajectories) -> None:
        super().forward(data)
        if self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_inside_of_a_step_of_svi_saves_the_steps_before(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    data, _ = simulate(system("mass_spring"), num_trajectories=1, num_times=8, noise_scale=0.1)
    options = SVIOptions(guide="full_rank", start="prior", num_steps=30, num_particles=1, check_every=10)

    def fit(limit: int = 0) -> SVIResult:
        model = InterruptedSpring(data)

        def on_step(step: Any) -> None:
            model.armed = step.step == limit

        return fit_svi(model, data, options, checkpoint=tmp_path / "svi.pt", on_step=on_step)

    with pytest.raises(KeyboardInterrupt):
        fit(12)
    assert torch.load(tmp_path / "svi.pt", weights_only=True)["step"] == 13
    resumed = fit()
    (tmp_path / "svi.pt").unlink()
    assert resumed.losses == fit().losses
