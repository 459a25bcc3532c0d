"""The VIN as a Pyro component: sites, determinism, particles, energy, gradients of every option."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.dynamics import VIN
from vinppl.emissions import GaussianEmission
from vinppl.errors import PerformanceWarning, SolveError
from vinppl.forces import ControlSignal, CoulombFriction, Drive, LinearDamping, QuadraticDamping
from vinppl.integrators import INTEGRATORS
from vinppl.manifolds import Circle
from vinppl.mass import Diagonal, Full, MassSpec
from vinppl.nn import ACTIVATIONS
from vinppl.parameters import Learned
from vinppl.potentials import (
    AbstractPotential,
    CoupledSprings,
    DuffingPotential,
    FunctionPotential,
    Harmonic,
    KeplerPotential,
    NeuralPotential,
    PendulumPotential,
)
from vinppl.state import PhaseState, Trajectory
from vinppl.timegrid import TimeGrid

GRID = TimeGrid.regular(6, 0.1, dtype=torch.float64)
N = 4


def log_normal() -> dist.LogNormal:
    return dist.LogNormal(torch.tensor(0.0), torch.tensor(0.3))


class Model(PyroModule):
    """The shape of every model of the suite."""

    def __init__(self, vin: VIN, num_trajectories: int = N) -> None:
        super().__init__()
        self.vin, self.num = vin, num_trajectories
        self.emission = GaussianEmission(log_normal())

    def forward(self, obs: Tensor | None = None, control: ControlSignal | None = None) -> Trajectory:
        dim = self.vin.dim
        plate = pyro.plate("trajectory", self.num, dim=-1)
        with plate:
            q0 = pyro.sample("initial_position", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            v0 = pyro.sample("initial_velocity", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        path = self.vin(PhaseState(q0, v0), GRID, control=control)
        noise = self.emission(path.q, GRID.times)
        with plate:
            self.vin.record(path)
            pyro.sample("obs", noise, obs=obs)
        return path


def bayesian_vin() -> VIN:
    return VIN(
        Harmonic(log_normal(), dim=2), mass=Diagonal(log_normal()), forces=[LinearDamping(log_normal())]
    )


def test_sites_of_a_model() -> None:
    trace = poutine.trace(Model(bayesian_vin())).get_trace()
    shapes = {
        name: tuple(node["value"].shape)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name != "trajectory"
    }
    assert shapes == {
        "initial_position": (N, 2),
        "initial_velocity": (N, 2),
        "potential.stiffness": (2,),
        "mass": (2,),
        "damping.coefficient": (),
        "noise_scale": (),
        "states": (N, 6, 4),
        "obs": (N, 6, 2),
    }
    trace.compute_log_prob()
    assert math.isfinite(float(trace.log_prob_sum()))


def test_deterministic_given_its_sites() -> None:
    model = Model(bayesian_vin())
    trace = poutine.trace(model).get_trace()
    replayed = poutine.trace(poutine.replay(model, trace)).get_trace()
    states = trace.nodes["states"]["value"]
    assert torch.equal(replayed.nodes["states"]["value"], states)
    path = trace.nodes["_RETURN"]["value"]
    assert torch.equal(states, torch.cat([path.q, path.v], -1))
    fresh = poutine.trace(model).get_trace()
    assert not torch.equal(fresh.nodes["states"]["value"], states)


@pytest.mark.parametrize(
    "make", [bayesian_vin, lambda: VIN(NeuralPotential(2, hidden_sizes=(3,), weight_prior_scale=1.0))]
)
def test_vectorised_particles_equal_single_ones(make: Callable[[], VIN]) -> None:
    model = Model(make())
    num_particles = 3

    def vectorised() -> Trajectory:
        with pyro.plate("particles", num_particles, dim=-2):
            return model()

    neural = isinstance(model.vin.potential, NeuralPotential)
    notice = pytest.warns(PerformanceWarning, match="weights of several particles")
    with notice if neural else contextlib.nullcontext():
        trace = poutine.trace(vectorised).get_trace()
    together = trace.nodes["_RETURN"]["value"]
    assert together.q.shape == (num_particles, N, 6, 2)
    trace.compute_log_prob()
    sites = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name not in ("trajectory", "particles", "states", "obs")
    }
    for i in range(num_particles):
        values = {
            name: node["value"][i] if name.startswith("initial") else node["value"][i, 0]
            for name, node in sites.items()
        }
        single = poutine.condition(model, values)()
        torch.testing.assert_close(together.q[i], single.q, rtol=0, atol=1e-14)
        torch.testing.assert_close(together.v[i], single.v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("vectorize", [False, True])
def test_an_elbo_and_its_gradients_are_finite(vectorize: bool) -> None:
    model, obs = Model(bayesian_vin()), torch.randn(N, 6, 2)
    guide = AutoNormal(poutine.block(model, hide=["states"]))
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    guide(obs)
    loss = elbo.differentiable_loss(model, guide, obs)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).all()), name


@pytest.mark.parametrize("structure", ["scalar", "diagonal", "full"])
def test_energy_of_states_and_paths(structure: str) -> None:
    matrix = {"scalar": 2 * torch.eye(2), "diagonal": torch.tensor([1.0, 3.0]).diag()}.get(
        structure, torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    )
    value = {"scalar": torch.tensor(2.0), "diagonal": matrix.diagonal(), "full": matrix}[structure]
    vin = VIN(Harmonic(torch.tensor([1.0, 2.0]), dim=2), mass=MassSpec(value, structure))  # type: ignore[arg-type]
    path = vin(PhaseState(torch.randn(3, 2), torch.randn(3, 2)), GRID)
    energy = vin.energy(path)
    assert energy.shape == (3, 6)
    kinetic = 0.5 * torch.einsum("nti,ij,ntj->nt", path.v, matrix, path.v)
    expected = kinetic + 0.5 * (torch.tensor([1.0, 2.0]) * path.q.square()).sum(-1)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(vin.energy(path.at(2)), expected[:, 2])
    assert vin.energy(PhaseState(torch.zeros(2), torch.zeros(2))).shape == ()


def test_energy_with_particles_is_recorded_outside_of_inference() -> None:
    model = Model(bayesian_vin())

    def vectorised() -> Trajectory:
        with pyro.plate("particles", 3, dim=-2):
            return model()

    with torch.no_grad():
        trace = poutine.trace(vectorised).get_trace()
    energy, path = trace.nodes["energy"]["value"], trace.nodes["_RETURN"]["value"]
    assert energy.shape == (3, N, 6)
    mass, k = trace.nodes["mass"]["value"], trace.nodes["potential.stiffness"]["value"]  # (3, 1, 2)
    expected = 0.5 * (mass[:, :, None] * path.v**2 + k[:, :, None] * path.q**2).sum(-1)
    torch.testing.assert_close(energy, expected)
    assert "energy" not in poutine.trace(model).get_trace().nodes


# --- every parameter is reached, for every option ------------------------------------------------


def assert_all_reached(vin: VIN, control: ControlSignal | None = None) -> None:
    """Fail unless every parameter gets a finite non-zero gradient from a short path."""
    start = PhaseState(0.3 + torch.rand(3, vin.dim), 0.3 * torch.randn(3, vin.dim))
    path = vin(start, GRID, control=control)
    (path.q.square().sum() + path.v.square().sum()).backward()
    parameters = dict(vin.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("potential", ["pendulum", "neural"])
def test_gradients_for_every_integrator(integrator: str, potential: str) -> None:
    of = {
        "pendulum": lambda: PendulumPotential(Learned(9.82), angle_offset=Learned(0.1)),
        "neural": lambda: NeuralPotential(Circle(), hidden_sizes=(5,)),
    }
    forces = [
        LinearDamping(Learned(0.1)),
        QuadraticDamping(Learned(0.1)),
        Drive(Learned(0.5), offset=Learned(0.1)),
    ]
    times = torch.linspace(-0.2, 0.7, 10)  # composed integrators reach beyond the ends
    vin = VIN(of[potential](), mass=Learned(1.2), forces=forces, integrator=integrator)
    assert_all_reached(vin, ControlSignal(times, times.cos().unsqueeze(-1)))


@pytest.mark.parametrize(
    "potential",
    [
        lambda: Harmonic(Learned(2.0), dim=2),
        lambda: DuffingPotential(Learned(1.0), Learned(0.5)),
        lambda: KeplerPotential(Learned(1.0), dim=3),
        lambda: CoupledSprings(Learned(1.0), dim=3),
        lambda: CoupledSprings(Learned(1.0), dim=3, fixed_ends=False),
        lambda: FunctionPotential(lambda q, a: (a * q.cosh()).sum(-1), {"a": Learned(1.0)}, manifold=2),
        *(
            lambda a=a: NeuralPotential(2, hidden_sizes=(4, 3), activation=a, input_scale=2.0)
            for a in ACTIVATIONS
        ),
    ],
)
@pytest.mark.parametrize("mass", ["scalar", "diagonal", "full"])
def test_gradients_for_every_potential_and_mass(
    potential: Callable[[], AbstractPotential], mass: str
) -> None:
    made = potential()
    dim = made.manifold.dim
    init = torch.eye(dim) + 0.2 * torch.ones(dim, dim) if mass == "full" else 1.2
    spec = {"scalar": lambda x: MassSpec(x), "diagonal": Diagonal, "full": Full}[mass](Learned(init))
    friction = CoulombFriction(Learned(0.1), smoothing=Learned(0.3))
    assert_all_reached(VIN(made, mass=spec, forces=[LinearDamping(Learned(0.1), dim=dim), friction]))


# --- options and bad input -----------------------------------------------------------------------


def test_a_drive_wants_its_signal() -> None:
    vin = VIN(Harmonic(), forces=[Drive()])
    with pytest.raises(ValueError, match="a VIN with a Drive needs the input signal; got control=None"):
        vin(PhaseState(torch.zeros(1), torch.zeros(1)), GRID)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="integrator must be one of"):
        VIN(Harmonic(), integrator="leapfrog")
    with pytest.raises(ValueError, match="the Lie-group integrator needs at least one angle"):
        VIN(Harmonic(), integrator="so2")
    with pytest.raises(ValueError, match="forces must have different names; got two called damping"):
        VIN(Harmonic(), forces=[LinearDamping(0.1), LinearDamping(0.2)])
    with pytest.raises(ValueError, match="backend must be one of"):
        VIN(Harmonic(), backend="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"initial position must have shape \(\*batch, 2\)"):
        VIN(Harmonic(dim=2))(PhaseState(torch.zeros(3), torch.zeros(3)), GRID)
    with pytest.raises(ValueError, match="scalar or diagonal mass"):
        VIN(PendulumPotential(), mass=Full(torch.eye(1)), integrator="so2")(
            PhaseState(torch.zeros(1), torch.zeros(1)), GRID
        )


def test_unsolvable_steps_raise_outside_of_inference_and_become_nan_inside() -> None:
    vin = VIN(PendulumPotential(1.0), integrator="so2")
    fast = PhaseState(torch.zeros(1), torch.tensor([20.0]))
    with pytest.raises(SolveError, match="has no solution"):
        vin(fast, GRID)
    trace = poutine.trace(lambda: vin(fast, GRID)).get_trace()
    path = trace.nodes["_RETURN"]["value"]
    assert bool(path.q[1:].isnan().all())
    assert torch.equal(path.q[0], fast.q)
