"""Forecast from a fitted run: posterior predictive beyond the data, with its growing uncertainty.

    python inference/forecast.py runs/pendulum --horizon 20
    python inference/forecast.py runs/real --horizon 0          # as far as the held-out samples go

Reads RUN/config.json and RUN/result.nc; writes RUN/forecast.nc and four figures (fan chart, energy, phase
portrait, predictive standard deviation against horizon), and RUN/scores.csv where samples were held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import DisallowNone, Positional, arg

from vinppl.cli import load_run, run_script
from vinppl.export import get_group, write_result
from vinppl.forecast import extend, forecast
from vinppl.plotting import plot_energy, plot_fan_chart, plot_phase_portrait, plot_uncertainty, save_figure
from vinppl.scores import forecast_scores


@dataclass(frozen=True)
class Config:
    """Options of a forecast.

    Attributes:
        run: folder that svi.py or mcmc.py wrote.
        horizon: how far beyond the last fitted sample, in units of time; 0 goes as far as held-out samples.
        step_size: spacing of the forecast; by default that of the data.
        num_draws: posterior draws to run forward.
        trajectory: which trajectory the figures show.
        seed: of the predictive noise.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    horizon: float = 0.0
    step_size: DisallowNone[float | None] = None
    num_draws: int = 500
    trajectory: int = 0
    seed: int = 0


def main(config: Config) -> None:
    """Run the model forward and write what it says."""
    run = load_run(config.run)
    draws = run.draws(config.num_draws)
    future = extend(run.train, horizon=config.horizon, step_size=config.step_size, held_out=run.held_out)
    result = forecast(
        run.model,
        draws,
        run.train,
        future,
        seed=config.seed,
        parameters=run.parameters,
        attrs={"model": run.options["model"], "run": run.folder.path.name},
    )
    write_result(result, run.folder.forecast)
    index = config.trajectory
    figures = {
        "fan_chart": plot_fan_chart(result, trajectory=index),
        "uncertainty": plot_uncertainty(result),
    }
    if "states" in get_group(result, "predictions"):
        figures["energy"] = plot_energy(result, trajectory=index)
        figures["phase_portrait"] = plot_phase_portrait(result, trajectory=index)
    for name, figure in figures.items():
        save_figure(figure, run.folder.path / f"{name}.png")
    if run.held_out is not None:
        scores = forecast_scores(result)
        scores.to_csv(run.folder.path / "scores.csv", index=False)
        print(scores.to_string(index=False))
    run.folder.log("forecast", horizon=config.horizon, draws=next(iter(draws.values())).shape[0])
    print(f"forecast: {run.folder.forecast}; figures: {', '.join(f'{name}.png' for name in figures)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
