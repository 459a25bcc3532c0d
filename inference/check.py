"""Does a fitted model make data like those it was fitted to, and what did it learn from them?

    python inference/check.py runs/pendulum

Posterior predictive checks with quantities of mechanics (residuals and their memory, period, drift of
energy), the posterior beside the prior, and which measured values the fit leans on most (PSIS-LOO). Draws of
a variational guide are weighted to be those of the posterior, where that is possible.

Writes RUN/checks.csv, RUN/learned.csv, RUN/checks.png and RUN/posterior_vs_prior.png, and says what is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vinppl._checks import require
from vinppl.calibration.checks import posterior_checks
from vinppl.calibration.learning import learned_from_data
from vinppl.calibration.loo import leave_one_out
from vinppl.calibration.runs import posterior_of_run
from vinppl.calibration_plots import plot_ppc
from vinppl.cli import load_run, run_script
from vinppl.plotting import plot_posterior_vs_prior, save_figure


@dataclass(frozen=True)
class Config:
    """Options of the checks.

    Attributes:
        run: folder that svi.py or mcmc.py wrote.
        num_draws: posterior draws that data are replicated from.
        seed: of draws and replications.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    num_draws: int = 500
    seed: int = 0


def main(config: Config) -> None:
    """Check the run and write what was found."""
    run = load_run(config.run)
    require(run.train.image_shape is None, "checks are of measured states", "films")
    posterior, notes = posterior_of_run(run, seed=config.seed)
    if notes:
        posterior, notes = posterior.unweighted(), (*notes, "its draws are used as they are")
    found = posterior_checks(run.model, run.train, posterior, num_draws=config.num_draws, seed=config.seed)
    learned = learned_from_data(run.posterior)
    elpd = leave_one_out(run.model, run.train, posterior)
    found.table.to_csv(run.folder.path / "checks.csv", index_label="quantity")
    learned.to_csv(run.folder.path / "learned.csv", index_label="parameter")
    save_figure(plot_ppc(found.table, found.differences), run.folder.path / "checks.png")
    save_figure(plot_posterior_vs_prior(run.posterior), run.folder.path / "posterior_vs_prior.png")
    print(found.table.to_string(float_format="%.3g"))
    print(learned.to_string(float_format="%.3g"))
    if notes:
        print(": ".join(notes))
    places = [elpd.labels[i] for i in elpd.shapes.argsort()[::-1][: min(5, elpd.num_influential)]]
    where = "; ".join(f"{name} at {when:g}, {channel}" for name, when, channel in places)
    count = f"{elpd.num_influential} of {len(elpd.shapes)}"
    print(
        f"{count} values are too influential to be left out by weights (k > 0.7){': ' * bool(where)}{where}"
    )


if __name__ == "__main__":
    run_script(main, Config, __doc__)
