"""NumPyro's NUTS with its compilation taken out: warm-up and sampling are compiled before the clock runs.

`MCMC.run` compiles anew at every call, for longer than it samples. Here its kernel runs in two loops that
are compiled once, which leaves NumPyro nothing but sampling. `sequential` runs one chain after another,
`vectorized` all of them in one vectorised kernel, as the chain methods of those names do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import NUTS
from peers.numpyro_density import Density

ChainMethod = Literal["sequential", "vectorized"]
BLOCK = 250
"""Draws of a chain in one call of the compiled loop."""


class CompiledNUTS:
    """Chains of NumPyro's NUTS, compiled and warmed up.

    Args:
        model: without arguments.
        density: of the model; splits vectors by site.
        start: where every chain starts, up to a hundredth, `(size,)`.
        chain_method: see the module docstring.
        dense_mass: adapt a dense mass matrix instead of a diagonal one, NumPyro's default.
        num_chains: chains.
        num_warmup: adapting draws of each.
    """

    def __init__(
        self,
        model: Callable[[], None],
        density: Density,
        start: np.ndarray,
        *,
        chain_method: ChainMethod,
        dense_mass: bool,
        num_chains: int,
        num_warmup: int,
    ) -> None:
        kernel = NUTS(model, dense_mass=dense_mass)
        keys = jax.random.split(jax.random.PRNGKey(0), num_chains)
        scatter = 0.01 * np.random.default_rng(0).standard_normal((num_chains, start.size))
        points = [density.split(jnp.asarray(start + row)) for row in scatter]
        self.vectorized = chain_method == "vectorized"
        if self.vectorized:
            together = {name: jnp.stack([point[name] for point in points]) for name in points[0]}
            states = [kernel.init(keys, num_warmup, together)]
        else:
            states = [kernel.init(key, num_warmup, z) for key, z in zip(keys, points, strict=True)]

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, (), {})
            return state, state.z

        warm = jax.jit(lambda state: jax.lax.fori_loop(0, num_warmup, lambda i, s: step(s, None)[0], state))
        draw = jax.jit(lambda state: jax.lax.scan(step, state, None, length=BLOCK))
        self._draw = draw.lower(states[0]).compile()
        self._states = [warm(state) for state in states]

    def run(self, num_draws: int) -> tuple[dict[str, np.ndarray], float]:
        """Go on with every chain; return unconstrained draws `(chain, draw, *site)` and wall seconds.

        Args:
            num_draws: draws of each chain, a multiple of `BLOCK`.
        """
        jax.block_until_ready(self._states)
        began = time.perf_counter()
        blocks: list[list[Any]] = [[] for _ in self._states]
        for i, drawn in enumerate(blocks):
            for _ in range(num_draws // BLOCK):
                self._states[i], z = self._draw(self._states[i])
                drawn.append(z)
        jax.block_until_ready((self._states, blocks))
        seconds = time.perf_counter() - began
        chains = [jax.tree.map(lambda *x: np.concatenate(x), *drawn) for drawn in blocks]
        if self.vectorized:
            return jax.tree.map(lambda x: np.swapaxes(x, 0, 1), chains[0]), seconds
        return jax.tree.map(lambda *x: np.stack(x), *chains), seconds
