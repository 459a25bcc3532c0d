"""Figures of calibration: ranks with their envelope, reliability, PIT by horizon, posterior checks,
rankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require
from vinppl.calibration.envelopes import rank_counts, rank_envelope
from vinppl.calibration.predictive import COVERAGES
from vinppl.calibration.ranks import rank_statistic, rank_verdict
from vinppl.plotting import COLOURS, DPI, GREY, WIDTH, DisplayedFigure, tidy

__all__ = ["plot_pit_by_horizon", "plot_ppc", "plot_ranking", "plot_reliability", "plot_sbc"]

Array = NDArray[Any]

SMALL = "small"


def plot_sbc(ranks: Mapping[str, ArrayLike], num_draws: int, *, level: float = 0.99) -> Figure:
    """Plot, for every parameter, how the distribution of its ranks differs from the uniform one.

    Args:
        ranks: by parameter, integers from 0 to `num_draws`, each `(num_simulations,)`.
        num_draws: posterior draws that each rank is among.
        level: probability with which the ranks of a calibrated parameter stay in the grey envelope
            everywhere.

    Returns:
        A panel for each parameter: empirical minus uniform distribution function. A posterior that is too
        narrow rises first and then falls, one that is too wide the other way round; one that is off to a side
        stays on one side of zero.
    """
    require(len(ranks) > 0, "ranks must hold at least one parameter", "none")
    columns = min(4, len(ranks))
    rows = -(-len(ranks) // columns)
    figure = DisplayedFigure(figsize=(WIDTH * 1.25, 0.5 + 1.6 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in grid[len(ranks) :]:
        ax.set_axis_off()
    share = np.arange(num_draws + 2) / (num_draws + 1)
    for ax, (name, values) in zip(grid[: len(ranks)], ranks.items(), strict=True):
        count = np.asarray(values).size
        lower, upper = (_ended(x / count) - share for x in rank_envelope(count, num_draws, level))
        found = _ended(rank_counts(np.asarray(values), num_draws) / count) - share
        passed = rank_statistic(values, num_draws, level=level) <= 1
        ax.fill_between(share, lower, upper, color=GREY, alpha=0.25, linewidth=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.plot(share, found, color=COLOURS["blue" if passed else "vermilion"], linewidth=1.3)
        title = name if passed else f"{name}\n{rank_verdict(values, num_draws, level=level)}"
        ax.set_title(title, fontsize=7, color="black" if passed else COLOURS["vermilion"])
        tidy(ax)
        ax.tick_params(labelsize=7)
    for ax in grid[max(0, len(ranks) - columns) : len(ranks)]:
        ax.set_xlabel("rank, as a share", fontsize=SMALL)
    for ax in grid[::columns]:
        ax.set_ylabel("difference", fontsize=SMALL)
    return figure


def _ended(values: Array) -> Array:
    """Return the values of a distribution function with its ends, 0 and 1."""
    return np.concatenate([[0.0], values, [1.0]])


def plot_reliability(frame: pd.DataFrame) -> Figure:
    """Plot how often truths lie in predictive intervals, against how often they should.

    Args:
        frame: rows of `average_scores`, with columns `model`, `engine`, `horizon`, `coverage_50`, .. and
            `seeds`.

    Returns:
        A panel for each model, a line for each engine (mean over horizons) with thin lines for the horizons.
        The grey band holds 95 % of what `seeds` independent forecasts of a calibrated model would show.
    """
    missing = [c for c in ("model", "engine", "horizon", "seeds", *COVERAGES) if c not in frame]
    require(not missing, "the table must hold what is plotted", f"none of {', '.join(missing)}")
    models = list(dict.fromkeys(frame["model"]))
    engines = list(dict.fromkeys(frame["engine"]))
    levels = np.array([float(name.removeprefix("coverage_")) / 100 for name in COVERAGES])
    columns = min(4, len(models))
    rows = -(-len(models) // columns)
    figure = DisplayedFigure(figsize=(WIDTH * 1.25, 0.9 + 1.9 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    palette = [c for name, c in COLOURS.items() if name not in ("black", "yellow")]
    for ax in grid[len(models) :]:
        ax.set_axis_off()
    for ax, model in zip(grid[: len(models)], models, strict=True):
        part = frame[frame["model"] == model]
        error = 1.96 * np.sqrt(levels * (1 - levels) / part["seeds"].min())
        low, high = np.clip((levels - error, levels + error), 0, 1)
        ax.fill_between(levels, low, high, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(levels, levels, color=GREY, linewidth=0.8)
        for engine, group in part.groupby("engine", sort=False):
            colour = palette[engines.index(engine) % len(palette)]
            values = group[list(COVERAGES)].to_numpy()
            ax.plot(levels, values.T, color=colour, linewidth=0.6, alpha=0.5)
            ax.plot(levels, values.mean(0), color=colour, linewidth=1.5, marker="o", markersize=3)
        ax.set_title(model, fontsize=SMALL)
        tidy(ax)
    for ax in grid[max(0, len(models) - columns) : len(models)]:
        ax.set_xlabel("nominal", fontsize=SMALL)
        ax.tick_params(labelbottom=True)  # also above the end of a row that is not full
    for ax in grid[::columns]:
        ax.set_ylabel("observed", fontsize=SMALL)
    handles = [
        grid[0].plot([], [], color=palette[i % len(palette)], marker="o", markersize=3, label=engine)[0]
        for i, engine in enumerate(engines)
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(engines), frameon=False, fontsize=SMALL
    )
    return figure


def plot_pit_by_horizon(
    transforms: Mapping[float, ArrayLike], *, num_bins: int = 10, unit: str = "s"
) -> Figure:
    """Plot histograms of the probability integral transform, a panel for each horizon.

    Args:
        transforms: values between 0 and 1 by the end of the part of the horizon they belong to.
        num_bins: bins.
        unit: of the horizon.

    Returns:
        Flat histograms where forecasts are calibrated. A U says that they are too narrow, a hill that they
        are too wide, a slope that they are off to one side.
    """
    require(len(transforms) > 0, "transforms must hold at least one horizon", "none")
    figure = DisplayedFigure(figsize=(WIDTH, 2.1), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(transforms), squeeze=False, sharey=True)[0]
    for ax, (horizon, values) in zip(axes, sorted(transforms.items()), strict=True):
        density, edges = np.histogram(np.asarray(values), bins=num_bins, range=(0, 1), density=True)
        ax.stairs(density, edges, fill=True, color=COLOURS["sky"], alpha=0.6)
        ax.stairs(density, edges, color=COLOURS["blue"], linewidth=0.8)
        ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(f"to {horizon:g} {unit}".rstrip(), fontsize=SMALL)
        ax.set_xlabel("PIT", fontsize=SMALL)
        tidy(ax)
    axes[0].set_ylabel("density", fontsize=SMALL)
    axes[0].set_ylim(bottom=0)
    return figure


def plot_ppc(frame: pd.DataFrame, replicated: Mapping[str, Array]) -> Figure:
    """Plot what replicated data show beside what was measured, a panel for each test quantity.

    Args:
        frame: rows of `posterior_checks`, by its index the names in `replicated`.
        replicated: by name, the quantity in replicated data minus that in the measured ones, `(num_draws,)`.

    Returns:
        Histograms of the difference; zero far from their bulk is a misfit.
    """
    require(len(replicated) > 0, "there must be at least one test quantity", "none")
    columns = min(4, len(replicated))
    rows = -(-len(replicated) // columns)
    figure = DisplayedFigure(figsize=(WIDTH * 1.25, 0.5 + 1.7 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in grid[len(replicated) :]:
        ax.set_axis_off()
    for ax, (name, values) in zip(grid[: len(replicated)], replicated.items(), strict=True):
        finite = np.asarray(values)[np.isfinite(values)]
        p = float(frame.loc[name, "p_value"])
        colour = COLOURS["vermilion" if min(p, 1 - p) < 0.025 else "blue"]
        if finite.size:
            ax.hist(finite, bins=25, color=colour, alpha=0.5)
        ax.axvline(0, color="black", linewidth=1.2)
        ax.set_title(f"{name}\np = {p:.2g}", fontsize=7)
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(labelsize=7)
    for ax in grid[max(0, len(replicated) - columns) : len(replicated)]:
        ax.set_xlabel("replicated − measured", fontsize=7)
    return figure


def plot_ranking(frame: pd.DataFrame) -> Figure:
    """Plot how far models are behind the best one, with two standard errors.

    Args:
        frame: rows of `rank_models`, the best first.
    """
    figure = DisplayedFigure(figsize=(WIDTH, 0.9 + 0.4 * len(frame)), dpi=DPI, layout="constrained")
    ax: Axes = figure.subplots()
    place = np.arange(len(frame))[::-1]
    colours = [COLOURS["vermilion" if bad else "blue"] for bad in frame["warnings"].astype(bool)]
    ax.errorbar(
        frame["difference"],
        place,
        xerr=2 * frame["difference_se"].fillna(0),
        fmt="none",
        ecolor=GREY,
        capsize=3,
    )
    ax.scatter(frame["difference"], place, c=colours, zorder=3, s=25)
    ax.axvline(0, color=GREY, linewidth=1, linestyle="--")
    ax.set_yticks(place, list(frame["model"]))
    ax.set_xlabel("expected log predictive density, minus that of the best (two standard errors)")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
