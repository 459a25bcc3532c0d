"""Every test starts from the same state of Torch and Pyro, and must leave it as it was."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from vinppl import native

torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C and hands that on; tests interrupt what they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def global_torch_state() -> dict[str, Any]:
    """Return the global settings that one test could leave behind for the next."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warn-only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "number of threads": torch.get_num_threads(),
        "anomaly detection": torch.is_anomaly_enabled(),
    }


def restore_torch_state(state: dict[str, Any]) -> None:
    """Put the settings back (inference mode cannot outlive its block, so it is only reported)."""
    torch.set_default_dtype(state["default dtype"])
    torch.set_default_device(
        None if state["default device"] == torch.device("cpu") else state["default device"]
    )
    torch.set_grad_enabled(state["grad mode"])
    torch.use_deterministic_algorithms(
        state["deterministic algorithms"], warn_only=state["deterministic warn-only"]
    )
    torch.set_num_threads(state["number of threads"])
    torch.autograd.set_detect_anomaly(state["anomaly detection"])


LONGEST = (
    "test_scripts.py::test_the_noisy_study",
    "test_trials.py",
    "test_notebooks.py",
    "test_scripts.py",
    "test_pixels.py",
)
"""Tests that begin first, so that no process waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    rank = {place: i for i, place in enumerate(LONGEST)}
    items.sort(key=lambda item: min((rank[p] for p in LONGEST if p in item.nodeid), default=len(rank)))


@pytest.fixture(autouse=True)
def isolated_torch() -> Iterator[None]:
    """Run a test in float64, seeded and validated; fail it if it changes global Torch state."""
    outside = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the global generator is what is being pinned
    torch.manual_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    native._said.clear()  # notices are given once for each reason: here, in every test
    before = global_torch_state()
    yield
    after = global_torch_state()
    pyro.clear_param_store()
    restore_torch_state(before)
    torch.set_default_dtype(outside)
    changed = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if changed:
        pytest.fail("the test changed global Torch state: " + "; ".join(changed))
