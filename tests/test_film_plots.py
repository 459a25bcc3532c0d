"""Figures of films: which frames they show, that nothing is cut off, and what the animation holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from example_data import FILM_DIMS, film_forecast

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from vinppl.export import get_group, to_arviz
from vinppl.film_plots import animate_forecast, plot_frames, plot_latent_portrait, plot_latent_space
from vinppl.frame_scores import film_arrays

ANGLE = np.linspace(-3.0, 9.0, 60)
LATENTS = {"LG-VAE": ANGLE + 1.0, "VAE": np.stack([np.sin(ANGLE), np.cos(ANGLE)], -1), "DVAE": ANGLE[:, None]}

FIGURES: dict[str, Callable[[], Figure]] = {
    "frames": lambda: plot_frames(film_forecast()),
    "one frame": lambda: plot_frames(film_forecast(), [0.5]),
    "portrait": lambda: plot_latent_portrait(film_forecast(), "second"),
    "space": lambda: plot_latent_space(LATENTS, ANGLE, num_train=20, circles={"LG-VAE"}),
    "one space": lambda: plot_latent_space({"VAE": LATENTS["VAE"]}, ANGLE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_global_state_is_left_alone(name: str) -> None:
    settings, opened = dict(matplotlib.rcParams), pyplot.get_fignums()
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page, used = figure.bbox, figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
    assert used.x0 >= page.x0 - 1
    assert used.x1 <= page.x1 + 1
    assert used.y0 >= page.y0 - 1
    assert used.y1 <= page.y1 + 1
    for ax in figure.axes:
        legend = ax.get_legend()
        assert legend is None or not legend.get_window_extent(renderer).overlaps(ax.bbox.padded(-1))
    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == opened


def images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def test_frames_are_those_of_the_horizons() -> None:
    forecast = film_forecast()
    film = film_arrays(forecast)
    figure = plot_frames(forecast, [-0.5, 0.1, 1.0, 2.52], trajectory="second")
    top = figure.axes[:4]
    assert [ax.get_title() for ax in top] == ["-0.5 s", "+0.1 s", "+1 s", "+2.5 s"]
    assert [figure.axes[k].get_ylabel() for k in (0, 4, 8)] == ["filmed", "mean", "sd"]
    index = [4, 10, 19, 34]
    levels = film.levels[:, 1, index].reshape(20, 4, 8, 8)
    shown = images(figure)
    assert len(shown) == 11, "the last one was not filmed"
    for k in range(3):
        np.testing.assert_array_equal(shown[k], film.truth[1, index[k]].reshape(8, 8))
    for k in range(4):
        np.testing.assert_allclose(shown[3 + k], levels[:, k].mean(0), atol=1e-6)
        np.testing.assert_allclose(shown[7 + k], levels[:, k].std(0), atol=1e-6)
    assert len(images(plot_frames(forecast))) == 7 + 10 + 10
    with pytest.raises(ValueError, match=r"horizons must lie from -0\.9 to 3"):
        plot_frames(forecast, [3.5])
    with pytest.raises(ValueError, match="trajectory must be among first, second"):
        plot_frames(forecast, trajectory="third")


def test_portrait_shows_draws_mean_and_marks() -> None:
    forecast = film_forecast()
    ax = plot_latent_portrait(forecast, num_draws=7, mark_every=1.0).axes[0]
    (paths,) = (item for item in ax.collections if isinstance(item, LineCollection))
    assert len(paths.get_segments()) == 7
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in ax.lines}
    t = 0.1 * np.arange(40)
    np.testing.assert_allclose(lines["path of the mean"][:, 0], np.cos(2 * t), atol=1e-9)
    np.testing.assert_allclose(lines["every 1 s"][:, 0], np.cos(2 * np.array([1.0, 2.0, 3.0])), atol=1e-9)
    np.testing.assert_allclose(lines["beginning"], [[1.0, 0.0]], atol=1e-9)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("q", "dq/dt")
    own = Figure().subplots()
    assert plot_latent_portrait(forecast, ax=own) is own.figure
    with pytest.raises(ValueError, match="coordinate must be an index from 0 to 0"):
        plot_latent_portrait(forecast, coordinate=1)
    without = {
        group: {
            name: x.values for name, x in get_group(forecast, group).data_vars.items() if name != "states"
        }
        for group in ("predictions", "predictions_constant_data")
    }
    with pytest.raises(KeyError, match="must hold states"):
        plot_latent_portrait(to_arviz(without, dims=FILM_DIMS, attrs={"image_shape": "[8, 8]"}))


def test_latent_space_wraps_angles_and_breaks_their_lines() -> None:
    figure = plot_latent_space(LATENTS, ANGLE, num_train=20, circles={"LG-VAE"})
    circle, plane, line = figure.axes[:3]
    assert (circle.get_ylabel(), plane.get_ylabel(), line.get_ylabel()) == (
        "latent angle (rad)",
        "second latent",
        "latent",
    )

    def segments(ax: Any) -> list[np.ndarray]:
        return next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()

    assert all(np.abs(np.diff(piece, axis=0)).max(initial=0) < np.pi for piece in segments(circle))
    assert len(segments(plane)) == 1
    assert sum(len(piece) for piece in segments(circle)) == 60
    tested, trained = (c.get_offsets() for c in circle.collections if not isinstance(c, LineCollection))
    assert (len(tested), len(trained)) == (40, 20)
    np.testing.assert_allclose(np.cos(trained[:, 1]), np.cos(ANGLE[:20] + 1.0), atol=1e-9)
    with pytest.raises(ValueError, match=r"VAE must have shape \(60, 1\) or \(60, 2\)"):
        plot_latent_space({"VAE": np.zeros((60, 3))}, ANGLE)


def test_animation_shows_three_films_side_by_side(tmp_path: Path) -> None:
    forecast = film_forecast()
    film = film_arrays(forecast)
    file = tmp_path / "film.gif"
    animate_forecast(forecast, file, scale=3)
    with Image.open(file) as gif:
        assert gif.n_frames == 40
        assert gif.info["duration"] == 100
        assert gif.size == (3 * 24 + 8, 24 + 18)
        gif.seek(15)
        picture = np.asarray(gif.convert("L"), dtype=float) / 255
    filmed, mean, deviation = (picture[19::3, start + 1 : start + 24 : 3] for start in (0, 28, 56))
    levels = film.levels[:, 0, 15].reshape(20, 8, 8)
    # A GIF holds 256 levels.
    np.testing.assert_allclose(filmed, film.truth[0, 15].reshape(8, 8), atol=0.01)
    np.testing.assert_allclose(mean, levels.mean(0), atol=0.01)
    np.testing.assert_allclose(deviation, 2 * levels.std(0), atol=0.01)
    animate_forecast(forecast, tmp_path / "fast.npz", trajectory=1, frame_rate=100.0)
    frames = np.load(tmp_path / "fast.npz")
    assert frames["frames"].shape[0] == 18, "every other one of 35"
    assert float(frames["frame_rate"]) == 50.0
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        animate_forecast(forecast, file, frame_rate=-1.0)
