"""Posteriors of finished runs, as cross-validation and posterior checks take them."""

from __future__ import annotations

from vinppl._checks import require
from vinppl.calibration.engines import ENGINES, Engine
from vinppl.calibration.weighted import WeightedDraws, corrected_draws, refined_draws, stored_draws
from vinppl.cli import LoadedRun, rebuild
from vinppl.diagnostics import MAX_SHAPE
from vinppl.fit import MCMCOptions, SVIOptions, fit_svi
from vinppl.refinement import can_refine

__all__ = ["engine_of_run", "posterior_of_run"]


def posterior_of_run(
    run: LoadedRun, *, num_draws: int = 2000, seed: int = 0
) -> tuple[WeightedDraws, tuple[str, ...]]:
    """Return the posterior of a run: the draws of NUTS, or those of a guide put right by importance sampling.

    Args:
        run: a folder that `svi.py` or `mcmc.py` wrote.
        num_draws: draws of a guide.
        seed: of these draws.

    Returns:
        The draws, and what makes them doubtful, in words.

    Raises:
        ValueError: if the guide is a point.
    """
    if run.options["kind"] == "mcmc":
        return stored_draws(run.posterior, run.train), ()
    # A finished run resumes to its end at once, with its guide.
    options = rebuild(SVIOptions, run.options["svi"])
    result = fit_svi(run.model, run.train, options, checkpoint=run.folder.checkpoint / "svi.pt")
    if can_refine(result, run.train):
        posterior = refined_draws(result, num_draws, seed=seed)[1]
    else:
        posterior = corrected_draws(result, num_draws, seed=seed)
    if posterior.shape <= MAX_SHAPE:
        return posterior, ()
    far = "the guide is too far from the posterior to be put right by weights"
    return posterior, (f"{far} (k = {posterior.shape:.2g})",)


def engine_of_run(run: LoadedRun, *, num_draws: int = 2000) -> Engine:
    """Return the engine of a run with its options, to fit its model to other data.

    Args:
        run: a folder that `svi.py` or `mcmc.py` wrote.
        num_draws: draws of a guide.

    Raises:
        ValueError: if the guide is a point.
    """
    if run.options["kind"] == "mcmc":
        return Engine("nuts", mcmc=rebuild(MCMCOptions, run.options["mcmc"]), min_ess=0.0)
    svi = rebuild(SVIOptions, run.options["svi"]).for_model(run.model)
    require(svi.guide in ENGINES, f"the guide of {run.folder.path} must be a distribution", svi.guide)
    return Engine(svi.guide, svi=svi, num_draws=num_draws)
