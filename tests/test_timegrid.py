"""Time grids: counts, sub-steps, the shared step, and bad input."""

from __future__ import annotations

import pytest
import torch

from vinppl.timegrid import TimeGrid


def test_regular_grid() -> None:
    grid = TimeGrid.regular(4, 0.5, start=2.0, num_substeps=2)
    assert grid.times.tolist() == [2.0, 2.5, 3.0, 3.5]
    assert grid.uniform_step == 0.25
    assert (grid.num_times, grid.num_steps) == (4, 6)
    assert grid.sample_indices == [0, 2, 4, 6]
    assert grid.step_sizes.tolist() == [0.25] * 6
    assert grid.step_times.tolist() == [2.0, 2.25, 2.5, 2.75, 3.0, 3.25]
    assert TimeGrid.regular(2, 1.0, dtype=torch.float32).times.dtype == torch.float32


def test_substeps_are_equal_and_no_longer_than_allowed() -> None:
    times = torch.tensor([[0.0, 0.1, 0.55, 1.0], [0.0, 0.3, 0.5, 0.6]])
    grid = TimeGrid.from_times(times, max_step_size=0.1)
    assert grid.num_substeps == (3, 5, 5)  # by the longest of 0.1, 0.3 | 0.45, 0.2 | 0.45, 0.1
    assert bool((grid.step_sizes <= 0.1 * (1 + 1e-3)).all())
    torch.testing.assert_close(grid.step_sizes.sum(-1), times[:, -1])
    torch.testing.assert_close(grid.step_times[:, [0, 3, 8]], times[:, :3])
    torch.testing.assert_close(
        grid.step_times[:, 1:], grid.step_times[:, :-1] + grid.step_sizes[:, :-1], rtol=0, atol=1e-15
    )


def test_times_rounded_in_a_file_do_not_double_the_work() -> None:
    times = torch.tensor([0.0, 0.10004, 0.2])
    assert TimeGrid.from_times(times, max_step_size=0.1).num_substeps == (1, 1)
    assert TimeGrid.from_times(1.01 * times, max_step_size=0.1).num_substeps == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 1e3, -7.3])
def test_regular_times_share_one_step_up_to_rounding(dtype: torch.dtype, start: float) -> None:
    times = start + 0.1 * torch.arange(1000, dtype=dtype)
    grid = TimeGrid.from_times(times)
    assert grid.uniform_step is not None
    # The mean step is exact up to the rounding of the two ends, eps |t| / 999 each.
    tolerance = 4 * torch.finfo(dtype).eps * (abs(start) + 100) / 999
    assert abs(grid.uniform_step - 0.1) <= tolerance


def test_equal_steps_across_unequal_intervals_share_one_step() -> None:
    grid = TimeGrid.from_times(torch.tensor([0.0, 0.1, 0.3, 0.4]), max_step_size=0.1)
    assert grid.num_substeps == (1, 2, 1)
    assert grid.uniform_step == pytest.approx(0.1)


def test_small_differences_between_steps_do_not_add_up() -> None:
    # In float32 at t = 1000 steps of 0.1 and 0.1004 differ by less than the rounding of times, but a
    # grid that changes from one to the other in the middle is off by 1 s there.
    steps = torch.cat([torch.full((5000,), 0.1), torch.full((5000,), 0.1004)])
    times = torch.cat([torch.zeros(1), steps.cumsum(0)]).to(torch.float32)
    assert TimeGrid.from_times(times).uniform_step is None


def test_irregular_batched_and_differentiable_grids_have_no_shared_step() -> None:
    regular = torch.arange(4) * 0.1
    assert TimeGrid.from_times(torch.tensor([0.0, 0.1, 0.3])).uniform_step is None
    assert TimeGrid.from_times(torch.stack([regular, 2 * regular])).uniform_step is None
    assert TimeGrid.from_times(torch.stack([regular, regular + 5])).uniform_step == pytest.approx(0.1)
    assert TimeGrid.from_times(regular.clone().requires_grad_()).uniform_step is None
    assert TimeGrid.from_times(torch.zeros(3)).uniform_step is None


@pytest.mark.parametrize(
    "grid", [TimeGrid.regular(1, 0.1, start=3.0), TimeGrid.from_times(torch.tensor([3.0]), max_step_size=0.1)]
)
def test_a_single_time_has_no_steps(grid: TimeGrid) -> None:
    assert (grid.num_times, grid.num_steps, grid.sample_indices) == (1, 0, [0])
    assert grid.step_sizes.shape == grid.step_times.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_times": 0, "step_size": 0.1}, "num_times must be at least 1; got 0"),
        ({"num_times": 2, "step_size": 0.0}, "step_size must be positive and finite; got 0.0"),
        ({"num_times": 2, "step_size": float("inf")}, "step_size must be positive and finite; got inf"),
        ({"num_times": 2, "step_size": 0.1, "num_substeps": 0}, "num_substeps must be at least 1; got 0"),
    ],
)
def test_bad_regular_grids(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeGrid.regular(**arguments)  # type: ignore[arg-type]


def test_bad_times() -> None:
    with pytest.raises(ValueError, match=r"must not decrease along the last dimension; got a step of -0\.5"):
        TimeGrid.from_times(torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(ValueError, match="times must be finite"):
        TimeGrid.from_times(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="times must have shape"):
        TimeGrid.from_times(torch.tensor(0.0))
    with pytest.raises(ValueError, match="max_step_size must be positive; got -1"):
        TimeGrid.from_times(torch.tensor([0.0, 1.0]), max_step_size=-1)
