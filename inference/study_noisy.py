"""Which model of mechanics to use with little noisy data: every rival, repeated, scored as forecasts.

    python inference/study_noisy.py --out runs/noisy                          the whole study
    python inference/study_noisy.py --quick --out runs/noisy_quick            a look, in minutes
    python inference/study_noisy.py --scheduler tcp://host:8786 --out runs/noisy   on a dask cluster

The experiment of the VIN paper's section 4.1 (Figures 3 and 4): a mass on a spring and a pendulum, 5 or 25
trajectories of 3 s at 10 Hz, positions and velocities with noise of standard deviation 0.33. Data and initial
weights are paired: the same seed is the same data for every model. A forecast begins from new trajectories
that were measured for 3 s just like those of the training (start `inferred`), or from their true states
(start `true`, the paper's protocol), and is scored against the noise-free future: `at` one second of the
horizon, or from its beginning `to` the horizon.

Writes OUT/noisy_states.csv, a table of paired comparisons, the figures, and a file for every finished
trial, from which a run that was stopped goes on.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from vinppl import scores
from vinppl._checks import require_choices
from vinppl.assimilation import Assimilated, assimilate
from vinppl.cli import run_script
from vinppl.data import Trajectories
from vinppl.fit import MCMCOptions, SVIOptions, fit_derivatives, fit_mcmc, fit_point, fit_svi
from vinppl.models import (
    FreeDynamics,
    FreeDynamicsConfig,
    HamiltonianStates,
    HamiltonianStatesConfig,
    MassSpring,
    MassSpringConfig,
    NoisyStates,
    NoisyStatesConfig,
    Pendulum,
    PendulumConfig,
)
from vinppl.plotting import save_figure
from vinppl.simulate import simulate
from vinppl.study_plots import plot_example_forecasts, plot_scores_by_horizon
from vinppl.systems import system
from vinppl.trials import StudyOptions, Trial, run_study, table, write_table

STEP, NOISE = 0.1, 0.33
MEASURED = 30  # samples of every trajectory
SYSTEMS = ("mass_spring", "pendulum")
LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of the study.

    Attributes:
        models: models to run; all by default.
        sizes: numbers of training trajectories.
        num_seeds: repetitions, each with data of its own.
        num_variant_seeds: repetitions of the variants (see `Kind`).
        num_test: new trajectories to forecast.
        num_draws: predictive draws.
    """

    out: Path = Path("runs/noisy")
    models: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (5, 25)
    num_seeds: int = 10
    num_variant_seeds: int = 3
    num_test: int = 20
    num_draws: int = 200


def main(config: Config) -> None:
    """Run what is missing, then write the table and draw the figures."""
    if config.quick:
        config = replace(config, sizes=(5,), num_seeds=1, num_variant_seeds=1, num_test=4, num_draws=80)
    began = time.monotonic()
    require_choices("models", config.models, MODELS)
    results = run_study(trial, trials(config), config, version=VERSION)
    rows = table(results)
    examples = rows[rows["span"] == EXAMPLE].dropna(axis="columns", how="all")
    frame = with_skill(rows[rows["span"] != EXAMPLE])
    command = f"python inference/study_noisy.py {' '.join(sys.argv[1:])}"
    path = config.out / "noisy_states.csv"
    write_table(frame, path, command=command, seeds=range(config.num_seeds))
    for name, figure in figures(frame, examples).items():
        save_figure(figure, config.out / f"{name}.png")
    versus = paired(frame)
    write_table(
        versus, config.out / "noisy_states_paired.csv", command=command, seeds=range(config.num_seeds)
    )
    print(summary(frame).to_string(float_format="%.3g"))
    better = versus[(versus["ratio"] < 1) & (versus["model"] != "oracle")]
    print(f"\nWhere another model has the lower score than {RECOMMENDED}, on the geometric mean over seeds:")
    print(better.to_string(index=False, float_format="%.3g") if len(better) else "nowhere")
    print(f"\n{path} ({time.monotonic() - began:.0f} s in this call)")


def trials(config: Config) -> list[Trial]:
    """Return all trials, seed by seed and the variants last, so that a stopped study is still paired."""
    found = []
    for variants, num_seeds in ((False, config.num_seeds), (True, config.num_variant_seeds)):
        kinds = {
            name: MODELS[name] for name in config.models or MODELS if MODELS[name].is_variant == variants
        }
        settings = product(range(num_seeds), config.sizes, SYSTEMS, kinds)
        for seed, size, name, model in settings:
            turns = any(system(name).angle_coordinates)
            if size > kinds[model].max_size or (kinds[model].needs_angle and not turns):
                continue
            arguments = {"model": model, "system_name": name, "size": size, "seed": seed}
            arguments |= {key: getattr(config, key) for key in ("num_test", "num_draws", "quick")}
            found.append(Trial(f"{name}-{size}-{model}-{seed}", arguments))
    return found


# One trial


def trial(
    model: str, system_name: str, size: int, seed: int, num_test: int, num_draws: int, quick: bool
) -> list[dict[str, Any]]:
    """Fit one model to one data set, forecast new trajectories, and return the rows of the table."""
    torch.set_default_dtype(torch.float64)
    truth_of = system(system_name)
    data, _ = simulate(truth_of, num_trajectories=size, num_times=MEASURED, noise_scale=NOISE, seed=seed)
    horizon = 100 if quick else 300
    test, path = simulate(
        truth_of,
        num_trajectories=num_test,
        num_times=MEASURED + horizon,
        noise_scale=NOISE,
        seed=10_000 + seed,
    )
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rival that does not converge is scored as it is
        members = [member.rounded() for member in MODELS[model].fit(data, Fit(system_name, seed, quick))]
        trained = time.process_time()
        truth = torch.cat([path.q, path.v], dim=-1)
        states = {
            start: torch.cat([forecast(run, m, test, truth, num_draws // len(members)) for m in members])
            for start, run in (("inferred", from_measurements), ("true", from_truth))
        }
    common = {
        "train_seconds": trained - began,
        "forecast_seconds": time.process_time() - trained,
    }
    future = truth[:, MEASURED - 1 :].numpy()
    rows = [
        {"start": start, **row, **common}
        for start, drawn in states.items()
        for row in score(truth_of, drawn.numpy(), future, start)
    ]
    if seed == 0:
        rows += example(truth_of, states["inferred"].numpy()[:, 0], future[0])
    return [{"model": model, "system": system_name, "size": size, "seed": seed, **row} for row in rows]


class Fit(NamedTuple):
    """What a fit is told beside the data: system (for the oracle), seed, and whether to be quick."""

    system: str
    seed: int
    quick: bool


class Member(NamedTuple):
    """A fitted model: draws of the sites that trajectories share, and its learned parameters."""

    model: Any
    shared: dict[str, Tensor]
    parameters: dict[str, Tensor] | None = None

    @property
    def is_random(self) -> bool:
        """Whether the draws of the shared sites differ."""
        return any(len(value) > 1 for value in self.shared.values())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its forecasts; that of a single network is far from what rounding does."""
        return torch.float64 if self.is_random else torch.float32

    def rounded(self) -> Member:
        """Return it in that precision."""
        shared = {name: value.to(self.dtype) for name, value in self.shared.items()}
        parameters = self.parameters and {n: value.to(self.dtype) for n, value in self.parameters.items()}
        return Member(self.model.to(self.dtype), shared, parameters)


def forecast(run: Forecaster, member: Member, test: Trajectories, truth: Tensor, num_draws: int) -> Tensor:
    """Forecast in the precision of the member; draw less often where only initial states differ."""
    torch.set_default_dtype(member.dtype)
    try:
        count = max(1, num_draws if member.is_random else num_draws // 4)
        return run(member, test.to(dtype=member.dtype), truth.to(member.dtype), count).double()
    finally:
        torch.set_default_dtype(torch.float64)


def from_measurements(member: Member, test: Trajectories, truth: Tensor, num_draws: int) -> Tensor:
    """Forecast from the posterior of the states, given the measured windows of the new trajectories.

    Returns:
        States from the last measured sample on, `(draw, trajectory, time, 2 dim)`.
    """
    found = assimilate(
        member.model,
        member.shared,
        test.first(MEASURED),
        num_draws=num_draws,
        num_proposals=2400 if member.is_random else 200,
        parameters=member.parameters,
    )
    return found.predict(test, sites=["states"])["states"][:, :, MEASURED - 1 :]


def from_truth(member: Member, test: Trajectories, truth: Tensor, num_draws: int) -> Tensor:
    """Forecast from the true states at the last measured sample, which no one knows; as in the paper."""
    future = test.last(test.num_times - MEASURED + 1)
    num_draws = num_draws if member.is_random else 1
    count = len(next(iter(member.shared.values()))) if member.shared else 1
    index = (torch.arange(num_draws) * count // num_draws).unsqueeze(-1).expand(-1, test.num_trajectories)
    states = truth[:, MEASURED - 1].expand(num_draws, -1, -1)
    sizes = torch.ones(test.num_trajectories)
    known = Assimilated(member.model, future, states, index, member.shared, sizes, member.parameters)
    return known.predict(future, sites=["states"])["states"]


Forecaster = Callable[[Member, Trajectories, Tensor, int], Tensor]


# Scores


def score(truth_of: Any, states: np.ndarray, truth: np.ndarray, start: str) -> list[dict[str, Any]]:
    """Return one row for each span of the horizon; the first time is its beginning.

    Args:
        truth_of: the true system.
        states: forecasts, `(draw, trajectory, time, 2 dim)`.
        truth: what happened, `(trajectory, time, 2 dim)`.
        start: where forecasts begin.
    """
    angles = angles_of(truth_of)
    states = np.nan_to_num(np.clip(states, -1e6, 1e6), nan=1e6)  # a rival may run away
    point = scores.point_forecast(states, angles)
    energy, true_energy = energy_of(truth_of, states), energy_of(truth_of, truth)
    drift = np.abs(energy - energy[..., :1]) / true_energy[:, :1].mean()
    times = STEP * np.arange(truth.shape[1])
    vpt = scores.valid_prediction_time(point[:, 1:], truth[:, 1:], times[1:], periodic=angles)
    last = round(times[-1])
    spans = [("to", h, 0, h) for h in (10, 30) if h <= last]
    spans += [("at", h, h - 1, h) for h in range(1, 11)] if start == "inferred" else []
    rows = []
    for span, horizon, low, high in spans:
        part = slice(round(low / STEP) + 1, round(high / STEP) + 1)
        x, y = states[:, :, part], truth[:, part]
        covered = scores.coverage(x, y, LEVELS, periodic=angles)
        rows.append(
            {
                "span": span,
                "horizon": horizon,
                "rmse": scores.rmse(point[:, part], y, angles),
                "energy_error": float(drift[..., part].mean()),
                "vpt": vpt,
                "crps": scores.crps(x, y, periodic=angles),
                **{f"coverage_{100 * level:g}": covered[level] for level in LEVELS},
                "width": scores.interval_width(x, [0.9], periodic=angles)[0.9],
            }
        )
    return rows


def example(truth_of: Any, states: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """Return the forecast of one trajectory, a row for each time, as `plot_example_forecasts` takes it.

    Args:
        truth_of: the true system, of one coordinate.
        states: forecasts, `(draw, time, 2)`.
        truth: what happened, `(time, 2)`.
    """
    bands = np.quantile(states[..., 0], (0.05, 0.5, 0.95), axis=0)
    energies = [energy_of(truth_of, x) for x in (states, truth)]
    energy_bands = np.quantile(energies[0], (0.05, 0.5, 0.95), axis=0)
    angles = angles_of(truth_of)
    difference = scores.point_forecast(states, angles) - truth
    difference[:, angles] = np.angle(np.exp(1j * difference[:, angles]))  # the shorter way round
    error = np.sqrt((difference**2).mean(-1))
    columns = {
        "horizon": STEP * np.arange(len(truth)),
        "truth": truth[:, 0],
        **dict(zip(("low", "middle", "high"), bands, strict=True)),
        "error": error,
        **dict(zip(("energy_low", "energy_middle", "energy_high"), energy_bands, strict=True)),
        "energy_truth": energies[1],
    }
    rows = pd.DataFrame(columns).iloc[:: 2 if len(truth) > 150 else 1]
    return [{"start": "inferred", "span": EXAMPLE, **row} for row in rows.to_dict("records")]


def angles_of(truth_of: Any) -> np.ndarray:
    """Return which entries of a state (positions, then velocities) are angles."""
    return np.array([*truth_of.angle_coordinates, *[False] * truth_of.dim])


def energy_of(truth_of: Any, states: np.ndarray) -> np.ndarray:
    """Return the true system's energy of states `(*batch, 2 dim)`, above its lowest."""
    q, v = torch.as_tensor(states).chunk(2, dim=-1)
    ground = truth_of.potential(torch.zeros(1, q.shape[-1], dtype=q.dtype))
    return (truth_of.energy(q, v) - ground).numpy()


def with_skill(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `skill`, the CRPS over that of the oracle on the same data."""
    keys = ["system", "size", "seed", "start", "span", "horizon"]
    oracle = frame[frame["model"] == "oracle"].set_index(keys)["crps"].rename("oracle")
    joined = frame.join(oracle, on=keys)
    columns = [
        "model",
        "system",
        "size",
        "seed",
        "start",
        "span",
        "horizon",
        "rmse",
        "energy_error",
        "vpt",
        "crps",
        *[f"coverage_{100 * level:g}" for level in LEVELS],
        "width",
        "skill",
        "train_seconds",
        "forecast_seconds",
    ]
    return joined.assign(skill=joined["crps"] / joined["oracle"])[columns]


def figures(frame: pd.DataFrame, examples: pd.DataFrame) -> dict[str, Any]:
    """Return the paper's Figures 3 and 4 with bands, and the scores by horizon, for every setting."""
    drawn = {}
    for (name, size), part in frame[frame["span"] == "at"].groupby(["system", "size"]):
        titles = {model: title for model, title in TITLES.items() if model in set(part["model"])}
        drawn[f"scores_{name}_{size}"] = plot_scores_by_horizon(part, titles)
        shown = examples[(examples["system"] == name) & (examples["size"] == size)]
        titles = {model: title for model, title in TITLES.items() if model in set(shown["model"])}
        if titles:
            drawn[f"forecasts_{name}_{size}"] = plot_example_forecasts(shown, titles)
    return drawn


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds at 10 s from inferred states, a row for each setting and model."""
    chosen = frame[(frame["start"] == "inferred") & (frame["span"] == "to") & (frame["horizon"] == 10)]
    columns = ["rmse", "energy_error", "crps", "skill", "coverage_90", "width", "train_seconds"]
    return chosen.groupby(["system", "size", "model"], sort=False)[columns].mean()


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how every model fares against the recommended VIN on the same data, from inferred states.

    Returns:
        A row for each setting, horizon, model and score. `ratio` is the geometric mean over seeds of the
        model's score over that of the VIN, `low` and `high` its 90 % interval by Student's t on the
        logarithm, `won` the number of `seeds` on which the VIN has the lower score.
    """
    keys = ["system", "size", "span", "horizon", "seed"]
    chosen = frame[frame["start"] == "inferred"]
    reference = chosen[chosen["model"] == RECOMMENDED].set_index(keys)
    rows = []
    for (model, *setting), part in chosen.groupby(["model", *keys[:-1]], sort=False):
        own = part.set_index(keys)
        common = own.index.intersection(reference.index)
        if model == RECOMMENDED or common.empty:
            continue
        for score in ("rmse", "crps"):
            logs = np.log(own.loc[common, score] / reference.loc[common, score]).to_numpy()
            half = math.nan
            if len(logs) > 1:
                half = stats.t.ppf(0.95, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
            names = dict(zip(keys[:-1], setting, strict=True))
            means = {"ratio": logs.mean(), "low": logs.mean() - half, "high": logs.mean() + half}
            counts = {"won": int((logs > 0).sum()), "seeds": len(logs)}
            found = {name: math.exp(value) for name, value in means.items()}
            rows.append({"model": model, **names, "score": score, **counts, **found})
    columns = ["model", *keys[:-1], "score", "won", "seeds", "ratio", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


# Models and how they are fitted


def fit_oracle(data: Trajectories, to: Fit) -> list[Member]:
    """Infer the parameters of the true law."""
    model: Any
    if to.system == "pendulum":
        model = Pendulum(data, PendulumConfig(damping=None))
    else:
        model = MassSpring(data, MassSpringConfig(damping=None))
    return [by_nuts(model, data, to)]


def by_nuts(model: Any, data: Trajectories, to: Fit) -> Member:
    """Sample all sites; whatever initial states the data had, new trajectories have others."""
    draws = 60 if to.quick else 400
    options = MCMCOptions(
        num_chains=2,
        num_warmup=draws,
        num_draws=draws,
        num_workers=1,
        seed=to.seed,
        max_refinements=0 if to.quick else 1,
    )
    flat = fit_mcmc(model, data, options).flat()
    return Member(model, {name: value for name, value in flat.items() if not name.startswith("initial_")})


def by_likelihood(model: Any, data: Trajectories, to: Fit) -> Member:
    """Train as in the paper's section 3.1: weights, initial states and noise by their joint density."""
    model.pretrain(data)
    values = fit_point(model, data, max_iterations=10 if to.quick else 40)
    shared = {name: value[None] for name, value in values.items() if not name.startswith("initial_")}
    return Member(model, shared)


def by_guide(model: Any, data: Trajectories, to: Fit, guide: Any) -> Member:
    """Fit a variational family over all sites."""
    result = fit_svi(model, data, SVIOptions(guide=guide, num_steps=60 if to.quick else 1000, seed=to.seed))
    draws = result.sample(400, seed=to.seed)
    shared = {name: value for name, value in draws.items() if not name.startswith("initial_")}
    return Member(model, shared, result.parameters)


def vin(data: Trajectories, to: Fit, **options: Any) -> Any:
    """Return the VIN with the paper's potential, or with other options."""
    defaults: dict[str, Any] = {"hidden_sizes": (1000,), "activation": "tanh"}
    if to.quick:
        defaults["hidden_sizes"] = (32,)
    return NoisyStates(data, NoisyStatesConfig(**{**defaults, "network_seed": to.seed, **options}))


def point_vin(integrator: str, **options: Any) -> Callable[[Trajectories, Fit], list[Member]]:
    """Return the paper's training of a VIN."""
    return lambda data, to: [by_likelihood(vin(data, to, integrator=integrator, **options), data, to)]


def bayesian_vin(integrator: str, **options: Any) -> Callable[[Trajectories, Fit], list[Member]]:
    """Return NUTS over the output weights of a VIN."""
    settings = {"integrator": integrator, "potential": "random_features", **options}
    return lambda data, to: [by_nuts(vin(data, to, **settings), data, to)]


def all_weights(data: Trajectories, to: Fit) -> list[Member]:
    """Return NUTS over every weight of a small network."""
    options = {"hidden_sizes": (2 if to.quick else 8,), "weight_prior_scale": 2.0}
    return [by_nuts(vin(data, to, **options), data, to)]


def variational_vin(guide: str) -> Callable[[Trajectories, Fit], list[Member]]:
    """Return a variational fit of the same VIN that NUTS samples."""
    return lambda data, to: [by_guide(vin(data, to, potential="random_features"), data, to, guide)]


def ensemble(data: Trajectories, to: Fit) -> list[Member]:
    """Train five VINs from different weights."""
    return [
        by_likelihood(vin(data, to, network_seed=100 * to.seed + i), data, to)
        for i in range(2 if to.quick else 5)
    ]


def free(dynamics: Any) -> Callable[[Trajectories, Fit], list[Member]]:
    """Return the training of a network without mechanics."""

    def fit(data: Trajectories, to: Fit) -> list[Member]:
        sizes = (16,) if to.quick else None
        config = FreeDynamicsConfig(dynamics=dynamics, hidden_sizes=sizes, network_seed=to.seed)
        return [by_likelihood(FreeDynamics(data, config), data, to)]

    return fit


def hamiltonian(data: Trajectories, to: Fit) -> Any:
    """Return the Hamiltonian network with its authors' settings."""
    sizes = (16,) if to.quick else (200, 200)
    return HamiltonianStates(data, HamiltonianStatesConfig(hidden_sizes=sizes, network_seed=to.seed))


def by_derivatives(data: Trajectories, to: Fit) -> list[Member]:
    """Train the Hamiltonian network as its authors do, on derivatives that are noisy like all else."""
    truth_of = system(to.system)
    generator = torch.Generator().manual_seed(20_000 + to.seed)
    _, path = simulate(
        truth_of, num_trajectories=data.num_trajectories, num_times=MEASURED, noise_scale=NOISE, seed=to.seed
    )
    acceleration = truth_of.force(path.q, path.v, path.time) / torch.as_tensor(truth_of.inertia)
    rates = [x + NOISE * torch.randn(x.shape, generator=generator) for x in (path.v, acceleration)]
    model = hamiltonian(data, to)
    result = fit_derivatives(
        model, data, derivatives=(rates[0], rates[1]), num_steps=50 if to.quick else 2000
    )
    shared = {n: v[None] for n, v in result.values.items() if not n.startswith("initial_")}
    return [Member(model, shared, result.parameters)]


class Kind(NamedTuple):
    """A model of the study.

    Attributes:
        fit: returns its members: one, or those of an ensemble.
        needs_angle: whether it is only for systems that turn.
        is_variant: whether it is only compared with its like, on fewer seeds: other kinds of uncertainty,
            VIN-SV (the same map as VIN-VV in (q, v)), and a learned mass.
        max_size: training trajectories beyond which it takes too long.
    """

    fit: Callable[[Trajectories, Fit], list[Member]]
    needs_angle: bool = False
    is_variant: bool = False
    max_size: float = math.inf


MODELS: dict[str, Kind] = {
    "oracle": Kind(fit_oracle),
    "vin_vv_nuts": Kind(bayesian_vin("velocity_verlet")),
    "vin_sv_nuts": Kind(bayesian_vin("stormer_verlet"), is_variant=True),
    "vin_so2_nuts": Kind(bayesian_vin("so2"), needs_angle=True),
    "vin_vv_nuts_mass": Kind(bayesian_vin("velocity_verlet", mass=(1.0, 0.5)), is_variant=True),
    "vin_sv": Kind(point_vin("stormer_verlet"), is_variant=True),
    "vin_vv": Kind(point_vin("velocity_verlet")),
    # The paper's network for SO(2) has bounded forces; a thousand tanh units do not, and a Lie-group step
    # has no solution where they are large. The suite's smoother default stays within reach.
    "vin_so2": Kind(point_vin("so2", hidden_sizes=(128,), activation="softplus"), needs_angle=True),
    "feed_forward": Kind(free("feed_forward")),
    "res_rnn": Kind(free("residual")),
    "neural_ode": Kind(free("ode")),
    "hnn": Kind(lambda data, to: [by_likelihood(hamiltonian(data, to), data, to)]),
    "hnn_derivatives": Kind(by_derivatives),
    "vin_vv_nuts_all_weights": Kind(all_weights, is_variant=True, max_size=5),
    "vin_vv_ensemble": Kind(ensemble, is_variant=True),
    "vin_vv_full_rank": Kind(variational_vin("full_rank"), is_variant=True),
    "vin_vv_low_rank": Kind(variational_vin("low_rank"), is_variant=True),
    "vin_vv_mean_field": Kind(variational_vin("mean_field"), is_variant=True),
}
"""Every model of the study by its name."""

TITLES = {
    "oracle": "known law, NUTS",
    "vin_vv_nuts": "VIN-VV, NUTS",
    "vin_vv": "VIN-VV",
    "vin_so2": "VIN-SO(2)",
    "hnn_derivatives": "HNN, derivatives",
    "hnn": "HNN, rollouts",
    "neural_ode": "neural ODE",
    "res_rnn": "ResRNN",
    "feed_forward": "feed-forward",
}
"""Models that figures show."""

RECOMMENDED = "vin_vv_nuts"
"""The model that the others are compared with."""

EXAMPLE = "example"
"""Span of the rows that hold a forecast instead of its scores."""

VERSION = "3"
"""To be raised when a trial computes something else, so that results of before are not mixed in."""


if __name__ == "__main__":
    run_script(main, Config, __doc__)
