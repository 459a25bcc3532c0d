"""The speed benchmark: its rows, its timing, and that its peers compute what the library does."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.peers.rows import Effort, Row, interleaved, write_json

SCRIPT = Path(__file__).parent / "bench" / "speed.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A process of its own: JAX forbids forks in the one that has imported it.
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("row", "ratio", "met"),
    [
        (Row("gradient", 10.0, 30.0, "NumPyro", "us", 3), 3.0, True),
        (Row("forecast", 2.0, 0.5, "C", "s", 1 / 3), 0.25, False),
        (Row("nuts", 400.0, 100.0, "NumPyro", "ESS/s", 3, more_is_better=True), 4.0, True),
        (Row("convergence", 94, None, None, "runs of 100", 95), 94, False),
        (Row("warm cache", 2.0, 5.0, "NumPyro", "s", None), 2.5, None),
    ],
)
def test_a_larger_ratio_is_always_better(row: Row, ratio: float, met: bool | None) -> None:
    assert row.ratio == pytest.approx(ratio)
    assert row.met is met
    assert ("not met" in str(row)) is (met is False)


def test_rows_are_written_with_the_columns_that_readers_expect(tmp_path: Path) -> None:
    rows = [Row("a", 1.0, 4.0, "C", "s", 3), Row("b", 94, None, None, "runs of 100", 95)]
    path = tmp_path / "speed.json"
    for count in (1, 2):
        write_json(rows[:count], path)
        written = json.loads(path.read_text())
        assert len(written) == count
        assert all(
            [*row] == ["name", "ours", "peer", "peer_name", "unit", "ratio", "asked"] for row in written
        )
    assert [row["ratio"] for row in written] == [4.0, 94]
    assert written[1]["peer"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"]


def test_functions_are_timed_in_turns() -> None:
    calls: list[str] = []
    times = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3, least_seconds=0.0)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert len(times) == 2
    assert min(times) >= 0


def test_a_slow_function_takes_longer() -> None:
    fast, slow = interleaved(
        [lambda: sum(range(100)), lambda: sum(range(10_000))], repeats=5, least_seconds=1e-3
    )
    assert slow > 10 * fast


def test_a_quick_look_repeats_less() -> None:
    assert Effort(quick=True).repeats >= 5  # a median of fewer says little
    assert Effort(quick=True).repeats < Effort().repeats
    assert Effort(quick=True).num_runs < Effort().num_runs


def test_the_script_writes_the_rows_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    done = run("--quick", "--only", "training_step_vs_torch", "--json", path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())
    assert row["name"] == "training_step_vs_torch"
    assert row["name"] in done.stdout
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])


def test_counted_fits_are_kept_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    convergence = importlib.import_module("peers.convergence")
    fitted = []

    def fit(name: str, num_points: int, seed: int) -> dict[str, str]:
        fitted.append(seed)
        rhat, divergences = ("nan" if seed == 0 else "1.02" if seed == 1 else "1.001"), int(seed == 2)
        values = (name, num_points, seed, rhat, 400, divergences, 1.5)
        return {column: str(value) for column, value in zip(convergence.COLUMNS, values, strict=True)}

    monkeypatch.setattr(convergence, "_fit", fit)
    monkeypatch.setattr(convergence, "NUM_SEEDS", 6)
    effort = Effort(convergence_csv=tmp_path / "convergence.csv")
    row = convergence.count("pendulum", 150, effort)
    assert (row.name, row.ours, row.peer) == ("convergence_pendulum_150", 3, None)
    assert fitted == [*range(6)]
    monkeypatch.setattr(convergence, "NUM_SEEDS", 7)
    assert convergence.count("pendulum", 150, effort).ours == 4
    assert fitted == [*range(7)]
    lines = (tmp_path / "convergence.csv").read_text().splitlines()
    assert lines[0].startswith("# command: python tests/bench/speed.py")
    assert lines[1] == "system,num_points,seed,max_rhat,min_ess,divergences,seconds"
    assert len(lines) == 9


@pytest.mark.slow
def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    done = run("--only", "gradient_of_nothing")
    assert done.returncode != 0
    assert "no row is called gradient_of_nothing" in done.stderr
    assert "nuts_cold_process" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("jax", "numpyro")), reason="needs numpyro and jax"
)
def test_the_peers_compute_what_the_library_does() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stderr
    for name in ("pendulum", "duffing", "hierarchical", "chain"):
        assert f"{name}: same posterior" in done.stdout
