"""The section on calibration: do measurements fall where the forecast says, and does the fit explain them?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vinppl.export import get_group, group_names
from vinppl.frame_scores import frame_rmse
from vinppl.report.blocks import Block, Command, Facts, Finding, Section, Table, Text
from vinppl.report.figures import picture, plot_calibration
from vinppl.report.forecast import forecast_command
from vinppl.report.material import Material
from vinppl.report.numbers import counted, number, percent
from vinppl.scores import coverage, forecast_arrays, point_forecast

__all__ = ["calibration_section"]

Array = NDArray[np.float64]

FEW = 20
"""Held-out measurements below which coverage says little."""

NARROW, WIDE = 0.8, 0.97
"""Coverage of the 90 % bands below and above which they are called too narrow and too wide."""

NARROW_BIN = 0.7
"""Coverage of the 90 % bands of a single range of horizons below which it is named."""

MEMORY = 0.5
"""Correlation of neighbouring residuals from which on noise without memory is called overconfident."""


def calibration_section(material: Material) -> Section:
    """Return the section on calibration."""
    scores = material.scores
    blocks: list[Block] = []
    findings: list[Finding] = []
    if scores is None:
        blocks += _missing(material)
        findings.append(
            Finding("limit", "No forecast was compared with measurements, so that its bands are unproven.")
        )
    elif material.is_film:
        told, more = _film_check(material, scores)
        blocks += told
        findings += more
    else:
        blocks += _coverage_blocks(material, scores)
        findings += _coverage_findings(material, scores)
    if not material.is_film:
        told, more = _fit_check(material)
        blocks += told
        findings += more
    return Section("calibration", "Calibration", tuple(blocks), tuple(findings))


# Forecasts


def _missing(material: Material) -> list[Block]:
    if material.run.held_out is None:
        text = (
            "No measurements were held out, so that the forecast cannot be checked. Fit into another folder "
            "with the last part of the record held out, then forecast it:"
        )
        script = f"python inference/{material.run.options['kind']}.py .. --train-fraction 0.8 --out RUN"
        return [Text(text), Command(script), Command("python inference/forecast.py RUN")]
    if any("time" in value.dims for value in material.posterior.values()):
        return [Text("A model without dynamics makes no forecasts that could be checked.")]
    text = "Measurements were held out, but no forecast was made that reaches them. This makes one:"
    return [Text(text), Command(forecast_command(material))]


def _coverage_blocks(material: Material, scores: pd.DataFrame) -> list[Block]:
    unit = material.time_unit
    pit = _transforms(material)
    caption = (
        "First, the share of held-out measurements inside of each interval by horizon, with standard "
        "errors; dashed lines are where they should lie. Then, where in its predictive distribution each "
        "one fell; flat is calibrated, a U is too narrow, a hump too wide. Errors and the grey band hold "
        "for independent measurements; those of one trajectory are not, and scatter more."
    )
    figure = picture(
        lambda: plot_calibration(scores, pit, unit),
        "Coverage of forecast intervals by horizon, and a histogram of probability integral transforms",
        caption,
    )
    return [Text(_verdict(scores)), figure, _coverage_table(scores, unit)]


def _coverage_table(scores: pd.DataFrame, unit: str) -> Table:
    levels = [str(name) for name in scores if str(name).startswith("coverage_")]
    heads = [f"{name.removeprefix('coverage_')} %" for name in levels]
    horizon = f"horizon ({unit})" if unit else "horizon"
    columns = ("channel", horizon, *heads, "width of 90 %", "RMSE", "CRPS", "points")
    rows = tuple(
        (
            str(row["channel"]),
            f"{number(row['start_s'])} to {number(row['end_s'])}",
            *(percent(row[level]) for level in levels),
            *(number(row[name]) for name in ("width_90", "rmse", "crps")),
            f"{row['num_points']}",
        )
        for row in scores.to_dict("records")
    )
    caption = "Share of held-out measurements inside of the central intervals, and errors, by horizon."
    return Table(caption, columns, rows, frozenset(range(1, len(columns))))


def _verdict(scores: pd.DataFrame) -> str:
    row = scores.iloc[-1]
    return (
        f"{percent(row['coverage_90'])} of {counted(int(row['num_points']), 'held-out value')} lie inside of "
        f"their 90 % intervals, {percent(row['coverage_50'])} inside of their 50 % intervals."
    )


def _coverage_findings(material: Material, scores: pd.DataFrame) -> list[Finding]:
    row = scores.iloc[-1]
    share, count = float(row["coverage_90"]), int(row["num_points"])
    reached = material.time(float(row["end_s"]))
    findings = [Finding("learned", f"Up to {reached} ahead, {_verdict(scores)}")]
    if count < FEW:
        text = f"Only {counted(count, 'held-out value')} checked the forecast: its bands are nearly unproven."
        return [*findings, Finding("limit", text)]
    if share < NARROW:
        text = (
            f"The 90 % bands are too narrow: only {percent(share)} of the held-out values lie inside. "
            "Do not rely on them; the model lacks a source of uncertainty or a part of the physics."
        )
        return [*findings, Finding("warning", text)]
    if share > WIDE:
        text = f"The 90 % bands are wider than needed: {percent(share)} of the held-out values lie inside."
        findings.append(Finding("limit", text))
    bins = scores[(scores["channel"] != "all") & (scores["num_points"] >= FEW)]
    bad = bins[bins["coverage_90"] < NARROW_BIN]
    if len(bad):
        worst = bad.loc[bad["coverage_90"].idxmin()]
        where = f"{number(worst['start_s'])} to {material.time(float(worst['end_s']))}"
        text = (
            f"At horizons of {where} only {percent(worst['coverage_90'])} of the held-out values of "
            f"{worst['channel']} lie inside of the 90 % bands."
        )
        findings.append(Finding("warning", text))
    return findings


def _transforms(material: Material) -> Array:
    """Return the share of draws below each held-out measurement, ties by halves; angles the shorter way."""
    arrays = forecast_arrays(material.forecast)
    held_out = np.isfinite(arrays.measured) & ~arrays.in_sample[..., None]
    draws, truth = arrays.obs[:, held_out], arrays.measured[held_out]
    angle = arrays.angles[np.nonzero(held_out)[-1]]
    centre = np.where(angle, np.arctan2(np.sin(draws).mean(0), np.cos(draws).mean(0)), 0.0)
    x, y = draws - centre, truth - centre
    x, y = (np.where(angle, _wrapped(z), z) for z in (x, y))
    return np.asarray(((x < y).mean(0) + (x <= y).mean(0)) / 2)


def _wrapped(angle: Array) -> Array:
    """Return the angle in [−π, π)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


# Films


def _film_check(material: Material, scores: pd.DataFrame) -> tuple[list[Block], list[Finding]]:
    """Return the errors of held-out frames, beside those of one image for all of them."""
    row = scores.iloc[-1]
    still = _still_error(material)
    text = (
        f"Over {counted(int(row['num_frames']), 'held-out frame')} up to "
        f"{material.time(float(row['end_s']))} ahead the mean forecast is off by {number(row['rmse'])} (root "
        "of the summed squared error of a frame); the mean of the fitted frames, shown all the time, would "
        f"be off by {number(still)}. The log predictive density of a frame is "
        f"{number(row['log_likelihood'])} nats."
    )
    findings = [Finding("learned", text)]
    if row["rmse"] > still:
        useless = "The forecast of frames is worse than a still image, the mean of those that were fitted."
        findings.append(Finding("warning", useless))
    return [Text(text), _film_table(scores, material.time_unit)], findings


def _still_error(material: Material) -> float:
    """Return the error of the mean of a clip's fitted frames as a forecast of those that were held out."""
    film = material.film
    held_out = ~np.isnan(film.truth).all(-1) & ~film.in_sample
    fitted = material.run.fitted
    seen = fitted.mask.any(-1, keepdim=True)
    still = ((fitted.values * seen).sum(1) / seen.sum(1).clamp_min(1)).double().cpu().numpy()
    levels = np.broadcast_to(still[:, None].clip(0, 1), film.truth.shape)
    return frame_rmse(levels[held_out], film.truth[held_out])


def _film_table(scores: pd.DataFrame, unit: str) -> Table:
    names = {
        "rmse": "RMSE",
        "brier": "Brier",
        "log_likelihood": "log density (nats)",
        "rmse_at_mean": "RMSE, one path",
        "log_likelihood_at_mean": "log density, one path",
    }
    columns = (f"horizon ({unit})" if unit else "horizon", *names.values(), "frames")
    rows = tuple(
        (
            f"{number(row['start_s'])} to {number(row['end_s'])}",
            *(number(row[name]) for name in names),
            f"{row['num_frames']}",
        )
        for row in scores.to_dict("records")
    )
    caption = (
        "Errors of held-out frames by horizon, the last row over all: of the posterior's mean frame, and of "
        "the one path from the posterior mean."
    )
    return Table(caption, columns, rows, frozenset(range(1, len(columns))))


# The fit


def _fit_check(material: Material) -> tuple[list[Block], list[Finding]]:
    """Return what the posterior predictive says of the data that were fitted."""
    result = material.run.posterior
    if "posterior_predictive" not in group_names(result):
        return [], []
    data = material.run.train
    mask = data.mask.cpu().numpy()
    draws = _full(get_group(result, "posterior_predictive")["obs"], mask)
    truth = np.where(mask, data.values.cpu().numpy().astype(np.float64), np.nan)
    angles = np.array([channel.angle for channel in data.channels])
    shares = coverage(draws, truth, (0.5, 0.9), periodic=angles)
    residuals = truth - point_forecast(draws, angles)
    correlation = _memory(np.where(angles, _wrapped(residuals), residuals))
    facts = [
        (
            "Fitted values inside of their 50 % and 90 % intervals",
            f"{percent(shares[0.5])} and {percent(shares[0.9])}",
        ),
        ("Correlation of neighbouring residuals", number(correlation, 2)),
    ]
    told = "On the data that were fitted, as a check of the fit and not of forecasts:"
    blocks: list[Block] = [Text(told), Facts(tuple(facts))]
    if "correlation_time" in material.posterior or not correlation > MEMORY:
        return blocks, []
    fix = " Fit again with --set noise=ar1." if _has_option(material.run.model, "noise") else ""
    text = (
        f"Residuals have memory (correlation of neighbours {number(correlation, 2)}) and the noise of the "
        "model has none, so that its bands are too narrow: the physics or the sensor is not as the model "
        f"says.{fix}"
    )
    return blocks, [Finding("warning", text)]


def _has_option(model: Any, name: str) -> bool:
    """Return whether the options of a model have that name."""
    config = getattr(model, "config", None)
    return dataclasses.is_dataclass(config) and name in {field.name for field in dataclasses.fields(config)}


def _full(obs: Any, mask: NDArray[np.bool_]) -> Array:
    """Return predictive draws `(draw, trajectory, time, channel)`, NaN where nothing was measured."""
    values = obs.transpose("chain", "draw", ...).values.astype(np.float64)
    values = values.reshape(-1, *values.shape[2:])
    if values.ndim == mask.ndim + 1:
        return np.where(mask, values, np.nan)
    draws = np.full((len(values), *mask.shape), np.nan)
    draws[:, mask] = values
    return draws


def _memory(residuals: Array) -> float:
    """Return the correlation of successive residuals of a channel, NaN for fewer than ten pairs."""
    scaled = residuals / np.sqrt(np.nanmean(residuals**2, axis=(0, 1)))
    before, after = scaled[:, :-1], scaled[:, 1:]
    both = np.isfinite(before) & np.isfinite(after)
    if both.sum() < 10:
        return float("nan")
    return float(np.mean(before[both] * after[both]) / np.mean(0.5 * (before[both] ** 2 + after[both] ** 2)))
