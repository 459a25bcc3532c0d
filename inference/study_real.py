"""Measured systems, and models that are wrong: what forecasts and parameters are worth there.

    python inference/study_real.py --data ../shared/data --out runs/real     all of it
    python inference/study_real.py --quick --out runs/real_quick             a look, in minutes
    python inference/study_real.py --systems emps emps_pulses                some of it

pendulum_as_spring  a damped pendulum with large swings (simulated), fitted by the law of a spring: with an
                    unknown force (`vinppl.discrepancy`) and without
real_pendulum       Schmidt and Lipson, Science 324 (2009): 80 % of a swing fitted, 20 % forecast; the energy
                    is that of Greydanus, Dzamba, Yosinski (2019), H = 2.4 (1 - cos q) + p^2. The velocities
                    of the file are smoothed derivatives of its angles: `angles_..` fits the angles alone and
                    differentiates forecasts as they were, `law_..` takes velocities for measurements. Which
                    options, was decided by forecasts within the 80 %
emps, emps_pulses   a joint of a robot under position control (Janot, Gautier, Brunot 2019): mass and friction
                    from the motor's voltage, which holds the pulses of the second file; every second piece of
                    2 s, of which the first 1.6 s are fitted. Newtons per volt are taken to be known to 1 %
                    (assumed: the documentation states no error); what the mass would be by exactly the
                    documented gain is in the table too. Beside them least squares on filtered derivatives
silverbox           an electronic Duffing oscillator (Wigren and Schoukens 2013): multisines fitted, the
                    `arrow` of growing amplitude simulated from its first 200 samples on; in millivolts

The data are not part of this project; a system whose file is missing is skipped with a message. Writes
OUT/real_systems.csv, horizons in units of the data's time and errors in those of its channels, and a file for
every finished trial, from which a run that was stopped goes on.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.signal import butter, resample, sosfiltfilt

from vinppl import scores
from vinppl._checks import require_choices
from vinppl.assimilation import assimilate
from vinppl.cli import run_script
from vinppl.data import ColumnSpec, Trajectories, read_trajectories
from vinppl.errors import ConvergenceWarning
from vinppl.fit import MCMCOptions, MCMCResult, fit_mcmc
from vinppl.forecast import extend, forecast
from vinppl.models import (
    DrivenMass,
    DrivenMassConfig,
    Duffing,
    DuffingConfig,
    MassSpring,
    MassSpringConfig,
    Pendulum,
    PendulumConfig,
)
from vinppl.simulate import simulate
from vinppl.systems import system
from vinppl.trials import StudyOptions, Trial, run_study, table, write_table

ROOT = Path(__file__).resolve().parents[1]
VERSION = "2"
NEWTONS_PER_VOLT = 35.15065  # of the joint's motor, from its documentation
GAIN_ERROR = 0.01  # of it, as a share
SILVERBOX_RATE = 610.35  # samples per second
ARROW = 40_000  # samples


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of the study.

    Attributes:
        data: folder of the measured data, with the folders schmidt_lipson, emps and silverbox.
        systems: systems to run; all by default.
        num_seeds: repetitions, each with chains (and simulated data) of its own.
    """

    out: Path = Path("runs/real")
    data: Path = ROOT.parent / "shared" / "data"
    systems: tuple[str, ...] = ()
    num_seeds: int = 3


def main(config: Config) -> None:
    """Run what is missing and can be run, then write the table."""
    began = time.monotonic()
    if config.quick:
        config = replace(config, num_seeds=1)
    require_choices("systems", config.systems, SYSTEMS)
    results = run_study(trial, trials(config), config, version=VERSION)
    frame = table(results).drop(columns=["trial", "data", "quick"], errors="ignore")
    path = config.out / "real_systems.csv"
    command = f"python inference/study_real.py {' '.join(sys.argv[1:])}"
    write_table(frame, path, command=command, seeds=range(config.num_seeds))
    print(frame.to_string(index=False, float_format="%.4g", na_rep=""))
    print(f"\n{path} ({time.monotonic() - began:.0f} s in this call)")


def trials(config: Config) -> list[Trial]:
    """Return the trials of the systems whose data are there; say which are left out."""
    found = []
    for name in config.systems or SYSTEMS:
        kind = SYSTEMS[name]
        if kind.file and not (config.data / kind.file).exists():
            print(f"{name}: skipped, since {config.data / kind.file} is missing")
            continue
        for seed, (model, choice) in product(range(config.num_seeds), kind.models.items()):
            if seed > 0 and choice.engine != "nuts":
                continue  # nothing random
            arguments = {"system_name": name, "model": model, "seed": seed, "quick": config.quick}
            found.append(Trial(f"{name}-{model}-{seed}", {**arguments, "data": str(config.data)}))
    return found


# One trial


class Fit(NamedTuple):
    """What a trial is told: where the data are, its seed, whether to be quick."""

    data: Path
    seed: int
    quick: bool


Row = dict[str, float]


def trial(system_name: str, model: str, seed: int, quick: bool, data: str) -> list[dict[str, Any]]:
    """Fit one model to one system, and return its row of the table."""
    torch.set_default_dtype(torch.float64)
    kind = SYSTEMS[system_name]
    choice = kind.models[model]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # R-hat and divergences are in the table
        row = choice.run(Fit(Path(data) / kind.file, seed, quick), choice.options)
    labels = {"system": system_name, "model": model, "engine": choice.engine}
    return [{**labels, "seed": seed, **row, "cpu_seconds": time.process_time() - began}]


def sample(model: Any, data: Trajectories, fit: Fit, *, careful: bool = False) -> tuple[MCMCResult, Row]:
    """Draw from the posterior in this process; return also R-hat and the divergences.

    Where `careful`, an unknown force has shorter steps after a longer warm-up: beside it damping may be next
    to nothing, where posteriors are curved.
    """
    length = 60 if fit.quick else 300
    options = MCMCOptions(num_warmup=length, num_draws=length, seed=fit.seed, num_workers=1)
    if model.discrepancy.active:  # scales of a process mix slowly, in whitened coordinates as well
        options = replace(options, num_draws=4 * length, max_refinements=0)
        if careful:
            options = replace(options, num_warmup=2 * length, target_accept=0.95)
    result = fit_mcmc(model, data, options)
    found = result.convergence()
    return result, {"max_rhat": found.max_rhat, "divergences": float(found.divergences or 0)}


def thinned(result: MCMCResult, count: int) -> dict[str, torch.Tensor]:
    """Return evenly thinned draws."""
    flat = result.flat()
    total = len(next(iter(flat.values())))
    index = torch.arange(count) * total // count
    return {name: value[index] for name, value in flat.items()}


def forecast_row(
    model: Any,
    result: MCMCResult,
    train: Trajectories,
    held_out: Trajectories,
    energy: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> Row:
    """Forecast the held-out samples, which begin at the same time in all trajectories, and score them."""
    future = extend(train, horizon=0.0, held_out=held_out)
    ahead = scores.forecast_arrays(forecast(model, thinned(result, 800), train, future))
    late = ~ahead.in_sample[0]
    drawn, truth = ahead.obs[:, :, late], ahead.measured[:, late]
    last, first = float(future.times[0, -1]), float(train.times[0, -1])
    return {"horizon": last - first, **band_scores(drawn, truth, energy)}


def band_scores(
    drawn: NDArray[Any], truth: NDArray[Any], energy: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> Row:
    """Return the scores of predictive draws `(draw, *shape)`; the energy's are those of the mean forecast."""
    mean = drawn.mean(0)
    row = {"rmse": scores.rmse(mean, truth)}
    if energy is not None:
        row["energy_mse"] = float(np.mean((energy(mean) - energy(truth)) ** 2))
    covered = scores.coverage(drawn, truth, [0.5, 0.9])
    return {
        **row,
        "num_scored": float(np.isfinite(truth).sum()),
        "coverage_50": covered[0.5],
        "coverage_90": covered[0.9],
        "width_90": scores.interval_width(drawn, [0.9])[0.9],
        "crps": scores.crps(drawn, truth),
    }


# A pendulum taken for a spring


def run_wrong_law(fit: Fit, options: Mapping[str, Any]) -> Row:
    """Swings of up to 2.6 rad that shrink: no spring has their period, which changes along the way."""
    truth = system("damped_pendulum", damping=0.15)
    whole, _ = simulate(truth, num_trajectories=2, num_times=150, noise_scale=0.05, seed=fit.seed)
    train, held_out = whole.split_by_time(2 / 3)
    model = MassSpring(train, MassSpringConfig(stiffness=(5.0, 1.0), damping=(0.1, 1.0), **options))
    result, row = sample(model, train, fit, careful=True)
    return {**forecast_row(model, result, train, held_out), **row}


# The real pendulum


def run_real_pendulum(fit: Fit, options: Mapping[str, Any]) -> Row:
    """Fit the first 80 % of the swing, forecast the last 20 %."""
    train, held_out = real_pendulum(fit.data, velocity=True).split_by_time(0.8)
    model = Pendulum(train, PendulumConfig(**SWING, velocity_gain=0.1, **options))
    result, row = sample(model, train, fit)
    return {**forecast_row(model, result, train, held_out, swing_energy), **row}


def run_angles(fit: Fit, options: Mapping[str, Any]) -> Row:
    """The same by the angles alone, with velocities made of them as those of the file were."""
    whole = real_pendulum(fit.data, velocity=True)
    train, held_out = whole.split_by_time(0.8)
    weights, scatter = derivative_weights(train)
    angles, later = real_pendulum(fit.data, velocity=False).split_by_time(0.8)
    model = Pendulum(angles, PendulumConfig(**SWING, **options))
    result, row = sample(model, angles, fit, careful=True)
    end = held_out.times[0, -1] - angles.times[0, -1]
    future = extend(angles, horizon=float(end) + (REACH + 0.5) * angles.median_step, held_out=later)
    ahead = scores.forecast_arrays(forecast(model, thinned(result, 800), angles, future))
    first, count = angles.num_times, held_out.num_times
    angle = ahead.obs[:, 0, :, 0]
    ahead_of, behind = (
        np.stack([angle[:, first + k : first + k + count] for k in sign * np.arange(1, REACH + 1)], axis=-1)
        for sign in (1, -1)
    )
    velocity = (ahead_of - behind) @ weights
    noise = np.random.default_rng(fit.seed).normal(scale=scatter, size=velocity.shape)
    drawn = np.stack([angle[:, first : first + count], velocity + noise], axis=-1)
    return {"horizon": float(end), **band_scores(drawn, held_out.values[0].numpy(), swing_energy), **row}


SWING = {"drag": (0.03, 1.5), "angle_offset": 0.1, "max_step_size": 0.09}
REACH = 4  # samples on either side that the file's velocities were made of


def real_pendulum(path: Path, *, velocity: bool) -> Trajectories:
    """Read the swing, with its velocities or without."""
    spec = ColumnSpec(
        time="t",
        trajectory="trial",
        position=("theta",),
        velocity=("omega",) if velocity else (),
        angle=("theta",),
        names=("trial", "t", "theta", "omega"),
        skip_rows=1,
        separator="space",
    )
    return read_trajectories(path, spec)


def derivative_weights(data: Trajectories) -> tuple[NDArray[Any], float]:
    """Return w with velocity(t) = sum_k w_k (angle(t + k h) - angle(t - k h)) + scatter, by least squares.

    Samples beside a gap are left out.
    """
    t, (angle, velocity) = data.times[0].numpy(), data.values[0].numpy().T
    middle = np.arange(REACH, len(t) - REACH)
    middle = middle[np.isclose(t[middle + REACH] - t[middle - REACH], 2 * REACH * data.median_step)]
    differences = np.stack([angle[middle + k] - angle[middle - k] for k in range(1, REACH + 1)], axis=-1)
    weights = np.linalg.lstsq(differences, velocity[middle])[0]
    return weights, float(np.std(velocity[middle] - differences @ weights))


def swing_energy(state: NDArray[Any]) -> NDArray[Any]:
    """Return H = 2.4 (1 - cos q) + p^2 of (q, p), `(*batch, 2)`."""
    return np.asarray(2.4 * (1 - np.cos(state[..., 0])) + state[..., 1] ** 2)


# The joint of a robot


def run_joint(fit: Fit, options: Mapping[str, Any]) -> Row:
    """Infer the joint's mass, viscous and dry friction from the voltage and the position."""
    data = joint_pieces(fit.data, num_pieces=3 if fit.quick else None)
    train, held_out = data.split_by_time(0.8)
    model = DrivenMass(train, DrivenMassConfig(gain=(NEWTONS_PER_VOLT,), **options))
    result, row = sample(model, train, fit)
    flat = result.flat()
    # Forces and mass are in proportion to the gain, of which the motion says nothing.
    error = np.random.default_rng(fit.seed).normal(scale=GAIN_ERROR, size=len(flat["mass"]))
    sites = {name: flat[site] * (1 + torch.from_numpy(error)) for name, site in JOINT_SITES.items()}
    sites["mass_by_nominal_gain"] = flat["mass"]
    found = {}
    for name, values in sites.items():
        low, middle, high = np.quantile(values.numpy(), (0.025, 0.5, 0.975)).tolist()
        found |= {f"{name}_2.5%": low, name: middle, f"{name}_97.5%": high}
    return {**forecast_row(model, result, train, held_out), **found, **row}


JOINT_SITES = {
    "mass": "mass",
    "viscous": "damping.coefficient",
    "dry": "friction.coefficient",
    "offset": "drive.offset",
}


def run_joint_least_squares(fit: Fit, options: Mapping[str, Any]) -> Row:
    """Regress the motor's force on derivatives of the filtered position, for comparison."""
    raw = pd.read_csv(fit.data)
    position = _low_passed(raw["position_m"].to_numpy(), 40.0)
    velocity = np.gradient(position, 1e-3)
    terms = [np.gradient(velocity, 1e-3), velocity, np.sign(velocity), np.ones_like(velocity)]
    force = NEWTONS_PER_VOLT * raw["motor_voltage_V"].to_numpy()
    inner = slice(200, -200, 10)  # 100 Hz, without the ends of the record
    design = np.stack([_low_passed(term, 10.0)[inner] for term in terms], axis=-1)
    found = np.linalg.lstsq(design, _low_passed(force, 10.0)[inner])[0]
    mass, viscous, dry, offset = found.tolist()
    return {"mass": mass, "viscous": viscous, "dry": dry, "offset": -offset}


def _low_passed(signal: NDArray[Any], frequency: float) -> NDArray[Any]:
    """Return a signal of 1 kHz without phase shift below `frequency`, in hertz."""
    return np.asarray(sosfiltfilt(butter(4, frequency, fs=1000.0, output="sos"), signal))


def joint_pieces(path: Path, *, num_pieces: int | None = None, seconds: float = 2.0) -> Trajectories:
    """Return every second piece of the record, with an initial state of its own and times counted from zero.

    The drive is kept at every second sample (500 Hz), at which steps of integration end; of the position,
    whose samples are 1 ms apart and all but noiseless, every tenth is fitted.
    """
    raw = pd.read_csv(path)
    length = round(seconds * 1000)
    count = (len(raw) - 1) // length
    pieces = np.arange(0, count, 2)[:num_pieces]
    rows = length * pieces[:, None] + np.arange(0, length + 1, 2)  # (piece, time)
    position = raw["position_m"].to_numpy()[rows]
    position[:, np.arange(rows.shape[1]) % 5 != 0] = math.nan
    return Trajectories.from_arrays(
        0.002 * np.arange(rows.shape[1]),
        position[..., None],
        drive=raw["motor_voltage_V"].to_numpy()[rows][..., None],
        drive_names=("motor_voltage_V",),
        time_unit="s",
    )


# The electronic oscillator


def run_silverbox(fit: Fit, options: Mapping[str, Any]) -> Row:
    """Fit parts of four multisine realisations, simulate the arrow."""
    raw = pd.read_csv(fit.data, usecols=["V1", "V2"])
    u, y = raw["V1"].to_numpy(), raw["V2"].to_numpy()
    length = 400 if fit.quick else 2000
    starts = 41_500 + 8_690 * np.arange(2 if fit.quick else 4)
    train = oscillator_pieces(u, y, starts, length)
    model = Duffing(train, DuffingConfig(**options))
    result, row = sample(model, train, fit)
    count = 2_000 if fit.quick else ARROW
    arrow = oscillator_pieces(u, y, np.array([0]), count)
    draws = thinned(result, 100)
    shared = {name: value for name, value in draws.items() if not name.startswith("initial_")}
    found = assimilate(model, shared, arrow.first(UPSAMPLING * SEEN + 1), num_draws=100, seed=fit.seed)
    later = slice(UPSAMPLING * (SEEN + 1), None, UPSAMPLING)
    drawn = found.predict(arrow, sites=["obs"], seed=fit.seed)["obs"][:, 0, later, 0].numpy()
    return {
        "horizon": (count - SEEN) / SILVERBOX_RATE,
        **band_scores(1000 * drawn, 1000 * arrow.values[0, later, 0].numpy()),
        **row,
    }


UPSAMPLING = 4
SEEN = 200  # samples of the arrow that its initial state is inferred from, beside the first


def oscillator_pieces(u: NDArray[Any], y: NDArray[Any], starts: NDArray[Any], length: int) -> Trajectories:
    """Return pieces of the record with the input between its samples, and the output at them.

    The input is band-limited (to 200 Hz), so that Fourier interpolation of the record knows it between
    samples; straight lines between them would take 4 % of its amplitude at the resonance, near 70 Hz.
    """
    mirrored = np.concatenate([u, u[::-1]])  # continuous where the record ends
    fine = resample(mirrored, UPSAMPLING * len(mirrored))[: UPSAMPLING * len(u)]
    rows = UPSAMPLING * starts[:, None] + np.arange(UPSAMPLING * (length - 1) + 1)  # (piece, time)
    values = np.full(rows.shape, math.nan)
    values[:, ::UPSAMPLING] = y[starts[:, None] + np.arange(length)]
    return Trajectories.from_arrays(
        np.arange(rows.shape[1]) / (UPSAMPLING * SILVERBOX_RATE),
        values[..., None],
        drive=fine[rows][..., None],
        time_unit="s",
    )


# Which systems, which models


class Choice(NamedTuple):
    """A model of a system: what runs it, with which options, and what infers it."""

    run: Callable[[Fit, Mapping[str, Any]], Row]
    options: Mapping[str, Any]
    engine: str = "nuts"


class System(NamedTuple):
    """A system of the study.

    Attributes:
        models: by their names in the table.
        file: where its data are, in the data folder; empty for simulated ones.
    """

    models: Mapping[str, Choice]
    file: str = ""


FORCE = {"discrepancy": 3.0, "discrepancy_time": (0.3, 0.5)}  # newtons, seconds
STRONG_FORCE = {"discrepancy": 2.0, "discrepancy_time": (0.4, 0.5), "discrepancy_coordinates": "knots"}
SLOW_FORCE = {"discrepancy": 0.02, "discrepancy_time": (2.7, 0.3)}  # half of a period

JOINT = {
    "law_unknown_force": Choice(run_joint, FORCE),
    "law_ar1_noise": Choice(run_joint, {"noise": "ar1"}),
    "least_squares": Choice(run_joint_least_squares, {}, "least squares"),
}

SYSTEMS = {
    "pendulum_as_spring": System(
        {
            "law": Choice(run_wrong_law, {}),
            "law_ar1_noise": Choice(run_wrong_law, {"noise": "ar1"}),
            "law_unknown_force": Choice(run_wrong_law, STRONG_FORCE),
        }
    ),
    "real_pendulum": System(
        {
            "law_ar1_noise": Choice(run_real_pendulum, {"noise": "ar1"}),
            "angles_ar1_noise": Choice(run_angles, {"noise": "ar1"}),
            "angles_unknown_force": Choice(run_angles, {"noise": "ar1", **SLOW_FORCE}),
        },
        "schmidt_lipson/real_pend_h_1.txt",
    ),
    "emps": System(JOINT, "emps/DATA_EMPS.csv"),
    "emps_pulses": System(JOINT, "emps/DATA_EMPS_PULSES.csv"),
    "silverbox": System(
        {
            "law": Choice(run_silverbox, {"offset": 1e4}),
            "law_ar1_noise": Choice(run_silverbox, {"offset": 1e4, "noise": "ar1"}),
        },
        "silverbox/SNLS80mV.csv",
    ),
}


if __name__ == "__main__":
    run_script(main, Config, __doc__)
