"""Figures of films: forecast frames beside filmed ones, latent paths, and latent spaces.

In the style of `vinppl.plotting`. A forecast is what `vinppl.forecast.forecast` returned, or its
file, or what `FilmForecast.arrays` returned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vinppl._checks import require
from vinppl.data import write_video
from vinppl.frame_scores import FilmArrays, film_arrays
from vinppl.plotting import COLOURS, DPI, GREY, WIDTH, DisplayedFigure, columns_that_fit, current_width, tidy

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["animate_forecast", "plot_frames", "plot_latent_portrait", "plot_latent_space"]

Array = NDArray[Any]


def plot_frames(
    forecast: InferenceData | xr.DataTree | FilmArrays,
    horizons: Sequence[float] | None = None,
    *,
    trajectory: int | str = 0,
) -> Figure:
    """Plot frames of a forecast: what was filmed, the mean over posterior draws, and their deviation.

    Args:
        forecast: of films.
        horizons: times since the forecast begins, in the unit of the file's times, one column for each; the
            nearest frame is shown. By default ten, or as many as fit, from the first frame of the forecast to
            the last.
        trajectory: index or name of the clip.

    Returns:
        Three rows; a frame that was not filmed is left blank. The standard deviation is that of the mean
        frames of the draws: what the posterior leaves open about the motion.

    Raises:
        ValueError: for a clip or a horizon that is not there.
    """
    film = film_arrays(forecast)
    n, horizon = _clip(film, trajectory)
    ahead = horizon[horizon > 0]
    count = columns_that_fit(10, 0.7)
    even = np.linspace(ahead[0], ahead[-1], count) if ahead.size else horizon[-1:]
    wanted = np.asarray(even if horizons is None else horizons, dtype=np.float64)
    slack = 1e-6 + float(np.diff(horizon).max(initial=0.0))
    inside = bool(np.all((wanted >= horizon[0] - slack) & (wanted <= horizon[-1] + slack)))
    limits = f"{horizon[0]:.4g} to {horizon[-1]:.4g}"
    require(inside and wanted.ndim == 1 and wanted.size > 0, f"horizons must lie from {limits}", wanted)
    chosen = np.abs(horizon[:, None] - wanted).argmin(0)
    levels = film.levels[:, n, chosen]
    rows = film.truth[n, chosen], levels.mean(0, dtype=np.float64), levels.std(0, dtype=np.float64)
    height, width = film.image_shape
    panel = max(0.62, current_width() / (len(chosen) + 1))
    size = (panel * (len(chosen) + 1.2), 3 * panel * height / width + 0.5)
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(3, len(chosen), squeeze=False)
    for axes, values, label in zip(grid, rows, ("filmed", "mean", "sd"), strict=True):
        axes[0].set_ylabel(label)
        for ax, frame in zip(axes, values, strict=True):
            style = ("viridis", 0.5) if label == "sd" else ("gray", 1.0)
            image = show_frame(ax, frame.reshape(height, width), *style)
    for ax, t in zip(grid[0], horizon[chosen], strict=True):
        ax.set_title(f"{t:+.3g} {film.time_unit}".rstrip(), fontsize="small")
    figure.colorbar(image, ax=list(grid[2]), fraction=0.05, pad=0.01, ticks=[0, 0.5])
    return figure


def plot_latent_portrait(
    forecast: InferenceData | xr.DataTree | FilmArrays,
    trajectory: int | str = 0,
    coordinate: int = 0,
    *,
    num_draws: int = 50,
    mark_every: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Plot the paths of posterior draws and of the posterior mean in the latent phase space.

    The layout of the VIN paper's Figure 6, with the draws it leaves out: a circle where the path begins, dots
    at the frames and triangles at even times. A path on a level of a conserved energy closes.

    Args:
        forecast: of films, with states among its predictions.
        trajectory: index or name of the clip.
        coordinate: index of the generalised coordinate.
        num_draws: draws shown.
        mark_every: time between triangles; by default a quarter of the path's duration.
        ax: where to draw.

    Raises:
        KeyError: if the forecast holds no states.
        ValueError: for a clip or coordinate that is not there.
    """
    film = film_arrays(forecast)
    n, horizon = _clip(film, trajectory)
    require(
        film.states is not None and film.states_at_mean is not None,
        "the forecast must hold states",
        "predictions without 'states'",
        "Record them in the model: vin.record(path).",
        error=KeyError,
    )
    assert film.states is not None
    assert film.states_at_mean is not None
    dim = film.states.shape[-1] // 2
    require(0 <= coordinate < dim, f"coordinate must be an index from 0 to {dim - 1}", coordinate)
    pair = [coordinate, dim + coordinate]
    paths = film.states[:, n, : len(horizon)][..., pair]
    mean = film.states_at_mean[n, : len(horizon)][:, pair]
    if ax is None:
        size = (min(5.6, current_width()), 4.6)
        figure: Figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
        ax = figure.subplots()
    else:
        figure = ax.figure.figure  # the root, also of a subfigure
    picked = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), num_draws)).astype(int))
    alpha = min(0.6, max(0.06, 5 / len(picked)))
    lines = LineCollection(list(paths[picked]), colors=COLOURS["sky"], alpha=alpha, linewidths=0.6)
    lines.set_label("posterior draws")
    ax.add_collection(lines)
    ax.plot(*mean.T, ".-", color=COLOURS["blue"], markersize=3, linewidth=0.7, label="path of the mean")
    elapsed = horizon - horizon[0]
    every = elapsed[-1] / 4 if mark_every is None else mark_every
    require(every > 0, "mark_every must be positive", every)
    marks = np.abs(elapsed[:, None] - np.arange(every, elapsed[-1] * (1 + 1e-9), every)).argmin(0)
    unit = f" {film.time_unit}".rstrip()
    style: dict[str, Any] = {
        "color": COLOURS["vermilion"],
        "markeredgecolor": "white",
        "linestyle": "none",
        "zorder": 3,
    }
    ax.plot(*mean[marks].T, "^", markersize=8, label=f"every {every:.3g}{unit}", **style)
    ax.plot(*mean[0], "o", markersize=9, label="beginning", **style)
    ax.set_xlabel(film.state_names[coordinate])
    ax.set_ylabel(film.state_names[dim + coordinate])
    tidy(ax)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 2}
    legend = ax.legend(frameon=False, fontsize="small", **place)
    faint = legend.legend_handles[0]
    assert faint is not None
    faint.set_alpha(1.0)
    return figure


def plot_latent_space(
    latents: Mapping[str, ArrayLike],
    angle: ArrayLike,
    *,
    num_train: int | None = None,
    circles: Collection[str] = (),
) -> Figure:
    """Plot latent positions of frames against the true angle, as the VIN paper's Figure 5 compares models.

    Args:
        latents: by title of its panel, the positions of successive frames: shape `(time,)` or `(time, 1)`
            against the angle, or `(time, 2)` as a plane.
        angle: true angles in radians, shape `(time,)`.
        num_train: how many of the first frames were used for training and are black; by default none.
        circles: titles of the panels whose position is an angle.

    Returns:
        A panel for each. Points are coloured by the true angle, grey lines join frames in the order of time.

    Raises:
        ValueError: for shapes that disagree, or positions of more than two dimensions.
    """
    truth = np.asarray(angle, dtype=np.float64)
    require(truth.ndim == 1 and truth.size > 0, "angle must have shape (time,)", truth)
    require(len(latents) >= 1, "there must be at least one panel", "none")
    num_train = 0 if num_train is None else num_train
    columns = min(3, len(latents))
    rows = -(-len(latents) // columns)
    size = (max(3.4, WIDTH * columns / 3) + 0.7, 0.5 + 2.3 * rows)
    figure = DisplayedFigure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in grid[len(latents) :]:
        ax.set_axis_off()
    shown = _wrapped(truth)
    for ax, (title, values) in zip(grid, latents.items(), strict=False):
        z = np.asarray(values, dtype=np.float64)
        z = z[:, None] if z.ndim == 1 else z
        fits = z.ndim == 2 and len(z) == len(truth) and z.shape[1] in (1, 2)
        require(fits, f"{title} must have shape ({len(truth)}, 1) or ({len(truth)}, 2)", z)
        z = _wrapped(z) if title in circles else z
        x, y = (shown, z[:, 0]) if z.shape[1] == 1 else z.T
        flat = z.shape[1] == 1
        jumps = (np.abs(np.diff(x)) > math.pi) & flat
        jumps |= (np.abs(np.diff(y)) > math.pi) & (title in circles)
        points = np.stack([x, y], axis=-1)
        pieces = np.split(points, np.flatnonzero(jumps) + 1)  # a line across the panel would be no motion
        ax.add_collection(LineCollection(pieces, colors=GREY, linewidths=0.5, alpha=0.5, zorder=1))
        dots = ax.scatter(
            x[num_train:],
            y[num_train:],
            c=shown[num_train:],
            cmap="twilight",
            vmin=-math.pi,
            vmax=math.pi,
            s=12,
            zorder=2,
        )
        ax.scatter(x[:num_train], y[:num_train], color=COLOURS["black"], s=7, zorder=3)
        ax.set_title(title, fontsize="small")
        ax.set_xlabel("true angle (rad)" if flat else "first latent")
        ax.set_ylabel(("latent angle (rad)" if title in circles else "latent") if flat else "second latent")
        tidy(ax)
    figure.colorbar(dots, ax=list(grid), label="true angle (rad)", fraction=0.03, pad=0.02)
    return figure


def animate_forecast(
    forecast: InferenceData | xr.DataTree | FilmArrays,
    path: str | Path,
    *,
    trajectory: int | str = 0,
    frame_rate: float | None = None,
    scale: int = 6,
) -> None:
    """Write a film of a forecast: what was filmed, the mean over posterior draws and their deviation.

    Args:
        forecast: of films.
        path: the file, as for `vinppl.data.write_video`; a GIF, say.
        trajectory: index or name of the clip.
        frame_rate: frames per second; by default that of the forecast where its times are in seconds. More
            than 50 are thinned, because viewers of GIFs do not show them.
        scale: side of the square that shows one pixel. The deviation is drawn at twice its size.

    Raises:
        ValueError: for a clip that is not there, or a rate or scale that is not positive.
    """
    film = film_arrays(forecast)
    n, horizon = _clip(film, trajectory)
    require(scale >= 1, "scale must be at least 1", scale)
    rate = 1.0 / float(np.median(np.diff(horizon))) if frame_rate is None else frame_rate
    require(rate > 0, "frame_rate must be positive", rate)
    every = max(1, math.ceil(rate / 50 - 1e-6))
    pictures = [_triptych(film, n, k, horizon[k], scale) for k in range(0, len(horizon), every)]
    write_video(np.stack(pictures), path, rate / every, scale=1)


MISSING_LEVEL = 0.25
"""Grey of a frame that was not filmed."""


def _triptych(film: FilmArrays, n: int, k: int, horizon: float, scale: int) -> Array:
    """Return three frames side by side under a line of text, as bytes."""
    draws = film.levels[:, n, k]
    deviation = 2 * draws.std(0, dtype=np.float64)
    parts = np.nan_to_num(film.truth[n, k], nan=MISSING_LEVEL), draws.mean(0, dtype=np.float64), deviation
    pictures = [_enlarged(part.reshape(film.image_shape), scale) for part in parts]
    gap = np.full((pictures[0].shape[0], 4), 160, dtype=np.uint8)
    strip = np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1)
    unit = f" {film.time_unit}".rstrip()
    when = "fitted" if film.in_sample[n, k] else f"forecast {horizon:+.2f}{unit}"
    text = Image.new("L", (strip.shape[1], 18), 0)
    draw, font = ImageDraw.Draw(text), ImageFont.load_default()
    width = pictures[0].shape[1] + 4
    for place, label in zip((0, width, 2 * width), (f"filmed, {when}", "mean", "2 x sd"), strict=True):
        draw.text((place + 3, 3), label, fill=230, font=font)
    return np.concatenate([np.asarray(text), strip])


def _enlarged(frame: Array, scale: int) -> Array:
    levels = (255 * frame.clip(0, 1)).round().astype(np.uint8)
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def show_frame(ax: Axes, frame: Array, colours: str = "gray", most: float = 1.0) -> Any:
    """Draw a frame `(height, width)` of levels from 0 to `most`, or a blank panel for one of NaN."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(color=GREY, linewidth=0.5)
    if np.isnan(frame).all():
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect=frame.shape[0] / frame.shape[1])
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.5)
        return None
    return ax.imshow(frame, cmap=colours, vmin=0.0, vmax=most, interpolation="nearest")


def _clip(film: FilmArrays, trajectory: int | str) -> tuple[int, Array]:
    """Return the index of a clip and the horizons of its frames, padding left out."""
    if isinstance(trajectory, str):
        require(trajectory in film.clips, f"trajectory must be among {', '.join(film.clips)}", trajectory)
        n = film.clips.index(trajectory)
    else:
        n = trajectory
        require(0 <= n < len(film.clips), f"trajectory must be an index from 0 to {len(film.clips) - 1}", n)
    return n, film.horizon[n, : film.lengths[n]]


def _wrapped(angle: Array) -> Array:
    return (angle + math.pi) % (2 * math.pi) - math.pi
