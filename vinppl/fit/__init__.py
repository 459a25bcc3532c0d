"""Fitting: SVI and MCMC on the same models, and regression on derivatives for baselines."""

from vinppl.fit.ascent import laplace_covariance
from vinppl.fit.derivatives import DerivativeFit, fit_derivatives
from vinppl.fit.mcmc import MCMCOptions, MCMCProgress, MCMCResult, fit_mcmc
from vinppl.fit.motion import FittedMotion, fit_motion
from vinppl.fit.starts import Start, find_start, fit_point, starting_values
from vinppl.fit.svi import SVIOptions, SVIResult, SVIStep, fit_svi

__all__ = [
    "DerivativeFit",
    "FittedMotion",
    "MCMCOptions",
    "MCMCProgress",
    "MCMCResult",
    "SVIOptions",
    "SVIResult",
    "SVIStep",
    "Start",
    "find_start",
    "fit_derivatives",
    "fit_mcmc",
    "fit_motion",
    "fit_point",
    "fit_svi",
    "laplace_covariance",
    "starting_values",
]
