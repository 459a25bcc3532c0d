"""Scores of latent spaces against closed forms, published formulas and maps of known geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vinppl.dynamics import VIN
from vinppl.forces import LinearDamping
from vinppl.latents import (
    PENALTIES,
    _lasso_path,
    align,
    circular_correlation,
    log_volume_change,
    straightening,
    symetric,
)
from vinppl.potentials import PendulumPotential
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

RNG = np.random.default_rng(0)
NARROW = RNG.normal(0.4, 0.8, size=200)
ROUND = RNG.uniform(-math.pi, math.pi, size=400)


def published(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as astropy.stats.circcorrcoef writes it."""
    ma = np.arctan2(np.sin(a).sum(), np.cos(a).sum())
    mb = np.arctan2(np.sin(b).sum(), np.cos(b).sum())
    top = np.sum(np.sin(a - ma) * np.sin(b - mb))
    return float(top / np.sqrt(np.sum(np.sin(a - ma) ** 2) * np.sum(np.sin(b - mb) ** 2)))


def test_circular_correlation_is_the_published_one() -> None:
    noisy = 0.7 * NARROW + RNG.normal(0, 0.5, size=NARROW.shape)
    expected = published(noisy, NARROW)
    assert 0.3 < expected < 0.95
    assert circular_correlation(noisy, NARROW) == pytest.approx(expected, abs=1e-12)
    turns = 2 * math.pi * RNG.integers(-3, 4, size=NARROW.shape)
    assert circular_correlation(noisy + turns, NARROW + 1.3) == pytest.approx(expected, abs=1e-12)
    assert circular_correlation(-noisy, NARROW) == pytest.approx(-expected, abs=1e-12)


@pytest.mark.parametrize(("sign", "offset"), [(1, 2.0), (-1, -0.7)])
@pytest.mark.parametrize("uniform", [False, True])
def test_rotations_and_reflections_correlate_fully(sign: int, offset: float, uniform: bool) -> None:
    # Symmetric angles have an exact mean direction; those all round only need the form for uniform ones.
    angle = np.concatenate([NARROW, 0.8 - NARROW])
    assert circular_correlation(sign * angle + offset, angle, uniform=uniform) == pytest.approx(sign)


def test_an_angle_of_another_winding_number_does_not_correlate() -> None:
    # The standard error of a correlation of 400 independent pairs is 0.05; four of them.
    for winding in (0, 2, 3):
        r = circular_correlation(winding * ROUND + 0.01 * RNG.normal(size=400), ROUND, uniform=True)
        assert abs(r) < 0.2
    assert abs(circular_correlation(-ROUND, ROUND, uniform=True)) > 0.9
    assert math.isnan(circular_correlation(np.ones(5), ROUND[:5]))


def test_lines_are_aligned_by_least_squares() -> None:
    truth = RNG.normal(size=(4, 30))
    latent = (truth - 0.5) / -2.0 + 0.1 * RNG.normal(size=truth.shape)
    found = align(latent, truth)
    slope, intercept = np.polyfit(latent.ravel(), truth.ravel(), 1)
    assert (found.scale, found.offset) == (pytest.approx(slope), pytest.approx(intercept))
    assert found.values.shape == truth.shape
    assert found.error == pytest.approx(math.sqrt(((found.values - truth) ** 2).mean()))
    assert found.error < 0.25


@pytest.mark.parametrize("sign", [1, -1])
def test_circles_are_aligned_by_rotation_and_reflection(sign: int) -> None:
    turns = 2 * math.pi * RNG.integers(-2, 3, size=ROUND.shape)
    latent = sign * (ROUND - 2.5) + turns + 0.05 * RNG.normal(size=ROUND.shape)
    found = align(latent, ROUND, circle=True)
    assert found.scale == sign
    # Offset and error of 400 angles with scatter 0.05: standard errors 0.0025 and 0.0018; four of them.
    assert math.cos(found.offset - 2.5) > math.cos(0.01)
    assert found.error == pytest.approx(0.05, abs=0.007)


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be constant"):
        align(np.ones(10), np.arange(10.0))
    with pytest.raises(ValueError, match=r"latent must have the shape \(4,\)"):
        align(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="finite"):
        circular_correlation([0.0, math.nan], [0.0, 1.0])


@pytest.mark.parametrize("seed", [2, 17, 25])  # where one descent stops early, at one penalty or more
@pytest.mark.parametrize("penalty", range(len(PENALTIES)))
def test_the_lasso_meets_its_conditions(penalty: int, seed: int) -> None:
    """Karush, Kuhn, Tucker: gradients at most the penalty, and equal to it against the sign of a weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(150, 6))
    x[:, 5] = x[:, 4] + 0.1 * rng.normal(size=150)
    y = np.stack([x @ [1.0, -0.5, 0.0, 0.0, 0.2, 0.0], rng.normal(size=150)], axis=-1)
    weights = _lasso_path(x, y)[penalty]
    gradient, alpha = x.T @ (x @ weights - y) / len(x), PENALTIES[penalty]
    assert np.all(np.abs(gradient) <= alpha + 1e-6)
    used = np.abs(weights) > 1e-4
    assert np.allclose(gradient[used], -alpha * np.sign(weights[used]), atol=1e-6)


STATES = RNG.uniform(-1, 1, size=(300, 2))
FOUR = RNG.uniform(-1, 1, size=(300, 4))  # q1, q2, p1, p2


@pytest.mark.parametrize(
    ("latent", "truth"),
    [
        (STATES, STATES @ np.array([[2.0, 0.3], [-1.0, 0.7]]) + 3.0),
        # A kick by a cubic force is symplectic and needs degree 3.
        (STATES, STATES + np.stack([0 * STATES[:, 0], 4 * STATES[:, 0] ** 3], axis=-1)),
        (FOUR, FOUR * np.array([2.0, 0.5, 0.5, 2.0])),  # canonical: each pair keeps its area
        (FOUR, 3.0 * FOUR),  # the unit is not known
    ],
)
def test_symplectic_maps_pass(latent: np.ndarray, truth: np.ndarray) -> None:
    found = symetric(latent.reshape(3, 100, -1), truth.reshape(3, 100, -1))
    assert found.passed
    assert found.r2 > 0.9
    assert found.deviation < 1e-3


def test_maps_that_stretch_unevenly_fail() -> None:
    cubes = symetric(STATES, STATES**3)
    assert cubes.degree == 3
    assert cubes.r2 > 0.99
    assert not cubes.passed
    # A = J E J^T has entries 4, 1, so that A A^T / c is diag(1, 1/16, 1, 1/16).
    pairs = symetric(FOUR, FOUR * np.array([2.0, 1.0, 2.0, 1.0]))
    assert pairs.deviation == pytest.approx(2 * (15 / 16) ** 2 / 16, rel=1e-3)
    assert not pairs.passed
    exchanged = symetric(FOUR, FOUR[:, [0, 3, 2, 1]] * [1, 1, 1, -1])  # canonical too
    assert exchanged.passed
    # The published measure takes any rotation of phase space for canonical, as its docstring says.
    assert symetric(FOUR, FOUR[:, [0, 2, 1, 3]]).deviation < 1e-6


def test_unrelated_states_fail() -> None:
    found = symetric(RNG.normal(size=(300, 2)), STATES, max_degree=3)
    assert not found.passed
    assert found.r2 < 0.5
    assert found.degree == 3
    with pytest.raises(ValueError, match=r"true_states must have shape \(\*shape, 2 dim\)"):
        symetric(STATES, STATES[:, :1])
    with pytest.raises(ValueError, match="leading shape"):
        symetric(STATES[:-1], STATES)
    with pytest.raises(ValueError, match="must vary"):
        symetric(STATES, STATES * [1.0, 0.0])


@pytest.mark.parametrize("integrator", ["velocity_verlet", "so2"])
def test_a_symplectic_flow_keeps_its_volume_and_damping_loses_it(integrator: str) -> None:
    grid, one = TimeGrid.regular(50, 0.1), TimeGrid.regular(2, 0.1)
    begin = PhaseState(torch.tensor([[0.5], [2.0]]), torch.tensor([[0.3], [-0.4]]))
    for coefficient in (0.0, 0.2):
        forces = [LinearDamping(coefficient)] if coefficient else []
        vin = VIN(PendulumPotential(9.82), forces=forces, integrator=integrator)

        def step(x: torch.Tensor, vin: VIN = vin) -> torch.Tensor:
            q, v = x.chunk(2, dim=-1)
            path = vin(PhaseState(q, v), one)
            return torch.cat([path.q[:, -1], path.v[:, -1]], dim=-1)

        path = vin(begin, grid)
        change = log_volume_change(step, torch.cat([path.q, path.v], dim=-1))
        assert change.shape == (2, 50)
        # Of a damped flow the volume falls as exp(-c t); a second-order step errs by (c h)^3 / 12 each.
        expected = -coefficient * (grid.times - grid.times[0])
        assert torch.allclose(change, expected.expand(2, -1), atol=1e-9 + 50 * (coefficient * 0.1) ** 3 / 6)


def test_volume_change_is_the_determinant_of_the_whole_map() -> None:
    matrix = torch.tensor([[0.9, 0.4], [-0.3, 1.1]])
    path = torch.stack([torch.linalg.matrix_power(matrix, k) @ torch.tensor([1.0, 2.0]) for k in range(6)])
    change = log_volume_change(lambda x: x @ matrix.mT, path)
    expected = torch.stack([torch.linalg.matrix_power(matrix, k).det().abs().log() for k in range(6)])
    assert torch.allclose(change, expected)
    with pytest.raises(ValueError, match="step must return the shape"):
        log_volume_change(lambda x: x[:, :1], path)


@pytest.mark.parametrize(("circle", "sign"), [(False, -0.4), (True, 1.0), (True, -1.0)])
def test_a_bent_scale_is_straightened(circle: bool, sign: float) -> None:
    truth = ROUND if circle else NARROW
    turns = 2 * math.pi * RNG.integers(-2, 3, size=truth.shape) if circle else 0.0

    def read(q: np.ndarray) -> np.ndarray:
        return sign * (q + 0.15 * np.sin(q + 0.3)) + 0.7

    half = len(truth) // 2
    straight = straightening((read(truth) + turns)[:half], truth[:half], circle=circle)
    rest = straight(read(truth[half:]).reshape(-1, 10)) - truth[half:].reshape(-1, 10)
    if circle:
        rest = np.angle(np.exp(1j * rest))
    bent = align(read(truth), truth, circle=circle)
    assert float(np.sqrt((rest**2).mean())) < 0.05 * bent.error
    turned = straight(read(truth[:1]) + 2 * math.pi)
    assert circle == (abs(float(turned[0] - straight(read(truth[:1]))[0]) - sign * 2 * math.pi) < 1e-9)


def test_frames_without_a_latent_do_not_bend_the_scale() -> None:
    latent = NARROW.copy()
    latent[::3] = math.nan
    assert straightening(latent, NARROW)(NARROW) == pytest.approx(NARROW, abs=1e-6)
