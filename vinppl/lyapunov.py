"""The maximal Lyapunov exponent of a law of motion: how fast infinitesimally close paths separate.

Every path has a twin that starts a tiny distance away. After each step the distance is measured and the twin
put back to where it was at first, in the direction it has turned to. The mean logarithmic growth per time
tends to the exponent, whatever the norm. Many paths run side by side, and every one is cut into blocks of
time: their scatter gives the standard error.

References:
    Benettin, Galgani, Strelcyn: Kolmogorov entropy and numerical experiments. Physical Review A 14 (1976).
    Benettin, Galgani, Giorgilli, Strelcyn: Lyapunov characteristic exponents for smooth dynamical systems
    and for Hamiltonian systems; a method for computing all of them. Meccanica 15 (1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import NonFiniteError
from vinppl.state import PhaseState, check_phase_state
from vinppl.systems import AbstractSystem

__all__ = ["Acceleration", "LyapunovEstimate", "maximal_lyapunov_exponent"]

Acceleration = Callable[[Tensor, Tensor, float], Tensor]
"""The law of motion d2q/dt2 = a(q, v, t), `(*batch, dim) -> (*batch, dim)`, of torch functions."""

DISTANCE = 1e-8
"""Distance of twins: rounding and curvature both change its growth by a part in 1e8 of states of size one."""


@dataclass(frozen=True, eq=False)
class LyapunovEstimate:
    """A maximal Lyapunov exponent with what it was estimated from.

    Attributes:
        exponent: mean growth rate, in 1/time.
        standard_error: of the mean, by the scatter of blocks; in 1/time.
        rates: growth rate of every path in every block, `(path, block)`, in 1/time.
        block_duration: length of a block in time.
    """

    exponent: float
    standard_error: float
    rates: Tensor
    block_duration: float


def maximal_lyapunov_exponent(
    law: AbstractSystem | Acceleration,
    initial: PhaseState,
    *,
    duration: float,
    step_size: float,
    transient: float = 0.0,
    start_time: float = 0.0,
    num_blocks: int = 10,
    seed: int = 0,
) -> LyapunovEstimate:
    """Return the mean rate at which infinitesimal errors of paths grow (Benettin et al. 1976).

    Steps are those of the classical Runge-Kutta method of order 4, so `step_size` must be small against
    every period of the motion; halve it to see that the exponent stays. The paths should belong to one
    chaotic region (the same attractor; in a conservative system the same energy), for the mean is over all.

    Args:
        law: a ground truth, or its acceleration; see `Acceleration`.
        initial: states at `start_time`, both parts of shape `(*batch, dim)`: one path each.
        duration: time over which rates are averaged, after the transient.
        step_size: length of a step.
        transient: time for paths to reach the attractor and for twins to turn into the direction of
            fastest growth; its growth is not counted.
        start_time: time at which the paths begin; only driven systems look at it.
        num_blocks: blocks that the duration is cut into. A block should be longer than 1 / exponent,
            so that blocks are nearly independent.
        seed: of the random directions of the twins.

    Raises:
        ValueError: if a duration, step or number of blocks is not positive, or blocks hold no step.
        NonFiniteError: if a path runs away.

    Example:
        >>> from vinppl.systems import HenonHeiles
        >>> start = PhaseState(torch.tensor([[0.499, 0.0]]), torch.tensor([[0.0, 0.03160676]]))
        >>> found = maximal_lyapunov_exponent(HenonHeiles(), start, duration=2.0, step_size=0.1)
        >>> found.rates.shape
        torch.Size([1, 10])
    """
    steps_per_block, warm_up = _check(initial, duration, step_size, transient, num_blocks)
    acceleration = _acceleration(law)
    q, v = (x.detach().double().reshape(-1, x.shape[-1]) for x in torch.broadcast_tensors(*initial))
    generator = torch.Generator(device=q.device).manual_seed(seed)
    tangent = torch.randn(2, *q.shape, generator=generator, dtype=q.dtype, device=q.device)
    q, v = torch.stack([q, q]), torch.stack([v, v])  # (2, path, dim): paths and their twins
    q[1], v[1] = _beside(q, v, *tangent)
    t, rates = start_time, []
    with torch.no_grad():
        for count in [warm_up] + [steps_per_block] * num_blocks:
            growth = torch.zeros(q.shape[1], dtype=q.dtype, device=q.device)
            for _ in range(count):
                q, v = _runge_kutta(acceleration, q, v, t, step_size)
                dq, dv = q[1] - q[0], v[1] - v[0]
                growth += (_length(dq, dv) / DISTANCE).log().squeeze(-1)
                q[1], v[1] = _beside(q, v, dq, dv)
                t += step_size
            rates.append(growth / (steps_per_block * step_size))
            if not bool(torch.isfinite(growth).all()):
                raise NonFiniteError(
                    f"a path ran away before time {t:.6g}. Take a smaller step_size, or other states.",
                    quantity="distance of twins",
                )
    values = torch.stack(rates[1:], dim=-1)  # (path, block)
    error = float(values.std() / math.sqrt(values.numel())) if values.numel() > 1 else math.nan
    return LyapunovEstimate(float(values.mean()), error, values, steps_per_block * step_size)


def _check(
    initial: PhaseState, duration: float, step_size: float, transient: float, num_blocks: int
) -> tuple[int, int]:
    """Check the arguments and return the steps of a block and of the transient."""
    check_phase_state(initial, initial.q.shape[-1])
    require(step_size > 0, "step_size must be positive", step_size)
    require(duration > 0, "duration must be positive", duration)
    require(transient >= 0, "transient must not be negative", transient)
    require(num_blocks >= 1, "num_blocks must be at least 1", num_blocks)
    steps = round(duration / step_size / num_blocks)
    require(
        steps >= 1, "every block must hold a step", f"{num_blocks} blocks of {duration / step_size:.3g} steps"
    )
    return steps, round(transient / step_size)


def _acceleration(law: AbstractSystem | Acceleration) -> Acceleration:
    """Return the law as a function of q, v and t."""
    if not isinstance(law, AbstractSystem):
        return law
    inertia = torch.from_numpy(law.inertia)
    return lambda q, v, t: law.force(q, v, t) / inertia


def _runge_kutta(
    acceleration: Acceleration, q: Tensor, v: Tensor, t: float, h: float
) -> tuple[Tensor, Tensor]:
    """Return the state after one classical Runge-Kutta step."""
    v1, a1 = v, acceleration(q, v, t)
    v2 = v + 0.5 * h * a1
    a2 = acceleration(q + 0.5 * h * v1, v2, t + 0.5 * h)
    v3 = v + 0.5 * h * a2
    a3 = acceleration(q + 0.5 * h * v2, v3, t + 0.5 * h)
    v4 = v + h * a3
    a4 = acceleration(q + h * v3, v4, t + h)
    return q + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), v + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)


def _beside(q: Tensor, v: Tensor, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """Return the twins of paths `q[0]`, `v[0]` at the standard distance in a direction."""
    factor = DISTANCE / _length(dq, dv)
    return q[0] + factor * dq, v[0] + factor * dv


def _length(dq: Tensor, dv: Tensor) -> Tensor:
    """Return the length of directions in phase space, `(path, 1)`."""
    return (dq.square().sum(-1, keepdim=True) + dv.square().sum(-1, keepdim=True)).sqrt()
