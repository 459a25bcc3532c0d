"""Figures as images inside of the page, and those that only the page has."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.stats import binom

from vinppl.film_plots import show_frame
from vinppl.frame_scores import FilmArrays
from vinppl.plotting import (
    COLOURS,
    DPI,
    GREY,
    DisplayedFigure,
    columns_that_fit,
    current_width,
    figure_width,
    tidy,
)
from vinppl.report.blocks import Image, Picture

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = [
    "animation",
    "picture",
    "plot_calibration",
    "plot_chains",
    "plot_data",
    "plot_film",
    "plot_film_uncertainty",
]

Array = NDArray[Any]

WIDE, NARROW = 7.2, 4.0
"""Widths of figures for desks and for telephones, inches."""

SCREEN = 100
"""Pixels of the screen for an inch at a desk."""

MAX_CHANNELS, MAX_TRAJECTORIES, MAX_FRAMES = 6, 6, 10
SERIES = tuple(COLOURS[name] for name in ("black", "blue", "vermilion", "green", "purple", "orange"))


def picture(make: Callable[[], Figure], alt: str, caption: str) -> Picture:
    """Return a figure in both widths.

    Args:
        make: draws it at the current width, see `vinppl.plotting.figure_width`.
        alt: what is to be seen.
        caption: text below.
    """
    images = []
    for inches in (WIDE, NARROW):
        with figure_width(inches):
            images.append(_encoded(make()))
    wide, narrow = images
    return Picture(wide, narrow, alt, caption)


def animation(path: Path, alt: str, caption: str) -> Picture:
    """Return an animated file as a picture."""
    with PillowImage.open(path) as image:
        width, height = image.size
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(Image(f"data:image/gif;base64,{data}", width, height), None, alt, caption)


def _encoded(figure: Figure) -> Image:
    """Return a figure as a PNG of 256 colours, a third of the size of one of all colours."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = PillowImage.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=PillowImage.Dither.NONE).save(buffer, "png")
    width, height = (round(side * SCREEN / figure.dpi) for side in image.size)
    return Image(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height)


# Data


def plot_data(fitted: Trajectories, held_out: Trajectories | None) -> Figure:
    """Plot what was measured, a row for each channel and a colour for each of the first trajectories."""
    rows, count = min(fitted.num_channels, MAX_CHANNELS), min(fitted.num_trajectories, MAX_TRAJECTORIES)
    size = (current_width(), 0.6 + 1.5 * rows)
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for c, ax in enumerate(axes):
        for n in range(count):
            style: dict[str, Any] = {"color": SERIES[n], "markersize": 3, "linewidth": 0.6, "marker": "o"}
            ax.plot(*_series(fitted, n, c), label=f"trajectory {fitted.names[n]}", **style)
            if held_out is not None:
                ax.plot(*_series(held_out, n, c), markerfacecolor="white", **style)
        channel = fitted.channels[c]
        ax.set_ylabel(f"{channel.name} ({channel.unit})" if channel.unit else channel.name)
        ax.margins(x=0.01)
        tidy(ax)
    axes[-1].set_xlabel(f"time ({fitted.time_unit})" if fitted.time_unit else "time")
    if fitted.num_trajectories > 1:
        _legend_above(figure, axes[0])
    figure.align_ylabels(axes)
    return figure


def _series(data: Trajectories, n: int, c: int) -> tuple[Array, Array]:
    """Return times and values of a channel where it was measured."""
    seen = data.mask[n, :, c]
    return data.times[n, seen].cpu().numpy(), data.values[n, seen, c].cpu().numpy()


def plot_film(data: Trajectories) -> Figure:
    """Plot frames of the first clip, evenly thinned."""
    frames, length = data.frames[0].cpu().numpy(), int(data.lengths[0])
    times = data.times[0].cpu().numpy()
    count = min(columns_that_fit(MAX_FRAMES, 0.7), length)
    chosen = np.linspace(0, length - 1, count).round().astype(int)
    panel = current_width() / count
    size = (current_width(), panel * frames.shape[-2] / frames.shape[-1] + 0.3)
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    for ax, k in zip(figure.subplots(1, count, squeeze=False)[0], chosen, strict=True):
        show_frame(ax, frames[k])
        ax.set_title(f"{times[k]:.3g} {data.time_unit}".rstrip(), fontsize="small")
    return figure


# Convergence


def plot_chains(draws: Array, names: Sequence[str], diverging: Array | None) -> Figure:
    """Plot the draws of every chain in their order, a row for each parameter.

    Args:
        draws: shape `(chain, draw, parameter)`.
        names: of the parameters.
        diverging: which draws diverged, `(chain, draw)`, marked at the bottom; `None` if unknown.
    """
    size = (current_width(), 0.6 + 1.25 * len(names))
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    colours = [COLOURS[name] for name in ("blue", "orange", "green", "purple", "sky", "vermilion")]
    steps = np.arange(1, draws.shape[1] + 1)
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        for chain, values in enumerate(draws[..., k]):
            colour = colours[chain % len(colours)]
            ax.plot(steps, values, color=colour, linewidth=0.5, alpha=0.8, label=f"chain {chain + 1}")
        bad = () if diverging is None else steps[diverging.any(0)]
        if len(bad):
            place = {"transform": ax.get_xaxis_transform(), "color": COLOURS["black"], "label": "diverged"}
            ax.plot(bad, np.full(len(bad), 0.02), "|", markersize=6, **place)
        ax.set_title(name, fontsize="small", loc="left")
        ax.margins(x=0.01)
        tidy(ax)
    axes[-1].set_xlabel("draw")
    _legend_above(figure, axes[0])
    return figure


# Calibration


def plot_calibration(scores: pd.DataFrame, pit: Array, time_unit: str) -> Figure:
    """Plot coverage of central intervals by horizon, and where in its distribution each measurement fell.

    Args:
        scores: from `vinppl.scores.forecast_scores`.
        pit: probability integral transforms of held-out measurements, `(point,)`.
        time_unit: of the horizon.

    Returns:
        First the share of measurements inside of each interval, all channels together, with the standard
        error of as many independent points, and the nominal share as a line; then the histogram of the
        transforms with the middle 99 % of what independent uniform ones give.
    """
    beside = columns_that_fit(2)
    size = (current_width(), 0.5 + 2.6 * (2 // beside))
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    left, right = figure.subplots(2 // beside, beside, squeeze=False).ravel()
    bins = scores[(scores["channel"] != "all") & (scores["num_points"] > 0)]
    middle, points = _pooled_horizons(bins)
    levels = {name: float(name.removeprefix("coverage_")) / 100 for name in scores if "coverage" in str(name)}
    colours = [COLOURS[name] for name in ("orange", "green", "blue", "purple")]
    for (name, level), colour in zip(levels.items(), colours, strict=False):
        share = _pooled(bins, str(name))
        error = np.sqrt(share * (1 - share) / points)
        style: dict[str, Any] = {"color": colour, "fmt": "o-", "markersize": 4, "linewidth": 1.2}
        left.errorbar(middle, share, error, capsize=2, label=f"{100 * level:.0f} %", **style)
        left.axhline(level, color=colour, linestyle="--", linewidth=0.9)
    left.set_ylim(-0.02, 1.02)
    left.set_xlabel(f"horizon ({time_unit})" if time_unit else "horizon")
    left.set_ylabel("share inside")
    small = {"fontsize": "x-small", "title": "interval", "title_fontsize": "x-small"}
    left.legend(frameon=False, loc="lower left", ncols=2, **small)
    _draw_pit(right, pit)
    for ax in (left, right):
        tidy(ax)
    return figure


def _pooled_horizons(bins: pd.DataFrame) -> tuple[Array, Array]:
    """Return middle and number of points of each bin of horizons, over all channels."""
    groups = bins.groupby("start_s", sort=True)
    middle = 0.5 * (groups["start_s"].first() + groups["end_s"].first())
    return middle.to_numpy(), groups["num_points"].sum().to_numpy()


def _pooled(bins: pd.DataFrame, name: str) -> Array:
    """Return the mean of a column over the points of each bin of horizons."""
    weighted = (bins[name] * bins["num_points"]).groupby(bins["start_s"], sort=True).sum()
    return np.asarray(weighted / bins.groupby("start_s", sort=True)["num_points"].sum())


def _draw_pit(ax: Any, pit: Array) -> None:
    count = int(np.clip(len(pit) // 10, 4, 20))
    ax.hist(pit, bins=count, range=(0, 1), color=COLOURS["sky"], edgecolor="white", zorder=2)
    low, high = binom.ppf([0.005, 0.995], len(pit), 1 / count)
    ax.axhspan(low, high, color=GREY, alpha=0.2, linewidth=0, label="99 % if calibrated", zorder=1)
    ax.axhline(len(pit) / count, color=GREY, linewidth=1, zorder=3)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of draws below the measurement")
    ax.set_ylabel("measurements")
    ax.legend(frameon=False, fontsize="x-small", loc="upper center")


# Films


def plot_film_uncertainty(film: FilmArrays, clip: int) -> Figure:
    """Plot how the posterior spread of a clip's latent states and of its frames grows.

    Args:
        film: forecast.
        clip: index.

    Returns:
        Standard deviation over draws: of each latent state, and of the mean grey level of a pixel, as a root
        mean square over the pixels of a frame.
    """
    length = int(film.lengths[clip])
    horizon = film.horizon[clip, :length]
    pixels = np.sqrt(film.levels[:, clip, :length].astype(np.float64).var(0).mean(-1))
    panels: list[tuple[str, Array]] = [("sd of a pixel", pixels)]
    if film.states is not None:
        spread = film.states[:, clip, :length].std(0)
        panels += [(f"sd of {name}", spread[:, k]) for k, name in enumerate(film.state_names)]
    columns = columns_that_fit(min(3, len(panels)))
    rows = -(-len(panels) // columns)
    figure = DisplayedFigure(figsize=(current_width(), 0.3 + 2.2 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (label, values) in zip(axes, panels, strict=False):
        ax.plot(horizon, values, color=COLOURS["blue"])
        if horizon[0] < 0 < horizon[-1]:
            ax.axvline(0.0, color=GREY, linewidth=1, linestyle="--")
        ax.set_ylim(bottom=0)
        ax.margins(x=0.01)
        ax.set_ylabel(label)
        ax.set_xlabel(f"horizon ({film.time_unit})" if film.time_unit else "horizon")
        tidy(ax)
    return figure


def _legend_above(figure: Figure, ax: Any) -> None:
    """Put the labels of the first panel above the figure, as many in a row as fit."""
    handles, labels = ax.get_legend_handles_labels()
    columns = columns_that_fit(len(labels), 1.2)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
