"""Neural networks: of several outputs, and scalar ones with a closed-form input gradient.

The force of a neural potential is the gradient of a network. Written out layer
by layer it needs no second differentiation through autograd, which is what
makes training a rollout of such forces affordable.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import Normal
from torch import Tensor

from vinppl._checks import require
from vinppl.distributions import SphericalStudentT
from vinppl.parameters import Component, Learned

__all__ = ["ACTIVATIONS", "MLP", "AbstractMLP", "Activation", "BoundNetwork", "RandomFeatures", "ScalarMLP"]


class Activation(NamedTuple):
    """A smooth activation function and its derivative, both elementwise.

    Attributes:
        value: the function.
        derivative: its derivative.
        derivative_of_value: the derivative as a function of the value, where that is the cheaper way.
    """

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    derivative_of_value: Callable[[Tensor], Tensor] | None = None

    def with_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and derivative at `x`."""
        value = self.value(x)
        cheap = self.derivative_of_value
        return value, self.derivative(x) if cheap is None else cheap(value)


def _tanh_derivative_of_value(y: Tensor) -> Tensor:
    return 1 - y.square()


def _tanh_derivative(x: Tensor) -> Tensor:
    return _tanh_derivative_of_value(x.tanh())


def _silu_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(torch.tanh, _tanh_derivative, _tanh_derivative_of_value),
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


class AbstractMLP(Component):
    """The layers of a network with smooth hidden units and a linear output.

    Args:
        num_inputs: number of input features.
        num_outputs: number of outputs.
        hidden_sizes: widths of the hidden layers.
        output_bias: whether the output layer has a bias.
        activation: a name from `ACTIVATIONS` or an `Activation`.
        weight_prior_scale: `None` for weights that are optimised; otherwise every
            weight and bias gets a normal prior with this standard deviation, divided
            by the square root of the fan-in for weights.
        generator: random generator of the initial weights.

    Sites:
        `weight_0, bias_0, ..., weight_L` (and `bias_L`) in the order of the layers.

    Raises:
        ValueError: for an unknown activation, no hidden layer, or a width below 1.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden_sizes: Sequence[int] = (1000,),
        *,
        output_bias: bool = True,
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
        self.num_biases = self.num_layers if output_bias else self.num_layers - 1
        sizes = [num_inputs, *hidden_sizes, num_outputs]
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(fan_in)
            self._declare(f"weight_{layer}", (fan_out, fan_in), bound, weight_prior_scale, bound, generator)
            if layer < self.num_biases:
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

    @abc.abstractmethod
    def bind(self, input_scale: Tensor | None = None, output_scale: Tensor | None = None) -> Any:
        """Read every weight once and return the function or functions of them."""

    def read(
        self, input_scale: Tensor | None = None, output_scale: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Read every weight and bias once, for a network of scaled inputs and outputs.

        The scales are multiplied into the first and last layers, so that they cost nothing in a rollout.

        Args:
            input_scale: factors of the inputs, shape `(num_inputs,)`.
            output_scale: factors of the outputs, shape `(num_outputs,)`.
        """
        weights = [getattr(self, f"weight_{i}") for i in range(self.num_layers)]
        biases = [getattr(self, f"bias_{i}") for i in range(self.num_biases)]
        if input_scale is not None:
            weights[0] = weights[0] * input_scale
        if output_scale is not None:
            weights[-1] = weights[-1] * output_scale.unsqueeze(-1)
            if self.num_biases == self.num_layers:
                biases[-1] = biases[-1] * output_scale
        return tuple(weights), tuple(biases)


class MLP(AbstractMLP):
    """A network from `num_inputs` features to `num_outputs` numbers; the arguments are those of its base."""

    def bind(
        self, input_scale: Tensor | None = None, output_scale: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Read every weight once and return the function, `(*batch, num_inputs) -> (*batch, num_outputs)`.

        Args:
            input_scale: factors of the inputs, shape `(num_inputs,)`.
            output_scale: factors of the outputs, shape `(num_outputs,)`.
        """
        weights, read = self.read(input_scale, output_scale)
        biases = (*read, *[None] * (self.num_layers - self.num_biases))
        function = self.activation.value
        if self.activation_name == "tanh":
            function, weights, biases = torch.sigmoid, *_logistic_layers(weights, biases)

        def network(x: Tensor) -> Tensor:
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                x = function(_affine(x, weight, bias))
            return _affine(x, weights[-1], biases[-1])

        return network


class ScalarMLP(AbstractMLP):
    """A network from `num_inputs` features to one number, with its input gradient.

    The output layer is linear without bias (the paper's potential, section 4:
    one hidden layer of tanh units): a constant does not change a force. The other
    arguments are those of its base.
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
        super().__init__(
            num_inputs,
            1,
            hidden_sizes,
            output_bias=False,
            activation=activation,
            weight_prior_scale=weight_prior_scale,
            generator=generator,
        )

    def bind(self, input_scale: Tensor | None = None, output_scale: Tensor | None = None) -> BoundNetwork:
        """Read every weight once and return the functions of them.

        Args:
            input_scale: factors of the inputs, shape `(num_inputs,)`.
            output_scale: factor of the output, shape `(1,)`.
        """
        return _scalar_network(*self.read(input_scale, output_scale), self.activation)


AMPLITUDE_DEGREES = 2.0
"""Degrees of freedom of the prior on output weights: their common size is known to a factor of two or so."""


class RandomFeatures(Component):
    """One hidden layer of sine units that stays as it was drawn, and a prior on the output weights.

    f(x) = sum_k w_k sin(a_k x + b_k) with a_k ~ Normal(0, 1 / length_scale^2) and b_k uniform: random
    Fourier features of a Gaussian process with a squared-exponential kernel, whose amplitude is left to
    the data by a heavy-tailed prior on the size of w. On the features of a circle, (sin q, cos q), it is
    the periodic kernel. It is linear in its latent weights, whose posterior samplers find easy.

    Args:
        num_inputs: number of input features.
        num_units: K, the number of units.
        length_scale: distance, in units of the inputs, over which the function varies.
        amplitude: typical size of the function a priori, within a factor of two or so; the scale of w is
            `amplitude * sqrt(2 / num_units)`.
        generator: random generator of the hidden layer.

    Sites:
        `output`, the weights w, shape `(num_units,)`.

    Raises:
        ValueError: for a number below 1 or a scale that is not positive.

    References:
        Rahimi, Recht: Random features for large-scale kernel machines. NeurIPS 2007.
    """

    weight_0: Tensor
    bias_0: Tensor

    def __init__(
        self,
        num_inputs: int,
        num_units: int = 32,
        *,
        length_scale: float = 1.5,
        amplitude: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(num_inputs >= 1, "num_inputs must be at least 1", num_inputs)
        require(num_units >= 1, "num_units must be at least 1", num_units)
        require(length_scale > 0, "length_scale must be positive", length_scale)
        require(amplitude > 0, "amplitude must be positive", amplitude)
        self.activation_name = "sin"
        self.num_inputs = num_inputs
        frequencies = torch.randn(num_units, num_inputs, generator=generator, dtype=torch.float64)
        phases = torch.rand(num_units, generator=generator, dtype=torch.float64)
        default = torch.get_default_dtype()
        self.register_buffer("weight_0", (frequencies / length_scale).to(default))
        self.register_buffer("bias_0", (2 * math.pi * phases).to(default))
        self.prior_scale = amplitude * math.sqrt(2 / num_units)
        self.declare(
            "output", SphericalStudentT(AMPLITUDE_DEGREES, self.prior_scale, num_units), shape=(num_units,)
        )

    def bind(self) -> BoundNetwork:
        """Read the weights once and return the functions of them."""
        weights = (self.weight_0, self.output.unsqueeze(-2))
        return _scalar_network(weights, (self.bias_0,), ACTIVATIONS["sin"])


def _scalar_network(weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], act: Activation) -> BoundNetwork:
    """Return value and input gradient of a network of one output without bias."""

    def value(x: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases, strict=True):
            x = act.value(_affine(x, weight, bias))
        return _affine(x, weights[-1], None).squeeze(-1)

    def gradient(x: Tensor) -> Tensor:
        slopes = []  # of the hidden units, (*batch, width)
        for weight, bias in zip(weights[:-1], biases, strict=True):
            x, slope = act.with_derivative(_affine(x, weight, bias))
            slopes.append(slope)
        back = weights[-1].squeeze(-2)  # derivative with respect to the last activations
        for weight, slope in zip(reversed(weights[:-1]), reversed(slopes), strict=True):
            back = _affine(slope * back, weight.transpose(-1, -2), None)
        return back

    return BoundNetwork(value, gradient, weights, biases)


def _logistic_layers(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Return the layers of logistic units that compute what these of tanh units do.

    tanh z = 2 logistic(2 z) - 1, where the factors and the constant go into the layers before and
    after. The logistic function takes half the time of tanh, which is most of that of a wide network.
    """
    layers = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if index > 0:
            constant = -weight.sum(-1)
            weight, bias = 2 * weight, constant if bias is None else bias + constant
        if index < len(weights) - 1 and bias is not None:
            weight, bias = 2 * weight, 2 * bias
        layers.append((weight, bias))
    return tuple(w for w, _ in layers), tuple(b for _, b in layers)


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
