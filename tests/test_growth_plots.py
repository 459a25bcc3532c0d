"""Figures of uncertainty growth: what they show, and that wrong requests are named."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from vinppl.growth_plots import plot_growth_comparison, plot_uncertainty_growth
from vinppl.plotting import figure_width, save_figure

PARTS = ("initial_state", "potential", "friction of the pivot", "observation")
T = np.linspace(0.0, 10.0, 60)


def growth(*, law: str = "linear", ragged: bool = False, states: bool = True) -> xr.Dataset:
    """A made-up growth of two trajectories and two channels."""
    size = np.stack([1 + 0 * T, 0.3 * T**2, 0.02 * T, 4 + 0 * T], axis=-1)  # (horizon, part)
    parts = np.stack([1e-4 * size, 2e-4 * size])[:, :, None] * np.array([1.0, 0.5])[:, None]
    dims = ("trajectory", "horizon", "channel")
    horizons = np.stack([T, T])
    if ragged:
        horizons[1, 40:] = np.nan
        parts[1, 40:] = np.nan
    variance = parts.sum(-1)
    variables: dict = {
        "horizons": (("trajectory", "horizon"), horizons),
        "obs_variance": (dims, variance),
        "obs_variance_error": (dims, 0.05 * variance),
        "obs_sd": (dims, variance**0.5),
        "obs_parts": ((*dims, "part"), parts),
        "obs_parts_error": ((*dims, "part"), 0.1 * parts),
    }
    if states:
        logs = np.log(0.01 * np.sqrt(1 + T**2))
        curve = np.where(T < 6, logs, np.nan)
        variables |= {
            "separation": (("trajectory", "separation_horizon"), np.stack([logs, logs + 0.1])),
            "separation_curve": (("separation_horizon",), curve),
            "valid_time": (("growth_draw", "trajectory"), np.linspace(2, 12, 40).clip(max=10).reshape(20, 2)),
        }
    return xr.Dataset(
        variables,
        coords={
            "trajectory": ["a", "b"],
            "horizon": T,
            "separation_horizon": T,
            "channel": ["angle", "rate"],
            "part": list(PARTS),
        }
        if states
        else {"trajectory": ["a", "b"], "horizon": T, "channel": ["angle", "rate"], "part": list(PARTS)},
        attrs={
            "law": law,
            "time_unit": "s",
            "channel_unit": json.dumps(["rad", ""]),
            "saturated_separation": -0.3 if law != "none" else float("-inf"),
            "valid_time_reference": "draws",
        },
    )


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_all_panels_are_there() -> None:
    figure = plot_uncertainty_growth(growth())
    figure.draw_without_rendering()
    axes = figure.axes
    assert len(axes) == 6
    assert [ax.get_ylabel() for ax in axes] == [
        "sd of angle (rad)",
        "share of variance",
        "sd of rate",
        "share of variance",
        "distance of draws",
        "share of draws that agree",
    ]
    assert axes[2].get_xlabel() == axes[5].get_xlabel() == "horizon (s)"
    assert legend_of(figure) == [
        "all",
        "the initial state",
        "the potential",
        "friction of the pivot",
        "measurement noise",
    ]
    whole = axes[0].lines[0]
    assert np.allclose(whole.get_ydata(), growth()["obs_variance"].mean("trajectory").isel(channel=0) ** 0.5)
    areas = [c for c in axes[1].collections if isinstance(c, PolyCollection)]
    assert len(areas) == 4
    top = max(float(area.get_paths()[0].vertices[:, 1].max()) for area in areas)
    assert top == pytest.approx(1.0)
    assert axes[1].containers, "bars of Monte Carlo error"
    assert axes[4].get_yscale() == "log"
    assert {"mean", "linear law", "unrelated states"} == set(axes[4].get_legend_handles_labels()[1])
    curve = next(line for line in axes[4].lines if line.get_label() == "linear law")
    assert np.isnan(curve.get_ydata()[T > 6]).all()
    steps = axes[5].lines[0]
    assert steps.get_ydata()[0] == 1.0
    # Two of ten units of time hold those of 40 draws that stay valid to the end.
    assert steps.get_ydata()[-1] == pytest.approx(np.mean(np.linspace(2, 12, 40) >= 10))


def test_panels_stand_below_each_other_where_it_is_narrow() -> None:
    with figure_width(4.0):
        figure = plot_uncertainty_growth(growth())
    figure.draw_without_rendering()
    assert [ax.get_ylabel() for ax in figure.axes[:3]] == [
        "sd of angle (rad)",
        "share of variance",
        "sd of rate",
    ]
    tops = [ax.bbox.y1 for ax in figure.axes]
    assert tops == sorted(tops, reverse=True)
    assert figure.get_size_inches()[0] == 4.0


def test_one_trajectory_one_channel_and_no_law() -> None:
    figure = plot_uncertainty_growth(growth(states=False), trajectory="b", channels=["rate"])
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    expected = growth()["obs_sd"].sel(trajectory="b", channel="rate")
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), expected)
    figure = plot_uncertainty_growth(growth(ragged=True))
    assert len(figure.axes[0].lines[0].get_ydata()) == 60  # of the first trajectory, which is the longer one
    figure = plot_uncertainty_growth(growth(ragged=True), trajectory=1)
    assert len(figure.axes[0].lines[0].get_ydata()) == 40
    figure = plot_uncertainty_growth(growth(law="none"))
    figure.draw_without_rendering()
    assert figure.axes[4].get_legend_handles_labels()[1] == ["mean"]


def test_forecasts_side_by_side(tmp_path) -> None:
    other = growth()
    other["obs_variance"] = 9 * other["obs_variance"]
    figure = plot_growth_comparison({"narrow": growth(), "wide": other}, channel="rate")
    figure.draw_without_rendering()
    assert [ax.get_title() for ax in figure.axes[:2]] == ["narrow", "wide"]
    highest = float(other["obs_variance"].mean("trajectory").sel(channel="rate").max()) ** 0.5
    assert figure.axes[0].get_ylim()[1] > highest
    assert save_figure(figure, tmp_path / "compared.png").stat().st_size > 1000


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ValueError, match="channels must be among angle, rate; got force"):
        plot_uncertainty_growth(growth(), channels=["force"])
    with pytest.raises(ValueError, match="trajectory must be an index or one of a, b; got 2"):
        plot_uncertainty_growth(growth(), trajectory=2)
    with pytest.raises(ValueError, match="channel must be one of angle, rate; got 'force'"):
        plot_growth_comparison({"one": growth()}, channel="force")
    with pytest.raises(ValueError, match="at least one forecast"):
        plot_growth_comparison({})
