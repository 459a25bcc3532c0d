"""A chain of oscillators, solved through its eigenmodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.state import PhaseState
from vinppl.systems.base import AbstractSystem, Array, check_num, check_number, pack_state, uniform

__all__ = ["CoupledOscillators"]


@dataclass(frozen=True)
class CoupledOscillators(AbstractSystem):
    r"""Masses in a row, joined by springs, between two walls: M q̈ = -K q.

    Spring i joins mass i - 1 to mass i; the first and the last hold on to the
    walls and may be zero (a free end). Exact through the eigenmodes of
    M^{-1/2} K M^{-1/2}.

    Attributes:
        masses: n masses, kg.
        stiffnesses: n + 1 spring constants from wall to wall, N/m; positive
            except for the first and the last, which may be zero.
    """

    masses: tuple[float, ...] = (1.0, 1.0, 1.0)
    stiffnesses: tuple[float, ...] = (2.0, 1.0, 1.0, 2.0)

    name: ClassVar[str] = "coupled_oscillators"
    units: ClassVar[Mapping[str, str]] = {
        "q": "m",
        "v": "m/s",
        "time": "s",
        "energy": "J",
        "masses": "kg",
        "stiffnesses": "N/m",
    }

    def __post_init__(self) -> None:
        masses, stiffnesses = tuple(self.masses), tuple(self.stiffnesses)
        require(len(masses) >= 1, "masses of coupled_oscillators must hold at least one mass", repr(masses))
        require(
            len(stiffnesses) == len(masses) + 1,
            "stiffnesses of coupled_oscillators must hold one spring more than there are masses",
            f"{len(stiffnesses)} for {len(masses)} masses",
            "Give the springs from wall to wall, zero for a free end.",
        )
        for i, value in enumerate(masses):
            check_number(f"masses[{i}] of coupled_oscillators", value)
        for i, value in enumerate(stiffnesses):
            inner = 0 < i < len(masses)
            label = f"stiffnesses[{i}] of coupled_oscillators"
            check_number(label, value, allow="positive" if inner else "non-negative")
        free = stiffnesses[0] == stiffnesses[-1] == 0
        self._declare(
            masses=masses,
            stiffnesses=stiffnesses,
            dim=len(masses),
            coordinate_names=tuple(f"displacement_{i}" for i in range(len(masses))),
            angle_coordinates=(False,) * len(masses),
            conserved=("energy", "mode_energies", *(("momentum",) if free else ())),
        )

    @property
    def inertia(self) -> Array:
        """Masses, kg, shape `(dim,)`."""
        return np.array(self.masses, dtype=np.float64)

    @property
    def stiffness_matrix(self) -> Array:
        """Matrix K of the force -K q, N/m, shape `(dim, dim)`."""
        k = np.array(self.stiffnesses, dtype=np.float64)
        return np.diag(k[:-1] + k[1:]) - np.diag(k[1:-1], 1) - np.diag(k[1:-1], -1)

    def modes(self) -> tuple[Array, Array]:
        """Return the angular frequencies ω, rad/s, ascending, and the mode shapes.

        Returns:
            Frequencies of shape `(dim,)` and a matrix S of shape `(dim, dim)`, one
            mode per column, with S^T M S = 1 and S^T K S = diag(ω²).
        """
        root = 1.0 / np.sqrt(self.inertia)
        squares, vectors = np.linalg.eigh(root[:, None] * self.stiffness_matrix * root)
        if "momentum" in self.conserved:
            squares[0] = 0.0  # known exactly: both ends are free
        return np.sqrt(squares), root[:, None] * vectors

    def potential(self, q: Tensor) -> Tensor:
        """Return V = ½ q^T K q, summed spring by spring, `(*batch, dim) -> (*batch)`, J."""
        k = torch.tensor(self.stiffnesses, dtype=q.dtype, device=q.device)
        return 0.5 * (k * self._stretch(q).square()).sum(-1)

    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return -K q, N."""
        k = torch.tensor(self.stiffnesses, dtype=q.dtype, device=q.device)
        return (k * self._stretch(q)).diff(dim=-1)

    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw every displacement from U[-1, 1] and every velocity from U[-1, 1]."""
        check_num(num)
        draws = [uniform(num, -1.0, 1.0, generator) for _ in range(2 * self.dim)]
        return pack_state(draws[: self.dim], draws[self.dim :])

    def mode_energies(self, q: Tensor, v: Tensor) -> Tensor:
        """Return the energy of every mode, `(*batch, dim) -> (*batch, dim)`, J, conserved one by one."""
        frequencies, shapes = (torch.as_tensor(x, dtype=q.dtype, device=q.device) for x in self.modes())
        project = torch.as_tensor(self.inertia, dtype=q.dtype, device=q.device)[:, None] * shapes
        return 0.5 * ((v @ project).square() + (frequencies * (q @ project)).square())

    def momentum(self, q: Tensor, v: Tensor) -> Tensor:
        """Return the total momentum, `(*batch, dim) -> (*batch)`, kg m/s; conserved if both ends are free."""
        return (torch.as_tensor(self.inertia, dtype=v.dtype, device=v.device) * v).sum(-1)

    def _stretch(self, q: Tensor) -> Tensor:
        """Return the elongation of every spring, shape `(*batch, dim + 1)`, m."""
        wall = torch.zeros_like(q[..., :1])
        return torch.cat([wall, q, wall], -1).diff(dim=-1)

    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        frequencies, shapes = self.modes()
        project = self.inertia[:, None] * shapes
        a, b = (q0 @ project)[:, None], (v0 @ project)[:, None]  # (num, 1, mode)
        t = (times - times[0])[:, None]
        angle = frequencies * t  # (time, mode)
        cos, sin = np.cos(angle), np.sin(angle)
        over = t * np.sinc(angle / np.pi)  # sin(ωt) / ω, and t for a mode without restoring force
        return (a * cos + b * over) @ shapes.T, (b * cos - a * frequencies * sin) @ shapes.T
