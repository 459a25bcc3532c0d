"""Distributions that Pyro does not have."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["SphericalStudentT"]


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
