"""Potential energies V(q): neural, parametric, or any torch function of the user's.

A potential is a component with sites (its parameters) and one method, `bind`,
that reads them once and returns pure functions of the position. The force is
always -dV/dq.

Units: V in units of energy; with unit mass, of energy per mass.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require
from vinppl.manifolds import Euclidean, Manifold
from vinppl.nn import Activation, RandomFeatures, ScalarMLP
from vinppl.parameters import Component, Spec, align

__all__ = [
    "AbstractPotential",
    "BoundPotential",
    "CoupledSprings",
    "DuffingPotential",
    "FlatPotential",
    "FunctionPotential",
    "Harmonic",
    "KeplerPotential",
    "NetworkGradient",
    "NeuralPotential",
    "PendulumPotential",
]


class BoundPotential(NamedTuple):
    """A potential with its parameters read.

    Attributes:
        value: V, `(*batch, dim) -> (*batch,)`.
        gradient: dV/dq, `(*batch, dim) -> (*batch, dim)`.
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]


class NetworkGradient(NamedTuple):
    """The closed-form gradient of a neural potential, E grad net(s phi(q)) pulled back to q.

    Attributes:
        function: computes it, `(*batch, dim) -> (*batch, dim)`.
        weights: of the layers, each `(out, in)`, the last of shape `(1, in)`.
        biases: of the hidden layers, each `(out,)`.
        activation: its name; `None` for one that has none.
        manifold: gives the features phi.
        feature_scale: s, one factor for each feature.
        energy_scale: E.
    """

    function: Callable[[Tensor], Tensor]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str | None
    manifold: Manifold
    feature_scale: tuple[float, ...]
    energy_scale: float

    def __call__(self, q: Tensor) -> Tensor:
        """Return dV/dq."""
        return self.function(q)


class AbstractPotential(Component):
    """A potential energy on a configuration manifold.

    Attributes:
        manifold: the configuration space; `manifold.dim` coordinates.
    """

    manifold: Manifold

    @abc.abstractmethod
    def bind(self) -> BoundPotential:
        """Read every parameter once (this is where Pyro sites are visited)."""


class FlatPotential(AbstractPotential):
    """V = 0: a body that only friction and known forces act on.

    Args:
        dim: number of coordinates.
    """

    def __init__(self, *, dim: int = 1) -> None:
        super().__init__()
        self.manifold = Euclidean(dim)

    def bind(self) -> BoundPotential:
        """There is nothing to read."""
        return BoundPotential(lambda q: (0.0 * q).sum(-1), torch.zeros_like)


class Harmonic(AbstractPotential):
    """V(q) = 1/2 sum_i k_i q_i^2, springs to the origin.

    Args:
        stiffness: k > 0, scalar or shape `(dim,)`; force per length.
        dim: number of coordinates.

    Sites:
        `stiffness`.
    """

    def __init__(self, stiffness: Spec = 1.0, *, dim: int = 1) -> None:
        super().__init__()
        self.manifold = Euclidean(dim)
        self.declare("stiffness", stiffness, support=constraints.positive, shape=(dim,) if dim > 1 else ())

    def bind(self) -> BoundPotential:
        """Read `stiffness`."""
        k = align(self.stiffness, event_dim=int(self.manifold.dim > 1))
        return BoundPotential(lambda q: 0.5 * (k * q * q).sum(-1), lambda q: k * q)


class PendulumPotential(AbstractPotential):
    """V(q) = -(g/l) cos(q - q0), a pendulum per unit of inertia m l^2.

    Args:
        gravity_over_length: g/l > 0, in 1/time^2.
        angle_offset: q0, the angle at rest, in radians.

    Sites:
        `gravity_over_length`, `angle_offset`.
    """

    def __init__(self, gravity_over_length: Spec = 9.82, *, angle_offset: Spec = 0.0) -> None:
        super().__init__()
        self.manifold = Manifold((True,))
        self._has_offset = not (isinstance(angle_offset, int | float) and angle_offset == 0)
        self.declare("gravity_over_length", gravity_over_length, support=constraints.positive)
        self.declare("angle_offset", angle_offset)

    def bind(self) -> BoundPotential:
        """Read `gravity_over_length` and, where it is not zero, `angle_offset`."""
        k = align(self.gravity_over_length)
        if not self._has_offset:
            return BoundPotential(lambda q: -(k * q.cos()).sum(-1), lambda q: k * q.sin())
        q0 = align(self.angle_offset)
        return BoundPotential(lambda q: -(k * (q - q0).cos()).sum(-1), lambda q: k * (q - q0).sin())


class DuffingPotential(AbstractPotential):
    """V(q) = 1/2 a q^2 + 1/4 b q^4, a spring that hardens (b > 0) or softens (b < 0).

    Args:
        stiffness: a, force per length; negative for a double well.
        cubic: b, force per length cubed.

    Sites:
        `stiffness`, `cubic`.
    """

    def __init__(self, stiffness: Spec = 1.0, cubic: Spec = 1.0) -> None:
        super().__init__()
        self.manifold = Euclidean(1)
        self.declare("stiffness", stiffness)
        self.declare("cubic", cubic)

    def bind(self) -> BoundPotential:
        """Read `stiffness` and `cubic`."""
        a, b = align(self.stiffness), align(self.cubic)

        def value(q: Tensor) -> Tensor:
            s = q * q
            return (s * (0.5 * a + 0.25 * b * s)).sum(-1)

        return BoundPotential(value, lambda q: q * (a + b * (q * q)))


class KeplerPotential(AbstractPotential):
    """V(q) = -mu / |q|, gravity of a fixed centre in `dim` dimensions.

    Args:
        attraction: mu > 0, energy times length (G M m for a body of mass m).
        dim: 2 or 3.

    Sites:
        `attraction`.
    """

    def __init__(self, attraction: Spec = 1.0, *, dim: int = 2) -> None:
        super().__init__()
        require(dim in (2, 3), "dim of a Kepler potential must be 2 or 3", dim)
        self.manifold = Euclidean(dim)
        self.declare("attraction", attraction, support=constraints.positive)

    def bind(self) -> BoundPotential:
        """Read `attraction`."""
        mu = self.attraction

        def gradient(q: Tensor) -> Tensor:
            square = (q * q).sum(-1, keepdim=True)
            return align(mu) * q / (square * square.sqrt())

        return BoundPotential(lambda q: -mu / (q * q).sum(-1).sqrt(), gradient)


class CoupledSprings(AbstractPotential):
    """A chain of masses between two walls: V = 1/2 sum_i k_i (q_i - q_{i-1})^2, i = 0 .. dim.

    Displacements are measured from rest; q_{-1} = q_dim = 0 are the walls.

    Args:
        stiffness: k > 0, scalar or shape `(dim + 1,)`; force per length. A zero
            last entry would leave that end free: pass `fixed_ends=False` instead.
        dim: number of masses.
        fixed_ends: whether the last mass is also tied to a wall.

    Sites:
        `stiffness`.
    """

    def __init__(self, stiffness: Spec = 1.0, *, dim: int = 2, fixed_ends: bool = True) -> None:
        super().__init__()
        self.manifold = Euclidean(dim)
        self.fixed_ends = fixed_ends
        self.declare("stiffness", stiffness, support=constraints.positive, shape=(dim + int(fixed_ends),))

    def bind(self) -> BoundPotential:
        """Read `stiffness`."""
        k = self.stiffness
        fixed_ends = self.fixed_ends
        pad = (1, 1) if fixed_ends else (1, 0)

        def stretch(q: Tensor) -> Tensor:
            return torch.nn.functional.pad(q, pad).diff(dim=-1)

        def gradient(q: Tensor) -> Tensor:
            tension = k * stretch(q)
            return (
                tension[..., : q.shape[-1]]
                - torch.nn.functional.pad(tension, (0, 1 - int(fixed_ends)))[..., 1:]
            )

        return BoundPotential(lambda q: 0.5 * (k * stretch(q).square()).sum(-1), gradient)


class NeuralPotential(AbstractPotential):
    """A neural network as potential, U_theta(q) of the paper (section 3), with closed-form force.

    On a periodic coordinate the network sees (sin q, cos q), so that the force is
    a smooth function on the circle.

    Args:
        manifold: configuration space, or a number of Euclidean coordinates.
        hidden_sizes: widths of the hidden layers; the paper's is one layer of 1000.
        activation: name or `Activation`; see `vinppl.nn`.
        weight_prior_scale: see `ScalarMLP`; `None` gives point estimates.
        network: another network of the manifold's features, such as `RandomFeatures`; the three arguments
            above and `generator` are then not used.
        input_scale: typical size of a Euclidean coordinate; inputs are divided by it.
        energy_scale: typical size of V; the network's output is multiplied by it.
        generator: random generator of the initial weights.

    Sites:
        `network.weight_0`, ... (parameters, or latent with a weight prior), or those of `network`.
    """

    def __init__(
        self,
        manifold: Manifold | int = 1,
        *,
        hidden_sizes: Sequence[int] = (1000,),
        activation: str | Activation = "tanh",
        weight_prior_scale: float | None = None,
        network: ScalarMLP | RandomFeatures | None = None,
        input_scale: float = 1.0,
        energy_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
        require(input_scale > 0, "input_scale must be positive", input_scale)
        require(energy_scale > 0, "energy_scale must be positive", energy_scale)
        self.energy_scale = float(energy_scale)
        self.input_scale = 1.0 if all(self.manifold.periodic) else float(input_scale)
        if network is None:
            network = ScalarMLP(
                self.manifold.num_features,
                hidden_sizes,
                activation=activation,
                weight_prior_scale=weight_prior_scale,
                generator=generator,
            )
        require(
            network.num_inputs == self.manifold.num_features,
            f"network must take the {self.manifold.num_features} features of the manifold",
            f"one of {network.num_inputs} inputs",
        )
        self.network = network

    def feature_gradients(self, q: Tensor) -> Tensor:
        """Return dV/dq of every random feature alone, `(count, dim) -> (num_units, count, dim)`.

        Their sum, each times its output weight, is the gradient that `bind` gives.

        Raises:
            ValueError: if the network is not one of `RandomFeatures`.
        """
        network = self.network
        require(
            isinstance(network, RandomFeatures), "the network must be RandomFeatures", type(network).__name__
        )
        scale = self._feature_scale()
        x = scale * self.manifold.features(q)
        slopes = (x @ network.weight_0.mT + network.bias_0).cos()  # (count, num_units)
        on_features = self.energy_scale * scale * slopes.mT.unsqueeze(-1) * network.weight_0.unsqueeze(1)
        return self.manifold.pull_back(q.expand(*on_features.shape[:-1], self.manifold.dim), on_features)

    def _feature_scale(self) -> Tensor:
        return torch.tensor(self._factors(), dtype=self.dtype, device=self._reference.device)

    def _factors(self) -> tuple[float, ...]:
        manifold = self.manifold
        num_lines = manifold.dim - sum(manifold.periodic)
        return (1 / self.input_scale,) * num_lines + (1.0,) * (manifold.num_features - num_lines)

    def bind(self) -> BoundPotential:
        """Read every weight of the network."""
        network = self.network.bind()
        manifold, energy = self.manifold, self.energy_scale
        scale = self._feature_scale()
        slope_scale = energy * scale

        def network_value(q: Tensor) -> Tensor:
            return energy * network.value(scale * manifold.features(q))

        def network_gradient(q: Tensor) -> Tensor:
            return manifold.pull_back(q, slope_scale * network.gradient(scale * manifold.features(q)))

        force: Any = NetworkGradient(
            network_gradient,
            network.weights,
            network.biases,
            self.network.activation_name,
            manifold,
            self._factors(),
            energy,
        )
        return BoundPotential(network_value, force)


class FunctionPotential(AbstractPotential):
    """Any differentiable torch function as potential; the force comes from autograd.

    Example:
        >>> quartic = FunctionPotential(lambda q, a: (a * q**4).sum(-1), {"a": 0.25})

    Args:
        function: `function(q, **parameters)` maps `(*batch, dim)` to `(*batch,)`. Scalar
            parameters arrive with a trailing dimension, ready to multiply `q`.
        parameters: name to number, tensor, `Learned` or prior.
        manifold: configuration space, or a number of Euclidean coordinates.
        supports: support of parameters that are not real, by name.

    Sites:
        one per parameter, under its name.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        parameters: Mapping[str, Spec] | None = None,
        *,
        manifold: Manifold | int = 1,
        supports: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.manifold = Euclidean(manifold) if isinstance(manifold, int) else manifold
        self.function = function
        self.parameter_names = tuple(parameters or {})
        self._event_dims: dict[str, int] = {}
        for name, spec in (parameters or {}).items():
            shape = _natural_shape(spec)
            self._event_dims[name] = len(shape)
            self.declare(name, spec, support=(supports or {}).get(name, constraints.real), shape=shape)

    def bind(self) -> BoundPotential:
        """Read every parameter; the gradient differentiates `function`."""
        values = {name: align(getattr(self, name), self._event_dims[name]) for name in self.parameter_names}
        particles = [x.shape[: x.ndim - max(self._event_dims[name], 1)] for name, x in values.items()]
        function = self.function

        def value(q: Tensor) -> Tensor:
            energy = function(q, **values)
            require(
                energy.shape in (q.shape[:-1], torch.broadcast_shapes(q.shape[:-1], *particles)),
                "a potential must map (*batch, dim) to (*batch,)",
                f"{tuple(q.shape)} -> {tuple(energy.shape)}",
                "Sum over the last dimension.",
            )
            return energy

        def gradient(q: Tensor) -> Tensor:
            track = torch.is_grad_enabled()
            with torch.enable_grad():
                at = q if q.requires_grad else q.detach().requires_grad_(True)
                energy = value(at)
                if energy.shape != at.shape[:-1]:  # parameters with particle dimensions: one slope for each
                    at = at.expand(*energy.shape, at.shape[-1])
                    energy = value(at)
                (slope,) = torch.autograd.grad(energy.sum(), at, create_graph=track)
            return slope

        return BoundPotential(value, gradient)


def _natural_shape(spec: Spec) -> tuple[int, ...]:
    if isinstance(spec, torch.distributions.Distribution):
        return tuple(spec.batch_shape + spec.event_shape)
    init = getattr(spec, "init", spec)
    return tuple(init.shape) if isinstance(init, Tensor) else ()
