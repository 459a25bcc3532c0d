"""Uncertainty growth in words and as a table, for one forecast or several beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from vinppl._checks import require
from vinppl.export import require_group
from vinppl.growth.dataset import GROUP

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["WORDS", "compare_growth", "growth_of", "growth_verdict", "mean_growth"]

Array = NDArray[np.float64]

WORDS = {
    "initial_state": "the initial state",
    "mass": "the mass",
    "potential": "the potential",
    "dynamics": "the law of motion",
    "forces": "the forces",
    "discrepancy": "model discrepancy",
    "observation": "measurement noise",
    "other": "other sites",
}
"""Parts of the uncertainty in words."""

CLEAR = 0.9
"""Weight of a law from which on it is said without reserve."""


def growth_of(source: xr.Dataset | InferenceData | xr.DataTree) -> xr.Dataset:
    """Return the data set of uncertainty growth itself, or the group of a forecast that holds it.

    Raises:
        KeyError: if a forecast has no such group.
        ValueError: if a data set is another one.
    """
    if not isinstance(source, xr.Dataset):
        fix = "Compute it by vinppl.growth.uncertainty_growth and add it by vinppl.export.add_group."
        return require_group(source, GROUP, "a forecast with its uncertainty growth", fix)
    held = ", ".join(str(name) for name in list(source.data_vars)[:5]) or "nothing"
    require("obs_parts" in source, "the data set must be of uncertainty growth", held)
    return source


def mean_growth(growth: xr.Dataset, trajectory: int | str | None = None) -> xr.Dataset:
    """Return one trajectory's growth, or the mean of variances and parts over those that share horizons.

    Errors are averaged too, not reduced: trajectories share the draws of their common sites.

    Args:
        growth: from `uncertainty_growth`.
        trajectory: index or name; `None` for the mean.

    Raises:
        ValueError: if trajectories have other horizons and none is chosen, or there is no such one.
    """
    names = [str(name) for name in growth["trajectory"].values]
    if trajectory is None:
        first = growth["horizons"].values
        same = bool(np.allclose(first, first[:1], rtol=1e-9, atol=1e-12, equal_nan=True))
        require(same, "trajectories must share horizons to be averaged", "different ones", "Choose one.")
        chosen = growth.mean("trajectory", keep_attrs=True)
        for name in ("states_sd", "energy_sd", "obs_sd"):
            if name in growth:
                chosen[name] = chosen[name.replace("_sd", "_variance")] ** 0.5
                chosen[name].attrs = growth[name].attrs
        return chosen
    index = names.index(trajectory) if trajectory in names else trajectory
    valid = isinstance(index, int) and 0 <= index < len(names)
    require(valid, f"trajectory must be an index or one of {', '.join(names[:20])}", repr(trajectory))
    chosen = growth.isel(trajectory=index)
    return chosen.isel(horizon=np.isfinite(chosen["horizons"].values))


def growth_verdict(source: xr.Dataset | InferenceData | xr.DataTree) -> str:
    """Say in plain words how uncertain a forecast is, what makes it so, and how far it can be trusted.

    Args:
        source: from `uncertainty_growth`, or a forecast file that holds it.

    Returns:
        A few lines, those of variances on the mean over trajectories where these share horizons and else
        on the first one.
    """
    growth = growth_of(source)
    horizons = growth["horizons"].values
    same = np.allclose(horizons, horizons[:1], rtol=1e-9, atol=1e-12, equal_nan=True)
    mean = mean_growth(growth, None if same else 0)
    unit = f" {growth.attrs['time_unit']}".rstrip()
    lines = [_channel_line(mean, i, unit) for i in range(mean.sizes["channel"])]
    lines += [_law_line(growth, unit)] if "law_rate" in growth else []
    lines += [_valid_line(growth, unit)] if "valid_time" in growth else []
    lines += [_energy_line(growth)] if "energy_error" in growth else []
    missing = json.loads(growth.attrs["point_estimates"])
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        lines.append(f"Point estimates, whose uncertainty is missing from all of this: {shown}.")
    return "\n".join(lines)


def compare_growth(
    growths: Mapping[str, xr.Dataset | InferenceData | xr.DataTree],
    horizons: Sequence[float] | None = None,
    *,
    trajectory: int | str | None = None,
) -> pd.DataFrame:
    """Tabulate the growth of several forecasts of the same measurements.

    Args:
        growths: by name, from `uncertainty_growth` or forecast files that hold it.
        horizons: where to look, in units of time; by default a quarter, half and the whole of what all reach.
        trajectory: index or name; `None` for the mean over trajectories.

    Returns:
        A row for each forecast, channel and horizon with columns name, channel, horizon, sd, the share of
        every part, and law, rate, rate_error and valid_time (median), which are of the whole forecast.
    """
    require(len(growths) >= 1, "there must be at least one forecast", "none")
    datasets = {name: growth_of(source) for name, source in growths.items()}
    means = {name: mean_growth(growth, trajectory) for name, growth in datasets.items()}
    if horizons is None:
        last = min(float(mean["horizons"].values[-1]) for mean in means.values())
        horizons = [last / 4, last / 2, last]
    rows = []
    for name, mean in means.items():
        law = datasets[name].attrs["law"]
        known = law in ("constant", "linear", "exponential")
        whole = {
            "law": law,
            "rate": float(datasets[name]["law_rate"].sel(law=law)) if known else np.nan,
            "rate_error": float(datasets[name]["law_rate_error"].sel(law=law)) if known else np.nan,
            "valid_time": float(np.median(mean["valid_time"])) if "valid_time" in mean else np.nan,
        }
        for channel, horizon in ((c, h) for c in mean["channel"].values for h in horizons):
            at = mean.sel(channel=channel).isel(
                horizon=int(np.abs(mean["horizons"].values - horizon).argmin())
            )
            shares = at["obs_parts"] / at["obs_parts"].sum()
            row = {"name": name, "channel": str(channel), "horizon": float(at["horizons"])}
            row |= {"sd": float(at["obs_sd"])} | {
                str(p): float(shares.sel(part=p)) for p in shares["part"].values
            }
            rows.append(row | whole)
    return pd.DataFrame(rows)


def _channel_line(mean: xr.Dataset, channel: int, unit: str) -> str:
    """Say how the standard deviation of a channel grows, and what makes it at a quarter, half and the end."""
    at = mean.isel(channel=channel)
    t, sd = at["horizons"].values, at["obs_sd"].values
    own = f" {json.loads(mean.attrs['channel_unit'])[channel]}".rstrip()
    words = [WORDS.get(str(part), str(part)) for part in mean["part"].values]
    shares = smooth_shares(np.clip(at["obs_parts"].transpose("horizon", "part").values, 0.0, None))
    told = []
    for horizon in (0.25 * t[-1], 0.5 * t[-1], t[-1]):
        row = shares[np.abs(t - horizon).argmin()]
        order = [i for i in np.argsort(-row) if row[i] >= 0.15 or row[i] == row.max()]
        parts = ", ".join(f"{words[i]} {100 * row[i]:.0f} %" for i in order[:3])
        told.append(f"at {horizon:.3g}{unit} {parts}")
    name = str(mean["channel"].values[channel])
    grows = f"sd {sd[0]:.2g}{own} at first, {sd[-1]:.2g}{own} after {t[-1]:.3g}{unit}"
    return f"{name}: {grows}. Its variance: {'; '.join(told)}."


def smooth_shares(parts: Array) -> Array:
    """Return shares of parts `(horizon, part)` over a moving tenth of the horizons."""
    width = max(1, len(parts) // 10)
    padded = np.pad(parts, [(width // 2, width - 1 - width // 2), (0, 0)], mode="edge")
    kernel = np.ones(width) / width
    means = np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=-1)
    return means / np.maximum(means.sum(-1, keepdims=True), 1e-300)


def _law_line(growth: xr.Dataset, unit: str) -> str:
    law, per = growth.attrs["law"], f" per{unit or ' unit of time'}"
    if law == "none":
        return "No law of growth: draws agree, or are as far apart as unrelated states from the start."
    rate, error = (float(growth[key].sel(law=law)) for key in ("law_rate", "law_rate_error"))
    if law == "constant":
        said = "Distances between draws stay as they are"
    elif law == "linear":
        share = f"{100 * rate:.2g} ± {100 * error:.1g} % of the spread of the motion{per}"
        said = f"Distances between draws grow linearly, as by phases that drift, by {share}"
    elif rate > 0:
        doubled = f"they double every {np.log(2) / rate:.2g}{unit}"
        said = "Distances between draws grow exponentially, as in chaos, "
        said += f"at {rate:.2g} ± {error:.1g}{per}: {doubled}"
    else:
        said = f"Distances between draws shrink exponentially, at {-rate:.2g} ± {error:.1g}{per}"
    line = f"{said} (fitted up to {growth.attrs['law_window']:.3g}{unit})."
    support = {str(name): float(growth["law_support"].sel(law=name)) for name in growth["law"].values}
    if support[law] < CLEAR:
        line += f" Not certain: {', '.join(f'{100 * w:.0f} % {name}' for name, w in support.items())}."
    return line


def _valid_line(growth: xr.Dataset, unit: str) -> str:
    times = growth["valid_time"].values
    low, middle, high = np.nanquantile(times, [0.05, 0.5, 0.95])
    last = np.nanmax(growth["horizons"].values, axis=-1)
    whole = float(np.mean(times >= last - 1e-9 * np.abs(last)))
    who = "Draws follow the truth" if growth.attrs["valid_time_reference"] == "truth" else "Two draws agree"
    line = f"{who} for {middle:.3g}{unit} (median; 5 % to 95 %: {low:.3g} to {high:.3g}{unit})"
    return line + (f"; {100 * whole:.0f} % of them to the end of the forecast." if whole > 0.005 else ".")


def _energy_line(growth: xr.Dataset) -> str:
    warning = str(growth.attrs["energy_warning"])
    if warning:
        return f"Energy: {warning}."
    worst = float(growth["energy_error"].max())
    return f"Energy: errors of all draws stay bounded, at most {100 * worst:.2g} % of the kinetic energy."
