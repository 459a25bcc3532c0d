"""A real pendulum: fit the first 80 % of a measured swing, forecast the last 20 %, score it.

    python tests/bench/real_pendulum.py --data ../shared/data/schmidt_lipson/real_pend_h_1.txt

Runs inference/svi.py or mcmc.py and forecast.py for every row and writes notebooks/results/real_pendulum.csv;
with --agreement also inference/mcmc.py against svi.py on the first 100 samples (real_pendulum_agreement.csv).
The energy is that of the HNN paper's protocol, H = 2.4 (1 - cos q) + p^2, of the mean forecast against the
measured one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from vinppl.diagnostics import convergence
from vinppl.export import get_group, read_result
from vinppl.scores import forecast_arrays, forecast_scores
from vinppl.trials import write_table

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    "--columns.time=t",
    "--columns.trajectory=trial",
    *("--columns.position", "theta", "--columns.velocity", "omega", "--columns.angle", "theta"),
    *("--columns.names", "trial", "t", "theta", "omega"),
    "--columns.skip-rows=1",
    "--columns.separator=space",
]
DAMPED = ["drag=[0.03,1.5]", "angle_offset=0.1"]
ROWS = {
    "damped pendulum, AR(1) noise, velocity gain": (
        "svi.py",
        "Pendulum",
        [*DAMPED, "noise=ar1", "velocity_gain=0.1", "max_step_size=0.09"],
        ["--num-steps=400"],
    ),
    "damped pendulum, AR(1) noise": ("svi.py", "Pendulum", [*DAMPED, "noise=ar1"], ["--num-steps=400"]),
    "damped pendulum, independent noise": (
        "svi.py",
        "Pendulum",
        [*DAMPED, "noise=gaussian"],
        ["--num-steps=400"],
    ),
    "VIN-VV, neural potential, learned damping": (
        "svi.py",
        "NoisyStates",
        ["damping=[0.03,1.5]", "velocity_gain=0.1", "noise=ar1"],
        ["--window=80", "--num-steps=400"],
    ),
    "damped pendulum, AR(1) noise, velocity gain, NUTS": (
        "mcmc.py",
        "Pendulum",
        [*DAMPED, "noise=ar1", "velocity_gain=0.1", "max_step_size=0.09"],
        [],
    ),
    "VIN-VV, random features, learned damping, NUTS": (
        "mcmc.py",
        "NoisyStates",
        [
            "potential=random_features",
            "damping=[0.03,1.5]",
            "noise=ar1",
            "velocity_gain=0.1",
            "max_step_size=0.09",
        ],
        [],
    ),
}


def main() -> None:
    """Run every row and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "real_pendulum")
    parser.add_argument(
        "--only", type=int, nargs="*", help="rows to run, counted from 0; the others are kept"
    )
    parser.add_argument("--agreement", action="store_true", help="also NUTS against SVI on 100 samples")
    options = parser.parse_args()
    chosen = range(len(ROWS)) if options.only is None else options.only
    table = []
    for index, (title, (name, model, settings, flags)) in enumerate(ROWS.items()):
        out = options.out / f"row_{index}"
        if index in chosen:
            script(name, options.data, out, model, settings, ["--train-fraction=0.8", *flags])
            run(["forecast.py", str(out)])
        if (out / "forecast.nc").exists():
            table.append({"model": title, **scores(out)})
    if chosen:
        write(pd.DataFrame(table), "real_pendulum.csv")
    if options.agreement:
        # Linear damping alone: 100 samples cannot tell it from drag, and the trade-off of the two is curved.
        settings = ["angle_offset=0.1", "noise=ar1", "velocity_gain=0.1"]
        steps = ["--first=100", "--num-steps=500"]
        script("svi.py", options.data, options.out / "svi100", "Pendulum", settings, steps)
        chains = ["--num-chains=4", "--num-warmup=200", "--num-draws=250"]
        script(
            "mcmc.py", options.data, options.out / "nuts100", "Pendulum", settings, ["--first=100", *chains]
        )
        write(agreement(options.out / "svi100", options.out / "nuts100"), "real_pendulum_agreement.csv")


def script(name: str, data: Path, out: Path, model: str, settings: list[str], flags: list[str]) -> None:
    """Run an inference script on the data."""
    common = [f"--data={data}", f"--out={out}", f"--model={model}", "--set", *settings]
    run([name, *common, *COLUMNS, *flags])


def run(command: list[str]) -> None:
    """Run a script of inference/ and stop if it fails."""
    subprocess.run([sys.executable, str(ROOT / "inference" / command[0]), *command[1:]], check=True)


def scores(out: Path) -> dict[str, float]:
    """Return the scores of one run at the held-out samples."""
    result = read_result(out / "forecast.nc")
    arrays = forecast_arrays(result)
    held_out = ~arrays.in_sample[0]
    mean, truth = arrays.obs[:, 0, held_out].mean(0), arrays.measured[0, held_out]
    table = forecast_scores(result, num_bins=1)
    whole = table[table["channel"] == "all"].iloc[0]
    channels = table[table["channel"] != "all"].set_index("channel")
    finished = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        "energy_mse": float(np.mean((energy(mean) - energy(truth)) ** 2)),
        "coordinate_mse": float(np.mean((mean - truth) ** 2)),
        "coverage_90": whole["coverage_90"],
        "coverage_90_theta": channels.loc["theta", "coverage_90"],
        "coverage_90_omega": channels.loc["omega", "coverage_90"],
        "width_90": whole["width_90"],
        "crps": whole["crps"],
        "max_rhat": max_rhat(out / "result.nc"),
        "train_seconds": [line["seconds"] for line in finished if line["event"] == "finished"][-1],
    }


def max_rhat(path: Path) -> float:
    """Return the largest R-hat of a run by NUTS, NaN of one by SVI."""
    result = read_result(path)
    try:
        return convergence(result).max_rhat
    except KeyError:  # no statistics of a sampler
        return math.nan


def energy(state: np.ndarray) -> np.ndarray:
    """Return H = 2.4 (1 - cos q) + p^2 of (q, p), `(*batch, 2)`."""
    return 2.4 * (1 - np.cos(state[..., 0])) + state[..., 1] ** 2


def agreement(svi: Path, nuts: Path) -> pd.DataFrame:
    """Return posterior means and sds of both runs for every scalar site."""
    a, b = (get_group(read_result(path / "result.nc"), "posterior") for path in (svi, nuts))
    rows = []
    for name in a.data_vars:
        x, y = (g[name].values.reshape(g.sizes["chain"] * g.sizes["draw"], -1) for g in (a, b))
        for i in range(x.shape[1]):
            rows.append(
                {
                    "site": f"{name}[{i}]" if x.shape[1] > 1 else str(name),
                    "svi_mean": x[:, i].mean(),
                    "nuts_mean": y[:, i].mean(),
                    "svi_sd": x[:, i].std(),
                    "nuts_sd": y[:, i].std(),
                    "shift_in_sd": (x[:, i].mean() - y[:, i].mean()) / y[:, i].std(),
                }
            )
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, name: str) -> None:
    """Write a table with the command and commit that made it."""
    command = f"python tests/bench/real_pendulum.py {' '.join(sys.argv[1:])}"
    write_table(table, ROOT / "notebooks" / "results" / name, command=command, seeds=[0])
    print(table.to_string())


if __name__ == "__main__":
    main()
