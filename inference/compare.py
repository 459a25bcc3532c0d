"""Which of several runs do the data support? Expected log predictive densities and held-out scores.

    python inference/compare.py runs/pendulum runs/spring runs/vin
    python inference/compare.py runs/pendulum runs/vin --unit trajectory
    python inference/compare.py runs/pendulum runs/vin --lfo --horizon 5         fits again where it must

Ranks runs of svi.py and mcmc.py on the same data by PSIS-LOO: how well every measured value (or sample, or
whole trajectory) is predicted by all others. --lfo predicts the next samples from those before them instead,
which is what a forecast does, and fits a model again where importance weights fail. Where samples were held
out (--train-fraction), forecasts of them are scored too. Draws of a variational guide are weighted to be
those of the posterior, and the weights say whether that worked.

Writes OUT/compare.csv and OUT/compare.png, and says in words what makes a number doubtful.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from tyro.conf import Positional, arg

from vinppl._checks import require
from vinppl.calibration.engines import point_parameters
from vinppl.calibration.lfo import leave_future_out
from vinppl.calibration.loo import Elpd, UnitName, leave_one_out, leave_one_out_of_result
from vinppl.calibration.ranking import rank_models
from vinppl.calibration.runs import engine_of_run, posterior_of_run
from vinppl.calibration_plots import plot_ranking
from vinppl.cli import LoadedRun, load_run, run_script
from vinppl.diagnostics import MAX_SHAPE
from vinppl.errors import NumericalWarning
from vinppl.forecast import extend, forecast
from vinppl.plotting import save_figure
from vinppl.scores import forecast_scores
from vinppl.trials import write_table


@dataclass(frozen=True)
class Config:
    """Options of a comparison.

    Attributes:
        runs: folders that svi.py or mcmc.py wrote.
        unit: what is left out at a time: value, sample or trajectory (its initial state integrated out).
        lfo: predict the next samples from those before them, instead of every part from all others.
        horizon: with --lfo, samples ahead that are predicted together.
        first: with --lfo, samples of the first fit; by default half of the record.
        num_draws: draws of a guide, and draws that forecasts of held-out samples are made from.
        out: folder for the table and the figure.
        seed: of draws and fits.
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN ...")]
    unit: UnitName = "value"
    lfo: bool = False
    horizon: int = 1
    first: int = 0
    num_draws: int = 2000
    out: Path = Path("runs/compare")
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.runs) >= 1, "runs must name at least one folder", "none")
        require(self.num_draws >= 100, "num_draws must be at least 100", self.num_draws)


def main(config: Config) -> None:
    """Score every run, rank them, and write the table."""
    runs = {name: load_run(path) for name, path in zip(names(config.runs), config.runs, strict=True)}
    check_same_data(runs)
    found: dict[str, Elpd] = {}
    notes: dict[str, str] = {}
    for name, run in runs.items():
        print(f"{name}: {run.options['model']} by {run.options['kind']}", flush=True)
        found[name], notes[name] = (by_lfo if config.lfo else by_loo)(run, config)
    table = rank_models(found, notes)
    held_out = {name: scores_of_held_out(run, config) for name, run in runs.items()}
    table = table.merge(pd.DataFrame.from_dict(held_out, orient="index"), left_on="model", right_index=True)
    table = table[[*[c for c in table if c != "warnings"], "warnings"]]
    command = f"python inference/compare.py {' '.join(sys.argv[1:])}"
    write_table(table, config.out / "compare.csv", command=command, seeds=[config.seed])
    save_figure(plot_ranking(table), config.out / "compare.png")
    print(table.drop(columns="warnings").to_string(index=False, float_format="%.4g"))
    for row in table.itertuples():
        if row.warnings:
            print(f"{row.model}: {row.warnings}")
    print(f"{config.out / 'compare.csv'}")


def names(paths: tuple[Path, ...]) -> list[str]:
    """Return the names of the folders, with as much of their path as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    require(len(set(parts)) == len(parts), "runs must name different folders", "one twice")
    found = []
    for own in parts:
        others = [other for other in parts if other != own]
        depth = 1
        while any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        found.append("/".join(own[-depth:]))
    return found


def check_same_data(runs: dict[str, LoadedRun]) -> None:
    """Raise an error unless all runs were fitted to the same whole trajectories."""
    prints = {name: run.train.fingerprint() for name, run in runs.items()}
    first = next(iter(prints))
    for name, run in runs.items():
        require(
            not run.options.get("svi", {}).get("window"),
            f"{name} must be fitted to whole trajectories",
            "windows",
        )
        require(run.train.image_shape is None, f"{name} must be of measured states", "films")
        require(prints[name] == prints[first], f"{name} must be fitted to the data of {first}", "other data")


def by_loo(run: LoadedRun, config: Config) -> tuple[Elpd, str]:
    """Return PSIS-LOO of a run, and what else makes it doubtful."""
    if run.options["kind"] == "mcmc" and config.unit != "trajectory":
        return leave_one_out_of_result(run.posterior, unit=config.unit), ""
    posterior, notes = posterior_of_run(run, num_draws=config.num_draws, seed=config.seed)
    points = point_parameters(run.model, run.train)
    if points:
        some = f"{', '.join(points[:2])}{', ..' if len(points) > 2 else ''}"
        notes += (f"point estimates ({some}) saw what is left out: the number is too high",)
    found = leave_one_out(run.model, run.train, posterior, unit=config.unit, seed=config.seed)
    return found, "; ".join(notes)


def by_lfo(run: LoadedRun, config: Config) -> tuple[Elpd, str]:
    """Return leave-future-out cross-validation of a run, with its own options for every fit."""
    engine = engine_of_run(run, num_draws=config.num_draws)
    # Weights cannot tell what point estimates would have been, so that such a model is fitted at every step.
    threshold = -np.inf if point_parameters(run.model, run.train) else MAX_SHAPE
    first = config.first or max(2, run.train.num_times // 2)
    found = leave_future_out(
        run.model,
        run.train,
        engine.posterior,
        first=first,
        horizon=config.horizon,
        threshold=threshold,
        seed=config.seed,
        on_refit=lambda i: print(f"  fit to the first {i} of {run.train.num_times} samples", flush=True),
    )
    return found, f"Monte Carlo error {found.error:.2g}" if found.error > 0.5 else ""


def scores_of_held_out(run: LoadedRun, config: Config) -> dict[str, Any]:
    """Return scores of forecasts of the samples that the run had held out, NaN where there are none."""
    if run.held_out is None:
        return dict.fromkeys(("held_out_crps", "held_out_coverage_90", "held_out_points"), np.nan)
    future = extend(run.train, horizon=0.0, held_out=run.held_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        result = forecast(
            run.model, run.draws(500), run.train, future, seed=config.seed, parameters=run.parameters
        )
    whole = forecast_scores(result).iloc[-1]
    return {
        "held_out_crps": float(whole["crps"]),
        "held_out_coverage_90": float(whole["coverage_90"]),
        "held_out_points": int(whole["num_points"]),
    }


if __name__ == "__main__":
    run_script(main, Config, __doc__)
