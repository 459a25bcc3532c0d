"""Compiled log densities of the suite's models equal those that run through Pyro."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps
from pyro.distributions import HalfCauchy, LogNormal, Normal
from torch import Tensor

import vinppl.native
from vinppl.data import Trajectories
from vinppl.errors import PerformanceWarning
from vinppl.logdensity import LogDensity
from vinppl.models import (
    Duffing,
    DuffingConfig,
    Hierarchical,
    HierarchicalConfig,
    MassSpring,
    MassSpringConfig,
    NoisyStates,
    NoisyStatesConfig,
    Pendulum,
    PendulumConfig,
)

CASES: dict[str, tuple[Callable[..., Any], Any, Callable[[], Trajectories]]] = {
    "pendulum": (Pendulum, PendulumConfig(), lambda: simulated("pendulum", num_times=20)),
    "pendulum, AR(1), gaps, all options": (
        Pendulum,
        PendulumConfig(
            noise="ar1", velocity_gain=0.1, drag=(0.03, 1.0), angle_offset=0.1, max_step_size=0.05
        ),
        lambda: with_gaps(simulated("pendulum", num_trajectories=3, num_times=20)),
    ),
    "pendulum, SO(2), Student-t, ragged": (
        Pendulum,
        PendulumConfig(noise="student_t", integrator="so2"),
        lambda: ragged(simulated("pendulum", num_trajectories=3, num_times=20)),
    ),
    "spring, order 4": (
        MassSpring,
        MassSpringConfig(integrator="verlet4"),
        lambda: simulated("mass_spring", num_trajectories=2, num_times=20),
    ),
    "Duffing, driven": (
        Duffing,
        DuffingConfig(offset=0.1),
        lambda: driven(simulated("duffing", num_trajectories=2, num_times=20)),
    ),
    "Duffing, free": (Duffing, DuffingConfig(noise="ar1"), lambda: simulated("duffing", num_times=20)),
    "trials of a pendulum": (
        Hierarchical,
        HierarchicalConfig(),
        lambda: simulated("pendulum", num_trajectories=5, num_times=15),
    ),
    "trials of a spring": (
        Hierarchical,
        HierarchicalConfig(system="spring"),
        lambda: simulated("mass_spring", num_trajectories=5, num_times=15),
    ),
    "neural potential with latent weights": (
        NoisyStates,
        NoisyStatesConfig(hidden_sizes=(6,), weight_prior_scale=1.0),
        lambda: simulated("pendulum", num_trajectories=3, num_times=12),
    ),
}

every_case = pytest.mark.parametrize("case", CASES)


def densities(case: str, **options: Any) -> tuple[LogDensity, LogDensity]:
    """Return the compiled density of a case, and the one that runs through Pyro."""
    kind, config, data = CASES[case]
    measured = data()
    model = kind(measured, config)
    compiled = LogDensity(model, measured, initial_values=model.initial_values(measured), **options)
    values = compiled.constrain(compiled.initial)  # of every site, as prior medians are drawn
    reference = LogDensity(model, measured, initial_values=values, backend="reference", **options)
    assert compiled.compile()
    assert not reference.compile()
    return compiled, reference


def near(density: LogDensity, count: int) -> Tensor:
    """Return points near the start."""
    noise = torch.randn(count, density.size, generator=torch.Generator().manual_seed(0))
    return density.initial + 0.05 * noise


@every_case
@pytest.mark.parametrize("soften", [False, True])
def test_value_and_gradient(case: str, soften: bool) -> None:
    compiled, reference = densities(case, soften=soften)
    for u in near(compiled, 3):
        value, gradient = compiled.value_and_gradient(u)
        expected, slope = reference.value_and_gradient(u)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-10 * float(slope.abs().max()))


@every_case
def test_chains_side_by_side_are_single_chains(case: str) -> None:
    compiled, _ = densities(case)
    native = compiled.native
    assert native is not None
    points = near(compiled, 21).numpy()
    values, gradients = native.batch_value_and_gradient(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        expected, slope = native.value_and_gradient(point)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-10 * np.abs(slope).max())


def test_whitened_coordinates_follow_the_chain_rule() -> None:
    compiled, _ = densities("Duffing, driven")
    native = compiled.native
    assert native is not None
    rng = np.random.default_rng(0)
    centre, factor = compiled.initial.numpy(), 0.1 * np.tril(rng.normal(size=(compiled.size,) * 2))
    x = rng.normal(size=compiled.size)
    value, gradient = native.whitened(centre, factor).value_and_gradient(x)
    expected, slope = native.value_and_gradient(centre + factor @ x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, factor.T @ slope, rtol=1e-9, atol=1e-9 * np.abs(slope).max())


def test_threads_do_not_disturb_one_another() -> None:
    native = densities("trials of a pendulum")[0].native
    assert native is not None
    points = np.random.default_rng(0).normal(scale=0.05, size=(2, native.size))
    expected = [native.value_and_gradient(point)[1] for point in points]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(300):
            if not np.array_equal(native.value_and_gradient(points[i])[1], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_compiled_density_is_differentiable_twice() -> None:
    compiled, reference = densities("pendulum")
    u = compiled.initial
    found = torch.autograd.functional.hessian(compiled, u)
    torch.testing.assert_close(found, torch.autograd.functional.hessian(reference, u), rtol=1e-8, atol=1e-6)


def test_a_point_of_no_density_is_not_finite() -> None:
    native = densities("pendulum")[0].native
    assert native is not None
    assert not np.isfinite(native.value_and_gradient(np.full(native.size, 1e200))[0])


def scales(y: Tensor) -> Tensor:
    """A user's program with plates, a mask, transforms and a few tensor operations."""
    centre = pyro.sample("centre", Normal(0.0, 1.0).expand([3]).to_event(1))
    width = pyro.sample("width", HalfCauchy(torch.ones(())))
    with pyro.plate("group", 4):
        scale = pyro.sample("scale", LogNormal(0.0, 1.0))
    path = torch.cumsum(torch.einsum("i,ij->j", centre, torch.ones(3, 5)), 0)
    level = torch.where(path > 100, path, path.tanh() * width)
    with pyro.plate("row", 4, dim=-2), pyro.plate("column", 5, dim=-1), pyro.poutine.mask(mask=y > -0.5):
        pyro.sample("y", Normal(level, scale.unsqueeze(-1) + width), obs=y)
    return level


def test_a_users_program() -> None:
    y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    compiled, reference = LogDensity(scales, y), LogDensity(scales, y, backend="reference")
    assert compiled.compile()
    for u in near(compiled, 3):
        for a, b in zip(compiled.value_and_gradient(u), reference.value_and_gradient(u), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def branching(y: Tensor) -> None:
    x = pyro.sample("x", Normal(0.0, 1.0))
    pyro.sample("y", Normal(x if x > 0 else 2 * x, 1.0), obs=y)


def noisy(y: Tensor) -> None:
    x = pyro.sample("x", Normal(0.0, 1.0))
    pyro.sample("y", Normal(x + 0.01 * torch.randn(()), 1.0), obs=y)


@pytest.mark.parametrize(("model", "reason"), [(branching, "control flow"), (noisy, "random numbers")])
def test_what_cannot_be_compiled_says_so_once(
    model: Callable[..., None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vinppl.native, "_said", set())
    y = torch.zeros(())
    first = LogDensity(model, y)
    with pytest.warns(PerformanceWarning, match=reason):
        first.compile()
    assert first.native is None
    assert not LogDensity(model, y).compile()  # a second warning would be an error here
    assert bool(torch.isfinite(first(first.initial)))
