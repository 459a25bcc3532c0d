"""Is the uncertainty of a model and an engine right? Checked on data simulated from the model's own prior.

    python inference/calibrate.py --out runs/calibration                      the suite, by NUTS and SVI
    python inference/calibrate.py --cases pendulum vin_vv --engines nuts --out runs/pendulum_sbc
    python inference/calibrate.py --model my_model.py:MyModel --system pendulum --out runs/mine
    python inference/calibrate.py --model Pendulum --data swing.csv --set noise=ar1 --out runs/swing_sbc
    python inference/calibrate.py --quick --out runs/calibration_quick        a look, in minutes
    python inference/calibrate.py --scheduler tcp://host:8786 --out runs/calibration   on a dask cluster

Every simulation draws parameters and initial states from the prior and measurements from the model, fits the
first part of the record and forecasts the rest. True values must be spread evenly among posterior draws
(simulation-based calibration), and what was left out must lie in predictive intervals as often as these say.
Priors are those of the model built on reference data: a file's, or a simulated system's. Each simulation is
a trial, so that a run that was stopped goes on where it was.

Writes OUT/sbc.csv (statistic above 1: outside of the 99 % envelope), OUT/calibration.csv, OUT/fits.csv (what
went wrong in single fits) and figures. Fits with chains that disagree or diverge count like all others; those
that fail count as ranks at one end. Weights of networks without a prior are held at their initial values.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from tyro.conf import DisallowNone, arg

from vinppl._checks import require, require_choices
from vinppl.calibration.engines import (
    NUTS,
    Engine,
    EngineName,
    few_steps,
    fix_parameters,
    point_parameters,
)
from vinppl.calibration.predictive import POOLED, average_scores, horizon_scores
from vinppl.calibration.ranks import judge_ranks
from vinppl.calibration.sbc import calibration_run
from vinppl.calibration_plots import plot_pit_by_horizon, plot_reliability, plot_sbc
from vinppl.cli import DataOptions, load_data, rebuild, run_script
from vinppl.data import ColumnSpec, Trajectories
from vinppl.diagnostics import MAX_SHAPE
from vinppl.fit import MCMCOptions, SVIOptions
from vinppl.loading import build_model
from vinppl.plotting import save_figure
from vinppl.simulate import simulate
from vinppl.systems import system
from vinppl.trials import StudyOptions, Trial, TrialResult, run_study, table, write_table

STEP = 0.1
NUM_RANKED = 63  # posterior draws that a truth is ranked among
CHECKS = 3  # looks at the loss of SVI
DRIVE_FREQUENCY = 2.0  # of known signals, 1/s
HORIZONS = 4  # parts of the forecast, each of half the fitted time


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of a calibration run.

    Attributes:
        cases: models of the suite to check; all by default.
        engines: nuts, or SVI by the name of its guide, as it is and put right by importance sampling.
        model: a model instead of the suite's: a name, package.module:Name, or path/to/file.py:Name.
        set: its options, for example noise=ar1 damping=[0.1,1.0].
        system: simulated system that gives the model's priors their scales.
        data: measurements that do so instead: their times, channels and typical sizes are used.
        columns: which column of the file is what.
        num_simulations: simulations of each model of known form.
        num_neural: simulations of each neural model.
        num_trajectories: trajectories of a simulation (a file has its own).
        num_fitted: samples of each trajectory that are fitted; twice as many more are forecast. Of a file, a
            third of its samples is fitted.
        max_size: simulated measurements beyond so many typical sizes are drawn again.
        num_warmup: adapting draws of each of the two chains of NUTS.
        num_draws: kept draws of each chain.
        num_steps: steps of SVI, which starts at a mode with the curvature there.
        num_neural_steps: those of it for neural models, whose weights may lie far from the mode.
        finished: judge the simulations that OUT holds, and run no others.
    """

    out: Path = Path("runs/calibration")
    cases: tuple[str, ...] = ()
    engines: tuple[EngineName, ...] = ("nuts", "full_rank", "amortised")
    model: str = ""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    system: str = "pendulum"
    data: DisallowNone[Path | None] = None
    columns: DisallowNone[ColumnSpec] = field(default_factory=ColumnSpec)
    num_simulations: int = 200
    num_neural: int = 100
    num_trajectories: int = 3
    num_fitted: int = 20
    max_size: float = 100.0
    num_warmup: int = NUTS.num_warmup
    num_draws: int = NUTS.num_draws
    num_steps: int = 150
    num_neural_steps: int = 300
    finished: bool = False

    def __post_init__(self) -> None:
        require_choices("cases", self.cases, CASES)
        require(not (self.model and self.cases), "give either model or cases", "both")
        require(bool(self.model) or self.data is None, "data need a model", "no model")
        require(self.num_fitted >= 5, "num_fitted must be at least 5", self.num_fitted)
        require(
            2 * self.num_draws >= NUM_RANKED,
            f"num_draws must be at least {NUM_RANKED // 2 + 1}",
            self.num_draws,
        )
        for name in ("num_steps", "num_neural_steps"):
            require(getattr(self, name) >= CHECKS, f"{name} must be at least {CHECKS}", getattr(self, name))


@dataclass(frozen=True)
class Case:
    """A model of the suite with the system that sets its scales.

    Attributes:
        model: its name.
        system: a simulated system, or the name of a file.
        settings: options of the model.
        engines: engines that can check it.
        neural: whether the law is a network.
        num_trajectories: of a simulation; 0 takes the number of the configuration.
        driven: whether a known signal drives it, another phase of a cosine in every trajectory.
    """

    model: str
    system: str
    settings: tuple[str, ...] = ()
    engines: tuple[EngineName, ...] = ("nuts", "full_rank")
    neural: bool = False
    num_trajectories: int = 0
    driven: bool = False


FEATURES = "potential=random_features"
FRICTION = ("mass=[1.0,0.5]", "damping=[0.3,0.5]", "friction=[0.2,0.5]", "smoothing=0.2", "offset=0.2")
AMORTISED: tuple[EngineName, ...] = ("amortised",)
ALL: tuple[EngineName, ...] = ("nuts", "full_rank", "amortised")

CASES: dict[str, Case] = {
    "mass_spring": Case("MassSpring", "mass_spring"),
    "pendulum": Case("Pendulum", "pendulum"),
    "duffing": Case("Duffing", "duffing"),
    "duffing_driven": Case("Duffing", "duffing", driven=True),
    "driven_mass": Case("DrivenMass", "duffing", FRICTION, driven=True),
    "henon_heiles": Case("HenonHeiles", "henon_heiles"),
    "hierarchical": Case("Hierarchical", "pendulum"),
    "pendulum_ar1": Case("Pendulum", "pendulum", ("noise=ar1",)),
    "pendulum_student_t": Case("Pendulum", "pendulum", ("noise=student_t",)),
    "mass_spring_30": Case("MassSpring", "mass_spring", (), AMORTISED, num_trajectories=30),
    "pendulum_30": Case("Pendulum", "pendulum", (), AMORTISED, num_trajectories=30),
    "vin_vv": Case("NoisyStates", "mass_spring", (FEATURES,), ALL, neural=True),
    "vin_so2": Case("NoisyStates", "pendulum", (FEATURES, "integrator=so2"), ALL, neural=True),
    "vin_network": Case("NoisyStates", "pendulum", ("hidden_sizes=[16]",), neural=True),
    "free_dynamics": Case("FreeDynamics", "pendulum", ("hidden_sizes=[16]",), neural=True),
    "hamiltonian": Case("HamiltonianStates", "pendulum", ("hidden_sizes=[16]",), neural=True),
}
"""Models of the suite that measure states, by the name of the check; one encoder reads 30 trajectories."""


def main(config: Config) -> None:
    """Run the simulations that are missing, then judge them."""
    if config.quick:
        config = quick(config)
    began = time.monotonic()
    results = run_study(trial, trials(config), config, version=VERSION)
    rows, failed = table(results), failures(results)
    command = f"python inference/calibrate.py {' '.join(sys.argv[1:])}"
    seeds = range(1 + int(rows["seed"].max()))
    judged, coverage, fits = judge(rows, failed), coverages(rows), summary_of_fits(rows, failed)
    for name, frame in (
        ("sbc", judged.drop(columns="verdict")),
        ("calibration", coverage),
        ("fits", fits),
    ):
        write_table(frame, config.out / f"{name}.csv", command=command, seeds=seeds)
    for name, figure in figures(rows, coverage).items():
        save_figure(figure, config.out / f"{name}.png")
    print(verdicts(judged))
    print(fits.to_string(index=False, float_format="%.3g"))
    print(coverage.astype({"horizon": str}).to_string(index=False, float_format="%.3g"))
    print(f"\n{config.out / 'sbc.csv'} ({time.monotonic() - began:.0f} s in this call)")


def quick(config: Config) -> Config:
    """Return a configuration that tries the machinery."""
    return replace(
        config,
        cases=config.cases or (() if config.model else ("mass_spring",)),
        num_simulations=3,
        num_neural=1,
        num_trajectories=2,
        num_fitted=10,
        num_warmup=60,
        num_draws=60,
        num_steps=20,
        num_neural_steps=20,
    )


def trials(config: Config) -> list[Trial]:
    """Return all simulations, seed by seed, so that a run that is stopped has all models."""
    chosen = {name: CASES[name] for name in config.cases or CASES}
    if config.model:
        name = config.model.rpartition(":")[2]
        source = config.system if config.data is None else config.data.stem
        chosen = {name: Case(config.model, source, config.set, config.engines)}
    found = []
    common: dict[str, Any] = {"num_fitted": config.num_fitted, "max_size": config.max_size}
    if config.data is not None:
        common |= {"data": str(config.data.resolve()), "columns": dataclasses.asdict(config.columns)}
    for seed in range(max(config.num_simulations, config.num_neural)):
        for name, case in chosen.items():
            if seed >= (config.num_neural if case.neural else config.num_simulations):
                continue
            for engine in (engine for engine in config.engines if engine in case.engines):
                arguments = {"case": name, "model": case.model, "settings": list(case.settings)}
                options = engine_options(config, engine, neural=case.neural)
                arguments |= {"system_name": case.system, "engine": engine, "options": options, "seed": seed}
                arguments["num_trajectories"] = case.num_trajectories or config.num_trajectories
                if case.driven:
                    arguments["driven"] = True
                found.append(Trial(f"{name}-{engine}-{seed}", arguments | common))
    if config.finished:
        kept = {path.stem for kind in ("trials", "failures") for path in (config.out / kind).glob("*.json")}
        return [trial for trial in found if trial.name in kept]
    return found


def engine_options(config: Config, engine: EngineName, *, neural: bool) -> dict[str, Any]:
    """Return the options of an engine as plain values."""
    if engine == "nuts":
        return dataclasses.asdict(replace(NUTS, num_warmup=config.num_warmup, num_draws=config.num_draws))
    steps = config.num_neural_steps if neural else config.num_steps
    return dataclasses.asdict(replace(few_steps(engine), num_steps=steps, check_every=steps // CHECKS))


# One simulation


def trial(
    case: str,
    model: str,
    settings: list[str],
    system_name: str,
    engine: EngineName,
    options: dict[str, Any],
    seed: int,
    num_trajectories: int,
    num_fitted: int,
    max_size: float,
    data: str = "",
    columns: dict[str, Any] | None = None,
    driven: bool = False,
) -> list[dict[str, Any]]:
    """Simulate, fit, rank and forecast once; return ranks, forecast scores and the state of the fit."""
    torch.set_default_dtype(torch.float64)
    if data:
        grid, _ = load_data(data, ColumnSpec(**(columns or {})), DataOptions())
        num_fitted = grid.num_times // 3
    else:
        sizes: dict[str, Any] = {"num_trajectories": num_trajectories, "num_times": 3 * num_fitted}
        grid, _ = simulate(system(system_name), step_size=STEP, noise_scale=0.1, seed=1, **sizes)
        if driven:
            phase = torch.arange(num_trajectories).unsqueeze(-1)
            grid = replace(grid, drive=(DRIVE_FREQUENCY * grid.times + phase).cos().unsqueeze(-1))
    built = build_model(model, grid, settings)
    fix_parameters(built)
    points = [] if engine == "nuts" else point_parameters(built, grid)
    require(not points, "SVI needs a prior of every parameter to be checked", f"none of {points[:3]}")
    began = time.process_time()
    simulated, ranked = calibration_run(
        built,
        grid,
        configured(engine, options),
        seed,
        num_draws=NUM_RANKED,
        num_fitted=num_fitted,
        max_size=max_size,
    )
    seconds = time.process_time() - began
    rows: list[dict[str, Any]] = []
    for name, fit in ranked.items():
        own = {"case": case, "engine": name}
        state = {"effective_size": fit.effective_size, "shape": fit.shape, "problem": fit.problem}
        state |= {"seconds": seconds, "rejected": simulated.num_rejected}
        rows.append({**own, "kind": "fit", **state})
        rows += [
            {**own, "kind": "rank", "parameter": key, "rank": rank, "z_score": fit.z_scores[key]}
            for key, rank in fit.ranks.items()
        ]
        assert fit.predicted is not None
        rows += [
            {**own, "kind": "forecast", **row} for row in scored(fit.predicted, simulated.data, num_fitted)
        ]
    return rows


def configured(engine: EngineName, options: dict[str, Any]) -> Engine:
    """Return the engine with these options."""
    if engine == "nuts":
        return Engine(engine, mcmc=rebuild(MCMCOptions, options))
    return Engine(engine, svi=rebuild(SVIOptions, options))


def scored(predicted: np.ndarray, data: Trajectories, num_fitted: int) -> list[dict[str, Any]]:
    """Return the scores of forecasts over four parts of the horizon."""
    horizon = (data.times - data.times[:, num_fitted - 1 : num_fitted])[:, num_fitted:].numpy()
    truth = np.where(data.mask.numpy(), data.values.numpy(), np.nan)[:, num_fitted:]
    edges = np.linspace(0, horizon.max(), HORIZONS + 1).round(9)
    angles = np.array([channel.angle for channel in data.channels])
    return horizon_scores(predicted, truth, horizon, edges.tolist(), periodic=angles)


# Verdicts


def failures(results: Sequence[TrialResult]) -> dict[tuple[str, str], int]:
    """Return how many simulations of each model and posterior have no ranks because the fit failed."""
    names: dict[tuple[str, str], list[str]] = {}
    failed: dict[tuple[str, str], int] = {}
    for result in results:
        key = result.trial.arguments["case"], result.trial.arguments["engine"]
        failed[key] = failed.get(key, 0) + result.failed
        if not names.get(key):
            names[key] = list(dict.fromkeys(row["engine"] for row in result.rows))
    return {(case, name): n for (case, e), n in failed.items() for name in names[case, e] or [e]}


def judge(rows: pd.DataFrame, failed: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Return the verdict on every parameter of every model and engine."""
    parts = []
    for (case, engine), ranks in ranks_of(rows).items():
        judged = judge_ranks(ranks, NUM_RANKED, num_failed=failed[case, engine])
        judged.insert(0, "model", case)
        judged.insert(1, "engine", engine)
        parts.append(judged)
    return pd.concat(parts, ignore_index=True)


def ranks_of(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Return the ranks of every parameter, by model and engine."""
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    ranks = rows[rows["kind"] == "rank"]
    for (case, engine, name), part in ranks.groupby(["case", "engine", "parameter"], sort=False):
        found.setdefault((case, engine), {})[name] = part["rank"].to_numpy(dtype=int)
    return found


def coverages(rows: pd.DataFrame) -> pd.DataFrame:
    """Return coverage and scores of forecasts, averaged over simulations."""
    frame = rows[rows["kind"] == "forecast"].rename(columns={"model": "spec", "case": "model"})
    frame = frame.rename(columns={"system_name": "system"})
    return average_scores(frame, ["model", "system", "engine"])


def summary_of_fits(rows: pd.DataFrame, failed: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Return what the fits were like: failed ones, draws that count, weights, refused data, CPU seconds."""
    fits = rows[rows["kind"] == "fit"].drop(columns="model").rename(columns={"case": "model"})
    fits = fits.assign(
        few_effective=fits["effective_size"] < NUM_RANKED,
        not_converged=fits["problem"].fillna("") != "",
        untrusted_weights=(fits["shape"] > MAX_SHAPE).where(fits["shape"].notna()).astype(float),
    )
    shares = ["few_effective", "not_converged", "untrusted_weights"]
    grouped = fits.groupby(["model", "engine"], sort=False)
    found = grouped[[*shares, "rejected", "seconds"]].mean()
    found.insert(0, "effective_size", grouped["effective_size"].median())
    found.insert(0, "fits", grouped.size())
    counts = pd.Series(failed, name="failed").rename_axis(["model", "engine"])
    found = found.reindex(counts.index)  # those of which every fit failed, too
    found.insert(1, "failed", counts)
    return found.fillna({"fits": 0}).astype({"fits": int}).reset_index()


def verdicts(judged: pd.DataFrame) -> str:
    """Say in words which parameters of which models are off."""
    lines = []
    for (model, engine), part in judged.groupby(["model", "engine"], sort=False):
        off = part[~part["passed"]]
        words = ", ".join(f"{row.parameter} ({row.verdict})" for row in off.itertuples())
        head = f"{model} by {engine}: {'passes' if part['passed_jointly'].all() else 'FAILS'}"
        inside = f"{len(part) - len(off)} of {len(part)} quantities inside their 99 % envelopes"
        count = f"{part['simulations'].max()} simulations, {part['failed'].max()} of which failed"
        lines.append(f"{head}: {inside} ({count})" + (f"; outside: {words}" if words else ""))
    return "\n".join([*lines, "(A model passes if all of its quantities stay together as 99 % should.)"])


def figures(rows: pd.DataFrame, coverage: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of every model and engine."""
    drawn: dict[str, Any] = {}
    forecasts = rows[rows["kind"] == "forecast"]
    for (case, engine), ranks in ranks_of(rows).items():
        drawn[f"sbc_{case}_{engine}"] = plot_sbc(ranks, NUM_RANKED)
        chosen = forecasts[(forecasts["case"] == case) & (forecasts["engine"] == engine)]
        pits = {h: np.concatenate(list(group["pit"])) for h, group in chosen.groupby("horizon")}
        drawn[f"pit_{case}_{engine}"] = plot_pit_by_horizon(pits)
    drawn["reliability"] = plot_reliability(coverage[coverage["horizon"] != POOLED])
    return drawn


VERSION = "2"
"""To be raised when a trial computes something else, so that results of before are not mixed in."""


if __name__ == "__main__":
    run_script(main, Config, __doc__)
