"""Priors as the model states them, found by tracing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from vinppl.draws import Draws, latent_sites, learned, prototype, seeded

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["Prior", "describe_distribution", "find_priors", "learned_parameters"]

Array = NDArray[np.float64]

ENDS = (0.05, 0.95)
"""Probabilities of the ends of the interval that is shown."""

MAX_SHOWN = 4
"""Different values of a parameter that are written out; of more only the ends are."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of one latent site.

    Attributes:
        site: its name.
        shape: of one draw, plates first.
        plates: names of the plates that it is repeated over.
        text: the distribution with its parameters, `LogNormal(loc=1.1, scale=1.5)`.
        depends: whether the parameters depend on other latent sites; `text` then has those of one draw.
        low: its 5 % quantile for every entry, shape `shape`; `None` if there is no closed form, or the
            parameters depend on other sites.
        high: its 95 % quantile, likewise.
    """

    site: str
    shape: tuple[int, ...]
    plates: tuple[str, ...]
    text: str
    depends: bool
    low: Array | None
    high: Array | None


def find_priors(
    model: Any, data: Trajectories, draws: Draws, parameters: Mapping[str, Tensor] | None = None
) -> list[Prior]:
    """Return the priors of all latent sites, in the order of the model.

    The model is run twice, with draws from its prior and at one of the posterior; parameters that differ
    depend on other sites.

    Args:
        model: Pyro model of one argument, the data.
        data: the measurements that were fitted.
        draws: latent sites, each `(num_draws, *site)`.
        parameters: learned parameters of the model, unconstrained, by name.
    """
    with learned(model, data, parameters):
        trace = _traced(model, data)
        names = latent_sites(trace)
        shapes = {name: trace.nodes[name]["value"].shape for name in names}
        given = {name: draws[name][0].reshape(shapes[name]) for name in names if name in draws}
        other = _traced(poutine.condition(model, data=given), data)
    return [_prior(name, trace.nodes[name], other.nodes[name]) for name in names]


def _traced(model: Any, data: Trajectories) -> Any:
    """Return a trace of one run on a random stream of its own, with the parameters that are in force."""
    with seeded(0), torch.no_grad():
        return poutine.block(poutine.trace(model).get_trace)(data)


def learned_parameters(model: Any, data: Trajectories) -> dict[str, int]:
    """Return the parameters that the model learns as point estimates, with their numbers of entries."""
    trace = prototype(model, data)
    return {
        name: int(site["value"].numel())
        for name, site in trace.nodes.items()
        if site["type"] == "param" and site["value"].requires_grad
    }


def _prior(name: str, site: Mapping[str, Any], other: Mapping[str, Any]) -> Prior:
    base, again = (_unwrapped(node["fn"]) for node in (site, other))
    depends = any(
        not torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(_parameters(base).values(), _parameters(again).values(), strict=True)
    )
    shape = tuple(site["value"].shape)
    low, high = (None if depends else _quantile(base, p, shape) for p in ENDS)
    frames = sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    plates = tuple(frame.name for frame in frames)
    return Prior(name, shape, plates, describe_distribution(site["fn"]), depends, low, high)


def describe_distribution(distribution: Any) -> str:
    """Return a distribution with its parameters as text; those that repeat one value show it once.

    Example:
        >>> describe_distribution(torch.distributions.Normal(torch.zeros(3), 2.0))
        'Normal(loc=0, scale=2)'
    """
    base = _unwrapped(distribution)
    if type(base) is TransformedDistribution:
        inner = describe_distribution(base.base_dist)
        return " of ".join([*(type(t).__name__ for t in reversed(base.transforms)), inner])
    shown = [f"{name}={_shown(value)}" for name, value in _parameters(base).items()]
    return f"{type(base).__name__}({', '.join(shown)})"


def _unwrapped(distribution: Any) -> Any:
    """Return the distribution inside of those that only say how entries count."""
    while isinstance(distribution, Independent) or type(distribution).__name__ in (
        "ExpandedDistribution",
        "MaskedDistribution",
    ):
        distribution = distribution.base_dist
    return distribution


def _parameters(distribution: Any) -> dict[str, Any]:
    """Return the parameters that a distribution was given, one of each set that say the same."""
    names: Sequence[str] = list(distribution.arg_constraints)
    given = [name for name in names if name in vars(distribution)]
    values = {name: getattr(distribution, name, None) for name in given or names}
    return {name: value for name, value in values.items() if value is not None}


def _shown(value: Any) -> str:
    entries = np.asarray(torch.as_tensor(value).detach().cpu(), dtype=np.float64).ravel()
    different = np.unique(entries)
    if len(different) == 1:
        return f"{different[0]:.4g}"
    if len(entries) <= MAX_SHOWN:
        return f"({', '.join(f'{entry:.4g}' for entry in entries)})"
    if len(different) <= MAX_SHOWN:  # one value for each channel, repeated for every trajectory, say
        return f"({', '.join(f'{entry:.4g}' for entry in dict.fromkeys(entries))})"
    return f"{different[0]:.4g} .. {different[-1]:.4g}"


def _quantile(base: Any, probability: float, shape: tuple[int, ...]) -> Array | None:
    """Return a quantile of every entry, `None` without a closed form."""
    if base.event_shape:
        return None
    try:
        value = base.icdf(torch.tensor(probability, dtype=torch.get_default_dtype()))
    except NotImplementedError:
        return None
    return np.broadcast_to(value.detach().cpu().numpy().astype(np.float64), shape)
