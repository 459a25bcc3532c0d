"""From draws to ArviZ: the groups of a result, for NUTS, SVI and prior draws alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from vinppl.draws import (
    Draws,
    collect,
    latent_sites,
    learned,
    plate_nesting,
    pointwise_log_likelihood,
    predict,
    prototype,
    seeded,
    trace_batch,
)
from vinppl.export import to_arviz

if TYPE_CHECKING:
    from vinppl.data import Trajectories
    from vinppl.fit import MCMCResult, SVIResult

__all__ = ["SITE_DIMS", "channel_attributes", "dataset_coords", "from_mcmc", "from_svi", "prior_draws"]

SITE_DIMS: dict[str, tuple[str, ...]] = {
    "initial_position": ("coordinate",),
    "initial_velocity": ("coordinate",),
    "position": ("time", "latent"),
    "noise_scale": ("channel",),
    "noise_population": ("channel",),
    "noise_deviation": ("channel",),
    "correlation_time": ("channel",),
    "states": ("time", "state"),
    "energy": ("time",),
    "obs": ("time", "channel"),
}
"""Names of the event dimensions of the suite's sites; plates bring their own names."""


def from_mcmc(result: MCMCResult, *, attrs: Mapping[str, str] | None = None, seed: int = 0) -> Any:
    """Return the ArviZ object of a NUTS run.

    Groups: posterior, sample_stats, log_likelihood, posterior_predictive, prior, observed_data and
    constant_data; see `vinppl.export` for their layout.

    Args:
        result: draws and statistics.
        attrs: what else to store as attributes.
        seed: of the predictive draws.
    """
    chains, draws = next(iter(result.draws.values())).shape[:2]
    stats = {name: value.numpy() for name, value in result.stats.items()}
    return _assemble(result.model, result.data, result.flat(), (chains, draws), stats, attrs, seed)


def from_svi(
    result: SVIResult,
    *,
    num_draws: int = 1000,
    draws: Draws | None = None,
    attrs: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Any:
    """Return the ArviZ object of an SVI run: independent draws from the guide, as one chain.

    Args:
        result: the fitted guide.
        num_draws: draws to take.
        draws: other draws to store instead, such as those of `vinppl.refinement`, each `(num_draws, *site)`.
        attrs: what else to store as attributes.
        seed: of all draws.
    """
    if draws is None:
        draws = result.sample(num_draws, seed=seed)
    num_draws = len(next(iter(draws.values())))
    return _assemble(result.model, result.data, draws, (1, num_draws), {}, attrs, seed, result.parameters)


def prior_draws(
    model: Any,
    data: Trajectories,
    num_draws: int,
    *,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> Draws:
    """Draw latent sites from the prior, each `(num_draws, *site)`."""
    trace = prototype(poutine.uncondition(model), data)
    nesting = plate_nesting(trace)
    with learned(model, data, parameters), seeded(seed), torch.no_grad():
        ran = trace_batch(poutine.uncondition(model), (data,), num_draws, nesting)
    return collect(ran, latent_sites(prototype(model, data)), num_draws, nesting)


def _assemble(
    model: Any,
    data: Trajectories,
    draws: Draws,
    shape: tuple[int, int],
    stats: Mapping[str, NDArray[Any]],
    attrs: Mapping[str, str] | None,
    seed: int,
    parameters: Mapping[str, Tensor] | None = None,
) -> Any:
    trace = prototype(model, data)
    latent = {name: draws[name] for name in latent_sites(trace)}
    prior = prior_draws(model, data, min(500, shape[0] * shape[1]), seed=seed + 1, parameters=parameters)
    prior_shape = (1, next(iter(prior.values())).shape[0])
    predictive = predict(model, latent, data, sites=["obs"], seed=seed + 2, parameters=parameters)
    likelihood = pointwise_log_likelihood(model, latent, data, parameters=parameters)
    groups: dict[str, dict[str, NDArray[Any]]] = {
        "posterior": arrays(latent, shape),
        "log_likelihood": arrays(likelihood, shape),
        "posterior_predictive": arrays(predictive, shape),
        "prior": arrays(prior, prior_shape),
        "observed_data": {"obs": masked_values(data)},
        "constant_data": constant_data(data),
    }
    if stats:
        groups["sample_stats"] = dict(stats)
    masks = {} if bool(data.mask.all()) else {"obs": data.mask.cpu().numpy()}
    return to_arviz(
        groups,
        dims=site_dims(trace, [*latent, *likelihood, *predictive]) | CONSTANT_DIMS,
        coords=dataset_coords(data),
        units=units(data),
        masks=masks,
        attrs={**channel_attributes(data), **(attrs or {})},
    )


def arrays(draws: Mapping[str, Tensor], shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Return draws `(chain * draw, *site)` as arrays `(chain, draw, *site)`."""
    return {
        name: value.detach().cpu().numpy().reshape(shape + tuple(value.shape[1:]))
        for name, value in draws.items()
    }


def masked_values(data: Trajectories) -> NDArray[Any]:
    """Return the measurements with NaN where there are none, `(trajectory, time, channel)`."""
    return np.where(data.mask.cpu().numpy(), data.values.cpu().numpy(), np.nan)


CONSTANT_DIMS: dict[str, tuple[str, ...]] = {
    "times": ("trajectory", "time"),
    "drive": ("trajectory", "time", "drive_channel"),
    "measured": ("trajectory", "time", "channel"),
    "in_sample": ("trajectory", "time"),
    "forecast_start": ("trajectory",),
}


def constant_data(data: Trajectories) -> dict[str, NDArray[Any]]:
    """Return the times and inputs of the measurements."""
    constants = {"times": data.times.cpu().numpy()}
    if data.drive is not None:
        constants["drive"] = data.drive.cpu().numpy()
    return constants


def site_dims(trace: Any, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return dimension names of sites: their plates, then their event dimensions where known."""
    dims = {}
    for name in names:
        site = trace.nodes.get(name)
        if site is None:
            continue
        frames = sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
        plates = tuple(frame.name for frame in frames)
        event = site["fn"].event_dim
        known = SITE_DIMS.get(name, ())
        if len(known) == event:
            dims[name] = plates + known
        elif plates:
            dims[name] = plates + tuple(f"{name}_dim_{i}" for i in range(event))
    return dims


def dataset_coords(data: Trajectories) -> dict[str, Any]:
    """Return the coordinates of a data set: names, and real times where all trajectories share them."""
    shared = bool((data.times == data.times[:1]).all())
    states = [*data.coordinate_names, *(f"d{name}/dt" for name in data.coordinate_names)]
    coords: dict[str, Any] = {
        "trajectory": list(data.names),
        "channel": [channel.name for channel in data.channels],
        "coordinate": list(data.coordinate_names),
        "state": states,
        "time": data.times[0].cpu().numpy() if shared else np.arange(data.num_times),
    }
    if data.drive is not None:
        coords["drive_channel"] = list(data.drive_names)
    return coords


def units(data: Trajectories) -> dict[str, str]:
    """Return the units of variables that have one for all their entries."""
    measured = {channel.unit for channel in data.channels}
    known = {"time": data.time_unit, "times": data.time_unit}
    if len(measured) == 1:
        known |= {name: measured.copy().pop() for name in ("obs", "measured", "noise_scale")}
    return {name: unit for name, unit in known.items() if unit}


def channel_attributes(data: Trajectories) -> dict[str, str]:
    """Return what the channels measure, as JSON attributes; of films the height and width of a frame."""
    if data.image_shape is not None:
        return {"image_shape": json.dumps(data.image_shape)}
    return {
        "channel_quantity": json.dumps([c.quantity for c in data.channels]),
        "channel_coordinate": json.dumps([c.coordinate for c in data.channels]),
        "channel_angle": json.dumps([c.angle for c in data.channels]),
        "channel_unit": json.dumps([c.unit for c in data.channels]),
    }
