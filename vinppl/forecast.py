"""Posterior forecasts: the model run on from every draw, to times that were not measured yet."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vinppl._checks import require
from vinppl.backgrounds import background_of, background_scatter, frame_log_density
from vinppl.draws import (
    Draws,
    batch_size,
    batches,
    latent_sites,
    pointwise_log_likelihood,
    predict,
    prototype,
    seeded,
)
from vinppl.errors import DataError, NumericalWarning
from vinppl.export import to_arviz
from vinppl.lapses import prior_survival
from vinppl.posterior import (
    CONSTANT_DIMS,
    arrays,
    channel_attributes,
    dataset_coords,
    masked_values,
    site_dims,
    units,
)

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["extend", "forecast"]


def extend(
    data: Trajectories,
    *,
    horizon: float,
    step_size: float | None = None,
    held_out: Trajectories | None = None,
) -> Trajectories:
    """Return the times of `data` continued to `horizon` beyond its end, and of what was held out.

    Args:
        data: the measurements that were fitted.
        horizon: how far to forecast beyond the last fitted sample of each trajectory, in units of
            time; 0 goes as far as the held-out samples do.
        step_size: spacing of the forecast times; by default the median spacing of the data.
        held_out: later measurements of the same trajectories, whose times are included.

    Returns:
        Trajectories with the measurements of both where there are any; all else is masked.

    Raises:
        ValueError: if nothing would be forecast, if the held-out trajectories are others or begin
            earlier, or if the data have a drive (its future must come with `held_out`).
    """
    require(horizon >= 0, "horizon must not be negative", horizon)
    require(
        horizon > 0 or held_out is not None,
        "there must be something to forecast",
        "horizon=0 and nothing held out",
        "Give a horizon in units of time.",
    )
    if held_out is not None:
        require(
            held_out.num_trajectories == data.num_trajectories,
            f"held-out data must continue the same {data.num_trajectories} trajectories",
            f"{held_out.num_trajectories}",
        )
    step = data.median_step if step_size is None else step_size
    require(step > 0, "step_size must be positive", step)
    pieces = [_extend_one(data, held_out, n, horizon, step) for n in range(data.num_trajectories)]
    longest = max(times.numel() for times, _, _, _ in pieces)
    padded = [_pad(piece, longest) for piece in pieces]
    times, values, mask = (torch.stack([p[i] for p in padded]) for i in range(3))
    drive = None if data.drive is None else torch.stack([p[3] for p in padded])
    return dataclasses.replace(data, times=times, values=values, mask=mask, drive=drive)


def _extend_one(
    data: Trajectories, held_out: Trajectories | None, n: int, horizon: float, step: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return times, values, mask and drive of one continued trajectory."""
    length = int(data.lengths[n])
    parts = [(data.times[n, :length], data.values[n, :length], data.mask[n, :length])]
    drives = None if data.drive is None else [data.drive[n, :length]]
    last = data.times[n, length - 1]
    if held_out is not None:
        more = int(held_out.lengths[n])
        require(
            bool(held_out.times[n, 0] > last),
            "held-out samples must come after the fitted ones",
            f"time {float(held_out.times[n, 0]):.6g} after {float(last):.6g} in trajectory {data.names[n]}",
        )
        require(
            drives is None or held_out.drive is not None,
            "held-out samples of a driven system need its drive",
            "none",
        )
        parts.append((held_out.times[n, :more], held_out.values[n, :more], held_out.mask[n, :more]))
        if drives is not None and held_out.drive is not None:
            drives.append(held_out.drive[n, :more])
    reached = parts[-1][0][-1]
    # Times of films are in single precision, which loses the last step to a smaller slack.
    count = int(torch.floor((last + horizon - reached) / step + 1e-3).clamp_min(0))
    if count > 0:
        require(
            drives is None,
            "a driven system can be forecast only as far as its drive is known",
            f"a horizon of {horizon:.6g} beyond the samples",
            "Give the future of the drive as held-out samples (measured channels may be empty).",
        )
        times = reached + step * torch.arange(1, count + 1, dtype=reached.dtype, device=reached.device)
        empty = torch.zeros(count, data.num_channels, dtype=reached.dtype, device=reached.device)
        parts.append((times, empty, empty > 0))
    times, values, mask = (torch.cat([part[i] for part in parts]) for i in range(3))
    return times, values, mask, None if drives is None else torch.cat(drives)


def _pad(piece: tuple[Tensor, Tensor, Tensor, Tensor | None], length: int) -> list[Any]:
    """Repeat the last time and mask the rest, up to `length` samples."""
    times, values, mask, drive = piece
    extra = length - times.numel()
    pad = torch.nn.functional.pad
    return [
        torch.cat([times, times[-1:].expand(extra)]),
        pad(values, (0, 0, 0, extra)),
        pad(mask, (0, 0, 0, extra)),
        None if drive is None else pad(drive, (0, 0, 0, extra)),
    ]


def forecast(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    future: Trajectories,
    *,
    trained: Trajectories | None = None,
    chunk_size: int = 250,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
    attrs: Mapping[str, str] | None = None,
) -> Any:
    """Run the model from posterior draws over the times of `future` and return the ArviZ object.

    Trajectories are computed afresh from the initial states; no deterministic site is replayed.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *site)`.
        data: the measurements at whose first time the draws' initial states are.
        future: where to predict, from `extend`.
        trained: all films that were fitted, if `data` are the last frames of them; see `vinppl.lapses`.
        chunk_size: draws that run as one batch.
        seed: of the predictive noise.
        parameters: learned parameters of the model, unconstrained, by name.
        attrs: what else to store as attributes.

    Returns:
        Groups `posterior`, `predictions` (`obs`, `states` and `energy` where the model records them)
        and `predictions_constant_data` (`times`, `measured`, `in_sample`, `forecast_start`). Of films
        `predictions` also hold `obs_mean`, the mean frames under each draw, and `frame_log_likelihood`, the
        log density of each measured frame, with the chance that the motion has ceased to hold (see
        `vinppl.lapses`): frames are then those of the background. For the path from the posterior mean both
        come without it, with its states, as constants named `.._at_mean`.

    Raises:
        DataError: if the model has a latent value for every sample, and so no dynamics to forecast by.

    Warns:
        NumericalWarning: if some draws have no finite trajectory (an implicit step without a
            solution, say); they are left out and counted.
    """
    trace = prototype(model, future)
    draws = {name: draws[name] for name in latent_sites(trace) if name in draws}
    _require_dynamics(trace, draws)
    film = future.image_shape is not None
    if film:
        chunk_size = batch_size(future, chunk_size)
    predicted = predict(
        model,
        draws,
        future,
        observed="both" if film else "drawn",
        chunk_size=chunk_size,
        seed=seed,
        parameters=parameters,
    )
    finite = torch.stack([torch.isfinite(v).flatten(1).all(1) for v in predicted.values()]).all(0)
    lost = int((~finite).sum())
    if lost:
        require(lost < finite.numel(), "some draws must have a finite forecast", f"none of {lost}")
        warnings.warn(
            f"{lost} of {finite.numel()} draws have no finite trajectory over the horizon and were left out",
            NumericalWarning,
            stacklevel=2,
        )
        predicted = {name: value[finite] for name, value in predicted.items()}
        draws = {name: value[finite] for name, value in draws.items()}
    constants: Draws = {}
    if film:
        density, constants = _frame_density(model, draws, future, chunk_size, parameters)
        predicted |= _with_lapses(
            predicted, density, data, future, trained or data, grey="noise_scale" in draws, seed=seed
        )
    num_draws = int(finite.sum())
    last = data.times.gather(-1, (data.lengths - 1).unsqueeze(-1))
    groups = {
        "posterior": arrays(draws, (1, num_draws)),
        "predictions": arrays(predicted, (1, num_draws)),
        "predictions_constant_data": {
            "times": future.times.cpu().numpy(),
            "measured": masked_values(future),
            "in_sample": (future.times <= last).cpu().numpy(),
            "forecast_start": last.squeeze(-1).cpu().numpy(),
            **{name: value.cpu().numpy() for name, value in constants.items()},
        },
    }
    return to_arviz(
        groups,
        dims=site_dims(trace, [*draws, *predicted]) | CONSTANT_DIMS | (FILM_DIMS if film else {}),
        coords=dataset_coords(future),
        units=units(future),
        attrs={**channel_attributes(data), "draws_without_forecast": str(lost), **(attrs or {})},
    )


FILM_DIMS: dict[str, tuple[str, ...]] = {
    "obs_mean": ("trajectory", "time", "channel"),
    "obs_at_mean": ("trajectory", "time", "channel"),
    "states_at_mean": ("trajectory", "time", "state"),
    "frame_log_likelihood": ("trajectory", "time"),
    "frame_log_likelihood_at_mean": ("trajectory", "time"),
}


def _require_dynamics(trace: Any, draws: Mapping[str, Tensor]) -> None:
    """Check that draws of a fit fit the forecast's times: no latent site may have a value for each."""
    for name, value in draws.items():
        expected = tuple(trace.nodes[name]["value"].shape)
        require(
            value[0].numel() == math.prod(expected),
            f"{name} must have the shape {expected} for the times of the forecast",
            f"{tuple(value.shape[1:])} from the fit",
            "It has a value for every sample: a model without dynamics cannot forecast.",
            error=DataError,
        )


def _with_lapses(
    predicted: Mapping[str, Tensor],
    density: Tensor,
    data: Trajectories,
    future: Trajectories,
    trained: Trajectories,
    *,
    grey: bool,
    seed: int,
) -> Draws:
    """Return predictions of films as mixtures of the motion and the background that a lapse leaves."""
    level, scatter = background_of(trained), background_scatter(trained) if grey else None
    frames = torch.where(future.mask, future.values, math.nan)
    still = frame_log_density(level.logit(), frames, scatter)
    times = torch.arange(1, future.num_times + 1).to(density)
    explained = int(trained.mask.any(-1).sum())
    holds = prior_survival(times, num_explained=explained, num_fitted=data.lengths.unsqueeze(-1))
    with seeded(seed + 1):
        ended = (torch.rand_like(density[..., :1]) > holds).unsqueeze(-1)
        every = level.expand(predicted["obs"].shape)
        drawn = torch.bernoulli(every) if scatter is None else every + scatter * torch.randn_like(every)
    share = holds.unsqueeze(-1)
    return {
        "obs": torch.where(ended, drawn, predicted["obs"]),
        "obs_mean": share * predicted["obs_mean"] + (1 - share) * level,
        "frame_log_likelihood": torch.logaddexp(holds.log() + density, torch.log1p(-holds) + still),
    }


def _frame_density(
    model: Any,
    draws: Mapping[str, Tensor],
    future: Trajectories,
    chunk_size: int,
    parameters: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Draws]:
    """Return log densities of frames under draws, and frames, states and densities of their mean's path."""
    seen = future.mask.any(-1)

    def density(part: Mapping[str, Tensor]) -> Tensor:
        pixels = pointwise_log_likelihood(model, part, future, chunk_size=chunk_size, parameters=parameters)
        return torch.where(seen, pixels["obs"].sum(-1), math.nan)

    each = [density(part) for part in batches(draws, chunk_size)]
    mean = {name: value.mean(0, keepdim=True) for name, value in draws.items()}
    path = predict(model, mean, future, sites=["states"], observed="both", parameters=parameters)
    constants = {"obs_at_mean": path["obs_mean"][0], "frame_log_likelihood_at_mean": density(mean)[0]}
    if "states" in path:
        constants["states_at_mean"] = path["states"][0]
    return torch.cat(each), constants
