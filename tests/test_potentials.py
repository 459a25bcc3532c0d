"""Potentials: the public battery over every one, their formulas, particles and bad functions."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from vinppl.dynamics import VIN
from vinppl.manifolds import Circle, Euclidean, Manifold, Torus
from vinppl.nn import RandomFeatures
from vinppl.parameters import Learned
from vinppl.potentials import (
    AbstractPotential,
    BoundPotential,
    CoupledSprings,
    DuffingPotential,
    FlatPotential,
    FunctionPotential,
    Harmonic,
    KeplerPotential,
    NeuralPotential,
    PendulumPotential,
)
from vinppl.state import PhaseState
from vinppl.systems import CoupledOscillators, Duffing, Kepler, Pendulum
from vinppl.testing import check_potential
from vinppl.timegrid import TimeGrid

Q = torch.tensor([[0.3, -0.7, 1.1], [1.5, 0.2, -0.4]], dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


MIXED = Manifold((True, False, True))


def random_features(manifold: Manifold, **options: float) -> NeuralPotential:
    """A potential of random features with fixed output weights (without, every `bind` draws new ones)."""
    network = RandomFeatures(manifold.num_features, 8, generator=seeded())
    network.output = torch.randn(8, generator=seeded())
    return NeuralPotential(manifold, network=network, **options)


POTENTIALS: dict[str, Callable[[], AbstractPotential]] = {
    "harmonic": lambda: Harmonic(2.0),
    "harmonic3": lambda: Harmonic(torch.tensor([1.0, 2.0, 3.0]), dim=3),
    "pendulum": lambda: PendulumPotential(9.82),
    "pendulum_offset": lambda: PendulumPotential(9.82, angle_offset=0.3),
    "duffing": lambda: DuffingPotential(-1.0, 2.0),
    "flat": lambda: FlatPotential(dim=2),
    "kepler2": lambda: KeplerPotential(1.5),
    "kepler3": lambda: KeplerPotential(1.5, dim=3),
    "springs": lambda: CoupledSprings(torch.tensor([1.0, 2.0, 3.0]), dim=2),
    "springs_free": lambda: CoupledSprings(torch.tensor([1.0, 2.0, 3.0]), dim=3, fixed_ends=False),
    "spring_one": lambda: CoupledSprings(2.0, dim=1),
    "neural1": lambda: NeuralPotential(1, hidden_sizes=(8,), generator=seeded()),
    "neural3": lambda: NeuralPotential(3, hidden_sizes=(8, 5), input_scale=2.0, generator=seeded()),
    "neural_circle": lambda: NeuralPotential(Circle(), hidden_sizes=(8,), generator=seeded()),
    "neural_torus": lambda: NeuralPotential(Torus(2), hidden_sizes=(8,), input_scale=3.0, generator=seeded()),
    "neural_mixed": lambda: NeuralPotential(
        Manifold((True, False, True)), hidden_sizes=(8,), input_scale=3.0, generator=seeded()
    ),
    "random_features1": lambda: random_features(Euclidean(1), input_scale=2.0, energy_scale=3.0),
    "random_features_circle": lambda: random_features(Circle()),
    "random_features_mixed": lambda: random_features(MIXED, input_scale=3.0, energy_scale=0.5),
    "neural_bayesian": lambda: NeuralPotential(2, hidden_sizes=(4,), weight_prior_scale=1.0),
    "function": lambda: FunctionPotential(
        lambda q, a, b: (a * q**4).sum(-1) + (b * q).sum(-1).cos(),
        {"a": 0.25, "b": torch.tensor([1.0, 2.0])},
        manifold=2,
    ),
    "prior": lambda: Harmonic(dist.LogNormal(torch.tensor(0.0), torch.tensor(1.0)), dim=2),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_contract(name: str) -> None:
    check_potential(POTENTIALS[name]())


class _Wrong(AbstractPotential):
    """A harmonic potential with one thing wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.manifold = Circle()

    def bind(self) -> BoundPotential:
        gradients = {
            "sign": lambda q: -q.sin(),
            "shape": lambda q: q.sin().sum(-1),
            "period": lambda q: q,
        }
        values = {"period": lambda q: 0.5 * (q * q).sum(-1)}
        return BoundPotential(values.get(self.fault, lambda q: -q.cos().sum(-1)), gradients[self.fault])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sign", "gradient differs from the derivative of value"),
        ("shape", "must map positions"),
        ("period", "a full turn of its angles changes it"),
    ],
)
def test_the_battery_catches_a_wrong_potential(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_potential(_Wrong(fault))


def test_agreement_with_the_ground_truths() -> None:
    chain = CoupledOscillators(masses=(1.0, 1.0), stiffnesses=(2.0, 1.0, 3.0))
    pairs: list[tuple[AbstractPotential, Callable[[Tensor], Tensor], int]] = [
        (PendulumPotential(9.82), lambda q: Pendulum().potential(q) - 9.82, 1),
        (DuffingPotential(1.5, 2.0), Duffing(stiffness=1.5, cubic=2.0).potential, 1),
        (KeplerPotential(1.3), Kepler(mass=1.3).potential, 2),
        (CoupledSprings(torch.tensor([2.0, 1.0, 3.0])), chain.potential, 2),
    ]
    for potential, truth, dim in pairs:
        q = Q[:, :dim]
        torch.testing.assert_close(potential.bind().value(q), truth(q), rtol=1e-14, atol=1e-14)


def test_a_free_end_is_the_chain_without_its_last_spring() -> None:
    free = CoupledSprings(torch.tensor([2.0, 1.0]), dim=2, fixed_ends=False).bind()
    truth = CoupledOscillators(masses=(1.0, 1.0), stiffnesses=(2.0, 1.0, 0.0))
    torch.testing.assert_close(free.value(Q[:, :2]), truth.potential(Q[:, :2]))
    torch.testing.assert_close(-free.gradient(Q[:, :2]), truth.force(Q[:, :2], Q[:, :2], 0.0))


@pytest.mark.parametrize("state_batch", [(3, 5), (5,)])
@pytest.mark.parametrize(
    "make",
    [
        lambda k: Harmonic(k),
        lambda k: Harmonic(k, dim=3),
        lambda k: PendulumPotential(k, angle_offset=k),
        lambda k: DuffingPotential(k, k),
        lambda k: KeplerPotential(k),
        lambda k: CoupledSprings(k, dim=3),
        lambda k: FunctionPotential(lambda q, k: (k * q.cos()).sum(-1), {"k": k}, manifold=2),
    ],
)
def test_parameters_with_particle_dimensions(
    make: Callable[[object], AbstractPotential], state_batch: tuple[int, ...]
) -> None:
    # Three particles of parameters against states of five trajectories, with and without particles.
    prior = dist.LogNormal(torch.tensor(0.0), torch.tensor(1.0))
    potential = make(prior)
    dim = potential.manifold.dim
    draws = {}
    for name in ("stiffness", "gravity_over_length", "angle_offset", "cubic", "attraction", "k"):
        if hasattr(type(potential), name) or name in potential._pyro_samples:
            shape = getattr(potential, name).shape
            draws[name] = torch.rand(3, 1, *shape) + 0.5

    class Drawn(type(potential)):  # type: ignore[misc]
        particle: int | None = None

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            if name in draws:
                return draws[name] if self.particle is None else draws[name][self.particle, 0]
            return super().__getattr__(name)

        def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
            return self.__getattr__(name) if name in draws else super().__getattribute__(name)

    assert draws
    potential.__class__ = Drawn
    q = torch.rand(*state_batch, dim) + 0.5
    together = potential.bind()
    value, gradient = together.value(q), together.gradient(q)
    assert value.shape == (3, 5)
    assert gradient.shape == (3, 5, dim)
    for i in range(3):
        potential.particle = i
        one = potential.bind()
        qi = q[i] if len(state_batch) == 2 else q
        torch.testing.assert_close(value[i], one.value(qi))
        torch.testing.assert_close(gradient[i], one.gradient(qi))


@pytest.mark.parametrize("name", POTENTIALS)
def test_every_parameter_gets_a_gradient_through_the_force(name: str) -> None:
    learned: dict[str, Callable[[], AbstractPotential]] = {
        "harmonic": lambda: Harmonic(Learned(2.0)),
        "pendulum_offset": lambda: PendulumPotential(Learned(9.82), angle_offset=Learned(0.3)),
        "duffing": lambda: DuffingPotential(Learned(-1.0), Learned(2.0)),
        "kepler2": lambda: KeplerPotential(Learned(1.5)),
        "springs": lambda: CoupledSprings(Learned(2.0)),
        "function": lambda: FunctionPotential(
            lambda q, a: (a * q**4).sum(-1), {"a": Learned(0.25)}, supports={"a": constraints.positive}
        ),
    }
    potential = learned.get(name, POTENTIALS[name])()
    q = torch.rand(5, potential.manifold.dim) + 0.2
    parameters = dict(potential.named_parameters())
    if not parameters:
        pytest.skip("nothing to learn")
    bound = potential.bind()
    bound.gradient(q).square().sum().backward()
    for label, parameter in parameters.items():
        assert parameter.grad is not None, label
        assert bool(torch.isfinite(parameter.grad).all()), label
        assert float(parameter.grad.abs().sum()) > 0, label


def test_the_force_of_a_function_is_twice_differentiable_and_obeys_no_grad() -> None:
    potential = FunctionPotential(lambda q, a: (a * q**4).sum(-1), {"a": Learned(0.25)})
    bound = potential.bind()
    q = torch.tensor([1.5], requires_grad=True)
    force = bound.gradient(q)
    (curvature,) = torch.autograd.grad(force.sum(), q)
    torch.testing.assert_close(curvature, 3 * q.detach() ** 2)
    with torch.no_grad():
        assert not bound.gradient(q).requires_grad
        assert not bound.gradient(q.detach()).requires_grad


def test_bad_functions_and_options() -> None:
    unsummed = FunctionPotential(lambda q: q**2, manifold=2).bind()
    with pytest.raises(ValueError, match=r"must map \(\*batch, dim\) to \(\*batch,\).*Sum over the last"):
        unsummed.value(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"must map \(\*batch, dim\)"):
        unsummed.gradient(torch.ones(2, 2))
    with pytest.raises(ValueError, match="dim of a Kepler potential must be 2 or 3; got 1"):
        KeplerPotential(dim=1)
    with pytest.raises(ValueError, match="input_scale must be positive; got 0"):
        NeuralPotential(1, input_scale=0)
    with pytest.raises(ValueError, match="network must take the 2 features of the manifold; got one of 1 in"):
        NeuralPotential(Circle(), network=RandomFeatures(1))
    with pytest.raises(ValueError, match="the network must be RandomFeatures; got ScalarMLP"):
        NeuralPotential(1).feature_gradients(torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"stiffness must have shape \(2,\)"):
        Harmonic(torch.ones(3), dim=2)


def test_an_input_scale_rescales_lines_only() -> None:
    plain, scaled = (
        NeuralPotential(
            Manifold((False, True)),
            hidden_sizes=(4,),
            input_scale=s,
            generator=torch.Generator().manual_seed(1),
        ).bind()
        for s in (1.0, 2.0)
    )
    q = torch.randn(5, 2)
    torch.testing.assert_close(scaled.value(q), plain.value(q * torch.tensor([0.5, 1.0])))


# Random features

MANIFOLDS = {"line": Euclidean(1), "plane": Euclidean(2), "circle": Circle(), "mixed": MIXED}


@pytest.mark.parametrize("name", MANIFOLDS)
def test_gradients_of_features_add_up_to_the_gradient(name: str) -> None:
    manifold = MANIFOLDS[name]
    potential = random_features(manifold, input_scale=2.0, energy_scale=3.0)
    q = 2 * torch.randn(5, manifold.dim)
    columns = potential.feature_gradients(q)
    assert columns.shape == (8, 5, manifold.dim)
    weights = potential.network.output
    # Rounding of a sum of eight products of size ten, in another order.
    expected = potential.bind().gradient(q)
    torch.testing.assert_close(torch.einsum("k,knd->nd", weights, columns), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("manifold", "integrator"),
    [
        ("line", "velocity_verlet"),
        ("plane", "stormer_verlet"),
        ("plane", "verlet4"),
        ("circle", "so2"),
        ("mixed", "velocity_verlet"),
    ],
)
def test_compiled_rollouts_of_random_features_agree_with_the_reference(
    manifold: str, integrator: str
) -> None:
    space = MANIFOLDS[manifold]
    output = torch.randn(8)
    grid = TimeGrid.regular(20, 0.05)
    q, v = 0.5 * torch.randn(4, space.dim), 0.5 * torch.randn(4, space.dim)
    found = []
    for backend in ("auto", "reference"):  # warnings are errors: what is not compiled would say so
        leaves = [x.clone().requires_grad_() for x in (output, q, v)]
        potential = random_features(space, input_scale=1.3, energy_scale=1.7)
        potential.network.output = leaves[0]
        vin = VIN(potential, integrator=integrator, backend=backend)  # type: ignore[arg-type]
        path = vin(PhaseState(leaves[1], leaves[2]), grid)
        loss = path.q.sin().sum() + path.v.square().sum()
        found.append([path.q.detach(), path.v.detach(), *torch.autograd.grad(loss, leaves)])
    for compiled, reference in zip(*found, strict=True):
        assert float(reference.abs().max()) > 1e-3
        # A second of motion: rounding grows by some e^5 at most.
        torch.testing.assert_close(compiled, reference, rtol=1e-10, atol=1e-10)
