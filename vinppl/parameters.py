"""Physical quantities of a component: fixed, learned, or with a prior.

Every quantity of this library (a stiffness, a mass, a damping coefficient, a
noise scale) is given in one of four ways, and this module turns each into an
attribute of a `PyroModule`:

=====================  ==========================================================
given as               becomes
=====================  ==========================================================
number or tensor       a constant (a buffer)
`Learned(init)`        a parameter optimised by SVI, at the site's support
`Distribution`         a latent site with that prior
=====================  ==========================================================
"""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.constraints import Constraint

from vinppl._checks import require

__all__ = ["Component", "Learned", "Spec", "align", "move_distribution"]


@dataclass(frozen=True)
class Learned:
    """A point estimate, optimised together with the guide.

    Attributes:
        init: starting value, inside the support of the quantity.
    """

    init: float | Tensor


Spec = float | Tensor | Learned | Distribution
"""How a quantity is given; see the module docstring."""


class _ComponentMeta(abc.ABCMeta, type(PyroModule)):  # type: ignore[misc]
    """Lets components have abstract methods."""


class Component(PyroModule, metaclass=_ComponentMeta):  # type: ignore[metaclass]
    """A `PyroModule` whose quantities are declared as constants, parameters or priors.

    Attributes:
        transparent: whether the name under which the component hangs in its parent is
            left out of site names, so that `model.vin.mass` is the site `mass`.
    """

    transparent: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_reference", torch.zeros(()), persistent=False)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        """Tell the children their names, without this component's own if it is transparent."""
        super()._pyro_set_supermodule(_parent(name) if self.transparent else name, context)
        self._pyro_name = name

    def _pyro_get_fullname(self, name: str) -> str:
        """Return the site name of one of this component's own quantities."""
        if not self.transparent:
            return super()._pyro_get_fullname(name)
        parent = _parent(self._pyro_name)
        return f"{parent}.{name}" if parent else name

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the quantities; `.to(dtype=...)` changes it."""
        return self._reference.dtype

    def declare(
        self,
        name: str,
        spec: Spec,
        *,
        support: Constraint = constraints.real,
        shape: tuple[int, ...] = (),
    ) -> None:
        """Declare the quantity `name`, of the given support and shape.

        Args:
            name: attribute name, and last part of the site name.
            spec: a number, tensor, `Learned` or `Distribution`; see the module docstring.
            support: where the quantity may lie.
            shape: its shape; scalars and scalar priors are expanded to it.

        Raises:
            ValueError: if a value lies outside the support, or a prior reaches outside it.
            TypeError: if `spec` is none of the four.
        """
        if isinstance(spec, Distribution):
            if not isinstance(spec, TorchDistributionMixin):
                raise TypeError(
                    f"the prior of {name} must come from pyro.distributions; got {type(spec).__module__}."
                    f"{type(spec).__name__}. Import {type(spec).__name__} from pyro.distributions instead."
                )
            _check_prior(name, spec, support)
            prior = _shaped(spec, shape)
            setattr(self, name, PyroSample(lambda module: move_distribution(prior, module._reference)))
        elif isinstance(spec, Learned):
            init = _constant(name, spec.init, support, shape)
            require(
                support is not constraints.nonnegative or bool((init > 0).all()),
                f"a learned {name} must start above zero: it is optimised through its logarithm",
                spec.init,
            )
            setattr(self, name, PyroParam(init, constraint=support, event_dim=len(shape)))
        elif isinstance(spec, int | float | Tensor):
            self.register_buffer(name, _constant(name, spec, support, shape))
        else:
            raise TypeError(
                f"{name} must be a number, a tensor, Learned(...) or a distribution; "
                f"got {type(spec).__name__}."
            )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def align(value: Tensor, event_dim: int = 0) -> Tensor:
    """Append one dimension to a sampled quantity so that it broadcasts against `(*batch, dim)`.

    A scalar site drawn under particle or chain plates has shape `(*batch,)`;
    a vector site (`event_dim=1`) already ends in the coordinate.
    """
    return value if event_dim else value.unsqueeze(-1)


def move_distribution(distribution: Distribution, reference: Tensor) -> Any:
    """Return `distribution` with every floating tensor on the device and dtype of `reference`."""
    return _moved(distribution, reference, {})


def _moved(x: Any, reference: Tensor, done: dict[int, Any]) -> Any:
    """Return `x` with its tensors moved; distributions and transforms inside are copied, once each."""
    if isinstance(x, Tensor):
        return x.to(reference.device, reference.dtype if x.is_floating_point() else x.dtype)
    if isinstance(x, list | tuple) and any(isinstance(i, Distribution | Transform) for i in x):
        return type(x)(_moved(i, reference, done) for i in x)
    if not isinstance(x, Distribution | Transform):
        return x
    if id(x) not in done:
        done[id(x)] = new = copy.copy(x)
        new.__dict__ = {key: _moved(value, reference, done) for key, value in vars(x).items()}
    return done[id(x)]


def _shaped(prior: Distribution, shape: tuple[int, ...]) -> Distribution:
    have = tuple(prior.batch_shape + prior.event_shape)
    if have == shape and len(prior.batch_shape) == 0:
        return prior
    require(
        len(prior.event_shape) == 0 and len(have) <= len(shape),
        f"a prior must have shape {shape} or broadcast to it",
        f"batch shape {tuple(prior.batch_shape)}, event shape {tuple(prior.event_shape)}",
    )
    return prior.expand(torch.Size(shape)).to_event(len(shape))


def _constant(name: str, value: float | Tensor, support: Constraint, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
    have = tuple(tensor.shape)
    broadcastable = len(have) <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(have), reversed(shape), strict=False)
    )
    require(broadcastable, f"{name} must have shape {shape} or broadcast to it", tensor)
    tensor = tensor.detach().clone().expand(shape).contiguous()
    require(bool(support.check(tensor).all()), f"{name} must lie in its support {support}", value)
    return tensor


def _check_prior(name: str, prior: Distribution, support: Constraint) -> None:
    """Refuse the usual mistake: a prior that reaches below zero on a quantity that must be positive."""
    mine: Any = prior.support
    while hasattr(mine, "base_constraint"):
        mine = mine.base_constraint
    message = f"the prior of {name} must keep to its support {support}"
    got = f"{type(prior).__name__} on {mine}"
    if support in (constraints.positive, constraints.nonnegative):
        unbounded = mine is constraints.real or isinstance(mine, constraints.less_than)
        reaches_below = unbounded or bool((torch.as_tensor(getattr(mine, "lower_bound", 0.0)) < 0).any())
        fix = "Use LogNormal, HalfNormal, Gamma or another positive distribution."
        require(not reaches_below, message, got, fix)
    elif support is constraints.positive_definite:
        fix = "Use a distribution over such matrices, for example Wishart."
        require(mine is constraints.positive_definite, message, got, fix)
