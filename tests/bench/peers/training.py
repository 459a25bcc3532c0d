"""One training step of a neural potential: rollouts of many windows and the gradient of all they depend on.

    V(q) = w2 . tanh(w1 q + b1),  windows x steps of velocity Verlet,  loss = mean square of (q, v) - targets

The same step by vinppl, by torch operations with the force from autograd, and by JAX. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from vinppl.dynamics import VIN
from vinppl.potentials import NeuralPotential
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

Array = NDArray[np.float32]
STEP_SIZE = 0.1
Step = Callable[[], tuple[float, list[Array]]]
"""Returns the loss and its gradients by w1, b1, w2, initial positions and initial velocities."""


class Task(NamedTuple):
    """Weights, initial states and targets.

    Attributes:
        weights: w1 `(units, 1)`, b1 `(units,)` and w2 `(1, units)`.
        q: initial positions, `(windows, 1)`.
        v: initial velocities, same shape.
        q_target: positions to reach, `(windows, time, 1)`.
        v_target: velocities, same shape.
    """

    weights: tuple[Array, Array, Array]
    q: Array
    v: Array
    q_target: Array
    v_target: Array


def make_task(num_units: int = 1000, num_windows: int = 200, num_steps: int = 20) -> Task:
    """Return a random task."""
    stream = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return stream.standard_normal(shape).astype(np.float32)

    weights = (normal(num_units, 1), normal(num_units), normal(1, num_units) / np.float32(num_units**0.5))
    states = normal(2, num_windows, 1)
    targets = normal(2, num_windows, num_steps + 1, 1)
    return Task(weights, *states, *targets)


def vinppl_step(task: Task) -> Step:
    """Return the step of a `VIN` with a `NeuralPotential`."""
    units, num_times = task.weights[1].size, task.q_target.shape[1]
    vin = VIN(NeuralPotential(1, hidden_sizes=(units,), activation="tanh"), integrator="velocity_verlet")
    vin.to(torch.float32)
    pyro.clear_param_store()  # it would hand this network the weights of one built before
    network = vin.potential.network
    with torch.no_grad():
        for name, value in zip(("weight_0", "bias_0", "weight_1"), task.weights, strict=True):
            getattr(network, name).copy_(torch.from_numpy(value))
    learned = [getattr(network, name) for name in ("weight_0", "bias_0", "weight_1")]
    q, v, q_target, v_target = _tensors(task)
    grid = TimeGrid.regular(num_times, STEP_SIZE, dtype=torch.float32)

    def step() -> tuple[float, list[Array]]:
        path = vin(PhaseState(q, v), grid)
        return _differentiated(path.q, path.v, q_target, v_target, [*learned, q, v])

    return step


def torch_step(task: Task) -> Step:
    """Return the step in plain torch, the network written out and its gradient from autograd."""
    w1, b1, w2 = (torch.from_numpy(w.copy()).requires_grad_(True) for w in task.weights)
    q0, v0, q_target, v_target = _tensors(task)
    num_times = task.q_target.shape[1]

    def force(q: Tensor) -> Tensor:
        hidden = torch.nn.functional.linear(q, w1, b1).tanh()
        energy = torch.nn.functional.linear(hidden, w2)
        return -torch.autograd.grad(energy.sum(), q, create_graph=True)[0]

    def step() -> tuple[float, list[Array]]:
        q, v, a = q0, v0, force(q0)
        positions, velocities = [q], [v]
        for _ in range(num_times - 1):
            u = v + 0.5 * STEP_SIZE * a
            q = q + STEP_SIZE * u
            a = force(q)
            v = u + 0.5 * STEP_SIZE * a
            positions.append(q)
            velocities.append(v)
        path = torch.stack(positions, 1), torch.stack(velocities, 1)
        return _differentiated(*path, q_target, v_target, [w1, b1, w2, q0, v0])

    return step


def jax_step(task: Task) -> Step:
    """Return the jitted step in JAX, the force from `jax.grad` of the potential."""
    import jax
    import jax.numpy as jnp

    num_times = task.q_target.shape[1]
    leaves = tuple(jnp.asarray(x) for x in (*task.weights, task.q, task.v))
    q_target, v_target = jnp.asarray(task.q_target), jnp.asarray(task.v_target)

    def loss(leaves: tuple[jax.Array, ...]) -> jax.Array:
        w1, b1, w2, q0, v0 = leaves

        def potential(q: jax.Array) -> jax.Array:
            return (w2 @ jnp.tanh(w1 @ q + b1))[0]

        gradient = jax.vmap(jax.grad(potential))

        def advance(state: Any, _: None) -> tuple[Any, Any]:
            q, v, a = state
            u = v + 0.5 * STEP_SIZE * a
            q = q + STEP_SIZE * u
            a = -gradient(q)
            v = u + 0.5 * STEP_SIZE * a
            return (q, v, a), (q, v)

        _, (q, v) = jax.lax.scan(advance, (q0, v0, -gradient(q0)), None, length=num_times - 1)
        q, v = (jnp.swapaxes(jnp.concatenate([x0[None], x]), 0, 1) for x0, x in ((q0, q), (v0, v)))
        return ((q - q_target) ** 2).mean() + ((v - v_target) ** 2).mean()

    compiled = jax.jit(jax.value_and_grad(loss))

    def step() -> tuple[float, list[Array]]:
        value, gradients = jax.block_until_ready(compiled(leaves))
        return float(value), [np.asarray(g) for g in gradients]

    return step


STEPS: dict[str, Callable[[Task], Step]] = {"vinppl": vinppl_step, "torch": torch_step, "jax": jax_step}


def _tensors(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return initial states, as leaves, and targets."""
    q, v = (torch.from_numpy(x.copy()).requires_grad_(True) for x in (task.q, task.v))
    return q, v, torch.from_numpy(task.q_target), torch.from_numpy(task.v_target)


def _differentiated(
    q: Tensor, v: Tensor, q_target: Tensor, v_target: Tensor, leaves: list[Tensor]
) -> tuple[float, list[Array]]:
    loss = (q - q_target).square().mean() + (v - v_target).square().mean()
    gradients = torch.autograd.grad(loss, leaves)
    return loss.item(), [g.numpy() for g in gradients]
