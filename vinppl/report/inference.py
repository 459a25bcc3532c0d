"""The section on the inference: did the chains or the optimiser converge?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vinppl.diagnostics import Convergence, convergence, scalar_draws
from vinppl.export import get_group, group_names
from vinppl.plotting import plot_losses
from vinppl.report.blocks import Block, Facts, Finding, Section, Table, Text
from vinppl.report.figures import picture, plot_chains
from vinppl.report.material import Material
from vinppl.report.numbers import counted, number, percent, rounded

__all__ = ["inference_section"]

MAX_ROWS, MAX_TRACES = 10, 4

LEAST_FALL = 0.5
"""Nats by which the loss must still fall over its last tenth for a warning."""

CLEAR = 3.0
"""Standard errors that the fall must be."""


def inference_section(material: Material) -> Section:
    """Return the section on the convergence."""
    section = _chains(material) if material.is_nuts else _optimisation(material)
    begun = next((e for e in reversed(material.events) if e.get("event") in ("started", "resumed")), None)
    finished = material.finished()
    if begun is not None and begun.get("time", 0) > finished.get("time", 0):
        kind = material.run.options["kind"]
        text = (
            "The run was begun again after this posterior was written, and did not finish. "
            f"Run inference/{kind}.py again with the same options."
        )
        return Section(
            section.name, section.title, section.blocks, (*section.findings, Finding("warning", text))
        )
    return section


# Chains


def _chains(material: Material) -> Section:
    result = material.run.posterior
    name, title = "convergence", "Convergence of the chains"
    if "sample_stats" not in group_names(result):
        text = "The result holds no statistics of the sampler, so that convergence cannot be judged."
        return Section(name, title, (Text(text, "bad"),), (Finding("warning", text),))
    found = convergence(result)
    blocks: list[Block] = [
        Text(found.verdict, "good" if found.converged else "bad"),
        Facts(tuple(_chain_facts(material, found))),
        _worst_table(found),
    ]
    figure = _traces(material, found)
    blocks += [figure] if figure is not None else []
    if found.converged:
        said = (
            f"The sampler converged: {counted(found.num_chains, 'chain')} agree (R-hat at most "
            f"{found.max_rhat:.3f}) and hold at least {found.min_ess_bulk:.0f} effective draws of every "
            "number."
        )
        return Section(name, title, tuple(blocks), (Finding("learned", said),))
    return Section(name, title, tuple(blocks), (Finding("warning", found.verdict),))


def _chain_facts(material: Material, found: Convergence) -> list[tuple[str, str]]:
    options = material.run.options.get("mcmc", {})
    seconds = material.finished().get("seconds")
    facts = [
        ("Sampler", f"NUTS ({material.run.posterior.attrs.get('engine', 'pyro')})"),
        (
            "Draws",
            f"{counted(found.num_chains, 'chain')} of {counted(found.num_draws, 'draw')}, "
            f"after {options.get('num_warmup', 'unknown')} of warm-up",
        ),
        ("Largest R-hat", f"{number(found.max_rhat, 4)} (1.01 at most is wanted)"),
        (
            "Smallest effective sample size",
            f"{found.min_ess_bulk:.0f} (bulk), {found.min_ess_tail:.0f} (tail)",
        ),
        ("Divergences", "not recorded" if found.divergences is None else f"{found.divergences}"),
        ("Smallest BFMI", f"{number(found.min_bfmi)} (0.3 at least is wanted)"),
        ("Draws at the maximum tree depth", percent(found.tree_depth_saturated)),
    ]
    return facts if seconds is None else [*facts, ("Time", f"{seconds:.0f} s")]


def _worst_table(found: Convergence) -> Table:
    columns = ("parameter", "R-hat", "ess bulk", "ess tail")
    rows = tuple(
        (str(name), f"{row['rhat']:.3f}", f"{row['ess_bulk']:.0f}", f"{row['ess_tail']:.0f}")
        for name, row in found.table.head(MAX_ROWS).iterrows()
    )
    total = len(found.table)
    few = f"The {MAX_ROWS} of {total:,} that mix worst." if total > MAX_ROWS else "The worst first."
    return Table(f"R-hat and effective sample sizes. {few}", columns, rows, frozenset({1, 2, 3}))


def _traces(material: Material, found: Convergence) -> Block | None:
    """Return the traces of the parameters that mix worst."""
    worst = list(found.worst_parameters[:MAX_TRACES])
    names, draws = scalar_draws(material.posterior)
    index = {name: k for k, name in enumerate(names)}
    worst = [name for name in worst if name in index and np.isfinite(draws[..., index[name]]).all()]
    if not worst:
        return None
    chosen = draws[..., [index[name] for name in worst]]
    diverging = get_group(material.run.posterior, "sample_stats").get("diverging")
    bad = None if diverging is None else diverging.transpose("chain", "draw").values.astype(bool)
    return picture(
        lambda: plot_chains(chosen, worst, bad),
        "Draws of every chain in their order",
        "Draws in their order, those that mix worst. Chains that agree look like one band without drift.",
    )


# Optimisation


def _optimisation(material: Material) -> Section:
    losses, finished = material.losses, material.finished()
    guide = str(
        {**material.run.options.get("svi", {}), **material.fit.get("options", {})}.get("guide", "auto")
    )
    family = GUIDE_WORDS.get(guide, guide)
    tells = "" if material.points else " Compare them with inference/mcmc.py on the same data."
    refined = material.run.posterior.attrs
    if refined.get("refined") == "yes":
        told = f"Draws of an approximation were put right by importance sampling: {refined['refinement']}."
        findings = [Finding("learned", told)]
    else:
        told = f"The posterior is an approximation, {family}. Its widths may be too small.{tells}"
        findings = [Finding("limit", told)]
        if "refinement" in refined:
            told = f"Importance sampling could not put it right: {refined['refinement']}."
            findings.append(Finding("warning", told))
    blocks: list[Block] = []
    verdict, settled = _judge(losses, bool(material.fit.get("stopped_early", False)))
    if verdict:
        blocks.append(Text(verdict, "good" if settled else "bad"))
        if not settled:
            findings.append(Finding("warning", verdict))
    blocks.append(Facts(tuple(_optimisation_facts(material, family, finished))))
    if len(losses):
        best = int(material.fit.get("best_step", 0)) or None
        blocks.append(
            picture(
                lambda: plot_losses(losses, best),
                "The negative evidence lower bound of every step",
                "The negative evidence lower bound (ELBO) of every step, in nats. A fit that has settled is "
                "flat but for the scatter of its draws.",
            )
        )
    else:
        blocks.append(Text("The folder holds no checkpoint any more, so that the trace is gone.", "note"))
    return Section("convergence", "Convergence of the fit", tuple(blocks), tuple(findings))


GUIDE_WORDS = {
    "full_rank": "one normal distribution with all correlations in whitened coordinates",
    "mean_field": "normal and independent in every number",
    "low_rank": "a normal distribution with few correlations",
    "map": "a single point without any width",
    "amortised": "normal given what an encoder reads off the data",
    "amortised_mean_field": "normal and independent, given what an encoder reads off the data",
}


def _optimisation_facts(material: Material, family: str, finished: dict[str, Any]) -> list[tuple[str, str]]:
    fit = material.fit
    draws = material.posterior.sizes["chain"] * material.posterior.sizes["draw"]
    facts = [("Approximation", family), ("Draws from it", f"{draws:,}")]
    if "step" in fit:
        early = ", stopped early" if fit.get("stopped_early") else ""
        facts.append(
            ("Steps", f"{int(fit['step']):,}{early}; the state after step {int(fit['best_step']):,} is kept")
        )
    best = finished.get("best_loss", fit.get("best_loss"))
    if best is not None:
        facts.append(("Negative ELBO there", f"{rounded(float(best), 10.0)} nats"))
    seconds = finished.get("seconds", fit.get("seconds"))
    return facts if seconds is None else [*facts, ("Time", f"{float(seconds):.0f} s")]


def _judge(losses: NDArray[np.float64], stopped_early: bool) -> tuple[str, bool]:
    """Say whether the loss has settled: whether its last tenth lies clearly below the tenth before."""
    count = len(losses) // 10
    if count < 5:
        return ("", True) if not len(losses) else ("Too few steps to say whether the fit has settled.", False)
    last, before = losses[-count:], losses[-2 * count : -count]
    fall = float(before.mean() - last.mean())
    error = float(np.sqrt((last.var() + before.var()) / count))
    if fall > LEAST_FALL and fall > CLEAR * error and not stopped_early:
        told = (
            f"The loss still fell by {number(fall, 2)} ± {number(error, 1)} nats over its last tenth of steps"
        )
        return f"Not settled: {told}. Run longer (a larger --num-steps).", False
    if stopped_early:
        return "Settled: the loss no longer improved, and the fit stopped early.", True
    return "Settled: the loss no longer falls by more than half a nat over a tenth of the steps.", True
