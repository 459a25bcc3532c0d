"""Draw from the posterior of a model by NUTS, several chains in parallel.

    python inference/mcmc.py --model Pendulum --data pendulum.csv --out runs/pendulum-nuts
    python inference/mcmc.py --model MassSpring --data spring.csv --num-chains 2 --num-draws 500

Writes OUT/result.nc (open it with arviz.from_netcdf), the log and checkpoints, and says whether the chains
converged. Interrupted by Ctrl-C or killed, the same command resumes to the same draws; with a larger
--num-draws it draws on to more of them. --engine pyro goes on at the draw where it was; --engine nutpie, the
fast one for models that compile, keeps finished chains and begins the others again. Forecast with
inference/forecast.py OUT.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from tyro.conf import DisallowNone, OmitArgPrefixes, arg

from vinppl.cli import DataOptions, VideoOptions, load_data, run_options, run_script
from vinppl.data import ColumnSpec
from vinppl.diagnostics import convergence, summary
from vinppl.errors import ConvergenceWarning
from vinppl.export import write_result
from vinppl.fit import MCMCOptions, MCMCProgress, fit_mcmc
from vinppl.loading import build_model
from vinppl.posterior import from_mcmc
from vinppl.runs import RunFolder


@dataclass(frozen=True)
class Config:
    """Options of a NUTS run.

    Attributes:
        model: a model of the suite (Pendulum, MassSpring, Duffing, HenonHeiles, Hierarchical), or
            package.module:Name, or path/to/file.py:Name.
        data: CSV, TXT, Parquet or NPZ file of trajectories, or films: a GIF, MP4, AVI, MOV or MKV file, a
            folder of numbered PNG pictures, an NPZ file of frames, or a folder of such.
        out: run folder.
        set: options of the model, for example noise=ar1 damping=[0.1,1.0].
        mcmc: how to sample.
        columns: which column is what; by default time, trajectory, q and v (or q0, q1, .. and v0, v1, ..).
        video: how to read films.
        select: which measurements to use.
        overwrite: discard the run that OUT holds.
    """

    model: str
    data: Path
    out: Path = Path("runs/mcmc")
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    mcmc: DisallowNone[OmitArgPrefixes[MCMCOptions]] = field(default_factory=MCMCOptions)
    columns: DisallowNone[ColumnSpec] = field(default_factory=ColumnSpec)
    video: DisallowNone[VideoOptions] = field(default_factory=VideoOptions)
    select: DisallowNone[OmitArgPrefixes[DataOptions]] = field(default_factory=DataOptions)
    overwrite: bool = False


def main(config: Config) -> None:
    """Sample, judge, and write the run folder."""
    train, _ = load_data(config.data, config.columns, config.select, config.video)
    model = build_model(config.model, train, config.set)
    folder = RunFolder(config.out)
    options = run_options("mcmc", config)
    free = tuple(f"mcmc.{name}" for name in ("num_chains", "num_draws", "num_workers", "checkpoint_every"))
    resuming = folder.start(options, data=train.fingerprint(), free=free, overwrite=config.overwrite)
    print(f"{config.model} on {train}{' (resuming)' if resuming else ''}")

    per_chain = config.mcmc.num_warmup + config.mcmc.num_draws
    counts, divergences = [0] * config.mcmc.num_chains, [0] * config.mcmc.num_chains
    bar = tqdm(total=per_chain * config.mcmc.num_chains, unit="draw", desc="NUTS")
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not converged", ConvergenceWarning)  # the verdict is printed below

        def on_draw(progress: MCMCProgress) -> None:
            before, counts[progress.chain] = counts[progress.chain], progress.count
            bar.update(max(0, progress.count - before))  # a refinement counts from the start again
            divergences[progress.chain] = progress.divergences
            if progress.count // 50 > before // 50:
                bar.set_postfix(
                    accept=f"{progress.stats.acceptance_rate:.2f}",
                    steps=progress.stats.n_steps,
                    divergences=sum(divergences),
                )
                folder.log("draws", chain=progress.chain, count=progress.count, **progress.stats._asdict())

        began = time.monotonic()
        result = fit_mcmc(model, train, config.mcmc, checkpoint=folder.checkpoint, on_draw=on_draw)
        seconds = time.monotonic() - began

    attrs = {
        "model": config.model,
        "inference": "nuts",
        "engine": result.engine,
        "options": json.dumps(options),
    }
    posterior = from_mcmc(result, attrs=attrs, seed=config.mcmc.seed)
    write_result(posterior, folder.result)
    verdict = convergence(posterior)
    folder.log("finished", converged=verdict.converged, verdict=verdict.verdict, seconds=round(seconds, 1))
    print(summary(posterior).to_string(na_rep=""))
    print(verdict.verdict)
    print(f"posterior: {folder.result} ({result.engine}, {seconds:.0f} s)")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
