"""Quantities: constants, learned parameters and priors; their names, supports, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from vinppl.dynamics import VIN
from vinppl.emissions import GaussianEmission
from vinppl.forces import CoulombFriction, Drive, LinearDamping, QuadraticDamping
from vinppl.mass import Diagonal, Full
from vinppl.parameters import Component, Learned, align, move_distribution
from vinppl.potentials import CoupledSprings, Harmonic, NeuralPotential, PendulumPotential

log_normal = dist.LogNormal(torch.tensor(0.0), torch.tensor(0.5))


class Box(Component):
    def __init__(
        self, spec: object, support: object = constraints.positive, shape: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.declare("size", spec, support=support, shape=shape)  # type: ignore[arg-type]


class Reads(PyroModule):
    """A model that does one thing with its child `part`."""

    def __init__(self, part: Component, read: Callable[[Any], object]) -> None:
        super().__init__()
        self.part, self.read = part, read

    def forward(self) -> None:
        self.read(self.part)


def trace_of(part: Component, read: Callable[[Any], object]) -> poutine.Trace:
    return poutine.trace(Reads(part, read)).get_trace()


def site_names(trace: poutine.Trace) -> dict[str, str]:
    """Return the type of every sample and param site."""
    return {name: node["type"] for name, node in trace.nodes.items() if node["type"] in ("sample", "param")}


def test_a_number_is_a_constant() -> None:
    box = Box(2.0)
    assert site_names(trace_of(box, lambda b: b.size)) == {}
    assert box.size.tolist() == 2.0
    assert list(box.parameters()) == []
    assert set(box.state_dict()) == {"size"}


def test_a_constant_is_expanded_and_does_not_share_memory() -> None:
    value = torch.tensor([1.0, 2.0])
    box = Box(value, shape=(3, 2))
    value += 1
    assert box.size.tolist() == [[1.0, 2.0]] * 3


def test_a_learned_quantity_is_a_parameter_on_its_support() -> None:
    box = Box(Learned(2.0), shape=(2,))
    assert site_names(trace_of(box, lambda b: b.size)) == {"part.size": "param"}
    torch.testing.assert_close(box.size.detach(), torch.tensor([2.0, 2.0]))
    optimiser = torch.optim.SGD(box.parameters(), lr=10.0)
    for _ in range(5):
        box.zero_grad()
        box.size.sum().backward()
        optimiser.step()
    assert bool((box.size > 0).all())


def test_a_prior_is_a_latent_site_of_the_declared_shape() -> None:
    box = Box(log_normal, shape=(2, 3))
    site = trace_of(box, lambda b: b.size).nodes["part.size"]
    assert site["value"].shape == site["fn"].event_shape == (2, 3)
    scales = dist.LogNormal(torch.zeros(3), torch.ones(3))
    assert Box(scales, shape=(3,)).size.shape == (3,)


def test_a_prior_is_drawn_once_in_a_model_and_anew_outside() -> None:
    box = Box(log_normal)
    assert not torch.equal(box.size, box.size)

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.box = box

        def forward(self) -> tuple[Tensor, Tensor]:
            return self.box.size, self.box.size

    first, second = Model()()
    assert torch.equal(first, second)


class Model(PyroModule):
    def __init__(self, vin: VIN) -> None:
        super().__init__()
        self.vin = vin
        self.emission = GaussianEmission(log_normal)

    def forward(self) -> None:
        self.vin.bind()
        _ = self.emission.noise_scale


def test_site_names_leave_out_transparent_components() -> None:
    vin = VIN(
        Harmonic(log_normal, dim=2),
        mass=Diagonal(log_normal),
        forces=[
            LinearDamping(log_normal),
            QuadraticDamping(Learned(0.1)),
            CoulombFriction(log_normal, smoothing=log_normal),
            Drive(dist.Normal(torch.tensor(0.0), torch.tensor(1.0)), dim=2),
        ],
    )
    names = site_names(poutine.trace(Model(vin)).get_trace())
    assert {name for name, kind in names.items() if kind == "sample"} == {
        "potential.stiffness",
        "mass",
        "damping.coefficient",
        "friction.coefficient",
        "friction.smoothing",
        "drive.gain",
        "noise_scale",
    }
    assert {name for name, kind in names.items() if kind == "param"} == {"drag.coefficient"}


def test_site_names_of_a_bare_vin_and_of_a_bayesian_network() -> None:
    vin = VIN(PendulumPotential(log_normal), mass=log_normal)
    assert set(site_names(trace_of(vin, VIN.bind))) == {"potential.gravity_over_length", "mass"}
    network = VIN(NeuralPotential(1, hidden_sizes=(3,), weight_prior_scale=1.0))
    assert set(site_names(poutine.trace(Model(network)).get_trace())) == {
        "potential.network.weight_0",
        "potential.network.bias_0",
        "potential.network.weight_1",
        "noise_scale",
    }


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.tensor(1.0), torch.tensor(0.1)),
        dist.Uniform(torch.tensor(-1.0), torch.tensor(1.0)),
        dist.Normal(torch.zeros(2), torch.ones(2)),
        dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1),
        dist.StudentT(torch.tensor(3.0)),
    ],
)
def test_priors_that_reach_outside_a_positive_support_are_refused(prior: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"the prior of size must keep to its support GreaterThan"):
        Box(prior, shape=(2,))


@pytest.mark.parametrize(
    "prior",
    [
        log_normal,
        dist.HalfNormal(torch.tensor(1.0)),
        dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)),
        dist.Uniform(torch.tensor(0.5), torch.tensor(1.0)),
        dist.TransformedDistribution(
            dist.Normal(torch.tensor(0.0), torch.tensor(1.0)), [dist.transforms.ExpTransform()]
        ),
    ],
)
def test_positive_priors_are_taken(prior: dist.Distribution) -> None:
    assert Box(prior).size > 0


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch 2.13 says so of every Wishart draw
def test_a_prior_over_matrices_is_wanted_for_a_full_mass() -> None:
    with pytest.raises(ValueError, match=r"the prior of mass must keep to its support PositiveDefinite"):
        VIN(Harmonic(dim=2), mass=Full(log_normal))
    wishart = dist.Wishart(torch.tensor(4.0), torch.eye(2))
    assert VIN(Harmonic(dim=2), mass=Full(wishart)).mass.shape == (2, 2)


def test_values_outside_the_support_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size must lie in its support .*; got -1"):
        Box(-1.0)
    with pytest.raises(ValueError, match=r"size must lie in its support .*; got 0"):
        Box(Learned(0.0))
    with pytest.raises(ValueError, match="mass must lie in its support"):
        VIN(Harmonic(dim=2), mass=Full(torch.tensor([[1.0, 2.0], [2.0, 1.0]])))


def test_a_learned_quantity_cannot_start_where_its_logarithm_is_infinite() -> None:
    assert LinearDamping(0.0).coefficient == 0.0
    with pytest.raises(ValueError, match="a learned coefficient must start above zero"):
        LinearDamping(Learned(0.0))


def test_wrong_shapes_and_kinds_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"size must have shape \(2,\) or broadcast to it; got Tensor of shape \(3,\)"
    ):
        Box(torch.ones(3), shape=(2,))
    with pytest.raises(ValueError, match=r"a prior must have shape \(\) or broadcast to it"):
        Box(dist.LogNormal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(TypeError, match="size must be a number"):
        Box("heavy")


def test_to_moves_everything() -> None:
    vin = VIN(
        NeuralPotential(2, hidden_sizes=(3,), weight_prior_scale=1.0),
        mass=Diagonal(dist.LogNormal(torch.zeros(2), torch.ones(2))),
        forces=[LinearDamping(0.1), QuadraticDamping(Learned(0.1))],
    ).to(torch.float32)
    trace = trace_of(vin, VIN.bind)
    values = [node["value"] for node in trace.nodes.values() if isinstance(node.get("value"), Tensor)]
    assert len(values) == 5
    assert {value.dtype for value in values} == {torch.float32}
    assert vin.damping.coefficient.dtype == vin.dtype == torch.float32


def test_move_distribution_reaches_every_tensor_and_leaves_the_original() -> None:
    inner = dist.Normal(torch.zeros(2), torch.ones(2))
    nested = dist.TransformedDistribution(
        inner, [dist.transforms.AffineTransform(torch.ones(2), torch.ones(2)), dist.transforms.ExpTransform()]
    ).to_event(1)
    reference = torch.zeros((), dtype=torch.float32)
    moved = move_distribution(nested, reference)
    assert moved.sample().dtype == torch.float32
    assert nested.sample().dtype == torch.float64
    value = nested.sample()
    torch.testing.assert_close(moved.log_prob(value.float()), nested.log_prob(value).float())
    covariance = move_distribution(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), reference)
    assert covariance.sample().dtype == covariance.covariance_matrix.dtype == torch.float32
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.ones(2))
    )
    assert move_distribution(mixture, reference).sample().dtype == torch.float32


def test_align_puts_a_scalar_site_against_coordinates() -> None:
    assert align(torch.ones(4, 1)).shape == (4, 1, 1)
    assert align(torch.ones(4, 1, 3), event_dim=1).shape == (4, 1, 3)


def test_state_dict_round_trip() -> None:
    made = [VIN(CoupledSprings(Learned(k), dim=2), mass=Learned(k)) for k in (1.5, 2.5)]
    made[1].load_state_dict(made[0].state_dict())
    assert made[1].mass == made[0].mass
    assert torch.equal(made[1].potential.stiffness, made[0].potential.stiffness)
    pyro.clear_param_store()
