"""Does the uncertainty of a forecast grow as the dynamics say: linearly, or at the Lyapunov exponent?

    python inference/study_growth.py --out runs/growth                         the whole study
    python inference/study_growth.py --quick --out runs/growth_quick           a look, in minutes
    python inference/study_growth.py --scheduler tcp://host:8786 --out runs/growth   on a dask cluster

Records of four systems are measured with small noise and fitted by NUTS; the posterior is forecast and the
distance between its draws compared with what each system is known for:

mass_spring    integrable: linear growth, as phases drift by the error of the frequency
pendulum       the same
henon_heiles   chaotic at energy 0.16: exponential growth at the maximal Lyapunov exponent
duffing        two wells, damped and driven (k = -1, c = 1, d = 0.25, F = 0.4, frequency 1): the same

The Lyapunov exponent is computed from the true law of motion alone (`vinppl.lyapunov`), on long paths from
the initial states of the records. At that energy of Hénon-Heiles a tenth of all initial states lie on regular
islands; records start outside of them, where the path's own exponent exceeds a third of the typical one.
A published value for this Duffing oscillator is 0.1572 (Sprott, Chaos and Time-Series Analysis, 2003, A.4.6).

Writes OUT/uncertainty_growth.csv and a file for every finished trial, from which a run that was stopped goes
on.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinppl._checks import require_choices
from vinppl.cli import run_script
from vinppl.data import Trajectories
from vinppl.diagnostics import convergence
from vinppl.fit import MCMCOptions, fit_mcmc
from vinppl.forecast import extend
from vinppl.growth import growth_verdict, uncertainty_growth
from vinppl.lyapunov import LyapunovEstimate, maximal_lyapunov_exponent
from vinppl.models import Duffing, HenonHeiles, MassSpring, Pendulum
from vinppl.posterior import from_mcmc
from vinppl.state import PhaseState, Trajectory
from vinppl.systems import AbstractSystem, system
from vinppl.trials import StudyOptions, Trial, run_study, table, write_table

STEP = 0.1


@dataclass(frozen=True)
class Setting:
    """What is measured of a system and how it is fitted.

    Attributes:
        model: of the suite.
        parameters: of the ground truth.
        options: of the model.
        noise: standard deviation of the measurements.
        num_times: samples of a record, every 0.1 units of time.
        horizon: of the forecast.
        chaotic: whether records are to start in the chaotic sea or on the strange attractor.
    """

    model: Any
    parameters: dict[str, float]
    options: dict[str, Any]
    noise: float
    num_times: int
    horizon: float
    chaotic: bool


SETTINGS = {
    "mass_spring": Setting(MassSpring, {}, {}, 0.05, 40, 40.0, False),
    "pendulum": Setting(Pendulum, {}, {"damping": None}, 0.05, 40, 40.0, False),
    "henon_heiles": Setting(HenonHeiles, {}, {"integrator": "verlet4"}, 1e-3, 150, 80.0, True),
    "duffing": Setting(
        Duffing,
        {"stiffness": -1.0, "damping": 0.25, "drive_amplitude": 0.4},
        {"integrator": "verlet4"},
        1e-3,
        150,
        60.0,
        True,
    ),
}
"""The systems, by their names in `vinppl.systems`."""

ENERGY = 0.16
"""Of Hénon-Heiles; it escapes above 1/6."""


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of the study.

    Attributes:
        systems: systems to run; all by default.
        num_seeds: repetitions, each with records of its own.
        num_records: records of a chaotic system; of the others, a quarter.
        num_draws: predictive draws.
    """

    out: Path = Path("runs/growth")
    systems: tuple[str, ...] = ()
    num_seeds: int = 3
    num_records: int = 24
    num_draws: int = 200


def main(config: Config) -> None:
    """Run what is missing, then write the table."""
    if config.quick:
        config = replace(config, num_seeds=1, num_records=4, num_draws=60)
    began = time.monotonic()
    require_choices("systems", config.systems, SETTINGS)
    results = run_study(trial, trials(config), config, version=VERSION)
    rows = table(results)
    command = f"python inference/study_growth.py {' '.join(sys.argv[1:])}"
    path = config.out / "uncertainty_growth.csv"
    write_table(rows.drop(columns="verdict"), path, command=command, seeds=range(config.num_seeds))
    for row in rows[rows["seed"] == 0].itertuples():
        print(f"\n{row.system}\n{row.verdict}")
    shown = ["system", "seed", "law", "support", "rate", "rate_error", "lyapunov", "lyapunov_error", "ratio"]
    print(f"\n{rows[shown].to_string(index=False, float_format='%.3g')}")
    print(f"\n{path} ({time.monotonic() - began:.0f} s in this call)")


def trials(config: Config) -> list[Trial]:
    """Return all trials, seed by seed."""
    found = []
    for seed, name in product(range(config.num_seeds), config.systems or SETTINGS):
        records = config.num_records if SETTINGS[name].chaotic else max(1, config.num_records // 4)
        arguments = {"system_name": name, "seed": seed, "num_records": records}
        arguments |= {"num_draws": config.num_draws, "quick": config.quick}
        found.append(Trial(f"{name}-{seed}", arguments))
    return found


# One trial


def trial(system_name: str, seed: int, num_records: int, num_draws: int, quick: bool) -> list[dict[str, Any]]:
    """Measure, fit and forecast one system; return the row of the table."""
    torch.set_default_dtype(torch.float64)
    setting, began = SETTINGS[system_name], time.process_time()
    truth = system(system_name, **setting.parameters)
    stream = torch.Generator().manual_seed(seed)
    initial, exponent = records_start(truth, setting, num_records, stream, quick)
    data, held_out, path = measure(truth, setting, initial, stream)
    model = setting.model(data, setting.model.Config(**setting.options))
    options = MCMCOptions(num_chains=2, num_warmup=100 if quick else 500, num_draws=100 if quick else 500)
    result = fit_mcmc(model, data, replace(options, num_workers=1, seed=seed))
    draws = {name: value[:: max(1, len(value) // num_draws)] for name, value in result.flat().items()}
    future = extend(data, horizon=0.0, held_out=held_out)
    growth = uncertainty_growth(model, draws, data, future, truth=path, num_horizons=200, seed=seed)
    law = growth.attrs["law"]
    rates = {key: float(growth[f"law_{key}"].sel(law=law)) for key in ("rate", "rate_error", "support")}
    exponential = float(growth["law_rate"].sel(law="exponential"))
    low, middle, high = np.quantile(growth["valid_time"], [0.05, 0.5, 0.95])
    row = {
        "system": system_name,
        "seed": seed,
        "law": law,
        **rates,
        "fitted_to": growth.attrs["law_window"],
        "lyapunov": exponent.exponent,
        "lyapunov_error": exponent.standard_error,
        "ratio": exponential / exponent.exponent if setting.chaotic else math.nan,
        "valid_time_5": low,
        "valid_time_50": middle,
        "valid_time_95": high,
        "mismatch": growth.attrs["mismatch"],
        "max_rhat": convergence(from_mcmc(result)).max_rhat,
        "num_records": num_records,
        "seconds": time.process_time() - began,
        "verdict": growth_verdict(growth),
    }
    return [row]


def records_start(
    truth: AbstractSystem, setting: Setting, num: int, stream: torch.Generator, quick: bool
) -> tuple[PhaseState, LyapunovEstimate]:
    """Return initial states of records, and the Lyapunov exponent on long paths from there."""
    initial = candidates(truth, setting, num, stream)
    length = {"duration": 100.0 if quick else 500.0, "step_size": 0.05, "transient": 100.0}
    found = maximal_lyapunov_exponent(truth, initial, **length)
    if not setting.chaotic:
        return initial, found
    own = found.rates.mean(-1)
    kept = (own > own.median() / 3).nonzero().flatten()[:num]
    if len(kept) < num:
        raise RuntimeError(f"only {len(kept)} of {len(own)} initial states are chaotic")
    rates = found.rates[kept]
    error = float(rates.std() / math.sqrt(rates.numel()))
    initial = PhaseState(initial.q[kept], initial.v[kept])
    return initial, replace(found, exponent=float(rates.mean()), standard_error=error, rates=rates)


def candidates(truth: AbstractSystem, setting: Setting, num: int, stream: torch.Generator) -> PhaseState:
    """Return initial states: of the system's own distribution, of one energy, or on the attractor."""
    if not setting.chaotic:
        return truth.sample_initial(num, stream)
    drawn = truth.sample_initial(2 * num, stream)
    if truth.name == "henon_heiles":
        potential = truth.potential(drawn.q)
        speed = (2 * (ENERGY - potential)).sqrt().unsqueeze(-1)
        return PhaseState(drawn.q, drawn.v / drawn.v.norm(dim=-1, keepdim=True) * speed)
    periods = torch.tensor([0.0, 10 * math.pi])  # of the drive, whole ones: its phase is as before
    settled = truth.solve(drawn, periods)
    return PhaseState(settled.q[:, -1], settled.v[:, -1])


def measure(
    truth: AbstractSystem, setting: Setting, initial: PhaseState, stream: torch.Generator
) -> tuple[Trajectories, Trajectories, Trajectory]:
    """Return what was measured, the future without measurements, and the path without noise."""
    count = setting.num_times + round(setting.horizon / STEP)
    times: Tensor = STEP * torch.arange(count)
    path = truth.solve(initial, times)
    path = Trajectory(times.expand(path.q.shape[0], -1), path.q, path.v)
    angles = [i for i, angle in enumerate(truth.angle_coordinates) if angle]
    unit = truth.units["time"].replace("1", "")
    data = Trajectories.from_states(
        path, noise_scale=setting.noise, angles=angles, time_unit=unit, generator=stream
    )
    if truth.name == "duffing":
        data = replace(data, drive=path.time.cos().unsqueeze(-1))
    fitted, held_out = data.split_by_time(setting.num_times / count)
    return fitted, held_out, path


VERSION = "1"
"""To be raised when a trial computes something else, so that results of before are not mixed in."""


if __name__ == "__main__":
    run_script(main, Config, __doc__)
