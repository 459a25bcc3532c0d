"""Cutting, windowing and resampling of padded trajectories, on bare tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "cut", "resample", "windows"]


class Block(NamedTuple):
    """The tensors of a set of trajectories, padded to a common length.

    Attributes:
        times: shape `(num_trajectories, num_times)`, the last time repeated as padding.
        values: shape `(num_trajectories, num_times, num_channels)`, 0 where missing.
        mask: same shape, `False` where missing or padding.
        drive: shape `(num_trajectories, num_times, num_drives)` or `None`, 0 as padding.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    drive: Tensor | None


def cut(block: Block, starts: Tensor, counts: Tensor) -> Block:
    """Cut one piece out of every trajectory.

    Args:
        block: the trajectories.
        starts: index of the first sample of each piece, shape `(num_trajectories,)`.
        counts: number of samples of each piece, at least 1, same shape.
    """
    offsets = torch.arange(int(counts.max()), device=starts.device)
    real = offsets < counts[:, None]  # (num_trajectories, num_times)
    index = starts[:, None] + torch.minimum(offsets, counts[:, None] - 1)
    rows = torch.arange(len(starts), device=starts.device)[:, None]
    mask = block.mask[rows, index] & real[..., None]
    return Block(
        times=block.times[rows, index],
        values=block.values[rows, index].masked_fill_(~mask, 0.0),
        mask=mask,
        drive=None if block.drive is None else block.drive[rows, index].masked_fill_(~real[..., None], 0.0),
    )


def windows(block: Block, lengths: Tensor, length: int, stride: int, start: int) -> tuple[Block, Tensor]:
    """Cut every trajectory into windows, each copied exactly once.

    Args:
        block: the trajectories.
        lengths: number of real samples of each, shape `(num_trajectories,)`.
        length: samples in a window.
        stride: samples between the starts of neighbouring windows.
        start: samples to leave out at the beginning.

    Returns:
        The windows, and their number for each trajectory.
    """
    counts = (torch.div(lengths - start - length, stride, rounding_mode="floor") + 1).clamp(min=0)
    most = int(counts.max())
    if most == 0:
        empty = Block(*(None if x is None else x[:0, :length] for x in block))  # type: ignore[arg-type]
        return empty, counts
    rows = columns = None
    if not bool((counts == most).all()):
        rows, columns = (torch.arange(most, device=counts.device) < counts[:, None]).nonzero(as_tuple=True)

    def copied(x: Tensor) -> Tensor:
        view = x[:, start:].unfold(1, length, stride)[:, :most]  # (trajectory, window, *, length)
        if view.ndim == 4:
            view = view.transpose(-1, -2)
        return view[rows, columns] if rows is not None else view.reshape(-1, *view.shape[2:])

    drive = None if block.drive is None else copied(block.drive)
    return Block(copied(block.times), copied(block.values), copied(block.mask), drive), counts


def resample(block: Block, lengths: Tensor, step: float, max_gap: float | None) -> tuple[Block, Tensor]:
    """Interpolate every channel linearly onto a regular grid that starts at the first time.

    A grid point between two neighbouring observed samples of a channel gets a value
    if these are no more than `max_gap` apart, or if it falls on one of them.

    Returns:
        The resampled trajectories and their lengths.
    """
    times = block.times.double()
    # Times are known up to the rounding of their type; a point that close to a sample is on it.
    slack = max(1e-6 * step, 4 * torch.finfo(block.times.dtype).eps * float(times.abs().max()))
    counts = torch.floor((times[:, -1] - times[:, 0]) / step + 1e-6).long() + 1
    index = torch.arange(int(counts.max()), device=counts.device)
    real = index < counts[:, None]
    grid = times[:, :1] + step * torch.minimum(index, counts[:, None] - 1)  # (trajectory, new time)
    row = torch.searchsorted(times, grid, right=True) - 1
    row = torch.minimum(row, lengths[:, None] - 1)
    rows = torch.arange(len(times), device=counts.device)[:, None]
    after = torch.minimum(row + 1, lengths[:, None] - 1)

    values = torch.empty(*grid.shape, block.values.shape[-1], dtype=torch.float64, device=times.device)
    mask = torch.empty(values.shape, dtype=torch.bool, device=times.device)
    for c in range(values.shape[-1]):
        observed = block.mask[..., c]
        gap = _default_gap(times, observed, step) if max_gap is None else max_gap
        left, right, has_left, has_right = _neighbours(observed, row, rows)
        t_left, t_right = times[rows, left], times[rows, right]
        x_left, x_right = block.values[..., c][rows, left], block.values[..., c][rows, right]
        on_left = has_left & ((grid - t_left).abs() <= slack)
        on_right = has_right & ((grid - t_right).abs() <= slack)
        between = has_left & has_right & (t_right - t_left <= gap + slack)
        fraction = (grid - t_left) / (t_right - t_left).clamp(min=slack)
        x = torch.lerp(x_left.double(), x_right.double(), fraction)
        x = torch.where(on_left, x_left.double(), torch.where(on_right, x_right.double(), x))
        mask[..., c] = real & (on_left | on_right | between)
        values[..., c] = torch.where(mask[..., c], x, 0.0)

    drive = None
    if block.drive is not None:
        fraction = (grid - times[rows, row]) / (times[rows, after] - times[rows, row]).clamp(min=slack)
        u = torch.lerp(
            block.drive[rows, row].double(),
            block.drive[rows, after].double(),
            fraction.clamp(0.0, 1.0)[..., None],
        )
        drive = torch.where(real[..., None], u, 0.0).to(block.drive.dtype)
    return Block(grid.to(block.times.dtype), values.to(block.values.dtype), mask, drive), counts


def _neighbours(observed: Tensor, row: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the observed samples at or before `row` and after it, and whether they exist."""
    num_times = observed.shape[1]
    index = torch.arange(num_times, device=observed.device)
    before = torch.where(observed, index, -1).cummax(1).values
    after = torch.where(observed, index, num_times).flip(1).cummin(1).values.flip(1)
    after = torch.cat([after, torch.full_like(after[:, :1], num_times)], dim=1)
    left, right = before[rows, row], after[rows, row + 1]
    return left.clamp(min=0), right.clamp(max=num_times - 1), left >= 0, right < num_times


def _default_gap(times: Tensor, observed: Tensor, step: float) -> float:
    """Return twice the median spacing of the observed samples, or `step` if that is longer."""
    trajectory = observed.nonzero()[:, 0]
    spacing = times[observed].diff()[trajectory[1:] == trajectory[:-1]]
    return max(step, 2 * float(spacing.median())) if spacing.numel() else step
