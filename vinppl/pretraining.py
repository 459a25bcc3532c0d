"""Teaching networks on rough estimates of states and accelerations, before anything is rolled out.

A rollout of a network that knows nothing leaves the data at once, and its gradients say little. Fitting
the network to what `vinppl.estimates.local_states` reads off the record costs no rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vinppl.data import Trajectories
from vinppl.embedding import embed_frames
from vinppl.estimates import LocalStates, local_states

if TYPE_CHECKING:
    from vinppl.baselines import AbstractBaseline
    from vinppl.manifolds import Manifold
    from vinppl.potentials import AbstractPotential, NeuralPotential
    from vinppl.state import Trajectory
    from vinppl.vision import ClipEncoder

__all__ = [
    "EmbeddedMotion",
    "descend",
    "embedded_motion",
    "frame_scatter",
    "pretrain_baseline",
    "pretrain_potential",
    "regress_weights",
    "teach_decoder",
    "teach_encoder",
    "teach_frames",
]


def pretrain_potential(
    potential: AbstractPotential, data: Trajectories, *, num_steps: int = 500, learning_rate: float = 3e-3
) -> float:
    """Fit a learned potential to accelerations estimated along the record, for unit mass.

    Costs no rollout, and leaves the potential where rollouts of some length stay near the data.

    Args:
        potential: a potential whose parameters are point estimates; changed in place.
        data: the measurements.
        num_steps: Adam steps over all stretches at once.
        learning_rate: of Adam, decaying to zero.

    Returns:
        Share of the variance of the accelerations that the potential leaves unexplained.
    """
    states = local_states(data)
    scale = states.a.square().mean().clamp_min(1e-12)

    def misfit() -> Tensor:
        return (potential.bind().gradient(states.q) + states.a).square().mean() / scale

    return _pretrain(potential, misfit, states, num_steps, learning_rate)


def pretrain_baseline(
    dynamics: AbstractBaseline, data: Trajectories, *, num_steps: int = 500, learning_rate: float = 3e-3
) -> float:
    """Fit a learned field or map to the states and their changes estimated along the record.

    Args:
        dynamics: a baseline whose parameters are point estimates; changed in place.
        data: the measurements.
        num_steps: Adam steps over all stretches at once.
        learning_rate: of Adam, decaying to zero.

    Returns:
        Share of the mean square of velocities and accelerations that is left unexplained, their mean.
    """
    states = local_states(data)
    scales = [x.square().mean().clamp_min(1e-12) for x in (states.v, states.a)]

    def misfit() -> Tensor:
        errors = dynamics.residuals(states.q, states.v, states.a)
        return torch.stack([e.square().mean() / s for e, s in zip(errors, scales, strict=True)]).mean()

    return _pretrain(dynamics, misfit, states, num_steps, learning_rate)


def _pretrain(
    module: torch.nn.Module,
    misfit: Callable[[], Tensor],
    states: LocalStates,
    num_steps: int,
    learning_rate: float,
) -> float:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if states.t.numel() == 0 or not parameters:
        return 1.0
    return descend(parameters, misfit, num_steps=num_steps, learning_rate=learning_rate)[-1]


class EmbeddedMotion(NamedTuple):
    """Positions of the frames of clips.

    Attributes:
        positions: as measured trajectories, which count revolutions.
        period: distance of positions whose frames are equal; `None` if there are none.
    """

    positions: Trajectories
    period: float | None


def embedded_motion(data: Trajectories, manifold: Manifold) -> EmbeddedMotion:
    """Return the positions that `embed_frames` gives the frames of clips.

    Args:
        data: clips.
        manifold: of the positions.
    """
    found = embed_frames(data.frames, data.mask.all(-1), dim=manifold.dim, circle=manifold.any_periodic)
    values = np.full((*data.times.shape, found.position.shape[-1]), math.nan)
    values[found.clip.numpy(), found.time.numpy()] = found.position.numpy()
    if found.period is not None:
        for n, i in np.ndindex(len(values), values.shape[-1]):
            seen = ~np.isnan(values[n, :, i])
            values[n, seen, i] = np.unwrap(values[n, seen, i], period=found.period)
    positions = Trajectories.from_arrays(data.times.cpu(), torch.from_numpy(values).to(data.values))
    return EmbeddedMotion(positions, found.period)


def teach_frames(
    model: Any,
    encoder: ClipEncoder,
    data: Trajectories,
    path: Trajectory,
    *,
    num_steps: int,
    period: float | None = None,
) -> dict[str, Tensor]:
    """Teach the decoder of a model of films and an encoder which frame belongs to which state of a motion.

    Args:
        model: with a `decoder`, the `logits` of states and an `emission`; changed in place.
        encoder: of the beginnings of clips; changed in place.
        data: clips.
        path: the states at their times.
        num_steps: Adam steps of each.
        period: distance of positions whose frames are equal, if any.

    Returns:
        The site `noise_scale` as it is along the motion, of grey frames; nothing for black and white ones.
    """
    teach_decoder(model.logits, list(model.decoder.parameters()), data, path, num_steps=num_steps)
    teach_encoder(encoder, data, path, num_steps=num_steps, period=period)
    return {} if model.emission.grey is None else {"noise_scale": frame_scatter(model.logits, data, path)}


def teach_decoder(
    decode: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[Tensor],
    data: Trajectories,
    path: Trajectory,
    *,
    num_steps: int = 3000,
    batch_size: int = 60,
    learning_rate: float = 5e-3,
) -> float:
    """Teach a decoder which frame belongs to which state.

    Args:
        decode: from positions and velocities, each `(*batch, dim)`, to logits `(*batch, num_pixels)`.
        parameters: of the decoder; changed in place.
        data: clips.
        path: the states at their times.
        num_steps: Adam steps.
        batch_size: frames in each.
        learning_rate: of Adam, decaying to zero.

    Returns:
        The last cross entropy of a frame, in nats.
    """
    seen = data.mask.all(-1)
    pixels, q, v = data.values[seen], path.q.detach()[seen], path.v.detach()[seen]

    def misfit() -> Tensor:
        chosen = torch.randint(len(q), (batch_size,), device=q.device)
        near = q[chosen] + POSITION_SCATTER * torch.randn_like(q[chosen])
        return binary_cross_entropy_with_logits(decode(near, v[chosen]), pixels[chosen])

    losses = descend(parameters, misfit, num_steps=num_steps, learning_rate=learning_rate)
    return losses[-1] * data.num_channels


def teach_encoder(
    encoder: ClipEncoder,
    data: Trajectories,
    path: Trajectory,
    *,
    num_steps: int = 3000,
    batch_size: int = 60,
    learning_rate: float = 2e-3,
    period: float | None = None,
) -> None:
    """Teach an encoder of clips to read states off frames, and how far off it reads them.

    Half of the steps look at frames alone: velocities are differences of positions and magnify their errors,
    so that positions are hardly learned where both are from the beginning. The others look at stretches of
    three times what the encoder reads: all its readings share their frames.
    In the end its standard deviations are set to the errors that are left (their median, as of a normal).

    On a line the frames of a motion that goes round have several positions, a period apart. No encoder
    can tell them apart: it learns those of one turn, which is cut as far from where clips begin as can be.

    Args:
        encoder: of the beginnings of clips; changed in place.
        data: clips.
        path: the states at their times.
        num_steps: Adam steps.
        batch_size: frames in each, about.
        learning_rate: of Adam, decaying to zero.
        period: distance of positions whose frames are equal, if any.
    """
    manifold, dim = encoder.manifold, encoder.manifold.dim
    read = min(encoder.num_frames, data.num_times)
    length = min(3 * read, data.num_times)
    count = max(1, round(batch_size / length))
    q, v, turn = path.q.detach(), path.v.detach(), torch.zeros_like(path.q)
    if period is not None and not manifold.any_periodic:
        turn = _turns(q, period)
        q = q - period * turn
    spread = torch.cat([q, v], dim=-1).square().mean((0, 1)).sqrt().clamp_min(1e-6)
    seen, latest = data.mask.all(-1), (data.lengths - length).clamp_min(0)

    def errors(place: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return those of the features of frames and of the initial states of stretches of `read`.

        All stretches that lie within a turn; all there are, if none does.
        """
        there, codes = seen[place], encoder.codes(data.values[place])
        in_features = (codes[..., : manifold.num_features] - manifold.features(q[place]))[there]
        pieces = (x.unfold(1, read, 1).flatten(0, 1) for x in (data.times[place], there))
        inferred = encoder.read(codes.unfold(1, read, 1).movedim(-1, 2).flatten(0, 1), *pieces).loc
        first = there.shape[1] - read + 1
        states = torch.cat([q[place], v[place]], dim=-1)[:, :first].flatten(0, 1)
        in_q = manifold.difference(inferred[:, :dim], states[:, :dim])
        in_states = torch.cat([in_q, inferred[:, dim:] - states[:, dim:]], dim=-1)
        turns = turn[place].unfold(1, read, 1).flatten(0, 1).flatten(1)
        whole = turns.amax(1) == turns.amin(1)
        return in_features, in_states[whole] if bool(whole.any()) else in_states

    pixels, target = data.values[seen], manifold.features(q)[seen]

    def in_frames() -> Tensor:
        chosen = torch.randint(len(pixels), (batch_size,), device=q.device)
        codes = encoder.codes(pixels[chosen])
        return (codes[:, : manifold.num_features] - target[chosen]).square().mean()

    def in_stretches() -> Tensor:
        clip = torch.randint(data.num_trajectories, (count, 1), device=q.device)
        # The first and last stretches come as often as their frames would at other places.
        start = torch.rand(count, 1, device=q.device) * (latest[clip] + length) - 0.5 * length
        start = start.round().long().clamp_min(0).minimum(latest[clip])
        in_features, in_states = errors((clip, start + torch.arange(length, device=q.device)))
        return in_features.square().mean() + (in_states / spread).square().mean()

    first = num_steps // 2
    for misfit, steps in ((in_frames, first), (in_stretches, num_steps - first)):
        descend(list(encoder.parameters()), misfit, num_steps=steps, learning_rate=learning_rate)
    every = torch.arange(data.num_trajectories).unsqueeze(-1), torch.arange(data.num_times)
    with torch.no_grad():
        _, in_states = errors(every)
    encoder.set_scale(in_states.abs().median(0).values / NORMAL_MEDIAN)


def _turns(q: Tensor, period: float) -> Tensor:
    """Return the revolution of positions, `(clip, time, 1)`, counted from opposite to where clips begin."""
    angle = (2 * math.pi / period) * q[:, 0]
    begin = torch.atan2(angle.sin().mean(), angle.cos().mean()) * period / (2 * math.pi)
    return ((q - begin) / period).round()


def frame_scatter(decode: Callable[[Tensor, Tensor], Tensor], data: Trajectories, path: Trajectory) -> Tensor:
    """Return the root mean square of grey levels around what is decoded along a motion, a scalar.

    Args:
        decode: see `teach_decoder`.
        data: clips.
        path: the states at their times.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for n in range(data.num_trajectories):
            error = (decode(path.q[n], path.v[n]).sigmoid() - data.values[n])[data.mask[n]]
            total, count = total + float(error.square().sum()), count + error.numel()
    return data.values.new_tensor(math.sqrt(total / max(1, count))).clamp_min(FINEST_LEVEL)


FINEST_LEVEL = 1e-3
"""Least scatter of grey levels: a quarter of one of 256."""

NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a standard normal."""

POSITION_SCATTER = 0.005
"""How far from its own a frame may be decoded, so that the decoder is smooth between frames."""


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    final_share: float = 0.0,
    weight_decay: float = 0.0,
) -> list[float]:
    """Minimise a loss by Adam and return its values before every step.

    Args:
        parameters: what to move, in place.
        loss: function of the parameters' present values.
        num_steps: number of steps.
        learning_rate: the first step size; later ones change linearly.
        final_share: share of it that the step size goes to; 1 keeps it.
        weight_decay: coefficient of half the squared parameters.
    """
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    losses = []
    for step in range(num_steps):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - (1 - final_share) * step / num_steps)
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    optimiser.zero_grad(set_to_none=True)
    return losses


MAX_REGRESSED = 500
"""Stretches of the record at most that `regress_weights` looks at."""


def regress_weights(potential: NeuralPotential, data: Trajectories) -> Tensor:
    """Return output weights of random features that explain the record's accelerations, for unit mass.

    Bayesian linear regression: the size of the weights and the scatter of the accelerations are those
    of the largest evidence on a small grid.

    Args:
        potential: a `NeuralPotential` on `RandomFeatures`.
        data: the measurements.

    Returns:
        Weights for the site `network.output`, shape `(num_units,)`; zeros if the record is too short.
    """
    states = local_states(data)
    keep = torch.linspace(0, max(0, states.t.numel() - 1), min(MAX_REGRESSED, states.t.numel())).long()
    q, target = states.q[keep], states.a[keep].reshape(-1)
    columns = -potential.feature_gradients(q).flatten(1).mT  # (count * dim, num_units)
    if target.numel() == 0:
        return columns.new_zeros(columns.shape[-1])
    # In the singular vectors of the columns the evidence of every pair is a sum, whatever their rank.
    left, size, right = torch.linalg.svd(columns, full_matrices=False)
    along = left.mT @ target
    beyond, free = (target - left @ along).square().sum(), target.numel() - len(size)
    best = (-math.inf, columns.new_zeros(columns.shape[-1]))
    for amplitude in (0.25, 0.5, 1.0, 2.0, 4.0):
        gain = (amplitude * potential.network.prior_scale) ** 2 * size
        prior = gain * size
        for share in (0.01, 0.03, 0.1, 0.3, 0.6):
            scatter = (share * target.square().mean()).clamp_min(torch.finfo(target.dtype).tiny)
            misfit = (along.square() / (prior + scatter)).sum() + beyond / scatter
            evidence = -0.5 * float(misfit + (prior + scatter).log().sum() + free * scatter.log())
            if evidence > best[0]:
                best = (evidence, right.mT @ (gain * along / (prior + scatter)))
    return best[1]
