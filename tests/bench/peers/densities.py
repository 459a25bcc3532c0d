"""Gradients of log densities: ours, Pyro's and NumPyro's, which must agree before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peers.problems import PROBLEMS, STEP_SIZE, Problem
from peers.rows import Effort, Row, interleaved
from pyro import poutine
from torch.distributions import biject_to

from vinppl.fit.starts import starting_values
from vinppl.logdensity import LogDensity

Array = NDArray[np.float64]
Gradient = Callable[[Any], tuple[Any, Any]]


class Sides(NamedTuple):
    """A problem with both log densities, which were found to agree.

    Attributes:
        problem: the model and its data.
        density: ours.
        ours: its value and gradient at a point, `(size,) -> (), (size,)`.
        point: the truth in our unconstrained coordinates.
        peer_model: NumPyro's model.
        peer: its density.
        peer_point: the truth in the peer's coordinates, sites in our order.
    """

    problem: Problem
    density: LogDensity
    ours: Gradient
    point: Array
    peer_model: Callable[[], None]
    peer: Any
    peer_point: Array


@cache
def both_sides(name: str) -> Sides:
    """Return a problem in vinppl and in NumPyro.

    Raises:
        RuntimeError: if the two do not have the same posterior.
    """
    from peers import numpyro_density, numpyro_models

    problem = PROBLEMS[name]()
    density = our_density(problem)
    ours, point = our_gradient(density), truth(problem, density)
    model = numpyro_models.MODELS[name](**numpyro_density.observed_arrays(problem.observed()))
    peer = numpyro_density.Density(model, density.names)
    peer_point = check_densities(problem, density, ours, peer.value_and_gradient())
    return Sides(problem, density, ours, point, model, peer, peer_point)


def our_density(problem: Problem) -> LogDensity:
    """Return the log density of the library's model, compiled if it can be."""
    values = starting_values(problem.model, problem.data)
    density = LogDensity(problem.model, problem.data, initial_values=values)
    density.compile()
    return density


def our_gradient(density: LogDensity) -> Gradient:
    """Return the compiled value and gradient where there is one, otherwise that through Pyro's handlers."""
    if density.native is not None:
        return density.native.value_and_gradient

    def through_pyro(u: Array) -> tuple[float, Array]:
        value, gradient = density.value_and_gradient(torch.from_numpy(u))
        return float(value), gradient.numpy()

    return through_pyro


def our_batch(density: LogDensity) -> Gradient:
    """Return the same for many points, `(chains, size) -> (chains,), (chains, size)`."""
    if density.native is not None:
        return density.native.batch_value_and_gradient
    return partial(one_by_one, our_gradient(density))


def one_by_one(function: Gradient, points: Array) -> tuple[Array, Array]:
    """Return values and gradients at many points, called for each."""
    values, gradients = zip(*(function(u) for u in points), strict=True)
    return np.array([float(v) for v in values]), np.stack([np.asarray(g) for g in gradients])


def truth(problem: Problem, density: LogDensity) -> Array:
    """Return the truth as an unconstrained vector."""
    return density.unconstrain({k: x.to(density.initial) for k, x in problem.truth.items()}).numpy()


def near(point: Array, num: int) -> Array:
    """Return points around one, `(num, size)`."""
    return point + 0.05 * np.random.default_rng(0).standard_normal((num, point.size))


def check_densities(
    problem: Problem, density: LogDensity, ours: Gradient, peer: Gradient, *, tolerance: float = 1e-6
) -> Array:
    """Compare two log densities at random points near the truth; return the truth in the peer's coordinates.

    Raises:
        RuntimeError: if they differ by more than a constant, or have other gradients.
    """
    point = truth(problem, density)
    seen = [in_plain_coordinates(problem, density, ours, u) for u in (point, *near(point, 3))]
    points, f, df = (np.stack(x) for x in zip(*seen, strict=True))
    g, dg = one_by_one(peer, points)
    for what, a, b in (("log densities", f - f[0], g - g[0]), ("gradients", df, dg)):
        error = np.abs(a - b).max() / np.abs(a).max()
        if not error <= tolerance:
            raise RuntimeError(f"the posteriors must be the same; their {what} differ by {error:.2g}")
    return points[0]


def in_plain_coordinates(
    problem: Problem, density: LogDensity, ours: Gradient, u: Array
) -> tuple[Array, Array, Array]:
    """Return a point, our log density and its gradient as Pyro and NumPyro see them, by logarithms.

    The library may take another map to unconstrained space. Both act entry by entry, so that the densities
    differ by the slope of z(u): log p(z) = log p(u) - sum log dz/du.
    """
    trace = poutine.trace(problem.model).get_trace(problem.data)
    at = torch.from_numpy(u).requires_grad_(True)
    sites = density.constrain(at)
    z = [biject_to(trace.nodes[name]["fn"].support).inv(sites[name]).reshape(-1) for name in density.names]
    (slope,) = torch.autograd.grad(torch.cat(z).sum(), at, create_graph=True)
    stretch = slope.log().sum()
    (bend,) = torch.autograd.grad(stretch, at)
    value, gradient = ours(u)
    plain = (gradient - bend.numpy()) / slope.detach().numpy()
    return torch.cat(z).detach().numpy(), np.array(value - stretch.item()), plain


def gradient_vs_pyro(effort: Effort) -> Row:
    """Time the pendulum's value and gradient against Pyro's own."""
    from peers import pyro_pendulum

    problem = PROBLEMS["pendulum"]()
    density = our_density(problem)
    u, ours = truth(problem, density), our_gradient(density)
    peer = pyro_pendulum.value_and_gradient(problem.data.values, STEP_SIZE, density.names)
    z = check_densities(problem, density, ours, peer)
    times = _timed(lambda: ours(u), lambda: peer(z), effort)
    return Row("gradient_pendulum_150_vs_pyro", *times, "plain Pyro", "us", 500)


def gradient_vs_numpyro(effort: Effort) -> Row:
    """Time it against NumPyro's, jitted."""
    import jax

    sides = both_sides("pendulum")
    ours, peer, u = sides.ours, sides.peer.value_and_gradient(), sides.point
    on_device = jax.device_put(sides.peer_point)
    times = _timed(lambda: ours(u), lambda: jax.block_until_ready(peer(on_device)), effort)
    return Row("gradient_pendulum_150_vs_numpyro", *times, "NumPyro", "us", 3)


def gradient_batch(num_chains: int, effort: Effort) -> Row:
    """Time it for many chains at once against `jax.vmap` of NumPyro's."""
    import jax

    sides = both_sides("pendulum")
    points = near(sides.point, num_chains)
    ours, peer = our_batch(sides.density), sides.peer.batch_value_and_gradient()
    for a, b in zip(ours(points), one_by_one(sides.ours, points[:3]), strict=True):
        np.testing.assert_allclose(a[:3], b, rtol=1e-6)
    on_device = jax.device_put(near(sides.peer_point, num_chains))
    times = _timed(lambda: ours(points), lambda: jax.block_until_ready(peer(on_device)), effort)
    return Row(f"gradient_batch_{num_chains}", *times, "NumPyro, vmap", "us", 5)


def _timed(ours: Callable[[], object], peer: Callable[[], object], effort: Effort) -> tuple[float, float]:
    """Return the microseconds of both."""
    a, b = interleaved([ours, peer], repeats=effort.repeats, least_seconds=effort.least_seconds)
    return 1e6 * a, 1e6 * b
