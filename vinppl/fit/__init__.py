"""Fitting: SVI and MCMC on the same models."""

from vinppl.fit.mcmc import MCMCOptions, MCMCProgress, MCMCResult, fit_mcmc
from vinppl.fit.starts import Start, find_start, laplace_covariance, starting_values
from vinppl.fit.svi import SVIOptions, SVIResult, SVIStep, fit_svi

__all__ = [
    "MCMCOptions",
    "MCMCProgress",
    "MCMCResult",
    "SVIOptions",
    "SVIResult",
    "SVIStep",
    "Start",
    "find_start",
    "fit_mcmc",
    "fit_svi",
    "laplace_covariance",
    "starting_values",
]
