"""Whether every draw's own rollout conserves its energy, as a symplectic integrator should.

The steps of a symplectic integrator follow a nearby conservative system exactly, up to terms that are
exponentially small in the step: its shadow energy is conserved and the energy itself oscillates about it,
bounded and without trend over exponentially long times (Hairer, Lubich, Wanner, Geometric Numerical
Integration, 2006, theorem IX.8.1). Steps that are too long, or a method that is not symplectic, lose that,
and forecasts with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vinppl._checks import require

__all__ = ["EnergyCheck", "check_energy"]

Array = NDArray[np.float64]

MAX_ERROR = 0.1
"""Largest energy error, as a share of the kinetic energy, that a forecast should be built on."""

NUM_BLOCKS = 4
"""Equal stretches of the horizon whose mean energies are compared."""

MIN_TURNS = 4
"""Sign changes of the velocity about its mean, two periods' worth, below which a drift cannot be told."""

TOLERATED = 0.01
"""Share of draws that may do so without a warning."""

ROUNDING = 1e-9
"""Change over the horizon, as a share of the kinetic energy, that is rounding."""


class EnergyCheck(NamedTuple):
    """Energy errors of every draw.

    Attributes:
        error: largest |E(t) - E(0)| as a share of the largest kinetic energy, `(num_draws, trajectory)`.
        trend: mean energy of the last quarter of the horizon less that of the first, as the same share.
        drifts: whether the trend exceeds the range of the energy within every quarter, over at least two
            periods of the motion: the mark of an error that is not bounded.
    """

    error: Array
    trend: Array
    drifts: NDArray[np.bool_]

    @property
    def warning(self) -> str:
        """What is wrong, in a sentence or two; empty if nothing is."""
        drifting, large = float(self.drifts.mean()), float((self.error > MAX_ERROR).mean())
        found = []
        if drifting > TOLERATED:
            change = float(np.median(np.abs(self.trend[self.drifts])))
            found.append(
                f"the energy of {_percent(drifting)} of the draws drifts, by {_percent(change)} of their "
                "kinetic energy over the horizon (median): the integrator is not symplectic, its steps are "
                "too long, or the model has forces that do work. Take a symplectic integrator and a smaller "
                "max_step_size"
            )
        if large > TOLERATED:
            found.append(
                f"the energy of {_percent(large)} of the draws is off by more than {_percent(MAX_ERROR)} of "
                f"their kinetic energy, at worst {_percent(float(self.error.max()))}: steps are too long for "
                "the motion. Take a smaller max_step_size or an integrator of higher order"
            )
        return ". Also, ".join(found)


def check_energy(energy: Array, kinetic: Array, turns: NDArray[np.int64], times: Array) -> EnergyCheck:
    """Check energies along rollouts of a conservative model.

    Args:
        energy: `(num_draws, trajectory, time)`.
        kinetic: largest kinetic energy of each rollout, by which errors are measured, `(num_draws,
            trajectory)`.
        turns: how often the velocity crosses its mean, `(num_draws, trajectory)`.
        times: `(trajectory, time)`; a shorter trajectory repeats its last time.

    Raises:
        ValueError: if shapes disagree.
    """
    matches = kinetic.shape == turns.shape == energy.shape[:2] and times.shape == energy.shape[1:]
    require(
        energy.ndim == 3 and matches,
        "energy must have shape (num_draws, trajectory, time), kinetic, turns and times to match",
        f"{energy.shape}, {kinetic.shape}, {turns.shape} and {times.shape}",
    )
    scale = np.maximum(kinetic, 1e-300)
    error = np.abs(energy - energy[..., :1]).max(-1) / scale
    trend, drifts = np.zeros_like(error), np.zeros(error.shape, dtype=bool)
    for n, t in enumerate(times):
        length = int(np.sum(t < t[-1])) + 1
        if length < 2 * NUM_BLOCKS:
            continue
        blocks = np.array_split(energy[:, n, :length], NUM_BLOCKS, axis=-1)
        change = blocks[-1].mean(-1) - blocks[0].mean(-1)
        within = np.max([np.ptp(block, axis=-1) for block in blocks], axis=0)
        trend[:, n] = change / scale[:, n]
        beyond = np.abs(change) > np.maximum(within, ROUNDING * scale[:, n])
        drifts[:, n] = beyond & (turns[:, n] >= MIN_TURNS)
    return EnergyCheck(error, trend, drifts)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
