"""Variational integrator networks as Pyro components.

A `VIN` holds a potential, a mass, forces and an integrator. Called on an initial
state and a time grid it is a deterministic function of its sites: whatever has a
prior is sampled where the call stands in the user's model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from vinppl._checks import require
from vinppl.forces import AbstractDamping, ControlSignal, Drive, KnotSignal, combine_damping
from vinppl.integrators import AbstractIntegrator, Mechanics, make_integrator
from vinppl.mass import MassSpec, bind_mass, declare_mass
from vinppl.parameters import Component, Spec
from vinppl.potentials import AbstractPotential, BoundPotential
from vinppl.rollout import BACKENDS, Backend, record_path, rollout
from vinppl.state import PhaseState, Trajectory, check_phase_state
from vinppl.timegrid import TimeGrid

__all__ = ["VIN"]


class VIN(Component):
    """A variational integrator network: L = 1/2 v^T M v - V(q), discretised (paper section 3).

    Call it outside of plates: its sites belong to the system, not to a trajectory.
    It broadcasts over all leading dimensions (trajectories, particles, chains).

    Example:
        >>> vin = VIN(PendulumPotential(9.82), integrator="so2")
        >>> start = PhaseState(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> vin(start, TimeGrid.regular(100, 0.1)).q.shape
        torch.Size([100, 1])

    Args:
        potential: V and, through its manifold, the configuration space.
        mass: number, tensor, `Learned`, prior or `MassSpec`; site `mass`.
        forces: damping and drives; each hangs under its `default_name`, so the sites are
            `damping.coefficient`, `drag.coefficient`, `friction.coefficient`, `drive.gain`.
        integrator: a name from `INTEGRATORS` or an integrator.
        backend: how the loop over time is run; see `vinppl.rollout`.

    Sites:
        `mass`, `potential.*` and those of the forces, where they have priors.

    Raises:
        ValueError: for an unknown integrator, or one that needs angles (`so2`) on a
            configuration space without any, or two forces of one name.
    """

    transparent: ClassVar[bool] = True

    def __init__(
        self,
        potential: AbstractPotential,
        *,
        mass: Spec | MassSpec = 1.0,
        forces: Sequence[AbstractDamping | Drive] = (),
        integrator: str | AbstractIntegrator = "velocity_verlet",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.manifold = potential.manifold
        self.integrator = make_integrator(integrator)
        require(
            self.integrator.chart != "lie_group" or self.manifold.any_periodic,
            "the Lie-group integrator needs at least one angle",
            f"a manifold with periodic={self.manifold.periodic}",
            "Give the potential a Circle, Torus or mixed Manifold, or use 'velocity_verlet'.",
        )
        require(backend in BACKENDS, f"backend must be one of {', '.join(BACKENDS)}", backend)
        self.backend: Backend = backend
        self.potential = potential
        self.mass_spec = mass if isinstance(mass, MassSpec) else MassSpec(mass)
        declare_mass(self, self.mass_spec, self.dim)
        self.force_names: list[str] = []
        for force in forces:
            name = force.default_name
            require(name not in self.force_names, "forces must have different names", f"two called {name}")
            self.force_names.append(name)
            setattr(self, name, force)

    @property
    def dim(self) -> int:
        """Number of generalised coordinates."""
        return self.manifold.dim

    def bind(self) -> tuple[Mechanics, BoundPotential, Callable[[Tensor], Tensor] | None]:
        """Read every site once and return the system, its potential, and the drive's force law."""
        potential = self.potential.bind()
        mass = bind_mass(self.mass, self.mass_spec)
        forces = [getattr(self, name) for name in self.force_names]
        damping = combine_damping([f.bind() for f in forces if isinstance(f, AbstractDamping)])
        drives = [f.bind() for f in forces if isinstance(f, Drive)]
        system = Mechanics(potential.gradient, mass, damping, self.manifold.periodic)
        return system, potential, drives[0] if drives else None

    def forward(
        self,
        initial: PhaseState,
        grid: TimeGrid,
        *,
        control: ControlSignal | None = None,
        force: KnotSignal | None = None,
    ) -> Trajectory:
        """Roll the network out: x_t = f_theta(x_1, h, t), paper eq. (13).

        Args:
            initial: state at the first time, shapes `(*batch, dim)`.
            grid: sampling times; `(time,)` or `(*batch, time)`.
            control: the known input, where a `Drive` is among the forces.
            force: a generalised force over time beside those of the system, for each trajectory, such as
                that of `vinppl.discrepancy`.

        Returns:
            The path, shapes `(*batch, time, dim)`.

        Raises:
            ValueError: on a wrong shape, or a drive without its signal.
            SolveError: where an implicit step has no solution. Under inference the path is NaN from
                there on instead: NUTS then rejects the point and SVI reports the step.
        """
        check_phase_state(initial, self.dim)
        system, _, drive_force = self.bind()
        require(
            drive_force is None or control is not None,
            "a VIN with a Drive needs the input signal",
            "control=None",
            "Pass control=ControlSignal(times, values), for data: data.control().",
        )
        known: list[Callable[[Tensor], Tensor]] = [] if force is None else [force.at]
        if drive_force is not None and control is not None:
            law, signal = drive_force, control
            known.append(lambda times: law(signal.at(times)))

        def drive(times: Tensor) -> Tensor:
            total = functools.reduce(torch.add, (f(times) for f in known)).movedim(-2, 0)  # (n, *batch, dim)
            return system.mass.solve(total).movedim(0, -2)

        return rollout(
            system,
            initial,
            grid,
            integrator=self.integrator,
            drive=drive if known else None,
            backend=self.backend,
            throw=not am_i_wrapped(),
        )

    def energy(self, state: PhaseState | Trajectory) -> Tensor:
        """Return T + V, shape `(*batch,)` of a state or `(*batch, time)` of a path.

        Reads the sites again: inside a model they keep their values, outside they are redrawn.
        """
        _, potential, _ = self.bind()
        mass = bind_mass(self.mass, self.mass_spec)
        if isinstance(state, PhaseState):
            return 0.5 * (state.v * mass.apply(state.v)).sum(-1) + potential.value(state.q)
        # Parameters carry (*batch, 1): put time in front so that they broadcast.
        q, v = state.q.movedim(-2, 0), state.v.movedim(-2, 0)
        energy = 0.5 * (v * mass.apply(v)).sum(-1) + potential.value(q)
        return energy.movedim(0, -1)

    def record(self, trajectory: Trajectory) -> None:
        """Store the path and, outside of inference, its energy; see `vinppl.rollout.record_path`."""
        record_path(trajectory, self.energy)
