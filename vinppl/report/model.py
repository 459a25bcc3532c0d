"""The section on the model: its equations, its priors, and what it learns as point estimates."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vinppl.export import get_group, group_names
from vinppl.report.blocks import Block, Details, Equation, Facts, Finding, Program, Section, Table, Text
from vinppl.report.markup import equation_markup
from vinppl.report.material import Material
from vinppl.report.numbers import counted, number, words_of
from vinppl.report.priors import ENDS, Prior

__all__ = ["model_section", "prior_ends"]

Array = NDArray[Any]

MAX_LINES = 300
"""Lines of a file at most that is shown whole."""


def model_section(material: Material) -> Section:
    """Return the section on the model."""
    run = material.run
    name = str(run.options["model"]).rpartition(":")[2].rpartition(".")[2]
    doc = inspect.getdoc(run.model) or ""
    blocks: list[Block] = [Facts((("Model", name), *_integrator(run.model)))]
    equations = material.equations
    if equations is not None:
        blocks.append(Equation(tuple(equation_markup(line) for line in equations.lines)))
        if not material.is_film:
            blocks.append(Text("The second argument of a normal is its standard deviation.", "note"))
    else:
        said = doc.split("\n\n")[0] if doc else "The model comes without a description."
        blocks.append(Text(f"{said} It gives no equations; its program is below."))
    blocks.append(_prior_table(material))
    points = material.points
    findings = []
    if points:
        shown = f"{counted(sum(points.values()), 'number')} in {words_of(list(points), 3)}"
        how = "Held at their starting values" if material.is_nuts else "Learned as point estimates"
        blocks.append(Text(f"{how}, without a prior or uncertainty: {shown}."))
        findings.append(_point_estimates(material, len(points)))
    options = _options(run.model)
    if options:
        blocks.append(Details("All options of the model", (Facts(tuple(options)),)))
    program = _program(run.model)
    if program:
        blocks.append(Details("The program", (Program(program),)))
    return Section("model", "Model and priors", tuple(blocks), tuple(findings))


def prior_ends(material: Material, site: str) -> tuple[Array, Array] | None:
    """Return the 5 % and 95 % quantiles of a site's prior, each of the shape of a draw.

    They come from the distribution where it has closed forms, else from the prior draws of the result;
    `None` without those.
    """
    prior = material.prior(site)
    if prior is not None and prior.low is not None and prior.high is not None:
        return prior.low, prior.high
    if "prior" not in group_names(material.run.posterior):
        return None
    draws = get_group(material.run.posterior, "prior")
    if site not in draws:
        return None
    values = draws[site].transpose("chain", "draw", ...).values
    low, high = np.quantile(values, ENDS, axis=(0, 1))
    return low, high


def _point_estimates(material: Material, count: int) -> Finding:
    what = "the networks" if count > 1 else "a part of the model"
    fix = ""
    if str(material.run.options["model"]).endswith("NoisyStates"):
        fix = " Fit by inference/mcmc.py with --set potential=random_features to have it."
    if material.is_nuts:
        held = f"NUTS held {what} at starting values and learned nothing about them: give them priors.{fix}"
        return Finding("warning", held)
    text = f"The uncertainty of {what}, learned as point estimates, is missing from all bands.{fix}"
    return Finding("limit", text)


def _integrator(model: Any) -> tuple[tuple[str, str], ...]:
    """Return the integrator of a VIN."""
    integrator = getattr(getattr(model, "vin", None), "integrator", None)
    if integrator is None:
        return ()
    kind = "symplectic" if integrator.is_symplectic else "not symplectic"
    return (("Integrator", f"{type(integrator).__name__}, order {integrator.order}, {kind}"),)


def _prior_table(material: Material) -> Table:
    equations = material.equations
    symbols = [
        equation_markup(equations.symbol(p.site)) if equations else Markup("") for p in material.priors
    ]
    columns = ["site", "symbol", "entries", "prior", "90 % of the prior"]
    rows = [
        [prior.site, symbol, _entries(prior), _text(prior), _middle(material, prior)]
        for prior, symbol in zip(material.priors, symbols, strict=True)
    ]
    if not any(symbols):
        columns.pop(1)
        rows = [[row[0], *row[2:]] for row in rows]
    caption = "Priors, as the model states them for these data."
    return Table(caption, tuple(columns), tuple(tuple(row) for row in rows))


def _entries(prior: Prior) -> str:
    """Return the shape of a site."""
    return " × ".join(f"{n:,}" for n in prior.shape) or "1"


def _text(prior: Prior) -> str:
    if not prior.depends:
        return prior.text
    return f"{prior.text.partition('(')[0]}, with parameters that depend on other sites"


def _middle(material: Material, prior: Prior) -> str:
    ends = prior_ends(material, prior.site)
    if ends is None:
        return "–"
    low, high = (np.asarray(end, dtype=np.float64).ravel() for end in ends)
    exact = prior.low is not None
    if exact and len(low) > 1 and (np.ptp(low) > 0 or np.ptp(high) > 0):
        different = list(dict.fromkeys(zip(low.tolist(), high.tolist(), strict=True)))
        return "; ".join(_between(*pair) for pair in different[:3]) + (" .." if len(different) > 3 else "")
    shown = _between(float(low.min()), float(high.max()))
    return shown if exact else f"about {shown}"


def _between(low: float, high: float) -> str:
    """Return an interval, its ends by their own sizes where they lie orders of magnitude apart."""
    digits = 2 if low > 0 and high > 10 * low else 3
    return f"{number(low, digits)} to {number(high, digits)}"


def _options(model: Any) -> list[tuple[str, str]]:
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return []
    values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return [(name, "none" if value is None else f"{value}") for name, value in values]


def _program(model: Any) -> str:
    """Return the source of a model that is not one of the library's, with its whole file if that is short."""
    target = model if inspect.isfunction(model) else type(model)
    if str(getattr(target, "__module__", "")).startswith("vinppl."):
        return ""
    try:
        whole = inspect.getsource(sys.modules[target.__module__])
        return whole if whole.count("\n") <= MAX_LINES else inspect.getsource(target)
    except (OSError, TypeError, KeyError):
        return ""
