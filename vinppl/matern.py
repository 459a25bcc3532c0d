"""Matérn processes at equidistant knots: a smooth random function of time, its derivative, its continuation.

The process of smoothness 3/2 has the covariance A^2 (1 + r) exp(-r), r = sqrt(3) |s - t| / l, of amplitude A
and correlation time l. With its derivative it is Markov: its density is a product over knots.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["MaternKnots", "continue_path", "matern_path"]


class MaternKnots(TorchDistribution):
    """A Matérn-3/2 process and its derivative at equidistant knots, several independent ones side by side.

    Cov[d(s), d(t)] = A^2 (1 + r) exp(-r), r = sqrt(3) |s - t| / l. The event, `(knots, 2 dim)`, holds the
    values and then the derivatives times the spacing.

    Reference: Särkkä and Solin, Applied stochastic differential equations (2019), section 12.3.

    Args:
        amplitude: A > 0, the stationary standard deviation, shape `batch_shape`.
        ratio: spacing over l, > 0, same shape.
        num_knots: number of knots, at least 1.
        dim: number of processes.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "amplitude": constraints.positive,
        "ratio": constraints.positive,
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, amplitude: Tensor, ratio: Tensor, num_knots: int, dim: int = 1, *, validate_args: Any = None
    ):
        self.amplitude, self.ratio = broadcast_all(amplitude, ratio)
        self.num_knots, self.dim = num_knots, dim
        event = torch.Size((num_knots, 2 * dim))
        super().__init__(self.amplitude.shape, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaternKnots:
        """Return the same distribution over a larger batch."""
        new = self._get_checked_instance(MaternKnots, _instance)
        new.amplitude, new.ratio = self.amplitude.expand(batch_shape), self.ratio.expand(batch_shape)
        new.num_knots, new.dim = self.num_knots, self.dim
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, `(*batch, num_knots, 2 dim) -> (*batch)`."""
        if self._validate_args:
            self._validate_sample(value)
        step = _Step.of(self.ratio)
        scale = self.amplitude[..., None, None]
        f, g = value.chunk(2, dim=-1)
        f, g = f / scale, g / (step.a * scale)
        before, slope = f[..., :-1, :], g[..., :-1, :]
        z1 = (f[..., 1:, :] - step.fade * ((1 + step.a) * before + step.a * slope)) / step.first
        rest = g[..., 1:, :] - step.fade * ((1 - step.a) * slope - step.a * before)
        z2 = (rest - step.cross * z1) / step.second
        square = f[..., 0, :].square() + g[..., 0, :].square()
        squares = (z1.square() + z2.square()).sum((-2, -1)) + square.sum(-1)
        spread = (step.first * step.second).log()[..., 0, 0]
        size = 2 * self.amplitude.log() + step.a.log()[..., 0, 0] + math.log(2 * math.pi)
        return -0.5 * squares - self.dim * ((self.num_knots - 1) * spread + self.num_knots * size)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw processes, `(*sample_shape, *batch, num_knots, 2 dim)`."""
        shape = self._extended_shape(sample_shape)
        z = torch.randn(shape, dtype=self.amplitude.dtype, device=self.amplitude.device)
        return self.amplitude[..., None, None] * torch.cat(matern_path(z, self.ratio), dim=-1)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        shape = self._extended_shape()
        return torch.zeros(shape, dtype=self.amplitude.dtype, device=self.amplitude.device)

    @property
    def variance(self) -> Tensor:
        """A^2 of the values, (sqrt(3) A ratio)^2 of the derivatives."""
        values = self.amplitude.square()[..., None, None].expand(*self.batch_shape, self.num_knots, self.dim)
        return torch.cat([values, 3 * self.ratio.square()[..., None, None] * values], dim=-1)


class _Step(NamedTuple):
    """One step of the pair x = (f, l f' / sqrt(3)) of a process of variance one, in terms of a = sqrt(3) / l
    times its length: x_k = T x_{k-1} + C z_k with T = exp(-a) (1 + a, a; -a, 1 - a) and C C^T = I - T T^T.

    Attributes:
        a: shape `(*batch, 1, 1)`.
        fade: exp(-a).
        first: upper left entry of the lower triangular C.
        cross: lower left entry.
        second: lower right entry.
    """

    a: Tensor
    fade: Tensor
    first: Tensor
    cross: Tensor
    second: Tensor

    @classmethod
    def of(cls, ratio: Tensor) -> _Step:
        """Return the step of a length `ratio` times l, shape `(*batch)`."""
        a = (math.sqrt(3) * ratio)[..., None, None]
        fade = (-a).exp()
        decay = fade.square()
        first = (1 - decay * (1 + 2 * a + 2 * a.square())).sqrt()
        cross = 2 * decay * a.square() / first
        second = (1 - decay * (1 - 2 * a + 2 * a.square()) - cross.square()).sqrt()
        return cls(a, fade, first, cross, second)


def matern_path(z: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return a Matérn-3/2 process of variance one at equidistant knots, and derivatives times the spacing.

    The recursion of the Markov process is written out as a sum over all innovations with powers of T,
    which have the same form with a times the number of steps.

    Args:
        z: standard normal innovations, the first of the two numbers of each process before the second,
            shape `(*batch, knots, 2 dim)`.
        ratio: spacing over correlation time, shape `(*batch)` or one that broadcasts with it.

    Returns:
        Two tensors of shape `(*batch, knots, dim)`.
    """
    step = _Step.of(ratio)
    z1, z2 = z.chunk(2, dim=-1)
    later = torch.ones(z.shape[-2], 1, dtype=z.dtype, device=z.device)
    later[0] = 0.0  # the first knot is stationary
    x = z1 * (1 + later * (step.first - 1))
    y = z2 * (1 + later * (step.second - 1)) + z1 * later * step.cross
    steps = torch.arange(z.shape[-2], dtype=z.dtype, device=z.device)
    lag = steps.unsqueeze(-1) - steps  # (knots, knots)
    since = step.a * lag.clamp_min(0.0)
    fade = (lag >= 0).to(z.dtype) * (-since).exp()
    f = (fade * (1 + since)) @ x + (fade * since) @ y
    g = (fade * (1 - since)) @ y - (fade * since) @ x
    return f, step.a * g


def continue_path(
    values: Tensor, slopes: Tensor, z: Tensor, amplitude: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a Matérn-3/2 process at known knots followed by later ones, drawn given the last known knot.

    Args:
        values: at the known knots, shape `(*batch, knots, dim)`.
        slopes: derivatives times the spacing, same shape.
        z: standard normal innovations of the later knots, shape `(*batch, later, 2 dim)`.
        amplitude: stationary standard deviation, shape `(*batch)` or one that broadcasts with it.
        ratio: spacing over correlation time, same.

    Returns:
        Values and slopes, each `(*batch, knots + later, dim)`.
    """
    scale, slope_scale = amplitude[..., None, None], math.sqrt(3) * (amplitude * ratio)[..., None, None]
    last = torch.cat([values[..., -1:, :] / scale, slopes[..., -1:, :] / slope_scale], dim=-1)
    last = last.expand(*z.shape[:-2], 1, -1)
    f, g = matern_path(torch.cat([last, z], dim=-2), ratio)  # the first of which is taken as it is
    parts = ((values, scale * f), (slopes, scale * g))
    a, b = (torch.cat([x.expand(*y.shape[:-2], -1, -1), y[..., 1:, :]], dim=-2) for x, y in parts)
    return a, b
