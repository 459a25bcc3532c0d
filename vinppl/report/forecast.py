"""The section on the forecast: what is predicted beyond the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vinppl.export import get_group
from vinppl.film_plots import plot_frames, plot_latent_portrait
from vinppl.plotting import plot_energy, plot_fan_chart, plot_phase_portrait
from vinppl.report.blocks import Block, Command, Details, Facts, Finding, Section, Text
from vinppl.report.figures import animation, picture
from vinppl.report.material import Material
from vinppl.report.numbers import counted, number, percent

__all__ = ["forecast_command", "forecast_section", "reach"]

MAX_LOST = 0.01
"""Share of draws without a forecast from which on it is a warning."""

FAR_AHEAD = 3.0
"""Forecasts beyond so many durations of the record are called bold."""

MAX_ANIMATION = 5_000_000
"""Bytes of an animation at most that the page takes in."""


def forecast_section(material: Material) -> Section:
    """Return the section on the forecast."""
    title = "Forecast"
    if material.forecast is None:
        return Section("forecast", title, tuple(_missing(material)))
    blocks: list[Block] = [Facts(tuple(_facts(material)))]
    is_stale = _is_stale(material)
    if is_stale:
        blocks.append(Text("This forecast was made from an earlier posterior.", "bad"))
    blocks += [picture(*figure) for figure in _figures(material)]
    film = material.run.folder.path / "forecast.gif"
    if material.is_film and film.exists() and film.stat().st_size <= MAX_ANIMATION:
        caption = "Filmed (grey where nothing was), mean of the forecast, and twice its standard deviation."
        moving = animation(film, "The forecast as a film beside what was filmed", caption)
        blocks.append(Details("The forecast as a film", (moving,)))
    findings = _findings(material)
    if is_stale:
        text = f"The forecast was made from an earlier posterior. Make it again: {forecast_command(material)}"
        findings.append(Finding("warning", text))
    return Section("forecast", title, tuple(blocks), tuple(findings))


def forecast_command(material: Material) -> str:
    """Return the command that forecasts a run."""
    fitted = material.run.fitted
    duration = float((fitted.times[:, -1] - fitted.times[:, 0]).max())
    ahead = "" if material.run.held_out is not None else f" --horizon {number(duration, 2)}"
    return f"python inference/forecast.py {material.place}{ahead}"


def reach(material: Material) -> tuple[float, float, float]:
    """Return how far the forecast goes, how far measurements were held out, and how long the record is.

    All in units of time, the first two beyond the last fitted sample; NaN without held-out measurements.
    """
    constants = get_group(material.forecast, "predictions_constant_data")
    horizon = constants["times"].values - constants["forecast_start"].values[:, None]
    seen = np.isfinite(constants["measured"].values).any(-1) & ~constants["in_sample"].values.astype(bool)
    fitted = material.run.fitted
    duration = float((fitted.times[:, -1] - fitted.times[:, 0]).max())
    return float(horizon.max()), float(horizon[seen].max()) if seen.any() else float("nan"), duration


def _missing(material: Material) -> list[Block]:
    sites = [str(name) for name, value in material.posterior.items() if "time" in value.dims]
    if sites:
        text = f"The model has a value of {sites[0]} for every sample and no dynamics: it cannot forecast."
        return [Text(text)]
    return [Text("No forecast was made yet. This makes one:"), Command(forecast_command(material))]


def _facts(material: Material) -> list[tuple[str, str]]:
    ahead, checked, _ = reach(material)
    predictions = get_group(material.forecast, "predictions")
    draws = predictions.sizes["chain"] * predictions.sizes["draw"]
    held_out = "not at all" if np.isnan(checked) else f"up to {material.time(checked)} ahead"
    return [
        ("Reaches", f"{material.time(ahead)} beyond the last fitted sample"),
        ("Checked by held-out measurements", held_out),
        ("Made of", f"{counted(draws, 'posterior draw')}"),
    ]


def _figures(material: Material) -> list[tuple[Callable[[], Figure], str, str]]:
    """Return how each figure is drawn, what is to be seen, and its caption."""
    forecast, n = material.forecast, material.trajectory
    assert forecast is not None
    predictions = get_group(forecast, "predictions")
    which = material.shown
    figures: list[tuple[Callable[[], Figure], str, str]] = []
    if material.is_film:
        figures.append(
            (
                lambda: plot_frames(material.film, trajectory=n),
                "Filmed frames, mean frames of the forecast and their standard deviation",
                f"Frames{which} by time since the forecast begins: filmed, forecast mean, and standard "
                "deviation.",
            )
        )
    else:
        figures.append(
            (
                lambda: plot_fan_chart(forecast, trajectory=n),
                "Fan chart of the forecast: median and 50 % and 90 % bands against time",
                f"Forecast{which} with its noise: half of the measurements should fall into the inner band, "
                "nine of ten into the outer one.",
            )
        )
    if "states" in predictions:
        figures.append(
            (
                lambda: (
                    plot_latent_portrait(material.film, n)
                    if material.is_film
                    else plot_phase_portrait(forecast, n)
                ),
                "Velocity against position of posterior draws",
                f"Phase portrait{which}: velocity against position, a line for each draw.",
            )
        )
    if "energy" in predictions:
        figures.append(
            (
                lambda: plot_energy(forecast, n),
                "Energy of the draws against time",
                f"The model's energy{which}, and its change along each draw.",
            )
        )
    return figures


def _findings(material: Material) -> list[Finding]:
    assert material.forecast is not None
    findings = []
    lost = int(material.forecast.attrs.get("draws_without_forecast", 0))
    predictions = get_group(material.forecast, "predictions")
    total = lost + predictions.sizes["chain"] * predictions.sizes["draw"]
    if lost:
        text = f"{lost} of {total} draws ({percent(lost / total)}) have no finite path and were left out."
        findings.append(Finding("warning" if lost > MAX_LOST * total else "limit", text))
    ahead, checked, duration = reach(material)
    if np.isfinite(checked) and ahead > 1.05 * checked:
        text = (
            f"Beyond {material.time(checked)} ahead the forecast, which goes on to {material.time(ahead)}, "
            "was compared with no measurement."
        )
        findings.append(Finding("limit", text))
    if ahead > FAR_AHEAD * duration:
        text = (
            f"The forecast reaches {material.time(ahead)} ahead from a record of {material.time(duration)}: "
            "what acts slowly shows too little in such a record."
        )
        findings.append(Finding("limit", text))
    return findings


def _is_stale(material: Material) -> bool:
    """Return whether the forecast holds draws that the posterior does not."""
    made = get_group(material.forecast, "posterior")
    for name, values in made.items():
        if name not in material.posterior:
            return True
        now, then = (_first_entries(v) for v in (material.posterior[name], values))
        if not np.isin(then, now).all():
            return True
    return False


def _first_entries(variable: Any) -> Any:
    """Return the first entry of every draw."""
    values = variable.transpose("chain", "draw", ...).values
    return values.reshape(values.shape[0] * values.shape[1], -1)[:, 0]
