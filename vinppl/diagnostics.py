"""What a posterior says, and whether its chains converged. Needs neither torch nor Pyro."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require
from vinppl.export import ARVIZ_MAJOR, az, require_group

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = [
    "MAX_SHAPE",
    "Convergence",
    "convergence",
    "scalar_draws",
    "smoothed_weights",
    "summary",
    "tail_shape",
]

MAX_RHAT = 1.01
MIN_ESS_PER_CHAIN = 100
MIN_ESS = 400
MIN_BFMI = 0.3
MAX_SATURATED = 0.01

Array = NDArray[Any]


# What was found


def summary(result: InferenceData | xr.DataTree, *, max_rows: int = 40) -> pd.DataFrame:
    """Tabulate the posterior: mean, sd, 5 % and 95 % quantile of every scalar.

    Numbers are rounded to a hundredth of their sd or finer. With more scalars than `max_rows` the
    smallest variables are kept, so that a network's weights go first.

    Args:
        result: with a group `posterior` (chain, draw, ...).
        max_rows: most scalars to show.

    Returns:
        A row for each scalar, named like `initial_position[0, q0]`. With several chains also ess_bulk,
        ess_tail and r_hat. If some were left out, a last row without numbers says how many, as does
        `attrs["left_out"]`.

    Raises:
        KeyError: there is no posterior.
    """
    require(max_rows >= 1, "max_rows must be at least 1", max_rows)
    posterior = require_group(result, "posterior", "a summary is of posterior draws")
    kept = _smallest(posterior, max_rows)
    names, draws = scalar_draws(posterior[kept], constants=True)
    names, draws = names[:max_rows], draws[:, :, :max_rows]
    low, high = np.quantile(draws, (0.05, 0.95), axis=(0, 1))
    with np.errstate(invalid="ignore"):
        columns = {"mean": draws.mean((0, 1)), "sd": draws.std((0, 1)), "5%": low, "95%": high}
    table = pd.DataFrame(columns, index=pd.Index(names, dtype=object)).astype(np.float64)
    table = pd.DataFrame([_rounded(row) for _, row in table.iterrows()], columns=table.columns)
    if draws.shape[0] > 1:
        found = _table(names, draws).loc[names]
        for kind in ("ess_bulk", "ess_tail"):
            table[kind] = found[kind].round().astype("Int64")
        table["r_hat"] = found["rhat"].round(3)
    total = sum(_size(posterior, name) for name in _sampled(posterior))
    table.attrs["left_out"] = total - len(names)
    if total > len(names):
        table = table.reindex([*table.index, f"... {total - len(names)} more"])
    return table


def _sampled(posterior: xr.Dataset) -> list[str]:
    """Return the variables that hold a number per draw."""
    return [
        str(name)
        for name, variable in posterior.data_vars.items()
        if {"chain", "draw"} <= set(variable.dims) and variable.dtype.kind in "biuf" and variable.size
    ]


def _size(posterior: xr.Dataset, name: str) -> int:
    """Return the number of scalars of one draw of a variable."""
    return posterior[name].size // (posterior.sizes["chain"] * posterior.sizes["draw"])


def _smallest(posterior: xr.Dataset, max_rows: int) -> list[str]:
    """Return the variables, smallest first, that fit whole; the smallest one if none does."""
    names = _sampled(posterior)
    sizes = {name: _size(posterior, name) for name in names}
    ordered = sorted(names, key=lambda name: sizes[name])
    totals = np.cumsum([sizes[name] for name in ordered])
    fitting = [name for name, total in zip(ordered, totals, strict=True) if total <= max_rows]
    kept = fitting or ordered[:1]
    return [name for name in names if name in kept]


def _rounded(row: pd.Series) -> pd.Series:
    scale = row["sd"] if np.isfinite(row["sd"]) and row["sd"] > 0 else abs(row["mean"])
    if not np.isfinite(scale) or scale == 0:
        return row
    return row.round(max(2 - math.floor(math.log10(scale)), 0))


# Convergence of chains


@dataclass(frozen=True, eq=False)
class Convergence:
    """What the chains say about themselves.

    Attributes:
        max_rhat: largest rank-normalised split R-hat; NaN with one chain.
        min_ess_bulk: smallest effective sample size of a location, over all chains.
        min_ess_tail: smallest effective sample size of the 5 % and 95 % quantiles.
        divergences: divergent draws; `None` if the sampler does not record them.
        num_chains: chains.
        num_draws: draws of each chain.
        tree_depth_saturated: share of draws at the maximum tree depth, 0 to 1; NaN if unknown.
        min_bfmi: smallest Bayesian fraction of missing information of a chain; NaN if unknown.
        worst_parameters: up to five names, the worst first.
        converged: whether every criterion is met.
        verdict: what is fine, or what is not and what to do.
        table: mean, sd, rhat, ess_bulk and ess_tail of each scalar, the worst first.
    """

    max_rhat: float
    min_ess_bulk: float
    min_ess_tail: float
    divergences: int | None
    num_chains: int
    num_draws: int
    tree_depth_saturated: float
    min_bfmi: float
    worst_parameters: tuple[str, ...]
    converged: bool
    verdict: str
    table: pd.DataFrame


def convergence(result: InferenceData | xr.DataTree, *, max_tree_depth: int | None = None) -> Convergence:
    """Judge the chains of an MCMC run.

    Converged means: R-hat at most 1.01; bulk and tail effective sample sizes of at least 400 and 100
    per chain; no divergences; BFMI of at least 0.3; at most 1 % of draws at the maximum tree depth.
    Entries that never vary (fixed values, the zeros of a triangular factor) are left out.

    Args:
        result: with the groups `posterior` (chain, draw, ...) and `sample_stats`. Statistics that the
            sampler did not record are not judged.
        max_tree_depth: the sampler's limit; by default the attribute `max_tree_depth` of the result,
            or else 10, the usual one.

    Raises:
        KeyError: a group is missing.

    References:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-normalization, folding, and localization:
        an improved R-hat. Bayesian Analysis 16 (2021). Betancourt: arXiv 1604.00695 (2016), for BFMI.
    """
    posterior = require_group(result, "posterior", "convergence is judged from posterior draws")
    stats = require_group(
        result,
        "sample_stats",
        "convergence is judged for MCMC",
        "Draws from a variational guide are independent; look at the losses of the fit instead.",
    )
    names, draws = scalar_draws(posterior)  # (chain, draw, parameter)
    table = _table(names, draws)
    if max_tree_depth is None:
        max_tree_depth = int(stats.attrs.get("max_tree_depth", result.attrs.get("max_tree_depth", 10)))
    num_chains, num_draws = draws.shape[:2]
    diverging = stats.get("diverging")
    found: dict[str, Any] = {
        "max_rhat": float(table["rhat"].max()),
        "min_ess_bulk": float(table["ess_bulk"].min()),
        "min_ess_tail": float(table["ess_tail"].min()),
        "divergences": None if diverging is None else int(np.sum(diverging.values)),
        "num_chains": num_chains,
        "num_draws": num_draws,
        "tree_depth_saturated": _saturation(stats, max_tree_depth),
        "min_bfmi": _bfmi(stats),
    }
    problems = _problems(table, found)
    return Convergence(
        **found,
        worst_parameters=tuple(str(name) for name in table.index[:5]),
        converged=not problems,
        verdict=_verdict(problems, found),
        table=table,
    )


def scalar_draws(posterior: xr.Dataset, *, constants: bool = False) -> tuple[list[str], Array]:
    """Return the scalars of all variables, by name and as `(chain, draw, parameter)`.

    Args:
        posterior: variables with the dimensions `chain` and `draw`; others are left out.
        constants: whether to keep those that never vary.

    Returns:
        Names like `initial_position[0, q0]`, and the draws.
    """
    names: list[str] = []
    columns: list[Array] = []
    for name in _sampled(posterior):
        variable = posterior[name].transpose("chain", "draw", ...)
        axes = [variable[dim].values for dim in variable.dims[2:]]
        flat = variable.values.reshape(*variable.shape[:2], -1)
        precision = float(np.finfo(flat.dtype).eps) if flat.dtype.kind == "f" else 0.0
        flat = flat.astype(np.float64)
        largest = np.abs(flat).max((0, 1))
        with np.errstate(invalid="ignore"):
            varies = ~(np.ptp(flat, axis=(0, 1)) <= 10 * precision * largest)  # NaN and infinity stay
        varies |= constants
        for k in np.flatnonzero(varies):
            index = np.unravel_index(k, variable.shape[2:])
            labels = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
            names.append(f"{name}[{labels}]" if axes else name)
        columns.append(flat[:, :, varies])
    shape = (posterior.sizes["chain"], posterior.sizes["draw"], 0)
    return names, np.concatenate([np.zeros(shape), *columns], axis=-1)


def _table(names: list[str], draws: Array) -> pd.DataFrame:
    num_chains, num_draws, num_parameters = draws.shape
    columns = {key: np.full(num_parameters, np.nan) for key in ("rhat", "ess_bulk", "ess_tail")}
    usable = np.isfinite(draws).all((0, 1))
    if num_draws >= 4 and usable.any():
        dataset = xr.Dataset({"x": (("chain", "draw", "parameter"), draws[:, :, usable])})
        with np.errstate(all="ignore"):
            if num_chains >= 2:
                rhat = az.rhat(dataset)["x"].values
                columns["rhat"][usable] = np.where(np.isnan(rhat), np.inf, rhat)  # chains that never move
            columns["ess_bulk"][usable] = az.ess(dataset, method="bulk")["x"].values
            columns["ess_tail"][usable] = az.ess(dataset, method="tail")["x"].values
    with np.errstate(all="ignore"):
        moments = {"mean": draws.mean((0, 1)), "sd": draws.std((0, 1))}
        wanted = _wanted_ess(num_chains)
        badness = np.fmax(
            (columns["rhat"] - 1) / (MAX_RHAT - 1),
            np.fmax(wanted / columns["ess_bulk"], wanted / columns["ess_tail"]),
        )
    order = np.argsort(-np.where(usable, badness, np.inf), kind="stable")
    return pd.DataFrame(moments | columns, index=pd.Index(names, dtype=object, name="parameter")).iloc[order]


def _wanted_ess(num_chains: int) -> int:
    return max(MIN_ESS, MIN_ESS_PER_CHAIN * num_chains)


def _saturation(stats: xr.Dataset, max_tree_depth: int) -> float:
    for name in ("reached_max_treedepth", "maxdepth_reached"):  # as PyMC and nutpie record it
        if name in stats:
            return float(np.mean(stats[name].values))
    return float(np.mean(stats["tree_depth"].values >= max_tree_depth)) if "tree_depth" in stats else math.nan


def _bfmi(stats: xr.Dataset) -> float:
    """Return the smallest mean squared energy step over the variance of the energy."""
    if "energy" not in stats or stats.sizes["draw"] < 4:
        return math.nan
    energy = stats["energy"].transpose("chain", "draw").values
    with np.errstate(all="ignore"):
        values = (np.diff(energy, axis=-1) ** 2).mean(-1) / energy.var(-1)
    return float(values[np.isfinite(values)].min()) if np.isfinite(values).any() else math.nan


def _problems(table: pd.DataFrame, found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what is wrong, what to do), the gravest first."""
    chains, draws = found["num_chains"], found["num_draws"]
    if draws < 4:
        return [(f"{draws} draws per chain are too few to judge", "draw at least a few hundred")]
    if table.empty:
        return [("no parameter ever moves", "check the starting points, or lower the step size")]
    problems: list[tuple[str, str]] = []
    broken = table.index[~np.isfinite(table["sd"])]
    if len(broken):
        problems.append((f"{broken[0]} has draws that are not finite", "check its prior and the likelihood"))
    if chains < 2:
        problems.append(("R-hat needs at least two chains and there is one", "run two or more, better four"))
    if found["max_rhat"] > MAX_RHAT:
        rhat = found["max_rhat"]
        shown = f"{rhat:.2f}" if rhat > 1.05 else f"{rhat:.3f}"
        clause = f"R-hat of {table['rhat'].idxmax()} is {shown}: the chains disagree"
        remedy = "run longer"
        if rhat > 1.1:
            remedy += ", or start nearer to the mode, for chains this far apart often sit in different modes"
        problems.append((clause, remedy))
    problems += _few_samples(table, chains)
    if found["divergences"]:
        total = chains * draws
        clause = f"{found['divergences']} of {total} draws diverged, so part of the posterior may be missed"
        problems.append((clause, "raise target_accept (to 0.95, say) or reparametrise"))
    if found["min_bfmi"] < MIN_BFMI:
        clause = f"BFMI is {found['min_bfmi']:.2f} ({MIN_BFMI:g} wanted): the tails are explored badly"
        problems.append((clause, "reparametrise, or tighten vague priors"))
    if found["tree_depth_saturated"] > MAX_SATURATED:
        share = 100 * found["tree_depth_saturated"]
        clause = f"{share:.0f} % of draws hit the maximum tree depth, so steps are cut short"
        problems.append((clause, "raise max_tree_depth, or let the warm-up run longer"))
    return problems


def _few_samples(table: pd.DataFrame, chains: int) -> list[tuple[str, str]]:
    wanted = _wanted_ess(chains)
    low = {
        kind: float(table[f"ess_{kind}"].min())
        for kind in ("bulk", "tail")
        if table[f"ess_{kind}"].min() < wanted
    }
    if not low:
        return []
    kind = min(low, key=lambda key: low[key])
    kinds = f"{kind} effective sample size"
    clause = f"the {kinds} of {table[f'ess_{kind}'].idxmin()} is {low[kind]:.0f} ({wanted} wanted)"
    factor = wanted / max(low[kind], 1.0)
    text = f"{factor:.1f}" if factor < 3 else f"{factor:.0f}"
    return [(clause, f"draw about {text} times as many, or reparametrise")]


def _verdict(problems: list[tuple[str, str]], found: dict[str, Any]) -> str:
    if problems:
        clauses = "; ".join(clause for clause, _ in problems)
        remedies = "; ".join(dict.fromkeys(remedy for _, remedy in problems))
        return f"Not converged: {clauses}. To do: {remedies}."
    chains, draws = found["num_chains"], found["num_draws"]
    rest = "" if found["divergences"] is None else ", and no draw diverged"
    return (
        f"Converged: {chains} chains of {draws} draws agree (R-hat at most {found['max_rhat']:.3f}), the "
        f"effective sample sizes are at least {found['min_ess_bulk']:.0f} (bulk) and "
        f"{found['min_ess_tail']:.0f} (tail){rest}."
    )


# Importance weights

MAX_SHAPE = 0.7
"""Shape k of the tail of importance weights above which they are not to be trusted, whatever their number."""

MIN_WEIGHTS = 25
"""Finite weights below which their tail is too short to be fitted."""


def smoothed_weights(log_ratios: ArrayLike, *, relative_efficiency: float = 1.0) -> tuple[Array, Array]:
    """Smooth importance ratios by a Pareto distribution fitted to their tail (PSIS).

    Args:
        log_ratios: logarithms of importance ratios, up to a constant, shape `(*batch, num_draws)`; those that
            are NaN or minus infinity count for nothing.
        relative_efficiency: effective over actual number of draws.

    Returns:
        Log weights of the same shape, whose exponentials sum to one, and the shape k of the fitted tail,
        `(*batch,)`. Above 0.7 (less for few draws: 1 - 1 / log10 num_draws) weights cannot be trusted; it is
        infinite where fewer than 25 ratios are finite.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto smoothed importance sampling. JMLR 25 (2024).
    """
    ratios = np.array(log_ratios, dtype=np.float64)
    require(
        ratios.ndim >= 1 and ratios.shape[-1] >= 1, "log_ratios must have shape (*batch, num_draws)", ratios
    )
    finite = np.isfinite(ratios)
    require(bool(finite.any(-1).all()), "some ratios must be finite", "none")
    lowest = np.where(finite, ratios, np.inf).min(-1, keepdims=True)
    usable = np.where(finite, ratios, lowest - 1000.0)  # weighs nothing beside the least of the others
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if ARVIZ_MAJOR < 1:
            smoothed, shape = az.psislw(usable, reff=relative_efficiency)
        else:
            from arviz_stats.base import array_stats

            # Which takes log-likelihoods, whose inverses are the ratios.
            smoothed, shape = array_stats.psislw(-usable, r_eff=relative_efficiency)
    smoothed = np.where(finite, np.asarray(smoothed), -np.inf)
    top = smoothed.max(-1, keepdims=True)
    smoothed = smoothed - top - np.log(np.exp(smoothed - top).sum(-1, keepdims=True))
    few = finite.sum(-1) < MIN_WEIGHTS
    return smoothed, np.where(few | np.isnan(shape), np.inf, np.asarray(shape))


def tail_shape(log_weights: ArrayLike) -> float:
    """Return the shape k of the tail of importance weights, as fitted by PSIS; see `smoothed_weights`.

    Args:
        log_weights: up to a constant, `(num_draws,)`; those that are not finite count for nothing.

    Returns:
        k; infinite if fewer than 25 weights are finite.
    """
    weights = np.asarray(log_weights, dtype=np.float64)
    return float(smoothed_weights(weights)[1]) if np.isfinite(weights).any() else math.inf
