"""The study of real systems: how it reads and prepares measurements, and what it skips."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from example_data import load_script

from vinppl.data import Trajectories


@pytest.fixture(scope="module")
def study() -> Any:
    return load_script("study_real")


def test_systems_without_data_are_skipped(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study.Config(out=tmp_path, data=tmp_path)
    found = study.trials(config)
    assert {trial.arguments["system_name"] for trial in found} == {"pendulum_as_spring"}
    assert len(found) == 3 * config.num_seeds
    assert "emps_pulses: skipped, since" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"systems must be among pendulum_as_spring.*got lorenz"):
        study.main(dataclasses.replace(config, systems=("lorenz",)))


def test_least_squares_has_no_seeds(study: Any, tmp_path: Path) -> None:
    path = tmp_path / study.SYSTEMS["emps"].file
    path.parent.mkdir()
    path.touch()
    found = study.trials(study.Config(data=tmp_path, systems=("emps",), num_seeds=2))
    models = [trial.arguments["model"] for trial in found]
    assert {model: models.count(model) for model in models} == {
        "law_unknown_force": 2,
        "law_ar1_noise": 2,
        "least_squares": 1,
    }


def test_how_velocities_were_made_of_angles_is_found_beside_gaps(study: Any) -> None:
    rng = np.random.default_rng(0)
    angle, true = rng.normal(size=120).cumsum(), np.array([0.2, 0.3, -0.1, 0.05])
    velocity = np.full(120, 7.0)  # nonsense at the ends, where the sums reach out of the record
    for n in range(4, 116):
        velocity[n] = sum(true[k - 1] * (angle[n + k] - angle[n - k]) for k in range(1, 5))
    times = 0.1 * np.arange(120)
    times[60:] += 0.1  # a dropped frame
    velocity[56:64] = -3.0  # nonsense beside it
    values = np.stack([angle, velocity], axis=-1)
    data = Trajectories.from_arrays(times, values, quantities=("position", "velocity"))
    weights, scatter = study.derivative_weights(data)
    np.testing.assert_allclose(weights, true, rtol=0, atol=1e-12)
    assert scatter < 1e-12


def test_energy_of_the_swing_is_that_of_the_protocol(study: Any) -> None:
    state = np.array([[0.0, 2.0], [np.pi, 0.0]])
    np.testing.assert_allclose(study.swing_energy(state), [4.0, 4.8], rtol=1e-15)


def joint_record(path: Path, *, mass: float, viscous: float, dry: float, force: float) -> None:
    """Write a record of a joint that obeys the law, driven by what its motion needs."""
    t = np.arange(12_001) / 1000
    rate = 2 * np.pi * np.array([0.35, 0.8])
    q = 0.1 * np.sin(rate[0] * t) + 0.03 * np.sin(rate[1] * t)
    v = 0.1 * rate[0] * np.cos(rate[0] * t) + 0.03 * rate[1] * np.cos(rate[1] * t)
    a = -0.1 * rate[0] ** 2 * np.sin(rate[0] * t) - 0.03 * rate[1] ** 2 * np.sin(rate[1] * t)
    volts = (mass * a + viscous * v + dry * np.sign(v) - force) / 35.15065
    pd.DataFrame({"time_s": t, "position_ref_m": q, "position_m": q, "motor_voltage_V": volts}).to_csv(
        path, index=False
    )


def test_pieces_of_the_joint(study: Any, tmp_path: Path) -> None:
    path = tmp_path / "joint.csv"
    joint_record(path, mass=95.0, viscous=200.0, dry=20.0, force=3.0)
    raw = pd.read_csv(path)
    data = study.joint_pieces(path)
    assert data.num_trajectories == 3
    assert data.num_times == 1001
    assert data.times[2, [0, 1, -1]].tolist() == [0.0, 0.002, 2.0]
    assert int(data.mask.sum()) == 3 * 201
    assert float(data.values[1, 5, 0]) == raw["position_m"][4010]
    assert float(data.drive[1, 1, 0]) == raw["motor_voltage_V"][4002]
    assert study.joint_pieces(path, num_pieces=2).num_trajectories == 2


def test_least_squares_finds_the_joint(study: Any, tmp_path: Path) -> None:
    path = tmp_path / "joint.csv"
    joint_record(path, mass=95.0, viscous=200.0, dry=20.0, force=3.0)
    row = study.run_joint_least_squares(study.Fit(path, 0, False), {})
    # Filters smooth the jumps of dry friction alike on both sides; the ends of the record ring.
    assert row["mass"] == pytest.approx(95.0, rel=2e-3)
    assert row["viscous"] == pytest.approx(200.0, rel=5e-3)
    assert row["dry"] == pytest.approx(20.0, rel=5e-3)
    assert row["offset"] == pytest.approx(3.0, rel=5e-3)


def test_the_input_of_the_oscillator_is_interpolated_as_band_limited(study: Any) -> None:
    n = np.arange(4000)
    u = np.sin(2 * np.pi * 70 * n / study.SILVERBOX_RATE) * np.exp(-(((n - 2000) / 400) ** 2))
    y = np.arange(4000.0)
    data = study.oscillator_pieces(u, y, np.array([1000, 1500]), 300)
    fine = (1500 + np.arange(4 * 299 + 1) / 4) / study.SILVERBOX_RATE
    envelope = np.exp(-(((fine * study.SILVERBOX_RATE - 2000) / 400) ** 2))
    np.testing.assert_allclose(
        data.drive[1, :, 0].numpy(), np.sin(2 * np.pi * 70 * fine) * envelope, rtol=0, atol=1e-6
    )
    assert data.mask[0, :, 0].nonzero()[:3, 0].tolist() == [0, 4, 8]
    assert data.values[1, ::4, 0].tolist() == y[1500:1800].tolist()


def test_scores_of_bands(study: Any) -> None:
    rng = np.random.default_rng(1)
    drawn, truth = rng.normal(size=(4000, 1, 500, 1)), rng.normal(size=(1, 500, 1))
    row = study.band_scores(drawn, truth)
    # Binomial errors of 500 points, and the width of a normal's central 90 %.
    assert row["coverage_90"] == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 500))
    assert row["coverage_50"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 500))
    assert row["width_90"] == pytest.approx(2 * 1.645, rel=0.01)
    assert row["rmse"] == pytest.approx(float(np.sqrt((truth**2).mean())), rel=0.01)
    assert "energy_mse" not in row
    assert study.band_scores(drawn, truth, lambda x: 2 * x)["energy_mse"] == pytest.approx(
        4 * row["rmse"] ** 2, rel=1e-9
    )
