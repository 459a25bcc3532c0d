"""The pendulum in plain Pyro: sample sites, a Python loop over torch operations, autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyro
import torch
from pyro.distributions import LogNormal, Normal
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor


def pendulum(values: Tensor, h: float) -> None:
    """Run the generative program; `values` has shape `(1, time, 2)`."""
    rms = values.square().mean((0, 1)).sqrt()
    q = pyro.sample("initial_position", Normal(0.0, 2 * rms[:1]).to_event(1))
    v = pyro.sample("initial_velocity", Normal(0.0, 2 * rms[1:]).to_event(1))
    k = pyro.sample("potential.gravity_over_length", LogNormal(math.log(3.0) * rms.new_ones(()), 1.5))
    c = pyro.sample("damping.coefficient", LogNormal(math.log(0.03) * rms.new_ones(()), 1.5))
    sigma = pyro.sample("noise_scale", LogNormal((0.1 * rms).log(), 1.5).to_event(1))
    path = [torch.cat([q, v])]
    a = -k * q.sin()
    for _ in range(values.shape[1] - 1):
        u = (v + 0.5 * h * a) / (1 + 0.5 * h * c)
        q = q + h * u
        a = -k * q.sin()
        v = u + 0.5 * h * (a - c * u)
        path.append(torch.cat([q, v]))
    pyro.sample("obs", Normal(torch.stack(path), sigma).to_event(2), obs=values[0])


def value_and_gradient(
    values: Tensor, h: float, names: Sequence[str]
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return the log density and gradient as Pyro's NUTS evaluates them, `(size,) -> (), (size,)`.

    Args:
        values: the measurements, `(1, time, 2)`.
        h: their spacing.
        names: latent sites in the order of the vector.
    """
    sites, potential, _, _ = initialize_model(pendulum, (values, h))
    shapes = [sites[name].shape for name in names]

    def function(u: np.ndarray) -> tuple[float, np.ndarray]:
        parts = torch.from_numpy(u).split([shape.numel() for shape in shapes])
        z = {name: part.reshape(s) for name, part, s in zip(names, parts, shapes, strict=True)}
        with pyro.validation_enabled(False):
            gradients, energy = potential_grad(potential, z)
        return -float(energy), -torch.cat([gradients[name].reshape(-1) for name in names]).numpy()

    return function
