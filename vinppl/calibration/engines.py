"""Engines of inference under one name each, for checks that fit many data sets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from pyro.nn import PyroModule

from vinppl._checks import require, require_choice
from vinppl.calibration.weighted import WeightedDraws, chain_draws, corrected_draws, refined_draws
from vinppl.draws import prototype
from vinppl.errors import ConvergenceWarning, NumericalWarning
from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
from vinppl.refinement import can_refine

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["ENGINES", "Engine", "EngineName", "fix_parameters", "point_parameters"]

EngineName = Literal["nuts", "full_rank", "mean_field", "low_rank", "amortised", "amortised_mean_field"]
"""`nuts`: several chains; all others: SVI with that guide."""

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

NUTS = MCMCOptions(num_chains=2, num_warmup=300, num_draws=400, num_workers=1)
"""Options for many small fits: as many draws as ranks need."""


def few_steps(name: EngineName) -> SVIOptions:
    """Return options of SVI for many small fits, which start at a mode with the curvature there.

    The coordinates of a full-rank guide have the posterior's scale, so that it can learn fast: in few steps
    it comes near the best normal even where that is far from the mode (weights of random features).
    """
    rate = 0.1 if name == "full_rank" else None
    return SVIOptions(num_steps=150, learning_rate=rate, num_particles=16, check_every=50)


@dataclass(frozen=True)
class Engine:
    """A fit of one data set: call it with a model, data and a seed.

    SVI gives two posteriors: the guide's draws as they are, under the engine's name, and put right. Where
    `inference/svi.py` refines them (`vinppl.refinement.can_refine`), these are refined ones, under that name
    with `_refined`; elsewhere the same draws with importance weights, under it with `_psis`.

    Attributes:
        name: see `EngineName`.
        mcmc: options of NUTS.
        svi: options of SVI, by default `few_steps`; the guide is set by the name.
        num_draws: draws from a guide.
        min_ess: NUTS is run again with twice the draws, twice at most, where the effective sample size of a
            latent scalar is smaller.
    """

    name: EngineName = "nuts"
    mcmc: MCMCOptions = NUTS
    svi: SVIOptions | None = None
    num_draws: int = 2000
    min_ess: float = 63.0

    def __post_init__(self) -> None:
        require_choice("name", self.name, ENGINES)
        require(self.num_draws >= 1, "num_draws must be at least 1", self.num_draws)

    def __call__(self, model: Any, data: Trajectories, seed: int) -> Mapping[str, WeightedDraws]:
        """Return the posteriors of one fit by their names, the best last."""
        with warnings.catch_warnings():
            # Draws say themselves what did not converge: by `problem`, or the shape of their weights.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", NumericalWarning)
            if self.name == "nuts":
                return {"nuts": self._chains(model, data, seed)}
            options = replace(self.svi or few_steps(self.name), guide=self.name, seed=seed)
            result = fit_svi(model, data, options)
            if can_refine(result, data):
                raw, refined = refined_draws(result, self.num_draws, seed=seed)
                return {self.name: raw, f"{self.name}_refined": refined}
            weighted = corrected_draws(result, self.num_draws, seed=seed)
            return {self.name: weighted.unweighted(), f"{self.name}_psis": weighted}

    def posterior(self, model: Any, data: Trajectories, seed: int) -> WeightedDraws:
        """Return the best posterior of one fit: that of NUTS, or a guide's draws put right."""
        return list(self(model, data, seed).values())[-1]

    def _chains(self, model: Any, data: Trajectories, seed: int) -> WeightedDraws:
        """Return enough draws of NUTS, as far as two longer runs give them."""
        options = replace(self.mcmc, seed=seed)
        for remaining in (2, 1, 0):
            found = chain_draws(fit_mcmc(model, data, options))
            if found.effective_size >= self.min_ess or not remaining:
                break
            options = replace(options, num_draws=2 * options.num_draws)
        return found


def point_parameters(model: Any, data: Trajectories) -> list[str]:
    """Return the names of a model's learned parameters: SVI fits them as points, NUTS holds them fixed."""
    trace = prototype(model, data)
    return [name for name, site in trace.nodes.items() if site["type"] == "param"]


def fix_parameters(model: torch.nn.Module) -> None:
    """Make constants of a model's learned parameters, with the values they have, for every engine.

    Parameters without a prior cannot be simulated. What can be checked is the posterior of the latent sites
    given them.
    """
    for module in model.modules():
        own = [name for name, value in module._parameters.items() if value is not None]
        constrained = list(module._pyro_params) if isinstance(module, PyroModule) else []
        stored = {f"{name}_unconstrained" for name in constrained}
        for name in [*constrained, *(name for name in own if name not in stored)]:
            value = getattr(module, name).detach().clone()
            delattr(module, name)
            module.register_buffer(name, value)
