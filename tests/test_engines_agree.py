"""Both engines draw from the same posterior, on every model of the suite."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from example_data import driven, simulated, with_gaps

from vinppl.data import Trajectories
from vinppl.errors import ConvergenceWarning
from vinppl.fit import MCMCOptions, fit_mcmc
from vinppl.models import (
    Duffing,
    Hierarchical,
    MassSpring,
    NoisyStates,
    NoisyStatesConfig,
    Pendulum,
    PendulumConfig,
)

CASES: dict[str, tuple[Callable[..., Any], Any, Callable[[], Trajectories]]] = {
    "pendulum": (Pendulum, None, lambda: simulated("pendulum", num_times=40)),
    "pendulum with AR(1) noise and gaps": (
        Pendulum,
        PendulumConfig(noise="ar1"),
        lambda: with_gaps(simulated("pendulum", num_times=40)),
    ),
    "spring": (MassSpring, None, lambda: simulated("mass_spring", num_times=40)),
    "driven Duffing": (Duffing, None, lambda: driven(simulated("duffing", num_times=60))),
    "trials": (Hierarchical, None, lambda: simulated("pendulum", num_trajectories=5, num_times=30)),
    "neural potential, fixed weights": (
        NoisyStates,
        NoisyStatesConfig(hidden_sizes=(8,)),
        lambda: simulated("pendulum", num_trajectories=2, num_times=15),
    ),
}


def mean_and_error(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of `(chain, draw, *site)` and its Monte Carlo standard error."""
    import arviz as az

    flat = draws.reshape(*draws.shape[:2], -1)
    error = az.mcse(az.convert_to_dataset({"x": flat}))["x"].values
    return flat.mean((0, 1)), error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model has point-estimated parameters")
@pytest.mark.parametrize("case", CASES)
def test_means_agree_within_three_monte_carlo_errors(case: str) -> None:
    kind, config, measured = CASES[case]
    data = measured()
    model = kind(data) if config is None else kind(data, config)
    found = []
    for engine in ("nutpie", "pyro"):
        options = MCMCOptions(engine=engine, num_warmup=300, num_draws=1000, seed=1)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # Pyro's engine does not repeat its runs
            result = fit_mcmc(model, data, options)
        assert result.engine == engine
        found.append({name: mean_and_error(value.numpy()) for name, value in result.draws.items()})
    apart = {
        name: np.abs(found[0][name][0] - found[1][name][0]) / np.hypot(found[0][name][1], found[1][name][1])
        for name in found[0]
    }
    worst = {name: float(value.max()) for name, value in apart.items()}
    assert max(worst.values()) < 3, worst
