"""Two systems of celestial mechanics in the plane: the Kepler problem and Hénon-Heiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import SolveError
from vinppl.state import PhaseState
from vinppl.systems._gauss import integrate
from vinppl.systems.base import AbstractSystem, Array, check_num, check_parameters, pack_state, uniform

__all__ = ["HenonHeiles", "Kepler"]

_MAX_NEWTON = 100


@dataclass(frozen=True)
class Kepler(AbstractSystem):
    r"""The reduced two-body problem in the plane: m q̈ = -m μ q / |q|³.

    Exact for ellipses through Kepler's equation in the difference of eccentric
    anomalies, solved to round-off after whole periods are taken out, and
    Lagrange's f and g functions written without cancellation.

    Attributes:
        mass: reduced mass m, kg; it scales energy and momenta, not the orbit.
        gravitational_parameter: μ = G (m₁ + m₂), m³/s².

    References:
        Battin, An Introduction to the Mathematics and Methods of Astrodynamics (1999), section 4.3.
    """

    mass: float = 1.0
    gravitational_parameter: float = 1.0

    name: ClassVar[str] = "kepler"
    dim: ClassVar[int] = 2
    coordinate_names: ClassVar[tuple[str, ...]] = ("x", "y")
    angle_coordinates: ClassVar[tuple[bool, ...]] = (False, False)
    conserved: ClassVar[tuple[str, ...]] = ("energy", "angular_momentum", "laplace_runge_lenz")
    units: ClassVar[Mapping[str, str]] = {
        "q": "m",
        "v": "m/s",
        "time": "s",
        "energy": "J",
        "mass": "kg",
        "gravitational_parameter": "m^3/s^2",
    }

    def __post_init__(self) -> None:
        check_parameters(self, "mass", "gravitational_parameter")

    @property
    def inertia(self) -> Array:
        """Reduced mass for both coordinates, kg, shape `(2,)`."""
        return np.full(2, float(self.mass))

    def potential(self, q: Tensor) -> Tensor:
        """Return V = -m μ / |q|, `(*batch, 2) -> (*batch)`, J."""
        return -self.mass * self.gravitational_parameter / _radius(q)

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return -m μ q / |q|³, N."""
        r = _radius(q)[..., None]
        return -self.mass * self.gravitational_parameter * q / r**3

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw ellipses run through anticlockwise, in any orientation and phase.

        Semi-major axis U[0.8, 1.2] m, eccentricity U[0, 0.6].
        """
        check_num(num)
        a, e = uniform(num, 0.8, 1.2, generator), uniform(num, 0.0, 0.6, generator)
        angle, anomaly = (uniform(num, -math.pi, math.pi, generator) for _ in range(2))
        b = a * torch.sqrt(1.0 - e**2)
        rate = torch.sqrt(self.gravitational_parameter / a**3) / (1.0 - e * torch.cos(anomaly))
        x, y = a * (torch.cos(anomaly) - e), b * torch.sin(anomaly)
        vx, vy = -a * rate * torch.sin(anomaly), b * rate * torch.cos(anomaly)
        c, s = torch.cos(angle), torch.sin(angle)
        return pack_state([c * x - s * y, s * x + c * y], [c * vx - s * vy, s * vx + c * vy])

    def angular_momentum(self, q: Tensor, v: Tensor) -> Tensor:
        """Return m (x v_y - y v_x), the momentum map of rotations, `(*batch, 2) -> (*batch)`, kg m²/s."""
        return self.mass * (q[..., 0] * v[..., 1] - q[..., 1] * v[..., 0])

    def laplace_runge_lenz(self, q: Tensor, v: Tensor) -> Tensor:
        """Return A = p x L - m² μ q / |q|, `(*batch, 2) -> (*batch, 2)`, kg² m³/s².

        It points at the pericentre and its length is m² μ times the eccentricity.
        """
        turned = torch.stack([v[..., 1], -v[..., 0]], -1)  # v x e_z
        r = _radius(q)[..., None]
        rotation = self.angular_momentum(q, v)[..., None]
        return self.mass * rotation * turned - self.mass**2 * self.gravitational_parameter * q / r

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        mu = self.gravitational_parameter
        r0 = np.linalg.norm(q0, axis=1)[:, None]  # (num, 1)
        fix = "Only ellipses have been implemented."
        require(bool((r0 > 0).all()), "initial position of kepler must not be the centre of force", "zero")
        inverse = 2.0 / r0 - (v0**2).sum(1)[:, None] / mu
        require(
            bool((inverse > 0).all()), "initial state of kepler must be bound, energy < 0", "energy >= 0", fix
        )
        a = 1.0 / inverse
        root = np.sqrt(mu * a)
        cos_part, sin_part = 1.0 - r0 / a, (q0 * v0).sum(1)[:, None] / root  # e cos E0, e sin E0
        e = np.hypot(cos_part, sin_part)
        closed = bool((e < 1.0).all())
        require(closed, "initial state of kepler must have eccentricity below 1", "e >= 1", fix)
        motion = root / a**2
        elapsed = motion * (times - times[0])
        elapsed = elapsed - 2.0 * np.pi * np.round(elapsed / (2.0 * np.pi))
        x = _kepler_equation(elapsed, cos_part, sin_part)  # (num, time)
        sin_x, versine = np.sin(x), 2.0 * np.sin(0.5 * x) ** 2
        r = a * (r0 / a + cos_part * versine + sin_part * sin_x)
        f = 1.0 - a / r0 * versine
        g = (a * sin_part * versine + r0 * sin_x) / (motion * a)
        df, dg = -root * sin_x / (r * r0), 1.0 - a / r * versine
        q0, v0 = q0[:, None], v0[:, None]
        return f[..., None] * q0 + g[..., None] * v0, df[..., None] * q0 + dg[..., None] * v0


def _radius(q: Tensor) -> Tensor:
    """Return |q|, `(*batch, 2) -> (*batch)`."""
    return torch.hypot(q[..., 0], q[..., 1])


def _kepler_equation(elapsed: Array, cos_part: Array, sin_part: Array) -> Array:
    """Solve x - e cos E0 sin x + e sin E0 (1 - cos x) = M for x by guarded Newton steps.

    The left side grows monotonically and differs from x by at most 2e, which
    brackets the root; a Newton step that leaves the bracket is replaced by bisection.

    Args:
        elapsed: mean anomaly M since the initial state, in [-π, π], shape `(num, time)`.
        cos_part: e cos E0, shape `(num, 1)`.
        sin_part: e sin E0, same shape.

    Raises:
        SolveError: if the residual stays above round-off.
    """
    e = np.hypot(cos_part, sin_part)
    low, high = elapsed - 2.0 * e, elapsed + 2.0 * e
    x = elapsed.copy() + 0.0 * e
    residual = np.full_like(x, np.inf)
    for _ in range(_MAX_NEWTON):
        sin_x, versine = np.sin(x), 2.0 * np.sin(0.5 * x) ** 2
        residual = x - cos_part * sin_x + sin_part * versine - elapsed
        low, high = np.where(residual <= 0.0, x, low), np.where(residual >= 0.0, x, high)
        slope = (1.0 - cos_part) + cos_part * versine + sin_part * sin_x
        new = x - residual / slope
        new = np.where((new < low) | (new > high), 0.5 * (low + high), new)
        moved = np.abs(new - x).max()
        x = new
        if moved <= 2e-16:
            break
    # Each of the four terms is at most about 2π and is rounded once.
    worst = float(np.abs(residual).max())
    if not worst <= 1e-14:
        raise SolveError("Kepler's equation was not solved to round-off", residual=worst)
    return x


@dataclass(frozen=True)
class HenonHeiles(AbstractSystem):
    r"""Motion in the plane with V = ½ (x² + y²) + λ (x² y - y³ / 3), all quantities without unit.

    Regular at low energy, chaotic as it nears the escape energy 1 / (6 λ²), above which
    orbits may run away in finite time. Numerical, by Gauss collocation of order 20.

    Attributes:
        coupling: coefficient λ of the cubic terms, without unit.

    References:
        Hénon and Heiles, The applicability of the third integral of motion, Astronomical Journal 69 (1964).
    """

    coupling: float = 1.0

    name: ClassVar[str] = "henon_heiles"
    dim: ClassVar[int] = 2
    coordinate_names: ClassVar[tuple[str, ...]] = ("x", "y")
    angle_coordinates: ClassVar[tuple[bool, ...]] = (False, False)
    units: ClassVar[Mapping[str, str]] = {"q": "1", "v": "1", "time": "1", "energy": "1", "coupling": "1"}

    def __post_init__(self) -> None:
        check_parameters(self, "coupling")

    @property
    def inertia(self) -> Array:
        """Unit mass for both coordinates, shape `(2,)`."""
        return np.ones(2)

    def potential(self, q: Tensor) -> Tensor:
        """Return V(q), `(*batch, 2) -> (*batch)`."""
        x, y = q[..., 0], q[..., 1]
        return 0.5 * (x * x + y * y) + self.coupling * y * (x * x - y * y / 3.0)

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return (-x - 2λxy, -y - λ(x² - y²))."""
        x, y = q[..., 0], q[..., 1]
        lam = self.coupling
        return torch.stack([-x - 2.0 * lam * x * y, -y - lam * (x - y) * (x + y)], -1)

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw bound states: positions uniform on a disc of radius 1/(4λ), energies U[1/24, 1/8] / λ²."""
        check_num(num)
        scale = 1.0 / self.coupling
        r = 0.25 * scale * torch.sqrt(uniform(num, 0.0, 1.0, generator))
        angle, heading = (uniform(num, -math.pi, math.pi, generator) for _ in range(2))
        energy = scale**2 * uniform(num, 1.0 / 24.0, 1.0 / 8.0, generator)
        q = torch.stack([r * torch.cos(angle), r * torch.sin(angle)], -1)
        # On the disc V <= (1/32 + 1/192) / λ² < 1 / (24 λ²), so the speed is real.
        speed = torch.sqrt(2.0 * (energy - self.potential(q)))
        return pack_state([q[:, 0], q[:, 1]], [speed * torch.cos(heading), speed * torch.sin(heading)])

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        return integrate(lambda q, v, t, sign: self._acceleration(q, v, t), q0, v0, times)
