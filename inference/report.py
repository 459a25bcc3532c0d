"""Write a run as one web page: what was learned, how well it converged, and how far it can be trusted.

    python inference/report.py runs/pendulum
    python inference/report.py runs/clip --out clip.html

Reads a folder that svi.py or mcmc.py wrote, with the forecast if forecast.py made one, and writes
RUN/report.html: a summary in plain words with every warning, the data, the model's equations and priors,
convergence, posterior, forecast, uncertainty growth and calibration. Figures are inside of the page; it needs
neither a network nor scripts, and prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import DisallowNone, Positional, arg

from vinppl.cli import run_script
from vinppl.report import write_report


@dataclass(frozen=True)
class Config:
    """Options of a report.

    Attributes:
        run: folder that svi.py or mcmc.py wrote.
        out: file to write; by default report.html in that folder.
        trajectory: which trajectory the figures of the forecast show.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    out: DisallowNone[Path | None] = None
    trajectory: int = 0


def main(config: Config) -> None:
    """Write the page and say where it lies."""
    path = write_report(config.run, config.out, trajectory=config.trajectory)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
