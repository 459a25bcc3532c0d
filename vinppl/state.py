"""States and trajectories in phase space.

Shape convention of the whole library: batch dimensions lead, time is second to
last, the coordinate is last.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vinppl._checks import require

__all__ = ["PhaseState", "Trajectory"]


class PhaseState(NamedTuple):
    """A point of phase space, in positions and velocities.

    Attributes:
        q: generalised positions, shape `(*batch, dim)`, in the unit of the coordinate.
        v: velocities dq/dt, same shape, in that unit per unit of time.
    """

    q: Tensor
    v: Tensor


class Trajectory(NamedTuple):
    """A path through phase space, sampled at given times.

    Attributes:
        time: sampling times, shape `(*batch, time)`; the batch may be broadcastable.
        q: generalised positions, shape `(*batch, time, dim)`. Angles are not
            wrapped: they count revolutions.
        v: velocities, same shape as `q`.
    """

    time: Tensor
    q: Tensor
    v: Tensor

    def at(self, index: int) -> PhaseState:
        """Return the phase-space state at one time index."""
        return PhaseState(self.q[..., index, :], self.v[..., index, :])

    def sliced(self, start: int | None = None, stop: int | None = None) -> Trajectory:
        """Return the part of the path between two time indices."""
        piece = slice(start, stop)
        return Trajectory(self.time[..., piece], self.q[..., piece, :], self.v[..., piece, :])


def check_phase_state(state: PhaseState, dim: int) -> None:
    """Raise `ValueError` unless both parts of `state` end in a dimension of size `dim`."""
    for name, value in zip(("position", "velocity"), state, strict=True):
        require(
            value.ndim >= 1 and value.shape[-1] == dim,
            f"initial {name} must have shape (*batch, {dim}), one entry per generalised coordinate",
            value,
            "Unsqueeze a scalar coordinate to shape (..., 1).",
        )
