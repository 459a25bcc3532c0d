"""Single oscillators about an equilibrium: linear, driven, cubic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vinppl._checks import require
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

__all__ = ["DrivenOscillator", "Duffing", "MassSpring"]

_SPRING_UNITS = {
    "q": "m",
    "v": "m/s",
    "time": "s",
    "energy": "J",
    "mass": "kg",
    "stiffness": "N/m",
    "damping": "N s/m",
}
_DRIVE_UNITS = {"drive_amplitude": "N", "drive_frequency": "rad/s"}


@dataclass(frozen=True)
class MassSpring(AbstractSystem):
    r"""A mass on a linear spring: m q̈ = -k q - d v.

    Exact in closed form, under-, over- and critically damped.

    Attributes:
        mass: mass m, kg.
        stiffness: spring constant k, N/m.
        damping: viscous friction d, N s/m, may be zero.
    """

    mass: float = 1.0
    stiffness: float = 2.0
    damping: float = 0.0

    name: ClassVar[str] = "mass_spring"
    dim: ClassVar[int] = 1
    coordinate_names: ClassVar[tuple[str, ...]] = ("displacement",)
    angle_coordinates: ClassVar[tuple[bool, ...]] = (False,)
    units: ClassVar[Mapping[str, str]] = _SPRING_UNITS

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "stiffness")
        check_parameters(self, "damping", allow="non-negative")
        if self.damping > 0.0:
            self._declare(conserved=())

    @property
    def inertia(self) -> Array:
        """Mass, kg, shape `(1,)`."""
        return np.array([self.mass], dtype=np.float64)

    def potential(self, q: Tensor) -> Tensor:
        """Return V = ½ k q², `(*batch, 1) -> (*batch)`, J."""
        return 0.5 * self.stiffness * q[..., 0].square()

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return -k q - d v, N."""
        return -self.stiffness * q - self.damping * v

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw displacements ±U[1, 1.5] and velocities ±U[0, 0.5], signs independent."""
        return _sample_spring(num, generator)

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        rate, square = 0.5 * self.damping / self.mass, self.stiffness / self.mass
        q, v = _linear_flow(q0, v0, rate, square, times - times[0])
        return q[..., None], v[..., None]


@dataclass(frozen=True)
class DrivenOscillator(AbstractSystem):
    r"""A damped linear oscillator under a periodic force: m q̈ = -k q - d v + F cos(Ωt).

    Exact: the steady oscillation plus the free motion of the rest. Time is
    absolute: the drive is at its maximum at t = 0. Weak damping at resonance is
    ill-conditioned: digits are lost in the ratio of the steady amplitude to that of the motion.

    Attributes:
        mass: mass m, kg.
        stiffness: spring constant k, N/m.
        damping: viscous friction d, N s/m, positive.
        drive_amplitude: amplitude F of the force, N, may be zero.
        drive_frequency: angular frequency Ω of the force, rad/s.
    """

    mass: float = 1.0
    stiffness: float = 2.0
    damping: float = 0.2
    drive_amplitude: float = 0.5
    drive_frequency: float = 1.0

    name: ClassVar[str] = "driven_oscillator"
    dim: ClassVar[int] = 1
    coordinate_names: ClassVar[tuple[str, ...]] = ("displacement",)
    angle_coordinates: ClassVar[tuple[bool, ...]] = (False,)
    conserved: ClassVar[tuple[str, ...]] = ()
    units: ClassVar[Mapping[str, str]] = {**_SPRING_UNITS, **_DRIVE_UNITS}

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "stiffness", "damping", "drive_frequency")
        check_parameters(self, "drive_amplitude", allow="non-negative")

    @property
    def inertia(self) -> Array:
        """Mass, kg, shape `(1,)`."""
        return np.array([self.mass], dtype=np.float64)

    def potential(self, q: Tensor) -> Tensor:
        """Return V = ½ k q² without the drive, `(*batch, 1) -> (*batch)`, J."""
        return 0.5 * self.stiffness * q[..., 0].square()

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return -k q - d v + F cos(Ωt), N."""
        return -self.stiffness * q - self.damping * v + _drive(self, q, t)

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw displacements ±U[1, 1.5] and velocities ±U[0, 0.5], signs independent."""
        return _sample_spring(num, generator)

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        rate, square = 0.5 * self.damping / self.mass, self.stiffness / self.mass
        frequency = self.drive_frequency
        root = math.sqrt(square)
        detuning, loss = (root - frequency) * (root + frequency), 2.0 * rate * frequency
        scale = self.drive_amplitude / self.mass / (detuning**2 + loss**2)
        cos, sin = np.cos(frequency * times), np.sin(frequency * times)
        steady_q = scale * (detuning * cos + loss * sin)
        steady_v = scale * frequency * (loss * cos - detuning * sin)
        q, v = _linear_flow(q0 - steady_q[0], v0 - steady_v[0], rate, square, times - times[0])
        return (q + steady_q)[..., None], (v + steady_v)[..., None]


@dataclass(frozen=True)
class Duffing(AbstractSystem):
    r"""An oscillator with a cubic spring: m q̈ = -k q - c q³ - d v + F cos(Ωt).

    A negative stiffness makes the potential a double well. Undamped, undriven
    and with k > 0 it is exact: q = A cn(ωt + u₀ | μ) with ω² = (k + c A²) / m and
    μ = c A² / (2 (k + c A²)). Otherwise it is integrated numerically by
    Gauss collocation of order 20; chaotic parameters amplify its round-off.

    Attributes:
        mass: mass m, kg.
        stiffness: linear spring constant k, N/m, any sign.
        cubic: cubic spring constant c, N/m³, not negative (hardening).
        damping: viscous friction d, N s/m, may be zero.
        drive_amplitude: amplitude F of the force, N, may be zero.
        drive_frequency: angular frequency Ω of the force, rad/s.

    References:
        NIST Digital Library of Mathematical Functions, 22.19(ii).
    """

    mass: float = 1.0
    stiffness: float = 1.0
    cubic: float = 1.0
    damping: float = 0.0
    drive_amplitude: float = 0.0
    drive_frequency: float = 1.0

    name: ClassVar[str] = "duffing"
    dim: ClassVar[int] = 1
    coordinate_names: ClassVar[tuple[str, ...]] = ("displacement",)
    angle_coordinates: ClassVar[tuple[bool, ...]] = (False,)
    units: ClassVar[Mapping[str, str]] = {**_SPRING_UNITS, **_DRIVE_UNITS, "cubic": "N/m^3"}

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "drive_frequency")
        check_parameters(self, "cubic", "damping", "drive_amplitude", allow="non-negative")
        check_parameters(self, "stiffness", allow="any sign")
        require(
            self.cubic > 0 or self.stiffness > 0,
            "stiffness of duffing must be positive where cubic is zero, or nothing holds the mass",
            self.stiffness,
        )
        if self.damping > 0.0 or self.drive_amplitude > 0.0:
            self._declare(conserved=())

    @property
    def inertia(self) -> Array:
        """Mass, kg, shape `(1,)`."""
        return np.array([self.mass], dtype=np.float64)

    def potential(self, q: Tensor) -> Tensor:
        """Return V = ½ k q² + ¼ c q⁴ without the drive, `(*batch, 1) -> (*batch)`, J."""
        square = q[..., 0].square()
        return (0.5 * self.stiffness + 0.25 * self.cubic * square) * square

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return -k q - c q³ - d v + F cos(Ωt), N."""
        return -(self.stiffness + self.cubic * q.square()) * q - self.damping * v + _drive(self, q, t)

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw displacements ±U[1, 1.5] and velocities ±U[0, 0.5], signs independent."""
        return _sample_spring(num, generator)

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        if self.conserved and self.stiffness > 0.0:
            return self._elliptic_path(q0, v0, times)
        return integrate(lambda q, v, t, sign: self._acceleration(q, v, t), q0, v0, times)

    def _elliptic_path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        """Return the free undamped motion by elliptic functions."""
        alpha, beta = self.stiffness / self.mass, self.cubic / self.mass
        twice_energy = v0**2 + (alpha + 0.5 * beta * q0**2) * q0**2  # (num, 1), per unit mass
        square = 2.0 * twice_energy / (alpha + np.sqrt(alpha**2 + 2.0 * beta * twice_energy))  # A²
        amplitude = np.sqrt(square)
        frequency = np.sqrt(alpha + beta * square)
        m1 = (alpha + 0.5 * beta * square) / frequency**2
        safe = np.where(amplitude > 0.0, amplitude, 1.0)
        # dn² = 1 - μ sn² = m1 + μ cn²; the amplitude of the phase follows from cn and sn together.
        cn0 = np.where(amplitude > 0.0, q0 / safe, 1.0)
        dn0 = np.sqrt(m1 + (1.0 - m1) * np.minimum(cn0**2, 1.0))
        sn0 = -v0 / (safe * frequency * dn0)
        norm = np.hypot(sn0, cn0)
        u0 = incomplete_first(sn0 / norm, cn0 / norm, m1)
        sn, cn, dn, _ = jacobi(u0 + frequency * (times - times[0]), m1)
        return (amplitude * cn)[..., None], (-amplitude * frequency * sn * dn)[..., None]


def _linear_flow(q0: Array, v0: Array, rate: float, square: float, t: Array) -> tuple[Array, Array]:
    """Return the free motion of q̈ + 2γ q̇ + ω² q = 0, `(num, 1)` and `(time,)` to `(num, time)`.

    With C = cosh(δt), S = sinh(δt) / δ, δ² = γ² - ω² (trigonometric below zero):
    q = e^{-γt} ((C + γS) q₀ + S v₀), v = e^{-γt} ((C - γS) v₀ - ω² S q₀). Overdamped,
    the slow decay γ - δ = ω² / (γ + δ) is taken out, so nothing overflows or cancels.
    """
    root = math.sqrt(square)
    discriminant = (rate - root) * (rate + root)
    if discriminant <= 0.0:
        own = math.sqrt(-discriminant)
        decay = np.exp(-rate * t)
        S = decay * t * np.sinc(own * t / np.pi)
        C = decay * np.cos(own * t)
        plus, minus = C + rate * S, C - rate * S
    else:
        delta = math.sqrt(discriminant)
        slow = square / (rate + delta)
        decay, fast = np.exp(-slow * t), np.exp(-(rate + delta) * t)
        S = -decay * np.expm1(-2.0 * delta * t) / (2.0 * delta)
        plus, minus = fast + (rate + delta) * S, fast - slow * S
    return plus * q0 + S * v0, minus * v0 - square * S * q0


def _drive(system: DrivenOscillator | Duffing, q: Tensor, t: Tensor | float) -> Tensor:
    """Return F cos(Ωt) with the shape of `q`."""
    phase = system.drive_frequency * torch.as_tensor(t, dtype=q.dtype, device=q.device)
    return (system.drive_amplitude * torch.cos(phase)).unsqueeze(-1).expand_as(q)


def _sample_spring(num: int, generator: torch.Generator) -> PhaseState:
    """Draw the initial states of the mass-spring of Sæmundsson et al. (2020), section 4."""
    check_num(num)
    q = random_sign(num, generator) * uniform(num, 1.0, 1.5, generator)
    return pack_state([q], [random_sign(num, generator) * uniform(num, 0.0, 0.5, generator)])
