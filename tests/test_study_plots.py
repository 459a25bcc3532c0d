"""Figures of studies, from small tables whose shape is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vinppl.study_plots import plot_embeddings, plot_example_forecasts, plot_scores_by_horizon

HORIZONS = np.arange(1.0, 11.0)


def forecasts() -> pd.DataFrame:
    """Return forecasts by two models, the second of which runs away."""
    truth = np.cos(HORIZONS)
    parts = []
    for model, growth in (("good", 1.0), ("bad", 50.0)):
        middle = growth * truth
        columns = {"horizon": HORIZONS, "truth": truth, "error": np.abs(middle - truth), "middle": middle}
        columns |= {"low": middle - 0.1, "high": middle + 0.1, "energy_truth": np.ones(10)}
        columns |= {f"energy_{k}": growth * np.ones(10) for k in ("low", "middle", "high")}
        parts.append(pd.DataFrame(columns).assign(model=model))
    return pd.concat(parts)


def scores() -> pd.DataFrame:
    """Return scores of two models on three seeds."""
    rows = [
        {
            "model": model,
            "horizon": h,
            "seed": seed,
            "crps": level * h + seed,
            "coverage_90": 0.9 - 0.1 * seed,
        }
        for model, level in (("a", 1.0), ("b", 2.0))
        for seed in range(3)
        for h in HORIZONS
    ]
    return pd.DataFrame(rows)


def test_example_forecasts_show_every_model_and_stay_in_the_frame_of_the_truth() -> None:
    figure = plot_example_forecasts(forecasts(), {"good": "Good", "bad": "Bad"})
    axes = np.array(figure.axes).reshape(3, 2)
    assert [ax.get_title() for ax in axes[0]] == ["Good", "Bad"]
    for ax in axes[0]:  # the one that runs away does not hide the truth
        assert max(abs(y) for y in ax.get_ylim()) == pytest.approx(1.6 * np.abs(np.cos(HORIZONS)).max())
    drawn = axes[0, 0].lines[0]
    np.testing.assert_array_equal(drawn.get_xdata(), HORIZONS)
    np.testing.assert_allclose(drawn.get_ydata(), np.cos(HORIZONS))
    np.testing.assert_allclose(axes[1, 1].lines[0].get_ydata(), np.abs(49 * np.cos(HORIZONS)))


def test_scores_by_horizon_show_the_median_over_seeds_and_the_nominal_coverage() -> None:
    figure = plot_scores_by_horizon(scores(), {"a": "A", "b": "B"}, ("crps", "coverage_90"))
    crps, coverage = figure.axes
    np.testing.assert_allclose(crps.lines[0].get_ydata(), HORIZONS + 1)  # seeds 0, 1, 2: the middle one
    np.testing.assert_allclose(crps.lines[1].get_ydata(), 2 * HORIZONS + 1)
    assert [line.get_ydata()[0] for line in coverage.lines] == pytest.approx([0.8, 0.8, 0.9])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]


@pytest.mark.parametrize("plot", [plot_example_forecasts, plot_scores_by_horizon])
def test_a_model_that_the_table_lacks_is_named(plot: object) -> None:
    frame = forecasts() if plot is plot_example_forecasts else scores()
    with pytest.raises(ValueError, match="none of missing"):
        plot(frame, {"missing": "?"})  # type: ignore[operator]


def test_embeddings_turn_the_angle_of_a_circle_to_the_true_one() -> None:
    time = np.arange(0.0, 6.0, 0.1)
    truth, truth_v = np.sin(time), np.cos(time)
    known = {"horizon_s": time, "truth": truth, "truth_v": truth_v}
    frame = pd.concat(
        [
            pd.DataFrame({**known, "model": "plane", "q": truth_v, "v": truth}),
            pd.DataFrame({**known, "model": "circle", "q": truth, "v": np.nan}),
            pd.DataFrame({**known, "model": "vin", "q": 1.0 - truth, "v": -truth_v}),
        ]
    )
    titles = {"plane": "Plane", "circle": "Circle", "vin": "VIN"}
    figure = plot_embeddings(frame, titles, num_train=20, circles=("circle", "vin"))
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == ["Plane", "Circle", "VIN", "VIN, phase space", "truth"]
    turned, true = (panels[name].collections[1].get_offsets() for name in ("VIN, phase space", "truth"))
    np.testing.assert_allclose(turned, true, atol=1e-6)
