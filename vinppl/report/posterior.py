"""The section on the posterior: what was inferred, and what the data taught beyond the prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vinppl.diagnostics import scalar_draws, summary
from vinppl.export import get_group, group_names
from vinppl.growth import part_of
from vinppl.periods import period_lines
from vinppl.plotting import plot_posterior_vs_prior
from vinppl.report.blocks import Block, Finding, Listing, Section, Table, Text, found
from vinppl.report.figures import picture
from vinppl.report.material import Material
from vinppl.report.model import prior_ends
from vinppl.report.numbers import counted, interval, number, percent, rounded, with_unit, words_of

__all__ = ["posterior_section"]

MAX_ENTRIES = 40
"""Entries of a site at most that are looked at one by one."""

MAX_PANELS, MAX_LEARNED = 9, 6
INITIAL = ("initial_position", "initial_velocity", "position")

UNTAUGHT = 0.9
"""Width of the posterior as a share of the prior's from which on the data taught little."""

FAR = 0.005
"""Share of prior draws beyond which a posterior lies in the prior's tail."""


@dataclass(frozen=True)
class Entry:
    """One number that was inferred.

    Attributes:
        site: the site that it belongs to.
        name: with its place in the site, `noise_scale[q]`.
        unit: empty if unknown.
        median: of the posterior.
        low: its 5 % quantile.
        high: its 95 % quantile.
        prior_low: 5 % quantile of the prior, NaN if unknown.
        prior_high: its 95 % quantile.
        above: share of prior draws above the median, NaN if unknown.
    """

    site: str
    name: str
    unit: str
    median: float
    low: float
    high: float
    prior_low: float
    prior_high: float
    above: float

    @property
    def width(self) -> float:
        """Width of the 90 % interval as a share of the prior's; NaN if that is not known."""
        before = self.prior_high - self.prior_low
        return (self.high - self.low) / before if before > 0 else float("nan")


def posterior_section(material: Material) -> Section:
    """Return the section on the posterior."""
    entries = list(_entries(material))
    blocks: list[Block] = [_table(material, {entry.name: entry for entry in entries})]
    names = _panels(material)
    if names:
        blocks.append(
            picture(
                lambda: plot_posterior_vs_prior(material.run.posterior, names),
                "Posterior and prior densities side by side",
                "What the data taught: the posterior beside the prior, each scaled to its own peak.",
            )
        )
    periods = _periods(material)
    if periods:
        blocks += [Text("Periods, median and 90 % interval:"), Listing(tuple(periods))]
    return Section("posterior", "Posterior", tuple(blocks), tuple(_findings(material, entries, periods)))


def _entries(material: Material) -> Iterator[Entry]:
    """Yield the numbers of all sites that are not too large to be looked at one by one."""
    posterior, result = material.posterior, material.run.posterior
    prior = get_group(result, "prior") if "prior" in group_names(result) else None
    for site in map(str, posterior.data_vars):
        names, draws = scalar_draws(posterior[[site]], constants=True)
        if not 1 <= len(names) <= MAX_ENTRIES:
            continue
        ends = prior_ends(material, site)
        unknown = np.full(len(names), np.nan)
        low, high = (unknown, unknown) if ends is None else (np.ravel(end) for end in ends)
        before = (
            None if prior is None or site not in prior else scalar_draws(prior[[site]], constants=True)[1]
        )
        unit = str(posterior[site].attrs.get("units", ""))
        for k, name in enumerate(names):
            values = draws[..., k].ravel()
            quantiles = np.quantile(values, (0.5, 0.05, 0.95))
            above = np.nan if before is None else np.mean(before[..., k] > quantiles[0])
            yield Entry(site, name, unit, *map(float, (*quantiles, low[k], high[k], above)))


def _table(material: Material, entries: dict[str, Entry]) -> Table:
    """Return the summary of the posterior with the width of the prior beside it."""
    table = summary(material.run.posterior, max_rows=MAX_ENTRIES)
    numbers = ["mean", "sd", "5%", "95%"]
    extra = [name for name in ("ess_bulk", "r_hat") if name in table]
    heads = {"5%": "5 %", "95%": "95 %", "ess_bulk": "ess bulk", "r_hat": "R-hat"}
    columns = ["number", *numbers, "width / prior", *extra]
    rows = []
    for name, row in table.iterrows():
        if np.isnan(row["mean"]):  # says how many were left out
            rows.append((str(name), *[""] * (len(columns) - 1)))
            continue
        entry = entries.get(str(name))
        width = "–" if entry is None else percent(entry.width)
        cells = [rounded(row[key], 10 * row["sd"]) for key in numbers]
        shown = [f"{row[key]:.3f}" if key == "r_hat" else f"{row[key]}" for key in extra]
        rows.append((str(name), *cells, width, *shown))
    caption = (
        "Posterior mean, standard deviation, 5 % and 95 % quantile, and the distance of these as a share of "
        "that in the prior."
    )
    heading = tuple(heads.get(name, name) for name in columns)
    return Table(caption, heading, tuple(rows), frozenset(range(1, len(columns))))


def _panels(material: Material) -> list[str]:
    """Return the sites that posterior and prior are drawn of, those all trajectories share first."""
    result = material.run.posterior
    if "prior" not in group_names(result):
        return []
    posterior, prior = material.posterior, get_group(result, "prior")
    sites = [str(name) for name in posterior.data_vars if name in prior]
    chosen, panels = [], 0
    for site in sorted(sites, key=lambda name: name in INITIAL):
        size = int(np.prod(posterior[site].shape[2:]))
        if panels + size <= MAX_PANELS and posterior[site].dtype.kind == "f":
            chosen.append(site)
            panels += size
    return chosen


def _periods(material: Material) -> list[str]:
    """Return the periods of the clips of a film, as they were stored."""
    file = material.run.folder.path / "periods.csv"
    if not material.is_film or not file.exists():
        return []
    table = pd.read_csv(file, keep_default_na=True)
    table["time_unit"] = table["time_unit"].fillna("")
    return [line.strip() for line in period_lines(table)[1:]]


# Findings


def _findings(material: Material, entries: list[Entry], periods: list[str]) -> list[Finding]:
    shared = [entry for entry in entries if entry.site not in INITIAL and "network" not in entry.site]
    shared.sort(key=lambda entry: _rank(material, entry.site))
    findings = found("learned", [_sentence(material, entry) for entry in shared[:MAX_LEARNED]])
    if len(periods) == 1:
        findings.append(Finding("learned", f"Period, median and 90 % interval of {periods[0]}."))
    elif periods:
        findings += found(
            "learned", [f"Periods of {counted(len(periods), 'clip')}: {'; '.join(periods[:3])}."]
        )
    looked_at = [entry for entry in entries if "network" not in entry.site]
    untaught = [entry.name for entry in looked_at if entry.width > UNTAUGHT]
    if untaught:
        text = (
            f"The data say little about {words_of(untaught)}: the posterior is nearly as wide as the prior, "
            "and what is concluded from it is the prior's."
        )
        findings.append(Finding("limit", text))
    far = [entry.name for entry in looked_at if min(entry.above, 1 - entry.above) < FAR]
    if far:
        text = (
            f"The posterior of {words_of(far)} lies in the far tail of the prior. Check units and channels; "
            "if they are right, widen the prior by --set."
        )
        findings.append(Finding("warning", text))
    return findings


def _rank(material: Material, site: str) -> tuple[bool, bool]:
    """Return the order of sites: what trajectories share before what each has, physics before noise."""
    prior = material.prior(site)
    return prior is not None and bool(prior.plates), part_of(site) == "observation"


def _sentence(material: Material, entry: Entry) -> str:
    """Say what was learned about one number."""
    equations = material.equations
    symbol = (
        equations.symbol(entry.site).replace("_", "").replace("{", "").replace("}", "") if equations else ""
    )
    name = f"{entry.name} ({symbol})" if symbol and "[" not in entry.name else entry.name
    spread = interval(entry.low, entry.high)
    value = with_unit(rounded(entry.median, 10 * (entry.high - entry.low)), entry.unit)
    text = f"{name} is {value} (90 % interval {spread})"
    if np.isfinite(entry.width):
        before = f"{number(entry.prior_low, 2)} to {number(entry.prior_high, 2)}"
        text += f"; the prior's was {before}"
    return f"{text}."
