"""The container: shapes, parts, windows, resampling, conversion."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from vinppl.data import Channel, Trajectories, column_spec, pixel_channels, write_csv
from vinppl.errors import DataError
from vinppl.state import Trajectory

few = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def ragged(lengths: list[int], missing: float = 0.0, seed: int = 0, drive: bool = False) -> Trajectories:
    """Two channels of noise at irregular times, some values missing."""
    rng = np.random.default_rng(seed)
    num, longest = len(lengths), max(lengths)
    real = np.arange(longest) < np.array(lengths)[:, None]
    times = np.cumsum(rng.uniform(0.5, 1.5, (num, longest)), axis=1)
    times = np.take_along_axis(times, np.minimum(np.arange(longest), np.array(lengths)[:, None] - 1), 1)
    observed = real[..., None] & (rng.random((num, longest, 2)) >= missing)
    observed[0, 0], observed[0, 1] = True, True
    return Trajectories(
        torch.from_numpy(times),
        torch.from_numpy(np.where(observed, rng.normal(size=(num, longest, 2)), 0.0)),
        torch.from_numpy(observed),
        (Channel("q", "position", 0), Channel("v", "velocity", 0)),
        drive=torch.from_numpy(np.where(real[..., None], rng.normal(size=(num, longest, 1)), 0.0))
        if drive
        else None,
    )


many_lengths = st.lists(st.integers(2, 9), min_size=1, max_size=5)


# Construction


def test_defaults() -> None:
    data = ragged([3, 5], drive=True)
    assert data.names == ("0", "1")
    assert data.coordinate_names == ("q0",)
    assert data.drive_names == ("u",)
    assert (data.num_trajectories, data.num_times, data.num_channels, data.dim) == (2, 5, 2, 1)
    assert data.lengths.tolist() == [3, 5]
    assert data.num_observed == 16
    assert "2 x 3 to 5 times" in repr(data)
    assert "0 of 16 values missing" in repr(data)


def bad_parts() -> dict[str, tuple[dict[str, object], str]]:
    data = ragged([3, 5])
    times, values, mask = data.times.clone(), data.values.clone(), data.mask.clone()
    decreasing, early, padded = times.clone(), times.clone(), mask.clone()
    decreasing[1, 2] = 0.0
    early[1, 1] = early[1, 0]
    padded[0, 4, 0] = True
    q = Channel("q", "position", 0)
    return {
        "integer times": ({"times": times.long()}, "times must be a tensor of floats"),
        "flat times": ({"times": times[0]}, "times must have shape"),
        "no channel": ({"channels": ()}, "at least one channel"),
        "values shape": ({"values": values[:, :3]}, r"values must have shape \(2, 5, 2\)"),
        "mask type": ({"mask": mask.double()}, "mask must be a boolean tensor"),
        "nan": ({"values": values / 0}, "values must be finite.*Put 0 where"),
        "infinite time": ({"times": times / 0}, "times must be finite"),
        "decreasing": ({"times": decreasing}, "times must not decrease; .*trajectory 1, sample 2"),
        "repeated": ({"times": early}, "only as padding at the end.*trajectory 1, sample 1"),
        "observed padding": ({"mask": padded}, "padding and cannot be observed"),
        "drive shape": ({"drive": times}, r"drive must be .* \(2, 5, num_drives\)"),
        "drive names": ({"drive_names": ("u",)}, "one name for each of 0 input signals"),
        "names": ({"names": ("a",)}, "one label for each of 2 trajectories; got 1"),
        "same channel": ({"channels": (q, q)}, "channels must have different names; got q, q"),
        "coordinates": ({"channels": (q, Channel("p", "position", 1))}, "at least the 2 coordinates"),
    }


@pytest.mark.parametrize("case", bad_parts())
def test_parts_that_do_not_fit_are_refused(case: str) -> None:
    changes, message = bad_parts()[case]
    with pytest.raises(DataError, match=message):
        dataclasses.replace(ragged([3, 5]), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "force"}, "must be one of position, velocity"),
        ({"coordinate": -1}, "must be 0 or more"),
        ({"quantity": "velocity", "angle": True}, "only a position can be an angle"),
        ({"quantity": "pixel", "angle": True}, "only a position can be an angle; got a pixel"),
        ({"quantity": "pixel", "coordinate": 1}, "a pixel measures no coordinate.*from_frames"),
    ],
)
def test_channels_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Channel(**{"name": "x", "quantity": "position", "coordinate": 0, **changes})  # type: ignore[arg-type]


# Arrays


def test_from_arrays_shapes() -> None:
    t = np.arange(4.0)
    one = Trajectories.from_arrays(t, np.sin(t))
    assert one.values.shape == (1, 4, 1)
    assert one.channels[0].name == "q"
    two = Trajectories.from_arrays(
        t, np.stack([np.sin(t), np.cos(t)], -1), quantities=("position", "velocity")
    )
    assert two.values.shape == (1, 4, 2)
    assert two.dim == 1
    both = Trajectories.from_arrays(np.stack([t, 2 * t]), np.stack([t, -t]))
    assert both.values.shape == (2, 4, 1)
    assert Trajectories.from_arrays(t, np.random.default_rng(0).normal(size=(3, 4, 2))).dim == 2


def test_from_arrays_keeps_the_type_of_tensors_and_shares_no_memory() -> None:
    t, x = (
        torch.arange(4, dtype=torch.float32),
        torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float32),
    )
    data = Trajectories.from_arrays(t, x)
    assert data.values.dtype == data.times.dtype == torch.float32
    t64, x64 = np.arange(4.0), np.arange(4.0)
    data = Trajectories.from_arrays(t64, x64)
    t64 += 1
    x64 += 1
    assert data.times[0].tolist() == data.values[0, :, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_from_arrays_padding_mask_and_missing() -> None:
    times = [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]]
    values = np.array([[1.0, np.nan, 2.0], [3.0, 4.0, np.nan]])[..., None]
    data = Trajectories.from_arrays(times, values, drive=[1.0, 2.0, 3.0], names=("a", "b"))
    assert data.lengths.tolist() == [3, 2]
    assert data.mask[..., 0].tolist() == [[True, False, True], [True, True, False]]
    assert data.drive is not None
    assert data.drive[..., 0].tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]
    masked = Trajectories.from_arrays(times[0], np.arange(6.0).reshape(2, 3, 1), mask=np.eye(3)[:2] == 0)
    assert masked.num_observed == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1, 2], [1, 2]), "does not fit times of shape"),
        (([], []), "not be empty"),
        (([0, 1], [[1, 2], [3, 4]], {"quantities": ("position",)}), "2 channel.* but 1"),
        (([0, 1], [1, 1]), "column 'q': the value is 1 in every row"),
        (([0, 1], [[1, 2], [3]]), "must be an array of real numbers.*Pad trajectories"),
        (([0, np.nan], [1, 2]), r"trajectory '0', sample 1 .*the time is missing"),
        (([0, 1], [1, 2], {"drive": [1, 2, 3]}), "drive of shape .* one entry for each time"),
        (([0, 1], [1, 2], {"drive": [1, 2], "drive_names": ("a", "b")}), "2 drive_names are given for 1"),
        (([0, 1], [1, 2], {"channels": [], "quantities": []}), "either quantities or channels"),
        (([0, 1], [1, 2], {"quantities": ("speed",)}), "quantity must be one of"),
    ],
)
def test_bad_arrays_are_refused(arguments: tuple, message: str) -> None:
    options = arguments[2] if len(arguments) > 2 else {}
    with pytest.raises(DataError, match=message):
        Trajectories.from_arrays(arguments[0], arguments[1], **options)


def test_from_arrays_sort() -> None:
    data = Trajectories.from_arrays([2.0, 0.0, 1.0], [3.0, 1.0, 2.0], drive=[6.0, 4.0, 5.0], sort=True)
    assert data.values[0, :, 0].tolist() == [1.0, 2.0, 3.0]
    assert data.drive is not None
    assert data.drive[0, :, 0].tolist() == [4.0, 5.0, 6.0]


@few
@given(lengths=many_lengths, missing=st.floats(0, 0.6), seed=st.integers(0, 999), drive=st.booleans())
def test_frames_and_arrays_round_trip(lengths: list[int], missing: float, seed: int, drive: bool) -> None:
    data = ragged(lengths, missing, seed, drive)
    spec = column_spec(data)
    back = Trajectories.from_frame(data.to_frame(), spec)
    assert dataclasses.replace(back, coordinate_names=("q0",)).fingerprint() == data.fingerprint()
    assert len(data.to_frame()) == sum(lengths)
    arrays = data.to_numpy()
    assert np.isnan(arrays["values"]).sum() == arrays["mask"].size - data.num_observed


# What a likelihood needs


def states(num: int, num_times: int, dim: int, *batch: int) -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(2, *batch, num, num_times, dim, generator=generator, dtype=torch.float64)
    return Trajectory(torch.arange(num_times, dtype=torch.float64), q, v)


def test_observe_picks_channels() -> None:
    channels = (Channel("b", "velocity", 1), Channel("a", "position", 0))
    data = Trajectories.from_arrays(
        np.arange(3), np.random.default_rng(0).normal(size=(4, 3, 2)), channels=channels
    )
    assert data.channel_index.tolist() == [3, 0]
    path = states(4, 3, 2, 7)
    seen = data.observe(path)
    assert seen.shape == (7, 4, 3, 2)
    assert torch.equal(seen, torch.stack([path.v[..., 1], path.q[..., 0]], -1))
    for n in range(2):
        alone = dataclasses.replace(
            data,
            values=data.values[..., [n]],
            mask=data.mask[..., [n]],
            channels=(channels[n],),
            coordinate_names=("a", "b"),
        )
        assert torch.equal(alone.observe(path), seen[..., [n]])
    with pytest.raises(ValueError, match="one entry for each of the 2 coordinates"):
        data.observe(states(4, 3, 1))


def test_hidden_coordinates_count() -> None:
    data = Trajectories.from_arrays([0, 1], [1.0, 2.0], coordinate_names=("cart", "pole"))
    assert data.dim == 2


def test_grid_is_shared_and_cached() -> None:
    data = Trajectories.from_arrays([0.0, 1.0, 3.0], np.random.default_rng(0).normal(size=(2, 3, 1)))
    assert data.grid().times.shape == (3,)
    assert data.grid(0.5).num_substeps == (2, 4)
    assert data.grid(0.5) is data.grid(0.5)
    assert ragged([2, 4]).grid().times.shape == (2, 4)


def test_to_changes_the_type_of_everything() -> None:
    data = ragged([3, 4], drive=True).to("cpu", torch.float32)
    assert data.drive is not None
    assert {data.times.dtype, data.values.dtype, data.drive.dtype} == {torch.float32}
    late = Trajectories.from_arrays(1.7e9 + 0.01 * np.arange(5), np.arange(5.0))
    with pytest.raises(DataError, match=r"different times become equal in torch.float32.*subtract the first"):
        late.to(dtype=torch.float32)


def test_fingerprint_depends_on_everything() -> None:
    data = ragged([3, 4], 0.2, drive=True)
    assert data.drive is not None
    variants = [
        data,
        dataclasses.replace(data, times=data.times * 2),
        dataclasses.replace(data, values=data.values * 2),
        dataclasses.replace(data, mask=torch.zeros_like(data.mask)),
        dataclasses.replace(data, names=("a", "b")),
        dataclasses.replace(data, drive=data.drive * 2),
        dataclasses.replace(data, time_unit="s"),
        dataclasses.replace(data, channels=data.channels[::-1]),
        data.to(dtype=torch.float32),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert ragged([3, 4], 0.2, drive=True).fingerprint() == data.fingerprint()


# Parts


def test_select() -> None:
    data = ragged([3, 5, 4], drive=True)
    for indices in ([2, 0], torch.tensor([2, 0]), np.array([2, 0]), slice(2, None, -2)):
        part = data.select(indices)
        assert part.names == ("2", "0")
        assert part.num_times == 4
        assert torch.equal(part.values[1, :3], data.values[0, :3])
    assert data.select(torch.tensor([False, True, False])).names == ("1",)
    with pytest.raises(DataError, match="cannot select from 3 trajectories"):
        data.select([3])
    with pytest.raises(DataError, match="at least one trajectory"):
        data.select([])


def test_split_by_trajectory() -> None:
    data = ragged([3, 5, 4, 4])
    train, test = data.split_by_trajectory(0.75)
    assert (train.names, test.names) == (("0", "1", "2"), ("3",))
    train, test = data.split_by_trajectory(0.5, generator=torch.Generator().manual_seed(1))
    assert sorted(train.names + test.names) == ["0", "1", "2", "3"]
    for fraction in (0.0, 1.0, 1.5):
        with pytest.raises(DataError, match="between 0 and 1"):
            data.split_by_trajectory(fraction)
    with pytest.raises(DataError, match=r"the data have 4 trajectories.*leaves one part empty"):
        data.split_by_trajectory(0.05)


def samples_of(data: Trajectories) -> list[tuple[str, float, list[float], list[bool]]]:
    """All real samples, as plain values."""
    return [
        (name, float(data.times[n, t]), data.values[n, t].tolist(), data.mask[n, t].tolist())
        for n, name in enumerate(data.names)
        for t in range(int(data.lengths[n]))
    ]


@few
@given(lengths=many_lengths, seed=st.integers(0, 999), fraction=st.sampled_from([0.4, 0.5, 0.6]))
def test_split_by_time_parts_every_trajectory(lengths: list[int], seed: int, fraction: float) -> None:
    data = ragged(lengths, 0.3, seed, drive=True)
    train, test = data.split_by_time(fraction)
    assert sorted(samples_of(train) + samples_of(test)) == sorted(samples_of(data))
    for n, length in enumerate(lengths):
        assert int(train.lengths[n]) == round(fraction * length)
        assert float(train.times[n, -1]) < float(test.times[n, 0])
    for part in (train, test):  # padding is clean
        assert part.drive is not None
        pad = torch.arange(part.num_times) >= part.lengths[:, None]
        assert not part.mask[pad].any()
        assert not part.values[pad].any()
        assert not part.drive[pad].any()


def test_measured_times_are_those_of_any_trajectory() -> None:
    values = np.full((2, 6, 1), math.nan)
    values[0, [0, 2, 4], 0], values[1, [0, 3], 0] = (1.0, 2.0, 3.0), (4.0, 5.0)
    data = Trajectories.from_arrays(np.arange(6.0), values, drive=np.arange(12.0).reshape(2, 6, 1))
    kept = data.measured()
    assert kept.times[0].tolist() == [0.0, 2.0, 3.0, 4.0]
    assert kept.values[0, :, 0].tolist() == [1.0, 2.0, 0.0, 3.0]
    assert kept.mask[1, :, 0].tolist() == [True, False, True, False]
    assert kept.drive is not None
    assert kept.drive[1, :, 0].tolist() == [6.0, 8.0, 9.0, 10.0]
    assert kept.measured() is kept


def test_split_by_time_names_the_trajectory_that_is_too_short() -> None:
    with pytest.raises(DataError, match=r"trajectory '1' has 2 samples.*leaves one part empty"):
        ragged([30, 2]).split_by_time(0.9)


def test_first() -> None:
    part = ragged([3, 6]).first(4)
    assert part.lengths.tolist() == [3, 4]
    with pytest.raises(DataError, match="num_times must be at least 1"):
        part.first(0)


# Windows


@few
@given(
    lengths=many_lengths,
    seed=st.integers(0, 999),
    length=st.integers(2, 5),
    stride=st.integers(1, 6),
    start=st.integers(0, 3),
)
def test_windows_cover_what_they_should(
    lengths: list[int], seed: int, length: int, stride: int, start: int
) -> None:
    data = ragged(lengths, 0.3, seed, drive=True)
    expected = [(n, i) for n, size in enumerate(lengths) for i in range(start, size - length + 1, stride)]
    if not expected:
        with pytest.raises(DataError, match="no trajectory is long enough"):
            data.windows(length, stride, start)
        return
    parts = data.windows(length, stride, start)
    assert parts.names == tuple(f"{n}[{i}]" for n, i in expected)
    assert parts.drive is not None
    assert data.drive is not None
    for k, (n, i) in enumerate(expected):
        piece = (n, slice(i, i + length))
        for window, whole in zip(
            (parts.times, parts.values, parts.mask, parts.drive),
            (data.times, data.values, data.mask, data.drive),
            strict=True,
        ):
            assert torch.equal(window[k], whole[piece])
    assert bool((parts.lengths == length).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "length of a window"),
        ((2, 0), "stride of windows"),
        ((2, 1, -1), "start of windows"),
        ((9,), "no trajectory is long enough for windows of 9 samples"),
    ],
)
def test_windows_are_checked(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ragged([4, 6]).windows(*arguments)


# Resampling


def masked(values: Tensor, mask: Tensor) -> list[float | None]:
    return [x if seen else None for x, seen in zip(values.tolist(), mask.tolist(), strict=True)]


def test_resampling_a_line_is_exact() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 5, (3, 40)), axis=1)
    data = Trajectories.from_arrays(times, 2 * times[..., None] - 1, drive=times[..., None])
    new = data.resampled(0.1, max_gap=10.0)
    real = torch.arange(new.num_times) < new.lengths[:, None]
    assert new.lengths.tolist() == [int((row[-1] - row[0]) / 0.1) + 1 for row in times]
    assert torch.equal(new.mask[..., 0], real)
    # Interpolating a line rounds a few times at a magnitude of 10.
    torch.testing.assert_close(new.values[..., 0][real], (2 * new.times - 1)[real], atol=1e-13, rtol=0)
    assert new.drive is not None
    torch.testing.assert_close(new.drive[..., 0][real], new.times[real], atol=1e-13, rtol=0)
    torch.testing.assert_close(new.times[:, 0], data.times[:, 0], atol=0, rtol=0)


def test_resampling_masks_long_gaps_and_keeps_samples_in_them() -> None:
    data = Trajectories.from_arrays([0.0, 1.0, 2.0, 4.0, 7.0, 8.0], [0.0, 1.0, 2.0, 4.0, 7.0, 8.0])
    new = data.resampled(1.0)  # the median spacing is 1, so that gaps up to 2 are filled
    assert masked(new.values[0, :, 0], new.mask[0, :, 0]) == [0, 1, 2, 3, 4, None, None, 7, 8]
    assert bool(data.resampled(1.0, max_gap=3.0).mask.all())
    strict = data.resampled(0.5, max_gap=0.0)
    assert strict.num_observed == 6


def test_resampling_crosses_missing_values_by_channel() -> None:
    values = torch.tensor(
        [[0.0, 0.0], [1.0, float("nan")], [2.0, 4.0], [float("nan"), 6.0]], dtype=torch.float64
    )
    new = Trajectories.from_arrays([0, 1, 2, 3], values).resampled(0.5)
    assert masked(new.values[0, :, 0], new.mask[0, :, 0]) == [0, 0.5, 1, 1.5, 2, None, None]
    assert masked(new.values[0, :, 1], new.mask[0, :, 1]) == [0, 1, 2, 3, 4, 5, 6]


@few
@given(lengths=many_lengths, seed=st.integers(0, 999))
def test_resampling_a_regular_grid_onto_itself_changes_nothing(lengths: list[int], seed: int) -> None:
    data = ragged(lengths, 0.3, seed, drive=True)
    regular = torch.arange(data.num_times) * 0.1 + 0.3
    last = regular[data.lengths - 1]
    data = dataclasses.replace(data, times=torch.minimum(regular, last[:, None]).double())
    new = data.resampled(0.1, max_gap=0.0)
    assert torch.equal(new.mask, data.mask)
    torch.testing.assert_close(new.times, data.times, atol=1e-6, rtol=0)  # the times were rounded to float32
    assert torch.equal(new.values, data.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step must be positive"),
        ({"step": float("nan")}, "step must be positive"),
        ({"step": 1.0, "max_gap": -1.0}, "max_gap must be 0 or more"),
        ({"step": 50.0}, "step must not be longer than a trajectory; .* in trajectory '0'"),
    ],
)
def test_resampling_is_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ragged([2, 9]).resampled(**options)


# Simulated data


def test_from_states() -> None:
    path = states(4, 5, 2, 3)
    data = Trajectories.from_states(path, observe=("velocity", "position"), angles=(1,))
    assert data.values.shape == (12, 5, 4)
    assert [c.name for c in data.channels] == ["v0", "v1", "q0", "q1"]
    assert [c.angle for c in data.channels] == [False, False, False, True]
    seen = data.observe(Trajectory(path.time, path.q.flatten(0, 1), path.v.flatten(0, 1)))
    assert torch.equal(seen, data.values)
    assert data.grid().times.shape == (5,)


def test_from_states_noise_has_the_scale_asked_for() -> None:
    path = states(200, 50, 1)
    generator = torch.Generator().manual_seed(3)
    data = Trajectories.from_states(path, noise_scale=(0.1, 0.0), generator=generator)
    noise = data.values - torch.cat([path.q, path.v], -1)
    # The relative standard error of a standard deviation over 10,000 draws is 0.7 %.
    assert float(noise[..., 0].std()) == pytest.approx(0.1, rel=0.03)
    assert not noise[..., 1].any()
    with pytest.raises(DataError, match="noise needs an explicit generator"):
        Trajectories.from_states(path, noise_scale=0.1)
    with pytest.raises(DataError, match="one entry for each of 2 channels"):
        Trajectories.from_states(path, noise_scale=(0.1, 0.1, 0.1))
    with pytest.raises(DataError, match="noise_scale must be 0 or more"):
        Trajectories.from_states(path, noise_scale=-0.1)
    with pytest.raises(DataError, match="at least one quantity"):
        Trajectories.from_states(path, observe=())


def test_tables_need_distinct_names() -> None:
    data = ragged([3, 4])
    with pytest.raises(DataError, match="trajectories in a table must have different names"):
        data.select([0, 0]).to_frame()
    clash = dataclasses.replace(data, channels=(Channel("time", "position", 0), data.channels[1]))
    with pytest.raises(DataError, match="columns of a table must have different names"):
        clash.to_frame()


# Films


def frames_of(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """Clips of noise, 3 rows by 4 columns."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(length, 3, 4, generator=generator) for length in lengths]


def test_pixels_are_named_by_row_and_column() -> None:
    names = [channel.name for channel in pixel_channels(28, 30)]
    assert names[0] == "p00_00"
    assert names[3 * 30 + 17] == "p03_17"
    assert len(set(names)) == 28 * 30
    assert pixel_channels(2, 101)[-1].name == "p01_100"
    assert {(c.quantity, c.coordinate) for c in pixel_channels(2, 2)} == {("pixel", 0)}
    with pytest.raises(DataError, match="at least 1 pixel"):
        pixel_channels(0, 3)


def test_from_frames_of_one_clip_and_of_several() -> None:
    (clip,) = frames_of(5)
    one = Trajectories.from_frames(clip, 0.1)
    assert one.frames.shape == (1, 5, 3, 4)
    assert torch.equal(one.frames[0], clip)
    assert one.frames.data_ptr() == one.values.data_ptr()
    assert one.frames.data_ptr() != clip.data_ptr()
    assert torch.equal(one.times[0], 0.1 * torch.arange(5))
    assert (one.image_shape, one.num_channels, one.dim, one.time_unit) == ((3, 4), 12, 1, "s")
    assert repr(one) == "Trajectories(1 x 5 times, frames of 3 x 4, 0 of 60 values missing, torch.float64)"
    two = Trajectories.from_frames(torch.stack([clip, clip.flip(0)]), 0.1, names=("a", "b"), dim=2)
    assert two.names == ("a", "b")
    assert two.coordinate_names == ("q0", "q1")
    assert torch.equal(two.frames[1], clip.flip(0))
    named = Trajectories.from_frames(clip, 0.1, coordinate_names=("angle",))
    assert named.coordinate_names == ("angle",)


def test_from_frames_of_different_lengths() -> None:
    long, short = frames_of(5, 3)
    data = Trajectories.from_frames([long, short], 0.5)
    assert data.lengths.tolist() == [5, 3]
    assert data.times[1].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert torch.equal(data.frames[1, :3], short)
    assert not data.frames[1, 3:].any()
    assert not data.mask[1, 3:].any()
    assert data.mask[1, :3].all()
    own = Trajectories.from_frames([long, short], [[0.0, 1.0, 2.0, 3.0, 4.0], np.array([7.0, 8.0, 9.5])])
    assert own.times[1].tolist() == [7.0, 8.0, 9.5, 9.5, 9.5]
    shared = Trajectories.from_frames([long, short], np.arange(5.0))
    assert shared.times[1].tolist() == [0.0, 1.0, 2.0, 2.0, 2.0]
    each = Trajectories.from_frames([short, short], torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 4.0]]))
    assert each.times.tolist() == [[0.0, 1.0, 2.0], [1.0, 3.0, 4.0]]


def test_from_frames_converts_levels_to_the_default_type() -> None:
    levels = np.array([0, 51, 255, 102], np.uint8).reshape(2, 1, 2)
    data = Trajectories.from_frames(levels, 1.0)
    assert data.values.flatten().tolist() == [0.0, 0.2, 1.0, 0.4]
    assert Trajectories.from_frames(levels > 60, 1.0).values.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    deep = np.array([0, 13107, 65535, 0], np.uint16).reshape(2, 1, 2)
    assert Trajectories.from_frames(deep, 1.0).values.flatten().tolist() == [0.0, 0.2, 1.0, 0.0]
    single = Trajectories.from_frames(frames_of(3)[0].float(), 1.0)
    assert single.values.dtype == single.times.dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    try:
        small = Trajectories.from_frames(frames_of(3)[0].double(), 1.0)
        assert small.values.dtype == small.times.dtype == torch.float32
        with pytest.raises(DataError, match="different times become equal"):
            Trajectories.from_frames(frames_of(3)[0], np.array([1e9, 1e9 + 1, 1e9 + 2]))
    finally:
        torch.set_default_dtype(torch.float64)


def test_missing_frames_are_masked() -> None:
    (clip,) = frames_of(5)
    holes = clip.clone()
    holes[2] = float("nan")
    holes[4, 0, 1] = float("nan")
    data = Trajectories.from_frames(holes, 0.1)
    assert data.mask.sum(-1).tolist() == [[12, 12, 0, 12, 11]]
    assert not data.frames[0, 2].any()
    marked = Trajectories.from_frames(clip, 0.1, mask=[True, True, False, True, True])
    assert marked.mask.sum(-1).tolist() == [[12, 12, 0, 12, 12]]
    assert not marked.values[~marked.mask].any()
    pixels = Trajectories.from_frames(clip, 0.1, mask=clip > 0.5)
    assert torch.equal(pixels.mask[0], (clip > 0.5).flatten(1))
    both = Trajectories.from_frames(holes[None], 0.1, mask=torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(both.mask, data.mask)


def bad_frames() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], str]]:
    (clip,) = frames_of(4)
    bytes_of_one = (clip > 0.5).to(torch.uint8)
    return {
        "too bright": ((2 * clip, 0.1), {}, r"must lie in \[0, 1\].*divide by the range"),
        "negative": ((clip - 0.5, 0.1), {}, r"must lie in \[0, 1\].*got values from -0"),
        "infinite": ((clip / 0, 0.1), {}, r"must lie in \[0, 1\].*to inf"),
        "integers": ((bytes_of_one.long(), 0.1), {}, "floats from 0 to 1, uint8.*got int64"),
        "bytes of 0 and 1": ((bytes_of_one, 0.1), {}, "divided by 255.*levels of 0 and 1 only"),
        "complex": ((clip.numpy() + 1j, 0.1), {}, "must be real numbers"),
        "one frame": ((clip[0], 0.1), {}, "must have shape .* an axis of time"),
        "colours": ((clip[None, ..., None], 0.1), {}, "Average colours"),
        "no clip": (([], 0.1), {}, "frames must have shape"),
        "no clips": ((clip[None][:0], 0.1), {}, "at least one clip"),
        "no frames": ((clip[:0], 0.1), {}, "clip 0 must have frames"),
        "sizes": (([clip, clip[:, :2]], 0.1), {}, r"as large as those of the first, 3 x 4; .* of clip 1"),
        "ragged list": (([[1, 2], [3]], 0.1), {}, "different lengths as a list"),
        "step": ((clip, 0.0), {}, "the time between frames must be a positive number; got 0.0"),
        "number of times": ((clip, np.arange(3.0)), {}, "clip 0 has 4 frames and needs as many times"),
        "number of clips": ((clip, np.zeros((2, 4))), {}, "times of 1 clips are needed; got 2"),
        "backwards": ((clip, [0.0, 2.0, 1.0, 3.0]), {}, "times of clip 0 must increase"),
        "nan time": ((clip, [0.0, 2.0, float("nan"), 3.0]), {}, "times of clip 0 must increase"),
        "words": ((clip, ["a", "b", "c", "d"]), {}, "times must be a step or real numbers"),
        "dim": ((clip, 0.1), {"dim": 0}, "dim must be at least 1"),
        "mask": (
            (clip, 0.1),
            {"mask": [True]},
            r"shape \(1, 4\) or \(1, 4, 3, 4\)",
        ),
        "names": ((clip, 0.1), {"names": ("a", "b")}, "one label for each of 1 trajectories"),
    }


@pytest.mark.parametrize("case", bad_frames())
def test_bad_frames_are_refused(case: str) -> None:
    arguments, options, message = bad_frames()[case]
    with pytest.raises(DataError, match=message):
        Trajectories.from_frames(*arguments, **options)


def test_films_and_pixels_belong_together() -> None:
    film = Trajectories.from_frames(frames_of(4)[0], 0.1)
    with pytest.raises(DataError, match="pixels need image_shape"):
        dataclasses.replace(film, image_shape=None)
    with pytest.raises(DataError, match=r"image_shape \(3, 5\) must be .* 12 channels, 12 of them"):
        dataclasses.replace(film, image_shape=(3, 5))
    data = ragged([3, 5])
    with pytest.raises(DataError, match=r"image_shape \(1, 2\) must be .* 0 of them pixels"):
        dataclasses.replace(data, image_shape=(1, 2))
    with pytest.raises(DataError, match="the data have no frames: their channels are q, v"):
        _ = data.frames
    with pytest.raises(DataError, match="pixels measure no coordinate"):
        film.observe(states(1, 4, 1))
    with pytest.raises(DataError, match="observe must name positions and velocities; got pixel"):
        Trajectories.from_states(states(1, 4, 1), observe=("pixel",))


def test_parts_of_films_are_films(tmp_path: Path) -> None:
    data = Trajectories.from_frames(frames_of(6, 6), 0.1)
    train, held_out = data.split_by_time(0.5)
    parts = [
        data.select([1]),
        data.first(4),
        data.last(4),
        data.windows(3),
        *data.split_by_trajectory(0.5),
        train,
        held_out,
        data.resampled(0.05),
        data.to("cpu", torch.float32),
    ]
    assert {part.image_shape for part in parts} == {(3, 4)}
    assert torch.equal(torch.cat([train.frames, held_out.frames], 1), data.frames)
    assert torch.equal(data.windows(3).frames[1], data.frames[0, 1:4])
    middle = data.resampled(0.05).frames[:, 1]
    torch.testing.assert_close(middle, (data.frames[:, 0] + data.frames[:, 1]) / 2)
    assert data.to_numpy()["values"].shape == (2, 6, 12)
    assert data.to_frame().shape == (12, 14)
    turned = dataclasses.replace(data, channels=pixel_channels(4, 3), image_shape=(4, 3))
    assert turned.fingerprint() != data.fingerprint()
    assert Trajectories.from_frames(frames_of(6, 6), 0.1).fingerprint() == data.fingerprint()
    for write in (lambda: write_csv(data, tmp_path / "film.csv"), lambda: column_spec(data)):
        with pytest.raises(DataError, match=r"does not read back as a film.*write_video"):
            write()
    assert not list(tmp_path.iterdir())
