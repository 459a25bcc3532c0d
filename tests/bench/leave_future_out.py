"""Leave-future-out by importance weights, against fitting again before every step.

    python tests/bench/leave_future_out.py --out runs/leave_future_out

Simulated records of a mass on a spring, a pendulum and a Duffing oscillator (2 trajectories of 24 samples,
noise of standard deviation 0.15) are predicted two samples ahead from the 12th on, by NUTS with 3000 draws.

- `steps`; `refits`: how many of them were fitted rather than reached by weights.
- `elpd`, `elpd_exact`: expected log predictive density by weights, and with a fit for every step, in nats.
- `difference` of the two, and its Monte Carlo standard error `error`, as `leave_future_out` states it.
- `seconds`, `seconds_exact`: CPU time.

Every record is kept once it is finished; a stopped run goes on. Writes
notebooks/results/leave_future_out.csv.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vinppl.models
from vinppl.calibration.engines import Engine
from vinppl.calibration.lfo import leave_future_out
from vinppl.fit import MCMCOptions
from vinppl.simulate import simulate
from vinppl.systems import system
from vinppl.trials import Trial, print_progress, run_trials, table, write_table

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"MassSpring": "mass_spring", "Pendulum": "pendulum", "Duffing": "duffing"}
NUM_TIMES, FIRST, HORIZON, NOISE = 24, 12, 2, 0.15


def main() -> None:
    """Run every record and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "leave_future_out")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-draws", type=int, default=1500, help="of each of two chains")
    options = parser.parse_args()
    trials = [
        Trial(f"{model}-{seed}", {"model": model, "seed": seed, "num_draws": options.num_draws})
        for seed in range(options.num_seeds)
        for model in MODELS
    ]
    results = run_trials(trial, trials, options.out, num_workers=0, on_result=print_progress)
    frame = table(results).drop(columns=["trial", "num_draws"])
    print(frame.to_string(index=False, float_format="%.3g"))
    command = f"python tests/bench/leave_future_out.py {' '.join(sys.argv[1:])}".rstrip()
    path = ROOT / "notebooks" / "results" / "leave_future_out.csv"
    write_table(frame, path, command=command, seeds=range(options.num_seeds))


def trial(model: str, seed: int, num_draws: int) -> list[dict[str, Any]]:
    """Predict one record both ways, and return a row of what was found."""
    torch.set_default_dtype(torch.float64)
    sizes: dict[str, Any] = {"num_trajectories": 2, "num_times": NUM_TIMES}
    data, _ = simulate(system(MODELS[model]), noise_scale=NOISE, seed=seed, **sizes)
    built = getattr(vinppl.models, model)(data)
    chains = MCMCOptions(num_chains=2, num_warmup=300, num_draws=num_draws, num_workers=1)
    engine = Engine("nuts", mcmc=chains)
    found, seconds = [], []
    for options in ({"seed": seed}, {"seed": 1000 + seed, "threshold": -math.inf}):
        began = time.process_time()
        found.append(leave_future_out(built, data, engine.posterior, first=FIRST, horizon=HORIZON, **options))
        seconds.append(time.process_time() - began)
    weighted, exact = found
    return [
        {
            "steps": len(exact.pointwise),
            "refits": len(weighted.refits),
            "elpd": weighted.total,
            "elpd_exact": exact.total,
            "difference": weighted.total - exact.total,
            "error": math.hypot(weighted.error, exact.error),
            "seconds": seconds[0],
            "seconds_exact": seconds[1],
        }
    ]


if __name__ == "__main__":
    main()
