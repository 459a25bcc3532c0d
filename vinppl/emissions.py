"""How measurements scatter around a trajectory: Gaussian, Student-t, and AR(1) noise, and pixels.

Each is a distribution over whole series, batch `(*batch,)` and event
`(time, channel)`, that knows which entries were observed. Missing entries count
for nothing in `log_prob`; `pointwise_log_prob` keeps the entries apart for ArviZ.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import Bernoulli, Gamma, Normal, StudentT, TorchDistribution, constraints
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.parameters import Component, Spec

__all__ = [
    "AR1Emission",
    "AR1Series",
    "GaussianEmission",
    "GaussianSeries",
    "LikelihoodName",
    "NoiseName",
    "PixelEmission",
    "StudentTEmission",
    "StudentTSeries",
    "VelocityGain",
    "make_emission",
    "make_pixel_emission",
]


Shape = torch.Size | list[int] | tuple[int, ...]


class _Series(TorchDistribution):
    """Common parts of the distributions over series; `loc` has shape `(*batch, time, channel)`."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, mask: Tensor | None, parameters: dict[str, Tensor]) -> None:
        shape = torch.broadcast_shapes(loc.shape, *(p.shape for p in parameters.values()))
        self.loc = loc.expand(shape)
        self.observed = torch.ones((), dtype=torch.bool, device=loc.device) if mask is None else mask
        self.parameters = {name: value.expand(shape) for name, value in parameters.items()}
        super().__init__(torch.Size(shape[:-2]), torch.Size(shape[-2:]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> _Series:
        """Return the same distribution over a larger batch."""
        new = self._get_checked_instance(type(self), _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc = self.loc.expand(shape)
        new.observed = self.observed
        new.parameters = {name: value.expand(shape) for name, value in self.parameters.items()}
        self._copy_extra(new)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def _copy_extra(self, new: Any) -> None:
        """Copy what a subclass keeps beside `loc`, `observed` and `parameters`."""

    def pointwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every entry, zero where missing, `(*batch, time, channel)`."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the observed entries, shape `(*batch,)`."""
        return self.pointwise_log_prob(value).sum((-2, -1))

    @property
    def mean(self) -> Tensor:
        """The trajectory that the measurements scatter around."""
        return self.loc


class GaussianSeries(_Series):
    """Independent normal noise: y ~ N(loc, scale^2), paper eq. (14).

    Args:
        loc: noise-free channels, shape `(*batch, time, channel)`.
        scale: standard deviation, broadcastable with `loc`.
        mask: which entries were observed, broadcastable with `loc`; `None` for all.
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, mask: Tensor | None = None) -> None:
        super().__init__(loc, mask, {"scale": scale})

    def pointwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the normal log density of every observed entry."""
        value = torch.where(self.observed, value, self.loc)  # a missing value may be NaN
        dense = Normal(self.loc, self.parameters["scale"], validate_args=False).log_prob(value)
        return torch.where(self.observed, dense, 0.0)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draw whole series, missing entries included."""
        return Normal(self.loc, self.parameters["scale"], validate_args=False).rsample(sample_shape)


class StudentTSeries(_Series):
    """Independent Student-t noise, for measurements with outliers.

    Args:
        loc: noise-free channels, shape `(*batch, time, channel)`.
        scale: scale (the standard deviation for many degrees of freedom).
        degrees_of_freedom: tail index, larger is closer to normal.
        mask: which entries were observed; `None` for all.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, degrees_of_freedom: Tensor, *, mask: Tensor | None = None
    ) -> None:
        super().__init__(loc, mask, {"scale": scale, "df": degrees_of_freedom})

    def _base(self) -> StudentT:
        return StudentT(self.parameters["df"], self.loc, self.parameters["scale"], validate_args=False)

    def pointwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the Student-t log density of every observed entry."""
        value = torch.where(self.observed, value, self.loc)  # a missing value may be NaN
        return torch.where(self.observed, self._base().log_prob(value), 0.0)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draw whole series, missing entries included."""
        return self._base().rsample(sample_shape)


class AR1Series(_Series):
    """Gaussian noise with exponentially decaying memory: AR(1) on any time grid.

    The residual r = y - loc is a stationary Ornstein-Uhlenbeck process,
    Cov[r(s), r(t)] = scale^2 exp(-|s - t| / tau). On a regular grid of step h this is AR(1) with
    coefficient exp(-h / tau). Channels are independent. Entries condition on the last observed one
    before them, which is exact for a Markov process with gaps.

    Args:
        loc: noise-free channels, shape `(*batch, time, channel)`.
        scale: stationary standard deviation of the residual.
        correlation_time: tau > 0, in units of time.
        times: shape `(time,)` or `(*batch, time)`.
        mask: which entries were observed; `None` for all.
        initial_residual: known residual just before the series and the time since, a pair of
            tensors that broadcast with `(*batch, channel)`: draws start from it.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        correlation_time: Tensor,
        times: Tensor,
        *,
        mask: Tensor | None = None,
        initial_residual: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(loc, mask, {"scale": scale, "tau": correlation_time})
        self.times = times
        self.initial_residual = initial_residual

    def _copy_extra(self, new: Any) -> None:
        new.times, new.initial_residual = self.times, self.initial_residual

    def _previous(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return index of, time since, and existence of the last observed entry before each one."""
        *_, num_times, num_channels = self.loc.shape
        times = self.times.unsqueeze(-1).expand(*self.times.shape, num_channels)
        observed = self.observed.expand(torch.broadcast_shapes(self.observed.shape, times.shape))
        count = torch.arange(num_times, device=times.device).unsqueeze(-1)
        latest = torch.where(observed, count, -1).cummax(dim=-2).values  # last observed, itself included
        before = torch.cat([torch.full_like(latest[..., :1, :], -1), latest[..., :-1, :]], dim=-2)
        index = before.clamp_min(0)
        times = times.expand(index.shape)
        return index, times - times.gather(-2, index), before >= 0

    def pointwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every observed entry given the observed ones before it."""
        residual = torch.where(self.observed, value - self.loc, 0.0)  # a missing value may be NaN
        index, gap, exists = self._previous()
        earlier = residual.gather(-2, index.expand(residual.shape))
        scale, tau = self.parameters["scale"], self.parameters["tau"]
        decay = torch.where(exists, (-gap / tau).exp(), 0.0)
        # -expm1(-2 gap/tau) = 1 - decay^2 without cancellation at short gaps
        spread = torch.where(exists & self.observed, -torch.expm1(-2 * gap / tau), 1.0)
        dense = Normal(decay * earlier, scale * spread.sqrt(), validate_args=False).log_prob(residual)
        return torch.where(self.observed, dense, 0.0)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draw whole series by walking along time, missing entries included."""
        shape = torch.Size(sample_shape) + self.loc.shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        scale, tau = self.parameters["scale"], self.parameters["tau"]
        gap = self.times.diff(dim=-1).unsqueeze(-1)
        decay = (-gap / tau[..., 1:, :]).exp().expand(*self.loc.shape[:-2], -1, self.loc.shape[-1])
        spread = (-torch.expm1(-2 * gap / tau[..., 1:, :])).sqrt().expand(decay.shape)
        if self.initial_residual is None:
            residual = [noise[..., 0, :]]
        else:
            known, since = self.initial_residual
            start = (-since / tau[..., 0, :]).exp()
            residual = [start * known / scale[..., 0, :] + (1 - start.square()).sqrt() * noise[..., 0, :]]
        for t in range(1, shape[-2]):
            residual.append(decay[..., t - 1, :] * residual[-1] + spread[..., t - 1, :] * noise[..., t, :])
        return self.loc + scale * torch.stack(residual, dim=-2)


class _Emission(Component):
    """Common part of the emission components: the noise scale."""

    transparent: ClassVar[bool] = True

    def __init__(self, noise_scale: Spec, num_channels: int | None) -> None:
        super().__init__()
        require(num_channels is None or num_channels >= 1, "num_channels must be at least 1", num_channels)
        self.per_channel = num_channels is not None
        shape = () if num_channels is None else (num_channels,)
        self.declare("noise_scale", noise_scale, support=constraints.positive, shape=shape)

    def _over_series(self, value: Tensor, per_channel: bool) -> Tensor:
        return value.unsqueeze(-2) if per_channel else value[..., None, None]


class GaussianEmission(_Emission):
    """Independent normal noise with one scale, or one per channel.

    Args:
        noise_scale: standard deviation, in the units of the channels.
        num_channels: `None` for one shared scale, else the number of channels.

    Sites:
        `noise_scale`.
    """

    def __init__(self, noise_scale: Spec = 0.1, *, num_channels: int | None = None) -> None:
        super().__init__(noise_scale, num_channels)

    def forward(self, loc: Tensor, times: Tensor, *, mask: Tensor | None = None) -> GaussianSeries:
        """Return the distribution of the measurements around `loc`."""
        return GaussianSeries(loc, self._over_series(self.noise_scale, self.per_channel), mask=mask)


class StudentTEmission(_Emission):
    """Independent Student-t noise.

    Args:
        noise_scale: scale, in the units of the channels.
        degrees_of_freedom: tail index.
        num_channels: `None` for one shared scale, else the number of channels.

    Sites:
        `noise_scale`, `degrees_of_freedom`.
    """

    def __init__(
        self, noise_scale: Spec = 0.1, degrees_of_freedom: Spec = 4.0, *, num_channels: int | None = None
    ) -> None:
        super().__init__(noise_scale, num_channels)
        self.declare("degrees_of_freedom", degrees_of_freedom, support=constraints.positive)

    def forward(self, loc: Tensor, times: Tensor, *, mask: Tensor | None = None) -> StudentTSeries:
        """Return the distribution of the measurements around `loc`."""
        scale = self._over_series(self.noise_scale, self.per_channel)
        return StudentTSeries(loc, scale, self._over_series(self.degrees_of_freedom, False), mask=mask)


class AR1Emission(_Emission):
    """Gaussian noise with AR(1) residuals: for smoothed sensors and imperfect models.

    Args:
        noise_scale: stationary standard deviation of the residual.
        correlation_time: memory tau of the residual, in units of time.
        num_channels: `None` for one shared scale and memory, else one of each per channel.

    Sites:
        `noise_scale`, `correlation_time`.
    """

    def __init__(
        self, noise_scale: Spec = 0.1, correlation_time: Spec = 1.0, *, num_channels: int | None = None
    ) -> None:
        super().__init__(noise_scale, num_channels)
        shape = () if num_channels is None else (num_channels,)
        self.declare("correlation_time", correlation_time, support=constraints.positive, shape=shape)

    def forward(self, loc: Tensor, times: Tensor, *, mask: Tensor | None = None) -> AR1Series:
        """Return the distribution of the measurements around `loc`."""
        scale = self._over_series(self.noise_scale, self.per_channel)
        tau = self._over_series(self.correlation_time, self.per_channel)
        return AR1Series(loc, scale, tau, times, mask=mask)


class VelocityGain(Component):
    """A sensor of velocities that reads a constant factor too much or too little.

    Velocities are often not measured but differentiated from positions and smoothed, which shrinks
    them by a factor that depends on the sampling. Left out of the model it passes for damping, drift
    or noise with memory.

    Args:
        gain: the factor, near one: a prior, or `None` for a sensor that reads true.

    Sites:
        `velocity_gain`.
    """

    transparent: ClassVar[bool] = True

    def __init__(self, gain: Spec | None = None) -> None:
        super().__init__()
        self.active = gain is not None
        self.declare("velocity_gain", 1.0 if gain is None else gain, support=constraints.positive)

    def forward(self, loc: Tensor, velocity: Tensor) -> Tensor:
        """Return what the channels read.

        Args:
            loc: true values, shape `(*batch, time, channel)`.
            velocity: which channels are velocities, shape `(channel,)`.
        """
        if not self.active:
            return loc
        gain = self.velocity_gain[..., None, None]
        return loc * torch.where(velocity, gain, torch.ones_like(gain))


NoiseName = Literal["gaussian", "student_t", "ar1"]
"""How measurements scatter: independent normal, heavy-tailed, or with memory."""


def make_emission(
    name: NoiseName, noise_scale: Spec, *, num_channels: int, correlation_time: Spec = 1.0
) -> GaussianEmission | StudentTEmission | AR1Emission:
    """Return the emission of that name with one noise scale per channel.

    Args:
        name: see `NoiseName`.
        noise_scale: scale(s), learned or with a prior.
        num_channels: number of measured channels.
        correlation_time: memory of the residual, for `ar1` only.
    """
    require_choice("noise", name, ("gaussian", "student_t", "ar1"))
    if name == "ar1":
        return AR1Emission(noise_scale, correlation_time, num_channels=num_channels)
    if name == "student_t":
        degrees = Gamma(torch.tensor(2.0), torch.tensor(0.1))  # Juarez and Steel 2010
        return StudentTEmission(noise_scale, degrees, num_channels=num_channels)
    return GaussianEmission(noise_scale, num_channels=num_channels)


class PixelEmission(Component):
    """Pixels around what a decoder of frames returns.

    Args:
        noise_scale: standard deviation of grey levels around the logistic function of the logits; `None`
            for black and white, where that function is the probability of white.

    Sites:
        `noise_scale`, of grey levels.
    """

    transparent = True

    def __init__(self, noise_scale: Spec | None) -> None:
        super().__init__()
        self.grey = None if noise_scale is None else GaussianEmission(noise_scale)

    def forward(self, logits: Tensor, times: Tensor, *, mask: Tensor) -> TorchDistribution:
        """Return the distribution of frames, event `(time, pixel)`, for logits `(*batch, time, pixel)`."""
        if self.grey is None:
            return Bernoulli(logits=logits, validate_args=False).mask(mask).to_event(2)
        return self.grey(logits.sigmoid(), times, mask=mask)


LikelihoodName = Literal["auto", "bernoulli", "gaussian"]


def make_pixel_emission(likelihood: LikelihoodName, values: Tensor, noise_scale: Spec) -> PixelEmission:
    """Return the emission of that name; `auto` is `bernoulli` where all values are black or white.

    Args:
        likelihood: its name.
        values: grey levels of the data.
        noise_scale: see `PixelEmission`; for grey levels.

    Raises:
        ValueError: for an unknown name.
    """
    require_choice("likelihood", likelihood, ("auto", "bernoulli", "gaussian"))
    if likelihood == "auto":
        likelihood = "bernoulli" if bool(((values == 0) | (values == 1)).all()) else "gaussian"
    return PixelEmission(None if likelihood == "bernoulli" else noise_scale)
