"""Pictures of systems: their symmetries and areas, the yardsticks of the paper, and worse cameras."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch

from vinppl.errors import DataError
from vinppl.export import get_group, read_result, to_arviz, write_result
from vinppl.posterior import channel_attributes, dataset_coords, masked_values, units
from vinppl.render import degrade, draw_bar, draw_disc, film, simulate_clips

ANGLES = torch.linspace(-4.0, 4.0, 23, dtype=torch.float64)


def centre(frames: torch.Tensor) -> torch.Tensor:
    """Return the mean row (down) and column (to the right) of the light, from the middle, `(*batch, 2)`."""
    size = frames.shape[-1]
    pixel = torch.arange(size, dtype=frames.dtype) - 0.5 * (size - 1)
    light = frames.sum((-2, -1))
    return torch.stack([frames.sum(-1) @ pixel, frames.sum(-2) @ pixel], -1) / light[..., None]


# The bar


def test_a_quarter_turn_of_the_bar_is_one_of_the_picture() -> None:
    turned = draw_bar(ANGLES + math.pi / 2, levels="grey")
    torch.testing.assert_close(turned, torch.rot90(draw_bar(ANGLES, levels="grey"), 1, (-2, -1)))


@pytest.mark.parametrize("levels", ["binary", "grey"])
def test_the_opposite_angle_is_the_mirrored_picture(levels: Any) -> None:
    mirrored = draw_bar(-ANGLES, levels=levels)
    torch.testing.assert_close(mirrored, draw_bar(ANGLES, levels=levels).flip(-1))


def test_the_bob_hangs_down_and_swings_to_the_right() -> None:
    # The light of a bar of length 1 sits half-way, 0.5 / 2.4 of a picture of 120 pixels from the pivot.
    frames = draw_bar(torch.tensor([0.0, math.pi / 2, 0.3]), size=120, levels="grey")
    expected = 25.0 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.cos(0.3), math.sin(0.3)]])
    torch.testing.assert_close(centre(frames), expected, rtol=0, atol=0.02)


def test_the_area_of_the_bar_is_length_times_width() -> None:
    # Black and white, an upright bar of 23.3 columns may gain or lose one.
    for levels, tolerance in (("grey", 0.001), ("binary", 0.045)):
        frames = draw_bar(ANGLES, size=280, length=0.9, width=0.2, levels=levels)  # type: ignore[arg-type]
        area = frames.sum((-2, -1)) * (2.4 / 280) ** 2
        torch.testing.assert_close(area, torch.full_like(area, 0.18), rtol=tolerance, atol=0)


def test_grey_levels_are_smooth_in_the_angle() -> None:
    angle = torch.tensor([0.4], requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: draw_bar(q, size=9, levels="grey"), (angle,))
    assert torch.autograd.gradcheck(lambda q: draw_disc(q, size=9, levels="grey"), (angle,))
    middle = torch.zeros(1, requires_grad=True)  # of the disc, in the middle of a pixel
    draw_disc(middle, size=9, levels="grey").sum().backward()
    assert middle.grad is not None
    assert torch.isfinite(middle.grad).all()


# The disc


def test_the_disc_follows_the_mass() -> None:
    position = torch.linspace(-1.5, 1.5, 9)
    frames = draw_disc(position, size=100, levels="grey")
    torch.testing.assert_close(frames, frames.flip(-2))
    torch.testing.assert_close(frames, frames.flip(0).flip(-1))
    expected = torch.stack([torch.zeros(9), position * 100 / 5.0], -1)
    torch.testing.assert_close(centre(frames), expected, rtol=0, atol=0.02)
    area = frames.sum((-2, -1)) * (5.0 / 100) ** 2
    torch.testing.assert_close(area, torch.full_like(area, math.pi * 0.626**2), rtol=0.005, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_bar(torch.zeros(2), levels="gray"), "levels must be one of binary, grey; got gray"),  # type: ignore[arg-type]
        (lambda: draw_bar(torch.zeros(2), length=0.0), "length and width must be positive"),
        (lambda: draw_bar(torch.zeros(2, dtype=torch.long)), "must be a tensor of floats"),
        (lambda: draw_disc(torch.zeros(2), radius=-1.0), "radius must be positive"),
        (lambda: draw_disc(torch.zeros(2), size=0), "size must be at least 1"),
        (lambda: draw_disc(torch.zeros(2), limit=0.0), "limit must be positive"),
        (lambda: film("kepler", torch.zeros(3, 2)), "system_name must be one of"),
        (lambda: film("pendulum", torch.zeros(3, 2)), r"must have shape \(\*batch, 1\)"),
        (lambda: simulate_clips("duffing", num_clips=1, num_times=5), "system_name must be one of"),
    ],
)
def test_wrong_pictures_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Films


@pytest.mark.parametrize(
    ("name", "pixels", "error"), [("pendulum", 43.6, (6.55, 6.65)), ("mass_spring", 37.0, (6.0, 6.15))]
)
def test_frames_are_as_bright_as_the_papers(name: str, pixels: float, error: tuple[float, float]) -> None:
    data, _ = simulate_clips(name, num_clips=20, num_times=60, seed=3)
    white = data.values.sum(-1)
    assert set(data.values.unique().tolist()) == {0.0, 1.0}
    assert float(white.mean()) == pytest.approx(pixels, abs=0.3)
    all_black = data.values.square().sum(-1).sqrt().mean()
    assert error[0] < float(all_black) < error[1]


def test_clips_show_the_true_path() -> None:
    data, path = simulate_clips("pendulum", num_clips=3, num_times=7, step_size=0.05, seed=2, size=20)
    assert data.frames.shape == (3, 7, 20, 20)
    assert data.time_unit == "s"
    assert data.dim == 1
    assert torch.equal(data.times[0], 0.05 * torch.arange(7))
    assert torch.equal(data.frames, film("pendulum", path.q, size=20))
    again, _ = simulate_clips("pendulum", num_clips=3, num_times=7, step_size=0.05, seed=2, size=20)
    assert again.fingerprint() == data.fingerprint()
    other, _ = simulate_clips("pendulum", num_clips=3, num_times=7, step_size=0.05, seed=4, size=20)
    assert not torch.equal(other.values, data.values)
    assert torch.equal(film("damped_pendulum", path.q), film("pendulum", path.q))


def test_films_become_results_for_arviz(tmp_path: Any) -> None:
    data, _ = simulate_clips("mass_spring", num_clips=1, num_times=3, size=100)
    attributes = channel_attributes(data)
    assert attributes == {"image_shape": json.dumps([100, 100])}  # 10,000 quantities would not fit
    groups = {"posterior": {"mass": [[1.0, 2.0]]}, "observed_data": {"obs": masked_values(data)}}
    dims = {"obs": ("trajectory", "time", "channel")}
    result = to_arviz(groups, dims=dims, coords=dataset_coords(data), units=units(data), attrs=attributes)
    write_result(result, tmp_path / "result.nc")
    observed = get_group(read_result(tmp_path / "result.nc"), "observed_data")
    assert observed["obs"].shape == (1, 3, 10_000)
    assert str(observed["channel"].values[101]) == "p01_01"


# Cameras


@pytest.fixture(name="frames", scope="module")
def _frames() -> torch.Tensor:
    q = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64)
    return draw_disc(q, levels="grey")


def test_nothing_changes_without_faults(frames: torch.Tensor) -> None:
    assert torch.equal(degrade(frames), frames)


def test_offsets_move_all_frames_down_and_to_the_right(frames: torch.Tensor) -> None:
    assert torch.equal(degrade(frames, offset=(2.0, -3.0)), torch.roll(frames, (2, -3), (-2, -1)))
    moved = degrade(frames, offset=(0.3, -0.6))
    torch.testing.assert_close(moved.sum((-2, -1)), frames.sum((-2, -1)))  # of the light nothing is lost
    shift = torch.tensor([0.3, -0.6]).expand(40, 2)
    torch.testing.assert_close(centre(moved) - centre(frames), shift)
    assert not degrade(frames, offset=(28.0, 0.0)).any()


def test_blur_widens_the_light_by_its_variance() -> None:
    frames = torch.zeros(41, 41)
    frames[20, 20] = 1.0
    blurred = degrade(frames, blur=1.5)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-10)
    pixel = torch.arange(41.0) - 20.0
    for side in (-2, -1):
        assert float(blurred.sum(side) @ pixel.square()) == pytest.approx(1.5**2, rel=1e-6)
    assert float(degrade(torch.ones(9, 9), blur=1.0)[0, 0]) < 0.6  # it is black outside


def test_shake_moves_every_frame_by_an_amount_of_its_own() -> None:
    frames = draw_disc(torch.zeros(3000), levels="grey")
    moved = centre(degrade(frames, shake=0.4, seed=1)) - centre(frames)
    # The relative standard error of a standard deviation over 3,000 draws is 1.3 %.
    torch.testing.assert_close(moved.std(0), torch.tensor([0.4, 0.4]), rtol=0.05, atol=0)
    assert float(moved.mean(0).abs().max()) < 0.03
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.07


def test_noise_is_clipped_and_has_a_stream_of_its_own(frames: torch.Tensor) -> None:
    noisy = degrade(frames, noise=0.2, seed=5)
    assert float(noisy.min()) == 0.0
    assert float(noisy.max()) == 1.0
    grey = degrade(torch.full((50, 28, 28), 0.5), noise=0.1, seed=5)
    assert float(grey.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy, degrade(frames, noise=0.2, seed=5))
    assert not torch.equal(noisy, degrade(frames, noise=0.2, seed=6))
    shaken = degrade(frames, noise=0.2, shake=0.5, seed=5)
    inside = (shaken > 0) & (shaken < 1) & (noisy > 0) & (noisy < 1)
    difference = (shaken - noisy - (degrade(frames, shake=0.5, seed=5) - frames))[inside]
    assert float(difference.abs().max()) < 1e-12
    half = degrade(frames.float(), noise=0.2, seed=5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), noisy, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blur": -1.0}, "blur must be 0 or more"),
        ({"noise": math.nan}, "noise must be 0 or more"),
        ({"shake": -0.1}, "shake must be 0 or more"),
    ],
)
def test_wrong_faults_are_named(frames: torch.Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        degrade(frames, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floats of shape"):
        degrade(torch.zeros(4))


def test_pixels_measure_no_coordinate() -> None:
    data, path = simulate_clips("pendulum", num_clips=1, num_times=3)
    for ask in (lambda: data.channel_index, lambda: data.velocity_channels, lambda: data.observe(path)):
        with pytest.raises(DataError, match=r"pixels measure no coordinate.*frames of 28 x 28"):
            ask()
