"""The baselines: their formulas, grids, particles, gradients, and what a Hamiltonian network conserves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from vinppl.baselines import AbstractBaseline, AbstractField, FreeField, FreeMap, HamiltonianNetwork
from vinppl.errors import PerformanceWarning
from vinppl.manifolds import Circle, Euclidean, Manifold, Torus
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

GRID = TimeGrid.regular(6, 0.1)
SCALES: dict[str, Any] = {"position_scale": 2.0, "velocity_scale": 3.0}
BASELINES: dict[str, Callable[..., AbstractBaseline]] = {
    "residual": lambda manifold, **options: FreeField(manifold, **options),
    "ode": lambda manifold, **options: FreeField(manifold, integrator="rk4", **options),
    "map": lambda manifold, **options: FreeMap(0.1, manifold, **options),
    "hamiltonian": lambda manifold, **options: HamiltonianNetwork(manifold, **options),
}
MANIFOLDS = {"line": Euclidean(1), "circle": Circle(), "mixed": Manifold((True, False)), "torus": Torus(2)}
every_baseline = pytest.mark.parametrize("name", BASELINES)
every_manifold = pytest.mark.parametrize("manifold", MANIFOLDS)


def build(name: str, manifold: str, **options: Any) -> AbstractBaseline:
    stream = torch.Generator().manual_seed(3)
    return BASELINES[name](
        MANIFOLDS[manifold], **({"hidden_sizes": (5, 4), "generator": stream} | SCALES | options)
    )


def states(*shape: int) -> PhaseState:
    return PhaseState(torch.randn(*shape), torch.randn(*shape))


@every_baseline
@every_manifold
def test_shapes_gradients_and_no_notice(name: str, manifold: str) -> None:
    model = build(name, manifold)
    dim = model.dim
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerformanceWarning)  # free laws are not meant to be compiled
        path = model(states(7, 3, dim), GRID)
    assert path.q.shape == path.v.shape == (7, 3, 6, dim)
    (path.q.square().sum() + path.v.square().sum()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
        assert bool((parameter.grad != 0).all()), key
    with pytest.raises(ValueError, match="initial position must have shape"):
        model(states(3, dim + 1), GRID)


@every_baseline
@pytest.mark.parametrize("manifold", ["line", "mixed"])
def test_vectorised_particles_equal_single_ones(name: str, manifold: str) -> None:
    model = build(name, manifold, weight_prior_scale=1.0)
    start = states(3, 4, model.dim)

    def run() -> Any:
        with pyro.plate("particles", 3, dim=-2):
            return model(start, GRID)

    trace = poutine.trace(run).get_trace()
    together = trace.nodes["_RETURN"]["value"]
    assert together.q.shape == (3, 4, 6, model.dim)
    sites = {k: n["value"] for k, n in trace.nodes.items() if k.startswith("network.")}
    assert sites["network.weight_0"].shape[:2] == (3, 1)
    for i in range(3):
        single = poutine.condition(model, {k: value[i, 0] for k, value in sites.items()})
        path = single(PhaseState(start.q[i], start.v[i]), GRID)
        # Sums of a few numbers of size 1 to 10 in another order, over five steps.
        torch.testing.assert_close(together.q[i], path.q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.v[i], path.v, rtol=1e-12, atol=1e-12)


def mlp(network: Any, x: Tensor) -> Tensor:
    """The network written out, with tanh units."""
    w, b = ([getattr(network, f"{kind}_{i}") for i in range(3)] for kind in ("weight", "bias"))
    for i in range(2):
        x = torch.tanh(x @ w[i].T + b[i])
    return x @ w[2].T + b[2]


def test_a_residual_network_is_the_explicit_formula() -> None:
    model = build("residual", "mixed")
    start = states(4, 2)
    (q, v), h = start, 0.1
    scale = torch.tensor([3.0, 3.0, 9.0, 4.5])  # v, and v^2 over one radian or the position scale
    path = model(start, GRID)
    for step in range(1, 6):
        x = torch.stack([q[:, 1] / 2, q[:, 0].sin(), q[:, 0].cos(), v[:, 0] / 3, v[:, 1] / 3], -1)
        change = scale * mlp(model.network, x)
        q, v = q + h * change[:, :2], v + h * change[:, 2:]
        # Rounding of products in another order: some ten units in the last place of numbers up to 10.
        torch.testing.assert_close(path.q[:, step], q, rtol=0, atol=1e-13)
        torch.testing.assert_close(path.v[:, step], v, rtol=0, atol=1e-13)


def test_a_map_is_the_explicit_formula() -> None:
    model = build("map", "mixed")
    start = states(4, 2)
    q, v = start
    path = model(start, GRID)
    for step in range(1, 6):
        x = torch.stack([q[:, 1] / 2, q[:, 0].sin(), q[:, 0].cos(), v[:, 0] / 3, v[:, 1] / 3], -1)
        y = mlp(model.network, x)
        q = torch.stack([q[:, 0] + 0.3 * y[:, 0], 2 * y[:, 1]], -1)  # an increment, and a new value
        v = 3 * y[:, 2:]
        torch.testing.assert_close(path.q[:, step], q, rtol=0, atol=1e-13)
        torch.testing.assert_close(path.v[:, step], v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["residual", "ode", "map", "hamiltonian"])
def test_an_angle_may_be_counted_from_any_revolution(name: str) -> None:
    model = build(name, "circle")
    start = states(4, 1)
    turned = model(PhaseState(start.q + 2 * math.pi, start.v), GRID)
    path = model(start, GRID)
    # sin and cos of an angle of 8 err by its rounding, 1e-15, which five steps keep of that order.
    torch.testing.assert_close(turned.q, path.q + 2 * math.pi, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned.v, path.v, rtol=0, atol=1e-12)


def test_a_map_takes_its_own_steps_only() -> None:
    model = build("map", "line")
    start = states(2, 1)
    with pytest.raises(ValueError, match=r"takes steps of 0\.1 only; got one of 0\.2"):
        model(start, TimeGrid.regular(4, 0.2))
    with pytest.raises(ValueError, match=r"takes steps of 0\.1 only; got one of 0\.15"):
        model(start, TimeGrid.from_times(torch.tensor([0.0, 0.1, 0.25])))
    batched = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 0.1, 0.1, 0.2]])
    with pytest.raises(ValueError, match=r"takes steps of 0\.1 only; got one of 0\.05"):
        model(start, TimeGrid.from_times(torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.1, 0.15]])))
    with pytest.raises(ValueError, match="step_size of a map must be positive"):
        FreeMap(0.0)
    padded = model(start, TimeGrid.from_times(batched))
    whole = model(start, TimeGrid.regular(4, 0.1))
    torch.testing.assert_close(padded.q[0], whole.q[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(padded.q[1], whole.q[1, [0, 1, 1, 2]], rtol=0, atol=1e-15)
    halves = model(start, TimeGrid.regular(2, 0.2, num_substeps=2))
    torch.testing.assert_close(halves.q, whole.q[:, [0, 2]], rtol=0, atol=1e-15)


@every_manifold
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_a_hamiltonian_field_is_the_gradient_of_its_energy(manifold: str, activation: str) -> None:
    model = build("hamiltonian", manifold, activation=activation)
    assert isinstance(model, HamiltonianNetwork)
    q, v = (x.requires_grad_() for x in states(5, model.dim))
    on_q, on_v = torch.autograd.grad(model.energy(PhaseState(q, v)).sum(), (q, v))
    dq, dv = model.bind()(q, v)
    # The same products in another order, of numbers up to 10.
    torch.testing.assert_close(dq, on_v, rtol=0, atol=1e-13)
    torch.testing.assert_close(dv, -on_q, rtol=0, atol=1e-13)


@pytest.mark.parametrize("manifold", ["line", "mixed"])
def test_a_hamiltonian_network_conserves_its_energy(manifold: str) -> None:
    model = build("hamiltonian", manifold)
    assert isinstance(model, HamiltonianNetwork)
    start = states(5, model.dim)
    with torch.no_grad():
        errors = []
        for count in (50, 100):  # one time unit
            path = model(start, TimeGrid.regular(count + 1, 1.0 / count))
            energy = model.energy(path)
            assert energy.shape == (5, count + 1)
            torch.testing.assert_close(energy[:, 3], model.energy(path.at(3)), rtol=0, atol=1e-14)
            errors.append(float((energy - energy[:, :1]).abs().max()))
    # Energy errors of a method of order 4 are O(h^4): 16-fold smaller at half the step, up to the
    # next order (h / 2 relative) and rounding of 1e-15 a step. A field that is not Hamiltonian, or
    # of lower order, keeps them.
    assert errors[0] < 1e-5
    assert errors[1] < errors[0] / 12 + 1e-13


def test_recorded_sites() -> None:
    start = states(3, 1)
    for name, sites in (("residual", {"states"}), ("map", {"states"}), ("hamiltonian", {"states", "energy"})):
        model = build(name, "line")

        def program(model: AbstractBaseline = model) -> None:
            model.record(model(start, GRID))

        pyro.clear_param_store()
        with torch.no_grad():
            found = poutine.trace(program).get_trace().nodes
        assert {"states", "energy"} & set(found) == sites
        assert found["states"]["value"].shape == (3, 6, 2)
        assert "energy" not in poutine.trace(program).get_trace().nodes


def test_energy_with_particles() -> None:
    model = build("hamiltonian", "mixed", weight_prior_scale=1.0)
    assert isinstance(model, HamiltonianNetwork)
    start = states(3, 4, 2)

    class Program(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.dynamics = model

        def forward(self) -> Tensor:
            with pyro.plate("particles", 3, dim=-2):
                path = self.dynamics(start, GRID)
                return torch.stack([model.energy(path)[..., 2], model.energy(path.at(2))])

    first, second = Program()()
    assert first.shape == (3, 4)
    # The same products in another layout, of numbers up to 10.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-13)


@every_baseline
def test_residuals_are_errors_of_rates(name: str) -> None:
    model = build(name, "line")
    q, v, a = torch.randn(3, 8, 1)
    on_v, on_a = model.residuals(q, v, a)
    if isinstance(model, AbstractField):
        dq, dv = model.bind()(q, v)
        assert torch.equal(on_v, dq - v)
        assert torch.equal(on_a, dv - a)
    else:
        path = model(PhaseState(q, v), TimeGrid.regular(2, 0.1))
        # Rounding of the states, divided by a step of 0.1.
        torch.testing.assert_close(on_v, path.q.diff(dim=1)[:, 0] / 0.1 - v - 0.05 * a, rtol=0, atol=1e-13)
        torch.testing.assert_close(on_a, path.v.diff(dim=1)[:, 0] / 0.1 - a, rtol=0, atol=1e-13)


@every_baseline
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match="position_scale must be positive"):
        build(name, "line", position_scale=0.0)
    with pytest.raises(ValueError, match="velocity_scale must be positive"):
        build(name, "line", velocity_scale=-1.0)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        build(name, "line", hidden_sizes=())


def test_structured_integrators_are_refused() -> None:
    model = FreeField(1, hidden_sizes=(3,), integrator="velocity_verlet")
    with pytest.raises(ValueError, match="needs a mechanical system"):
        model(states(2, 1), GRID)


def test_weights_move_with_their_type() -> None:
    model = build("map", "mixed").to(torch.float32)
    start = PhaseState(torch.zeros(2, 2).float(), torch.ones(2, 2).float())
    path = model(start, TimeGrid.regular(4, 0.1, dtype=torch.float32))
    assert path.q.dtype == path.v.dtype == torch.float32
