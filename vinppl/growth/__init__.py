"""Uncertainty growth: how wide a forecast is at every horizon, what makes it so, and by which law it grows.

    growth = uncertainty_growth(model, draws, data, extend(data, horizon=20.0))
    print(growth_verdict(growth))
    vinppl.growth_plots.plot_uncertainty_growth(growth)

sites        which part of the uncertainty a latent site belongs to
resampling   sites given others, as the posterior says
shapley      a variance shared out among groups of dependent sites
laws         constant, linear or exponential growth of distances, and its rate
energy       whether every draw conserves its own energy
runs         the model run over single trajectories
paths        forecasts of them from all draws
fields       states, energy and measurements as one array
sharing      their variance shared out
compute      all of it, from draws
dataset      what is stored
report       in words, and as a table
"""

from vinppl.growth.compute import uncertainty_growth
from vinppl.growth.dataset import GROUP
from vinppl.growth.energy import EnergyCheck, check_energy
from vinppl.growth.laws import LAWS, GrowthLaw, Separations, fit_growth_law, separations
from vinppl.growth.report import WORDS, compare_growth, growth_of, growth_verdict, mean_growth
from vinppl.growth.resampling import MIN_DRAWS, ConditionalResampler
from vinppl.growth.shapley import SharedVariance, shapley_values, share_variance
from vinppl.growth.sites import PARTS, part_of

__all__ = [
    "GROUP",
    "LAWS",
    "MIN_DRAWS",
    "PARTS",
    "WORDS",
    "ConditionalResampler",
    "EnergyCheck",
    "GrowthLaw",
    "Separations",
    "SharedVariance",
    "check_energy",
    "compare_growth",
    "fit_growth_law",
    "growth_of",
    "growth_verdict",
    "mean_growth",
    "part_of",
    "separations",
    "shapley_values",
    "share_variance",
    "uncertainty_growth",
]
