"""Scalar neural networks with a closed-form input gradient.

The force of a neural potential is the gradient of a network. Written out layer
by layer it needs no second differentiation through autograd, which is what
makes training a rollout of such forces affordable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pyro.distributions import Normal
from torch import Tensor

from vinppl._checks import require
from vinppl.parameters import Component, Learned

__all__ = ["ACTIVATIONS", "Activation", "BoundNetwork", "ScalarMLP"]


class Activation(NamedTuple):
    """A smooth activation function and its derivative, both elementwise."""

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def _tanh_derivative(x: Tensor) -> Tensor:
    return 1 - x.tanh().square()


def _silu_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(torch.tanh, _tanh_derivative),
    "sin": Activation(torch.sin, torch.cos),
    "softplus": Activation(torch.nn.functional.softplus, torch.sigmoid),
    "silu": Activation(torch.nn.functional.silu, _silu_derivative),
}
"""Activations by name. Any other smooth one can be passed as an `Activation`."""


class BoundNetwork(NamedTuple):
    """A scalar network with its weights read.

    Attributes:
        value: `(*batch, num_inputs) -> (*batch,)`.
        gradient: its derivative, `(*batch, num_inputs) -> (*batch, num_inputs)`.
        weights: of the layers, each `(out, in)`, the last of shape `(1, in)`.
        biases: of the hidden layers, each `(out,)`.
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


class ScalarMLP(Component):
    """A network from `num_inputs` features to one number, with its input gradient.

    The output layer is linear without bias (the paper's potential, section 4:
    one hidden layer of tanh units): a constant does not change a force.

    Args:
        num_inputs: number of input features.
        hidden_sizes: widths of the hidden layers.
        activation: a name from `ACTIVATIONS` or an `Activation`.
        weight_prior_scale: `None` for weights that are optimised; otherwise every
            weight and bias gets a normal prior with this standard deviation, divided
            by the square root of the fan-in for weights.
        generator: random generator of the initial weights.

    Sites:
        `weight_0, bias_0, ..., weight_L` in the order of the layers.

    Raises:
        ValueError: for an unknown activation, no hidden layer, or a width below 1.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_sizes: Sequence[int] = (1000,),
        *,
        activation: str | Activation = "tanh",
        weight_prior_scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(len(hidden_sizes) >= 1, "hidden_sizes must name at least one hidden layer", hidden_sizes)
        require(min(hidden_sizes) >= 1, "every width in hidden_sizes must be at least 1", hidden_sizes)
        if isinstance(activation, str):
            require(
                activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}", activation
            )
        self.activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation
        self.activation_name = activation if isinstance(activation, str) else None
        self.num_inputs = num_inputs
        self.num_layers = len(hidden_sizes) + 1
        sizes = [num_inputs, *hidden_sizes, 1]
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(fan_in)
            self._declare(f"weight_{layer}", (fan_out, fan_in), bound, weight_prior_scale, bound, generator)
            if layer < self.num_layers - 1:
                self._declare(f"bias_{layer}", (fan_out,), bound, weight_prior_scale, 1.0, generator)

    def _declare(
        self,
        name: str,
        shape: tuple[int, ...],
        bound: float,
        prior_scale: float | None,
        prior_factor: float,
        generator: torch.Generator | None,
    ) -> None:
        if prior_scale is None:
            uniform = torch.rand(shape, generator=generator, dtype=torch.get_default_dtype())
            self.declare(name, Learned(bound * (2 * uniform - 1)), shape=shape)
        else:
            self.declare(name, Normal(torch.zeros(()), torch.tensor(prior_scale * prior_factor)), shape=shape)

    def bind(self) -> BoundNetwork:
        """Read every weight once and return the functions of them."""
        weights = tuple(getattr(self, f"weight_{i}") for i in range(self.num_layers))
        biases = tuple(getattr(self, f"bias_{i}") for i in range(self.num_layers - 1))
        act = self.activation

        def hidden(x: Tensor) -> list[Tensor]:
            pre = []  # pre-activations of the hidden layers, (*batch, width)
            for weight, bias in zip(weights[:-1], biases, strict=True):
                pre.append(_affine(x, weight, bias))
                x = act.value(pre[-1])
            return pre

        def value(x: Tensor) -> Tensor:
            return _affine(act.value(hidden(x)[-1]), weights[-1], None).squeeze(-1)

        def gradient(x: Tensor) -> Tensor:
            pre = hidden(x)
            back = weights[-1].squeeze(-2)  # derivative with respect to the last activations
            for weight, z in zip(reversed(weights[:-1]), reversed(pre), strict=True):
                back = _affine(act.derivative(z) * back, weight.transpose(-1, -2), None)
            return back

        return BoundNetwork(value, gradient, weights, biases)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `weight @ x + bias`, where the weights may carry leading particle dimensions.

    Args:
        x: shape `(*batch, in)`.
        weight: shape `(out, in)`, or `(*particles, 1, out, in)` when it was drawn
            outside the trajectory plate: the singleton lines up with that plate.
        bias: shape `(out,)` or `(*particles, 1, out)`.
    """
    if weight.ndim == 2:
        return torch.nn.functional.linear(x, weight, bias)
    if weight.shape[-3] == 1 and x.ndim == weight.ndim - 1:
        out = x @ weight.squeeze(-3).transpose(-1, -2)
    else:
        out = torch.matmul(weight, x.unsqueeze(-1)).squeeze(-1)
    return out if bias is None else out + bias
