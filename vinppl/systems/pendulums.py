"""Pendulums: the ideal one by elliptic functions, the damped one by numerical integration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vinppl.state import PhaseState
from vinppl.systems._elliptic import incomplete_first, jacobi
from vinppl.systems._gauss import integrate
from vinppl.systems.base import (
    AbstractSystem,
    Array,
    check_num,
    check_parameters,
    pack_state,
    random_sign,
    uniform,
)

__all__ = ["DampedPendulum", "Pendulum"]


@dataclass(frozen=True)
class Pendulum(AbstractSystem):
    r"""A point mass on a massless rod: m l² q̈ = -m g l sin q, with q = 0 hanging down.

    Exact: with ω² = g / l and m = sin²(q/2) + (v / 2ω)², libration (m < 1) is
    sin(q/2) = √m sn(ωt + u₀ | m), v = 2ω√m cn; rotation (m > 1) is
    q/2 = am(±√m ωt + u₀ | 1/m), v = ±2ω√m dn. The complement 1 - m is computed
    from cos(q/2) and v, so the solution keeps its digits up to the separatrix.
    At the separatrix itself the functions become tanh and sech.

    Attributes:
        mass: mass m of the bob, kg.
        length: length l of the rod, m.
        gravity: acceleration of gravity g, m/s².

    References:
        NIST Digital Library of Mathematical Functions, 22.19(i).
    """

    mass: float = 1.0
    length: float = 1.0
    gravity: float = 9.82

    name: ClassVar[str] = "pendulum"
    dim: ClassVar[int] = 1
    coordinate_names: ClassVar[tuple[str, ...]] = ("angle",)
    angle_coordinates: ClassVar[tuple[bool, ...]] = (True,)
    units: ClassVar[Mapping[str, str]] = {
        "q": "rad",
        "v": "rad/s",
        "time": "s",
        "energy": "J",
        "mass": "kg",
        "length": "m",
        "gravity": "m/s^2",
    }

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "length", "gravity")

    @property
    def inertia(self) -> Array:
        """Moment of inertia m l², kg m², shape `(1,)`."""
        return np.array([self.mass * self.length**2])

    def potential(self, q: Tensor) -> Tensor:
        """Return V = m g l (1 - cos q), zero at rest, `(*batch, 1) -> (*batch)`, J."""
        return 2.0 * self.mass * self.gravity * self.length * torch.sin(0.5 * q[..., 0]).square()

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return the torque -m g l sin q, N m."""
        return -self.mass * self.gravity * self.length * torch.sin(q)

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw angles ±(π - U[0.1, π/2]) and velocities U[-1, 1]; about 5 % rotate over the top."""
        return _sample_pendulum(num, generator)

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        w0 = math.sqrt(self.gravity / self.length)
        turns = np.round(q0 / (2.0 * np.pi))
        half = 0.5 * (q0 - 2.0 * np.pi * turns)  # (num, 1), in [-π/2, π/2]
        s, c, w = np.sin(half), np.cos(half), v0 / (2.0 * w0)
        phase = w0 * (times - times[0])  # (time,)
        libration = self._libration(s, c, w, phase)
        rotation = self._rotation(s, c, w, phase)
        rotates = np.abs(w) > c
        q_half, v_half = (np.where(rotates, x, y) for x, y in zip(rotation, libration, strict=True))
        q = 2.0 * np.pi * turns + 2.0 * q_half
        return q[..., None], (2.0 * w0 * v_half)[..., None]

    @staticmethod
    def _libration(s: Array, c: Array, w: Array, phase: Array) -> tuple[Array, Array]:
        """Return q/2 and v/2ω below the separatrix and on it, shape `(num, time)`."""
        k = np.hypot(s, w)
        m1 = np.where(np.abs(w) > c, 1.0, (c - w) * (c + w))
        safe = np.where(k > 0.0, k, 1.0)
        sin_phi, cos_phi = s / safe, np.where(k > 0.0, w / safe, 1.0)
        # On the separatrix F grows without bound towards ±π/2; moving down it is the mirror of moving up.
        direction = np.where((m1 == 0.0) & (cos_phi < 0.0), -1.0, 1.0)
        u0 = incomplete_first(sin_phi, direction * cos_phi, m1)
        sn, cn, dn, _ = jacobi(u0 + direction * phase, m1)
        return np.arctan2(k * sn, dn), direction * k * cn

    @staticmethod
    def _rotation(s: Array, c: Array, w: Array, phase: Array) -> tuple[Array, Array]:
        """Return q/2 and v/2ω above the separatrix, shape `(num, time)`."""
        rotates = np.abs(w) > c
        w = np.where(rotates, w, 1.0)
        k = np.hypot(s, w)
        m1 = np.where(rotates, (w - c) * (w + c) / k**2, 1.0)
        direction = np.sign(w)
        _, _, dn, am = jacobi(incomplete_first(s, c, m1) + direction * k * phase, m1)
        return am, direction * k * dn


@dataclass(frozen=True)
class DampedPendulum(AbstractSystem):
    r"""A pendulum with friction: m l² q̈ = -m g l sin q - b v - c |v| v.

    Linear friction b is that of a lubricated bearing, quadratic friction c that
    of air. Numerical, by Gauss collocation of order 20 that stops at every
    turning point, where |v| v is not smooth.

    Attributes:
        mass: mass m of the bob, kg.
        length: length l of the rod, m.
        gravity: acceleration of gravity g, m/s².
        damping: linear friction b, N m s/rad, may be zero.
        quadratic_damping: quadratic friction c, N m s²/rad², may be zero.
    """

    mass: float = 1.0
    length: float = 1.0
    gravity: float = 9.82
    damping: float = 0.1
    quadratic_damping: float = 0.05

    name: ClassVar[str] = "damped_pendulum"
    dim: ClassVar[int] = 1
    coordinate_names: ClassVar[tuple[str, ...]] = ("angle",)
    angle_coordinates: ClassVar[tuple[bool, ...]] = (True,)
    conserved: ClassVar[tuple[str, ...]] = ()
    units: ClassVar[Mapping[str, str]] = {
        **Pendulum.units,
        "damping": "N m s/rad",
        "quadratic_damping": "N m s^2/rad^2",
    }

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "length", "gravity")
        check_parameters(self, "damping", "quadratic_damping", allow="non-negative")
        if self.damping == 0.0 and self.quadratic_damping == 0.0:
            self._declare(conserved=("energy",))

    @property
    def inertia(self) -> Array:
        """Moment of inertia m l², kg m², shape `(1,)`."""
        return np.array([self.mass * self.length**2])

    def potential(self, q: Tensor) -> Tensor:
        """Return V = m g l (1 - cos q), zero at rest, `(*batch, 1) -> (*batch)`, J."""
        return 2.0 * self.mass * self.gravity * self.length * torch.sin(0.5 * q[..., 0]).square()

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return the torque -m g l sin q - b v - c |v| v, N m."""
        return self._torque(q, v, torch.sign(v))

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw angles ±(π - U[0.1, π/2]) and velocities U[-1, 1], as for the ideal pendulum."""
        return _sample_pendulum(num, generator)

    def _torque(self, q: Tensor, v: Tensor, sign: Tensor) -> Tensor:
        """Return the torque with the sign of the velocity given apart."""
        gravity = self.mass * self.gravity * self.length * torch.sin(q)
        return -gravity - (self.damping + self.quadratic_damping * sign * v) * v

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        def acceleration(q: Array, v: Array, t: Array, sign: Array) -> Array:
            torque = self._torque(torch.from_numpy(q), torch.from_numpy(v), torch.from_numpy(np.array(sign)))
            return np.asarray(torque.numpy() / self.inertia)

        return integrate(acceleration, q0, v0, times, kink=self.quadratic_damping > 0.0)


def _sample_pendulum(num: int, generator: torch.Generator) -> PhaseState:
    """Draw the initial states of Sæmundsson et al. (2020), section 4."""
    check_num(num)
    q = random_sign(num, generator) * (math.pi - uniform(num, 0.1, 0.5 * math.pi, generator))
    return pack_state([q], [uniform(num, -1.0, 1.0, generator)])
