"""The whole way in a few minutes: simulate, fit two networks and the known law, forecast 20 seconds.

    python inference/demo.py --out runs/demo

Five noisy swings of a pendulum, 3 seconds each at 10 Hz with noise 0.33 (the VIN paper's low-data setting),
are fitted by VIN-SV and VIN-SO(2), which know nothing but that an angle moves in a potential, and by NUTS on
the pendulum's law. All three then forecast the next 20 seconds. The demo runs the other scripts and prints
each command it runs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vinppl.cli import run_script
from vinppl.export import read_result
from vinppl.plotting import plot_forecast_comparison, save_figure

SCRIPTS = Path(__file__).resolve().parent
FITTED, HELD_OUT = 30, 200  # samples at 10 Hz: 3 s fitted, 20 s held out


@dataclass(frozen=True)
class Config:
    """Options of the demonstration.

    Attributes:
        out: folder for everything it writes.
        seed: of the simulation and the fits.
        quick: a run of seconds with too few steps and draws to trust, to try the machinery.
    """

    out: Path = Path("runs/demo")
    seed: int = 0
    quick: bool = False


def main(config: Config) -> None:
    """Run the scripts, then draw and tabulate what they found."""
    began = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    data = config.out / "pendulum.csv"
    run("simulate.py", out=data, system="pendulum", num_times=FITTED + HELD_OUT, seed=config.seed)

    fraction = FITTED / (FITTED + HELD_OUT)
    svi = {"num_steps": 20, "check_every": 10, "start": "prior"} if config.quick else {"num_steps": 600}
    networks = {"vin_sv": "stormer_verlet", "vin_so2": "so2"}
    common = {"data": data, "columns.angle": "q", "train_fraction": f"{fraction:.6f}", "seed": config.seed}
    fits = [
        start(
            "svi.py",
            model="NoisyStates",
            set=f"integrator={name}",
            out=config.out / run_name,
            **common,
            **svi,
        )
        for run_name, name in networks.items()
    ]
    wait(fits)
    draws = (
        {"num_chains": 2, "num_warmup": 10, "num_draws": 10}
        if config.quick
        else {"num_warmup": 200, "num_draws": 300}
    )
    run("mcmc.py", model="Pendulum", set="damping=null", out=config.out / "nuts", **common, **draws)
    names = [*networks, "nuts"]
    wait(
        [
            start("forecast.py", str(config.out / name), num_draws=50 if config.quick else 400)
            for name in names
        ]
    )

    titles = {"vin_sv": "VIN-SV", "vin_so2": "VIN-SO(2)", "nuts": "known law, NUTS"}
    forecasts = {titles[name]: read_result(config.out / name / "forecast.nc") for name in names}
    save_figure(plot_forecast_comparison(forecasts, trajectory=1), config.out / "comparison.png")
    table = scores(config.out, titles)
    table.to_csv(config.out / "scores.csv", index=False)
    print("\nheld-out 20 s (fresh noise of 0.33 included in the targets):\n" + table.to_string(index=False))
    print(f"\nfigures and result.nc files: {config.out} ({time.monotonic() - began:.0f} s)")


def scores(out: Path, titles: dict[str, str]) -> pd.DataFrame:
    """Return one row of held-out scores for each run."""
    rows = []
    for name, title in titles.items():
        table = pd.read_csv(out / name / "scores.csv")
        whole = table[(table["channel"] == "all") & np.isclose(table["end_s"], table["end_s"].max())]
        whole = whole[whole["start_s"] == whole["start_s"].min()].iloc[0]
        rows.append(
            {
                "model": title,
                "rmse": round(whole["rmse"], 3),
                "crps": round(whole["crps"], 3),
                "coverage_90": round(whole["coverage_90"], 3),
                "width_90": round(whole["width_90"], 2),
            }
        )
    return pd.DataFrame(rows)


def start(script: str, *positional: str, **options: object) -> subprocess.Popen[str]:
    """Start another script, one thread each, and print its command line."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "set"]
    flags += ["--set", str(options["set"])] if "set" in options else []
    print(f"$ python inference/{script} {shlex.join([*positional, *flags])}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, str(SCRIPTS / script), *positional, *flags]
    return subprocess.Popen(command, env=environment, text=True)


def wait(processes: list[subprocess.Popen[str]]) -> None:
    """Wait for scripts; stop the rest and this one if any fails or on Ctrl-C."""
    try:
        for process in processes:
            if process.wait() != 0:
                raise RuntimeError(f"{Path(process.args[1]).name} ended with status {process.returncode}")  # type: ignore[index]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()


def run(script: str, *positional: str, **options: object) -> None:
    """Run another script to its end."""
    wait([start(script, *positional, **options)])


if __name__ == "__main__":
    run_script(main, Config, __doc__)
