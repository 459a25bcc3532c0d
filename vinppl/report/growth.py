"""The section on uncertainty growth: how the spread of the forecast grows, and what makes it."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from vinppl.growth import MIN_DRAWS, WORDS, growth_verdict, mean_growth
from vinppl.growth.report import smooth_shares
from vinppl.growth_plots import plot_uncertainty_growth
from vinppl.report.blocks import Block, Command, Finding, Listing, Section, Text
from vinppl.report.figures import picture, plot_film_uncertainty
from vinppl.report.forecast import forecast_command
from vinppl.report.material import Material
from vinppl.report.numbers import number, percent, with_unit

__all__ = ["growth_section"]

MAX_MISMATCH = 0.2
"""Log ratio of standard deviations above which the parts of the variance are called approximate."""

MAX_TOLD = 2
"""Channels that the summary speaks of."""


def growth_section(material: Material) -> Section:
    """Return the section on uncertainty growth."""
    name, title = "growth", "Uncertainty growth"
    growth = material.growth
    if growth is not None:
        return Section(name, title, tuple(_blocks(growth)), tuple(_findings(material, growth)))
    if material.forecast is not None and material.is_film:
        return _film(material, name, title)
    return Section(name, title, tuple(_missing(material)))


def _blocks(growth: xr.Dataset) -> list[Block]:
    caption = (
        "Of each channel the standard deviation of what will be measured with the roots of its parts, and "
        "their shares of the variance with Monte Carlo errors; last, how far draws part, and how many still "
        "agree."
    )
    figure = picture(
        lambda: plot_uncertainty_growth(growth),
        "Predictive standard deviation against the horizon, and the shares of what makes it",
        caption,
    )
    return [Listing(tuple(growth_verdict(growth).splitlines())), figure]


def _missing(material: Material) -> list[Block]:
    if any("time" in value.dims for value in material.posterior.values()):
        return [Text("A model without dynamics has none.")]
    if material.forecast is None:
        told = "It is computed with the forecast, which was not made yet."
        return [Text(told), Command(forecast_command(material))]
    few = f"It was not computed with this forecast; it takes at least {MIN_DRAWS} draws. This computes it:"
    return [Text(few), Command(forecast_command(material))]


def _findings(material: Material, growth: xr.Dataset) -> list[Finding]:
    horizons = growth["horizons"].values
    same = np.allclose(horizons, horizons[:1], rtol=1e-9, atol=1e-12, equal_nan=True)
    mean = mean_growth(growth, None if same else 0)
    findings = [
        Finding("learned", _channel(material, mean, c)) for c in range(mean.sizes["channel"])[:MAX_TOLD]
    ]
    if "valid_time" in growth:
        times, last = growth["valid_time"].values, float(np.nanmax(horizons))
        middle = float(np.nanmedian(times))
        if middle < 0.99 * last:
            who = "the truth" if growth.attrs["valid_time_reference"] == "truth" else "one another"
            text = (
                f"Half of the draws agree with {who} for no longer than {material.time(middle)}; beyond that "
                "the forecast says how often states occur rather than when."
            )
            findings.append(Finding("limit", text))
    if growth.attrs["energy_warning"]:
        findings.append(Finding("warning", f"Energy: {growth.attrs['energy_warning']}."))
    if float(growth.attrs["mismatch"]) > MAX_MISMATCH:
        text = "The parts of the forecast's variance are approximate, their sum is not. More draws help."
        findings.append(Finding("limit", text))
    return findings


def _channel(material: Material, mean: xr.Dataset, channel: int) -> str:
    """Say how uncertain a channel is and what makes it so at the end."""
    at = mean.isel(channel=channel)
    t, sd = at["horizons"].values, at["obs_sd"].values
    shares = smooth_shares(np.clip(at["obs_parts"].transpose("horizon", "part").values, 0.0, None))[-1]
    largest = int(shares.argmax())
    part = WORDS.get(str(mean["part"].values[largest]), str(mean["part"].values[largest]))
    name, own = str(mean["channel"].values[channel]), json.loads(mean.attrs["channel_unit"])[channel]
    return (
        f"The forecast of {name} is uncertain by a standard deviation of {number(sd[0], 2)} at first and "
        f"{with_unit(number(sd[-1], 2), own)} after {material.time(t[-1])}; {percent(shares[largest])} of "
        f"its variance then comes from {part}."
    )


def _film(material: Material, name: str, title: str) -> Section:
    film = material.film
    length = int(film.lengths[material.trajectory])
    horizon = film.horizon[material.trajectory, :length]
    levels = film.levels[:, material.trajectory, :length].astype(np.float64)
    spread = np.sqrt(levels.var(0).mean(-1))
    start = int(np.argmin(np.abs(horizon)))
    figure = picture(
        lambda: plot_film_uncertainty(film, material.trajectory),
        "Standard deviation of pixels and latent states against the horizon",
        "Standard deviation over posterior draws: of the mean grey level of a pixel (root mean square over "
        "the frame), and of the latent states.",
    )
    text = (
        "The posterior leaves a pixel of the forecast (0 black, 1 white) uncertain by a standard deviation "
        f"of {number(float(spread[start]), 2)} at first and {number(float(spread[-1]), 2)} after "
        f"{material.time(float(horizon[-1]))}."
    )
    note = Text("The sites that make the spread are told apart for models of states only.", "note")
    return Section(name, title, (Text(text), figure, note), (Finding("learned", text),))
