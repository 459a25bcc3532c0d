"""A reference integrator: Gauss collocation of order 20 with error control.

Only for ground truths without a closed form. Each trajectory of a batch has its
own step. The step is chosen from the decay of the Legendre coefficients of the
acceleration; sums are compensated, so that errors stay near round-off.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from vinppl.errors import SolveError
from vinppl.systems.base import Array

BoolArray = NDArray[np.bool_]
Acceleration = Callable[[Array, Array, Array, Array], Array]

_EPS = float(np.finfo(np.float64).eps)
_NUM_STAGES = 10
# A polynomial through s Gauss nodes is off by about ρ^-s, the step end by about ρ^-2s:
# 1e-8 for the last coefficients leaves less than 1e-16 at the end of the step.
_TAIL_TOLERANCE = 1e-8
_MAX_ITERATIONS = 60
_MAX_STEPS = 1_000_000


def _tableau(num: int) -> tuple[Array, Array, Array, Array]:
    """Return nodes c, matrix A, weights b on [0, 1], and the map to Legendre coefficients."""
    x, w = legendre.leggauss(num)
    values = legendre.legvander(x, num)  # (node, degree), P_0 .. P_num
    degree = np.arange(num)
    coefficients = (degree[:, None] + 0.5) * values[:, :num].T * w  # (degree, node)
    integrals = np.empty((num, num))  # ∫ P_k from -1 to x_i
    integrals[:, 0] = x + 1.0
    integrals[:, 1:] = (values[:, 2:] - values[:, : num - 1]) / (2.0 * degree[1:] + 1.0)
    return 0.5 * (x + 1.0), 0.5 * integrals @ coefficients, 0.5 * w, coefficients


_C, _A, _B, _LEGENDRE = _tableau(_NUM_STAGES)
_A_SQUARED = _A @ _A
_B_POSITION = _B * (1.0 - _C)


class _Step:
    """One collocation step of every trajectory, tried but not yet accepted."""

    def __init__(
        self, acceleration: Acceleration, q: Array, v: Array, t: Array, h: Array, sign: Array
    ) -> None:
        H = h[:, None, None]
        stage_times = t[:, None] + h[:, None] * _C
        signs = np.broadcast_to(sign[:, None, :], (len(h), _NUM_STAGES, q.shape[1]))
        drift = q[:, None] + H * _C[:, None] * v[:, None]
        start = acceleration(q[:, None], v[:, None], t[:, None], sign[:, None])
        a = np.repeat(start, _NUM_STAGES, axis=1)  # (num, stage, dim)
        previous = np.full(len(h), np.inf)
        converged = np.zeros(len(h), dtype=bool)
        for _ in range(_MAX_ITERATIONS):
            self.stage_v = v[:, None] + H * (_A @ a)
            new = acceleration(drift + H**2 * (_A_SQUARED @ a), self.stage_v, stage_times, signs)
            change = np.abs(new - a).max((1, 2))
            size = np.abs(new).max((1, 2))
            a = new
            # Done at round-off, or when a small change no longer shrinks.
            converged = (change <= 4 * _EPS * size) | ((change <= 1e-13 * size) & (change >= 0.5 * previous))
            if np.all(converged | ~np.isfinite(change)):
                break
            previous = change
        self.delta_v = h[:, None] * np.einsum("i,nid->nd", _B, a)
        self.delta_q = h[:, None] * (v + h[:, None] * np.einsum("i,nid->nd", _B_POSITION, a))
        self.speed_scale = np.maximum(np.abs(v).max(1), h * np.abs(a).max((1, 2)))
        tail = h * np.abs(_LEGENDRE[-2:] @ a).max((1, 2))
        self.tail = tail / np.where(self.speed_scale > 0, self.speed_scale, 1.0)
        self.accurate: BoolArray = converged & (self.tail <= _TAIL_TOLERANCE)
        self.factor = 0.9 * (_TAIL_TOLERANCE / np.maximum(self.tail, 1e-30)) ** (1.0 / (_NUM_STAGES - 1))
        self.factor = np.where(converged & np.isfinite(self.tail), np.clip(self.factor, 0.2, 3.0), 0.3)


def _turning_step(step: _Step, h: Array, v: Array, slope: Array, sign: Array) -> tuple[BoolArray, Array]:
    """Find where a velocity changes sign within a step (one coordinate).

    Returns:
        A Boolean per trajectory, whether it does, and a better step to that point.
    """
    tolerance = 8 * _EPS * step.speed_scale
    ends = np.concatenate([step.stage_v[:, :, 0], v + step.delta_v], axis=1) * sign  # (num, stage + 1)
    crosses = ends < -tolerance[:, None]
    first = crosses.argmax(1)
    rows = np.arange(len(h))
    nodes = np.concatenate([[0.0], _C, [1.0]])
    before = np.where(first == 0, v[:, 0] * sign[:, 0], ends[rows, first - 1])
    after = ends[rows, first]
    share = np.clip(before / np.where(before == after, 1.0, before - after), 0.0, 1.0)
    inside = h * (nodes[first] + share * (nodes[first + 1] - nodes[first]))
    # Only the end crosses: it is close, and Newton's method from there converges.
    newton = h - (v + step.delta_v)[:, 0] / np.where(slope == 0.0, np.inf, slope)
    last = (first == _NUM_STAGES) & (newton > 0.5 * h) & (newton < h)
    return crosses.any(1), np.where(last, newton, inside)


def integrate(
    acceleration: Acceleration, q0: Array, v0: Array, times: Array, *, kink: bool = False
) -> tuple[Array, Array]:
    """Integrate dv/dt = acceleration(q, v, t, sign) to round-off.

    Args:
        acceleration: maps positions and velocities `(*batch, dim)`, times
            `(*batch)` and signs `(*batch, dim)` to accelerations `(*batch, dim)`.
            The sign is that of the velocity, held fixed within a step.
        q0: initial positions, shape `(num, dim)`.
        v0: initial velocities, same shape.
        times: shape `(time,)`, not decreasing; the initial state is at `times[0]`.
        kink: whether the acceleration depends on the sign. Steps then end where
            the velocity is zero (one coordinate only).

    Returns:
        Positions and velocities, shape `(num, time, dim)`.

    Raises:
        SolveError: if the step shrinks to nothing, as before a finite-time blow-up.
    """
    num, dim = q0.shape
    q_path, v_path = np.empty((2, num, len(times), dim))
    state = _State(q0, v0)
    q_path[:, 0], v_path[:, 0] = q0, v0
    proposed = np.full(num, np.inf)
    span = float(times[-1] - times[0])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for j in range(1, len(times)):
            _cross(acceleration, state, float(times[j - 1]), float(times[j]), proposed, span, kink)
            q_path[:, j], v_path[:, j] = state.q, state.v
    return q_path, v_path


class _State:
    """Positions and velocities with the rounding errors of their sums."""

    def __init__(self, q: Array, v: Array) -> None:
        self.q, self.v = q.copy(), v.copy()
        self.q_rest, self.v_rest = np.zeros_like(q), np.zeros_like(v)

    def add(self, index: NDArray[np.intp], delta_q: Array, delta_v: Array) -> None:
        """Add increments to some trajectories (Neumaier's compensated sum)."""
        for total, rest, delta in ((self.q, self.q_rest, delta_q), (self.v, self.v_rest, delta_v)):
            old = total[index]
            delta = delta + rest[index]
            new = old + delta
            back = new - old
            rest[index] = (old - (new - back)) + (delta - back)
            total[index] = new


def _cross(
    acceleration: Acceleration,
    state: _State,
    start: float,
    end: float,
    proposed: Array,
    span: float,
    kink: bool,
) -> None:
    """Advance every trajectory from one sampling time to the next, updating in place."""
    gap = end - start
    tau = np.zeros(len(proposed))  # time since the last sample: keeps its digits at late times
    to_turn = np.full(len(proposed), np.inf)  # step to the next zero of the velocity, once bracketed
    for _ in range(_MAX_STEPS):
        k = np.flatnonzero(tau < gap)
        if len(k) == 0:
            return
        q, v, left = state.q[k], state.v[k], gap - tau[k]
        t = start + tau[k]
        sign = np.sign(v)
        if kink:
            rest = np.sign(acceleration(q, v, t, np.zeros_like(v)))
            sign = np.where(v == 0.0, rest, sign)
        h = left / np.maximum(np.ceil(left / proposed[k]), 1.0)
        h = np.minimum(h, to_turn[k])
        reaches = h >= left
        after = np.where(reaches, gap, tau[k] + h)
        h = after - tau[k]  # the step that the clock really makes
        step = _Step(acceleration, q, v, t, h, sign)
        accepted, turned = step.accurate.copy(), np.zeros(len(k), dtype=bool)
        if kink:
            ends = v + step.delta_v
            slope = acceleration(q + step.delta_q, ends, t + h, sign)[:, 0]
            crosses, better = _turning_step(step, h, v, slope, sign)
            crosses &= step.accurate
            at_zero = np.abs(ends[:, 0]) <= 8 * _EPS * (step.speed_scale + np.abs(slope) * gap)
            turned = step.accurate & at_zero & (ends[:, 0] != 0.0) & (np.isfinite(to_turn[k]) | crosses)
            accepted &= turned | ~crosses
            # A step short of the turning point by rounding moves on by Newton's correction.
            to_turn[k] = np.where(crosses & ~turned, better, np.inf)
        failed = ~step.accurate
        proposed[k] = _next_proposal(proposed[k], h * step.factor, failed, accepted & ~turned)
        if np.any(failed & (proposed[k] < 1e-11 * span)):
            worst = int(np.flatnonzero(failed & (proposed[k] < 1e-11 * span))[0])
            raise SolveError(
                "the reference integrator cannot continue: the motion seems to run away in finite time",
                time=float(t[worst]),
                residual=float(step.tail[worst]),
            )
        good = k[accepted]
        state.add(good, step.delta_q[accepted], step.delta_v[accepted])
        state.v[k[turned]] = 0.0
        state.v_rest[k[turned]] = 0.0
        tau[good] = after[accepted]
    raise SolveError(f"the reference integrator needs more than {_MAX_STEPS} steps", time=start)


def _next_proposal(old: Array, suggested: Array, failed: BoolArray, accepted: BoolArray) -> Array:
    """Return the step to try next; a step cut short by a sample or a turn says little against the old one."""
    grown = np.where(np.isfinite(old), np.maximum(old, suggested), old)
    return np.where(failed, suggested, np.where(accepted, grown, old))
