"""Forecast from a fitted run: posterior predictive beyond the data, with its growing uncertainty.

    python inference/forecast.py runs/pendulum --horizon 20
    python inference/forecast.py runs/real --horizon 0          # as far as the held-out samples go

Reads RUN/config.json and RUN/result.nc; writes RUN/forecast.nc and figures (fan chart, energy, phase
portrait, predictive standard deviation against horizon), and RUN/scores.csv where samples were held out. For
models of states it also says which sites make the uncertainty, by which law it grows and how long draws
agree: in words, as a figure, and as the group `uncertainty_growth` of the file. Of films it draws frames and
the latent phase portrait, and writes RUN/forecast.gif: filmed, mean, deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import DisallowNone, Positional, arg

from vinppl.cli import load_run, run_script
from vinppl.export import add_group, get_group, write_result
from vinppl.film_plots import animate_forecast, plot_frames, plot_latent_portrait
from vinppl.forecast import extend, forecast
from vinppl.frame_scores import film_scores
from vinppl.growth import GROUP, MIN_DRAWS, growth_verdict, uncertainty_growth
from vinppl.growth_plots import plot_uncertainty_growth
from vinppl.plotting import plot_energy, plot_fan_chart, plot_phase_portrait, plot_uncertainty, save_figure
from vinppl.scores import forecast_scores


@dataclass(frozen=True)
class Config:
    """Options of a forecast.

    Attributes:
        run: folder that svi.py or mcmc.py wrote.
        horizon: how far beyond the last fitted sample, in units of time; 0 goes as far as held-out samples.
        step_size: spacing of the forecast; by default that of the data.
        num_draws: posterior draws to run forward; by default 500, or 100 of films.
        trajectory: which trajectory the figures show.
        seed: of the predictive noise.
        growth: whether to compute the uncertainty growth of models of states, which takes at least ten
            draws and runs the model a few times more.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    horizon: float = 0.0
    step_size: DisallowNone[float | None] = None
    num_draws: DisallowNone[int | None] = None
    trajectory: int = 0
    seed: int = 0
    growth: bool = True


def main(config: Config) -> None:
    """Run the model forward and write what it says."""
    run = load_run(config.run)
    film = run.train.image_shape is not None
    draws = run.draws((100 if film else 500) if config.num_draws is None else config.num_draws)
    num_draws = len(next(iter(draws.values())))
    future = extend(run.train, horizon=config.horizon, step_size=config.step_size, held_out=run.held_out)
    result = forecast(
        run.model,
        draws,
        run.train,
        future,
        trained=run.fitted,
        seed=config.seed,
        parameters=run.parameters,
        attrs={"model": run.options["model"], "run": run.folder.path.name},
    )
    growth = None
    if config.growth and not film and num_draws >= MIN_DRAWS:
        growth = uncertainty_growth(
            run.model, draws, run.train, future, seed=config.seed, parameters=run.parameters
        )
        result = add_group(result, GROUP, growth)
    write_result(result, run.folder.forecast)
    index, predicted = config.trajectory, get_group(result, "predictions")
    if film:
        figures = {"frames": plot_frames(result, trajectory=index)}
        animate_forecast(result, run.folder.path / "forecast.gif", trajectory=index)
    else:
        figures = {
            "fan_chart": plot_fan_chart(result, trajectory=index),
            "uncertainty": plot_uncertainty(result),
        }
    if "energy" in predicted:
        figures["energy"] = plot_energy(result, trajectory=index)
    if "states" in predicted:
        portrait = plot_latent_portrait if film else plot_phase_portrait
        figures["phase_portrait"] = portrait(result, trajectory=index)
    if growth is not None:
        figures["uncertainty_growth"] = plot_uncertainty_growth(growth)
    for name, figure in figures.items():
        save_figure(figure, run.folder.path / f"{name}.png")
    if run.held_out is not None:
        scores = film_scores(result) if film else forecast_scores(result)
        scores.to_csv(run.folder.path / "scores.csv", index=False)
        print(scores.to_string(index=False))
    if growth is not None:
        print(growth_verdict(growth))
    run.folder.log("forecast", horizon=config.horizon, draws=num_draws)
    pictures = [f"{name}.png" for name in figures] + ["forecast.gif"] * film
    print(f"forecast: {run.folder.forecast}; figures: {', '.join(pictures)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
