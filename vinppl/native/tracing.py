"""Records a Pyro model's log density and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx import GraphModule

from vinppl.native.recorder import record

__all__ = ["trace_value_and_gradient"]


def trace_value_and_gradient(function: Callable[[Tensor], Tensor], example: Tensor) -> GraphModule:
    """Return the graph of `u -> (function(u), its gradient)`, with copies of all constants.

    Checks of distributions' arguments are left out: they look at values.

    Args:
        function: a density of a vector, `(size,) -> ()`.
        example: such a vector.

    Raises:
        Unsupported: if control flow depends on the value of `u`, or something cannot be recorded.
    """

    def both(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = u.detach().requires_grad_(True)
            value = function(at)
            (gradient,) = torch.autograd.grad(value, at)
        return value.detach(), gradient

    unchecked = mock.patch.object(Distribution, "_validate_sample", lambda self, value: None)  # noqa: PT008
    with pyro.validation_enabled(False), unchecked, torch.no_grad():
        return record(both, example.detach(), constants=True)
