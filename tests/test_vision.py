"""Networks of frames: shapes, and what an untrained encoder of clips already knows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.draws import seeded
from vinppl.manifolds import Circle, Euclidean, Manifold
from vinppl.models import PixelVIN, PixelVINConfig
from vinppl.pretraining import teach_decoder, teach_encoder
from vinppl.render import film, simulate_clips
from vinppl.state import Trajectory
from vinppl.vision import ClipEncoder, FrameDecoder, FrameEncoder, coordinates_of


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_shapes_of_encoder_and_decoder(network: Any) -> None:
    encoder = FrameEncoder((12, 16), 3, network=network, hidden_sizes=(8,))
    decoder = FrameDecoder(Manifold((True, False)), (12, 16), network=network, hidden_sizes=(8,))
    assert encoder(torch.rand(2, 5, 192)).shape == (2, 5, 3)
    assert decoder(torch.rand(2, 5, 4, 2)).shape == (2, 5, 4, 192)


def test_convolutions_need_sides_that_four_divides() -> None:
    with pytest.raises(ValueError, match="multiples of four"):
        FrameEncoder((10, 12), 3, network="conv")
    with pytest.raises(ValueError, match="network must be one of"):
        FrameDecoder(Circle(), (12, 12), network="other")  # type: ignore[arg-type]


def test_a_decoder_sees_what_repeats_after_a_turn_of_angles_only() -> None:
    decoder = FrameDecoder(Manifold((True, False)), (4, 4), hidden_sizes=(8,), num_harmonics=3)
    q = torch.tensor([[0.3, 0.2]])
    turned = q + torch.tensor([[2 * math.pi, 0.0]])
    torch.testing.assert_close(decoder(turned), decoder(q), atol=1e-5, rtol=1e-4)
    assert (decoder(q + torch.tensor([[0.0, 8.0]])) - decoder(q)).abs().max() > 1e-3
    assert [layer.in_features for layer in decoder.layers if hasattr(layer, "in_features")] == [15, 8]


def test_without_harmonics_a_decoder_sees_features() -> None:
    decoder = FrameDecoder(Circle(), (4, 4), hidden_sizes=(8,), num_harmonics=0)
    q = torch.linspace(-3, 3, 5).unsqueeze(-1)
    torch.testing.assert_close(decoder(q), decoder.layers(torch.cat([q.sin(), q.cos()], dim=-1)))
    with pytest.raises(ValueError, match="num_harmonics must be 0 or more"):
        FrameDecoder(Circle(), (4, 4), num_harmonics=-1)


def test_harmonics_learn_sharp_edges_sooner() -> None:
    q = torch.linspace(-1.5, 1.5, 200).unsqueeze(-1)
    edges = torch.linspace(-1.4, 1.4, 16)
    target = ((q - edges).abs() < 0.2).to(q)  # pixels that are white while something passes
    losses = []
    for count in (0, 12):
        torch.manual_seed(0)
        decoder = FrameDecoder(Euclidean(), (4, 4), hidden_sizes=(64,), num_harmonics=count)
        optimiser = torch.optim.Adam(decoder.parameters(), lr=3e-3)
        for _ in range(200):
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(decoder(q), target)
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 0.5 * losses[0]


def test_coordinates_invert_features() -> None:
    manifold = Manifold((True, False, True))
    q = torch.tensor([[3.0, -5.0, -2.0], [0.1, 7.0, 1.5]])
    torch.testing.assert_close(coordinates_of(3.0 * manifold.features(q), manifold)[:, [0, 2]], q[:, [0, 2]])
    torch.testing.assert_close(coordinates_of(manifold.features(q), manifold), q)


class Taught(ClipEncoder):
    """An encoder whose frames tell their position: the first pixels hold its features."""

    def codes(self, pixels: Tensor) -> Tensor:
        size = self.manifold.num_features
        return torch.cat([2 * pixels[..., :size] - 1, 0 * pixels[..., : self.num_codes]], dim=-1)


def clips(manifold: Manifold, times: Tensor, q: Tensor) -> Trajectories:
    frames = torch.zeros(*q.shape, 12, 12)
    frames[..., 0, : manifold.num_features] = 0.5 * (manifold.features(q.unsqueeze(-1)) + 1)
    return Trajectories.from_frames(frames, times)


@pytest.mark.parametrize("manifold", [Circle(), Euclidean(1)])
def test_an_untrained_encoder_reads_position_and_velocity_off_the_first_frames(manifold: Manifold) -> None:
    times = 0.1 * torch.arange(8).double()
    start = torch.tensor([3.0, -0.2, -3.1]) if manifold.any_periodic else torch.tensor([0.1, -0.2, 0.0])
    speed = torch.tensor([2.0, -1.0, -3.0]) if manifold.any_periodic else torch.tensor([1.0, -0.5, 0.3])
    q = start[:, None] + speed[:, None] * times + 0.2 * times**2  # crosses the cut of the circle
    data = clips(manifold, times, q)
    found = Taught((12, 12), manifold, velocity_scale=3.0).to(data.values.dtype)(data)
    torch.testing.assert_close(found.loc[:, 1], speed.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loc[:, 0], start.double(), rtol=1e-4, atol=1e-5)
    assert bool((found.scale > 0).all())


def test_frames_that_are_missing_or_beyond_its_reading_do_not_matter() -> None:
    torch.manual_seed(0)
    times = 0.1 * torch.arange(8).double()
    data = clips(Circle(), times, torch.linspace(0, 1, 8).expand(2, 8).clone())
    encoder = ClipEncoder((12, 12), Circle(), velocity_scale=3.0, num_frames=5, hidden_sizes=(8,))
    encoder = encoder.to(data.values.dtype)
    torch.nn.init.normal_(encoder.head.weight)
    frames = data.frames.clone()
    frames[:, 5:] = 0.3
    torch.testing.assert_close(
        encoder(Trajectories.from_frames(frames, times)).loc, encoder(data).loc, rtol=0, atol=0
    )
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 2] = False
    one, other = (data.frames.clone() for _ in range(2))
    other[:, 2] = 0.7
    loc = [encoder(Trajectories.from_frames(x, times, mask=mask)).loc for x in (one, other)]
    torch.testing.assert_close(*loc, rtol=0, atol=0)
    assert bool((loc[0] != encoder(data).loc).any())


def test_velocities_stay_where_a_lie_group_step_has_a_solution() -> None:
    times = 0.1 * torch.arange(8).double()
    data = clips(Circle(), times, torch.linspace(0, 20, 8)[None])
    encoder = Taught((12, 12), Circle(), velocity_scale=3.0, max_velocity=9.0).to(data.values.dtype)
    assert float(encoder(data).loc[0, 1].detach().abs()) < 9.0


def test_gradients_reach_every_weight() -> None:
    data = clips(Circle(), 0.1 * torch.arange(8).double(), torch.linspace(0, 1, 8).expand(2, 8).clone())
    encoder = ClipEncoder((12, 12), Circle(), velocity_scale=3.0, hidden_sizes=(8,)).to(data.values.dtype)
    torch.nn.init.normal_(encoder.head.weight)
    found = encoder(data)
    (found.loc.sum() + found.scale.sum() + found.coupling.sum()).backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert bool(torch.isfinite(weight.grad).all()), name
        assert float(weight.grad.abs().sum()) > 0, name


def test_one_frame_shows_no_velocity() -> None:
    with pytest.raises(ValueError, match="num_frames must be at least 2"):
        ClipEncoder((12, 12), Circle(), velocity_scale=math.pi, num_frames=1)


def test_deviations_can_be_set_and_do_not_grow() -> None:
    data, _ = simulate_clips("pendulum", num_clips=2, num_times=12, size=12)
    encoder = ClipEncoder((12, 12), Circle(), velocity_scale=3.0, hidden_sizes=(8,)).to(data.values.dtype)
    before = encoder(data)
    encoder.set_scale(torch.tensor([0.003, 0.02], dtype=torch.float64))
    after = encoder(data)
    torch.testing.assert_close(after.scale, torch.tensor([[0.003, 0.02]], dtype=torch.float64).expand(2, 2))
    torch.testing.assert_close(after.loc, before.loc)
    encoder.set_scale(torch.tensor([10.0, 10.0], dtype=torch.float64))
    torch.testing.assert_close(encoder(data).scale, before.scale)


def test_a_taught_encoder_reads_the_first_frames() -> None:
    data, path = simulate_clips("mass_spring", num_clips=4, num_times=40, size=12)
    model = PixelVIN(data, PixelVINConfig(integrator="velocity_verlet", hidden_sizes=(32,)))
    encoder = model.make_encoder(data)
    parameters = list(model.decoder.parameters())
    with seeded(0):
        first = teach_decoder(model.logits, parameters, data, path, num_steps=2)
        last = teach_decoder(model.logits, parameters, data, path, num_steps=300)
        teach_encoder(encoder, data, path, num_steps=1200)
    assert last < 0.3 * first
    found = encoder(data)
    error = found.loc.detach() - torch.cat([path.q, path.v], dim=-1)[:, 0]
    pixel = 0.18  # the width of one, within which frames are alike
    assert bool((error[:, 0].abs() < pixel).all())
    assert bool((error[:, 1].abs() < 0.6).all())  # of velocities up to 2.2
    assert float(error[:, 1].square().mean().sqrt()) < 0.3


def test_on_a_line_an_encoder_reads_the_turn_in_which_clips_begin() -> None:
    time = torch.linspace(0, 6, 61, dtype=torch.float64)
    q = 3.0 + 2.5 * time.unsqueeze(-1)  # more than two turns
    q = q.unsqueeze(0)
    frames = film("pendulum", q, size=12).to(q)
    data = Trajectories.from_frames(frames, time.unsqueeze(0))
    path = Trajectory(data.times, q, torch.full_like(q, 2.5))
    config = PixelVINConfig(integrator="velocity_verlet", hidden_sizes=(32,))
    encoder = PixelVIN(data, config).make_encoder(data)
    with seeded(0):
        teach_encoder(encoder, data, path, num_steps=800, period=2 * math.pi)
    with torch.no_grad():
        found = encoder(data.windows(10)).loc[:, 0]
    # Half a turn to either side of 3.0 is nearest to the beginning; the last windows cross the cut.
    assert float((found[:3] - 3.0).abs().max()) < 0.8
    once_round = 25  # frames; the motion is as at the beginning
    assert float((found[once_round : once_round + 3] - 3.0).abs().max()) < 0.8
