"""The four problems as one writes them in NumPyro: the same priors, `lax.scan` for the loop over time.

Every function takes the measurements `values (trajectory, time, channel)` and their spacing `h`, and
returns a model without arguments. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import HalfNormal, LogNormal, Normal

# A kernel begins with a draw from the prior, where a softening spring may run away; checks also cost time.
numpyro.enable_validation(False)

Model = Callable[[], None]


def pendulum(values: Array, h: float) -> Model:
    """Return the damped pendulum of unit inertia."""
    rms = _rms(values)

    def model() -> None:
        k = numpyro.sample("potential.gravity_over_length", LogNormal(math.log(3.0), 1.5))
        c = numpyro.sample("damping.coefficient", LogNormal(math.log(0.03), 1.5))
        sigma = numpyro.sample("noise_scale", LogNormal(jnp.log(0.1 * rms), 1.5).to_event(1))
        q0, v0 = _initial_state(values.shape[0], 2 * rms[:1], 2 * rms[1:])
        q, v = _verlet(lambda q: -k * jnp.sin(q), q0, v0, c, h, values.shape[1])
        loc = jnp.concatenate([q, v], -1)
        numpyro.sample("obs", Normal(loc, sigma).to_event(3), obs=values)

    return model


def hierarchical(values: Array, h: float) -> Model:
    """Return the pendulum with a noise of its own in every trial."""
    rms = _rms(values)
    num_trials = values.shape[0]

    def model() -> None:
        population = numpyro.sample("noise_population", LogNormal(jnp.log(0.1 * rms), 1.5).to_event(1))
        spread = numpyro.sample("noise_spread", HalfNormal(0.5))
        k = numpyro.sample("potential.gravity_over_length", LogNormal(math.log(3.0), 1.5))
        c = numpyro.sample("damping.coefficient", LogNormal(math.log(0.03), 1.5))
        q0, v0 = _initial_state(num_trials, 2 * rms[:1], 2 * rms[1:])
        with numpyro.plate("trajectory", num_trials):
            deviation = numpyro.sample("noise_deviation", Normal(jnp.zeros(2), 1.0).to_event(1))
        sigma = population * jnp.exp(spread * deviation)
        q, v = _verlet(lambda q: -k * jnp.sin(q), q0, v0, c, h, values.shape[1])
        loc = jnp.concatenate([q, v], -1)
        numpyro.sample("obs", Normal(loc, sigma[:, None]).to_event(3), obs=values)

    return model


def duffing(values: Array, h: float, drive: Array) -> Model:
    """Return the driven Duffing oscillator of unit mass."""
    rms = _rms(values)
    frequency = rms[1] / rms[0]
    u_rms = jnp.sqrt((drive**2).mean())

    def model() -> None:
        a = numpyro.sample("potential.stiffness", Normal(0.0, 10 * frequency**2))
        b = numpyro.sample("potential.cubic", Normal(0.0, 10 * frequency**2 / rms[0] ** 2))
        c = numpyro.sample("damping.coefficient", LogNormal(jnp.log(0.1 * frequency), 1.5))
        gain = numpyro.sample("drive.gain", Normal(0.0, 10 * frequency * rms[1] / u_rms))
        sigma = numpyro.sample("noise_scale", LogNormal(jnp.log(0.1 * rms), 1.5).to_event(1))
        q0, v0 = _initial_state(values.shape[0], 2 * rms[:1], 2 * rms[1:])
        pushes = gain * jnp.swapaxes(drive, 0, 1)
        q, v = _verlet(lambda q: -q * (a + b * q * q), q0, v0, c, h, values.shape[1], pushes)
        loc = jnp.concatenate([q, v], -1)
        numpyro.sample("obs", Normal(loc, sigma).to_event(3), obs=values)

    return model


def chain(values: Array, h: float) -> Model:
    """Return the masses between two walls, positions measured."""
    dim = values.shape[-1]

    def model() -> None:
        k = numpyro.sample("potential.stiffness", LogNormal(jnp.zeros(dim + 1), 0.5).to_event(1))
        c = numpyro.sample("damping.coefficient", LogNormal(-3.0, 1.0))
        sigma = numpyro.sample("noise_scale", LogNormal(-2.0, 1.0))
        q0, v0 = _initial_state(values.shape[0], jnp.ones(dim), jnp.ones(dim))

        def force(q: Array) -> Array:
            return jnp.diff(k * jnp.diff(jnp.pad(q, ((0, 0), (1, 1)))))

        q, _ = _verlet(force, q0, v0, c, h, values.shape[1])
        numpyro.sample("obs", Normal(q, sigma).to_event(3), obs=values)

    return model


MODELS: dict[str, Callable[..., Model]] = {
    "pendulum": pendulum,
    "duffing": duffing,
    "hierarchical": hierarchical,
    "chain": chain,
}


def _rms(values: Array) -> Array:
    return jnp.sqrt((values**2).mean((0, 1)))


def _initial_state(num_trajectories: int, q_scale: Array, v_scale: Array) -> tuple[Array, Array]:
    """Sample the states at the first time, each `(trajectory, dim)`."""
    with numpyro.plate("trajectory", num_trajectories):
        q0 = numpyro.sample("initial_position", Normal(jnp.zeros_like(q_scale), q_scale).to_event(1))
        v0 = numpyro.sample("initial_velocity", Normal(jnp.zeros_like(v_scale), v_scale).to_event(1))
    return q0, v0


def _verlet(
    force: Callable[[Array], Array],
    q0: Array,
    v0: Array,
    c: Array,
    h: float,
    num_times: int,
    pushes: Array | None = None,
) -> tuple[Array, Array]:
    """Return the path of velocity Verlet with damping, each `(trajectory, time, dim)`.

    Args:
        force: of the potential, for unit mass.
        q0: positions at the first time, `(trajectory, dim)`.
        v0: velocities there.
        c: damping coefficient.
        h: step size.
        num_times: samples, the first included.
        pushes: known accelerations, `(time, trajectory, dim)`.
    """
    half = 0.5 * h
    State = tuple[Array, Array, Array]

    def step(state: State, push: Array | None) -> tuple[State, tuple[Array, Array]]:
        q, v, a = state
        u = (v + half * a) / (1 + half * c)
        q = q + h * u
        a = force(q) if push is None else force(q) + push
        v = u + half * (a - c * u)
        return (q, v, a), (q, v)

    first = force(q0) if pushes is None else force(q0) + pushes[0]
    rest = None if pushes is None else pushes[1:]
    _, (q, v) = jax.lax.scan(step, (q0, v0, first), rest, length=num_times - 1)
    q, v = jnp.concatenate([q0[None], q]), jnp.concatenate([v0[None], v])
    return jnp.swapaxes(q, 0, 1), jnp.swapaxes(v, 0, 1)
