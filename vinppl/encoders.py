"""Recognition networks: from a whole window of measurements to the initial state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["WindowEncoder"]


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
    """

    def __init__(
        self,
        num_channels: int,
        dim: int,
        *,
        channel_index: Tensor,
        scale: Tensor,
        frame_size: int = 500,
        recurrent_size: int = 20,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("channel_index", channel_index.clone())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("state_scale", torch.ones(2 * dim).to(scale).index_copy(0, channel_index, scale))
        self.frame = nn.Linear(2 * num_channels + 1, frame_size)
        self.recurrent = nn.LSTM(frame_size, recurrent_size, batch_first=True)
        self.head = nn.Linear(recurrent_size, 4 * dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, data: Trajectories) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of (q, v) at the first time, each `(trajectories, 2 dim)`."""
        scaled = data.values / self.scale
        elapsed = data.times - data.times[..., :1]
        elapsed = elapsed / elapsed.amax().clamp_min(torch.finfo(elapsed.dtype).tiny)
        inputs = torch.cat([scaled, data.mask.to(scaled.dtype), elapsed.unsqueeze(-1)], dim=-1)
        hidden = torch.relu(self.frame(inputs)).flip(-2)
        outputs, _ = self.recurrent(hidden)
        correction, log_scale = self.head(outputs[..., -1, :]).chunk(2, dim=-1)
        first = torch.where(data.mask[:, 0], data.values[:, 0], 0.0)
        anchor = torch.zeros_like(correction).index_copy(-1, self.channel_index, first)
        spread = 0.02 * self.state_scale * torch.nn.functional.softplus(log_scale) / 0.6931471805599453
        return anchor + self.state_scale * correction, spread
