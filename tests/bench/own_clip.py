"""A clip of one's own, filmed ever worse: what is left of the period and of the forecast.

    python tests/bench/own_clip.py --out runs/own_clip

Ten films of pendulums, 6 s at 10 Hz, 28 x 28 grey pixels, are taken by a clean camera, by one that blurs
(1 pixel), adds noise (0.1 of the grey levels), looks past the middle (2 pixels down, 1 to the left), or
shakes (1 pixel a frame), and by one that does all of it. `PixelVIN` is fitted by default options. Ten new
films by the same camera are forecast from their first second.

- `period_error`, `period_error_worst`: deviation of the posterior median from the true period of the fitted
  films, per cent: median and largest over the films; `complete`: share of the films that have a period.
- `coverage`: share of the true periods inside of the 90 % intervals.
- `error_1s`, `error_5s`: RMSE of forecast frames that long after the first against what a clean camera in
  the same place sees, as a share of that of the mean training frame; 1 is no better than a still picture.
- `noise_scale`: posterior mean; `smallest_sample`: least effective size of the new films' initial states.

Every condition is kept once it is finished; a stopped run goes on. Writes notebooks/results/own_clip.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.film_forecast import forecast_films
from vinppl.fit import SVIOptions, fit_svi
from vinppl.models import PixelVIN, PixelVINConfig
from vinppl.periods import path_periods, posterior_periods
from vinppl.render import degrade, simulate_clips
from vinppl.state import Trajectory
from vinppl.trials import Trial, print_progress, run_trials, table, write_table

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIPS, NUM_TIMES, CONTEXT = 10, 61, 10
TEST_SEED = 10_000
HORIZONS = {"1s": 10, "5s": 50}
CAMERAS: dict[str, dict[str, Any]] = {
    "clean": {},
    "blur": {"blur": 1.0},
    "noise": {"noise": 0.1},
    "offset": {"offset": [2.0, -1.0]},
    "shake": {"shake": 1.0},
    "all": {"blur": 1.0, "noise": 0.1, "offset": [2.0, -1.0], "shake": 1.0},
}


def main() -> None:
    """Run every condition and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "own_clip")
    parser.add_argument("--only", nargs="*", choices=list(CAMERAS), default=list(CAMERAS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small networks and few steps, to try it")
    options = parser.parse_args()
    trials = [
        Trial(f"{name}-{options.seed}", {"camera": name, "seed": options.seed, "quick": options.quick})
        for name in options.only
    ]
    results = run_trials(trial, trials, options.out, num_workers=0, on_result=print_progress)
    frame = table(results).drop(columns=["trial", "quick"], errors="ignore")
    print(frame.to_string(float_format="%.3g"))
    if not options.quick:
        command = f"python tests/bench/own_clip.py {' '.join(sys.argv[1:])}".rstrip()
        path = ROOT / "notebooks" / "results" / "own_clip.csv"
        write_table(frame, path, command=command, seeds=[options.seed])


def trial(camera: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Fit the films of one camera, and return a row of what was found."""
    torch.set_default_dtype(torch.float32)
    data, _, _ = filmed(camera, seed, num_times=NUM_TIMES)
    new, clean, _ = filmed(camera, TEST_SEED + seed, num_times=NUM_TIMES)
    _, _, long = filmed("clean", seed, num_times=4 * (NUM_TIMES - 1) + 1)
    pyro.clear_param_store()
    config = PixelVINConfig(num_taught=100, hidden_sizes=(32,)) if quick else PixelVINConfig()
    began = time.process_time()
    result = fit_svi(PixelVIN(data, config), data, SVIOptions(seed=seed))
    seconds = time.process_time() - began
    draws = result.sample(200, data=data, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few effective draws show in the scores
        found = forecast_films(
            result.model,
            result.guide,
            new,
            trained=data,
            shared=draws,
            num_context=CONTEXT,
            num_draws=64,
            seed=seed,
        )
    levels = torch.stack([found.levels(n) for n in range(NUM_CLIPS)])
    ratio = (rmse(levels, clean) / rmse(found.background, clean)).tolist()
    row = {**periods(posterior_periods(result.model, draws, data), long)}
    row |= {f"error_{name}": ratio[index] for name, index in HORIZONS.items()}
    row |= {"noise_scale": float(draws["noise_scale"].mean()), "train_seconds": seconds}
    row["smallest_sample"] = float(found.effective_sizes.min())
    return [row]


def filmed(camera: str, seed: int, *, num_times: int) -> tuple[Trajectories, Tensor, Trajectory]:
    """Return films as a camera takes them, frames of a clean one in its place, and the true path."""
    films, path = simulate_clips(
        "pendulum", num_clips=NUM_CLIPS, num_times=num_times, seed=seed, levels="grey"
    )
    how = CAMERAS[camera]
    taken = Trajectories.from_frames(degrade(films.frames, **how, seed=seed), films.times)
    clean = degrade(films.frames, offset=tuple(how.get("offset", (0.0, 0.0))))
    return taken, clean.flatten(-2), path


def rmse(levels: Tensor, frames: Tensor) -> Tensor:
    """Return the root of the summed squares of frames, mean over clips, `(time,)`."""
    return (levels - frames).square().sum(-1).sqrt().mean(0)


def periods(found: Any, path: Trajectory) -> dict[str, float]:
    """Compare posterior periods with those of the true path, followed as long."""
    truth = path_periods(path.q[..., 0], path.time, angle=True).numpy()
    error = 100 * np.abs(found["median"] / truth - 1)
    covered = (found["5%"] <= truth) & (truth <= found["95%"])
    return {
        "period_error": float(np.nanmedian(error)),
        "period_error_worst": float(np.nanmax(error)),
        "complete": float((found["complete"] > 0.5).mean()),
        "coverage": float(covered.mean()),
    }


if __name__ == "__main__":
    main()
