"""Rough estimates straight from the measurements, to start an optimiser or sampler from.

A short polynomial through each stretch of samples gives position, velocity and
acceleration there; regressing the acceleration on candidate forces gives their
coefficients. Noise biases such estimates (errors in variables), which is why they
are starting points and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = [
    "LocalStates",
    "first_states",
    "force_regression",
    "local_states",
    "noise_estimate",
]


class LocalStates(NamedTuple):
    """States estimated along the record; `count` stretches of samples.

    Attributes:
        t: times, shape `(count,)`.
        q: positions, shape `(count, dim)`.
        v: velocities, shape `(count, dim)`.
        a: accelerations, shape `(count, dim)`.
        trajectory: index of the trajectory each stretch belongs to, shape `(count,)`.
        drive: mean of the known inputs over each stretch, `(count, num_drives)` or `None`.
        residual: root mean square misfit of each channel, `(num_channels,)`.
    """

    t: Tensor
    q: Tensor
    v: Tensor
    a: Tensor
    trajectory: Tensor
    drive: Tensor | None
    residual: Tensor


DEGREE = 3


def local_states(data: Trajectories, *, num_samples: int = 7) -> LocalStates:
    """Fit a cubic to every `num_samples` neighbouring samples and read it at their middle.

    Positions and velocities enter the same fit, each weighted by its channel's size.
    Stretches with too few observations to determine the cubic are left out.

    Args:
        data: the measurements.
        num_samples: length of a stretch; shortened to the length of the record.
    """
    data = data.measured()
    num_samples = min(num_samples, data.num_times)
    t = data.times.unfold(1, num_samples, 1)  # (trajectories, count, num_samples)
    y = data.values.unfold(1, num_samples, 1).transpose(-1, -2)  # (..., num_samples, channels)
    m = data.mask.unfold(1, num_samples, 1).transpose(-1, -2)
    middle = 0.5 * (t[..., :1] + t[..., -1:])
    half = 0.5 * (t[..., -1:] - t[..., :1])
    lasts = half > 1e-12  # not of padding only
    half = torch.where(lasts, half, 1.0)
    x = ((t - middle) / half).clamp(-1, 1)
    powers = torch.stack([x**k for k in range(DEGREE + 1)], dim=-1)  # value of the cubic
    slopes = torch.stack([k * x ** max(k - 1, 0) for k in range(DEGREE + 1)], dim=-1)
    power = (data.values.square() * data.mask).sum((0, 1)) / data.mask.sum((0, 1)).clamp_min(1)
    size = torch.where(power > 0, power.sqrt(), 1.0)
    fits, enough = [], torch.ones(t.shape[:2], dtype=torch.bool, device=t.device)
    misfit = torch.zeros(data.num_channels, dtype=t.dtype, device=t.device)
    for coordinate in range(data.dim):
        rows, targets, weights, counts = [], [], [], torch.zeros(t.shape[:2], device=t.device)
        for i, channel in enumerate(data.channels):
            if channel.coordinate != coordinate:
                continue
            position = channel.quantity == "position"
            weight = m[..., i].to(t.dtype)
            basis = powers if position else slopes / half.unsqueeze(-1)
            rows.append(basis * (weight / size[i]).unsqueeze(-1))
            targets.append(y[..., i] * weight / size[i])
            weights.append((i, weight))
            counts = counts + weight.sum(-1)
        if not rows:
            fits.append(torch.zeros(*t.shape[:2], DEGREE + 1, dtype=t.dtype, device=t.device))
            continue
        design, target = torch.cat(rows, -2), torch.cat(targets, -1)
        ridge = 1e-8 * torch.eye(DEGREE + 1, dtype=t.dtype, device=t.device)
        normal = design.mT @ design + ridge
        beta = torch.linalg.solve(normal, (design.mT @ target.unsqueeze(-1)).squeeze(-1))
        fits.append(beta)
        error = (target - (design @ beta.unsqueeze(-1)).squeeze(-1)).split(num_samples, dim=-1)
        free = (counts / (counts - DEGREE - 1).clamp_min(0.5)).unsqueeze(-1)
        for (i, weight), channel_error in zip(weights, error, strict=True):
            square = free * (size[i] * channel_error).square() * (counts > DEGREE + 1).unsqueeze(-1)
            misfit[i] = square.sum() / weight.sum().clamp_min(1)
        enough = enough & (counts > DEGREE) & lasts.squeeze(-1)
    beta = torch.stack(fits, dim=-2)  # (trajectories, count, dim, DEGREE + 1)
    which = torch.arange(data.num_trajectories, device=t.device).unsqueeze(-1).expand(t.shape[:2])
    drive = None if data.drive is None else data.drive.unfold(1, num_samples, 1).mean(-1)[enough]
    return LocalStates(
        middle.squeeze(-1)[enough],
        beta[..., 0][enough],
        (beta[..., 1] / half)[enough],
        (2 * beta[..., 2] / half.square())[enough],
        which[enough],
        drive,
        misfit.sqrt(),
    )


def noise_estimate(data: Trajectories) -> Tensor:
    """Return the scatter of each channel around smooth motion, `(num_channels,)`, in its unit.

    Noise with memory passes for motion here, so that it comes out too small.
    """
    residual = local_states(data).residual
    return residual.maximum(1e-3 * data.channel_rms).clamp_min(1e-9)


def first_states(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return position and velocity at the start of each trajectory, each `(trajectories, dim)`.

    A measured quantity is read off the first sample, one that is not from the
    first stretch of `local_states`, zero where that is missing too.
    """
    states = local_states(data)
    q = torch.zeros(data.num_trajectories, data.dim, dtype=data.values.dtype, device=data.values.device)
    v = q.clone()
    for n in range(data.num_trajectories):
        own = (states.trajectory == n).nonzero()
        if own.numel():
            i = int(own[0])
            back = data.times[n, 0] - states.t[i]
            q[n] = states.q[i] + back * states.v[i] + 0.5 * back**2 * states.a[i]
            v[n] = states.v[i] + back * states.a[i]
    for i, channel in enumerate(data.channels):
        target = q if channel.quantity == "position" else v
        seen = data.mask[:, 0, i]
        target[:, channel.coordinate] = torch.where(seen, data.values[:, 0, i], target[:, channel.coordinate])
    return q, v


def force_regression(
    data: Trajectories, features: Sequence[Callable[[LocalStates], Tensor]], *, num_samples: int = 7
) -> Tensor:
    """Return the coefficients of `acceleration = sum_k c_k feature_k` by least squares.

    Args:
        data: the measurements.
        features: functions of `LocalStates` to shape `(count, dim)`.
        num_samples: see `local_states`.

    Returns:
        Shape `(num_features,)`; zeros if the record is too short.
    """
    states = local_states(data, num_samples=num_samples)
    if states.t.numel() < len(features):
        return torch.zeros(len(features), dtype=data.values.dtype, device=data.values.device)
    design = torch.stack([feature(states).reshape(-1) for feature in features], dim=-1)
    design, target = design.cpu(), states.a.reshape(-1, 1).cpu()  # the driver is one of the CPU alone
    return torch.linalg.lstsq(design, target, driver="gelsd").solution.squeeze(-1).to(states.a)
