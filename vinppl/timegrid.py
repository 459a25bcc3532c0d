"""Time grids: the only source of times and step sizes.

A grid holds the times at which a trajectory is wanted and divides each
interval into equal sub-steps, so that irregular samples and gaps are crossed
with steps no longer than the integrator was given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vinppl._checks import require

__all__ = ["TimeGrid"]


@dataclass(frozen=True)
class TimeGrid:
    """Sampling times with a number of integration steps in each interval.

    Attributes:
        times: shape `(time,)` or `(*batch, time)`, not decreasing along the last
            dimension. A repeated time is a step of length zero, during which the
            state stands still: trajectories of different lengths are padded that way.
        num_substeps: for each of the `time - 1` intervals, the number of equal
            integration steps that cross it (shared by the whole batch).
        uniform_step: the one step size as a float if all steps of the grid are
            equal up to rounding, otherwise `None`.
    """

    times: Tensor
    num_substeps: tuple[int, ...]
    uniform_step: float | None = None

    @classmethod
    def regular(
        cls,
        num_times: int,
        step_size: float,
        *,
        start: float = 0.0,
        num_substeps: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> TimeGrid:
        """Return the grid `start + i * step_size`, i = 0 .. num_times - 1.

        Args:
            num_times: number of sampling times, at least 1.
            step_size: spacing of the samples, in units of time, positive.
            start: the first time.
            num_substeps: integration steps between neighbouring samples.
            dtype: floating type of the times (torch default if `None`).
            device: device of the times.

        Raises:
            ValueError: if a count is below 1 or the spacing is not positive and finite.
        """
        require(num_times >= 1, "num_times must be at least 1", num_times)
        require(num_substeps >= 1, "num_substeps must be at least 1", num_substeps)
        require(
            math.isfinite(step_size) and step_size > 0, "step_size must be positive and finite", step_size
        )
        dtype = dtype or torch.get_default_dtype()
        times = start + step_size * torch.arange(num_times, dtype=dtype, device=device)
        return cls(times, (num_substeps,) * (num_times - 1), step_size / num_substeps)

    @classmethod
    def from_times(cls, times: Tensor, *, max_step_size: float | None = None) -> TimeGrid:
        """Return a grid on given times, crossing long intervals by sub-steps.

        Args:
            times: shape `(time,)` or `(*batch, time)`, not decreasing.
            max_step_size: longest integration step allowed, in units of time.
                `None` crosses every interval in a single step. An interval is
                allowed to exceed the limit by one part in a thousand, so that
                times rounded in a file do not double the work.

        Raises:
            ValueError: if times decrease, are not finite, or the limit is not positive.
        """
        require(times.ndim >= 1 and times.shape[-1] >= 1, "times must have shape (*batch, time)", times)
        require(bool(torch.isfinite(times).all()), "times must be finite", "NaN or infinity")
        gaps = times[..., 1:] - times[..., :-1]  # (*batch, time - 1)
        require(
            bool((gaps >= 0).all()),
            "times must not decrease along the last dimension",
            f"a step of {gaps.min().item() if gaps.numel() else 0.0:.6g}",
            "Sort each trajectory by time first.",
        )
        longest = gaps.reshape(-1, gaps.shape[-1]).amax(0) if gaps.numel() else gaps.reshape(-1)
        if max_step_size is None:
            counts = [1] * longest.numel()
        else:
            require(max_step_size > 0, "max_step_size must be positive", max_step_size)
            counts = [max(1, math.ceil(gap / max_step_size - 1e-3)) for gap in longest.tolist()]
        return cls(times, tuple(counts), _common_step(times, counts))

    @property
    def num_times(self) -> int:
        """Number of sampling times."""
        return int(self.times.shape[-1])

    @property
    def num_steps(self) -> int:
        """Number of integration steps from the first to the last time."""
        return sum(self.num_substeps)

    @property
    def step_sizes(self) -> Tensor:
        """Length of every integration step, shape `(*batch, num_steps)`."""
        gaps = self.times[..., 1:] - self.times[..., :-1]
        counts = torch.tensor(self.num_substeps, dtype=torch.long, device=gaps.device)
        return torch.repeat_interleave(gaps / counts, counts, dim=-1)

    @property
    def step_times(self) -> Tensor:
        """Time at the start of every integration step, shape `(*batch, num_steps)`."""
        counts = torch.tensor(self.num_substeps, dtype=torch.long, device=self.times.device)
        starts = torch.repeat_interleave(self.times[..., :-1], counts, dim=-1)
        within = torch.cat([torch.arange(n, device=self.times.device) for n in self.num_substeps] or [counts])
        return starts + within * self.step_sizes

    @property
    def sample_indices(self) -> list[int]:
        """Index of the integration node (0 = start) that falls on each sampling time."""
        indices = [0]
        for count in self.num_substeps:
            indices.append(indices[-1] + count)
        return indices


def _common_step(times: Tensor, counts: list[int]) -> float | None:
    """Return the step shared by the whole grid, up to the rounding of its times.

    Every time is compared with the evenly spaced one, so that small differences between
    steps do not add up. Times that carry gradients keep their own steps.
    """
    if not counts or times.requires_grad:
        return None
    starts, spans = times[..., :1], times[..., -1:] - times[..., :1]
    low, high = spans.min().item() / sum(counts), spans.max().item() / sum(counts)
    step = 0.5 * (low + high)
    nodes = torch.tensor([0, *counts], dtype=times.dtype, device=times.device).cumsum(0)
    # Start, product and sum are rounded by half a unit each, and so are times read from a file.
    rounding = 4 * torch.finfo(times.dtype).eps * times.abs().max().item()
    off = (times - (starts + step * nodes)).abs().max().item()
    return step if step > 0 and off <= max(1e-9 * step, rounding) else None
