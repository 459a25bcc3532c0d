"""Training by regression on derivatives: how Hamiltonian neural networks are fitted by their authors.

No rollout, no initial states and no likelihood: the field at every measured state is compared with
the rates of change there. The authors simulate data whose derivatives are known exactly at noisy
states; from measurements they have to be estimated.

Reference: Greydanus, Dzamba, Yosinski, Hamiltonian neural networks, NeurIPS 2019, eq. (3), and the
public code of its authors for the settings (github.com/greydanus/hamiltonian-nn, `experiment-*/train.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from vinppl._checks import require
from vinppl.baselines import AbstractField
from vinppl.draws import Draws, latent_sites, prototype, seeded
from vinppl.estimates import local_states
from vinppl.fit.starts import starting_values
from vinppl.pretraining import descend

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["DerivativeFit", "fit_derivatives"]

Derivatives = tuple[Tensor, Tensor]
"""Rates of change of positions and of velocities, each `(trajectory, time, dim)`."""


@dataclass
class DerivativeFit:
    """A model whose field was regressed on derivatives.

    Attributes:
        model: the Pyro model, with its learned parameters.
        data: what it was fitted to.
        losses: mean squared error of the derivatives before every step, in their units squared.
        seconds: wall time.
        values: latent sites of the model, none of which this training infers: rough estimates from
            `data` (the noise is the scatter around smooth motion), prior medians of what remains.
        parameters: learned parameters by name, as `forecast` and `predict` take them.
    """

    model: Any
    data: Trajectories
    losses: list[float]
    seconds: float
    values: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(repr=False, default_factory=dict)

    def sample(self, num_draws: int, *, data: Trajectories | None = None) -> Draws:
        """Return the point estimates `num_draws` times, so that only the noise differs between forecasts.

        Args:
            num_draws: number of draws.
            data: other trajectories, whose initial states are estimated instead.

        Returns:
            Latent sites, each of shape `(num_draws, *site)`.
        """
        values = self.values
        if data is not None:
            own = starting_values(self.model, data)
            values = values | {name: own[name] for name in own if name.startswith("initial_")}
        return {name: value.expand(num_draws, *value.shape) for name, value in values.items()}


def fit_derivatives(
    model: Any,
    data: Trajectories,
    *,
    derivatives: Derivatives | None = None,
    num_steps: int = 2000,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
) -> DerivativeFit:
    """Fit the field of a model to rates of change by full-batch Adam.

    The defaults are those of the authors' code for simulated systems (it decays weights by 1e-5 on a
    real pendulum). Nothing is random but the initial weights, which the model's configuration seeds.

    Args:
        model: `HamiltonianStates`, or `FreeDynamics` with a field (`residual` or `ode`), or another model
            with one `vinppl.baselines.AbstractField` of point estimates; changed in place.
        data: the measurements; where positions and velocities of all coordinates are observed they
            are the states that the field is compared at.
        derivatives: observed dq/dt and dv/dt at the samples. `None` estimates states and derivatives
            together, from cubics through neighbouring samples (`vinppl.estimates.local_states`).
        num_steps: Adam steps.
        learning_rate: of Adam, constant.
        weight_decay: of Adam: coefficient of half the squared weights in the loss.

    Raises:
        ValueError: if the model has no field of point estimates, or there is no state to compare at.
    """
    began = time.monotonic()
    dynamics = _find_field(model)
    q, v, dq, dv = _estimated(data) if derivatives is None else _observed(data, derivatives)
    require(
        q.shape[0] > 0,
        "fit_derivatives needs samples whose positions and velocities are all observed"
        if derivatives is not None
        else "fit_derivatives needs records of at least four samples to estimate derivatives from",
        "none",
    )
    target = torch.cat([dq, dv], dim=-1)

    def misfit() -> Tensor:
        return (torch.cat(dynamics.bind()(q, v), dim=-1) - target).square().mean()

    parameters = [p for p in dynamics.parameters() if p.requires_grad]
    require(
        len(parameters) > 0,
        "the weights of the field must be point estimates",
        "latent or frozen weights",
        "Build the model with weight_prior_scale=None.",
    )
    losses = descend(
        parameters,
        misfit,
        num_steps=num_steps,
        learning_rate=learning_rate,
        final_share=1.0,
        weight_decay=weight_decay,
    )
    values, learned = _sites(model, data)
    return DerivativeFit(model, data, losses, time.monotonic() - began, values, learned)


def _find_field(model: Any) -> AbstractField:
    found = [m for m in model.modules() if isinstance(m, AbstractField)]
    require(
        len(found) == 1,
        "fit_derivatives needs a model with one law in continuous time",
        f"{type(model).__name__} with {len(found)}",
        "Use HamiltonianStates, or FreeDynamics with dynamics='residual' or 'ode'.",
    )
    return found[0]


def _estimated(data: Trajectories) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return states and their rates of change along the record, each `(count, dim)`."""
    states = local_states(data)
    return states.q, states.v, states.v, states.a


def _observed(data: Trajectories, derivatives: Derivatives) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the measured states and the rates of change given for them, each `(count, dim)`."""
    shape = (data.num_trajectories, data.num_times, data.dim)
    for name, value in zip(("dq/dt", "dv/dt"), derivatives, strict=True):
        require(tuple(value.shape) == shape, f"{name} must have shape {shape}", value)
    seen = torch.isfinite(torch.cat(derivatives, dim=-1)).all(-1)
    states = [torch.full(shape, torch.nan, dtype=data.values.dtype, device=data.values.device) for _ in "qv"]
    for i, channel in enumerate(data.channels):
        into = states[0 if channel.quantity == "position" else 1]
        into[..., channel.coordinate] = torch.where(data.mask[..., i], data.values[..., i], torch.nan)
    seen = seen & torch.isfinite(torch.cat(states, dim=-1)).all(-1)
    q, v, dq, dv = (x[seen].to(data.values.dtype) for x in (*states, *derivatives))
    return q, v, dq, dv


def _sites(model: Any, data: Trajectories) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return values of the latent sites and the learned parameters."""
    trace = prototype(model, data)
    own = starting_values(model, data)
    median = init_to_median(num_samples=1000)
    with seeded(0):
        values = {
            name: own[name] if name in own else median(trace.nodes[name]) for name in latent_sites(trace)
        }
    store = pyro.get_param_store()
    with seeded(0), store.scope(), torch.no_grad():
        poutine.block(poutine.trace(model).get_trace)(data)
        learned = {name: value.detach().clone() for name, value in store.named_parameters()}
    return {name: value.detach() for name, value in values.items()}, learned
