"""When a forecast stops to hold, against sums over all times at which it may."""

from __future__ import annotations

import math

import pytest
import torch

from vinppl.lapses import prior_survival, survival


def by_enumeration(log_ratio: list[float], num_times: int, explained: float, fitted: int = 0) -> list[float]:
    """Return the survival by Bayes' rule over the first frame that the background draws."""

    def holds(t: int) -> float:
        return (1 + explained) / (1 + explained + max(0, t - fitted))

    prior = [holds(t) - holds(t + 1) for t in range(num_times)] + [holds(num_times)]
    weights = [p * math.exp(sum(log_ratio[:t])) for t, p in enumerate(prior)]
    return [sum(weights[t + 1 :]) / sum(weights) for t in range(num_times)]


@pytest.mark.parametrize("explained", [0.0, 7.0, 600.0])
@pytest.mark.parametrize("fitted", [0, 4])
@pytest.mark.parametrize("log_ratio", [[], [0.3, -2.0, 1.0], [-4.0, -4.0], [5.0] * 6])
def test_survival_is_bayes_rule_over_the_time_of_the_lapse(
    log_ratio: list[float], fitted: int, explained: float
) -> None:
    measured = torch.tensor(log_ratio, dtype=torch.float64)
    found = survival(measured, num_times=9, num_explained=explained, num_fitted=fitted)
    torch.testing.assert_close(found.tolist(), by_enumeration(log_ratio, 9, explained, fitted))
    assert found[:fitted].tolist() == pytest.approx([1.0] * fitted)


def test_explained_frames_lengthen_it_and_unexplained_ones_end_it() -> None:
    good = torch.full((2, 10), 40.0)
    few, many = (survival(good, num_times=60, num_explained=n) for n in (60.0, 600.0))
    assert few.shape == (2, 60)
    assert bool((few.diff() <= 0).all())
    assert float(few[0, 9]) > 0.999  # ten frames were explained
    torch.testing.assert_close(few[:, -1], torch.full((2,), 71 / 121))  # (1 + 60 + 10) / (1 + 60 + 60)
    assert bool((many[:, -1] > 0.9).all())
    assert float(survival(-good, num_times=60, num_explained=600.0).max()) < 1e-10


def test_before_anything_is_seen_it_is_the_rule_of_succession() -> None:
    times = torch.tensor([1.0, 5.0, 9.0])
    found = prior_survival(times, num_explained=3.0, num_fitted=torch.tensor([[4], [9]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 4 / 5, 4 / 9], [1.0, 1.0, 1.0]]))


def test_errors_are_told() -> None:
    with pytest.raises(ValueError, match="at least the 3 measured"):
        survival(torch.zeros(3), num_times=2, num_explained=1.0)
    with pytest.raises(ValueError, match="num_explained must be 0 or more"):
        survival(torch.zeros(3), num_times=3, num_explained=-1.0)
