"""Figures of uncertainty growth; see `vinppl.plotting` for what all figures of the library share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vinppl._checks import require, require_choices
from vinppl.growth import WORDS, growth_of, mean_growth
from vinppl.plotting import COLOURS, DPI, GREY, WIDTH, DisplayedFigure, columns_that_fit, current_width, tidy

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["plot_growth_comparison", "plot_uncertainty_growth"]

Array = NDArray[Any]

PART_COLOURS = {
    "initial_state": COLOURS["blue"],
    "mass": COLOURS["purple"],
    "potential": COLOURS["vermilion"],
    "dynamics": COLOURS["vermilion"],
    "forces": COLOURS["green"],
    "discrepancy": COLOURS["yellow"],
    "observation": "#BBBBBB",
    "other": COLOURS["black"],
}
SPARE_COLOURS = (COLOURS["sky"], COLOURS["orange"], COLOURS["purple"], COLOURS["black"])
NUM_BARS = 8


def plot_uncertainty_growth(
    source: xr.Dataset | InferenceData | xr.DataTree,
    *,
    trajectory: int | str | None = None,
    channels: Sequence[str] | None = None,
) -> Figure:
    """Plot how the predictive spread grows, which sites make it, and by which law.

    Args:
        source: from `vinppl.growth.uncertainty_growth`, or a forecast file that holds it.
        trajectory: index or name; by default the mean of variances over trajectories, or the first one
            where they have different horizons.
        channels: names of the channels to draw; by default all.

    Returns:
        A row for each channel: on the left the predictive standard deviation with a band of its Monte Carlo
        error, and the root of each part of the variance; on the right the shares of the parts, stacked, with
        a bar of each part's Monte Carlo error in its middle. Below, where the model records states: the mean
        log distance of draws, of every trajectory and of all, with the fitted law as far as it was fitted;
        and the share of draws that still agree with another one, or with the truth.

    Raises:
        KeyError: if a forecast holds no uncertainty growth.
        ValueError: for an unknown trajectory or channel.
    """
    growth = growth_of(source)
    horizons = growth["horizons"].values
    same = np.allclose(horizons, horizons[:1], rtol=1e-9, atol=1e-12, equal_nan=True)
    mean = mean_growth(growth, trajectory if trajectory is not None or same else 0)
    names = [str(name) for name in mean["channel"].values]
    chosen = list(channels or names)
    require_choices("channels", chosen, names)
    has_law = "separation" in growth
    rows = len(chosen) + has_law
    beside = columns_that_fit(2)
    size = (current_width(), 0.9 + 1.9 * (2 * rows // beside))
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(2 * rows // beside, beside, squeeze=False).reshape(rows, 2)
    parts = _drawn_parts(mean)
    for (left, right), name in zip(grid, chosen, strict=False):
        at = mean.sel(channel=name)
        unit = json.loads(mean.attrs["channel_unit"])[names.index(name)]
        _draw_deviation(left, at, parts, _labelled(f"sd of {name}", unit))
        _draw_shares(right, at, parts)
    if has_law:
        _draw_separation(grid[-1, 0], growth)
        _draw_validity(grid[-1, 1], growth)
    label = _labelled("horizon", growth.attrs["time_unit"])
    for ax in grid[[len(chosen) - 1, -1]].ravel():
        ax.set_xlabel(label)
    for ax in grid.ravel():
        ax.margins(x=0.01)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns_that_fit(min(5, len(labels)), 1.4),
        frameon=False,
        fontsize="small",
    )
    figure.align_ylabels(grid[:, 0])
    return figure


def plot_growth_comparison(
    growths: Mapping[str, xr.Dataset | InferenceData | xr.DataTree],
    *,
    trajectory: int | str | None = None,
    channel: str | None = None,
) -> Figure:
    """Plot one channel's predictive spread and the shares of its parts for several forecasts.

    Args:
        growths: by the title of their column.
        trajectory: index or name; by default the mean of variances over trajectories.
        channel: name of the channel; by default the first.

    Returns:
        A column for each forecast, the upper panels on one scale.
    """
    require(len(growths) >= 1, "there must be at least one forecast", "none")
    size = (max(WIDTH, 2.6 * len(growths)), 4.6)
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(growths), squeeze=False, sharey="row", sharex="col")
    handles: dict[str, Any] = {}
    for (upper, lower), (title, source) in zip(grid.T, growths.items(), strict=True):
        mean = mean_growth(growth_of(source), trajectory)
        names = [str(name) for name in mean["channel"].values]
        name = channel or names[0]
        require(name in names, f"channel must be one of {', '.join(names)}", repr(name))
        at, parts = mean.sel(channel=name), _drawn_parts(mean)
        unit = json.loads(mean.attrs["channel_unit"])[names.index(name)]
        _draw_deviation(upper, at, parts, _labelled(f"sd of {name}", unit) if not handles else "")
        _draw_shares(lower, at, parts)
        if handles:
            lower.set_ylabel("")
        upper.set_title(title, fontsize="medium")
        lower.set_xlabel(_labelled("horizon", mean.attrs["time_unit"]))
        drawn, labels = upper.get_legend_handles_labels()
        handles |= {
            label: handle for handle, label in zip(drawn, labels, strict=True) if label not in handles
        }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=5, frameon=False, fontsize="small"
    )
    return figure


def _labelled(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _drawn_parts(mean: xr.Dataset) -> list[str]:
    """Return the parts of measurements that are more than a thousandth somewhere."""
    shares = abs(mean["obs_parts"]) / mean["obs_variance"].clip(min=1e-300)
    return [str(part) for part in mean["part"].values if float(shares.sel(part=part).max()) > 1e-3]


def _colour(part: str, parts: Sequence[str]) -> str:
    own = [name for name in parts if name not in PART_COLOURS]
    return PART_COLOURS.get(part) or SPARE_COLOURS[own.index(part) % len(SPARE_COLOURS)]


def _draw_deviation(ax: Axes, at: xr.Dataset, parts: Sequence[str], label: str) -> None:
    """Draw the standard deviation of one channel and the roots of its parts."""
    t, variance, error = at["horizons"], at["obs_variance"].values, at["obs_variance_error"].values
    low, high = np.sqrt(np.maximum(variance - error, 0.0)), np.sqrt(variance + error)
    ax.fill_between(t, low, high, color=COLOURS["black"], alpha=0.25, linewidth=0)
    ax.plot(t, np.sqrt(variance), color=COLOURS["black"], linewidth=1.4, label="all")
    for part in parts:
        root = np.sqrt(np.maximum(at["obs_parts"].sel(part=part).values, 0.0))
        ax.plot(t, root, color=_colour(part, parts), linewidth=1, label=WORDS.get(part, part))
    tidy(ax)
    ax.set_ylim(0, max(1.05 * float(high.max()), ax.get_ylim()[1] if ax.get_ylim()[0] == 0 else 0.0))
    ax.set_ylabel(label)


def _draw_shares(ax: Axes, at: xr.Dataset, parts: Sequence[str]) -> None:
    """Draw the shares of the parts, stacked, with bars of their errors."""
    t = at["horizons"].values
    values = np.clip(at["obs_parts"].sel(part=list(parts)).transpose("part", "horizon").values, 0.0, None)
    errors = at["obs_parts_error"].sel(part=list(parts)).transpose("part", "horizon").values
    total = np.maximum(values.sum(0), 1e-300)
    tops = np.cumsum(values, axis=0) / total
    colours = [_colour(part, parts) for part in parts]
    ax.stackplot(t, values / total, colors=colours, alpha=0.75, linewidth=0)
    for rank, top in enumerate(tops):
        # Bars stand in the middle of their part, and side by side.
        marks = t[0] + (t[-1] - t[0]) * (np.arange(NUM_BARS) + 0.5 + 0.08 * rank) / (NUM_BARS + 0.5)
        middle, share, bar = (
            np.interp(marks, t, curve)
            for curve in (top - 0.5 * values[rank] / total, values[rank] / total, errors[rank] / total)
        )
        wide = share > 0.02
        ax.errorbar(
            marks[wide],
            middle[wide],
            bar[wide],
            fmt="none",
            ecolor=COLOURS["black"],
            elinewidth=0.8,
            capsize=1.5,
        )
    tidy(ax)
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of variance")


def _draw_separation(ax: Axes, growth: xr.Dataset) -> None:
    """Draw mean log distances of draws and the law that was fitted to them."""
    t, logs = growth["separation_horizon"].values, growth["separation"].values
    ax.plot(t, np.exp(logs.T), color=COLOURS["sky"], linewidth=0.6, alpha=0.7)
    ax.plot(t, np.exp(logs.mean(0)), color=COLOURS["blue"], linewidth=1.4, label="mean")
    law = str(growth.attrs["law"])
    if law != "none":
        curve = np.exp(growth["separation_curve"].values)
        style: dict[str, Any] = {"color": COLOURS["vermilion"], "linewidth": 1.6, "linestyle": "--"}
        ax.plot(t, curve, label=f"{law} law", **style)
    saturated = float(growth.attrs["saturated_separation"])
    if np.isfinite(saturated):
        ax.axhline(np.exp(saturated), color=GREY, linestyle=":", linewidth=1, label="unrelated states")
    tidy(ax)
    ax.set_yscale("log")
    ax.set_ylabel("distance of draws")
    ax.legend(frameon=False, fontsize="x-small", loc="lower right", ncols=3, columnspacing=1.0)


def _draw_validity(ax: Axes, growth: xr.Dataset) -> None:
    """Draw the share of draws that predict validly up to each horizon."""
    times = np.sort(growth["valid_time"].values.ravel())
    last = float(np.nanmax(growth["horizons"].values))
    reached = times[times < last * (1 - 1e-9)]
    t = np.concatenate([[0.0], reached, [last]])
    share = 1 - np.concatenate([[0.0], np.arange(1, len(reached) + 1), [len(reached)]]) / len(times)
    ax.step(t, share, where="post", color=COLOURS["blue"], linewidth=1.4)
    ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    tidy(ax)
    ax.set_ylim(0, 1.02)
    against = "true to the truth" if growth.attrs["valid_time_reference"] == "truth" else "that agree"
    ax.set_ylabel(f"share of draws {against}")
