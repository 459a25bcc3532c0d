"""Configuration manifolds: which generalised coordinates live on a line and which on a circle.

Positions are always stored unwrapped (an angle counts revolutions), so the
manifold matters in three places: the Lie-group integrator, the features that a
periodic potential sees, and distances between states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vinppl._checks import require

__all__ = ["Circle", "Euclidean", "Manifold", "Torus"]

LINE_WAVE_NUMBER = math.pi / 4
"""Of the longest wave on a line."""


@dataclass(frozen=True)
class Manifold:
    """A product of lines and circles.

    Attributes:
        periodic: for each coordinate, whether it is an angle in radians (period 2 pi).
    """

    periodic: tuple[bool, ...]

    def __post_init__(self) -> None:
        require(len(self.periodic) >= 1, "a manifold must have at least one coordinate", "none")

    @property
    def dim(self) -> int:
        """Number of generalised coordinates."""
        return len(self.periodic)

    @property
    def any_periodic(self) -> bool:
        """Whether any coordinate is an angle."""
        return any(self.periodic)

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Return `a - b` per coordinate, angles by their shortest way round, in (-pi, pi].

        Args:
            a: positions, shape `(*batch, dim)`.
            b: positions, broadcastable with `a`.
        """
        plain = a - b
        if not self.any_periodic:
            return plain
        wrapped = math.pi - torch.remainder(math.pi - plain, 2 * math.pi)
        return torch.where(torch.tensor(self.periodic, device=plain.device), wrapped, plain)

    def wrap(self, q: Tensor) -> Tensor:
        """Return positions with every angle in (-pi, pi], for display only."""
        return self.difference(q, torch.zeros_like(q))

    def features(self, q: Tensor) -> Tensor:
        """Return smooth coordinates of the embedding: q for a line, (sin q, cos q) for a circle.

        Returns:
            Shape `(*batch, num_features)`: first the lines, then all sines, then all cosines.
        """
        if not self.any_periodic:
            return q
        if all(self.periodic):
            return torch.cat([q.sin(), q.cos()], dim=-1)
        angle = q[..., self._indices(True)]
        return torch.cat([q[..., self._indices(False)], angle.sin(), angle.cos()], dim=-1)

    def pull_back(self, q: Tensor, cotangent: Tensor) -> Tensor:
        """Return the transposed Jacobian of `features` at `q`, applied to a cotangent.

        Args:
            q: positions, shape `(*batch, dim)`.
            cotangent: derivative with respect to the features, `(*batch, num_features)`.

        Returns:
            Derivative with respect to `q`, shape `(*batch, dim)`.
        """
        if not self.any_periodic:
            return cotangent
        if all(self.periodic):
            on_sin, on_cos = cotangent.chunk(2, dim=-1)
            return on_sin * q.cos() - on_cos * q.sin()
        lines, circles = self._indices(False), self._indices(True)
        on_line, on_sin, on_cos = cotangent.split([len(lines), len(circles), len(circles)], dim=-1)
        angle = q[..., circles]
        on_circle = on_sin * angle.cos() - on_cos * angle.sin()
        stacked, order = torch.cat([on_line, on_circle], dim=-1), [*lines, *circles]
        return stacked[..., [order.index(i) for i in range(self.dim)]]

    def wave_numbers(self, count: int, *, beyond_features: bool = False) -> Tensor:
        """Return the wave numbers of each coordinate's first harmonics, `(dim, count)`.

        They are whole numbers for an angle; on a line, whose positions are of unit size, the longest wave
        has a length of 8.

        Args:
            count: harmonics of each coordinate.
            beyond_features: whether to leave out an angle's first, which is among the features.
        """
        order = torch.arange(1.0, count + 1)
        return torch.stack(
            [order + beyond_features if circle else LINE_WAVE_NUMBER * order for circle in self.periodic]
        )

    @property
    def num_features(self) -> int:
        """Size of the last dimension of `features`."""
        return self.dim + sum(self.periodic)

    def _indices(self, periodic: bool) -> list[int]:
        return [i for i, flag in enumerate(self.periodic) if flag == periodic]


def Euclidean(dim: int = 1) -> Manifold:
    """Return the Euclidean space of `dim` coordinates."""
    return Manifold((False,) * dim)


def Circle() -> Manifold:
    """Return the circle: one angle in radians."""
    return Manifold((True,))


def Torus(dim: int) -> Manifold:
    """Return the torus of `dim` angles in radians."""
    return Manifold((True,) * dim)
