"""The suite: one readable Pyro program per file, installed as `vinppl.models`."""

from vinppl.models.driven_mass import DrivenMass, DrivenMassConfig
from vinppl.models.duffing import Duffing, DuffingConfig
from vinppl.models.free_dynamics import FreeDynamics, FreeDynamicsConfig
from vinppl.models.hamiltonian import HamiltonianStates, HamiltonianStatesConfig
from vinppl.models.henon_heiles import HenonHeiles, HenonHeilesConfig
from vinppl.models.hierarchical import Hierarchical, HierarchicalConfig
from vinppl.models.mass_spring import MassSpring, MassSpringConfig
from vinppl.models.noisy_states import NoisyStates, NoisyStatesConfig
from vinppl.models.pendulum import Pendulum, PendulumConfig
from vinppl.models.pixel_free import PixelFree, PixelFreeConfig
from vinppl.models.pixel_vae import PixelVAE, PixelVAEConfig
from vinppl.models.pixels import PixelVIN, PixelVINConfig

__all__ = [
    "DrivenMass",
    "DrivenMassConfig",
    "Duffing",
    "DuffingConfig",
    "FreeDynamics",
    "FreeDynamicsConfig",
    "HamiltonianStates",
    "HamiltonianStatesConfig",
    "HenonHeiles",
    "HenonHeilesConfig",
    "Hierarchical",
    "HierarchicalConfig",
    "MassSpring",
    "MassSpringConfig",
    "NoisyStates",
    "NoisyStatesConfig",
    "Pendulum",
    "PendulumConfig",
    "PixelFree",
    "PixelFreeConfig",
    "PixelVAE",
    "PixelVAEConfig",
    "PixelVIN",
    "PixelVINConfig",
]
