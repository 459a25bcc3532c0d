"""NumPyro's log density and gradient, as jitted functions of a flat unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer.util import initialize_model

Flat = Callable[[Array], tuple[Array, Array]]


class Density:
    """The log density of a NumPyro model in the order of somebody else's vector.

    Args:
        model: without arguments.
        names: latent sites in the order of the vector.

    Attributes:
        shapes: unconstrained shape of each site.
    """

    def __init__(self, model: Callable[[], None], names: Sequence[str]) -> None:
        info = initialize_model(jax.random.PRNGKey(0), model, validate_grad=False)
        z = info.param_info.z
        if set(names) != set(z):
            raise ValueError(f"the sites of both models must be the same; got {sorted(set(names) ^ set(z))}.")
        self.names = tuple(names)
        self.shapes = {name: z[name].shape for name in names}
        self._potential = info.potential_fn

    def split(self, u: Array) -> dict[str, Array]:
        """Return the sites of a vector `(size,)`."""
        sizes = [int(np.prod(self.shapes[name])) for name in self.names]
        parts = jnp.split(u, np.cumsum(sizes)[:-1])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.names, parts, strict=True)}

    def __call__(self, u: Array) -> Array:
        """Return the log density at one point, `(size,) -> ()`."""
        return -self._potential(self.split(u))

    def value_and_gradient(self) -> Flat:
        """Return the compiled function of one point, `(size,) -> (), (size,)`."""
        return jax.jit(jax.value_and_grad(self))

    def batch_value_and_gradient(self) -> Flat:
        """Return the compiled function of many points, `(chains, size) -> (chains,), (chains, size)`."""
        return jax.jit(jax.vmap(jax.value_and_grad(self)))


def observed_arrays(observed: Mapping[str, np.ndarray]) -> dict[str, Array | float]:
    """Return a problem's measurements as a NumPyro model takes them."""
    return {name: float(x) if x.ndim == 0 else jnp.asarray(x) for name, x in observed.items()}
