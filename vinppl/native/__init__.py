"""Compiled rollouts and log densities.

Everything is written out from the reference code (integrators, potentials, Pyro models) by tracing it,
compiled by LLVM for the processor at hand, and kept on disk for the next process. Without `llvmlite`,
or for what has no compiled form, the reference code runs instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vinppl.errors import PerformanceWarning
from vinppl.integrators import AbstractIntegrator
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

if TYPE_CHECKING:
    from vinppl.native.compiled import CompiledDensity

__all__ = ["compile_density", "compiled_path"]

_said: set[str] = set()


def _notify(what: str, reason: str) -> None:
    """Say once for each reason why something is not compiled."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(f"{what} runs without compiled code: {reason}", PerformanceWarning, stacklevel=4)


def _unavailable() -> str | None:
    """Return why nothing can be compiled here, `None` where it can."""
    try:
        import llvmlite.binding  # noqa: F401
    except ImportError as error:
        return f"llvmlite could not be imported ({error})"
    return None


def compiled_path(
    system: Any,
    initial: PhaseState,
    grid: TimeGrid,
    integrator: AbstractIntegrator,
    accelerations: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor] | None:
    """Return positions and velocities by compiled code, or `None` (and say why once) where there is none.

    Other devices than the CPU have none by design, and nothing is said.
    """
    if initial.q.device.type != "cpu":
        return None
    reason = _unavailable()
    if reason is not None:
        _notify("a rollout", reason)
        return None
    from vinppl.native.errors import Unsupported
    from vinppl.native.rollout import native_path

    try:
        return native_path(system, initial, grid, integrator, accelerations)
    except Unsupported as error:
        _notify("a rollout", str(error))
        return None


def compile_density(
    name: str, function: Callable[[Tensor], Tensor], example: Tensor
) -> CompiledDensity | None:
    """Return a compiled log density, or `None` (and say why once) where there is none.

    Args:
        name: of the model, for the notice.
        function: the density of an unconstrained vector.
        example: such a vector. On other devices than the CPU there is no compiled density by design, and
            nothing is said.
    """
    if example.device.type != "cpu":
        return None
    reason = _unavailable()
    if reason is not None:
        _notify(f"the density of {name}", reason)
        return None
    from vinppl.native.compiled import CompiledDensity
    from vinppl.native.errors import Unsupported

    try:
        return CompiledDensity(function, example)
    except Unsupported as error:
        _notify(f"the density of {name}", str(error))
        return None
