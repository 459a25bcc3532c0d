"""A Pyro model as a plain function: the log density of an unconstrained vector.

Samplers and optimisers work on this function. It is evaluated through Pyro's handlers, or, once
`compile` was called, by machine code that gives the same numbers some hundred times faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    SoftplusTransform,
    Transform,
)
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require, require_choice
from vinppl.draws import plate_nesting
from vinppl.errors import NumericalWarning
from vinppl.native import compile_density
from vinppl.rollout import BACKENDS, Backend

if TYPE_CHECKING:
    from vinppl.native.compiled import CompiledDensity

__all__ = ["LogDensity"]


class LogDensity:
    """log p(y, z) + log |dz/du| as a function of u, for a Pyro model and its arguments.

    Args:
        model: any Pyro model whose latent sites are continuous.
        *args: its arguments, usually the data.
        initial_values: constrained values by site, for `initial`; others start at the prior median.
        soften: whether positive sites are unconstrained by a map that is logarithmic below a tenth of
            their value at `initial` and linear above, instead of a logarithm: see `_softened`.
        backend: `reference` never compiles.

    Attributes:
        names: latent sites, in the order of the vector.
        shapes: unconstrained shape of each site.
        initial: starting point, shape `(size,)`.
        native: the compiled density; `None` before `compile` and where there is none.

    Raises:
        ValueError: if the model has no latent site, or no starting point of finite density is found.
    """

    def __init__(
        self,
        model: Any,
        *args: Any,
        initial_values: Mapping[str, Tensor] | None = None,
        soften: bool = False,
        backend: Backend = "auto",
    ) -> None:
        require_choice("backend", backend, BACKENDS)
        strategy = init_to_value(values=dict(initial_values or {}), fallback=init_to_median(num_samples=25))
        self._model, self._args = model, args
        parameters, self._potential, self._transforms, trace = initialize_model(
            model, args, init_strategy=strategy, max_plate_nesting=_nesting(model, args)
        )
        require(len(parameters) > 0, "the model must have at least one latent site", "none")
        learned = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        if learned:
            warnings.warn(
                f"the model has point-estimated parameters ({', '.join(learned[:4])}"
                f"{', ...' if len(learned) > 4 else ''}), which sampling holds fixed at their present "
                "values; give them priors to infer them",
                NumericalWarning,
                stacklevel=2,
            )
        self.names = tuple(parameters)
        self.shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        values = {name: transform.inv(parameters[name]) for name, transform in self._transforms.items()}
        for name, value in values.items() if soften else ():
            softened = _softened(trace.nodes[name]["fn"].support, value)
            if softened is not None:  # in place: the potential looks its transforms up here
                self._transforms[name] = softened
        self.initial = self.unconstrain(values)
        self.native: CompiledDensity | None = None
        self._backend, self._tried = backend, False

    def compile(self) -> bool:
        """Compile the density, if that was not tried before; return whether it is compiled.

        Point-estimated parameters, and everything else that is not latent, keep the values that
        they have now. Where there is no compiled form, a `PerformanceWarning` says once why.
        """
        if not self._tried and self._backend == "auto":
            self._tried = True
            self.native = compile_density(type(self._model).__name__, self._reference, self.initial)
        return self.native is not None

    @property
    def size(self) -> int:
        """Number of unconstrained latent variables."""
        return int(self.initial.numel())

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density at one point, `(size,) -> ()`; differentiable.

        Before `compile`, also with respect to point-estimated parameters.
        """
        return self._reference(u) if self.native is None else _Compiled.apply(u, self)  # type: ignore[no-any-return]

    def _reference(self, u: Tensor) -> Tensor:
        return -self._potential(self.split(u))

    def value_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density and its gradient at one point, shapes `()` and `(size,)`."""
        if self.native is not None:
            number, slope = self.native.value_and_gradient(u.detach().numpy())
            return torch.tensor(number, dtype=u.dtype), torch.from_numpy(slope)
        at = u.detach().requires_grad_(True)
        value = self(at)
        (gradient,) = torch.autograd.grad(value, at)
        return value.detach(), gradient

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Return the sites of points `(*batch, size)`, each of shape `(*batch, *site)`."""
        return {name: self._transforms[name].inv(part) for name, part in self.split(u).items()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the vector of constrained values, one of every site."""
        return self._flatten({name: self._transforms[name](values[name]) for name in self.names})

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Return the parts of vectors `(*batch, size)` by site, each `(*batch, *unconstrained shape)`."""
        sizes = [max(1, int(torch.Size(self.shapes[name]).numel())) for name in self.names]
        parts = u.split(sizes, dim=-1)
        return {
            name: part.reshape(u.shape[:-1] + self.shapes[name])
            for name, part in zip(self.names, parts, strict=True)
        }

    def _flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])


def _nesting(model: Any, args: tuple[Any, ...]) -> int:
    """Return the number of plates that the model nests, by a draw from its prior."""
    with pyro.validation_enabled(False), torch.no_grad():  # whose path need not be finite
        trace = poutine.block(poutine.trace(model).get_trace)(*args)
    return plate_nesting(trace)


def _softened(support: Any, typical: Tensor) -> Transform | None:
    """Return a map to unconstrained space under which a positive site's posterior has no cliff.

    With a logarithm, a coefficient that the data bound only from above has a posterior that falls doubly
    exponentially on that side: no step size suits both sides. s log(1 + exp(x)) is the exponential below s
    and linear above, where coefficients that trade off against one another do so along straight lines.

    Args:
        support: of the site.
        typical: size of the site; s is a tenth of it.

    Returns:
        The map from the site, or `None` for a site that is not positive.
    """
    dims = 0
    while isinstance(support, constraints.independent):
        dims, support = dims + support.reinterpreted_batch_ndims, support.base_constraint
    bound = getattr(support, "lower_bound", None)
    above_zero = isinstance(bound, int | float) and bound == 0 and not hasattr(support, "upper_bound")
    if not above_zero or not bool((torch.isfinite(typical) & (typical > 0)).all()):
        return None
    soft: Transform = ComposeTransform([SoftplusTransform(), AffineTransform(0.0, 0.1 * typical.detach())])
    return (IndependentTransform(soft, dims) if dims else soft).inv


class _Compiled(torch.autograd.Function):
    """A compiled density as a differentiable function; higher derivatives go through Pyro."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, density: LogDensity) -> Tensor:
        value, gradient = density.value_and_gradient(u)
        ctx.save_for_backward(u, gradient)
        ctx.density = density
        return value

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, None]:
        u, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            (gradient,) = torch.autograd.grad(ctx.density._reference(u), u, create_graph=True)
        return seed * gradient, None
