"""Fit a model to measured trajectories by stochastic variational inference.

    python inference/svi.py --model Pendulum --data pendulum.csv --out runs/pendulum
    python inference/svi.py --model NoisyStates --data pendulum.csv --set integrator=so2 --out runs/vin
    python inference/svi.py --model my_model.py:MyModel --data swing.csv --columns.position theta

A file without a header, with columns apart by spaces (the Schmidt and Lipson pendulum), and the model for it:

    python inference/svi.py --model Pendulum --data real_pend_h_1.txt --out runs/real --train-fraction 0.8 \\
        --columns.separator space --columns.skip-rows 1 --columns.names trial t theta omega \\
        --columns.trajectory trial --columns.time t --columns.position theta --columns.velocity omega \\
        --columns.angle theta \\
        --set drag=[0.03,1.5] angle_offset=0.1 noise=ar1 velocity_gain=0.1 max_step_size=0.09

A video of something that swings (`--video.size`, `--video.frame-rate` and others say how to read it); then
with damping, whose prior has this median and standard deviation of the logarithm:

    python inference/svi.py --model PixelVIN --data clip.mp4 --out runs/clip
    python inference/svi.py --model PixelVIN --data clip.mp4 --out runs/damped --set damping=[0.1,1.0]

Writes OUT/result.nc (open it with arviz.from_netcdf), the log, the loss figure, and a checkpoint; of films
also OUT/periods.csv, the posterior of every clip's period.
Interrupted by Ctrl-C or killed, the same command resumes to the same numbers. Forecast with
inference/forecast.py OUT.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from tyro.conf import DisallowNone, OmitArgPrefixes, arg

from vinppl.cli import DataOptions, VideoOptions, load_data, run_options, run_script
from vinppl.data import ColumnSpec
from vinppl.diagnostics import summary
from vinppl.export import write_result
from vinppl.fit import SVIOptions, SVIStep, fit_svi
from vinppl.loading import build_model
from vinppl.periods import period_lines, posterior_periods
from vinppl.plotting import plot_losses, save_figure
from vinppl.posterior import from_svi
from vinppl.refinement import can_refine, refine
from vinppl.runs import RunFolder


@dataclass(frozen=True)
class Config:
    """Options of an SVI run.

    Attributes:
        model: a model of the suite (Pendulum, MassSpring, Duffing, HenonHeiles, Hierarchical, NoisyStates,
            PixelVIN), or package.module:Name, or path/to/file.py:Name.
        data: CSV, TXT, Parquet or NPZ file of trajectories, or films: a GIF, MP4, AVI, MOV or MKV file, a
            folder of numbered PNG pictures, an NPZ file of frames, or a folder of such.
        out: run folder.
        set: options of the model, for example noise=ar1 damping=[0.1,1.0].
        svi: how to fit.
        columns: which column is what; by default time, trajectory, q and v (or q0, q1, .. and v0, v1, ..).
        video: how to read films.
        select: which measurements to use.
        num_draws: draws from the fitted guide that result.nc holds.
        refine: whether importance sampling puts the guide's draws right, for models of states fitted to whole
            trajectories, by guides with an encoder or of few numbers. Where that cannot be trusted result.nc
            keeps the guide's own draws.
        overwrite: discard the run that OUT holds.
    """

    model: str
    data: Path
    out: Path = Path("runs/svi")
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    svi: DisallowNone[OmitArgPrefixes[SVIOptions]] = field(default_factory=SVIOptions)
    columns: DisallowNone[ColumnSpec] = field(default_factory=ColumnSpec)
    video: DisallowNone[VideoOptions] = field(default_factory=VideoOptions)
    select: DisallowNone[OmitArgPrefixes[DataOptions]] = field(default_factory=DataOptions)
    num_draws: int = 1000
    refine: bool = True
    overwrite: bool = False


PERIOD_DRAWS = 200
"""Draws at most that periods are computed from."""


def main(config: Config) -> None:
    """Fit, and write the run folder."""
    train, _ = load_data(config.data, config.columns, config.select, config.video)
    model = build_model(config.model, train, config.set)
    svi = config.svi.for_model(model)
    folder = RunFolder(config.out)
    options = run_options("svi", config)
    free = ("num_draws", "refine", "svi.checkpoint_every")
    resuming = folder.start(options, data=train.fingerprint(), free=free, overwrite=config.overwrite)
    print(f"{config.model} on {train}{' (resuming)' if resuming else ''}")

    with tqdm(total=svi.schedule[0], unit="step", desc="SVI") as bar:

        def on_step(step: SVIStep) -> None:
            bar.update(step.step - bar.n)
            if step.step % svi.check_every == 0:
                bar.set_postfix(loss=f"{step.smoothed:.2f}", best=f"{step.best:.2f}")
                folder.log("step", **dataclasses.asdict(step))

        result = fit_svi(model, train, svi, checkpoint=folder.checkpoint / "svi.pt", on_step=on_step)

    attrs = {"model": config.model, "inference": "svi", "options": json.dumps(options)}
    draws = None  # those of the guide
    if config.refine and can_refine(result, train):
        found = refine(
            model,
            result.sample(1000, seed=svi.seed),
            train,
            num_draws=config.num_draws,
            seed=svi.seed,
            parameters=result.parameters,
        )
        attrs |= {"refinement": found.verdict, "refined": "yes" if found.is_reliable else "no"}
        draws = found.draws if found.is_reliable else None
        print(f"importance sampling from the guide: {found.verdict}")
    posterior = from_svi(result, num_draws=config.num_draws, draws=draws, attrs=attrs, seed=svi.seed)
    write_result(posterior, folder.result)
    save_figure(plot_losses(result.losses, result.best_step), folder.path / "loss.png")
    folder.log(
        "finished", best_loss=result.best_loss, best_step=result.best_step, seconds=round(result.seconds, 1)
    )
    ending = f"{'stopped early' if result.stopped_early else 'ran all steps'}, {result.seconds:.0f} s"
    print(summary(posterior).to_string(na_rep=""))
    if train.image_shape is not None and hasattr(model, "run"):
        draws = result.sample(min(config.num_draws, PERIOD_DRAWS), data=train, seed=svi.seed)
        periods = posterior_periods(model, draws, train)
        periods.to_csv(folder.path / "periods.csv", index=False)
        print("\n".join(period_lines(periods)))
    print(f"negative ELBO {result.best_loss:.2f} nats at step {result.best_step} ({ending})")
    print(f"posterior: {folder.result}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
