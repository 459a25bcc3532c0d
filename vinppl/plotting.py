"""Figures of forecasts and fits.

Every function returns a Matplotlib `Figure` and leaves Matplotlib's global settings, its backend and
pyplot's list of open figures alone. Colours are those of Okabe and Ito, which colour-blind readers can
tell apart. A forecast is what `vinppl.forecast.forecast` returned, or its file.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require
from vinppl.export import get_group, group_names
from vinppl.scores import ForecastArrays, forecast_arrays

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = [
    "COLOURS",
    "columns_that_fit",
    "current_width",
    "figure_width",
    "plot_energy",
    "plot_fan_chart",
    "plot_forecast_comparison",
    "plot_losses",
    "plot_phase_portrait",
    "plot_posterior_vs_prior",
    "plot_uncertainty",
    "save_figure",
]

COLOURS = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Colours of Okabe and Ito, by name."""

WIDTH = 7.2
DPI = 150
GREY = "#6E6E6E"

Array = NDArray[Any]

_width: ContextVar[float] = ContextVar("width", default=WIDTH)


@contextlib.contextmanager
def figure_width(inches: float) -> Iterator[None]:
    """Make the figures of a block this wide, with fewer panels beside each other if they do not fit.

    Letters keep their size, so that a figure of 4 inches can be read on a telephone.
    """
    require(inches > 0, "the width of figures must be positive", inches)
    token = _width.set(inches)
    try:
        yield
    finally:
        _width.reset(token)


def current_width() -> float:
    """Return the width of figures in inches, 7.2 outside of `figure_width`."""
    return _width.get()


def columns_that_fit(count: int, inches: float = 2.4) -> int:
    """Return how many of `count` panels of that width stand beside each other."""
    return max(1, min(count, int(current_width() / inches)))


class DisplayedFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return _png(self)


def plot_fan_chart(
    forecast: InferenceData | xr.DataTree,
    *,
    trajectory: int | str = 0,
    levels: Sequence[float] = (0.5, 0.9),
    channels: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Plot the predictive distribution of the measurements over time, one row per channel.

    Args:
        forecast: with `predictions` and `predictions_constant_data`.
        trajectory: index or name.
        levels: probabilities of the central bands.
        channels: names of the channels to draw; by default all.
        axes: where to draw, one per channel.

    Returns:
        Median and nested bands, the measurements of the fit (filled) and held-out ones (open), and a
        line where the forecast begins. Angles in (−π, π] are joined up over time.
    """
    valid = len(levels) > 0 and all(0 < level < 1 for level in levels)
    require(valid, "levels must be probabilities between 0 and 1", repr(levels))
    arrays = forecast_arrays(forecast)
    n, length = _choose(arrays, trajectory)
    rows = [_index("channels", name, arrays.channels) for name in (channels or arrays.channels)]
    figure, drawn = _rows(axes, len(rows), height=1.0 + 1.55 * len(rows))
    t, start = arrays.times[n, :length], arrays.forecast_start[n]
    for ax, c in zip(drawn, rows, strict=True):
        x, y = arrays.obs[:, n, :length, c], arrays.measured[n, :length, c]
        if arrays.angles[c]:
            x, y = _join_angles(x, y)
        _bands(ax, t, x, levels)
        fitted = arrays.in_sample[n, :length]
        _points(ax, t, np.where(fitted, y, np.nan), np.where(fitted, np.nan, y))
        if t[0] < start < t[-1]:
            ax.axvline(start, color=GREY, linewidth=1, linestyle="--", label="forecast begins", zorder=1)
        ax.set_ylabel(_label(arrays.channels[c], arrays.channel_units[c]))
        ax.margins(x=0.01)
    drawn[-1].set_xlabel(_label("time", arrays.time_unit))
    _legend(drawn[0])
    _title(figure, axes, arrays, n)
    return figure


def plot_forecast_comparison(
    forecasts: Mapping[str, InferenceData | xr.DataTree],
    *,
    trajectory: int | str = 0,
    channel: str | None = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> Figure:
    """Plot one channel of several forecasts of the same measurements under one another.

    Args:
        forecasts: by the title of their row.
        trajectory: index or name.
        channel: name of the channel; by default the first.
        levels: probabilities of the central bands.

    Returns:
        A fan chart for each forecast, on one scale that is twice the range of the measurements (wider
        bands are cut off), and below them the predictive standard deviation
        of that channel against time, all in one panel.
    """
    require(len(forecasts) >= 1, "there must be at least one forecast", "none")
    figure, axes = _rows(None, len(forecasts) + 1, height=1.0 + 1.5 * (len(forecasts) + 1))
    colours = [COLOURS[name] for name in ("vermilion", "green", "blue", "purple", "orange", "sky")]
    for rank, (title, forecast) in enumerate(forecasts.items()):
        arrays = forecast_arrays(forecast)
        name = channel or arrays.channels[0]
        c = _index("channels", name, arrays.channels)
        n, length = _choose(arrays, trajectory)
        plot_fan_chart(forecast, trajectory=trajectory, levels=levels, channels=[name], axes=[axes[rank]])
        legend = axes[rank].get_legend()
        if legend is not None and rank > 0:
            legend.remove()
        axes[rank].set_xlabel("")
        axes[rank].annotate(
            title, (0.995, 1.02), xycoords="axes fraction", ha="right", va="bottom", weight="bold"
        )
        x = arrays.obs[:, n, :length, c]
        spread = (_join_angles(x, x[0])[0] if arrays.angles[c] else x).std(axis=0)
        colour, style = colours[rank % len(colours)], ("-", "--", ":")[rank % 3]
        axes[-1].plot(arrays.times[n, :length], spread, color=colour, linestyle=style, label=title)
    seen = arrays.measured[n, :length, c]
    low, high = np.nanmin(seen), np.nanmax(seen)
    for ax in axes[:-1]:
        ax.set_ylim(low - 0.5 * (high - low), high + 0.5 * (high - low))
    axes[-1].set_yscale("log")
    axes[-1].set_ylabel(_label("predictive sd", arrays.channel_units[c]))
    axes[-1].set_xlabel(_label("time", arrays.time_unit))
    axes[-1].margins(x=0.01)
    _legend(axes[-1])
    figure.align_ylabels(axes)
    return figure


def plot_energy(
    forecast: InferenceData | xr.DataTree,
    trajectory: int | str = 0,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    num_draws: int = 20,
) -> Figure:
    """Plot the model's energy over time, and below it the change of each draw since the start.

    Draws differ in their energy, which would hide how well each one conserves its own; the lower panel
    takes that out. Its axis spans at least 1 % of the energies above, so that rounding does not look
    like drift.

    Args:
        forecast: with `energy` among its predictions.
        trajectory: index or name.
        levels: probabilities of the central bands.
        num_draws: single draws shown as thin lines.
    """
    arrays = forecast_arrays(forecast)
    require(
        arrays.energy is not None,
        "the forecast must hold the model's energy",
        "predictions without 'energy'",
        "Record it in the model: pyro.deterministic('energy', ...).",
        error=KeyError,
    )
    assert arrays.energy is not None
    n, length = _choose(arrays, trajectory)
    t, start = arrays.times[n, :length], arrays.forecast_start[n]
    energy = arrays.energy[:, n, :length]
    change = energy - energy[:, :1]
    figure, (upper, lower) = _rows(None, 2, height=4.4)
    for ax, values in ((upper, energy), (lower, change)):
        _bands(ax, t, values, levels)
        picked = _thin(len(values), num_draws)
        lines = ax.plot(t, values[picked].T, color=COLOURS["blue"], alpha=0.35, linewidth=0.5)
        lines[0].set_label("single draws")
        if t[0] < start < t[-1]:
            ax.axvline(start, color=GREY, linewidth=1, linestyle="--", label="forecast begins", zorder=1)
        ax.margins(x=0.01)
    least = 0.01 * max(float(np.ptp(energy)), float(np.abs(np.median(energy)))) or 1.0
    lower.axhline(0.0, color=COLOURS["black"], linewidth=0.8, linestyle=":")
    low, high = lower.get_ylim()
    lower.set_ylim(min(low, -least), max(high, least))
    upper.set_ylabel(_label("energy E", arrays.energy_unit))
    lower.set_ylabel(_label("E(t) − E(0)", arrays.energy_unit))
    lower.set_xlabel(_label("time", arrays.time_unit))
    _legend(upper)
    _title(figure, None, arrays, n)
    return figure


def plot_phase_portrait(
    forecast: InferenceData | xr.DataTree,
    trajectory: int | str = 0,
    coordinate: int | str = 0,
    num_draws: int = 50,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Plot velocity against position of posterior draws, with the measurements.

    Measurements appear where both position and velocity were measured; positions alone are marked on
    the lower edge.

    Args:
        forecast: with `states` among its predictions, positions then velocities.
        trajectory: index or name.
        coordinate: index of the generalised coordinate, or the name of its position.
        num_draws: draws shown.
        ax: where to draw.
    """
    arrays = forecast_arrays(forecast)
    require(
        arrays.states is not None and arrays.states.ndim == 4,
        "the forecast must hold states",
        "predictions without 'states' (trajectory, time, state)",
        "Record them in the model: pyro.deterministic('states', ...).",
        error=KeyError,
    )
    assert arrays.states is not None
    n, length = _choose(arrays, trajectory)
    dim = arrays.states.shape[-1] // 2
    i = _index("coordinate", coordinate, arrays.state_names[:dim])
    q, v = arrays.states[:, n, :length, i], arrays.states[:, n, :length, dim + i]
    units, measured, angle = _state_channels(arrays, n, length, (i, dim + i))
    if angle:
        q, measured[0] = _join_angles(q, measured[0])
    axes = None if ax is None else [ax]
    figure, (ax,) = _rows(axes, 1, height=4.6, width=5.6)
    picked = _thin(len(q), num_draws)
    paths = LineCollection(
        list(np.stack([q[picked], v[picked]], axis=-1)),
        colors=COLOURS["blue"],
        alpha=min(0.8, max(0.08, 6 / len(picked))),
        linewidths=0.6,
        label="posterior draws",
    )
    ax.add_collection(paths)
    ax.autoscale_view()
    fitted = arrays.in_sample[n, :length]
    if np.isfinite(measured[1]).any():
        y = measured[1]
        _points(ax, measured[0], np.where(fitted, y, np.nan), np.where(fitted, np.nan, y))
    elif np.isfinite(measured[0]).any():
        _rug(ax, measured[0], fitted)
    middle = np.median(q[:, 0]), np.median(v[:, 0])
    ax.plot(
        *middle, "D", color=COLOURS["vermilion"], markeredgecolor="white", markersize=8, label="median start"
    )
    ax.set_xlabel(_label(arrays.state_names[i], units[0]))
    ax.set_ylabel(_label(arrays.state_names[dim + i], units[1]))
    _legend(ax)
    _title(figure, axes, arrays, n)
    return figure


def plot_uncertainty(forecast: InferenceData | xr.DataTree, *, trajectory: int | str | None = None) -> Figure:
    """Plot the predictive standard deviation of each channel against the horizon.

    Args:
        forecast: with `states` for the trajectory's own share; `obs` adds the measurement noise.
        trajectory: index or name; by default the root mean variance over all trajectories, at horizons
            that every one reaches.

    Returns:
        One panel per channel. The horizon is the time since the forecast begins; before that lies the
        fit. Angles are measured around their circular mean, so that their deviation stays bounded.
    """
    arrays = forecast_arrays(forecast)
    chosen = range(len(arrays.trajectories)) if trajectory is None else [_choose(arrays, trajectory)[0]]
    num = len(arrays.channels)
    columns = columns_that_fit(2 if num in (2, 4) else min(3, num))
    rows = -(-num // columns)
    figure = DisplayedFigure(figsize=(current_width(), 0.7 + 2.2 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for ax in grid[num:]:
        ax.set_axis_off()
    for c, ax in enumerate(grid[:num]):
        horizon, total = _mean_deviation(arrays, arrays.obs[..., c], chosen, bool(arrays.angles[c]))
        ax.plot(horizon, total, color=COLOURS["vermilion"], linestyle="--", label="measurement")
        if arrays.states is not None and arrays.channel_states is not None:
            path = arrays.states[..., arrays.channel_states[c]]
            horizon, own = _mean_deviation(arrays, path, chosen, bool(arrays.angles[c]))
            ax.plot(horizon, own, color=COLOURS["blue"], label="trajectory")
        if horizon[0] < 0 < horizon[-1]:
            ax.axvline(0.0, color=GREY, linewidth=1, linestyle="--", label="forecast begins", zorder=1)
        ax.set_ylim(bottom=0)
        ax.margins(x=0.01)
        tidy(ax)
        ax.set_ylabel(_label(f"sd of {arrays.channels[c]}", arrays.channel_units[c]))
        if c + columns >= num:
            ax.set_xlabel(_label("horizon", arrays.time_unit))
            ax.tick_params(labelbottom=True)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize="small"
    )
    return figure


def plot_losses(losses: ArrayLike, best_step: int | None = None, *, ax: Axes | None = None) -> Figure:
    """Plot the losses of an optimisation with their running mean.

    The axis is fitted to the last nine tenths; the legend says how far the first steps go beyond it.

    Args:
        losses: negative ELBO of every step, in nats, shape `(num_steps,)`.
        best_step: number of steps after which the kept state was reached.
        ax: where to draw.
    """
    values = np.asarray(losses, dtype=np.float64)
    require(values.ndim == 1 and values.size > 0, "losses must have shape (num_steps,), not empty", values)
    steps = np.arange(1, len(values) + 1)
    settled = values[len(values) // 10 :]
    settled = settled[np.isfinite(settled)]
    low, high = (settled.min(), np.quantile(settled, 0.995)) if settled.size else (0.0, 1.0)
    margin = 0.08 * (high - low) or 1.0
    highest = np.max(values[np.isfinite(values)], initial=-np.inf)
    label = f"loss (up to {highest:.4g})" if highest > high + margin else "loss"
    figure, (ax,) = _rows(None if ax is None else [ax], 1, height=3.0)
    ax.plot(steps, values, color=COLOURS["sky"], linewidth=0.7, alpha=0.8, label=label)
    width = min(50, max(1, len(values) // 20))
    if width > 1:
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        middle = steps[width // 2 : width // 2 + len(smooth)]
        ax.plot(middle, smooth, color=COLOURS["blue"], linewidth=1.5, label=f"mean of {width} steps")
    if best_step is not None:
        label = f"kept state: step {best_step}"
        ax.axvline(best_step, color=COLOURS["vermilion"], linewidth=1.2, linestyle="--", label=label)
    ax.set_ylim(low - margin, high + margin)
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("step")
    ax.set_ylabel("negative ELBO (nats)")
    _legend(ax)
    return figure


def plot_posterior_vs_prior(
    result: InferenceData | xr.DataTree,
    var_names: Sequence[str] | None = None,
    *,
    num_bins: int = 40,
) -> Figure:
    """Plot the marginal of each scalar site, posterior beside prior, so that what was learnt shows.

    Each density is scaled to its own peak. A panel shows the whole posterior and as much of the prior
    as keeps the posterior legible; its title says how the standard deviation shrank.

    Args:
        result: with the groups `posterior` and `prior`.
        var_names: sites to draw, each element of a vector on its own; by default all scalar sites that
            both groups hold.
        num_bins: bins over the width of the posterior at most; few draws make fewer.
    """
    names = group_names(result)
    for group in ("posterior", "prior"):
        require(group in names, f"group {group!r} is needed", ", ".join(names) or "none", error=KeyError)
    posterior, prior = get_group(result, "posterior"), get_group(result, "prior")
    if var_names is None:
        shared = [str(name) for name in posterior.data_vars if name in prior]
        var_names = [name for name in shared if posterior[name].ndim == 2]
        require(bool(var_names), "posterior and prior must share a scalar site", ", ".join(shared) or "none")
    for name in var_names:
        known = [str(key) for key in posterior.data_vars if key in prior]
        require(name in known, f"var_names must be among {', '.join(known)}", repr(name))
    panels = [panel for name in var_names for panel in _marginals(name, posterior[name], prior[name])]
    columns = columns_that_fit(min(3, len(panels)))
    rows = -(-len(panels) // columns)
    figure = DisplayedFigure(figsize=(current_width(), 0.6 + 1.9 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    for ax, (label, after, before, unit) in zip(grid[: len(panels)], panels, strict=True):
        _two_densities(ax, after, before, num_bins)
        ratio = np.std(after) / np.std(before) if np.std(before) > 0 else np.nan
        ax.set_title(f"sd {100 * ratio:.2g} % of the prior's", fontsize="small", color=GREY)
        ax.set_xlabel(_label(label, unit))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write `figure` at 150 dpi, whole or not at all, and close it.

    Args:
        figure: any Matplotlib figure.
        path: the file; its ending says the format, and its folder is made if needed.

    Returns:
        The path.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    require(kind in known, f"path must end in one of {', '.join(sorted(known))}", path.name)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(temporary, dpi=DPI, format=kind)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    from matplotlib import pyplot  # only to close what a caller may have opened with it

    pyplot.close(figure)
    return path


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# Choosing


def _index(what: str, value: int | str, names: Sequence[str]) -> int:
    if isinstance(value, str):
        require(value in names, f"{what} must be among {', '.join(names)}", repr(value))
        return list(names).index(value)
    require(0 <= value < len(names), f"{what} must be an index from 0 to {len(names) - 1}", value)
    return int(value)


def _choose(arrays: ForecastArrays, trajectory: int | str) -> tuple[int, int]:
    """Return the index of a trajectory and its number of times without padding."""
    n = _index("trajectory", trajectory, arrays.trajectories)
    times = arrays.times[n]
    return n, int(np.sum(times < times[-1])) + 1


def _thin(count: int, wanted: int) -> Array:
    require(wanted >= 1, "num_draws must be at least 1", wanted)
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))


def _state_channels(
    arrays: ForecastArrays, n: int, length: int, states: tuple[int, int]
) -> tuple[list[str], list[Array], bool]:
    """Return units and measurements of two states, and whether the first is an angle."""
    units, measured, angle = ["", ""], [np.full(length, np.nan) for _ in states], False
    for k, state in enumerate(states):
        for c, measured_state in enumerate(arrays.channel_states or ()):
            if measured_state == state and not np.isfinite(measured[k]).any():
                units[k], measured[k] = arrays.channel_units[c], arrays.measured[n, :length, c]
                angle = angle or (k == 0 and bool(arrays.angles[c]))
    return units, measured, angle


# Angles and deviations


def _join_angles(draws: Array, points: Array) -> tuple[Array, Array]:
    """Join angles that were wrapped into one turn; begin the points on the branch of the median.

    Draws and points that count revolutions already stay as they are, so that a point far from the
    draws is drawn far from them.
    """
    jumps = np.abs(np.diff(draws, axis=-1)).max(initial=0.0) > np.pi
    if jumps and np.abs(draws).max() <= np.pi * (1 + 1e-6):
        first = draws[:, 0]
        centre = np.arctan2(np.sin(first).mean(), np.cos(first).mean())
        turns = 2 * np.pi * np.round((centre - first) / (2 * np.pi))
        draws = np.unwrap(draws, axis=-1) + turns[:, None]
    seen = np.isfinite(points)
    if not seen.any():
        return draws, points
    joined = np.unwrap(points[seen])
    begin = np.median(draws[:, seen][:, 0])
    moved = points.copy()
    moved[seen] = joined + 2 * np.pi * np.round((begin - joined[0]) / (2 * np.pi))
    return draws, moved


def _mean_deviation(
    arrays: ForecastArrays, draws: Array, chosen: Sequence[int], angle: bool
) -> tuple[Array, Array]:
    """Return horizons and the root mean variance over trajectories; draws `(draw, trajectory, time)`."""
    curves = []
    for n in chosen:
        length = _choose(arrays, n)[1]
        x = draws[:, n, :length]
        if angle:
            centre = np.arctan2(np.sin(x).mean(0), np.cos(x).mean(0))
            x = (x - centre + np.pi) % (2 * np.pi) - np.pi
        curves.append((arrays.times[n, :length] - arrays.forecast_start[n], x.var(0)))
    horizon = curves[0][0]
    same = all(len(h) == len(horizon) and np.allclose(h, horizon) for h, _ in curves)
    if not same:
        low, high = max(h[0] for h, _ in curves), min(h[-1] for h, _ in curves)
        require(low < high, "trajectories must share horizons", "none", "Choose one trajectory.")
        horizon = np.linspace(low, high, max(len(h) for h, _ in curves))
    variances = [v if same else np.interp(horizon, h, v) for h, v in curves]
    return horizon, np.sqrt(np.mean(variances, axis=0))


# Drawing


def _rows(
    axes: Sequence[Axes] | None, count: int, *, height: float, width: float = math.inf
) -> tuple[Figure, list[Axes]]:
    """Return a new figure of `count` rows, or the axes given and their figure."""
    if axes is None:
        size = (min(width, current_width()), height)
        figure: Figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
        drawn = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
        figure.align_ylabels(drawn)
    else:
        require(len(axes) == count, f"axes must hold {count} axes", f"{len(axes)}")
        drawn = list(axes)
        figure = drawn[0].figure.figure  # the root, also of a subfigure
    for ax in drawn:
        tidy(ax)
    return figure, drawn


def tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4))


def _label(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _legend(ax: Axes) -> None:
    """Put a legend above the axes, where it covers no data, in as many rows as their width asks."""
    handles, labels = ax.get_legend_handles_labels()
    letters = int(16.5 * ax.bbox.width / ax.figure.dpi)
    lengths = [len(label) + 7 for label in labels]
    rows = -(-sum(lengths) // max(1, letters))
    columns = -(-len(labels) // max(1, rows))
    while columns > 1 and sum(max(part) for part in np.array_split(lengths, columns)) > letters:
        columns -= 1
    legend = ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=1.6,
        columnspacing=1.2,
    )
    for handle in legend.legend_handles:
        if isinstance(handle, (Line2D, LineCollection)):
            handle.set_alpha(1.0)  # faint single draws are for the plot only


def _title(figure: Figure, axes: Sequence[Axes] | None, arrays: ForecastArrays, n: int) -> None:
    if axes is None and len(arrays.trajectories) > 1:
        figure.suptitle(f"trajectory {arrays.trajectories[n]}", fontsize="medium")


def _bands(ax: Axes, t: Array, x: Array, levels: Sequence[float]) -> None:
    """Draw nested central bands, the widest first, and the median of x `(draw, time)`."""
    for rank, level in enumerate(sorted(levels, reverse=True)):
        low, high = np.quantile(x, [(1 - level) / 2, (1 + level) / 2], axis=0)
        shade = 0.2 + 0.25 * rank / max(1, len(levels) - 1)
        label = f"{100 * level:g} % band"
        ax.fill_between(t, low, high, color=COLOURS["blue"], alpha=shade, linewidth=0, label=label)
    ax.plot(t, np.median(x, axis=0), color=COLOURS["blue"], linewidth=1.5, label="median")


def _points(ax: Axes, x: Array, fitted: Array, held_out: Array) -> None:
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.6, "zorder": 3}
    if np.isfinite(fitted).any():
        ax.plot(x, fitted, color=COLOURS["black"], label="measured, fitted", **style)
    if np.isfinite(held_out).any():
        style |= {"markerfacecolor": "white", "markeredgecolor": COLOURS["vermilion"]}
        ax.plot(x, held_out, label="measured, held out", **style)


def _rug(ax: Axes, positions: Array, fitted: Array) -> None:
    parts = ((fitted, COLOURS["black"], "fitted"), (~fitted, COLOURS["vermilion"], "held out"))
    for keep, colour, label in parts:
        x = positions[keep & np.isfinite(positions)]
        if x.size:
            ax.plot(
                x,
                np.full_like(x, 0.02),
                "|",
                color=colour,
                markersize=10,
                transform=ax.get_xaxis_transform(),
                clip_on=False,
                label=f"measured positions, {label}",
            )


def _marginals(name: str, after: xr.DataArray, before: xr.DataArray) -> list[tuple[str, Array, Array, str]]:
    """Return label, posterior draws, prior draws and unit of each element of a site."""
    after, before = (x.transpose("chain", "draw", ...) for x in (after, before))
    shape = after.shape[2:]
    got = f"{shape} and {before.shape[2:]}"
    require(before.shape[2:] == shape, f"posterior and prior of {name} must have one shape", got)
    require(int(np.prod(shape)) <= 30, f"{name} must have at most 30 elements", f"{np.prod(shape)}")
    axes = [after[dim].values for dim in after.dims[2:]]
    unit = str(after.attrs.get("units", ""))
    panels = []
    for index in np.ndindex(*shape):
        label = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
        posterior, prior = (x.values[(..., *index)].astype(np.float64).ravel() for x in (after, before))
        panels.append((f"{name}[{label}]" if label else name, posterior, prior, unit))
    return panels


def _two_densities(ax: Axes, after: Array, before: Array, num_bins: int) -> None:
    """Draw two histograms, each scaled to its peak, over a window that keeps the posterior legible."""
    low, high = float(after.min()), float(after.max())
    width = (high - low) or max(abs(low), 1.0) * 1e-3
    prior_low, prior_high = np.quantile(before, [0.005, 0.995])
    left = min(low, max(float(prior_low), low - 4 * width)) - 0.05 * width
    right = max(high, min(float(prior_high), high + 4 * width)) + 0.05 * width
    inside = np.sum((before >= left) & (before <= right))  # few draws cannot tell it from a flat one
    num_bins = int(np.clip(np.sqrt(len(after)), 5, num_bins))
    for values, colour, label, bins in (
        (before, COLOURS["orange"], "prior", int(np.clip(inside // 15, 1, 25))),
        (after, COLOURS["blue"], "posterior", int(np.ceil(num_bins * (right - left) / width))),
    ):
        counts, edges = np.histogram(values, bins=bins, range=(left, right))
        heights = counts / max(1, counts.max())
        ax.stairs(heights, edges, fill=True, color=colour, alpha=0.45, label=label)
        ax.stairs(heights, edges, color=colour, linewidth=0.8)
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.08)
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
