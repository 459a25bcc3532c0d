"""Probabilistic models of mechanical systems on variational integrator networks.

Symbols, with units of length L (or radians), time T, mass M and energy E = M L^2 / T^2:

======  ==========================================  =========  =============================
symbol  meaning                                     unit       in public signatures
======  ==========================================  =========  =============================
q       generalised positions                       L or rad   `position`, `PhaseState.q`
v       velocities dq/dt                            L / T      `velocity`, `PhaseState.v`
p       momenta M v                                 M L / T    -
h       step size of an integrator                  T          `step_size`
M       inertia matrix                              M          `mass`
V       potential energy; force = -dV/dq            E          `potential`
L       Lagrangian 1/2 v^T M v - V                  E          -
sigma   standard deviation of measurement noise     channel's  `noise_scale`
======  ==========================================  =========  =============================

Batch dimensions lead, time is second to last, the coordinate is last. `scale` is always a
standard deviation; `num_*` counts, `dim_*` are dimensions. Public names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "AR1Emission": "emissions",
    "AmortisedGuide": "guides",
    "Channel": "data",
    "Circle": "manifolds",
    "ColumnSpec": "data",
    "ControlSignal": "forces",
    "ConvergenceWarning": "errors",
    "CoulombFriction": "forces",
    "CoupledSprings": "potentials",
    "DataError": "errors",
    "DiscrepancyForce": "discrepancy",
    "Drive": "forces",
    "DuffingPotential": "potentials",
    "Euclidean": "manifolds",
    "FlatPotential": "potentials",
    "FullRankGuide": "guides",
    "FunctionPotential": "potentials",
    "GaussianEmission": "emissions",
    "Harmonic": "potentials",
    "INTEGRATORS": "integrators",
    "KeplerPotential": "potentials",
    "Learned": "parameters",
    "LinearDamping": "forces",
    "LogDensity": "logdensity",
    "MCMCOptions": "fit",
    "Manifold": "manifolds",
    "MassSpec": "mass",
    "Mechanics": "integrators",
    "NeuralPotential": "potentials",
    "NonFiniteError": "errors",
    "NumericalWarning": "errors",
    "PendulumPotential": "potentials",
    "PhaseState": "state",
    "QuadraticDamping": "forces",
    "SVIOptions": "fit",
    "SYSTEMS": "systems",
    "SolveError": "errors",
    "StudentTEmission": "emissions",
    "TimeGrid": "timegrid",
    "Torus": "manifolds",
    "Trajectories": "data",
    "Trajectory": "state",
    "VIN": "dynamics",
    "extend": "forecast",
    "fit_mcmc": "fit",
    "fit_svi": "fit",
    "from_mcmc": "posterior",
    "from_svi": "posterior",
    "growth_verdict": "growth",
    "make_integrator": "integrators",
    "maximal_lyapunov_exponent": "lyapunov",
    "predict": "draws",
    "read_result": "export",
    "read_trajectories": "data",
    "system": "systems",
    "uncertainty_growth": "growth",
    "write_csv": "data",
    "write_result": "export",
}

__all__ = [
    "INTEGRATORS",
    "SYSTEMS",
    "VIN",
    "AR1Emission",
    "AmortisedGuide",
    "Channel",
    "Circle",
    "ColumnSpec",
    "ControlSignal",
    "ConvergenceWarning",
    "CoulombFriction",
    "CoupledSprings",
    "DataError",
    "DiscrepancyForce",
    "Drive",
    "DuffingPotential",
    "Euclidean",
    "FlatPotential",
    "FullRankGuide",
    "FunctionPotential",
    "GaussianEmission",
    "Harmonic",
    "KeplerPotential",
    "Learned",
    "LinearDamping",
    "LogDensity",
    "MCMCOptions",
    "Manifold",
    "MassSpec",
    "Mechanics",
    "NeuralPotential",
    "NonFiniteError",
    "NumericalWarning",
    "PendulumPotential",
    "PhaseState",
    "QuadraticDamping",
    "SVIOptions",
    "SolveError",
    "StudentTEmission",
    "TimeGrid",
    "Torus",
    "Trajectories",
    "Trajectory",
    "extend",
    "fit_mcmc",
    "fit_svi",
    "from_mcmc",
    "from_svi",
    "growth_verdict",
    "make_integrator",
    "maximal_lyapunov_exponent",
    "predict",
    "read_result",
    "read_trajectories",
    "system",
    "uncertainty_growth",
    "write_csv",
    "write_result",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vinppl.data import Channel, ColumnSpec, Trajectories, read_trajectories, write_csv
    from vinppl.discrepancy import DiscrepancyForce
    from vinppl.draws import predict
    from vinppl.dynamics import VIN
    from vinppl.emissions import AR1Emission, GaussianEmission, StudentTEmission
    from vinppl.errors import ConvergenceWarning, DataError, NonFiniteError, NumericalWarning, SolveError
    from vinppl.export import read_result, write_result
    from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
    from vinppl.forces import ControlSignal, CoulombFriction, Drive, LinearDamping, QuadraticDamping
    from vinppl.forecast import extend
    from vinppl.growth import growth_verdict, uncertainty_growth
    from vinppl.guides import AmortisedGuide, FullRankGuide
    from vinppl.integrators import INTEGRATORS, Mechanics, make_integrator
    from vinppl.logdensity import LogDensity
    from vinppl.lyapunov import maximal_lyapunov_exponent
    from vinppl.manifolds import Circle, Euclidean, Manifold, Torus
    from vinppl.mass import MassSpec
    from vinppl.parameters import Learned
    from vinppl.posterior import from_mcmc, from_svi
    from vinppl.potentials import (
        CoupledSprings,
        DuffingPotential,
        FlatPotential,
        FunctionPotential,
        Harmonic,
        KeplerPotential,
        NeuralPotential,
        PendulumPotential,
    )
    from vinppl.state import PhaseState, Trajectory
    from vinppl.systems import SYSTEMS, system
    from vinppl.timegrid import TimeGrid


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, so that `import vinppl` needs no torch."""
    if name in __all__:
        value = getattr(importlib.import_module(f"vinppl.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vinppl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
