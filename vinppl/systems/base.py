"""The contract of a ground-truth system, and what all systems share."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import SolveError
from vinppl.state import PhaseState, Trajectory, check_phase_state

__all__ = ["AbstractSystem", "Array"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AbstractSystem(ABC):
    r"""A mechanical system whose motion is known to round-off.

    The equation of motion is `inertia * dv/dt = force(q, v, t)` with a constant
    diagonal inertia; `force` is the total generalised force, -∇V plus damping
    and drive, and the energy is `½ Σ inertia v² + V(q)`.

    Attributes:
        name: key of the system in the registry.
        dim: number of generalised coordinates.
        coordinate_names: one name per coordinate.
        units: unit of `q`, `v`, `time`, `energy` and of every parameter ("1" if it has none).
        angle_coordinates: for each coordinate, whether it is an angle. Paths
            are not wrapped: angles count revolutions.
        conserved: names of the invariants that the exact flow keeps for these
            parameters; each is also a method `(q, v) -> Tensor`.
    """

    name: ClassVar[str]
    dim: ClassVar[int]
    coordinate_names: ClassVar[tuple[str, ...]]
    units: ClassVar[Mapping[str, str]]
    angle_coordinates: ClassVar[tuple[bool, ...]]
    conserved: ClassVar[tuple[str, ...]] = ("energy",)

    @property
    @abstractmethod
    def inertia(self) -> Array:
        """Diagonal of the mass matrix, shape `(dim,)`; moments of inertia for angles."""

    @abstractmethod
    def potential(self, q: Tensor) -> Tensor:
        """Return the potential energy V(q), `(*batch, dim) -> (*batch)`."""

    @abstractmethod
    def force(self, q: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
        """Return the total generalised force -∇V + damping + drive.

        Args:
            q: positions, shape `(*batch, dim)`.
            v: velocities, same shape.
            t: time, a number or a tensor that broadcasts to `(*batch)`; only driven systems use it.

        Returns:
            Tensor of shape `(*batch, dim)`, in units of energy per unit of `q`.
        """

    @abstractmethod
    def sample_initial(self, num: int, generator: torch.Generator) -> PhaseState:
        """Draw `num` typical initial states, shape `(num, dim)`, in the default dtype.

        Draws are made in double precision, so that both precisions see the same states.
        """

    @abstractmethod
    def _path(self, q0: Array, v0: Array, times: Array) -> tuple[Array, Array]:
        """Return the path through `q0`, `v0` at `times[0]`.

        Args:
            q0: initial positions, shape `(num, dim)`.
            v0: initial velocities, same shape.
            times: shape `(time,)`, not decreasing.

        Returns:
            Positions and velocities, shape `(num, time, dim)`.
        """

    def energy(self, q: Tensor, v: Tensor) -> Tensor:
        """Return kinetic plus potential energy, `(*batch, dim) -> (*batch)`."""
        inertia = torch.as_tensor(self.inertia, dtype=v.dtype, device=v.device)
        return 0.5 * (inertia * v.square()).sum(-1) + self.potential(q)

    def invariants(self, q: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Return every conserved quantity by name; batch dimensions are those of `q`."""
        return {name: getattr(self, name)(q, v) for name in self.conserved}

    @torch.no_grad()
    def solve(self, initial: PhaseState, times: Tensor) -> Trajectory:
        """Return the exact path through a state, sampled at given times.

        Computed in double precision whatever the input, and returned in the
        dtype of the initial state. It is a reference, not a differentiable layer.

        Args:
            initial: state at `times[0]`, both parts of shape `(*batch, dim)`.
            times: shape `(time,)`, finite, not decreasing, in the unit of time.

        Returns:
            Trajectory with `q` and `v` of shape `(*batch, time, dim)` and `times` as given.

        Raises:
            ValueError: if shapes, dtypes or values are not as above.
            SolveError: if the motion leaves every bound in finite time, or a
                numerical solution does not reach its accuracy.
        """
        _check_solve_input(initial, times, self.dim)
        q, v = torch.broadcast_tensors(initial.q, initial.v)
        shape = q.shape
        q0, v0 = (_to_array(x).reshape(-1, self.dim) for x in (q, v))
        if q0.shape[0] == 0:
            empty = initial.q.new_empty((*shape[:-1], times.shape[0], self.dim))
            return Trajectory(times, empty, empty.clone())
        q_path, v_path = self._path(q0, v0, _to_array(times))
        if not (np.isfinite(q_path).all() and np.isfinite(v_path).all()):
            raise SolveError(f"the path of {self.name} is not finite; are the initial values or times huge?")
        q_path[:, 0], v_path[:, 0] = q0, v0
        full = (*shape[:-1], times.shape[0], self.dim)
        out_q, out_v = (torch.from_numpy(x.reshape(full)).to(initial.q) for x in (q_path, v_path))
        return Trajectory(times, out_q, out_v)

    def _acceleration(self, q: Array, v: Array, t: Array) -> Array:
        """Return `force / inertia` for arrays of shape `(*batch, dim)` and times `(*batch)`."""
        force = self.force(torch.from_numpy(q), torch.from_numpy(v), torch.from_numpy(t))
        return np.asarray(force.numpy() / self.inertia)

    def _declare(self, **values: Any) -> None:
        """Narrow class attributes whose value depends on the parameters of this instance."""
        for key, value in values.items():
            object.__setattr__(self, key, value)


def check_parameters(system: AbstractSystem, *names: str, allow: str = "positive") -> None:
    """Raise `ValueError` unless the named fields are finite numbers of the allowed sign.

    Args:
        system: instance whose fields are checked.
        names: names of the fields.
        allow: "positive", "non-negative" or "any sign".
    """
    for name in names:
        check_number(f"{name} of {system.name}", getattr(system, name), allow=allow)


def check_number(label: str, value: Any, *, allow: str = "positive") -> None:
    """Raise `ValueError` unless `value` is a finite real number of the allowed sign."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    signs = {"positive": lambda x: x > 0, "non-negative": lambda x: x >= 0, "any sign": lambda x: True}
    word = "" if allow == "any sign" else f"{allow} "
    require(number and signs[allow](value), f"{label} must be a {word}finite number", value)


def uniform(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw `num` values of U[low, high] in double precision."""
    draws = torch.rand(num, generator=generator, dtype=torch.float64, device=generator.device)
    return low + (high - low) * draws


def random_sign(num: int, generator: torch.Generator) -> Tensor:
    """Draw `num` signs, -1 or +1 with equal probability."""
    bits = torch.randint(0, 2, (num,), generator=generator, device=generator.device)
    return 2.0 * bits.to(torch.float64) - 1.0


def pack_state(q: list[Tensor], v: list[Tensor]) -> PhaseState:
    """Stack coordinates of shape `(num,)` to a state of shape `(num, dim)` in the default dtype."""
    dtype = torch.get_default_dtype()
    return PhaseState(torch.stack(q, -1).to(dtype), torch.stack(v, -1).to(dtype))


def check_num(num: int) -> None:
    """Raise `ValueError` unless a number of draws is at least 1."""
    require(num >= 1, "num must be at least 1", num)


def _to_array(value: Tensor) -> Array:
    """Return a double precision copy of a tensor."""
    return np.array(value.detach().to("cpu", torch.float64).numpy())


def _check_solve_input(initial: PhaseState, times: Tensor, dim: int) -> None:
    """Check shapes, dtypes and values of the arguments of `solve`."""
    check_phase_state(initial, dim)
    for name, value in zip(("initial position", "initial velocity", "times"), (*initial, times), strict=True):
        require(value.is_floating_point(), f"{name} must have a floating dtype", str(value.dtype))
        require(bool(torch.isfinite(value).all()), f"{name} must be finite", "NaN or infinity")
        fix = "A ground truth is not differentiable: detach it, or integrate the force instead."
        require(not value.requires_grad, f"{name} must not require a gradient", value, fix)
    dtypes = f"{initial.q.dtype} and {initial.v.dtype}"
    require(initial.q.dtype == initial.v.dtype, "position and velocity must share a dtype", dtypes)
    require(times.ndim == 1 and times.shape[0] >= 1, "times must have shape (time,) with time >= 1", times)
    gaps = times.diff()
    fix = "Sort them first."
    require(bool((gaps >= 0).all()), "times must not decrease", f"{gaps.min() if len(gaps) else 0:.6g}", fix)
