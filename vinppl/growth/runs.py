"""A model run from draws over one trajectory at a time, whatever plates it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import biject_to

from vinppl._checks import require
from vinppl.draws import Draws, continuations, latent_sites, predict, prototype
from vinppl.dynamics import VIN
from vinppl.growth.sites import part_of
from vinppl.guides import INITIAL_SITES

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["TrajectoryRuns"]

Array = NDArray[np.float64]
OUTPUTS = ("states", "energy", "obs")


class TrajectoryRuns:
    """Forecasts of single trajectories by a model, from draws of its latent sites.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *site)`; others are ignored.
        future: times to run over.
        chunk_size: draws that run as one batch.
        parameters: learned parameters of the model, unconstrained, by name.

    Raises:
        ValueError: if a latent site is missing.
    """

    def __init__(
        self,
        model: Any,
        draws: Mapping[str, Tensor],
        future: Trajectories,
        *,
        chunk_size: int,
        parameters: Mapping[str, Tensor] | None,
    ) -> None:
        self.model, self.future = model, future
        self.chunk_size, self.parameters = chunk_size, parameters
        self.trace = prototype(model, future)
        latent = latent_sites(self.trace)
        self.sites = [*latent, *continuations(self.trace)]
        missing = [name for name in latent if name not in draws]
        require(
            not missing, "draws must hold every latent site of the model", f"none of {', '.join(missing)}"
        )
        self.draws: Draws = {name: draws[name] for name in latent}
        self.continued: dict[int, Draws] = {}
        self.transforms = {name: biject_to(self.trace.nodes[name]["fn"].support) for name in self.sites}
        self.axes = {name: self._plate_axis(name) for name in self.sites}
        self.alone = future.num_trajectories == 1 or any(axis is not None for axis in self.axes.values())
        self.point_estimates = [name for name, node in self.trace.nodes.items() if node["type"] == "param"]

    def _plate_axis(self, name: str) -> int | None:
        """Return the axis of a draw array along which trajectories differ."""
        frames = sorted(
            (f for f in self.trace.nodes[name]["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim
        )
        own = [i for i, f in enumerate(frames) if f.dim == -1 and f.size == self.future.num_trajectories]
        return 1 + own[0] if own else None

    def own(self, n: int) -> Draws:
        """Return the draws that trajectory `n` depends on: its own of every plate of trajectories.

        What goes on at random beyond the data (`vinppl.draws.CONTINUATION`) is drawn once and is one of them.
        """
        if n not in self.continued:
            names = self.sites[len(self.draws) :]
            self.continued[n] = self._predict(n, self._cut(n), sites=names, seed=n) if names else {}
        return self._cut(n) | self.continued[n]

    def _cut(self, n: int) -> Draws:
        if not self.alone:
            return self.draws
        return {
            name: value if (axis := self.axes[name]) is None else value.narrow(axis, n, 1)
            for name, value in self.draws.items()
        }

    def keep(self, chosen: Tensor) -> None:
        """Leave out all draws but those of the given indices."""
        self.draws = {name: value[chosen.to(value.device)] for name, value in self.draws.items()}
        for n, draws in self.continued.items():
            self.continued[n] = {name: value[chosen.to(value.device)] for name, value in draws.items()}

    def unconstrained(self, draws: Mapping[str, Tensor]) -> dict[str, Array]:
        """Return draws in unconstrained coordinates, each `(num_draws, ...)`."""
        return {
            name: self.transforms[name].inv(value).double().cpu().numpy() for name, value in draws.items()
        }

    def constrained(self, values: Mapping[str, Array], like: Mapping[str, Tensor]) -> Draws:
        """Return draws from unconstrained coordinates, of the type and on the device of others."""
        return {name: self.transforms[name](like[name].new_tensor(x)) for name, x in values.items()}

    def run(
        self,
        n: int,
        draws: Mapping[str, Tensor],
        *,
        noise_free: bool,
        sites: Sequence[str] = OUTPUTS,
        seed: int = 0,
    ) -> dict[str, Array]:
        """Return outputs of trajectory `n` that the model records, each `(num_draws, time, *event)`."""
        found = self._predict(n, draws, sites=sites, seed=seed, noise_free=noise_free)
        index, length = (0 if self.alone else n), int(self.future.lengths[n])
        return {name: value[:, index, :length].double().cpu().numpy() for name, value in found.items()}

    def _predict(
        self,
        n: int,
        draws: Mapping[str, Tensor],
        *,
        sites: Sequence[str],
        seed: int,
        noise_free: bool = False,
    ) -> Draws:
        return predict(
            self.model,
            draws,
            self.future.select([n]) if self.alone else self.future,
            sites=sites,
            chunk_size=self.chunk_size,
            seed=seed,
            parameters=self.parameters,
            observed="means" if noise_free else "drawn",
        )

    def kinetic_energy(self, n: int, states: Array) -> Array | None:
        """Return the largest kinetic energy of each rollout, `(num_draws,)`, by the model's own energy.

        It is the energy at the fastest state less that at rest in the same place.

        Args:
            n: index of the trajectory.
            states: `(num_draws, time, 2 dim)`.

        Returns:
            `None` if the model has no sites of initial states to start from.
        """
        draws = self.own(n)
        if not self.alone or any(name not in draws for name in INITIAL_SITES):
            return None
        q, v = np.split(states, 2, axis=-1)
        scale = np.maximum(np.nanstd(v, axis=(0, 1)), 1e-300)  # draws without a path are NaN
        fastest = np.nan_to_num((v / scale) ** 2).sum(-1).argmax(-1)[:, None, None]
        q, v = (np.take_along_axis(x, fastest, axis=1) for x in (q, v))  # (num_draws, 1, dim)
        moving, resting = (self._start_energy(n, q, velocity) for velocity in (v, 0 * v))
        return np.abs(moving - resting)

    def _start_energy(self, n: int, q: Array, v: Array) -> Array:
        """Return the energy of the initial states q, v `(num_draws, 1, dim)` of a trajectory."""
        draws = self.own(n)
        given = {
            name: draws[name].new_tensor(x).reshape(draws[name].shape)
            for name, x in zip(INITIAL_SITES, (q, v), strict=True)
        }
        start = self.future.select([n]).first(1)
        found = predict(
            self.model,
            draws | given,
            start,
            sites=["energy"],
            chunk_size=self.chunk_size,
            parameters=self.parameters,
        )
        return found["energy"][:, 0, 0].double().cpu().numpy()

    @property
    def conserves_energy(self) -> bool:
        """Whether nothing in the model does work: no drive, and no forces of a VIN inside of it."""
        if self.future.drive is not None or "energy" not in self.trace.nodes:
            return False
        if any(part_of(name) == "forces" or name.startswith("discrepancy") for name in self.sites):
            return False
        modules = self.model.modules() if hasattr(self.model, "modules") else ()
        return not any(isinstance(module, VIN) and module.force_names for module in modules)
