"""Figures: what they contain, that nothing overlaps or is cut off, and that no global state changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from vinppl import plotting
from vinppl.export import to_arviz
from vinppl.plotting import (
    columns_that_fit,
    current_width,
    figure_width,
    plot_energy,
    plot_fan_chart,
    plot_forecast_comparison,
    plot_losses,
    plot_phase_portrait,
    plot_posterior_vs_prior,
    plot_uncertainty,
    save_figure,
)

DIMS = {
    "obs": ("trajectory", "time", "channel"),
    "states": ("trajectory", "time", "state"),
    "energy": ("trajectory", "time"),
    "times": ("trajectory", "time"),
    "measured": ("trajectory", "time", "channel"),
    "in_sample": ("trajectory", "time"),
    "forecast_start": ("trajectory",),
}
NUM_DRAWS, NUM_TIMES, NUM_FITTED, NUM_MEASURED = 60, 80, 30, 60


def forecast_groups(velocity: bool = True, ragged: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """An ensemble of oscillators whose phases drift apart, on two trajectories."""
    rng = np.random.default_rng(0)
    times = np.tile(0.1 * np.arange(NUM_TIMES), (2, 1))
    if ragged:
        times = np.stack([times[0], np.minimum(0.07 * np.arange(NUM_TIMES), 0.07 * 69)])
    rate = 2 + 0.1 * rng.normal(size=(NUM_DRAWS, 1, 1))
    size = 1.5 + 0.05 * rng.normal(size=(NUM_DRAWS, 1, 1))
    states = np.stack([size * np.cos(rate * times), -size * rate * np.sin(rate * times)], axis=-1)
    channels = 2 if velocity else 1
    obs = states[..., :channels] + 0.2 * rng.normal(size=(*states.shape[:-1], channels))
    truth = np.stack([1.5 * np.cos(2 * times), -3.0 * np.sin(2 * times)], axis=-1)[..., :channels]
    measured = truth + 0.2 * rng.normal(size=truth.shape)
    measured[:, NUM_MEASURED:] = np.nan
    energy = np.broadcast_to((size * rate) ** 2 / 2, states.shape[:-1])
    return {
        "predictions": {"obs": obs[None], "states": states[None], "energy": energy[None].copy()},
        "predictions_constant_data": {
            "times": times,
            "measured": measured,
            "in_sample": np.tile(np.arange(NUM_TIMES) < NUM_FITTED, (2, 1)),
            "forecast_start": times[:, NUM_FITTED - 1],
        },
    }


def make_forecast(groups: dict | None = None, **options: bool):
    groups = groups or forecast_groups(**options)
    count = groups["predictions"]["obs"].shape[-1]
    return to_arviz(
        groups,
        dims=DIMS,
        coords={
            "trajectory": ["first", "second"],
            "channel": ["angle", "rate"][:count],
            "state": ["q", "dq/dt"],
        },
        units={"time": "s", "times": "s", "energy": "J"},
        attrs={
            "channel_quantity": json.dumps(["position", "velocity"][:count]),
            "channel_coordinate": json.dumps([0, 0][:count]),
            "channel_angle": json.dumps([True, False][:count]),
            "channel_unit": json.dumps(["rad", "rad/s"][:count]),
        },
    )


def make_result(**changes: dict):
    rng = np.random.default_rng(1)
    groups = {
        "posterior": {
            "mass": 1 + 0.05 * rng.normal(size=(2, 300)),
            "potential.stiffness": rng.gamma(4.0, size=(2, 300)),
            "initial_position": rng.normal(size=(2, 300, 2)),
            "only_posterior": rng.normal(size=(2, 300)),
        },
        "prior": {
            "mass": np.exp(rng.normal(size=(1, 200))),
            "potential.stiffness": rng.gamma(4.0, size=(1, 200)),
            "initial_position": 2 * rng.normal(size=(1, 200, 2)),
        },
    }
    return to_arviz(groups | changes, units={"mass": "kg"})


FIGURES: dict[str, Callable[[], Figure]] = {
    "fan": lambda: plot_fan_chart(make_forecast()),
    "fan of ragged": lambda: plot_fan_chart(
        make_forecast(ragged=True), trajectory="second", levels=(0.5, 0.8, 0.95)
    ),
    "energy": lambda: plot_energy(make_forecast()),
    "phase": lambda: plot_phase_portrait(make_forecast()),
    "phase of positions": lambda: plot_phase_portrait(make_forecast(velocity=False)),
    "uncertainty": lambda: plot_uncertainty(make_forecast()),
    "uncertainty of ragged": lambda: plot_uncertainty(make_forecast(ragged=True)),
    "losses": lambda: plot_losses(100 + 1e4 * np.exp(-np.arange(500) / 10), 450),
    "prior": lambda: plot_posterior_vs_prior(make_result()),
}


def legend_labels(figure: Figure) -> list[str]:
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()] + figure.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("width", [7.2, 4.0])
def test_nothing_is_cut_off_and_legends_cover_no_axes(name: str, width: float) -> None:
    with figure_width(width):
        figure = FIGURES[name]()
    assert figure.get_figwidth() <= width
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox
    used = figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
    assert used.x0 >= page.x0 - 1
    assert used.x1 <= page.x1 + 1
    assert used.y0 >= page.y0 - 1
    assert used.y1 <= page.y1 + 1
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()] + figure.legends
    assert legends
    visible = [ax for ax in figure.axes if ax.axison]
    for legend in legends:
        assert not any(legend.get_window_extent(renderer).overlaps(ax.bbox.padded(-1)) for ax in visible)
    columns = len({round(ax.bbox.x0) for ax in visible})
    for ax in visible:
        assert ax.bbox.width > (0.75 if width > 5 else 0.7) * page.width / columns
        assert ax.bbox.height > 0.2 * page.height / len(visible)


@pytest.mark.parametrize("name", FIGURES)
def test_global_state_is_left_alone(name: str) -> None:
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    opened = pyplot.get_fignums()
    assert isinstance(FIGURES[name](), Figure)
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.get_backend() == backend
    assert pyplot.get_fignums() == opened


def test_the_width_of_figures_holds_for_a_block() -> None:
    with figure_width(4.0):
        assert current_width() == 4.0
        assert (columns_that_fit(3), columns_that_fit(5, 1.4), columns_that_fit(1)) == (1, 2, 1)
        assert len({round(ax.bbox.x0) for ax in plot_uncertainty(make_forecast()).axes}) == 1
    assert current_width() == 7.2
    assert columns_that_fit(3) == 3
    with pytest.raises(ValueError, match="the width of figures must be positive"), figure_width(0.0):
        pass


def test_module_imports_without_torch() -> None:
    code = "import sys, vinppl.plotting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_fan_chart() -> None:
    figure = plot_fan_chart(make_forecast())
    first, second = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["angle (rad)", "rate (rad/s)"]
    assert second.get_xlabel() == "time (s)"
    assert len(first.collections) == 2  # bands
    lines = {line.get_label(): line for line in first.lines}
    assert set(lines) == {"median", "measured, fitted", "measured, held out", "forecast begins"}
    assert np.isfinite(lines["measured, fitted"].get_ydata()).sum() == NUM_FITTED
    assert np.isfinite(lines["measured, held out"].get_ydata()).sum() == NUM_MEASURED - NUM_FITTED
    assert lines["measured, held out"].get_markerfacecolor() == "white"
    assert lines["forecast begins"].get_xdata()[0] == pytest.approx(0.1 * (NUM_FITTED - 1))
    assert legend_labels(figure)[:3] == ["90 % band", "50 % band", "median"]
    assert figure.get_suptitle() == "trajectory first"


def test_fan_chart_bands_hold_their_share_of_draws() -> None:
    forecast = make_forecast()
    obs = forecast["predictions"]["obs"].values[0, :, 1, :, 1]
    ax = plot_fan_chart(forecast, trajectory=1, channels=["rate"], levels=[0.5]).axes[0]
    vertices = ax.collections[0].get_paths()[0].vertices
    low, high = np.quantile(obs, [0.25, 0.75], axis=0)
    assert vertices[:, 1].min() == pytest.approx(low.min())
    assert vertices[:, 1].max() == pytest.approx(high.max())


def test_fan_chart_draws_into_given_axes() -> None:
    own = Figure(figsize=(8, 3))
    axes = own.subplots(1, 2)
    assert plot_fan_chart(make_forecast(), axes=axes) is own
    assert len(own.axes) == 2
    assert own.get_suptitle() == ""
    part = Figure().subfigures(1, 2)
    ax = part[0].subplots()
    assert plot_losses([3.0, 2.0, 1.0], ax=ax) is part[0].figure


def test_padding_of_shorter_trajectories_is_not_drawn() -> None:
    figure = plot_fan_chart(make_forecast(ragged=True), trajectory=1)
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median")
    assert len(median.get_xdata()) == 70


def test_wrapped_angles_are_joined_up() -> None:
    groups = forecast_groups()
    rng = np.random.default_rng(2)
    times = groups["predictions_constant_data"]["times"]
    turning = 2 * times + 0.1 * rng.normal(size=(1, NUM_DRAWS, 2, NUM_TIMES))
    groups["predictions"]["obs"][..., 0] = (turning + np.pi) % (2 * np.pi) - np.pi
    groups["predictions_constant_data"]["measured"][..., 0] = (2 * times + np.pi) % (2 * np.pi) - np.pi
    ax = plot_fan_chart(make_forecast(groups)).axes[0]
    for line in ax.lines[:3]:  # median, fitted, held out
        y = np.asarray(line.get_ydata())
        np.testing.assert_allclose(y[np.isfinite(y)], 2 * times[0][np.isfinite(y)], atol=0.1)


def test_angles_that_count_revolutions_stay_as_they_are() -> None:
    groups = forecast_groups()
    groups["predictions"]["obs"][..., 0] += 4 * np.pi
    ax = plot_fan_chart(make_forecast(groups)).axes[0]
    points = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines[1:3]])
    assert np.nanmin(points) > 4 * np.pi - 3


def test_energy_shows_the_change_of_every_draw() -> None:
    upper, lower = plot_energy(make_forecast(), "second", num_draws=7).axes
    assert upper.get_ylabel() == "energy E (J)"
    assert len(lower.lines) == 1 + 7 + 2  # median, draws, forecast begins, zero
    for line in lower.lines[:8]:
        np.testing.assert_allclose(line.get_ydata(), 0.0, atol=1e-12)
    low, high = lower.get_ylim()
    spread = np.ptp(upper.get_ylim())
    assert -low == high > 0.002 * spread  # rounding is not blown up to fill the panel


def test_phase_portrait() -> None:
    ax = plot_phase_portrait(make_forecast(), num_draws=9).axes[0]
    (paths,) = (item for item in ax.collections if isinstance(item, LineCollection))
    assert len(paths.get_segments()) == 9
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("q (rad)", "dq/dt (rad/s)")
    assert {line.get_label() for line in ax.lines} == {
        "measured, fitted",
        "measured, held out",
        "median start",
    }
    assert "measured positions, held out" in legend_labels(plot_phase_portrait(make_forecast(velocity=False)))
    assert plot_phase_portrait(make_forecast(), coordinate="q").axes


def test_uncertainty_is_the_standard_deviation_over_draws() -> None:
    forecast = make_forecast()
    figure = plot_uncertainty(forecast)
    assert [ax.get_ylabel() for ax in figure.axes] == ["sd of angle (rad)", "sd of rate (rad/s)"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    predictions = forecast["predictions"]
    for name, variable in (("measurement", "obs"), ("trajectory", "states")):
        variance = predictions[variable].values[0, ..., 1].var(0)
        np.testing.assert_allclose(lines[name].get_ydata(), np.sqrt(variance.mean(0)))
    np.testing.assert_allclose(lines["trajectory"].get_xdata()[[0, NUM_FITTED - 1]], [-2.9, 0], atol=1e-12)
    one = plot_uncertainty(forecast, trajectory=1).axes[1].lines[0]
    np.testing.assert_allclose(one.get_ydata(), predictions["obs"].values[0, :, 1, :, 1].std(0))


def test_ragged_trajectories_are_averaged_at_horizons_that_all_reach() -> None:
    horizon = plot_uncertainty(make_forecast(ragged=True)).axes[0].lines[0].get_xdata()
    assert horizon[0] == pytest.approx(-0.07 * (NUM_FITTED - 1))
    assert horizon[-1] == pytest.approx(0.07 * (69 - NUM_FITTED + 1))


def test_uncertainty_without_states_shows_the_measurement_alone() -> None:
    groups = forecast_groups()
    del groups["predictions"]["states"], groups["predictions"]["energy"]
    figure = plot_uncertainty(make_forecast(groups))
    assert legend_labels(figure) == ["measurement", "forecast begins"]


def test_losses() -> None:
    losses = 100 + 1e4 * np.exp(-np.arange(500) / 10)
    ax = plot_losses(losses, 450).axes[0]
    assert [line.get_label() for line in ax.lines] == [
        "loss (up to 1.01e+04)",
        "mean of 25 steps",
        "kept state: step 450",
    ]
    assert ax.get_ylim()[1] < 300
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "negative ELBO (nats)")
    assert len(plot_losses([3.0, np.nan, 1.0]).axes[0].lines) == 1
    assert len(plot_losses([2.0]).axes[0].lines) == 1


def test_posterior_vs_prior() -> None:
    figure = plot_posterior_vs_prior(make_result())
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_xlabel() for ax in shown] == ["mass (kg)", "potential.stiffness"]
    assert legend_labels(figure) == ["prior", "posterior"]
    assert "% of the prior's" in shown[0].get_title()
    low, high = shown[0].get_xlim()
    assert high - low < 12 * 0.4  # the posterior, some 0.35 wide, keeps a share of the panel
    vector = plot_posterior_vs_prior(make_result(), ["initial_position"])
    assert [ax.get_xlabel() for ax in vector.axes] == ["initial_position[0]", "initial_position[1]"]


def test_save_is_atomic_and_closes(tmp_path, monkeypatch) -> None:
    figure = pyplot.figure()
    number = figure.number
    path = save_figure(figure, tmp_path / "deep" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not pyplot.fignum_exists(number)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    broken = plot_losses([1.0, 2.0])
    monkeypatch.setattr(broken, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(broken, path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["figure.png"]
    with pytest.raises(ValueError, match="path must end in one of"):
        save_figure(plot_losses([1.0, 2.0]), tmp_path / "figure.nonsense")


def test_figures_are_saved_at_150_dots_per_inch(tmp_path) -> None:
    image = pyplot.imread(save_figure(plot_losses([1.0, 2.0]), tmp_path / "figure.png"))
    assert image.shape[:2] == (450, 1080)


def test_figures_show_themselves_in_a_notebook() -> None:
    assert plot_losses([1.0, 2.0])._repr_png_().startswith(b"\x89PNG")


def without(group: str, variable: str):
    groups = forecast_groups()
    del groups[group][variable]
    return to_arviz(groups, dims=DIMS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot_fan_chart(make_result()), KeyError, "group 'predictions' is needed; got posterior"),
        (lambda: plot_fan_chart(make_forecast(), trajectory=2), ValueError, "index from 0 to 1; got 2"),
        (lambda: plot_fan_chart(make_forecast(), trajectory="x"), ValueError, "among first, second"),
        (lambda: plot_fan_chart(make_forecast(), channels=["x"]), ValueError, "among angle, rate"),
        (lambda: plot_fan_chart(make_forecast(), levels=[90]), ValueError, "levels must be probabilities"),
        (
            lambda: plot_fan_chart(make_forecast(), axes=[Figure().subplots()]),
            ValueError,
            "must hold 2 axes; got 1",
        ),
        (lambda: plot_energy(without("predictions", "energy")), KeyError, "must hold the model's energy"),
        (lambda: plot_phase_portrait(without("predictions", "states")), KeyError, "must hold states"),
        (
            lambda: plot_phase_portrait(make_forecast(), coordinate=1),
            ValueError,
            "coordinate must be an index",
        ),
        (lambda: plot_phase_portrait(make_forecast(), num_draws=0), ValueError, "num_draws must be"),
        (lambda: plot_uncertainty(without("predictions_constant_data", "times")), KeyError, "hold times"),
        (lambda: plot_losses([]), ValueError, "losses must have shape"),
        (lambda: plot_posterior_vs_prior(make_forecast()), KeyError, "group 'posterior' is needed"),
        (lambda: plot_posterior_vs_prior(make_result(prior={})), KeyError, "group 'prior' is needed"),
        (
            lambda: plot_posterior_vs_prior(make_result(), ["only_posterior"]),
            ValueError,
            "var_names must be",
        ),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_public_names_resolve() -> None:
    assert all(hasattr(plotting, name) for name in plotting.__all__)


def test_forecast_comparison() -> None:
    figure = plot_forecast_comparison({"one": make_forecast(), "two": make_forecast()}, trajectory=0)
    first, second, spread = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert {line.get_label() for line in spread.lines} == {"one", "two"}
    assert [ax.texts[0].get_text() for ax in (first, second)] == ["one", "two"]
    with pytest.raises(ValueError, match="at least one forecast"):
        plot_forecast_comparison({})
