"""Generalised forces that no potential gives: damping, friction and measured drives.

They enter an integrator as discrete d'Alembert terms (Marsden and West 2001,
part three): half of a step's impulse at either end of the step.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require
from vinppl.parameters import Component, Spec, align

__all__ = [
    "AbstractDamping",
    "BoundDamping",
    "ControlSignal",
    "CoulombFriction",
    "Drive",
    "KnotSignal",
    "LinearDamping",
    "QuadraticDamping",
]


class BoundDamping(NamedTuple):
    """Velocity-dependent forces with their coefficients read, acting coordinate by coordinate:
    F(v) = -(c + d |v|) v - f tanh(v / s).

    Attributes:
        linear: c, broadcastable with `(*batch, dim)`; `None` for none.
        quadratic: d, likewise.
        friction: the pair (f, s), likewise.
    """

    linear: Tensor | None = None
    quadratic: Tensor | None = None
    friction: tuple[Tensor, Tensor] | None = None

    def resistance(self, v: Tensor) -> Tensor:
        """Return -F(v), shape `(*batch, dim)`."""
        if self.quadratic is None:
            smooth = None if self.linear is None else self.linear * v
        elif self.linear is None:
            smooth = self.quadratic * v.abs() * v
        else:
            smooth = torch.addcmul(self.linear, self.quadratic, v.abs()) * v
        if self.friction is None:
            assert smooth is not None
            return smooth
        size, width = self.friction
        dry = size * (v / width).tanh()
        return dry if smooth is None else smooth + dry

    def slope(self, v: Tensor) -> Tensor:
        """Return -dF/dv >= 0, shape `(*batch, dim)` (the Jacobian is diagonal)."""
        total = torch.zeros_like(v) if self.linear is None else self.linear
        if self.quadratic is not None:
            total = total + 2 * self.quadratic * v.abs()
        if self.friction is not None:
            size, width = self.friction
            total = total + size / width * (1 - (v / width).tanh().square())
        return total


class AbstractDamping(Component):
    """A force that depends on velocity alone and takes energy out."""

    default_name: ClassVar[str] = "damping"

    @abc.abstractmethod
    def bind(self) -> BoundDamping:
        """Read every coefficient once."""


class LinearDamping(AbstractDamping):
    """F = -c v, viscous (Rayleigh) damping.

    Args:
        coefficient: c >= 0, scalar or shape `(dim,)`; force per velocity.
        dim: number of coordinates for one coefficient each; `None` shares one.

    Sites:
        `coefficient`.
    """

    def __init__(self, coefficient: Spec = 0.0, *, dim: int | None = None) -> None:
        super().__init__()
        self._event_dim = int(dim is not None)
        self.declare(
            "coefficient", coefficient, support=constraints.nonnegative, shape=() if dim is None else (dim,)
        )

    def bind(self) -> BoundDamping:
        """Read `coefficient`."""
        c = align(self.coefficient, self._event_dim)
        return BoundDamping(linear=c)


class QuadraticDamping(AbstractDamping):
    """F = -d |v| v, drag at high Reynolds number.

    Args:
        coefficient: d >= 0, force per velocity squared.
        dim: number of coordinates for one coefficient each; `None` shares one.

    Sites:
        `coefficient`.
    """

    default_name: ClassVar[str] = "drag"

    def __init__(self, coefficient: Spec = 0.0, *, dim: int | None = None) -> None:
        super().__init__()
        self._event_dim = int(dim is not None)
        self.declare(
            "coefficient", coefficient, support=constraints.nonnegative, shape=() if dim is None else (dim,)
        )

    def bind(self) -> BoundDamping:
        """Read `coefficient`."""
        d = align(self.coefficient, self._event_dim)
        return BoundDamping(quadratic=d)


class CoulombFriction(AbstractDamping):
    """F = -f tanh(v / s), dry friction of size f, smoothed over velocities of size s.

    Args:
        coefficient: f >= 0, a force.
        smoothing: s > 0, a velocity well below those of interest.
        dim: number of coordinates for one coefficient each; `None` shares one.

    Sites:
        `coefficient`, `smoothing`.
    """

    default_name: ClassVar[str] = "friction"

    def __init__(self, coefficient: Spec = 0.0, *, smoothing: Spec = 1e-2, dim: int | None = None) -> None:
        super().__init__()
        self._event_dim = int(dim is not None)
        self.declare(
            "coefficient", coefficient, support=constraints.nonnegative, shape=() if dim is None else (dim,)
        )
        self.declare("smoothing", smoothing, support=constraints.positive)

    def bind(self) -> BoundDamping:
        """Read `coefficient` and `smoothing`."""
        f, s = align(self.coefficient, self._event_dim), align(self.smoothing)
        return BoundDamping(friction=(f, s))


class ControlSignal(NamedTuple):
    """A known input, sampled at given times and interpolated linearly between them.

    Attributes:
        times: shape `(*batch, samples)`, not decreasing, in units of time.
        values: shape `(*batch, samples, num_channels)`.
    """

    times: Tensor
    values: Tensor

    def at(self, t: Tensor) -> Tensor:
        """Return the signal at times `(*batch, n)`, shape `(*batch, n, num_channels)`.

        Raises:
            ValueError: if a time lies outside the sampled range by more than one sample
                spacing (composed integrators reach that far; the ends are extrapolated).
        """
        require(self.times.shape[-1] >= 2, "a drive must have at least two samples", self.times)
        first, last = self.times[..., :1], self.times[..., -1:]
        slack = self.times.diff(dim=-1).amax() + 1e-6 * (last - first).amax()
        require(
            bool(((t >= first - slack) & (t <= last + slack)).all()),
            f"the drive must cover every time of the rollout; it is known from {first.min().item():.6g} "
            f"to {last.max().item():.6g}",
            f"times from {t.min().item():.6g} to {t.max().item():.6g}",
            "Give the drive over the whole forecast horizon.",
        )
        times = self.times.expand(*t.shape[:-1], -1).contiguous() if t.ndim > self.times.ndim else self.times
        t = t.expand(*times.shape[:-1], -1).contiguous() if times.ndim > t.ndim else t.contiguous()
        last_index = times.shape[-1] - 1
        right = torch.searchsorted(times.contiguous(), t).clamp(1, last_index)  # (*batch, n)
        t0, t1 = times.gather(-1, right - 1), times.gather(-1, right)
        weight = torch.where(t1 > t0, (t - t0) / (t1 - t0).clamp_min(torch.finfo(t.dtype).tiny), 0.0)
        values = self.values.expand(*times.shape, self.values.shape[-1])
        index = right.unsqueeze(-1).expand(*right.shape, values.shape[-1])
        low, high = values.gather(-2, index - 1), values.gather(-2, index)
        return low + weight.unsqueeze(-1) * (high - low)


class KnotSignal(NamedTuple):
    """A signal known by value and slope at equidistant knots, and by the cubic between them (Hermite's).

    Attributes:
        origin: time of the first knot, shape `(1,)` shared by all or `(trajectory, 1)`.
        spacing: time between neighbouring knots.
        values: shape `(*batch, trajectory, knots, dim)`, at least two knots.
        slopes: derivatives times `spacing`, same shape.
    """

    origin: Tensor
    spacing: float
    values: Tensor
    slopes: Tensor

    def at(self, t: Tensor) -> Tensor:
        """Return the signal at times `(n,)` or `(trajectory, n)`, shape `(*batch, trajectory, n, dim)`.

        Raises:
            ValueError: if a time lies more than one spacing outside of the knots (composed integrators
                reach out of a step; the outer cubics are extrapolated).
        """
        place = (t - self.origin) / self.spacing
        last = self.values.shape[-2] - 1
        require(
            bool(((place > -1) & (place < last + 1)).all()),
            f"the knots must cover every time of the rollout; there are {last + 1}, {self.spacing:.6g} apart",
            f"times from {float(place.min()):.4g} to {float(place.max()):.4g} spacings after the first knot",
        )
        left = place.floor().clamp(0, last - 1)
        x = (place - left).unsqueeze(-1)
        low, high = left.long(), left.long() + 1
        rest = 1 - x
        return rest.square() * (
            (1 + 2 * x) * _pick(self.values, low) + x * _pick(self.slopes, low)
        ) + x.square() * ((1 + 2 * rest) * _pick(self.values, high) - rest * _pick(self.slopes, high))


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Return knots of `(*batch, trajectory, knots, dim)`: `(n,)`, or `(trajectory, n)` of each trajectory."""
    if index.ndim == 1:
        return x.index_select(-2, index)
    shape = (*x.shape[:-2], index.shape[-1], x.shape[-1])
    return x.gather(-2, index.unsqueeze(-1).expand(shape))


class Drive(Component):
    """F = G u(t) (+ F0), a known input signal times a gain.

    Args:
        gain: G, shape `(dim, num_channels)` or a scalar for one channel on one
            coordinate; force per unit of the signal.
        offset: F0, a constant force on the driven coordinate(s).
        dim: number of coordinates.
        num_channels: number of input channels.

    Sites:
        `gain`, `offset`.
    """

    default_name: ClassVar[str] = "drive"

    def __init__(self, gain: Spec = 1.0, *, offset: Spec = 0.0, dim: int = 1, num_channels: int = 1) -> None:
        super().__init__()
        self.dim, self.num_channels = dim, num_channels
        self._scalar = dim == 1 and num_channels == 1
        self.declare("gain", gain, shape=() if self._scalar else (dim, num_channels))
        self.declare("offset", offset, shape=() if dim == 1 else (dim,))

    def bind(self) -> Callable[[Tensor], Tensor]:
        """Read `gain` and `offset`; return `u -> F`, `(*batch, n, num_channels) -> (*batch, n, dim)`."""
        gain = self.gain
        offset = align(self.offset, int(self.dim > 1)).unsqueeze(-2)
        if self._scalar:
            factor = gain[..., None, None]
            return lambda u: factor * u + offset
        matrix = gain.transpose(-1, -2)
        return lambda u: u @ matrix + offset


def combine_damping(parts: list[BoundDamping]) -> BoundDamping | None:
    """Return several damping forces, at most one of each kind, as one; `None` for none."""
    if not parts:
        return None
    kinds = {name: value for part in parts for name, value in part._asdict().items() if value is not None}
    return BoundDamping(**kinds)
