"""Which model do the data support? Expected log predictive densities of several models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from vinppl._checks import require
from vinppl.calibration.loo import Elpd

__all__ = ["rank_models"]

CLOSE = 4.0
"""Nats within which the standard error of a difference is known to be too small."""

FEW = 100
"""Parts below which standard errors are themselves uncertain."""


def rank_models(found: Mapping[str, Elpd], notes: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Rank models by their expected log predictive density on the same data.

    Args:
        found: by name of the model; all of the same parts.
        notes: further warnings by name of the model.

    Returns:
        A row for each model, the best first: `model`, `elpd` and `se` in nats, `difference` to the best and
        `difference_se` (of the sum of differences part by part, which is smaller than that of either model),
        `parameters` (effective number), `influential` (parts with k above 0.7), `parts`, and `warnings` in
        words.

    Raises:
        ValueError: if models were scored on different parts.

    References:
        Sivula, Magnusson, Matamoros, Vehtari: Uncertainty in Bayesian leave-one-out cross-validation based
        model comparison. Bayesian Analysis (2025), on differences below 4 and few parts.
    """
    require(len(found) >= 1, "there must be at least one model", "none")
    reference = next(iter(found))
    for name, elpd in found.items():
        require(
            elpd.labels == found[reference].labels and elpd.unit == found[reference].unit,
            f"{name} must be scored on the same parts of the same data as {reference}",
            f"{len(elpd.labels)} {elpd.unit}s and {len(found[reference].labels)} {found[reference].unit}s",
        )
    order = sorted(found, key=lambda name: -found[name].total)
    best = found[order[0]]
    rows = []
    for name in order:
        elpd = found[name]
        gaps = elpd.pointwise - best.pointwise
        spread = math.sqrt(len(gaps)) * float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan
        warnings = [*_warnings(elpd), *([(notes or {})[name]] if (notes or {}).get(name) else [])]
        if name != order[0] and (-gaps.sum() < CLOSE or -gaps.sum() < 2 * spread):
            warnings.insert(0, "too close to the best to tell")
        rows.append(
            {
                "model": name,
                "elpd": elpd.total,
                "se": elpd.standard_error,
                "difference": float(gaps.sum()),
                "difference_se": spread if name != order[0] else 0.0,
                "parameters": elpd.num_effective,
                "influential": elpd.num_influential,
                "parts": len(gaps),
                "warnings": "; ".join(warnings),
            }
        )
    return pd.DataFrame(rows)


def _warnings(elpd: Elpd) -> list[str]:
    """Return what makes one model's number doubtful."""
    found, count = [], len(elpd.pointwise)
    if elpd.num_influential:
        found.append(
            f"{elpd.num_influential} of {count} parts are too influential for importance weights (k up to "
            f"{np.nanmax(elpd.shapes):.2g}), so that the number is uncertain, usually too high"
        )
    if count < FEW:
        found.append(f"standard errors from {count} parts are rough")
    return found
