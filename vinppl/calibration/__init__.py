"""Is the uncertainty right, and which model do the data support?

    posterior = chain_draws(fit_mcmc(model, data))
    print(posterior_checks(model, data, posterior).table)
    print(rank_models({"one": leave_one_out(model, data, posterior), "other": ...}))

ranks        simulation-based calibration (SBC): verdicts on the ranks of many simulations
envelopes    between which the distribution of uniform ranks stays
prior        truth and data from a model's prior
sbc          one simulation, fitted, ranked and forecast
engines      NUTS and SVI under one name each
predictive   coverage, scores and PIT of forecasts by horizon
checks       what the model cannot reproduce of the data
learning     posterior beside prior: what the data taught
weighted     posterior draws, and draws of a guide put right by importance weights
loo          expected log predictive density by PSIS-LOO, of points or whole trajectories
integrated   the likelihood of whole trajectories
lfo          the same of forecasts, by leaving the future out
ranking      models by either, with standard errors and warnings in plain words
runs         posteriors of finished runs
adapters     what is taken from ArviZ

Figures are in `vinppl.calibration_plots`.
"""

from vinppl.calibration.checks import PosteriorChecks, posterior_checks
from vinppl.calibration.engines import ENGINES, Engine, fix_parameters, point_parameters
from vinppl.calibration.envelopes import rank_counts, rank_envelope
from vinppl.calibration.learning import learned_from_data
from vinppl.calibration.lfo import leave_future_out
from vinppl.calibration.loo import Elpd, leave_one_out, leave_one_out_of_result, weighted_loo
from vinppl.calibration.predictive import average_scores, horizon_scores
from vinppl.calibration.prior import PriorSimulation, simulate_from_prior
from vinppl.calibration.ranking import rank_models
from vinppl.calibration.ranks import judge_ranks, rank_statistic, rank_verdict
from vinppl.calibration.sbc import RankedFit, calibration_run, ranked_quantities
from vinppl.calibration.weighted import (
    WeightedDraws,
    chain_draws,
    corrected_draws,
    refined_draws,
    stored_draws,
)

__all__ = [
    "ENGINES",
    "Elpd",
    "Engine",
    "PosteriorChecks",
    "PriorSimulation",
    "RankedFit",
    "WeightedDraws",
    "average_scores",
    "calibration_run",
    "chain_draws",
    "corrected_draws",
    "fix_parameters",
    "horizon_scores",
    "judge_ranks",
    "learned_from_data",
    "leave_future_out",
    "leave_one_out",
    "leave_one_out_of_result",
    "point_parameters",
    "posterior_checks",
    "rank_counts",
    "rank_envelope",
    "rank_models",
    "rank_statistic",
    "rank_verdict",
    "ranked_quantities",
    "refined_draws",
    "simulate_from_prior",
    "stored_draws",
    "weighted_loo",
]
