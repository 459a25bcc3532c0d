"""Weakly informative priors and the scales they are set by.

Priors with a unit take their scale from the data where the user gives none: the
amplitude of the measured motion bounds initial states and noise to an order of
magnitude. Nothing else about the data enters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pyro.distributions import HalfNormal, LogNormal, Normal
from torch import Tensor

from vinppl._checks import require

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = [
    "correlation_prior",
    "half_normal",
    "initial_scales",
    "log_normal",
    "noise_prior",
    "normal",
    "state_scales",
]


def log_normal(median: float, log_scale: float) -> LogNormal:
    """Return the log-normal with the given median; `log_scale` is the sd of the logarithm.

    About 95 % of it lies within a factor `exp(2 log_scale)` of the median.
    """
    require(median > 0, "the median of a log-normal prior must be positive", median)
    require(log_scale > 0, "log_scale must be positive", log_scale)
    return LogNormal(torch.tensor(math.log(median)), torch.tensor(float(log_scale)))


def half_normal(scale: float) -> HalfNormal:
    """Return the half-normal with the given scale, in the unit of the quantity."""
    require(scale > 0, "the scale of a half-normal prior must be positive", scale)
    return HalfNormal(torch.tensor(float(scale)))


def normal(loc: float, scale: float) -> Normal:
    """Return the normal with the given mean and standard deviation."""
    require(scale > 0, "the scale of a normal prior must be positive", scale)
    return Normal(torch.tensor(float(loc)), torch.tensor(float(scale)))


def noise_prior(data: Trajectories, given: tuple[float, float] | None = None) -> LogNormal:
    """Return the log-normal prior on the noise scale of the channels.

    Args:
        data: the measurements.
        given: median and sd of the logarithm. `None` takes a tenth of each channel's root
            mean square and 1.5: the noise lies within a factor of 20 of that.

    Returns:
        Batch shape `()` if given, else `(num_channels,)`; in the units of the channels.
    """
    if given is not None:
        return log_normal(*given)
    median = 0.1 * _channel_rms(data)
    return LogNormal(median.log(), torch.full_like(median, 1.5))


def correlation_prior(data: Trajectories, given: tuple[float, float] | None = None) -> LogNormal:
    """Return the log-normal prior on the memory of AR(1) noise, in units of time.

    Args:
        data: the measurements.
        given: median and sd of the logarithm. `None` takes three typical sampling
            intervals and 1.0.
    """
    if given is not None:
        return log_normal(*given)
    return log_normal(3 * data.measured().median_step, 1.0)


def initial_scales(data: Trajectories, given: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Return the sds of the normal priors of initial positions and velocities, each `(dim,)`.

    Args:
        data: the measurements.
        given: the two sds. `None` takes twice the `state_scales`.
    """
    q_scale, v_scale = state_scales(data)
    if given is None:
        return 2 * q_scale, 2 * v_scale
    require(min(given) > 0, "initial_scale must be positive", given)
    return torch.full_like(q_scale, given[0]), torch.full_like(v_scale, given[1])


def state_scales(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return typical sizes of positions and velocities, each of shape `(dim,)`.

    A coordinate whose position or velocity is not measured takes it from the
    other by the fastest visible oscillation: differences of neighbouring samples
    for a velocity, an excursion at that velocity over the median duration of the
    record divided by 2 pi for a position. One where nothing is measured.
    """
    rms = _channel_rms(data)
    position = torch.full((data.dim,), math.nan, dtype=rms.dtype, device=rms.device)
    velocity = position.clone()
    slopes = _difference_rms(data)
    for i, channel in enumerate(data.channels):
        target = position if channel.quantity == "position" else velocity
        target[channel.coordinate] = rms[i]
    for i, channel in enumerate(data.channels):
        if channel.quantity == "position" and bool(velocity[channel.coordinate].isnan()):
            velocity[channel.coordinate] = slopes[i]
        if channel.quantity == "velocity" and bool(position[channel.coordinate].isnan()):
            duration = (data.times[:, -1] - data.times[:, 0]).median()
            position[channel.coordinate] = rms[i] * duration / (2 * math.pi)
    one = torch.ones_like(position)
    return torch.where(position.isnan(), one, position), torch.where(velocity.isnan(), one, velocity)


def _channel_rms(data: Trajectories) -> Tensor:
    return data.channel_rms.clamp_min(1e-12)


def _difference_rms(data: Trajectories) -> Tensor:
    data = data.measured()
    both = data.mask[:, 1:] & data.mask[:, :-1]
    gap = data.times.diff(dim=-1).unsqueeze(-1)
    both = both & (gap > 0)
    slope = torch.where(both, data.values.diff(dim=1) / torch.where(gap > 0, gap, 1.0), 0.0)
    return (slope.square().sum((0, 1)) / both.sum((0, 1)).clamp_min(1)).sqrt().clamp_min(1e-12)
