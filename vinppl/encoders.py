"""Recognition networks: from a whole window of measurements to the initial state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["INITIAL_SITES", "InitialPosterior", "WindowEncoder"]

INITIAL_SITES = ("initial_position", "initial_velocity")
"""Sites of the initial state, which most recognition networks infer."""


class InitialPosterior(NamedTuple):
    """A normal over initial states: q ~ N(m_q, s_q^2) and v | q ~ N(m_v + b (q - m_q), s_v^2).

    It may be conditional on what trajectories share (mass, noise, ..): (m_q, m_v) then moves by B w, where w
    stands for the shared sites in coordinates in which their posterior is about standard normal.

    Attributes:
        loc: (m_q, m_v), shape `(trajectories, 2 dim)`.
        scale: (s_q, s_v), same shape.
        coupling: b, how the velocity follows the position, shape `(trajectories, dim)`. What a
            trajectory is later pins down one combination of both far better than either alone.
        response: B, shape `(trajectories, 2 dim, num_shared)`; `None` where nothing is followed.
    """

    loc: Tensor
    scale: Tensor
    coupling: Tensor
    response: Tensor | None = None

    @property
    def factor(self) -> Tensor:
        """Lower triangular factor of the covariance, shape `(trajectories, 2 dim, 2 dim)`."""
        (q_scale, v_scale), slope = self.scale.chunk(2, -1), self.coupling
        upper = torch.cat([q_scale.diag_embed(), torch.zeros_like(q_scale).diag_embed()], dim=-1)
        lower = torch.cat([(slope * q_scale).diag_embed(), v_scale.diag_embed()], dim=-1)
        return torch.cat([upper, lower], dim=-2)

    @property
    def marginal_factor(self) -> Tensor:
        """The same with w standard normal instead of given."""
        if self.response is None:
            return self.factor
        return torch.linalg.cholesky(self.factor @ self.factor.mT + self.response @ self.response.mT)

    def given(self, shared: Tensor) -> InitialPosterior:
        """Return the normal at values of the shared sites, `(*batch, num_shared)`, w in the formula above."""
        if self.response is None:
            return self
        return self._replace(loc=self.loc + (self.response @ shared.unsqueeze(-1)).squeeze(-1), response=None)

    def sample_sites(self) -> dict[str, Tensor]:
        """Sample the sites of the initial state, inside of the plate of the trajectories."""
        (q_loc, v_loc), (q_scale, v_scale) = self.loc.chunk(2, -1), self.scale.chunk(2, -1)
        position, velocity = INITIAL_SITES
        q = pyro.sample(position, Normal(q_loc, q_scale).to_event(1))
        v_loc = v_loc + self.coupling * (q - q_loc)
        v = pyro.sample(velocity, Normal(v_loc, v_scale).to_event(1))
        return {position: q, velocity: v}

    def divergence(self, other: InitialPosterior) -> Tensor:
        """Return the KL divergence of `other` from this, shape `(trajectories,)`.

        Where both are conditional, it is the mean over standard normal w.
        """
        (mq, mv), (nq, nv) = self.loc.chunk(2, -1), other.loc.chunk(2, -1)
        (sq, sv), (tq, tv) = self.scale.chunk(2, -1), other.scale.chunk(2, -1)
        in_q = (tq / sq).log() + (sq.square() + (mq - nq).square()) / (2 * tq.square()) - 0.5
        mean = mv - nv - other.coupling * (mq - nq)
        spread = sv.square() + ((self.coupling - other.coupling) * sq).square()
        in_v = (tv / sv).log() + (spread + mean.square()) / (2 * tv.square()) - 0.5
        divergence = (in_q + in_v).sum(-1)
        if self.response is None or other.response is None:
            return divergence
        moved = torch.linalg.solve_triangular(other.factor, self.response - other.response, upper=False)
        return divergence + 0.5 * moved.square().sum((-2, -1))

    def log_prob(self, state: Tensor) -> Tensor:
        """Return the log density of (q, v), `(*batch, 2 dim) -> (*batch,)`."""
        q, v = state.chunk(2, -1)
        (mq, mv), (sq, sv) = self.loc.chunk(2, -1), self.scale.chunk(2, -1)
        density = Normal(mq, sq).log_prob(q) + Normal(mv + self.coupling * (q - mq), sv).log_prob(v)
        return density.sum(-1)


class WindowEncoder(nn.Module):
    """Infer the initial phase-space state from every sample of a window.

    Each sample passes a layer of rectified units; an LSTM then reads the window
    backwards, so that its last output stands at the first time and has seen all of
    it. The mean is the first measurement of each coordinate, where there is one,
    plus a learned correction. (Paper sections 3.2 and 4.1; sizes of its noisy-state
    experiments. Reading only one end of the LSTM's outputs makes the initial state
    depend on a single sample: hence the direction.)

    Args:
        num_channels: measured channels.
        dim: generalised coordinates.
        channel_index: for each channel its place in (q, v), shape `(num_channels,)`.
        scale: typical size of each channel, shape `(num_channels,)`; inputs are divided by it.
        frame_size: width of the layer per sample.
        recurrent_size: width of the LSTM.
        num_shared: numbers that trajectories share and that the mean may follow; see `InitialPosterior`.
    """

    sites: ClassVar[tuple[str, ...]] = INITIAL_SITES
    channel_index: Tensor
    scale: Tensor
    state_scale: Tensor

    def __init__(
        self,
        num_channels: int,
        dim: int,
        *,
        channel_index: Tensor,
        scale: Tensor,
        frame_size: int = 500,
        recurrent_size: int = 20,
        num_shared: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.num_shared = dim, num_shared
        self.register_buffer("channel_index", channel_index.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("state_scale", torch.ones(2 * dim).to(scale).index_copy(0, channel_index, scale))
        self.frame = nn.Linear(2 * num_channels + 1, frame_size)
        self.recurrent = nn.LSTM(frame_size, recurrent_size, batch_first=True)
        self.head = nn.Linear(recurrent_size, (5 + 2 * num_shared) * dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, data: Trajectories) -> InitialPosterior:
        """Return the normal over the states at the first time of every trajectory."""
        sizes = [2 * self.dim, 2 * self.dim, self.dim, 2 * self.dim * self.num_shared]
        correction, log_scale, coupling, response = self.head(self._read(data)).split(sizes, dim=-1)
        spread = INITIAL_SPREAD * self.state_scale * softplus(log_scale) / math.log(2)
        q_scale, v_scale = self.state_scale.chunk(2)
        loc = self._first(data) + self.state_scale * correction
        follows = None
        if self.num_shared:
            follows = self.state_scale.unsqueeze(-1) * response.unflatten(-1, (2 * self.dim, self.num_shared))
        return InitialPosterior(loc, spread, v_scale / q_scale * coupling, follows)

    def aim(self, data: Trajectories, posterior: InitialPosterior) -> None:
        """Move the last layer, by least squares, to where the trajectories of `data` are read as `posterior`.

        The least change that does it is taken; with more trajectories than the recurrent layer has units it
        is done as well as can be.
        """
        with torch.no_grad():
            hidden = self._read(data)
            known = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=-1)
            spread = posterior.scale * math.log(2) / (INITIAL_SPREAD * self.state_scale)
            q_scale, v_scale = self.state_scale.chunk(2)
            wanted = [
                (posterior.loc - self._first(data)) / self.state_scale,
                spread + (-torch.expm1(-spread)).log(),  # the inverse of softplus
                posterior.coupling * q_scale / v_scale,
            ]
            if posterior.response is not None:
                wanted.append((posterior.response / self.state_scale.unsqueeze(-1)).flatten(-2))
            present = self.head(hidden)
            wanted.append(present[:, sum(part.shape[-1] for part in wanted) :])  # of what is not said
            change = torch.linalg.pinv(known, rtol=1e-3) @ (torch.cat(wanted, dim=-1) - present)
            self.head.weight.add_(change[:-1].mT)
            self.head.bias.add_(change[-1])

    def _read(self, data: Trajectories) -> Tensor:
        """Return what the recurrent layer makes of every window, `(trajectories, recurrent_size)`."""
        scaled = data.values / self.scale
        elapsed = data.times - data.times[..., :1]
        elapsed = elapsed / elapsed.amax().clamp_min(torch.finfo(elapsed.dtype).tiny)
        inputs = torch.cat([scaled, data.mask.to(scaled.dtype), elapsed.unsqueeze(-1)], dim=-1)
        outputs, _ = self.recurrent(torch.relu(self.frame(inputs)).flip(-2))
        return outputs[..., -1, :]  # type: ignore[no-any-return]

    def _first(self, data: Trajectories) -> Tensor:
        """Return the first measurement of each coordinate of the state, zero where there is none."""
        first = torch.where(data.mask[:, 0], data.values[:, 0], 0.0)
        return first.new_zeros(len(first), 2 * self.dim).index_copy(-1, self.channel_index, first)


INITIAL_SPREAD = 0.02
"""First standard deviation, as a share of the state's size. Rollouts magnify it: begun wide, the
model explains all motion as noise and never leaves that."""
