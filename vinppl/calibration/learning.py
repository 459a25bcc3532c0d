"""Posterior beside prior: what the data taught, and where they contradict the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from vinppl._checks import require
from vinppl.export import require_group

if TYPE_CHECKING:
    from arviz import InferenceData

__all__ = ["learned_from_data"]

Array = NDArray[Any]

LITTLE = 0.1
"""Contraction below which next to nothing was learnt."""

FAR = 2.5
"""Prior standard deviations beyond which a posterior mean is a surprise."""


def learned_from_data(
    result: InferenceData | xr.DataTree,
    *,
    truth: Mapping[str, ArrayLike] | None = None,
    max_entries: int = 40,
) -> pd.DataFrame:
    """Compare posterior and prior of every latent scalar.

    Args:
        result: with the groups `posterior` and `prior`, as `from_mcmc` and `from_svi` return it.
        truth: true values by site, where they are known.
        max_entries: sites with more entries than this (the weights of a network) are left out.

    Returns:
        A row for each scalar, by name: means and standard deviations of prior and posterior, on the scale of
        the logarithm (`scale` says so) where the prior is positive; `contraction`, one minus the ratio of
        posterior to prior variance; `shift`, by how many prior standard deviations the mean moved; `z_score`,
        by how many posterior ones it misses the truth (where given); and `verdict` in words.

    Raises:
        KeyError: if a group is missing.

    References:
        Schad, Betancourt, Vasishth: Toward a principled Bayesian workflow in cognitive science. Psychological
        Methods 26 (2021), for contraction and z-score.
    """
    posterior = require_group(result, "posterior", "what was learnt is seen in the posterior")
    prior = require_group(result, "prior", "what was learnt is seen beside the prior")
    rows = {}
    for name in map(str, posterior.data_vars):
        if name not in prior or posterior[name][0, 0].size > max_entries:
            continue
        after, before = (x[name].transpose("chain", "draw", ...) for x in (posterior, prior))
        known = None if truth is None or name not in truth else np.asarray(truth[name], dtype=np.float64)
        require(
            known is None or known.shape == after.shape[2:],
            f"truth of {name} must have shape {after.shape[2:]}",
            known,
        )
        axes = [after[dim].values for dim in after.dims[2:]]
        for index in np.ndindex(*after.shape[2:]):
            label = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
            draws, expected = (x.values[(..., *index)].astype(np.float64).ravel() for x in (after, before))
            value = None if known is None else float(known[index])
            rows[f"{name}[{label}]" if label else name] = _compare(draws, expected, value)
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table if truth is not None else table.drop(columns="z_score")


def _compare(after: Array, before: Array, truth: float | None) -> dict[str, Any]:
    """Return the row of one scalar from draws of posterior and prior."""
    positive = bool((before > 0).all() and (after > 0).all())
    if positive:
        after, before = np.log(after), np.log(before)
        truth = None if truth is None else float(np.log(truth))
    prior_sd, posterior_sd = float(before.std()), float(after.std())
    contraction = 1 - (posterior_sd / prior_sd) ** 2 if prior_sd > 0 else np.nan
    shift = float(after.mean() - before.mean()) / prior_sd if prior_sd > 0 else np.nan
    missed = np.nan if truth is None or posterior_sd == 0 else float(after.mean() - truth) / posterior_sd
    return {
        "scale": "log" if positive else "",
        "prior_mean": float(before.mean()),
        "prior_sd": prior_sd,
        "posterior_mean": float(after.mean()),
        "posterior_sd": posterior_sd,
        "contraction": contraction,
        "shift": shift,
        "z_score": missed,
        "verdict": _verdict(contraction, shift),
    }


def _verdict(contraction: float, shift: float) -> str:
    if abs(shift) > FAR:
        return "the data contradict the prior"
    if contraction < LITTLE:
        return "next to nothing learnt: the posterior is the prior"
    return "learnt"
