"""Truth and measurements, drawn together from a model's prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from vinppl._checks import require
from vinppl.draws import (
    Draws,
    collect,
    latent_sites,
    learned,
    plate_nesting,
    prototype,
    seeded,
    trace_batch,
)
from vinppl.rollout import without_energy

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["FAR", "PriorSimulation", "cut_off", "simulate_from_prior"]

BATCH = 16
"""Draws from the prior that are tried at once."""

FAR = 1e6
"""Size, in typical sizes of a channel, beyond which a value later than those checked is cut off."""


class PriorSimulation(NamedTuple):
    """One draw from the joint distribution of latent sites and measurements.

    Attributes:
        truth: latent sites as draw arrays of one draw, each `(1, *site)`.
        data: the measurements.
        num_rejected: draws before it whose measurements were refused.
    """

    truth: Draws
    data: Trajectories
    num_rejected: int


def simulate_from_prior(
    model: Any,
    data_like: Trajectories,
    seed: int,
    *,
    num_checked: int | None = None,
    max_size: float = 100.0,
    max_attempts: int = 10_000,
    parameters: Mapping[str, Tensor] | None = None,
) -> PriorSimulation:
    """Draw latent sites from the prior, and measurements from the model with those values.

    The model keeps the priors that it was built with, whatever the simulated data are like: those of a
    model that was built on `data_like` have that one's scales.

    A vague prior holds systems that run away. Draws are repeated until all measurements are finite and of no
    more than `max_size` times the typical size. This restricts which data sets are looked at, and by the data
    alone: given such a data set, the posterior is the model's own, and a calibrated one stays so. (A
    restriction of parameters would change the prior.)

    Args:
        model: Pyro model of one argument, the data, with observed site `obs`.
        data_like: times, mask, channels and drive of the measurements; its values give the typical sizes.
        seed: of the draw.
        num_checked: samples of each trajectory that the restriction looks at; all by default. Give the number
            that will be fitted where later ones are kept to score forecasts. Later values that are not finite
            or beyond a million typical sizes are set to that bound: do the same to forecasts.
        max_size: largest value allowed, in root mean squares of the channel in `data_like`.
        max_attempts: draws after which to give up.
        parameters: learned parameters of the model, unconstrained, by name.

    Raises:
        ValueError: if the model has a `pyro.factor` (it then has no prior to draw from) or no site `obs`, or
            if none of `max_attempts` draws is accepted.
    """
    trace = prototype(model, data_like)
    _check_generative(trace, data_like)
    names, nesting = latent_sites(trace), plate_nesting(trace)
    scale = data_like.channel_rms.clamp_min(1e-12)
    counts = data_like.num_times if num_checked is None else num_checked
    free, tried = poutine.uncondition(model), 0
    with (
        learned(model, data_like, parameters),
        seeded(seed),
        torch.no_grad(),
        without_energy(),
        pyro.validation_enabled(False),  # a path that ran away is no error here
    ):
        while tried < max_attempts:
            ran = trace_batch(free, (data_like,), BATCH, nesting)
            drawn = collect(ran, [*names, "obs"], BATCH, nesting)
            values = drawn.pop("obs")
            kept = _acceptable(values[:, :, :counts], data_like.mask[:, :counts], max_size * scale)
            if bool(kept.any()):
                index = int(kept.nonzero()[0, 0])
                truth = {name: value[index : index + 1].clone() for name, value in drawn.items()}
                return PriorSimulation(truth, _measured(data_like, values[index], FAR * scale), tried + index)
            tried += BATCH
    raise ValueError(
        f"none of {tried} draws from the prior gave measurements of at most {max_size:g} typical sizes. "
        "Tighten the priors of the model, shorten the record, or raise max_size."
    )


def _check_generative(trace: Any, data: Trajectories) -> None:
    """Raise an error unless measurements can be drawn from the traced model."""
    factors = [name for name, site in trace.nodes.items() if isinstance(site.get("fn"), Unit)]
    require(
        not factors,
        "a model must be a product of priors and likelihoods to be simulated",
        f"pyro.factor at {', '.join(factors)}",
    )
    site = trace.nodes.get("obs")
    found = site is not None and site["value"].shape[-3:] == data.values.shape
    require(found, "the model must observe the measurements at a site 'obs'", f"{list(trace.nodes)}")


def _acceptable(values: Tensor, mask: Tensor, bound: Tensor) -> Tensor:
    """Return which draws `(draw, trajectory, time, channel)` have only values within the bound."""
    inside = torch.isfinite(values) & (values.abs() <= bound)
    return (inside | ~mask).flatten(1).all(1)


def _measured(data_like: Trajectories, values: Tensor, bound: Tensor) -> Trajectories:
    """Return the data with these values where it has measurements."""
    return dataclasses.replace(data_like, values=torch.where(data_like.mask, cut_off(values, bound), 0.0))


def cut_off(values: Tensor, bound: Tensor) -> Tensor:
    """Return values `(*batch, channel)` of which those beyond `bound` are moved to it, NaN to the upper one.

    Truths and forecasts that are treated alike keep their ranks. Those at the bound are set apart at random,
    by a millionth of it, so that a truth that ran away is any one among draws that did, not the middle one.
    """
    inside = torch.minimum(torch.maximum(torch.where(values.isnan(), bound, values), -bound), bound)
    return torch.where(inside.abs() < bound, inside, inside * (1 + 1e-6 * torch.rand_like(inside)))
