"""The ArviZ adapter, under whichever major is installed; needs neither torch nor a conftest.

`make test-arviz1` runs this file a second time with ArviZ >= 1. With the environment variable
`VINPPL_EXCHANGE` naming a folder, each run leaves its files there and reads those of the other major.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from vinppl import export  # noqa: E402
from vinppl.export import (  # noqa: E402
    add_group,
    flatten_observed,
    get_group,
    group_names,
    read_result,
    to_arviz,
    unit_attribute,
    write_result,
)

az = export.az

CHAINS, DRAWS, TRAJECTORIES, TIMES, CHANNELS = 2, 100, 2, 8, 2
FORECAST_TIMES = 12
SHAPE = (TRAJECTORIES, TIMES, CHANNELS)
GRID = ("trajectory", "time", "channel")
MISSING = (0, slice(3, 5))  # both channels of two times of one trajectory


def example_arguments(*, missing: bool = False, ragged: bool = False) -> dict:
    """Arguments of `to_arviz` for a run with every group."""
    rng = np.random.default_rng(20)
    observed = rng.normal(size=SHAPE)
    means = 0.3 * rng.normal(size=(CHAINS, DRAWS, 1, 1, 1))
    log_likelihood = -0.5 * (observed - means) ** 2
    if missing:
        observed[MISSING] = np.nan
        log_likelihood[:, :, *MISSING] = 0.0  # what a masked Pyro site gives
    sampled = (CHAINS, DRAWS)
    groups = {
        "posterior": {
            "mass": rng.gamma(4.0, size=sampled),
            "initial_position": rng.normal(size=(*sampled, TRAJECTORIES, 2)),
            "potential.weight": rng.normal(size=(*sampled, 3)),
        },
        "sample_stats": {"diverging": rng.random(sampled) > 0.97, "lp": rng.normal(size=sampled)},
        "log_likelihood": {"obs": log_likelihood},
        "posterior_predictive": {"obs": means + rng.normal(size=(*sampled, *SHAPE))},
        "predictions": {"obs": rng.normal(size=(*sampled, TRAJECTORIES, FORECAST_TIMES, CHANNELS))},
        "predictions_constant_data": {"drive": rng.normal(size=(FORECAST_TIMES,))},
        "prior": {"mass": rng.gamma(4.0, size=(1, 50))},
        "prior_predictive": {"obs": rng.normal(size=(1, 50, *SHAPE))},
        "observed_data": {"obs": observed},
        "constant_data": {"drive": rng.normal(size=(TIMES,))},
    }
    coords = {"channel": ["x", "y"], "coordinate": ["x", "y"], "time": 0.1 * np.arange(TIMES)}
    forecast = {"time": 0.1 * np.arange(FORECAST_TIMES)}
    group_coords = {"predictions": forecast, "predictions_constant_data": forecast}
    if ragged:
        groups["constant_data"]["times"] = np.cumsum(rng.random((TRAJECTORIES, TIMES)), axis=-1)
        del coords["time"]
        group_coords = {}
    return {
        "groups": groups,
        "dims": {
            "obs": GRID,
            "initial_position": ("trajectory", "coordinate"),
            "drive": ("time",),
            "times": ("trajectory", "time"),
        },
        "coords": coords,
        "group_coords": group_coords,
        "units": {"time": "seconds", "times": "s", "mass": "kg", "obs": "m"},
        "attrs": {"model": "pendulum", "num_steps": 150, "tolerance": 1e-8, "note": ""},
    }


CASES = {"complete": {}, "missing": {"missing": True}, "ragged": {"missing": True, "ragged": True}}


@pytest.fixture(params=list(CASES))
def result(request):
    return to_arviz(**example_arguments(**CASES[request.param]))


def assert_same(first, second) -> None:
    """Groups, values, dims, coords and attributes are equal."""
    assert set(group_names(first)) == set(group_names(second))
    assert dict(first.attrs) == dict(second.attrs)
    for name in group_names(first):
        xr.testing.assert_identical(get_group(first, name), get_group(second, name))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def test_module_imports_without_torch_and_pyro():
    code = "import sys, vinppl.export; sys.exit(bool({'torch', 'pyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_container_follows_the_installed_major(result):
    expected = xr.DataTree if export.ARVIZ_MAJOR >= 1 else az.InferenceData
    assert isinstance(result, expected)
    assert set(group_names(result)) == set(export.GROUPS)


def test_names_coords_and_units():
    result = to_arviz(**example_arguments())
    posterior, predictions = get_group(result, "posterior"), get_group(result, "predictions")
    assert posterior["mass"].dims == ("chain", "draw")
    assert posterior["initial_position"].dims == ("chain", "draw", "trajectory", "coordinate")
    assert posterior["potential.weight"].dims == ("chain", "draw", "potential.weight_dim_0")
    assert list(posterior["coordinate"].values) == ["x", "y"]
    assert predictions["obs"].dims == ("chain", "draw", *GRID)
    assert predictions["time"].values[-1] == pytest.approx(1.1)
    assert get_group(result, "observed_data")["obs"].dims == GRID
    assert posterior["mass"].attrs == {"units": "kg"}
    assert predictions["time"].attrs == {"units": "s"}
    assert get_group(result, "log_likelihood")["obs"].attrs == {}
    assert dict(posterior.attrs) == dict(result.attrs)
    assert {"created_at", "arviz_version", "vinppl_version", "model"} <= set(result.attrs)


def test_dims_of_one_group_take_precedence():
    groups = {"posterior": {"a": np.ones((1, 5, 3))}, "constant_data": {"a": np.ones(4)}}
    result = to_arviz(groups, dims={"posterior/a": ("coordinate",), "a": ("time",)})
    assert get_group(result, "posterior")["a"].dims[2:] == ("coordinate",)
    assert get_group(result, "constant_data")["a"].dims == ("time",)


def test_missing_data_are_flattened_alike_in_every_group():
    arguments = example_arguments(missing=True)
    result = to_arviz(**arguments)
    keep = np.ones(SHAPE, dtype=bool)
    keep[MISSING] = False
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        variable = get_group(result, group)["obs"]
        assert variable.dims[-1] == "observation"
        given = np.asarray(arguments["groups"][group]["obs"])
        np.testing.assert_array_equal(variable.values, given[..., keep])
    observed, constant = get_group(result, "observed_data"), get_group(result, "constant_data")
    np.testing.assert_array_equal(constant["obs_grid"], arguments["groups"]["observed_data"]["obs"])
    np.testing.assert_array_equal(constant["obs_mask"], keep)
    assert constant["obs_grid"].dims == GRID
    assert get_group(result, "predictions")["obs"].dims == ("chain", "draw", *GRID)
    # The coords lead from every flat entry back to its place on the grid.
    for entry in (0, 7, 20):
        place = {axis: observed[f"observation_{axis}"].values[entry] for axis in GRID}
        assert constant["obs_grid"].sel(place).item() == observed["obs"].values[entry]
    assert observed["observation_time"].attrs == {"units": "s"}


def test_a_mask_hides_values_that_are_not_nan():
    arguments = example_arguments()
    mask = np.ones(SHAPE, dtype=bool)
    mask[1, -1] = False
    result = to_arviz(**arguments, masks={"obs": mask})
    assert get_group(result, "log_likelihood")["obs"].shape == (CHAINS, DRAWS, mask.sum())
    assert np.isfinite(get_group(result, "constant_data")["obs_grid"]).all()


def test_a_log_likelihood_that_is_flat_already_is_kept():
    arguments = example_arguments(missing=True)
    keep = ~np.isnan(arguments["groups"]["observed_data"]["obs"])
    flat = flatten_observed(arguments["groups"]["log_likelihood"]["obs"], keep)
    again = {**arguments["groups"], "log_likelihood": {"obs": flat}}
    dims = {**arguments["dims"], "log_likelihood/obs": ("observation",)}
    result = to_arviz(**{**arguments, "groups": again, "dims": dims})
    np.testing.assert_array_equal(get_group(result, "log_likelihood")["obs"], flat)


def test_two_incomplete_variables_have_dimensions_of_their_own():
    first, second = np.array([1.0, np.nan, 3.0]), np.array([np.nan, 2.0])
    result = to_arviz({"observed_data": {"a": first, "b": second}, "posterior": {"m": np.ones((1, 4))}})
    observed = get_group(result, "observed_data")
    assert observed["a"].dims == ("observation_a",)
    assert observed["b"].dims == ("observation_b",)


def test_flatten_observed_takes_c_order():
    values = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    mask = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(flatten_observed(values, mask)[1, 2], [20, 22, 23])
    with pytest.raises(ValueError, match="axes of mask last"):
        flatten_observed(values, mask[:1])


def test_thinned_predictions_carry_their_draws():
    groups = {"posterior": {"m": np.ones((2, 10))}, "predictions": {"y": np.ones((2, 5, 3))}}
    with pytest.raises(ValueError, match=r"predictions\['y'\].*\(2, 10\) like posterior\['m'\].*thinned"):
        to_arviz(groups)
    draws = np.arange(0, 10, 2)
    result = to_arviz(groups, group_coords={"predictions": {"draw": draws}})
    np.testing.assert_array_equal(get_group(result, "predictions")["draw"], draws)


def test_round_trip_keeps_everything(result, tmp_path):
    path = write_result(result, tmp_path / "deep" / "result.nc")
    assert_same(read_result(path), result)
    assert get_group(read_result(path), "sample_stats")["diverging"].dtype == bool
    assert leftovers(path.parent) == []


def test_arviz_itself_opens_the_file(result, tmp_path):
    path = write_result(result, tmp_path / "result.nc")
    opened = az.from_netcdf(path)
    assert_same(opened, result)
    # A lazily opened file can be written to the very path it comes from.
    write_result(opened, path)
    opened.close()
    assert_same(read_result(path), result)


def test_groups_of_ones_own_are_added_and_kept(result, tmp_path):
    width = xr.DataArray(np.arange(3.0), dims="horizon", coords={"horizon": [0.0, 1.0, 2.0]})
    width["horizon"].attrs = unit_attribute("horizon", "seconds")
    own = xr.Dataset({"width": width}, attrs={"estimator": "by hand"})
    added = add_group(result, "growth", own)
    assert group_names(added) == [*group_names(result), "growth"]
    assert "growth" not in group_names(result)
    back = read_result(write_result(added, tmp_path / "result.nc"))
    xr.testing.assert_identical(get_group(back, "growth"), own)
    assert get_group(back, "growth")["horizon"].attrs == {"units": "s"}
    assert back.attrs == added.attrs == result.attrs
    twice = add_group(added, "growth", 2 * own)
    assert float(get_group(twice, "growth")["width"].max()) == 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ may remark on a group that it does not know
        opened = az.from_netcdf(tmp_path / "result.nc")
    assert "growth" in group_names(opened)
    opened.close()


@pytest.mark.parametrize(
    ("name", "dataset", "error", "message"),
    [
        ("posterior", xr.Dataset(), ValueError, "none of ArviZ's own; got posterior"),
        ("my/group", xr.Dataset(), ValueError, "must be a word; got 'my/group'"),
        ("mine", xr.Dataset({"x": ("i", [1j])}), TypeError, r"mine\['x'\] must hold numbers"),
        ("mine", xr.Dataset(attrs={"a": [1]}), TypeError, r"attrs\['a'\] must be text or a number"),
    ],
)
def test_groups_that_cannot_be_added_are_named(result, name, dataset, error, message):
    with pytest.raises(error, match=message):
        add_group(result, name, dataset)


def test_files_written_by_arviz_are_read(result, tmp_path):
    path = tmp_path / "native.nc"
    result.to_netcdf(str(path), engine="h5netcdf")
    assert_same(read_result(path), result)
    assert_same(read_result(write_result(read_result(path), tmp_path / "again.nc")), result)


# ArviZ 0.23 calls a helper that Matplotlib 3.11 deprecates; nothing here can change that.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")
def test_summary_loo_and_plots_work_on_a_written_file(result, tmp_path):
    import matplotlib.pyplot as plt

    path = write_result(result, tmp_path / "result.nc")
    opened = az.from_netcdf(path)
    assert len(az.summary(opened)) == 1 + 4 + 3
    measured = int(np.isfinite(get_group(opened, "observed_data")["obs"]).sum())
    loo = az.loo(opened)
    assert loo.n_data_points == measured
    elpd = loo.elpd_loo if export.ARVIZ_MAJOR < 1 else loo.elpd
    assert np.isfinite(elpd)
    if export.ARVIZ_MAJOR < 1:
        az.plot_trace(opened)
        az.plot_ppc(opened, num_pp_samples=10)
        az.plot_ppc(opened, group="prior", num_pp_samples=10)
        az.plot_loo_pit(opened, y="obs")
    else:
        az.plot_trace(opened)
        az.plot_trace_dist(opened)
        az.plot_ppc_dist(opened, num_samples=10)
        az.plot_loo_pit(opened)
    assert plt.get_fignums()
    plt.close("all")
    opened.close()


def posterior(**variables: np.ndarray) -> dict:
    return {"posterior": variables}


ONES = np.ones((2, 10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"posteriors": {"m": ONES}}}, "groups must be among .*got posteriors"),
        ({"groups": {"posterior": {}}}, "at least one variable"),
        ({"groups": posterior(m=np.ones(10))}, r"posterior\['m'\] must have shape \(chain, draw"),
        ({"groups": posterior(m=ONES, k=np.ones((2, 9)))}, r"posterior\['k'\].*= \(2, 10\) like"),
        (
            {"groups": {**posterior(m=ONES), "sample_stats": {"lp": np.ones((1, 10))}}},
            r"sample_stats\['lp'\].*= \(2, 10\) like posterior\['m'\].*\(1, 10\)",
        ),
        (
            {"groups": posterior(q=np.ones((2, 10, 3))), "dims": {"q": ("time", "coordinate")}},
            r"posterior\['q'\] must have 2 axes.*\(2, 10, 3\)",
        ),
        ({"groups": posterior(q=np.ones((2, 10, 3))), "dims": {"q": "time"}}, r"Write \('time',\)"),
        ({"groups": posterior(q=np.ones((2, 10, 3, 3))), "dims": {"q": ("a", "a")}}, "must differ"),
        ({"groups": posterior(q=np.ones((2, 10, 3))), "dims": {"q": ("draw",)}}, "must not be 'chain'"),
        (
            {"groups": posterior(q=np.ones((2, 10, 3)), a=ONES), "dims": {"q": ("a",)}},
            r"posterior\['a'\] has the name of a dimension",
        ),
        (
            {
                "groups": posterior(q=np.ones((2, 10, 3))),
                "dims": {"q": ("time",)},
                "coords": {"time": [0, 1]},
            },
            r"coords\['time'\] must have shape \(3,\) for group posterior",
        ),
        (
            {
                "groups": posterior(q=np.ones((2, 10, 3)), r=np.ones((2, 10, 4))),
                "dims": {"q": ("time",), "r": ("time",)},
            },
            r"posterior\['r'\] must have length 3 along 'time' like posterior\['q'\]",
        ),
        ({"groups": posterior(m=ONES), "group_coords": {"prior": {"time": [0]}}}, "groups that are given"),
        (
            {"groups": posterior(m=ONES), "group_coords": {"posterior": {"tme": [0]}}},
            r"group_coords\['posterior'\] must name dimensions",
        ),
        ({"groups": posterior(m=ONES), "masks": {"obs": [True]}}, "masks must name variables"),
        (
            {"groups": {"observed_data": {"y": np.array([1.0, np.nan])}}, "masks": {"y": [True, True]}},
            "1 NaN marked as measured",
        ),
        (
            {"groups": {"observed_data": {"y": np.ones(2)}}, "masks": {"y": [True]}},
            r"masks\['y'\] must have the shape \(2,\)",
        ),
        ({"groups": {"observed_data": {"y": np.full(2, np.nan)}}}, "at least one measured value"),
        (
            {
                "groups": {
                    "observed_data": {"y": np.array([1.0, np.nan])},
                    "posterior_predictive": {"y": np.ones((2, 10, 5))},
                }
            },
            r"posterior_predictive\['y'\].*belong in the group predictions",
        ),
        ({"groups": posterior(**{"a/b": ONES})}, "must not contain '/'"),
        ({"groups": posterior(m=ONES), "units": {"m": "days since 2000"}}, "calendar unit"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": posterior(m=ONES * 1j)}, r"posterior\['m'\] must hold numbers.*complex128"),
        ({"groups": posterior(m=np.full((2, 10), None))}, "dtype object"),
        ({"groups": posterior(m=ONES), "attrs": {"config": {"a": 1}}}, r"attrs\['config'\].*json.dumps"),
    ],
)
def test_what_netcdf_cannot_hold_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        to_arviz(**arguments)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, np.int64, np.uint8, bool])
def test_number_types_survive_a_file(dtype, tmp_path):
    values = np.array([[0, 1, 1, 0]]).astype(dtype)
    result = to_arviz(posterior(m=values))
    read = get_group(read_result(write_result(result, tmp_path / "r.nc")), "posterior")["m"]
    np.testing.assert_array_equal(read.values, values)


def test_unknown_group_is_named(result):
    with pytest.raises(KeyError, match="group must be one of posterior"):
        get_group(result, "posteriors")


@pytest.mark.parametrize(
    ("function", "code", "kind"),
    [("fsync", errno.ENOSPC, OSError), ("replace", errno.EACCES, PermissionError)],
)
def test_a_failed_write_keeps_the_old_file(function, code, kind, tmp_path, monkeypatch):
    path = write_result(to_arviz(posterior(m=ONES)), tmp_path / "result.nc")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(export.os, function, fail)
    with pytest.raises(kind, match=f"could not write the result .{os.strerror(code)}.*result.nc") as caught:
        write_result(to_arviz(posterior(m=2 * ONES)), path)
    assert caught.value.errno == code
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_a_real_write_error_is_reported_and_leaves_nothing(tmp_path):
    """The system refuses to let the file grow, as on a full disk; the interpreter must survive it."""
    code = """
import resource, sys, numpy as np
from vinppl.export import to_arviz, write_result
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
draws = np.random.default_rng(0).normal(size=(1, 50_000))
try:
    write_result(to_arviz({"posterior": {"m": draws}}), sys.argv[1])
except OSError as error:
    sys.exit(0 if "could not write" in str(error) else 3)
sys.exit(4)
"""
    path = tmp_path / "result.nc"
    path.write_text("old")
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_impossible_paths_are_os_errors(tmp_path):
    result = to_arviz(posterior(m=ONES))
    with pytest.raises(IsADirectoryError, match="could not write"):
        write_result(result, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write"):
        write_result(result, tmp_path / "file" / "result.nc")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result file.*absent\.nc"):
        read_result(tmp_path / "absent.nc")
    text = tmp_path / "text.nc"
    text.write_text("time,x\n0,1\n")
    with pytest.raises(OSError, match=r"not a readable result file.*text\.nc"):
        read_result(text)
    whole = write_result(to_arviz(posterior(m=ONES)), tmp_path / "whole.nc").read_bytes()
    cut = tmp_path / "cut.nc"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"not a readable result file.*cut\.nc"):
        read_result(cut)
    flat = tmp_path / "flat.nc"
    xr.Dataset({"m": 1.0}).to_netcdf(flat, engine="h5netcdf")
    with pytest.raises(OSError, match="no ArviZ groups"):
        read_result(flat)


@pytest.mark.skipif("VINPPL_EXCHANGE" not in os.environ, reason="VINPPL_EXCHANGE names no folder")
@pytest.mark.parametrize("case", list(CASES))
def test_exchange_with_the_other_major(case):
    """Leave files for the other major and read what it left, by this module's reader and by ArviZ's."""
    folder = Path(os.environ["VINPPL_EXCHANGE"])
    own = to_arviz(**example_arguments(**CASES[case]))
    write_result(own, folder / f"{case}-written-{export.ARVIZ_MAJOR}.nc")
    own.to_netcdf(str(folder / f"{case}-native-{export.ARVIZ_MAJOR}.nc"), engine="h5netcdf")
    for path in folder.glob(f"{case}-*.nc"):
        opened = az.from_netcdf(path)
        for other in (read_result(path), opened):
            assert set(group_names(other)) == set(export.GROUPS)
            for name in group_names(own):
                xr.testing.assert_equal(get_group(other, name), get_group(own, name))
        assert az.loo(opened).n_data_points == get_group(own, "log_likelihood")["obs"][0, 0].size
        opened.close()
