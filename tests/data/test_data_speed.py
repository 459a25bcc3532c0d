"""Reading, checking and windowing of large files, in time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vinppl.data import read_trajectories


def write_large(path: Path, num_trajectories: int, num_times: int) -> Path:
    t = np.tile(0.01 * np.arange(num_times), num_trajectories)
    n = np.repeat(np.arange(num_trajectories), num_times)
    pd.DataFrame({"trajectory": n, "time": t, "q": np.sin(t + n), "v": np.cos(t + n)}).to_csv(
        path, index=False
    )
    return path


@pytest.mark.parametrize(("num_trajectories", "num_times"), [(100, 1000), (33_333, 3)])
def test_a_hundred_thousand_rows_take_no_loop_over_rows(
    tmp_path: Path, num_trajectories: int, num_times: int
) -> None:
    path = write_large(tmp_path / "large.csv", num_trajectories, num_times)
    start = time.perf_counter()
    data = read_trajectories(path)
    windows = data.windows(3, 3)
    elapsed = time.perf_counter() - start
    assert data.num_observed == 2 * num_trajectories * num_times
    assert windows.num_trajectories == num_trajectories * (num_times // 3)
    assert elapsed < 5.0  # takes 0.1 s; a Python loop over rows would take most of a minute


PROGRAM = """
import resource, sys, time
from vinppl.data import read_trajectories
start = time.perf_counter()
data = read_trajectories(sys.argv[1])
num_windows = data.windows(20, 20).num_trajectories
elapsed = time.perf_counter() - start
num_overlapping = data.windows(20).num_trajectories
scale = 1e9 if sys.platform == "darwin" else 1e6
print(num_windows, num_overlapping, elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale)
"""


@pytest.mark.slow
def test_a_million_rows_stay_below_ten_seconds_and_two_gigabytes(tmp_path: Path) -> None:
    path = write_large(tmp_path / "large.csv", 1000, 1000)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    num_windows, num_overlapping, elapsed, gigabytes = (float(word) for word in done.stdout.split())
    print(f"1e6 rows read and windowed in {elapsed:.2f} s; peak {gigabytes:.2f} GB with overlapping windows")
    assert (num_windows, num_overlapping) == (50_000, 981_000)
    assert gigabytes < 2.0
    assert elapsed < 10.0
