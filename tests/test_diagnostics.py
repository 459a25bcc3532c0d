"""Summaries of posteriors and verdicts on chains; runs under both majors of ArviZ, without torch.

Monte Carlo tolerances are four standard errors of the estimate unless a comment says otherwise.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from vinppl import diagnostics
from vinppl.diagnostics import convergence, summary, tail_shape
from vinppl.export import to_arviz

CHAINS, DRAWS = 4, 500


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sampled(posterior: dict, attrs: dict | None = None, **stats: np.ndarray):
    """A result as MCMC leaves it, with healthy statistics except those given."""
    shape = next(iter(posterior.values())).shape[:2]
    healthy = {
        "diverging": np.zeros(shape, dtype=bool),
        "tree_depth": np.full(shape, 3),
        "energy": generator(9).normal(size=shape),
    }
    return to_arviz({"posterior": posterior, "sample_stats": healthy | stats}, attrs=attrs)


def healthy_posterior(chains: int = CHAINS, draws: int = DRAWS) -> dict[str, np.ndarray]:
    rng = generator(1)
    return {
        "mass": 1 + 0.1 * rng.normal(size=(chains, draws)),
        "potential.weight": rng.normal(size=(chains, draws, 2)),
    }


# Convergence


def test_good_chains_converge() -> None:
    found = convergence(sampled(healthy_posterior()))
    assert found.converged
    assert found.verdict.startswith("Converged: 4 chains of 500 draws agree")
    assert "no draw diverged" in found.verdict
    assert (found.num_chains, found.num_draws, found.divergences) == (CHAINS, DRAWS, 0)
    assert found.max_rhat <= 1.01
    assert min(found.min_ess_bulk, found.min_ess_tail) >= 400
    assert found.tree_depth_saturated == 0
    assert list(found.table.columns) == ["mean", "sd", "rhat", "ess_bulk", "ess_tail"]
    assert set(found.table.index) == {"mass", "potential.weight[0]", "potential.weight[1]"}
    # E(ΔE²) / Var(E) is 2 for independent energies, with a standard error near 2 / sqrt(draws).
    assert found.min_bfmi == pytest.approx(2.0, abs=4 * 2 / math.sqrt(DRAWS))


def test_chains_that_disagree_are_named_first() -> None:
    posterior = healthy_posterior()
    posterior["potential.stiffness"] = generator(2).normal(size=(CHAINS, DRAWS)) + np.arange(CHAINS)[:, None]
    found = convergence(sampled(posterior))
    assert not found.converged
    assert found.worst_parameters[0] == "potential.stiffness"
    assert f"R-hat of potential.stiffness is {found.max_rhat:.2f}: the chains disagree" in found.verdict
    assert "run longer" in found.verdict
    assert "different modes" in found.verdict


def test_slow_mixing_is_an_effective_sample_size_too_small() -> None:
    noise = generator(3).normal(size=(CHAINS, 4000))
    slow = np.zeros_like(noise)
    for k in range(1, noise.shape[1]):
        slow[:, k] = 0.95 * slow[:, k - 1] + noise[:, k]
    found = convergence(sampled({"x": slow}))
    # A first-order autoregression with coefficient a keeps (1 - a) / (1 + a) of its 16000 draws: 410.
    assert found.min_ess_bulk == pytest.approx(410, rel=0.35)
    few = convergence(sampled({"x": slow[:, :1000]}))
    assert not few.converged
    assert "effective sample size of x is" in few.verdict
    assert "(400 wanted)" in few.verdict


def test_more_chains_need_more_samples() -> None:
    found = convergence(sampled({"x": generator(4).normal(size=(8, 80))}))
    assert 400 < found.min_ess_bulk < 800
    assert "(800 wanted)" in found.verdict


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"diverging": np.arange(CHAINS * DRAWS).reshape(CHAINS, DRAWS) < 12}, "12 of 2000 draws diverged"),
        ({"tree_depth": np.full((CHAINS, DRAWS), 10)}, "100 % of draws hit the maximum tree depth"),
        ({"energy": np.cumsum(generator(5).normal(size=(CHAINS, DRAWS)), axis=1)}, "BFMI is 0."),
    ],
)
def test_bad_statistics_are_told(stats: dict, message: str) -> None:
    found = convergence(sampled(healthy_posterior(), **stats))
    assert not found.converged
    assert found.verdict.startswith("Not converged: ")
    assert message in found.verdict
    assert "To do: " in found.verdict


def test_tree_depth_limit_comes_from_the_argument_or_the_attributes() -> None:
    deep = {"tree_depth": np.full((CHAINS, DRAWS), 6)}
    assert convergence(sampled(healthy_posterior(), **deep)).converged
    assert convergence(sampled(healthy_posterior(), **deep), max_tree_depth=6).tree_depth_saturated == 1
    stored = sampled(healthy_posterior(), attrs={"max_tree_depth": 6}, **deep)
    assert convergence(stored).tree_depth_saturated == 1
    own = {"reached_max_treedepth": np.ones((CHAINS, DRAWS), dtype=bool)}
    assert convergence(sampled(healthy_posterior(), **own)).tree_depth_saturated == 1


def test_statistics_that_were_not_recorded_are_not_judged() -> None:
    result = to_arviz(
        {"posterior": healthy_posterior(), "sample_stats": {"lp": generator().normal(size=(CHAINS, DRAWS))}}
    )
    found = convergence(result)
    assert found.converged
    assert found.divergences is None
    assert "diverged" not in found.verdict
    assert math.isnan(found.min_bfmi)
    assert math.isnan(found.tree_depth_saturated)


def test_one_chain_cannot_show_convergence() -> None:
    found = convergence(sampled(healthy_posterior(chains=1)))
    assert not found.converged
    assert math.isnan(found.max_rhat)
    assert found.min_ess_bulk > 300
    assert "R-hat needs at least two chains and there is one" in found.verdict


def test_constants_are_ignored_element_by_element() -> None:
    posterior = healthy_posterior()
    factor = generator(6).normal(size=(CHAINS, DRAWS, 2, 2))
    factor[..., 0, 1] = 0.0
    posterior |= {"factor": factor, "gravity": np.full((CHAINS, DRAWS), 9.82)}
    found = convergence(sampled(posterior))
    assert found.converged
    assert len(found.table) == 6
    assert not {"gravity", "factor[0, 1]"} & set(found.table.index)


def test_labels_of_coords_name_the_elements() -> None:
    result = to_arviz(
        {
            "posterior": {"noise_scale": generator().normal(size=(CHAINS, DRAWS, 2))},
            "sample_stats": {"diverging": np.zeros((CHAINS, DRAWS), dtype=bool)},
        },
        dims={"noise_scale": ("channel",)},
        coords={"channel": ["q", "v"]},
    )
    assert set(convergence(result).table.index) == {"noise_scale[q]", "noise_scale[v]"}


def test_stuck_and_broken_chains() -> None:
    apart = np.broadcast_to(np.arange(CHAINS, dtype=float)[:, None], (CHAINS, DRAWS)).copy()
    assert "the chains disagree" in convergence(sampled({"x": apart})).verdict
    still = convergence(sampled({"x": np.ones((CHAINS, DRAWS))}))
    assert "no parameter ever moves" in still.verdict
    assert not still.converged
    broken = healthy_posterior()
    broken["mass"][0, 3] = np.nan
    found = convergence(sampled(broken))
    assert "mass has draws that are not finite" in found.verdict
    assert found.worst_parameters[0] == "mass"
    assert not found.converged
    assert "too few to judge" in convergence(sampled(healthy_posterior(draws=3))).verdict


def test_missing_groups_are_named() -> None:
    with pytest.raises(KeyError, match="'posterior' is needed; got prior"):
        convergence(to_arviz({"prior": {"x": np.zeros((1, 5))}}))
    with pytest.raises(KeyError, match=r"'sample_stats' is needed; got posterior.*losses"):
        convergence(to_arviz({"posterior": healthy_posterior()}))
    with pytest.raises(TypeError, match="must be an ArviZ container"):
        convergence(xr.Dataset())


def test_module_imports_without_torch() -> None:
    code = "import sys, vinppl.diagnostics; sys.exit(bool({'torch', 'pyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


# Summaries


@pytest.mark.parametrize("chains", [1, 4])
def test_summary_names_and_rounds(chains: int) -> None:
    draws = generator(2).normal(size=(chains, 500, 2, 1))
    posterior = {
        "mass": 1000 + 0.0123 * draws[:, :, 0, 0],
        "initial_position": draws,
        "fixed": np.ones((chains, 500)),
    }
    dims = {"initial_position": ("trajectory", "coordinate")}
    table = summary(to_arviz({"posterior": posterior}, dims=dims, coords={"coordinate": ["q0"]}))
    assert list(table.index) == ["mass", "initial_position[0, q0]", "initial_position[1, q0]", "fixed"]
    expected = ["mean", "sd", "5%", "95%", "ess_bulk", "ess_tail", "r_hat"]
    assert list(table.columns) == expected[: 4 if chains == 1 else 7]
    # Rounding is to a hundredth of the sd, or finer.
    assert table.loc["mass", "mean"] == pytest.approx(posterior["mass"].mean(), abs=0.0123 / 100)
    assert table.loc["mass", "5%"] == pytest.approx(np.quantile(posterior["mass"], 0.05), abs=0.0123 / 100)
    assert len(repr(float(table.loc["mass", "mean"]))) <= len("1000.1234")
    assert table.loc["fixed", "mean"] == 1
    if chains > 1:
        assert table.loc["mass", "r_hat"] == pytest.approx(1, abs=0.01)
        assert table.loc["mass", "ess_bulk"] > 1000


def test_summary_leaves_the_large_out_and_says_so() -> None:
    rng = generator(3)
    posterior = {
        "weight": rng.normal(size=(2, 50, 30, 30)),
        "mass": rng.normal(size=(2, 50)),
        "local": rng.normal(size=(2, 50, 8)),
    }
    result = to_arviz({"posterior": posterior})
    table = summary(result, max_rows=9)
    assert list(table.index) == ["mass", *(f"local[{k}]" for k in range(8)), "... 900 more"]
    assert table.iloc[-1].isna().all()
    assert table.attrs["left_out"] == 900
    assert list(summary(result, max_rows=5).index) == ["mass", "... 908 more"]
    alone = to_arviz({"posterior": {"weight": posterior["weight"]}})
    assert list(summary(alone, max_rows=2).index) == ["weight[0, 0]", "weight[0, 1]", "... 898 more"]
    with pytest.raises(ValueError, match="max_rows must be at least 1"):
        summary(result, max_rows=0)


def test_summary_of_few_or_broken_draws() -> None:
    posterior = {"x": np.array([[0.0, 1.0]] * 2), "broken": np.array([[np.nan, 1.0]] * 2)}
    table = summary(to_arviz({"posterior": posterior}))
    assert table.loc["x", "mean"] == 0.5
    assert table[["ess_bulk", "r_hat"]].isna().all(axis=None)
    assert math.isnan(table.loc["broken", "mean"])


@pytest.mark.parametrize("shape", [0.2, 1.0])
def test_tail_shapes_are_those_of_the_weights(shape: float) -> None:
    """Of a generalised Pareto distribution: the largest m = 3 sqrt(n) tell k within (1 + k) / sqrt(m)."""
    uniform = generator(5).uniform(size=10_000)
    weights = np.log1p((uniform**-shape - 1) / shape)
    weights[:100] = -np.inf
    assert tail_shape(weights) == pytest.approx(shape, abs=4 * (1 + shape) / math.sqrt(300))
    assert tail_shape(weights[:120]) == math.inf  # too few that are finite


def test_public_names_resolve() -> None:
    assert all(hasattr(diagnostics, name) for name in diagnostics.__all__)
