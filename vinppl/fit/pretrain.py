"""Teaching an encoder on simulated data before the evidence lower bound takes over.

From the first step of SVI the encoder has to be sharp: a rollout magnifies an error in the
initial state, and the model would rather call everything noise. The model itself, with a
potential near the data, supplies as many labelled windows as wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vinppl.draws import latent_sites, predict, prototype
from vinppl.encoders import InitialPosterior, WindowEncoder
from vinppl.estimates import local_states
from vinppl.guides import INITIAL_SITES, AmortisedGuide, channel_scale

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["pretrain_encoder"]


def pretrain_encoder(
    model: Any,
    guide: AmortisedGuide,
    data: Trajectories,
    values: Mapping[str, Tensor],
    found: InitialPosterior | None = None,
    *,
    num_steps: int = 60,
    num_matches: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> float:
    """Fit the encoder to initial states of trajectories that the model simulates.

    Initial states are those of the data, scattered by a third of their size; the other latent sites
    have the given values. Then the encoder learns, on the measured windows themselves, the states found
    there: its last layer by least squares, then all of it. The loss on simulations is the negative log
    density of the true initial state, so that the encoder learns its own uncertainty as well.

    Args:
        model: Pyro model with sites `initial_position` and `initial_velocity`.
        guide: the guide whose encoder is trained in place.
        data: sets times, masks and the range of motion.
        values: latent sites of the model near the posterior, `initial_position` and
            `initial_velocity` among them.
        found: posterior of the initial states on the data; where `None` the encoder is only moved
            towards the values and keeps the spread that it learned from simulations.
        num_steps: Adam steps on simulations.
        num_matches: Adam steps on the measured windows, at most: they end where the divergence from `found`
            is below 0.01 nats.
        batch_size: simulated trajectories per step, about.
        learning_rate: of Adam, decaying to zero.

    Returns:
        The last divergence from the posterior found on the data, in nats per trajectory.
    """
    pool = _initial_pool(data, values)
    trace = prototype(model, data)
    copies = max(1, batch_size // data.num_trajectories)
    template = _repeated(data, copies)
    optimiser = torch.optim.Adam(guide.encoder.parameters(), lr=learning_rate)
    states = torch.cat([values[name] for name in INITIAL_SITES], dim=-1)
    loss = torch.zeros(())
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
        truth = pool[torch.randint(pool.shape[0], (copies, data.num_trajectories))]
        truth = truth + 0.33 * pool.square().mean(0).sqrt() * torch.randn_like(truth)
        simulated = _simulate(model, trace, truth, values, data, template)
        finite = torch.isfinite(simulated.values).flatten(1).all(1)
        density = guide.encoder(simulated).log_prob(truth.flatten(0, 1))
        loss = -torch.where(finite, density, 0.0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if found is not None and isinstance(guide.encoder, WindowEncoder):
        guide.encoder.aim(data, found)
    for step in range(num_matches):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / num_matches)
        loss = _match(guide.encoder(data), states, found)
        if found is not None and float(loss.detach()) < MATCHED:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


MATCHED = 0.01
"""Divergence from the posterior found on the data at which the encoder is taught, in nats per trajectory."""


def _match(inferred: InitialPosterior, states: Tensor, found: InitialPosterior | None) -> Tensor:
    """Return the mean divergence of what the encoder infers on the data from what was found there.

    In this direction, as in the evidence lower bound, mass outside of the narrow posterior is what costs.
    """
    if found is None:
        return 0.5 * ((states - inferred.loc) / inferred.scale.detach()).square().sum(-1).mean()
    return inferred.divergence(found).mean()


def _initial_pool(data: Trajectories, values: Mapping[str, Tensor]) -> Tensor:
    """Return states (q, v) to start simulations from, `(count, 2 dim)`: half of them the data's own."""
    states = local_states(data)
    first = torch.cat([values[name] for name in INITIAL_SITES], dim=-1)
    along = torch.cat([states.q, states.v], dim=-1)
    return torch.cat([first.repeat(max(1, along.shape[0] // first.shape[0]), 1), along])


def _simulate(
    model: Any,
    trace: Any,
    truth: Tensor,
    values: Mapping[str, Tensor],
    data: Trajectories,
    template: Trajectories,
) -> Trajectories:
    """Return `copies` simulated versions of `data` from initial states `(copies, trajectories, 2 dim)`."""
    draws: dict[str, Tensor] = dict(zip(INITIAL_SITES, truth.split(data.dim, dim=-1), strict=True))
    for name in latent_sites(trace):
        if name not in draws:
            value = values.get(name, trace.nodes[name]["value"])
            draws[name] = value.expand(truth.shape[0], *trace.nodes[name]["value"].shape)
    seed = int(torch.randint(2**31, ()))
    simulated = predict(model, draws, data, sites=["obs"], chunk_size=truth.shape[0], seed=seed)["obs"]
    observed = torch.where(template.mask, simulated.reshape(template.values.shape), 0.0)
    limit = 100 * channel_scale(data)
    return dataclasses.replace(template, values=observed.nan_to_num().clamp(-limit, limit))


def _repeated(data: Trajectories, copies: int) -> Trajectories:
    """Return `data` put `copies` times one after another."""
    count = data.num_trajectories
    return dataclasses.replace(
        data,
        times=data.times.repeat(copies, 1),
        values=data.values.repeat(copies, 1, 1),
        mask=data.mask.repeat(copies, 1, 1),
        drive=None if data.drive is None else data.drive.repeat(copies, 1, 1),
        names=tuple(f"{i}" for i in range(copies * count)),
    )
