"""Shared variances, conditional draws, laws of growth and energy checks against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vinppl.growth import (
    LAWS,
    ConditionalResampler,
    check_energy,
    fit_growth_law,
    part_of,
    separations,
    shapley_values,
    share_variance,
)
from vinppl.growth.laws import random_partners
from vinppl.growth.shapley import bootstrap_weights, subsets
from vinppl.growth.sites import parts_of


def drawn_anew(groups, function, rng, replicates=1):
    """Outputs of a function of groups for every set of held ones."""
    resampler = ConditionalResampler(groups)
    found = {}
    for held in subsets(list(groups)):
        outputs = []
        for _ in range(replicates):
            other = random_partners(resampler.num_draws, rng)
            outputs.append(function({**groups, **resampler.draw(held, other)}))
        found[held] = np.stack(outputs)
    return found


# Shapley effects


def test_shapley_values_of_a_known_game() -> None:
    # The glove game: two left gloves a, b and one right glove c, of which a pair is worth one.
    worth = {
        frozenset(u): float("c" in u and len(u) >= 2)
        for u in (set(), {"a"}, {"b"}, {"c"}, {"a", "b"}, {"a", "c"}, {"b", "c"}, {"a", "b", "c"})
    }
    found = shapley_values({u: np.array(v) for u, v in worth.items()}, ["a", "b", "c"])
    assert {k: float(v) for k, v in found.items()} == pytest.approx({"a": 1 / 6, "b": 1 / 6, "c": 2 / 3})


def gaussian_shapley(slopes: dict[str, np.ndarray], covariance: np.ndarray) -> dict[str, float]:
    """Shapley effects of groups on a linear function of Gaussian inputs, by c(u) = b' S_u S_uu^-1 S_u' b."""
    columns, start = {}, 0
    for name, b in slopes.items():
        columns[name] = list(range(start, start + len(b)))
        start += len(b)
    cross = covariance @ np.concatenate(list(slopes.values()))
    closed = {}
    for u in [frozenset(), *subsets(list(slopes)), frozenset(slopes)]:
        a = [i for name in slopes if name in u for i in columns[name]]
        closed[u] = np.asarray(cross[a] @ np.linalg.solve(covariance[np.ix_(a, a)], cross[a]) if a else 0.0)
    return {k: float(v) for k, v in shapley_values(closed, list(slopes)).items()}


def test_dependent_gaussian_inputs_agree_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    factor = np.array([[1.0, 0, 0, 0], [0.9, 0.3, 0, 0], [-0.5, 0.6, 0.1, 0], [0.2, -0.3, 0.4, 0.05]])
    x = rng.normal(size=(4000, 4)) @ factor.T
    slopes = {"a": np.array([1.0, -2.0]), "b": np.array([0.7]), "c": np.array([1.5])}
    groups = {"a": x[:, :2], "b": x[:, 2:3], "c": x[:, 3:]}

    def function(g):
        return sum(g[name] @ b for name, b in slopes.items())

    y = function(groups)
    shared = share_variance(
        y, drawn_anew(groups, function, rng), list(groups), bootstrap_weights(4000, 200, rng)
    )
    exact = gaussian_shapley(slopes, np.cov(x.T, bias=True))
    assert sum(shared.parts.values()) == pytest.approx(y.var(), rel=1e-12)
    for name, value in exact.items():
        assert abs(shared.parts[name] - value) < 4 * shared.part_errors[name] + 1e-3 * y.var(), name
        assert shared.part_errors[name] < 0.05 * y.var()
    # Standard deviations of 4,000 draws scatter by 1/sqrt(8000), and so do their ratios, about.
    assert np.abs(shared.mismatch).max() < 5 / math.sqrt(8000)


def test_independent_inputs_agree_with_ishigami() -> None:
    # Ishigami and Homma 1990: Sobol' indices in closed form, and what x1 and x3 do together is halved.
    a, b, count = 7.0, 0.1, 8000
    rng = np.random.default_rng(1)
    x = rng.uniform(-np.pi, np.pi, size=(count, 3))
    groups = {f"x{i}": x[:, i : i + 1] for i in range(3)}

    def function(g):
        x0, x1, x2 = (g[f"x{i}"][:, 0] for i in range(3))
        return np.sin(x0) + a * np.sin(x1) ** 2 + b * x2**4 * np.sin(x0)

    weights = bootstrap_weights(count, 200, rng)
    shared = share_variance(function(groups), drawn_anew(groups, function, rng, 2), list(groups), weights)
    first = 0.5 * (1 + b * np.pi**4 / 5) ** 2
    together = b**2 * np.pi**8 * (1 / 18 - 1 / 50)
    exact = {"x0": first + together / 2, "x1": a**2 / 8, "x2": together / 2}
    for name, value in exact.items():
        assert abs(shared.parts[name] - value) < 4 * shared.part_errors[name], name


def test_bootstrap_errors_are_those_of_repetitions() -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(300, 2))
        groups = {"a": x[:, :1], "b": x[:, 1:]}
        anew = drawn_anew(groups, lambda g: g["a"][:, 0] + 2 * g["b"][:, 0], rng)
        shared = share_variance(x @ [1, 2], anew, ["a", "b"], bootstrap_weights(300, 100, rng))
        found.append((shared.parts["a"], shared.part_errors["a"]))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(1.0, abs=4 * values.std() / math.sqrt(40))
    assert errors.mean() == pytest.approx(
        values.std(), rel=0.4
    )  # a standard deviation of 40 is known to 11 %


def test_lost_draws_are_left_out() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 2))
    groups = {"a": x[:, :1], "b": x[:, 1:]}
    anew = drawn_anew(groups, lambda g: g["a"][:, 0] + g["b"][:, 0], rng)
    for values in anew.values():
        values[0, :100] = np.nan
    shared = share_variance(x.sum(1), anew, ["a", "b"], bootstrap_weights(2000, 50, rng))
    assert shared.parts["a"] == pytest.approx(1.0, abs=0.2)


# Sites given others


def test_conditional_draws_keep_the_joint_distribution_however_tight() -> None:
    rng = np.random.default_rng(3)
    a = rng.gamma(2.0, size=(1000, 1))
    b = 3 * a + 1e-5 * rng.normal(size=(1000, 1))
    resampler = ConditionalResampler({"a": a, "b": b, "c": rng.normal(size=(1000, 1))})
    drawn = resampler.draw({"a"}, random_partners(1000, rng))
    assert set(drawn) == {"b", "c"}
    assert (drawn["b"] - 3 * a).std() == pytest.approx(1e-5, rel=0.1)
    assert np.corrcoef(drawn["b"][:, 0], b[:, 0])[0, 1] > 0.999
    assert abs(np.corrcoef(drawn["c"][:, 0], a[:, 0])[0, 1]) < 4 / math.sqrt(1000)
    free = resampler.draw((), random_partners(1000, rng))
    assert np.allclose(np.sort(free["a"], axis=0), np.sort(a, axis=0))
    assert abs(np.corrcoef(free["a"][:, 0], a[:, 0])[0, 1]) < 4 / math.sqrt(1000)


def test_few_draws_of_many_scalars_are_shrunk_towards_independence() -> None:
    rng = np.random.default_rng(4)
    many = rng.normal(size=(60, 100))
    y = rng.normal(size=(60, 1))
    drawn = ConditionalResampler({"many": many, "y": y}).draw({"many"}, random_partners(60, rng))
    # Least squares would fit the 60 draws by the 100 scalars exactly, and leave nothing to draw anew.
    assert abs(np.corrcoef(drawn["y"][:, 0], y[:, 0])[0, 1]) < 0.6
    constant = ConditionalResampler({"a": np.ones((20, 1)), "b": np.arange(20.0)[:, None]})
    assert np.array_equal(constant.draw({"b"}, random_partners(20, rng))["a"], np.ones((20, 1)))


def test_bad_groups_are_named() -> None:
    with pytest.raises(ValueError, match="at least 10 draws; got 9"):
        ConditionalResampler({"a": np.zeros((9, 1))})
    with pytest.raises(ValueError, match=r"same number of draws; got \[10, 11\]"):
        ConditionalResampler({"a": np.zeros((10, 1)), "b": np.zeros((11, 1))})


def test_parts_by_the_names_of_sites() -> None:
    expected = {
        "initial_position": "initial_state",
        "mass": "mass",
        "potential.network.output": "potential",
        "network.weight_0": "dynamics",
        "drag.coefficient": "forces",
        "drive.gain": "forces",
        "discrepancy.scale": "discrepancy",
        "correlation_time": "discrepancy",
        "noise_scale": "observation",
        "velocity_gain": "observation",
        "massive": "other",
        "something": "other",
    }
    assert {site: part_of(site) for site in expected} == expected
    found = parts_of(["mass", "k", "initial_position"], {"spring": ["k"], "initial_state": ["mass"]})
    assert found == {"initial_state": ["initial_position", "mass"], "spring": ["k"]}
    with pytest.raises(ValueError, match=r"sites of parts must be among mass, k; got nothing"):
        parts_of(["mass", "k"], {"mine": ["nothing"]})
    with pytest.raises(ValueError, match="a site must belong to one part"):
        parts_of(["mass"], {"mine": ["mass"], "yours": ["mass"]})


# Laws of growth

TIMES = 0.1 * np.arange(300)
LINE = np.zeros(2, dtype=bool)


def oscillators(frequency_sd: float, state_sd: float, *, num: int = 2, rng: np.random.Generator) -> list:
    """Ensembles of harmonic oscillators of frequency 1.4, `(draw, time, 2)`."""
    found = []
    for _ in range(num):
        w = 1.4 + frequency_sd * rng.normal(size=(300, 1))
        size, phase = 1 + state_sd * rng.normal(size=(300, 1)), state_sd * rng.normal(size=(300, 1))
        angle = w * TIMES + phase + rng.uniform(0, 6)
        found.append(np.stack([size * np.cos(angle), -size * w * np.sin(angle)], axis=-1))
    return found


def test_drifting_phases_grow_linearly_at_their_rate() -> None:
    rng = np.random.default_rng(5)
    states = oscillators(1e-3, 1e-3, rng=rng)
    law = fit_growth_law(separations(states, [TIMES, TIMES], LINE, rng=rng), num_bootstrap=30, rng=rng)
    assert law.name == "linear"
    assert law.support["linear"] > 0.9
    assert law.window == TIMES[-1]
    # Both coordinates are scaled to a spread of one, so that a phase moves the state by root two. The typical
    # (geometric mean) size of a normal deviation is exp(-(gamma + log 2) / 2) of its standard deviation.
    expected = math.sqrt(2) * 1e-3 * math.exp(-0.5 * (np.euler_gamma + math.log(2)))
    assert law.rates["linear"] == pytest.approx(expected, abs=4 * law.rate_errors["linear"])
    assert law.rate_errors["linear"] < 0.1 * expected
    assert sum(law.support.values()) == pytest.approx(1.0)


def test_spread_that_stays_is_constant() -> None:
    rng = np.random.default_rng(6)
    law = fit_growth_law(
        separations(oscillators(0.0, 1e-2, rng=rng), [TIMES, TIMES], LINE, rng=rng), num_bootstrap=30, rng=rng
    )
    assert law.name == "constant"
    assert abs(law.rates["exponential"]) < 1e-3


def test_exponential_growth_and_where_it_ends() -> None:
    rng = np.random.default_rng(7)
    states = []
    for _ in range(3):
        base = np.stack([np.cos(1.3 * TIMES), np.sin(1.3 * TIMES)], axis=-1)
        deviation = np.minimum(1e-4 * np.exp(0.5 * TIMES), 1.0)[:, None]
        states.append(base + deviation * rng.normal(size=(200, 1, 2)))
    found = separations(states, [TIMES] * 3, LINE, rng=rng)
    law = fit_growth_law(found, num_bootstrap=30, rng=rng)
    assert law.name == "exponential"
    assert law.rates["exponential"] == pytest.approx(0.5, rel=0.02)
    # exp(0.5 t) brings 1e-4 (of a motion whose spread is 0.7) to a fifth of unrelated states at about 14.
    assert 11 < law.window < 17
    fitted = law.window + 1e-9 >= TIMES
    assert np.isfinite(law.curve[fitted]).all()
    assert np.isnan(law.curve[~fitted]).all()


def test_contraction_is_exponential_at_a_negative_rate() -> None:
    rng = np.random.default_rng(11)
    base = np.stack([np.cos(1.3 * TIMES), np.sin(1.3 * TIMES)], axis=-1)
    decay = [base + 0.05 * np.exp(-0.2 * TIMES)[:, None] * rng.normal(size=(200, 1, 2)) for _ in range(3)]
    law = fit_growth_law(separations(decay, [TIMES] * 3, LINE, rng=rng), num_bootstrap=30, rng=rng)
    assert law.name == "exponential"
    assert law.rates["exponential"] == pytest.approx(-0.2, rel=0.02)


def test_angles_differ_the_shorter_way_round() -> None:
    rng = np.random.default_rng(8)
    angle = 3.0 * TIMES + 1e-3 * rng.normal(size=(100, 1))
    states = [np.stack([(angle + np.pi) % (2 * np.pi) - np.pi, np.full(angle.shape, 3.0)], axis=-1)]
    found = separations(states, [TIMES], np.array([True, False]), rng=rng)
    assert found.logs.max() < math.log(0.01)


def test_trajectories_with_other_horizons_are_interpolated() -> None:
    rng = np.random.default_rng(9)
    first, second = oscillators(1e-3, 1e-3, rng=rng)
    found = separations([first, second[:, :250:2]], [TIMES, TIMES[:250:2]], LINE, rng=rng)
    assert found.horizon[-1] == pytest.approx(TIMES[248])
    assert found.logs.shape == (300, 2, 300)
    assert np.isfinite(found.logs).all()


def test_draws_that_are_the_same_say_nothing_about_growth() -> None:
    rng = np.random.default_rng(12)
    states = oscillators(1e-3, 1e-3, num=1, rng=rng)
    states[0][100:250] = states[0][100]
    found = separations(states, [TIMES], LINE, rng=rng)
    assert 150 < len(found.logs) < 300
    assert np.isfinite(found.logs).all()


def test_one_lost_trajectory_of_several_does_not_end_the_fit_at_once() -> None:
    rng = np.random.default_rng(13)
    states = oscillators(3e-3, 1e-3, num=4, rng=rng)
    states[0] = 3 * rng.normal(size=states[0].shape)
    states[0][:, 0] = oscillators(1e-3, 1e-3, num=1, rng=rng)[0][:, 0]
    law = fit_growth_law(separations(states, [TIMES] * 4, LINE, rng=rng), num_bootstrap=10, rng=rng)
    assert law.name != "none"
    assert law.window > 5


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_no_law_without_spread_or_when_saturated_too_soon(spread: float) -> None:
    rng = np.random.default_rng(10)
    times = TIMES[:5] if spread else TIMES
    x = np.cos(times)[:, None] + spread * rng.normal(size=(50, len(times), 1))
    law = fit_growth_law(separations([x], [times], LINE[:1], rng=rng), num_bootstrap=30, rng=rng)
    assert law.name == "none"
    assert all(math.isnan(law.rates[name]) for name in LAWS)


# Energies


def test_energy_that_oscillates_is_bounded_and_one_that_drifts_is_not() -> None:
    times = np.tile(0.05 * np.arange(400), (2, 1))
    steady = 1 + 0.01 * np.sin(3 * times) + np.zeros((4, 1, 1))
    kinetic, turns = np.full((4, 2), 0.5), np.full((4, 2), 10)
    check = check_energy(steady, kinetic, turns, times)
    assert check.warning == ""
    assert not check.drifts.any()
    assert check.error == pytest.approx(0.02, rel=0.01)
    drifting = steady + 0.002 * times  # by 0.04; the mean of the last quarter is 0.03 above that of the first
    check = check_energy(drifting, kinetic, turns, times)
    assert check.drifts.all()
    assert check.trend == pytest.approx(0.06, rel=0.1)
    assert "drifts, by 5.98 % of their kinetic energy" in check.warning
    assert "max_step_size" in check.warning
    large = check_energy(1 + 10 * (steady - 1), kinetic, turns, times)
    assert "off by more than 10 %" in large.warning
    assert "drifts" not in large.warning
    # Too short to tell a drift from a piece of an oscillation; and rounding is no drift.
    assert not check_energy(drifting, kinetic, 0 * turns + 3, times).drifts.any()
    assert not check_energy(drifting[..., :5], kinetic, turns, times[:, :5]).drifts.any()
    assert not check_energy(1 + 1e-12 * times + 0 * steady, kinetic, turns, times).drifts.any()
    with pytest.raises(ValueError, match="energy must have shape"):
        check_energy(steady, kinetic[:, :1], turns, times)
