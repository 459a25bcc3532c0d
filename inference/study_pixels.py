"""Mechanics from video: Table 1 of the VIN paper, and what it does not ask: films that were not trained on.

    python inference/study_pixels.py --out runs/pixels                       the whole study
    python inference/study_pixels.py --quick --out runs/pixels_quick         a look, in minutes
    python inference/study_pixels.py --scheduler tcp://host:8786 --out runs/pixels   on a dask cluster

The experiment of section 4.2: films of a pendulum and of a mass on a spring, 28 x 28 black and white pixels
at 10 Hz, 6 s to train on. A forecast knows the first 10 frames of a film. Protocols:

- `paper`: trained on one film, forecast of that film, as in Table 1;
- `unseen1`: trained on one film, forecast of 20 others;
- `unseen10`: trained on ten films, forecast of 20 others.

Forecasts: `mean`, the path from the posterior mean of the initial state, as in the paper; `posterior`, the
whole posterior with the chance that the model has ceased to hold. `constant` is the mean frame of the
training, which no forecast should be worse than.

Writes OUT/table1.csv, OUT/examples.csv, the paper's Figures 5 to 8 drawn from that, and a file for every
finished trial, from which a run that was stopped goes on.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from vinppl import scores
from vinppl._checks import require_choices
from vinppl.cli import run_script
from vinppl.data import Trajectories
from vinppl.film_forecast import FilmForecast, forecast_films
from vinppl.fit import SVIOptions, fit_svi
from vinppl.latents import circular_correlation, log_volume_change, straightening, symetric
from vinppl.models import PixelFree, PixelFreeConfig, PixelVAE, PixelVAEConfig, PixelVIN, PixelVINConfig
from vinppl.plotting import save_figure
from vinppl.render import simulate_clips
from vinppl.state import PhaseState, Trajectory
from vinppl.study_plots import plot_embeddings, plot_films, plot_phase_portraits
from vinppl.trials import StudyOptions, Trial, run_study, table, write_table

STEP = 0.1
TRAINED, CONTEXT, LONGEST = 60, 10, 200  # frames
HORIZONS = (1, 2, 3, 4, 5, 10, 15, 20)  # seconds
DEAR_HORIZONS = (5, 20)  # seconds; those at which the SyMetric is computed
SHOWN = (0.1, 5.0, 10.0, 15.0, 20.0)  # seconds of the frames in the paper's Figures 7 and 8
NUM_TEST = 20


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of the study.

    Attributes:
        models: models to run; all by default.
        num_seeds: repetitions, each with films of its own.
    """

    out: Path = Path("runs/pixels")
    models: tuple[str, ...] = ()
    num_seeds: int = 10


def main(config: Config) -> None:
    """Run what is missing, then write the table and draw the figures."""
    if config.quick:
        config = replace(config, num_seeds=1)
    require_choices("models", config.models, [*MODELS, *EMBEDDINGS])
    results = run_study(trial, trials(config), config, version=VERSION)
    rows = table(results)
    examples = rows[rows["protocol"] == EXAMPLE].reindex(columns=EXAMPLE_COLUMNS)
    frame = rows[rows["protocol"] != EXAMPLE].reindex(columns=COLUMNS)
    command = f"python inference/study_pixels.py {' '.join(sys.argv[1:])}"
    path = config.out / "table1.csv"
    write_table(frame, path, command=command, seeds=range(config.num_seeds))
    write_table(examples, config.out / "examples.csv", command=command, seeds=[0])
    for name, figure in figures(examples).items():
        save_figure(figure, config.out / f"{name}.png")
    print(summary(frame).to_string(float_format="%.3g"))
    print(f"\n{path}")


def trials(config: Config) -> list[Trial]:
    """Return all trials, seed by seed, so that a stopped study is still paired; what the paper asks first."""
    names = config.models or [*MODELS, *EMBEDDINGS]
    found = []
    for num_films in (1,) if config.quick else (1, 10):
        for seed in range(config.num_seeds):
            for name, kind in MODELS.items():
                if name in names and num_films in kind.num_films:
                    for system_name in kind.systems:
                        arguments = {"model": name, "system_name": system_name, "num_films": num_films}
                        arguments |= {"seed": seed, "quick": config.quick}
                        found.append(Trial(f"{system_name}-{num_films}-{name}-{seed}", arguments))
    for name in ("vae",) if config.quick else EMBEDDINGS:
        if name in names:
            arguments = {"model": name, "system_name": "pendulum", "num_films": 1, "seed": 0}
            found.append(Trial(f"embedding-{name}", arguments | {"quick": config.quick}))
    return found


# One trial


def trial(model: str, system_name: str, num_films: int, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Fit one model to some films, forecast them and others, and return the rows of the table."""
    torch.set_default_dtype(torch.float32)
    if model in EMBEDDINGS:
        return list(embedding(model, quick))
    frames = CONTEXT + 20 if quick else LONGEST + 1
    long, path = simulate_clips(system_name, num_clips=num_films, num_times=frames, seed=seed)
    test, test_path = simulate_clips(
        system_name,
        num_clips=3 if quick else NUM_TEST,
        num_times=frames if num_films > 1 else min(frames, 51),  # one film tells too little for more than 5 s
        seed=10_000 + seed,
    )
    data = long.first(min(TRAINED, frames))
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rival that does not converge is scored as it is
        fitted = MODELS[model].fit(data, seed, quick)
    common = {
        "model": model,
        "system": system_name,
        "seed": seed,
        "train_seconds": time.process_time() - began,
    }
    common["steps"] = fitted.num_steps

    def run(films: Trajectories, continues: bool = False) -> FilmForecast:
        return forecast_films(
            fitted.model,
            fitted.guide,
            films,
            trained=data,
            continues=continues,
            num_context=CONTEXT,
            num_draws=20 if quick else 64,
            num_proposals=100 if quick else 400,
            seed=seed,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen, unseen = run(long if num_films == 1 else data, continues=True), run(test)
    trained = slice(0, data.num_times)
    straighten = straightening(seen.point[:, trained, 0], path.q[:, trained, 0], circle=fitted.is_angle)
    protocols = [("unseen10", test, unseen, test_path)]
    if num_films == 1:
        protocols = [("paper", long, seen, path), ("unseen1", test, unseen, test_path)]
    rows = []
    for protocol, films, found, truth in protocols:
        known = {**common, "protocol": protocol}
        rows += [known | row for row in score(fitted, found, films, truth, straighten)]
    if seed == 0 and num_films == 1:
        rows += [{**common, "protocol": EXAMPLE, **row} for row in example(long, path, seen)]
    return rows


def score(
    fitted: Fitted,
    found: FilmForecast,
    films: Trajectories,
    truth: Trajectory,
    straighten: Callable[[Any], np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of forecast and horizon; scores are means over frames up to the horizon.

    Rows of `mean` have the scores of the latent path, which is theirs; those of `posterior` its coverage.
    """
    is_angle = fitted.is_angle
    drawn = np.nan_to_num(straighten(found.states[..., 0])[..., None], nan=1e3)
    volume, energy = geometry(fitted, found, films)
    errors = frame_errors(found, films)
    for horizon in (h for h in HORIZONS if round(h / STEP) < films.num_times):
        last = round(horizon / STEP)
        part = slice(0, last + 1)
        point, true = found.point[:, part], torch.cat([truth.q, truth.v], dim=-1)[:, part]
        covered = scores.coverage(drawn[:, :, part], truth.q[:, part].numpy(), [0.9], periodic=[is_angle])
        extra: dict[str, dict[str, float | None]] = {
            "mean": {
                "symetric": quality(point, true) if horizon in DEAR_HORIZONS else None,
                "circ_corr": correlation(point, true) if is_angle else None,
                "log_volume": volume[last],
                "energy_drift": energy[last],
            },
            "posterior": {"coverage_90": covered[0.9]},
            "constant": {},
        }
        for kind, each in errors.items():
            row = {name: float(values[:, part].mean()) for name, values in each.items()}
            yield {"horizon_s": horizon, "forecast": kind, **row, **extra[kind]}


class Fitted(NamedTuple):
    """A trained model and its guide; steps of Adam that both took; whether its coordinate is an angle."""

    model: Any
    guide: Any
    num_steps: int
    is_angle: bool


def train(model: Any, data: Trajectories, seed: int, quick: bool, *, taught: bool = True) -> Fitted:
    """Fit a model by its own start and then the evidence lower bound of whole films.

    One that is not taught begins with random weights instead, on windows that grow to the whole film, with
    larger steps and more of them.
    """
    pyro.clear_param_store()
    steps = SVIOptions(
        guide="amortised",
        num_steps=5 if quick else NUM_STEPS,
        num_particles=4 if data.num_trajectories == 1 else 1,
        learning_rate=1e-5,
        final_learning_rate=1e-6,
        check_every=5 if quick else 25,
        seed=seed,
    )
    num_steps = model.config.num_taught + (steps.num_steps or 0)
    if not taught:
        num_steps = 10 if quick else NUM_UNTAUGHT
        steps = replace(
            steps,
            start="prior",
            num_steps=num_steps,
            num_particles=1,
            learning_rate=1e-3,
            final_learning_rate=None,
            window=CONTEXT,
            final_window=data.num_times,
            patience=0,
        )
    result = fit_svi(model, data, steps)
    return Fitted(result.model, result.guide, num_steps, model.manifold.any_periodic)


def options(data: Trajectories, seed: int, quick: bool) -> dict[str, Any]:
    """Return what all models are told."""
    if quick:
        return {"network_seed": seed, "hidden_sizes": (32,), "decoder_sizes": (32,), "num_taught": 60}
    return {"network_seed": seed, "num_taught": TAUGHT[data.num_trajectories]}


def vin(integrator: str) -> Callable[[Trajectories, int, bool], Fitted]:
    """Return the training of a VIN."""

    def fit(data: Trajectories, seed: int, quick: bool) -> Fitted:
        config = PixelVINConfig(integrator=integrator, **options(data, seed, quick))
        return train(PixelVIN(data, config), data, seed, quick)

    return fit


def free(dynamics: Any, *, taught: bool = True) -> Callable[[Trajectories, int, bool], Fitted]:
    """Return the training of a network without mechanics, from our start or from random weights."""

    def fit(data: Trajectories, seed: int, quick: bool) -> Fitted:
        config = PixelFreeConfig(dynamics=dynamics, **options(data, seed, quick))
        return train(PixelFree(data, config), data, seed, quick, taught=taught)

    return fit


# Scores


def frame_errors(found: FilmForecast, films: Trajectories) -> dict[str, dict[str, np.ndarray]]:
    """Return scores of every frame, `(clip, time)`, for each kind of forecast.

    The log density is in hundreds of nats, as in the paper's Table 1.
    """
    kinds: dict[str, dict[str, list[np.ndarray]]] = {}
    for n, frames in enumerate(films.values):
        for kind, levels, density in (
            ("mean", found.point_levels(n), found.point_log_density(n, frames)),
            ("posterior", found.levels(n), found.log_density(n, frames)),
            ("constant", found.background.expand_as(frames), found.background_log_density(frames)),
        ):
            squares = (levels - frames).square()
            each = kinds.setdefault(kind, {"rmse": [], "loglik": [], "brier": []})
            each["rmse"].append(squares.sum(-1).sqrt().numpy())
            each["loglik"].append(density.numpy() / 100)
            each["brier"].append(squares.mean(-1).numpy())
    return {kind: {name: np.stack(values) for name, values in each.items()} for kind, each in kinds.items()}


def correlation(latent: Tensor, truth: Tensor) -> float | None:
    """Return the circular correlation of latent and true angles, of either sign; nothing for lost paths."""
    if not bool(latent.isfinite().all()):
        return None
    return abs(circular_correlation(latent[..., 0], truth[..., 0], uniform=True))


def geometry(fitted: Fitted, found: FilmForecast, films: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Return what the flow does to the path of the first film: `(time,)` each, NaN where it is not known.

    The logarithm of the factor by which it stretches the volume around the path; the deviation of the
    learned energy from the first, as a share of the mean kinetic energy so far.
    """
    model, path = fitted.model, found.point[:1]
    moment = films.select([0]).first(2)

    def step(states: Tensor) -> Tensor:
        q, v = states.unsqueeze(1).chunk(2, dim=-1)
        moved = model.run(PhaseState(q, v), moment)
        return torch.cat([moved.q, moved.v], dim=-1)[:, 0, 1]

    volume, energy = np.full((2, films.num_times), np.nan)
    if bool(path.isfinite().all()):
        volume = log_volume_change(step, path)[0].numpy()
        if hasattr(model, "vin"):
            q, v = path[0].chunk(2, dim=-1)
            with torch.no_grad():
                values = model.vin.energy(PhaseState(q, v))
            kinetic = (0.5 * v.square().sum(-1)).cumsum(0) / torch.arange(1, len(v) + 1)
            energy = ((values - values[0]) / kinetic).numpy()
    return volume, energy


def quality(latent: Tensor, truth: Tensor) -> float | None:
    """Return the SyMetric's deviation of latent states; nothing if no polynomial explains them."""
    swings = (truth[..., 0].amax(1) - truth[..., 0].amin(1)) < 2 * np.pi  # polynomials know no turns
    if not bool(swings.any()) or not bool(latent[swings].isfinite().all()):
        return None
    found = symetric(latent[swings].numpy(), truth[swings].numpy())
    return found.deviation if found.r2 >= 0.9 else None


def example(films: Trajectories, path: Any, found: FilmForecast) -> Iterator[dict[str, Any]]:
    """Yield the latent path of the first film and its frames at the shown horizons, for the figures."""
    for t in range(films.num_times):
        q, v = found.point[0, t].tolist()
        yield {"kind": "path", "horizon_s": t * STEP, "q": q, "v": v, "truth": float(path.q[0, t, 0])}
    levels = found.levels(0)
    spread = (
        levels * (1 - levels)
    ).sqrt()  # standard deviation of a pixel that is white with that probability
    for horizon in (h for h in SHOWN if round(h / STEP) < films.num_times):
        t = round(horizon / STEP)
        for kind, frame in (("film", films.values[0, t]), ("forecast", levels[t]), ("deviation", spread[t])):
            shades = (255 * frame).round().to(torch.uint8).numpy().tobytes().hex()
            yield {"kind": kind, "horizon_s": horizon, "frame": shades}


# Embeddings: the paper's Figure 5


def embedding(model: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the latent state of each frame of a film of which the first 4 s were trained on."""
    film, path = simulate_clips("pendulum", num_clips=1, num_times=EMBEDDED + CONTEXT - 1, seed=0)
    data = film.first(EMBEDDED_TRAINED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = EMBEDDINGS[model](data, film, quick)
    known = {"protocol": EXAMPLE, "model": model, "system": "pendulum", "kind": "embedding"}
    for t in range(EMBEDDED):
        values = dict(zip(("q", "v"), states[t].tolist(), strict=False))
        truth = {"truth": float(path.q[0, t, 0]), "truth_v": float(path.v[0, t, 0])}
        yield {**known, "horizon_s": t * STEP, **values, **truth}


def read_by_clips(fit: Callable[[Trajectories, int, bool], Fitted]) -> Callable[..., Tensor]:
    """Return a training whose guide then reads the state of every frame from the ten that begin with it."""

    def run(data: Trajectories, film: Trajectories, quick: bool) -> Tensor:
        fitted = fit(data, 0, quick)
        with torch.no_grad():
            states: Tensor = fitted.guide.encoder(film.windows(CONTEXT)).loc
        return states

    return run


def read_by_frames(**options: Any) -> Callable[..., Tensor]:
    """Return the training of an autoencoder without dynamics, which reads every frame by itself."""

    def run(data: Trajectories, film: Trajectories, quick: bool) -> Tensor:
        pyro.clear_param_store()
        model = PixelVAE(data, PixelVAEConfig(**options))
        steps = SVIOptions(num_steps=5 if quick else 3000, learning_rate=1e-3, num_particles=4, patience=0)
        fitted = fit_svi(model, data, steps)
        with torch.no_grad():
            positions: Tensor = fitted.guide.encoder(film).loc[0]
        return positions

    return run


# Tables and figures


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds and the worst seed, after 5 s and at the longest horizon."""
    longest = frame["horizon_s"].max()
    chosen = frame[frame["horizon_s"].isin((min(5, longest), longest))]
    keys = ["protocol", "system", "model", "forecast", "horizon_s"]
    columns = ["rmse", "loglik", "brier"]
    found = chosen.groupby(keys)[columns].mean()
    found["worst_rmse"] = chosen.groupby(keys)["rmse"].max()
    return found.join(chosen.groupby(keys)[["coverage_90", "train_seconds"]].mean())


def figures(examples: pd.DataFrame) -> dict[str, Any]:
    """Return the embeddings, phase portraits and frames of the paper's Figures 5 to 8."""
    drawn = {}
    embedded = examples[examples["kind"] == "embedding"]
    if not embedded.empty:
        titles = {model: EMBEDDING_TITLES[model] for model in EMBEDDINGS if model in set(embedded["model"])}
        drawn["embeddings"] = plot_embeddings(
            embedded, titles, num_train=EMBEDDED_TRAINED, circles=("lg_vae", "vin_so2_4s")
        )
    for name, part in examples[examples["kind"] != "embedding"].groupby("system"):
        titles = {model: TITLES[model] for model in TITLES if model in set(part["model"])}
        drawn[f"portraits_{name}"] = plot_phase_portraits(part[part["kind"] == "path"], titles)
        drawn[f"films_{name}"] = plot_films(part[part["kind"] != "path"], titles)
    return drawn


class Kind(NamedTuple):
    """A model of the study: how it is trained, on films of which systems, and on how many."""

    fit: Callable[[Trajectories, int, bool], Fitted]
    systems: tuple[str, ...]
    num_films: tuple[int, ...]


MODELS: dict[str, Kind] = {
    "vin_so2": Kind(vin("so2"), ("pendulum",), (1, 10)),
    "vin_vv": Kind(vin("velocity_verlet"), ("pendulum",), (1,)),
    "vin_sv": Kind(vin("stormer_verlet"), ("mass_spring",), (1, 10)),
    "res_rnn": Kind(free("residual"), ("pendulum", "mass_spring"), (1,)),
    "res_rnn_elbo": Kind(free("residual", taught=False), ("pendulum", "mass_spring"), (1,)),
}
"""Every model of the study by its name; `res_rnn_elbo` is the paper's, which knows nothing of our start."""

TITLES = {
    "vin_so2": "VIN-SO(2)",
    "vin_vv": "VIN-VV",
    "vin_sv": "VIN-SV",
    "res_rnn": "ResRNN",
    "res_rnn_elbo": "ResRNN, as in the paper",
}

EMBEDDED_TRAINED, EMBEDDED = 40, 120  # frames, as in the paper's Figure 5

EMBEDDINGS: dict[str, Callable[..., Tensor]] = {
    "vae": read_by_frames(dim=2),
    "dvae": read_by_clips(free("feed_forward")),
    "lg_vae": read_by_frames(circle=True),
    "vin_so2_4s": read_by_clips(vin("so2")),
}
"""Models whose latent spaces are shown, in the order of the paper's Figure 5."""

EMBEDDING_TITLES = {"vae": "VAE", "dvae": "DVAE", "lg_vae": "LG-VAE", "vin_so2_4s": "VIN-SO(2)"}

COLUMNS = [
    "system",
    "model",
    "seed",
    "protocol",
    "horizon_s",
    "forecast",
    "rmse",
    "loglik",
    "brier",
    "coverage_90",
    "symetric",
    "circ_corr",
    "log_volume",
    "energy_drift",
    "train_seconds",
    "steps",
]

EXAMPLE_COLUMNS = ["system", "model", "kind", "horizon_s", "q", "v", "truth", "truth_v", "frame"]

NUM_STEPS = 100
"""Steps of stochastic variational inference, after those of the start."""

NUM_UNTAUGHT = 2000
"""Steps of it for a model without a start."""

TAUGHT = {1: 1500, 10: 3000}
"""Steps of the start's networks by the number of films."""

EXAMPLE = "example"
"""Protocol of the rows that hold a forecast instead of its scores."""

VERSION = "2"
"""To be raised when a trial computes something else, so that results of before are not mixed in."""


if __name__ == "__main__":
    run_script(main, Config, __doc__)
