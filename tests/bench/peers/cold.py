"""NUTS on the pendulum from a cold start: `python -m peers.cold vinppl DATA DRAWS`, in a process of its own.

DATA is an `.npz` file with the measurements. The process fits, saves its draws to DRAWS, says so on standard
output and waits: an empty line ends it, anything else asks for as many draws again. So the caller judges, and
neither side pays for diagnostics. The order of imports is part of what is measured: each side loads its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

Samples = dict[str, np.ndarray]


def vinppl_draws(values: np.ndarray, h: float) -> Iterator[Samples]:
    """Fit with default options; more draws are a longer fit."""
    import warnings

    from vinppl.data import Trajectories
    from vinppl.fit import MCMCOptions, fit_mcmc
    from vinppl.models import Pendulum

    warnings.simplefilter("ignore")
    times = h * np.arange(values.shape[1])
    data = Trajectories.from_arrays(times[None], values, quantities=["position", "velocity"])
    num_draws = MCMCOptions().num_draws
    while True:
        result = fit_mcmc(Pendulum(data), data, MCMCOptions(num_draws=num_draws))
        yield {name: value.numpy() for name, value in result.draws.items()}
        num_draws *= 2


def numpyro_draws(values: np.ndarray, h: float, chain_method: str) -> Iterator[Samples]:
    """Run NUTS from near the truth; more draws continue the chains."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.initialization import init_to_value
    from peers.numpyro_models import pendulum

    start = {
        "potential.gravity_over_length": jnp.array(2.5),
        "damping.coefficient": jnp.array(0.05),
        "noise_scale": jnp.full(2, 0.1),
        "initial_position": jnp.asarray(values[:, 0, :1]),
        "initial_velocity": jnp.asarray(values[:, 0, 1:]),
    }
    kernel = NUTS(pendulum(jnp.asarray(values), h), init_strategy=init_to_value(values=start))
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=1000,
        num_chains=4,
        chain_method=chain_method,
        progress_bar=False,
    )
    parts: list[Samples] = []
    while True:
        mcmc.run(jax.random.PRNGKey(len(parts)))
        parts.append({k: np.asarray(x) for k, x in mcmc.get_samples(group_by_chain=True).items()})
        yield {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
        mcmc.post_warmup_state = mcmc.last_state


def main() -> None:
    """Fit, and go on for as long as the caller asks."""
    side, data, out = sys.argv[1:4]
    with np.load(data) as arrays:
        values, h = arrays["values"], float(arrays["h"])
    rounds = vinppl_draws(values, h) if side == "vinppl" else numpyro_draws(values, h, side)
    for draws in rounds:
        np.savez(out, **draws)  # type: ignore[arg-type]
        print("saved", flush=True)
        if not sys.stdin.readline().strip():
            return


if __name__ == "__main__":
    main()
