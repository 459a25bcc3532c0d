"""The command-line scripts: every one is run, from another folder, with tiny settings.

Each start of Python costs seconds, so a test walks through a whole story, and wrong inputs share one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import vinppl.models
from vinppl.data import write_csv, write_video
from vinppl.export import get_group, group_names, read_result
from vinppl.render import simulate_clips
from vinppl.simulate import simulate
from vinppl.systems import system
from vinppl.trials import read_table

FOLDER = Path(__file__).parents[1] / "inference"

# Every script, and what its help must say. A script that is not listed fails the test below.
SCRIPTS = {
    "simulate.py": ["--system STR", "henon_heiles", "--noise-scale", "standard deviation of the noise"],
    "svi.py": ["--model STR", "path/to/file.py:Name", "--columns.time STR", "--train-fraction FLOAT"],
    "mcmc.py": ["--num-chains INT", "R-hat needs at least two", "--columns.position", "--set NAME=VALUE"],
    "forecast.py": ["RUN", "folder that svi.py or mcmc.py wrote", "--horizon FLOAT"],
    "report.py": ["RUN", "folder that svi.py or mcmc.py wrote", "--trajectory INT"],
    "demo.py": ["--out PATH", "--quick"],
    "study_amortised.py": ["--num-seeds INT", "address of a dask scheduler", "--quick"],
    "study_growth.py": ["--num-records INT", "address of a dask scheduler", "--quick"],
    "study_noisy.py": ["--num-seeds INT", "address of a dask scheduler", "--quick"],
    "study_pixels.py": ["--num-seeds INT", "address of a dask scheduler", "--quick"],
    "study_real.py": ["--num-seeds INT", "address of a dask scheduler", "--quick"],
    "calibrate.py": ["--num-simulations INT", "simulation-based calibration", "--cases", "--quick"],
    "compare.py": ["RUN ...", "--lfo", "what is left out at a time"],
    "check.py": ["RUN", "Posterior predictive checks", "--num-draws INT"],
}

SVI = ["--num-steps", "30", "--check-every", "10", "--num-draws", "40"]
MCMC = ["--num-chains", "2", "--num-warmup", "15", "--num-draws", "15", "--num-workers", "2"]

USER_MODEL = """
import pyro
import torch
from pyro.distributions import LogNormal, Normal

from vinppl.dynamics import VIN
from vinppl.potentials import FunctionPotential
from vinppl.state import PhaseState

vin = VIN(FunctionPotential(lambda q, k: -(k * q.cos()).sum(-1), {"k": LogNormal(2.0, 1.0)}))


def swing(data):
    plate = pyro.plate("trajectory", data.num_trajectories, dim=-1)
    with plate:
        q0 = pyro.sample("initial_position", Normal(torch.zeros(1), 3.0).to_event(1))
        v0 = pyro.sample("initial_velocity", Normal(torch.zeros(1), 3.0).to_event(1))
    sigma = pyro.sample("noise_scale", LogNormal(-1.0, 1.0))
    path = vin(PhaseState(q0, v0), data.grid())
    with plate:
        vin.record(path)
        pyro.sample("obs", Normal(data.observe(path), sigma[..., None, None]).to_event(2), obs=data.values)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "100"}


def start(cwd: Path, script: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start a script in its own process group, so that a signal can reach all its processes."""
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment(), start_new_session=True, **pipes, **options)


def finish(process: subprocess.Popen[str], status: int = 0, timeout: float = 240) -> tuple[str, str]:
    """Wait for a script, check its exit status and return what it wrote."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, f"{out}\n{err}"
    return out, err


def run(
    cwd: Path, script: str, *arguments: str | Path, status: int = 0, timeout: float = 240, **options: Any
) -> tuple[str, str]:
    return finish(start(cwd, script, *arguments, **options), status, timeout)


def write_data(path: Path, *, num_times: int = 15, seed: int = 0) -> Path:
    """Write a small pendulum file."""
    data, _ = simulate(
        system("pendulum"), num_trajectories=2, num_times=num_times, noise_scale=0.1, seed=seed
    )
    write_csv(data, path)
    return path


def posterior_of(folder: Path) -> dict[str, np.ndarray]:
    return {str(k): v.values for k, v in get_group(read_result(folder / "result.nc"), "posterior").items()}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check_error(err: str) -> str:
    """Return the one line that a wrong input ends with."""
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert "Traceback" not in err, err
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0]), err
    return lines[0]


# What there is


def test_every_script_is_listed() -> None:
    found = {path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}
    assert found == set(SCRIPTS)


def test_help_explains_every_option(tmp_path: Path) -> None:
    processes = {name: start(tmp_path, name, "--help") for name in SCRIPTS}
    for name, process in processes.items():
        out, err = finish(process)
        assert err == ""
        for phrase in SCRIPTS[name]:
            assert phrase in out, f"{name} --help does not say {phrase!r}"
        assert f"python inference/{name}" in out  # a recipe
        # A table keeps its lines.
        description, _, _ = out.partition("╭─")
        assert not re.search(r"(?m)^\S.* {3}", description), f"{name} --help flows a table together"
        # Every option is followed by words of explanation and not just by its default.
        for option, text in re.findall(r"(?m)^│ (--[\w.-]+)([^│]*│(?:\n│ {5,}[^│]*│)*)", out):
            words = re.sub(r"\(default: .*?\)|\(required\)|[│\n]|\{.*?\}|\[.*?\]\]|[A-Z]{3,}", " ", text)
            assert re.search(r"[a-z]{2,} \S+", words), f"{name} {option} has no explanation: {text}"
        assert "{None}" not in out, "None cannot be typed sensibly"
        assert not re.search(r"--(select|svi|mcmc)\.", out), "options of the groups have short names"


# From simulation to forecast


def test_svi_from_simulation_to_forecast(tmp_path: Path) -> None:
    run(tmp_path, "simulate.py", "--out", "a.csv", "--num-trajectories", "2", "--num-times", "25")
    out, _ = run(
        tmp_path, "svi.py", "--model", "Pendulum", "--data", "a.csv", "--out", "fit", *SVI,
        "--set", "drag=[0.01,1.0]", "max_step_size=0.1", "--train-fraction", "0.8",
    )  # fmt: skip
    folder = tmp_path / "fit"
    assert "posterior: fit/result.nc" in out
    assert "potential.gravity_over_length" in out
    names = {"config.json", "log.jsonl", "result.nc", "loss.png", "checkpoint"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["kind"] == "svi"
    assert config["options"]["set"] == ["drag=[0.01,1.0]", "max_step_size=0.1"]
    assert config["versions"]["vinppl"]
    assert [event["event"] for event in events(folder)] == ["started", "step", "step", "step", "finished"]

    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    folder.rename(moved)
    out, _ = run(moved.parent, "forecast.py", "renamed", "--num-draws", "10")
    written = {
        "forecast.nc",
        "scores.csv",
        "fan_chart.png",
        "uncertainty.png",
        "energy.png",
        "phase_portrait.png",
        "uncertainty_growth.png",
    }
    assert "q: sd " in out
    assert "Two draws agree for " in out
    assert {path.name for path in moved.iterdir()} == names | written
    scores = pd.read_csv(moved / "scores.csv")
    assert len(scores) > 0
    assert np.isfinite(scores.select_dtypes("number").to_numpy()).all()
    predictions = az.from_netcdf(str(moved / "forecast.nc")).predictions
    assert predictions["obs"].shape == (1, 10, 2, 25, 2)
    growth = get_group(read_result(moved / "forecast.nc"), "uncertainty_growth")
    assert list(growth["part"].values) == ["initial_state", "potential", "forces", "observation"]
    run(moved.parent, "forecast.py", "renamed", "--num-draws", "5")  # too few to say what makes the spread
    assert "uncertainty_growth" not in group_names(read_result(moved / "forecast.nc"))

    # A result of the documented layout serves all of ArviZ.
    result = az.from_netcdf(str(moved / "result.nc"))
    wanted = {
        "posterior",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "observed_data",
        "constant_data",
    }
    assert wanted <= set(result.groups())
    assert az.summary(result, kind="stats").shape[0] == 2 + 2 + 3 + 2
    assert result.posterior["noise_scale"].dims == ("chain", "draw", "channel")


def test_a_film_from_clip_to_forecast(tmp_path: Path) -> None:
    film, _ = simulate_clips("mass_spring", num_clips=1, num_times=30, size=12)
    write_video(film.frames, tmp_path / "clip.npz", 10.0)
    small = ["--video.size", "12", "--train-fraction", "0.6"]
    tiny = ["num_taught=20", "hidden_sizes=[16]", "integrator=velocity_verlet"]
    common = ["--data", "clip.npz", *SVI, *small]
    both = {
        "vin": start(tmp_path, "svi.py", "--model", "PixelVIN", "--out", "vin", *common, "--set", *tiny),
        "vae": start(
            tmp_path,
            "svi.py",
            "--model",
            "vinppl.models:PixelVAE",
            "--out",
            "vae",
            *common,
            "--set",
            "circle=true",
        ),
    }
    for process in both.values():
        finish(process)
    assert posterior_of(tmp_path / "vae")["position"].shape == (1, 40, 1, 18, 1)
    out, _ = run(tmp_path, "forecast.py", "vin", "--horizon", "2", "--num-draws", "5")
    written = {path.name for path in (tmp_path / "vin").iterdir()}
    assert {"frames.png", "phase_portrait.png", "energy.png", "forecast.gif", "scores.csv"} <= written
    assert "fan_chart.png" not in written
    assert "forecast.gif" in out
    scores = pd.read_csv(tmp_path / "vin" / "scores.csv")
    assert scores["num_frames"].iloc[-1] == 12
    assert np.isfinite(scores.select_dtypes("number").to_numpy()).all()
    constants = get_group(read_result(tmp_path / "vin" / "forecast.nc"), "predictions_constant_data")
    # The guide reads ten frames, so that forecasts begin at the first of the last ten that were fitted.
    np.testing.assert_allclose(constants["times"].values[0], 0.1 * np.arange(8, 38), atol=1e-5)
    assert constants["in_sample"].values.sum() == 10
    _, err = run(tmp_path, "forecast.py", "vae", status=2)
    assert "without dynamics cannot forecast" in check_error(err)


def test_svi_of_a_film_tells_periods_and_damping(tmp_path: Path) -> None:
    films, _ = simulate_clips("mass_spring", num_clips=2, num_times=30, size=12, levels="grey")
    write_video(films.frames, tmp_path / "clips.npz", 10.0)
    out, _ = run(
        tmp_path, "svi.py", "--model", "vinppl.models:PixelVIN", "--data", "clips.npz", "--out", "fit", *SVI,
        "--video.size", "12", "--set", "hidden_sizes=[16]", "num_taught=60", "damping=[0.1,1.0]",
        "integrator=velocity_verlet",
    )  # fmt: skip
    assert "damping.coefficient" in out
    assert "noise_scale" in out
    _, _, told = out.partition("period: posterior median (90 % interval)\n")
    table = pd.read_csv(tmp_path / "fit" / "periods.csv")
    assert len(table) == 2
    assert set(table["time_unit"]) == {"s"}
    for line, row in zip(told.splitlines(), table.to_dict("records"), strict=False):
        assert str(row["trajectory"]) in line
        assert f"{row['median']:.4g} s ({row['5%']:.4g} to {row['95%']:.4g})" in line
        assert 0 < row["5%"] <= row["median"] <= row["95%"] < 4 * 2.9


def test_mcmc_of_the_users_own_model(tmp_path: Path) -> None:
    write_data(tmp_path / "a.csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_model.py").write_text(USER_MODEL)
    out, _ = run(
        tmp_path, "mcmc.py", "--model", "mine/my_model.py:swing", "--data", "a.csv", "--out", "runs/x", *MCMC
    )
    folder = tmp_path / "runs" / "x"
    assert "r_hat" in out
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl", "result.nc", "checkpoint"}
    assert events(folder)[-1]["event"] == "finished"
    result = az.from_netcdf(str(folder / "result.nc"))
    assert result.posterior.sizes["chain"] == 2
    assert result.posterior.sizes["draw"] == 15
    assert "diverging" in result.sample_stats
    assert "potential.k" in result.posterior
    assert {"mean", "ess_bulk", "r_hat"} <= set(az.summary(result).columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 30 draws are few for Pareto k
        assert np.isfinite(az.loo(result).elpd_loo)
    az.plot_ppc(result, num_pp_samples=5)
    plt.close("all")

    run(tmp_path / "mine", "forecast.py", folder, "--horizon", "1", "--num-draws", "10")
    assert (folder / "forecast.nc").exists()
    assert not (folder / "scores.csv").exists()  # nothing was held out

    # More draws continue the same chains.
    before = posterior_of(folder)
    longer = [*MCMC[:4], "--num-draws", "20", *MCMC[6:]]
    out, _ = run(
        tmp_path,
        "mcmc.py",
        "--model",
        "mine/my_model.py:swing",
        "--data",
        "a.csv",
        "--out",
        "runs/x",
        *longer,
    )
    assert "(resuming)" in out
    for name, draws in posterior_of(folder).items():
        assert draws.shape[1] == 20
        np.testing.assert_array_equal(draws[:, :15], before[name])


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    out, _ = run(tmp_path, "demo.py", "--out", "demo", "--quick")
    assert "$ python inference/svi.py" in out
    assert (tmp_path / "demo" / "comparison.png").stat().st_size > 10_000
    assert set(pd.read_csv(tmp_path / "demo" / "scores.csv")["model"]) >= {"VIN-SV", "VIN-SO(2)"}


def test_the_noisy_study_scores_every_model_and_reads_what_it_has_already(tmp_path: Path) -> None:
    arguments = ("study_noisy.py", "--quick", "--num-workers", "2", "--out", "study")
    out, err = run(tmp_path, *arguments)
    assert "failed" not in out + err
    table = read_table(tmp_path / "study" / "noisy_states.csv")
    assert len(table.groupby(["system", "model"])) == 34
    assert set(table["start"]) == {"inferred", "true"}
    assert np.isfinite(table.drop(columns=["model", "system", "start", "span"])).all(axis=None)
    assert bool((table.loc[table["model"] == "oracle", "skill"] == 1).all())
    ten = table[(table["start"] == "inferred") & (table["span"] == "to")].set_index(["system", "model"])
    for name in ("mass_spring", "pendulum"):  # structure shows even after so little training
        assert ten.loc[name, "vin_vv_nuts"]["crps"] < ten.loc[name, "hnn_derivatives"]["crps"]
    began = time.monotonic()
    again, _ = run(tmp_path, *arguments)
    assert "done" not in again.partition("rmse")[0]
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "models", [("vin_sv", "vae"), pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_the_study_of_pixels_writes_its_tables_and_figures(tmp_path: Path, models: tuple[str, ...]) -> None:
    chosen = ("--models", *models) if models else ()
    arguments = ("study_pixels.py", "--quick", "--num-workers", "2", "--out", "study", *chosen)
    out, err = run(tmp_path, *arguments, timeout=900)
    assert "failed" not in out + err
    table = read_table(tmp_path / "study" / "table1.csv")
    known = {"vin_so2", "vin_vv", "vin_sv", "res_rnn", "res_rnn_elbo"}
    assert set(table["model"]) == (known & set(models) if models else known)
    assert set(table["protocol"]) == {"paper", "unseen1"}
    assert set(table["forecast"]) == {"mean", "posterior", "constant"}
    assert np.isfinite(table[["rmse", "loglik", "brier"]]).all(axis=None)
    examples = read_table(tmp_path / "study" / "examples.csv")
    assert len(examples[examples["model"] == "vae"]) == 120
    assert {"embeddings.png", "portraits_mass_spring.png", "films_mass_spring.png"} <= {
        path.name for path in (tmp_path / "study").glob("*.png")
    }


@pytest.mark.slow
def test_the_study_of_amortised_guides_compares_them_with_nuts(tmp_path: Path) -> None:
    run(tmp_path, "study_amortised.py", "--quick", "--num-workers", "1", "--out", "study", timeout=900)
    table = read_table(tmp_path / "study" / "amortisation.csv")
    assert set(table["model"]) == {"Pendulum", "MassSpring", "NoisyStates"}
    assert set(table["engine"]) == {"nuts", "amortised_mean_field", "amortised", "refined"}
    assert (
        len(table) == 2 * (4 + 3) * 5
    )  # systems, engines of known laws and networks, horizons and their mean
    assert np.isfinite(table[["coverage_90", "crps", "width", "sd_ratio"]]).all(axis=None)
    assert (table.loc[table["engine"] == "nuts", "sd_ratio"] == 1).all()


def test_the_study_of_growth_compares_laws_with_the_systems(tmp_path: Path) -> None:
    arguments = ("--quick", "--systems", "mass_spring", "--num-workers", "1", "--out", "study")
    out, _ = run(tmp_path, "study_growth.py", *arguments)
    assert "Distances between draws" in out
    table = read_table(tmp_path / "study" / "uncertainty_growth.csv")
    assert table["system"].tolist() == ["mass_spring"]
    assert table["law"].isin(["constant", "linear"]).all()
    assert abs(table["lyapunov"][0]) < 0.05
    _, err = run(tmp_path, "study_growth.py", "--systems", "lorenz", status=2)
    assert "systems must be among mass_spring, pendulum, henon_heiles, duffing; got lorenz" in check_error(
        err
    )


@pytest.mark.slow
def test_chaotic_forecasts_grow_at_the_lyapunov_exponent(tmp_path: Path) -> None:
    arguments = ("--systems", "henon_heiles", "duffing", "--num-seeds", "1", "--out", "study")
    finish(start(tmp_path, "study_growth.py", *arguments), timeout=3600)
    table = read_table(tmp_path / "study" / "uncertainty_growth.csv").set_index("system")
    assert (table["law"] == "exponential").all()
    assert table.loc["duffing", "lyapunov"] == pytest.approx(0.1572, abs=0.016)  # Sprott (2003), A.4.6
    assert table["ratio"].between(0.8, 1.2).all(), table[["rate", "rate_error", "lyapunov"]]


def test_calibration_judges_every_parameter_and_reads_what_it_has_already(tmp_path: Path) -> None:
    arguments = ("calibrate.py", "--quick", "--engines", "nuts", "full_rank", "--num-workers", "2")
    arguments += ("--out", "sbc")
    out, err = run(tmp_path, *arguments)
    assert "FAILED" not in out + err
    table = read_table(tmp_path / "sbc" / "sbc.csv")
    columns = ["model", "engine", "parameter", "simulations", "failed", "statistic", "passed"]
    assert list(table.columns) == [*columns, "passed_jointly"]
    assert set(table["engine"]) == {"nuts", "full_rank", "full_rank_refined"}
    assert {"potential.stiffness", "noise_scale[1]", "last_state[0]", "log_likelihood"} <= set(
        table["parameter"]
    )
    assert bool((table["simulations"] == 3).all())
    assert bool((table["failed"] == 0).all())
    fits = read_table(tmp_path / "sbc" / "fits.csv")
    assert fits["fits"].tolist() == [3, 3, 3]
    assert bool(fits[["not_converged", "few_effective"]].notna().all(axis=None))
    forecasts = read_table(tmp_path / "sbc" / "calibration.csv")
    levels = [f"coverage_{level}" for level in (50, 80, 90, 95)]
    columns = ["model", "system", "engine", "horizon", *levels, "crps", "energy_score", "width", "seeds"]
    assert list(forecasts.columns) == [*columns, "coverage_90_se"]
    assert sorted(set(forecasts["horizon"])) == ["0.5", "1.0", "1.5", "2.0", "all"]
    figures = {path.name for path in (tmp_path / "sbc").glob("*.png")}
    assert {"reliability.png", "sbc_mass_spring_nuts.png", "pit_mass_spring_full_rank_refined.png"} <= figures
    began = time.monotonic()
    again, _ = run(tmp_path, *arguments)
    assert " done, " not in again
    assert time.monotonic() - began < 60


def test_calibration_covers_every_model_of_states() -> None:
    covered = {case.model for case in runpy.run_path(str(FOLDER / "calibrate.py"))["CASES"].values()}
    suite = {name for name in vinppl.models.__all__ if not name.endswith("Config")}
    assert covered == {name for name in suite if not name.startswith("Pixel")}


def test_fits_that_fail_are_counted_by_calibration(tmp_path: Path) -> None:
    source = """
        from vinppl.models import MassSpring

        class Capricious(MassSpring):
            def initial_values(self, data):
                if data.values[0, 0, 0] < -2:
                    raise RuntimeError("no start so far to the left")
                return super().initial_values(data)
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    arguments = ("--model", "mine.py:Capricious", "--system", "mass_spring", "--engines", "nuts", "--quick")
    out, _ = run(tmp_path, "calibrate.py", *arguments, "--num-workers", "1", "--out", "sbc")
    failed = len(list((tmp_path / "sbc" / "failures").glob("*.json")))
    assert 0 < failed < 3
    table = read_table(tmp_path / "sbc" / "sbc.csv")
    assert bool((table["failed"] == failed).all())
    assert bool((table["simulations"] == 3).all())
    assert read_table(tmp_path / "sbc" / "fits.csv")[["fits", "failed"]].to_numpy().tolist() == [
        [3 - failed, failed]
    ]
    assert f"3 simulations, {failed} of which failed" in out


def test_runs_are_compared_and_checked(tmp_path: Path) -> None:
    write_data(tmp_path / "a.csv", num_times=14)
    common = ("--data", "a.csv", "--train-fraction", "0.8")
    run(tmp_path, "svi.py", "--model", "Pendulum", *common, "--out", "first", *SVI)
    run(tmp_path, "mcmc.py", "--model", "Pendulum", *common, "--out", "second/x", *MCMC)
    run(tmp_path, "mcmc.py", "--model", "MassSpring", *common, "--out", "third/x", *MCMC)
    out, _ = run(tmp_path, "compare.py", "first", "second/x", "third/x", "--num-draws", "200", "--out", "loo")
    assert "saw what is left out" not in out  # no point estimates
    table = read_table(tmp_path / "loo" / "compare.csv").set_index("model")
    assert set(table.index) == {"first", "second/x", "third/x"}
    assert table["parts"].tolist() == [2 * 11 * 2] * 3
    assert table["held_out_points"].tolist() == [2 * 3 * 2] * 3
    assert table["difference"].iloc[0] == 0
    assert (tmp_path / "loo" / "compare.png").exists()
    ahead, _ = run(
        tmp_path,
        "compare.py",
        "second/x",
        "third/x",
        "--lfo",
        "--first",
        "9",
        "--horizon",
        "2",
        "--out",
        "lfo",
    )
    assert "fit to the first 9 of 11 samples" in ahead
    assert read_table(tmp_path / "lfo" / "compare.csv")["parts"].tolist() == [1, 1]
    run(tmp_path, "check.py", "second/x", "--num-draws", "50")
    checks = pd.read_csv(tmp_path / "second" / "x" / "checks.csv", index_col="quantity")
    assert {"residual_sd[q]", "residual_lag1[q]", "period[q]", "energy_drift"} <= set(checks.index)
    learned = pd.read_csv(tmp_path / "second" / "x" / "learned.csv", index_col="parameter")
    assert learned.loc["potential.gravity_over_length", "scale"] == "log"
    assert {"checks.png", "posterior_vs_prior.png"} <= {p.name for p in (tmp_path / "second" / "x").iterdir()}
    write_data(tmp_path / "b.csv", seed=1)
    run(tmp_path, "svi.py", "--model", "Pendulum", "--data", "b.csv", "--out", "other", *SVI)
    _, err = run(tmp_path, "compare.py", "first", "other", status=2)
    assert "other must be fitted to the data of first" in check_error(err)


# Interruptions


def interrupted(process: subprocess.Popen[str], sign: Callable[[], bool], number: signal.Signals) -> str:
    """Send a signal once there is a sign of progress and return what the script wrote to stderr."""
    deadline = time.monotonic() + 120
    while not sign():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGINT:  # Ctrl-C reaches every process of the terminal
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), err
    deadline = time.monotonic() + 30
    while running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(process.pid), "a worker outlived its script"
    return err


def running(group: int) -> list[str]:
    """Return the processes of a group that still run (not those that only wait to be reaped)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
@pytest.mark.parametrize("script", ["svi.py", "mcmc.py"])
def test_an_interrupted_run_resumes_to_the_same_numbers(script: str, tmp_path: Path) -> None:
    write_data(tmp_path / "a.csv", num_times=20)
    tiny = {
        "svi.py": ["--num-steps", "150", "--check-every", "10", "--num-draws", "40"],
        "mcmc.py": ["--num-chains", "2", "--num-warmup", "60", "--num-draws", "30", "--num-workers", "2"],
    }[script]
    common = ["--model", "Pendulum", "--data", "a.csv", "--checkpoint-every", "0.1", *tiny]
    run(tmp_path, script, *common, "--out", "whole")
    expected = posterior_of(tmp_path / "whole")
    saved = {"svi.py": "svi.pt", "mcmc.py": "chain_1.pt"}[script]
    for number in (signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / number.name
        process = start(tmp_path, script, *common, "--out", folder)
        logged = {"svi.py": 2, "mcmc.py": 1}[script]  # a chain logs every fiftieth draw only

        def sign(folder: Path = folder, logged: int = logged) -> bool:
            log = folder / "log.jsonl"
            started = (folder / "checkpoint" / saved).exists() and log.exists()
            return started and len(log.read_text().splitlines()) >= logged

        err = interrupted(process, sign, number)
        assert not (folder / "result.nc").exists()
        if number == signal.SIGINT:
            assert "run the same command to resume" in check_error(err)
        out, _ = run(tmp_path, script, *common, "--out", folder)
        assert "(resuming)" in out
        found = posterior_of(folder)
        assert found.keys() == expected.keys()
        for name, draws in found.items():
            np.testing.assert_array_equal(draws, expected[name], err_msg=f"{number.name} {name}")


# A full disk


def limited(num_bytes: int) -> Callable[[], None]:
    """Return what forbids files beyond a size: the nearest to a full disk that needs no privileges."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.mark.parametrize(("script", "tiny"), [("svi.py", SVI), ("mcmc.py", MCMC)], ids=["svi", "mcmc"])
def test_a_full_disk_ends_with_status_4_and_harms_nothing(
    script: str, tiny: list[str], tmp_path: Path
) -> None:
    write_data(tmp_path / "a.csv")
    arguments = [script, "--model", "Pendulum", "--data", "a.csv", *tiny, "--out"]
    whole = start(tmp_path, *arguments, "whole")
    _, err = run(tmp_path, *arguments, "new", status=4, preexec_fn=limited(6000))
    assert "File too large" in check_error(err)
    left = [path.name for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".") or name.endswith(".nc")]
    json.loads((tmp_path / "new" / "config.json").read_text())
    finish(whole)

    kept = {
        path: path.read_bytes() for path in (tmp_path / "whole").rglob("*") if path.suffix in (".nc", ".pt")
    }
    assert len(kept) >= 2
    _, err = run(tmp_path, *arguments, "whole", status=4, preexec_fn=limited(6000))
    assert "run the same command to resume" in check_error(err)
    assert {path: path.read_bytes() for path in kept} == kept


# Wrong inputs

DRIVER = """
import contextlib, io, json, runpy, sys
results = []
for script, *arguments in json.load(open(sys.argv[1])):
    sys.argv = [script, *arguments]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A command line and what its error must say."""

    arguments: tuple[str, ...]
    says: str


HEADER = "time,q,v\n"
ROWS = "".join(f"{0.1 * i:.1f},{i}.5,0.1\n" for i in range(6))
FILES = {
    "nan_time.csv": HEADER + ROWS + "nan,1.0,0.1\n",
    "two_rows.csv": HEADER + "0.0,1.0,0.1\n",
    "unsorted.csv": HEADER + ROWS + "0.2,1.0,0.1\n",
    "words.csv": HEADER + ROWS + "0.9,high,0.1\n",
    "empty.csv": "",
    "broken.py": "def swing(data:\n    pass\n",
    "missing_import.py": "import not_a_package\n",
}


def fit(*arguments: str, data: str = "a.csv", model: str = "Pendulum") -> tuple[str, ...]:
    return ("svi.py", "--model", model, "--data", data, "--out", "other", *SVI, *arguments)


WRONG = {
    "missing file": Wrong(fit(data="nowhere.csv"), r"nowhere\.csv"),
    "folder for a file": Wrong(fit(data="."), "is a directory"),
    "empty file": Wrong(fit(data="empty.csv"), r"empty\.csv"),
    "wrong column": Wrong(fit("--columns.time", "tme"), r"'tme'.*'time'"),
    "NaN time": Wrong(fit(data="nan_time.csv"), r"nan_time\.csv, line 8, column 'time'"),
    "a word for a number": Wrong(fit(data="words.csv"), r"line 8, column 'q'.*high"),
    "one row": Wrong(fit(data="two_rows.csv"), r"two_rows\.csv"),
    "unsorted times": Wrong(fit(data="unsorted.csv"), r"unsorted\.csv.*sort"),
    "unknown model": Wrong(fit(model="Pendulun"), "Did you mean Pendulum"),
    "unknown module": Wrong(fit(model="nowhere:Model"), "no module 'nowhere'"),
    "no model file": Wrong(fit(model="nowhere.py:Model"), r"nowhere\.py"),
    "syntax error": Wrong(fit(model="broken.py:swing"), r"broken\.py.*SyntaxError.*line 1"),
    "failing import": Wrong(fit(model="missing_import.py:swing"), "not_a_package.*line 1"),
    "unknown model option": Wrong(fit("--set", "dampin=none"), "Did you mean damping"),
    "wrong model option": Wrong(fit("--set", "damping=high"), r"damping.*'high'"),
    "unknown option": Wrong(fit("--num-step", "3"), "Did you mean --num-steps"),
    "option given twice": Wrong(fit("--set", "a=1", "--set", "b=2"), "--set is given twice"),
    "not a number": Wrong(fit("--window", "many"), "--window.*'many'"),
    "out of range": Wrong(fit("--train-fraction", "1.5"), r"train_fraction must lie in \(0, 1\]; got 1.5"),
    "unknown choice": Wrong(fit("--guide", "full"), "'full'.*full_rank"),
    "missing option": Wrong(("svi.py", "--model", "Pendulum"), "--data must be given"),
    "other options there": Wrong(
        (
            "svi.py",
            "--model",
            "Pendulum",
            "--data",
            "a.csv",
            "--out",
            "run",
            *SVI,
            "--window",
            "0",
            "--seed",
            "1",
        ),
        r"other options.*svi\.seed: 0 there, 1 here.*--overwrite",
    ),
    "no run there": Wrong(("forecast.py", "nowhere"), "holds no run"),
    "nothing to forecast": Wrong(("forecast.py", "run"), "horizon"),
    "forecast backwards": Wrong(("forecast.py", "run", "--horizon", "-1"), "horizon must not be negative"),
    "unfinished run": Wrong(("forecast.py", "unfinished", "--horizon", "1"), r"no result yet.*svi\.py"),
    "unknown system": Wrong(("simulate.py", "--system", "pendulm", "--out", "b.csv"), "pendulum"),
    "unknown parameter": Wrong(
        ("simulate.py", "--parameters", "gravty=1", "--out", "b.csv"), "parameters of pendulum"
    ),
    "parameter without value": Wrong(
        ("simulate.py", "--parameters", "gravity", "--out", "b.csv"), "name=number"
    ),
}


def test_wrong_inputs_end_with_one_clear_line(tmp_path: Path) -> None:
    write_data(tmp_path / "a.csv")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    first = ("svi.py", "--model", "Pendulum", "--data", "a.csv", "--out", "run", *SVI)
    commands = [first, *(case.arguments for case in WRONG.values())]
    results = drive(tmp_path, commands, prepare=unfinished)
    assert results[0][0] == 0, results[0]
    failures = []
    for (name, case), (status, _, err) in zip(WRONG.items(), results[1:], strict=True):
        try:
            assert status == 2, err
            assert re.search(case.says, check_error(err)), err
        except AssertionError as error:
            failures.append(f"{name}: {str(error)[:400]}")
    assert not failures, "\n".join(failures)
    assert not (tmp_path / "other").exists(), "a refused command leaves no folder"


def test_changed_data_are_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "a.csv")
    first = ["svi.py", "--model", "Pendulum", "--data", "a.csv", "--out", "run", *SVI]
    run(tmp_path, *first)
    before = posterior_of(tmp_path / "run")
    write_data(tmp_path / "a.csv", seed=1)
    commands = [["forecast.py", "run", "--horizon", "1"], first, ["forecast.py", "run", "--horizon", "1"]]
    for status, _, err in drive(tmp_path, [*commands, [*first, "--overwrite"], commands[0]])[:3]:
        assert status == 2
        assert re.search("has changed since|other data", check_error(err))
    after = posterior_of(tmp_path / "run")
    assert not np.array_equal(before["noise_scale"], after["noise_scale"])
    assert (tmp_path / "run" / "forecast.nc").exists()


def unfinished(folder: Path) -> None:
    """Make a run folder without a result."""
    (folder / "unfinished").mkdir()
    config = {"options": {"kind": "svi"}, "data": ""}
    (folder / "unfinished" / "config.json").write_text(json.dumps(config))


def drive(
    cwd: Path, commands: Any, prepare: Callable[[Path], None] | None = None
) -> list[tuple[int, str, str]]:
    """Run command lines one after another in one Python process, each as its own script."""
    if prepare is not None:
        prepare(cwd)
    (cwd / "driver.py").write_text(DRIVER)
    lines = [[str(FOLDER / script), *map(str, arguments)] for script, *arguments in commands]
    (cwd / "commands.json").write_text(json.dumps(lines))
    command = [sys.executable, "driver.py", "commands.json"]
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240, check=True
    )
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]
