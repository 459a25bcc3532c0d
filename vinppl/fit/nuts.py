"""Pyro's NUTS on a log density, one draw at a time, with its whole state in plain values.

Pyro's own driver cannot be interrupted. Here one chain is an object that makes the
next draw, reports what the sampler did, and can be saved and restored between any two
draws, warm-up included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import NUTS
from pyro.ops.integrator import potential_grad, register_exception_handler
from torch import Tensor

from vinppl.errors import SolveError

__all__ = ["Chain", "DrawStats"]

register_exception_handler(
    "vinppl_solve_error", lambda error: isinstance(error, SolveError), warn_on_overwrite=False
)


class DrawStats(NamedTuple):
    """What the sampler did for one draw, under ArviZ's names.

    Attributes:
        lp: log density of the draw, in unconstrained space.
        energy: Hamiltonian at the start of the trajectory, for the energy diagnostic.
        acceptance_rate: mean acceptance probability over the trajectory.
        step_size: leapfrog step size.
        n_steps: gradient evaluations.
        tree_depth: doublings of the trajectory.
        diverging: whether the trajectory diverged.
    """

    lp: float
    energy: float
    acceptance_rate: float
    step_size: float
    n_steps: int
    tree_depth: int
    diverging: bool


class _RecordingNUTS(NUTS):
    """NUTS that notes the energy at the start of each trajectory and its gradient evaluations."""

    first_kinetic: float | None = None

    def _kinetic_energy(self, r_unscaled: Any) -> Any:
        energy = super()._kinetic_energy(r_unscaled)
        if self.first_kinetic is None:
            self.first_kinetic = float(energy)
        return energy


class Chain:
    """One NUTS chain.

    Args:
        density: the log density, scaled so that the posterior has about unit size (Pyro shrinks
            an adapted mass matrix towards that).
        start: unconstrained starting point, shape `(size,)`.
        num_warmup: draws that adapt step size and mass matrix.
        seed: of the chain's own random stream.
        target_accept: target acceptance probability.
        max_tree_depth: doublings at most.
        dense_mass: adapt a dense mass matrix instead of a diagonal one.
    """

    def __init__(
        self,
        density: Callable[[Tensor], Tensor],
        start: Tensor,
        *,
        num_warmup: int,
        seed: int,
        target_accept: float = 0.8,
        max_tree_depth: int = 10,
        dense_mass: bool = True,
    ) -> None:
        self.evaluations = 0

        def potential(parameters: Mapping[str, Tensor]) -> Tensor:
            self.evaluations += 1
            return -density(parameters["u"])

        self._kernel = _RecordingNUTS(
            potential_fn=potential,
            target_accept_prob=target_accept,
            max_tree_depth=max_tree_depth,
            full_mass=dense_mass,
        )
        self._random = _stream(seed)
        self._num_warmup = num_warmup
        with _using(self):
            self._kernel.initial_params = {"u": start.detach().clone()}
            self._kernel.setup(num_warmup)
        self.point = start.detach().clone()
        self.count = 0

    @property
    def warming_up(self) -> bool:
        """Whether the next draw still adapts."""
        return self.count < self._num_warmup

    def draw(self) -> DrawStats:
        """Make the next draw; it is then in `point`."""
        kernel: Any = self._kernel
        before, mean = self.evaluations, kernel._mean_accept_prob
        divergences, previous = len(kernel._divergences), max(0, self.count - self._num_warmup)
        n = self.count if self.warming_up else previous
        mean = mean if n else 0.0
        kernel.first_kinetic = None
        potential_before = float(kernel._potential_energy_last)
        with _using(self):
            self.point = kernel.sample({"u": self.point})["u"].detach()
        self.count += 1
        steps = max(1, self.evaluations - before)
        return DrawStats(
            lp=-float(kernel._potential_energy_last),
            energy=potential_before + (kernel.first_kinetic or 0.0),
            acceptance_rate=kernel._mean_accept_prob * (n + 1) - mean * n,
            step_size=kernel.step_size,
            n_steps=steps,
            tree_depth=max(1, math.ceil(math.log2(steps + 1))),
            diverging=len(kernel._divergences) > divergences,
        )

    def state(self) -> dict[str, Any]:
        """Return everything that the next draw depends on, as tensors and plain values."""
        kernel, adapter = self._kernel, self._kernel._adapter
        averaging = adapter._step_size_adapt_scheme
        mass = adapter.mass_matrix_adapter
        welford = next(iter(mass._adapt_scheme.values()))
        return {
            "point": self.point,
            "count": self.count,
            "random": self._random,
            "kernel": {name: getattr(kernel, name) for name in _KERNEL_STATE},
            "step_size": adapter.step_size,
            "window": adapter._current_window,
            "averaging": {name: getattr(averaging, name, 0.0) for name in _AVERAGING_STATE},
            "inverse_mass": next(iter(mass.inverse_mass_matrix.values())),
            "welford": {name: getattr(welford, name) for name in _WELFORD_STATE},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        kernel, adapter = self._kernel, self._kernel._adapter
        self.point, self.count, self._random = state["point"], state["count"], state["random"]
        adapter.mass_matrix_adapter.inverse_mass_matrix = {("u",): state["inverse_mass"]}
        welford = next(iter(adapter.mass_matrix_adapter._adapt_scheme.values()))
        for target, values in (
            (kernel, state["kernel"]),
            (adapter._step_size_adapt_scheme, state["averaging"]),
            (welford, state["welford"]),
        ):
            for name, value in values.items():
                setattr(target, name, value)
        adapter.step_size, adapter._current_window = state["step_size"], state["window"]
        gradients, energy = potential_grad(kernel.potential_fn, {"u": self.point})
        kernel._cache({"u": self.point}, energy, gradients)


_KERNEL_STATE = ("_t", "_accept_cnt", "_mean_accept_prob", "_divergences")
_AVERAGING_STATE = ("prox_center", "_x_t", "_x_avg", "_g_avg", "_t")
_WELFORD_STATE = ("_mean", "_m2", "n_samples")


def _stream(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


class _using:
    """Run a block on a chain's random stream."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def __enter__(self) -> None:
        self._outer = torch.random.get_rng_state()
        torch.random.set_rng_state(self._chain._random)

    def __exit__(self, *exception: Any) -> None:
        self._chain._random = torch.random.get_rng_state()
        torch.random.set_rng_state(self._outer)
