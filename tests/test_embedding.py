"""Coordinates read off frames follow the motion, whatever its topology."""

from __future__ import annotations

import math

import pytest
import torch
from example_data import misfit
from torch import Tensor

from vinppl.embedding import embed_frames
from vinppl.errors import DataError
from vinppl.render import degrade, draw_bar, draw_disc


def swing(amplitude: float, num: int = 60) -> Tensor:
    return amplitude * torch.sin(0.37 * torch.arange(num) + 0.2)


@pytest.mark.parametrize("amplitude", [1.2, 2.0, 2.9])
def test_an_arc_of_bars_is_an_arc_of_the_circle(amplitude: float) -> None:
    angle = swing(amplitude)
    found = embed_frames(draw_bar(angle)[None], circle=True)
    position = found.position[:, 0]
    assert misfit(position, angle) < 0.06
    assert float(position.max() - position.min()) < 2 * math.pi
    if amplitude > 2.5:  # the ends see one another across the top
        torch.testing.assert_close(
            position.max() - position.min(), angle.max() - angle.min(), rtol=0.06, atol=0
        )


def test_bars_that_go_round_close_the_circle() -> None:
    angle = 0.41 * torch.arange(50)
    found = embed_frames(draw_bar(angle)[None], circle=True)
    turned = torch.exp(1j * found.position[:, 0])
    agreement = [float((turned * torch.exp(-1j * sign * angle)).mean().abs()) for sign in (1, -1)]
    assert max(agreement) > 0.99
    assert found.period == pytest.approx(2 * math.pi)


def test_discs_lie_on_a_line_of_unit_size() -> None:
    position = swing(1.3)
    found = embed_frames(draw_disc(position)[None])
    assert misfit(found.position[:, 0], position) < 0.05  # black and white: a pixel is 0.18 wide
    assert float(found.position.square().mean().sqrt()) == pytest.approx(1, rel=1e-3)
    assert found.period is None


def test_a_line_that_closes_is_cut_where_frames_are_rarest() -> None:
    angle = torch.remainder(0.41 * torch.arange(200), 2 * math.pi)
    angle = angle[(angle > 0.5) | (angle < 0.2)]  # a gap at 0.35
    found = embed_frames(draw_bar(angle)[None])
    unrolled = torch.remainder(angle - 0.35, 2 * math.pi)
    assert found.period is not None
    assert misfit(found.position[:, 0], unrolled) < 0.05


def test_alike_and_missing_frames() -> None:
    position = swing(1.3).round(decimals=1)
    frames = draw_disc(torch.stack([position, position.flip(0)]))
    seen = torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.8
    found = embed_frames(frames, seen)
    assert len(found.position) == int(seen.sum())
    truth = torch.stack([position, position.flip(0)])[found.clip, found.time]
    assert misfit(found.position[:, 0], truth) < 0.1


def test_clips_that_have_no_frame_in_common_are_joined_where_nearest() -> None:
    low, high = torch.linspace(-1.4, -0.5, 20), torch.linspace(0.4, 1.4, 20)
    found = embed_frames(draw_disc(torch.stack([low, high])), num_neighbours=3)
    order = found.position[:, 0] * torch.sign(found.position[-1, 0])
    assert bool((order[1:] >= order[:-1] - 0.01).all())


def test_noise_blur_and_shake_leave_the_order() -> None:
    position = swing(1.3)
    frames = degrade(draw_disc(position, levels="grey"), blur=1.0, noise=0.1, shake=0.3)
    found = embed_frames(frames[None])
    assert misfit(found.position[:, 0], position) < 0.15


def test_frames_without_motion_and_a_torus_are_refused() -> None:
    with pytest.raises(DataError, match="frames must show a motion"):
        embed_frames(draw_disc(torch.zeros(10))[None])
    with pytest.raises(ValueError, match="a circle has one coordinate"):
        embed_frames(draw_bar(swing(1.0))[None], dim=2, circle=True)


def test_a_closed_curve_is_measured_along_its_length() -> None:
    turn = torch.linspace(0, 2 * math.pi, 200)[:-1]
    true = turn + 0.6 * turn.sin()  # frames are dense in one part, which bends the two axes of the ring
    found = embed_frames(draw_bar(true).unsqueeze(0), circle=True).position[:, 0]
    apart = [torch.exp(1j * (sign * found - true)) for sign in (1, -1)]
    assert min(float((x / x.mean()).angle().square().mean().sqrt()) for x in apart) < 0.03
