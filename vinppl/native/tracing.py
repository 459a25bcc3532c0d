"""Records a Pyro model's log density and its gradient as one graph of tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vinppl.native.elementwise import decompositions
from vinppl.native.errors import Unsupported

__all__ = ["trace_value_and_gradient"]


class _FoldConstants(TorchDispatchMode):
    """Runs what does not depend on the traced input, so that only its result enters the graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mode = get_innermost_proxy_mode()
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if mode is None or any(x in mode.tracer.tensor_tracker for x in tensors):
            return func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"random numbers inside the model's density ({func})")
        with _disable_current_modes():
            return func(*args, **kwargs)


def trace_value_and_gradient(function: Callable[[Tensor], Tensor], example: Tensor) -> torch.fx.GraphModule:
    """Return the graph of `u -> (function(u), its gradient)`.

    Checks of distributions' arguments are left out: they look at values.

    Raises:
        Unsupported: if control flow depends on the value of `u`, or something cannot be traced.
    """

    def both(u: Tensor) -> tuple[Tensor, Tensor]:
        with _FoldConstants(), torch.enable_grad():
            at = u.detach().requires_grad_(True)
            value = function(at)
            (gradient,) = torch.autograd.grad(value, at)
        return value.detach(), gradient

    unchecked = mock.patch.object(torch.distributions.Distribution, "_validate_sample", lambda self, value: None)
    try:
        with pyro.validation_enabled(False), unchecked, torch.no_grad():
            module = make_fx(both, decomposition_table=decompositions())(example.detach())
    except (RuntimeError, NotImplementedError, ValueError) as error:
        text = str(error.__cause__ or error)
        if "tracing tensor" in text or "data-dependent" in text:
            raise Unsupported("control flow that depends on the values of latent variables") from error
        raise Unsupported(f"something that cannot be traced ({text.splitlines()[0][:200]})") from error
    module.graph.eliminate_dead_code()
    return module
