"""Figures of studies: many models on the same data, from tables of scores and of forecasts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vinppl._checks import require
from vinppl.film_plots import plot_latent_space
from vinppl.latents import align
from vinppl.plotting import COLOURS, GREY, WIDTH, DisplayedFigure, tidy

__all__ = [
    "plot_embeddings",
    "plot_example_forecasts",
    "plot_films",
    "plot_phase_portraits",
    "plot_scores_by_horizon",
]


def plot_example_forecasts(
    frame: pd.DataFrame, models: Mapping[str, str], *, position: str = "position", unit: str = "s"
) -> Figure:
    """Plot one forecast by each of several models: its motion with a band, its error and its energy.

    The layout of the VIN paper's Figures 3 and 4, with the uncertainty they leave out.

    Args:
        frame: one row for each model and time, with columns `model`, `horizon`, `truth`, `low`, `middle`
            and `high` of a position, `error` (root mean square over coordinates), `energy_low`,
            `energy_middle`, `energy_high` and `energy_truth`.
        models: titles of the models to draw, by their names in the table, in this order.
        position: label of the position.
        unit: of time.

    Raises:
        ValueError: if the table lacks one of the models.
    """
    _require_models(frame, models)
    figure = DisplayedFigure(figsize=(WIDTH * 1.6, 5.2), layout="constrained")
    grid = figure.subplots(3, len(models), squeeze=False, sharex=True, sharey="row")
    for column, (name, title) in zip(grid.T, models.items(), strict=True):
        part = frame[frame["model"] == name].sort_values("horizon")
        t = part["horizon"]
        for ax, prefix in ((column[0], ""), (column[2], "energy_")):
            ax.fill_between(
                t, part[f"{prefix}low"], part[f"{prefix}high"], color=COLOURS["sky"], alpha=0.5, linewidth=0
            )
            ax.plot(t, part[f"{prefix}middle"], color=COLOURS["blue"], linewidth=1)
            truth = part["truth" if not prefix else "energy_truth"]
            ax.plot(t, truth, color=COLOURS["black"], linewidth=1, linestyle="--")
        column[1].plot(t, part["error"], color=COLOURS["vermilion"], linewidth=1)
        column[0].set_title(title, fontsize=9)
        column[2].set_xlabel(f"horizon ({unit})")
        for ax in column:
            tidy(ax)
    top, energy = frame["truth"].abs().max(), frame["energy_truth"].max()
    grid[0, 0].set_ylim(-1.6 * top, 1.6 * top)  # forecasts that run away leave the frame
    grid[2, 0].set_ylim(energy - 3 * abs(energy) - 1e-9, energy + 3 * abs(energy))
    for ax, label in zip(grid[:, 0], (position, "RMSE", "energy"), strict=True):
        ax.set_ylabel(label)
    return figure


def plot_scores_by_horizon(
    frame: pd.DataFrame, models: Mapping[str, str], scores: Sequence[str] = ("rmse", "crps", "coverage_90")
) -> Figure:
    """Plot scores second by second: the median over seeds, with a band from the lowest to the highest.

    Args:
        frame: one setting of a study: rows `at` each horizon, with columns `model`, `horizon` and the scores.
        models: titles of the models to draw, by their names in the table.
        scores: columns to draw, one panel each; for coverages the nominal level is marked.

    Raises:
        ValueError: if the table lacks one of the models.
    """
    _require_models(frame, models)
    figure = DisplayedFigure(figsize=(WIDTH * 1.4, 3.2), layout="constrained")
    axes = figure.subplots(1, len(scores), squeeze=False)[0]
    colours = [c for name, c in COLOURS.items() if name != "yellow"]
    for ax, score in zip(axes, scores, strict=True):
        for i, (name, title) in enumerate(models.items()):
            by_horizon = frame[frame["model"] == name].groupby("horizon")[score]
            middle, low, high = by_horizon.median(), by_horizon.min(), by_horizon.max()
            colour = colours[i % len(colours)]
            ax.fill_between(middle.index, low, high, color=colour, alpha=0.15, linewidth=0)
            style = "-" if i < len(colours) else "--"
            ax.plot(middle.index, middle, color=colour, linewidth=1.4, linestyle=style, label=title)
        if score.startswith("coverage_"):
            ax.axhline(float(score.removeprefix("coverage_")) / 100, color=GREY, linestyle="--", linewidth=1)
            ax.set_ylim(0, 1.02)
        else:
            ax.set_yscale("log")
        ax.set_title(score.replace("_", " "), fontsize=9)
        ax.set_xlabel("horizon (s)")
        tidy(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return figure


def plot_phase_portraits(frame: pd.DataFrame, models: Mapping[str, str], *, trained: float = 6.0) -> Figure:
    """Plot the latent motion of one film by each of several models, as the VIN paper's Figure 6 does.

    A circle is where the path begins, triangles stand at every 5 s.

    Args:
        frame: one row for each model and time, with columns `model`, `horizon_s`, `q` and `v`.
        models: titles of the models to draw, by their names in the table, in this order.
        trained: duration of the training, which is drawn darker.

    Raises:
        ValueError: if the table lacks one of the models.
    """
    _require_models(frame, models)
    figure = DisplayedFigure(figsize=(WIDTH * 0.5 * len(models), 3.2), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for ax, (name, title) in zip(axes, models.items(), strict=True):
        part = frame[frame["model"] == name].sort_values("horizon_s")
        early = part[part["horizon_s"] < trained]
        ax.plot(part["q"], part["v"], color=COLOURS["sky"], linewidth=0.8, label="forecast")
        ax.plot(early["q"], early["v"], color=COLOURS["blue"], linewidth=1.6, label="trained on")
        ax.plot(part["q"].iloc[:1], part["v"].iloc[:1], "o", color=COLOURS["vermilion"], markersize=6)
        marked = part[(part["horizon_s"] / 5 - (part["horizon_s"] / 5).round()).abs() < 1e-6].iloc[1:]
        ax.plot(marked["q"], marked["v"], "^", color=COLOURS["vermilion"], markersize=5, label="every 5 s")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("latent position")
        tidy(ax)
    axes[0].set_ylabel("latent velocity (1/s)")
    axes[0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def plot_films(frame: pd.DataFrame, models: Mapping[str, str]) -> Figure:
    """Plot frames of one film and their forecasts, as in the VIN paper's Figures 7 and 8, with deviations.

    Args:
        frame: one row for each model, `kind` (`film`, `forecast` or `deviation`) and `horizon_s`, with the
            grey levels of a square `frame`, one byte each in hexadecimal digits.
        models: titles of the models to draw, by their names in the table, in this order.

    Raises:
        ValueError: if the table lacks one of the models.
    """
    _require_models(frame, models)
    horizons = sorted(frame["horizon_s"].unique())
    first = next(iter(models))
    rows = [("film", first, "film")]
    for name, title in models.items():
        rows += [("forecast", name, title), ("deviation", name, "its deviation")]
    size = (0.9 * len(horizons) + 1.2, 0.9 * len(rows) + 0.3)
    figure = DisplayedFigure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(horizons), squeeze=False)
    for line, (kind, name, title) in zip(grid, rows, strict=True):
        part = frame[(frame["kind"] == kind) & (frame["model"] == name)].set_index("horizon_s")["frame"]
        most = (
            255 if kind != "deviation" else 128
        )  # the deviation of a black or white pixel is at most a half
        for ax, horizon in zip(line, horizons, strict=True):
            levels = np.frombuffer(bytes.fromhex(part[horizon]), dtype=np.uint8)
            side = math.isqrt(levels.size)
            ax.imshow(levels.reshape(side, side), cmap="gray", vmin=0, vmax=most)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    for ax, horizon in zip(grid[0], horizons, strict=True):
        ax.set_title(f"+{horizon:g} s", fontsize=8)
    return figure


def plot_embeddings(
    frame: pd.DataFrame, models: Mapping[str, str], *, num_train: int, circles: Collection[str] = ()
) -> Figure:
    """Plot where models put the frames of one film against the true angle, as the VIN paper's Figure 5 does.

    Args:
        frame: one row for each model and time, with columns `model`, `horizon_s`, `q`, `v` (NaN for models of
            one coordinate), `truth` and `truth_v` of a pendulum, in rad and rad per unit of time.
        models: titles of the models to draw, by their names in the table, in this order.
        num_train: how many of the first frames were trained on.
        circles: names of the models whose `q` is an angle; their velocities are shown in a panel of their
            own, over the angle that is turned to the true one.

    Returns:
        A panel for each model, those of velocities, and the true phase space.

    Raises:
        ValueError: if the table lacks one of the models.
    """
    _require_models(frame, models)
    panels, true = {}, np.empty((0, 2))
    for name, title in models.items():
        part = frame[frame["model"] == name].sort_values("horizon_s")
        states, true = part[["q", "v"]].to_numpy(), part[["truth", "truth_v"]].to_numpy()
        planar = not np.isnan(states[:, 1]).any()
        panels[title] = states if planar and name not in circles else states[:, :1]
        if planar and name in circles:
            turned = align(states[:, 0], true[:, 0], circle=True)
            panels[f"{title}, phase space"] = np.stack([turned.values, turned.scale * states[:, 1]], axis=-1)
    panels["truth"] = true
    titles = [title for name, title in models.items() if name in circles]
    return plot_latent_space(panels, true[:, 0], num_train=num_train, circles=titles)


def _require_models(frame: pd.DataFrame, models: Mapping[str, str]) -> None:
    missing = [name for name in models if name not in set(frame["model"])]
    require(not missing, "the table must hold every model to draw", f"none of {', '.join(missing)}")
