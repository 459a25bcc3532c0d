"""What the study of noisy states makes of its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from example_data import load_script


@pytest.fixture(scope="module")
def study() -> Any:
    return load_script("study_noisy")


def rows(model: str, scores: list[float], seeds: range = range(3), start: str = "inferred") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "system": "pendulum",
            "size": 5,
            "start": start,
            "span": "to",
            "horizon": 10,
            "seed": list(seeds),
            "rmse": scores,
            "crps": scores,
        }
    )


def test_comparisons_are_paired_by_seed(study: Any) -> None:
    ours = rows(study.RECOMMENDED, [1.0, 2.0, 4.0])
    frame = pd.concat([ours, rows("rival", [2.0, 4.0, 2.0]), rows("partial", [3.0], range(1, 2))])
    found = study.paired(pd.concat([frame, rows("rival", [9.0, 9.0, 9.0], start="true")]))
    rival = found[(found["model"] == "rival") & (found["score"] == "crps")].iloc[0]
    assert (rival["won"], rival["seeds"]) == (2, 3)
    logs = np.log([2, 2, 0.5])
    assert rival["ratio"] == pytest.approx(math.exp(logs.mean()))
    half = 2.919986 * logs.std(ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom, 95 %
    assert rival["low"] == pytest.approx(math.exp(logs.mean() - half), rel=1e-5)
    assert rival["high"] == pytest.approx(math.exp(logs.mean() + half), rel=1e-5)
    partial = found[found["model"] == "partial"].iloc[0]
    assert (partial["seeds"], partial["ratio"]) == (1, pytest.approx(1.5))
    assert math.isnan(partial["low"])
    assert study.RECOMMENDED not in set(found["model"])


def test_a_study_without_the_recommended_model_compares_nothing(study: Any) -> None:
    found = study.paired(rows("rival", [1.0, 2.0, 3.0]))
    assert found.empty
    assert "ratio" in found


def test_skill_is_the_score_over_the_oracles(study: Any) -> None:
    extra = {"energy_error": 0.0, "vpt": 1.0, "width": 1.0, "train_seconds": 1.0, "forecast_seconds": 1.0}
    extra |= {f"coverage_{100 * level:g}": level for level in study.LEVELS}
    frame = pd.concat([rows("oracle", [1.0, 2.0, 4.0]), rows("rival", [2.0, 2.0, 2.0])]).assign(**extra)
    found = study.with_skill(frame)
    assert found[found["model"] == "rival"]["skill"].tolist() == [2.0, 1.0, 0.5]
