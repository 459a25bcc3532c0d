"""Inertia matrices: scalar, diagonal or full symmetric positive definite.

From positions alone only V/M is defined: a mass is identified where a force is
known (a measured drive, a known spring, gravity between bodies) and otherwise
belongs fixed, usually at one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from vinppl._checks import require
from vinppl.parameters import Component, Spec

__all__ = ["BoundMass", "Diagonal", "Full", "MassSpec", "Scalar", "bind_mass", "declare_mass"]


@dataclass(frozen=True)
class MassSpec:
    """How the inertia matrix of a VIN is given.

    Attributes:
        value: the mass as a number, tensor, `Learned` or prior (see `vinppl.parameters`).
        structure: `scalar` (one mass m for all coordinates), `diagonal` (one per
            coordinate) or `full` (a symmetric positive definite matrix).
    """

    value: Spec
    structure: Literal["scalar", "diagonal", "full"] = "scalar"


def Scalar(value: Spec = 1.0) -> MassSpec:
    """Return one mass shared by all coordinates, M = m I."""
    return MassSpec(value, "scalar")


def Diagonal(value: Spec) -> MassSpec:
    """Return one mass per coordinate, M = diag(m); scalars are expanded."""
    return MassSpec(value, "diagonal")


def Full(value: Spec) -> MassSpec:
    """Return a full symmetric positive definite inertia matrix, shape `(dim, dim)`.

    A learned one is parametrised by its Cholesky factor; a prior is any
    distribution over such matrices (for example `pyro.distributions.Wishart`).
    """
    return MassSpec(value, "full")


class BoundMass(NamedTuple):
    """The mass with its value read: plain functions of tensors.

    Attributes:
        value: the mass itself, shape `(*batch, 1)`, `(*batch, dim)` or `(*batch, dim, dim)`.
        apply: momentum p = M v, `(*batch, dim) -> (*batch, dim)`.
        solve: M^-1 f, same shapes.
        solve_shifted: (M + diag(s))^-1 f for a non-negative s of shape `(*batch, dim)`.
        is_unit: whether M is the constant identity.
        is_diagonal: whether M is scalar or diagonal.
    """

    value: Tensor
    apply: Callable[[Tensor], Tensor]
    solve: Callable[[Tensor], Tensor]
    solve_shifted: Callable[[Tensor, Tensor], Tensor]
    is_unit: bool
    is_diagonal: bool


def declare_mass(owner: Component, spec: MassSpec, dim: int) -> None:
    """Declare the site `mass` on `owner`, with the shape and support of its structure."""
    if spec.structure == "full":
        value = spec.value
        if isinstance(value, Tensor):
            require(
                value.shape == (dim, dim),
                f"a full mass must have shape ({dim}, {dim})",
                value,
                "Pass a matrix.",
            )
        owner.declare("mass", value, support=constraints.positive_definite, shape=(dim, dim))
    else:
        shape = () if spec.structure == "scalar" else (dim,)
        owner.declare("mass", spec.value, support=constraints.positive, shape=shape)


def bind_mass(value: Tensor, spec: MassSpec) -> BoundMass:
    """Return the functions of a mass whose site has the given value."""
    if spec.structure == "full":
        return _bind_full(value)
    mass = value.unsqueeze(-1) if spec.structure == "scalar" else value
    inverse = mass.reciprocal()
    is_unit = isinstance(spec.value, int | float) and float(spec.value) == 1.0
    if is_unit:
        return BoundMass(mass, lambda v: v, lambda f: f, lambda f, s: f / (1 + s), True, True)
    return BoundMass(
        mass, lambda v: mass * v, lambda f: inverse * f, lambda f, s: f / (mass + s), False, True
    )


def _bind_full(mass: Tensor) -> BoundMass:
    factor = torch.linalg.cholesky(mass)

    def apply(v: Tensor) -> Tensor:
        return torch.matmul(mass, v.unsqueeze(-1)).squeeze(-1)

    def solve(f: Tensor) -> Tensor:
        return torch.cholesky_solve(f.unsqueeze(-1), factor).squeeze(-1)

    def solve_shifted(f: Tensor, shift: Tensor) -> Tensor:
        f, shift = torch.broadcast_tensors(f, shift)  # a shared coefficient has shape (*batch, 1)
        return torch.linalg.solve(mass + torch.diag_embed(shift), f.unsqueeze(-1)).squeeze(-1)

    return BoundMass(mass, apply, solve, solve_shifted, False, False)
