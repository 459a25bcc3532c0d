"""Other starts of a climb: where the motions begin somewhere else than the measurements seem to say.

Under heavy noise the first measurements say little of where a motion begins, and a wrong beginning is
a mode: much of the data passes for noise there, and no chain that starts there leaves it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vinppl.estimates import local_states
from vinppl.fit.ascent import ascend_part
from vinppl.guides import INITIAL_SITES
from vinppl.logdensity import LogDensity

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["restarted"]

MAX_IDLE = 24
"""Climbs in a row that find nothing better, after which the search ends: a few hundredths of what sampling
evaluates."""

MAX_RESTARTS = 100
"""Climbs at most."""

SHARES = (2.0, 1.0, 0.5)
"""Scatter of initial states, one size after another, in typical sizes of positions and velocities."""

MAX_ITERATIONS = 60
"""L-BFGS iterations of a climb."""

LEAST_GAIN = 0.5
"""Nats by which a mode must be better to be another one, and not the same approached from elsewhere."""


def restarted(density: LogDensity, point: Tensor, data: Trajectories, free: Tensor) -> Tensor:
    """Return the best mode found from scattered initial states, or `point` where none is better.

    Trajectories share a law and noise, but each may have found its own beginning or not: every climb
    lends each of its trajectories' initial states to the best mode so far. Every second one scatters all
    other latents too, by one unit of unconstrained space.

    Args:
        density: log density, compiled; an ascent takes some fifty evaluations.
        point: a mode in unconstrained space, `(size,)`.
        data: the measurements, whose motion sizes the scatter.
        free: coordinates along which to climb.
    """
    places, scale = _initial_states(density, data)
    if not len(places) or not bool(torch.isin(places, free).all()):
        return point
    others = free[~torch.isin(free, places)]
    generator = torch.Generator().manual_seed(0)  # the search is the same whatever was drawn before

    def scatter(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=point.dtype)

    best, top, idle = point, _value(density, point), 0
    for i in range(MAX_RESTARTS):
        if idle == MAX_IDLE:
            break
        begin = best.clone()
        begin[places] += SHARES[i % len(SHARES)] * scale * scatter(*scale.shape)
        if i % 2:
            begin[others] += scatter(len(others))
        found, before = ascend_part(density, begin, free, MAX_ITERATIONS), top
        height = _value(density, found)
        if height > top + LEAST_GAIN:
            best, top = found, height
        for states in places:
            mixed = best.clone()
            mixed[states] = found[states]
            if _value(density, mixed) > top + LEAST_GAIN:
                best = ascend_part(density, mixed, free, MAX_ITERATIONS)
                top = _value(density, best)
        idle = 0 if top > before else idle + 1
    return best


def _initial_states(density: LogDensity, data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return where each trajectory's initial state is, and typical sizes, both `(trajectories, 2 dim)`.

    Both are empty where the model has no such sites.
    """
    every = torch.arange(density.size)
    where = density.split(every)
    shape = (data.num_trajectories, data.dim)
    if any(name not in where or where[name].shape != shape for name in INITIAL_SITES):
        return every[:0], density.initial[:0]
    states = local_states(data)
    sizes = torch.cat([x.square().mean(0).sqrt() for x in (states.q, states.v)]).nan_to_num(0.0)
    return torch.cat([where[name] for name in INITIAL_SITES], dim=-1), sizes.expand(len(data.values), -1)


def _value(density: LogDensity, point: Tensor) -> float:
    """Return the log density at a point, minus infinity where it has none."""
    value = float(density.value_and_gradient(point)[0])
    return value if math.isfinite(value) else -math.inf
