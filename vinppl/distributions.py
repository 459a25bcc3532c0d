"""Distributions that Pyro does not have."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Uniform, register_kl
from torch.distributions.utils import broadcast_all

__all__ = ["SphericalStudentT", "WrappedNormal", "divergence_from_uniform"]


class SphericalStudentT(TorchDistribution):
    """The multivariate Student-t with scale matrix s^2 I: a normal vector whose common scale is unknown.

    It is the marginal over A of w ~ Normal(0, (A s)^2 I) with 1/A^2 ~ Gamma(df/2, df/2). As a prior of
    weights it lets the data set their common size, without a site for A and the funnel that A makes.

    Args:
        df: degrees of freedom > 0; the smaller, the less is said about the size.
        scale: s > 0, scalar or `batch_shape`.
        size: length of the vector.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.positive,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, df: float | Tensor, scale: float | Tensor, size: int, *, validate_args: Any = None):
        self.df, self.scale = broadcast_all(df, scale)
        self.size = size
        super().__init__(self.scale.shape, torch.Size((size,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphericalStudentT:
        """Return the same distribution over a larger batch."""
        new = self._get_checked_instance(SphericalStudentT, _instance)
        new.df, new.scale, new.size = self.df.expand(batch_shape), self.scale.expand(batch_shape), self.size
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, `(*batch, size) -> (*batch)`."""
        if self._validate_args:
            self._validate_sample(value)
        half, n = 0.5 * self.df, self.size
        square = (value / self.scale.unsqueeze(-1)).square().sum(-1)
        constant = torch.lgamma(half + 0.5 * n) - torch.lgamma(half)
        constant = constant - 0.5 * n * (math.pi * self.df).log() - n * self.scale.log()
        return constant - (half + 0.5 * n) * torch.log1p(square / self.df)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw vectors, `(*sample_shape, *batch, size)`."""
        shape = self._extended_shape(sample_shape)
        normal = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        half = (0.5 * self.df).expand(shape[:-1])
        tiny = torch.finfo(half.dtype).tiny  # a gamma draw of few degrees of freedom may round to zero
        precision = torch._standard_gamma(half).clamp_min(tiny) / half
        return self.scale.unsqueeze(-1) * normal / precision.sqrt().unsqueeze(-1)

    @property
    def mean(self) -> Tensor:
        """The centre, which is the mean for df > 1."""
        return torch.zeros(self._extended_shape(), dtype=self.scale.dtype, device=self.scale.device)


class WrappedNormal(TorchDistribution):
    """A normal wound round the circle: the angle of loc + scale e with e standard normal, in (-pi, pi].

    Draws are differentiable in both parameters, and for small scales it is the normal. On the circle,
    which is the group SO(2), it is a normal in the Lie algebra pushed forward by the exponential map.

    Args:
        loc: mean direction, radians, any real number.
        scale: standard deviation > 0 of the angle before it is wound up, radians.

    References:
        Mardia, Jupp: Directional statistics. Wiley (2000), section 3.5.7.
        Falorsi, de Haan, Davidson, Forre: Reparameterizing distributions on Lie groups. AISTATS 2019.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.interval(-math.pi, math.pi)
    has_rsample = True

    def __init__(self, loc: float | Tensor, scale: float | Tensor, *, validate_args: Any = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WrappedNormal:
        """Return the same distribution over a larger batch."""
        new = self._get_checked_instance(WrappedNormal, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density on the circle, exact to rounding for every scale.

        A narrow one is a sum over revolutions, a wide one over harmonics of the angle.
        """
        if self._validate_args:
            self._validate_sample(value)
        angle = _wrap(value - self.loc)
        narrow, wide = self.scale.clamp_max(WIDE), self.scale.clamp_min(WIDE)
        turns = torch.arange(-4, 5, dtype=angle.dtype, device=angle.device)
        each = (angle.unsqueeze(-1) + 2 * math.pi * turns) / narrow.unsqueeze(-1)
        by_turns = torch.logsumexp(-0.5 * each.square(), dim=-1) - (math.sqrt(2 * math.pi) * narrow).log()
        n = turns[5:]
        waves = (-0.5 * (n * wide.unsqueeze(-1)).square()).exp() * (n * angle.unsqueeze(-1)).cos()
        by_waves = torch.log1p(2 * waves.sum(-1)) - math.log(2 * math.pi)
        return torch.where(self.scale < WIDE, by_turns, by_waves)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw angles, `(*sample_shape, *batch)`."""
        shape = self._extended_shape(sample_shape)
        return _wrap(self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))


WIDE = 2.0
"""Standard deviation beyond which few harmonics, and below which few revolutions, give the density."""

NARROW = 0.4
"""Standard deviation below which winding up costs a normal no entropy: less than 1e-13 nats."""

MAX_TERMS = 240
"""Terms of the series of the divergence; those left out are below 1e-16 of it at the scale `NARROW`."""


def divergence_from_uniform(scale: Tensor) -> Tensor:
    """Return the KL divergence of a wrapped normal from the uniform distribution on the circle, in nats.

    With q = exp(-scale^2) it is

        sum_n [2 (-1)^(n+1) q^(n (n+1) / 2) - q^n] / [n (1 - q^n)],    n = 1, 2, ...

    because by Jacobi's triple product 2 pi p(x) = prod_m (1 - q^m) |1 + q^(m - 1/2) e^(i x)|^2, whose
    logarithm is a series of harmonics with E e^(i n x) = q^(n^2 / 2); the terms in n are then geometric
    series in m. Below a scale of 0.4 it is log(2 pi) minus the entropy of the normal, to rounding.

    Args:
        scale: standard deviation before winding up, radians, any shape.

    Returns:
        Divergences of the same shape, from 0 for a wide one to infinity for a point.
    """
    n = torch.arange(1, MAX_TERMS + 1, dtype=scale.dtype, device=scale.device)
    sign = 2.0 - 4.0 * torch.remainder(n + 1, 2)  # 2, -2, 2, ..
    rate = scale.clamp_min(NARROW).square().unsqueeze(-1)
    terms = (sign * (-0.5 * n * (n + 1) * rate).exp() - (-n * rate).exp()) / (-n * torch.expm1(-n * rate))
    as_normal = 0.5 * math.log(2 * math.pi) - 0.5 - scale.clamp_max(NARROW).log()
    return torch.where(scale < NARROW, as_normal, terms.sum(-1))


@register_kl(WrappedNormal, Uniform)
def _divergence(p: WrappedNormal, q: Uniform) -> Tensor:
    """Return the divergence from a uniform distribution of angles; infinite where it leaves some out."""
    covers = (q.low <= -CIRCLE) & (q.high >= CIRCLE)
    beyond = ((q.high - q.low) / (2 * math.pi)).log()
    return torch.where(covers, divergence_from_uniform(p.scale) + beyond, math.inf)


CIRCLE = math.pi * (1 - 1e-6)
"""Half of the circle, as far as bounds in single precision tell."""


def _wrap(angle: Tensor) -> Tensor:
    """Return angles in (-pi, pi]."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)
