"""Compiled log densities against Pyro's: the suite in many configurations, and models as users write them."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from vinppl import models
from vinppl.calibration.engines import fix_parameters
from vinppl.data import Trajectories
from vinppl.dynamics import VIN
from vinppl.errors import NumericalWarning, PerformanceWarning
from vinppl.forces import LinearDamping
from vinppl.integrators import Mechanics, VelocityVerlet
from vinppl.logdensity import LogDensity
from vinppl.mass import Diagonal, Full, bind_mass
from vinppl.native.compiled import CompiledDensity
from vinppl.native.compiler import compile_module
from vinppl.potentials import CoupledSprings, FunctionPotential
from vinppl.rollout import rollout
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

RTOL = 1e-10


def compiled(density: LogDensity) -> CompiledDensity:
    """Compile a density; a notice that it cannot be is an error."""
    assert density.compile()
    assert density.native is not None
    return density.native


def reference(density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor]:
    at = u.clone().requires_grad_(True)
    value = density._reference(at)
    (gradient,) = torch.autograd.grad(value, at)
    return value.detach(), gradient


def close(actual: Any, expected: Any, rtol: float = RTOL) -> None:
    """Compare relative to the largest element."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * max(scale, 1e-3))


def points(density: LogDensity, count: int, scale: float = 0.1) -> Tensor:
    return density.initial + scale * torch.randn(count, density.size)


def check(density: LogDensity, *, scale: float = 0.1, batches: tuple[int, ...] = (1, 5, 64)) -> None:
    native = compiled(density)
    some = points(density, 4, scale)
    for u in some:
        value, gradient = native.value_and_gradient(u.numpy())
        expected, slope = reference(density, u)
        close(value, expected)
        close(gradient, slope)
        assert density.value_and_gradient(u)[0] == value
    for count in batches:
        many = points(density, count, scale).numpy()
        values, gradients = native.batch_value_and_gradient(many)
        singles = [native.value_and_gradient(u) for u in many]
        close(values, np.array([v for v, _ in singles]), 1e-12)
        close(gradients, np.array([g for _, g in singles]), 1e-11)
    factor = 0.1 * torch.randn(density.size, density.size) + torch.eye(density.size)
    whitened = native.whitened(some[0].numpy(), factor.numpy())
    x = 0.1 * torch.randn(density.size)
    value, gradient = whitened.value_and_gradient(x.numpy())
    inner, slope = reference(density, some[0] + factor @ x)
    close(value, inner)
    close(gradient, factor.mT @ slope)


# The suite


def irregular(data: Trajectories) -> Trajectories:
    """Return the data at times that differ from trajectory to trajectory."""
    generator = torch.Generator().manual_seed(7)
    gaps = 0.05 + 0.1 * torch.rand(data.times.shape, generator=generator, dtype=data.times.dtype)
    return dataclasses.replace(data, times=gaps.cumsum(-1))


DATA: dict[str, Callable[[str], Trajectories]] = {
    "three": lambda kind: simulated(kind),
    "one": lambda kind: simulated(kind, num_trajectories=1),
    "nine": lambda kind: simulated(kind, num_trajectories=9),
    "gaps": lambda kind: with_gaps(simulated(kind)),
    "ragged": lambda kind: ragged(simulated(kind)),
    "ragged gaps": lambda kind: with_gaps(ragged(simulated(kind))),
    "irregular": lambda kind: irregular(simulated(kind)),
    "positions": lambda kind: simulated(kind, observe=("position",)),
    "driven": lambda kind: driven(simulated(kind)),
    "driven, ragged": lambda kind: ragged(driven(with_gaps(simulated(kind)))),
    "driven, irregular": lambda kind: driven(irregular(simulated(kind))),
}

SUITE: list[tuple[str, str, dict[str, Any]]] = [
    ("Pendulum", "three", {}),
    ("Pendulum", "one", {"noise": "student_t"}),
    ("Pendulum", "gaps", {"noise": "ar1"}),
    ("Pendulum", "ragged gaps", {"noise": "ar1", "velocity_gain": 0.1}),
    ("Pendulum", "ragged", {"noise": "student_t", "drag": (0.1, 1.0)}),
    ("Pendulum", "nine", {"drag": (0.1, 1.0), "damping": None}),
    ("Pendulum", "irregular", {"angle_offset": 0.2, "max_step_size": 0.05}),
    (
        "Pendulum",
        "positions",
        {"integrator": "so2", "max_step_size": 0.03, "gravity_over_length": (3.0, 0.1)},
    ),
    ("Pendulum", "gaps", {"integrator": "verlet4", "angle_offset": 0.2}),
    ("MassSpring", "three", {}),
    ("MassSpring", "ragged gaps", {"mass": (1.0, 0.1), "damping": (0.1, 1.0)}),
    ("MassSpring", "irregular", {"noise": "ar1", "integrator": "stormer_verlet"}),
    ("MassSpring", "one", {"noise": "student_t", "integrator": "rk4", "damping": (0.1, 1.0)}),
    ("Duffing", "three", {}),
    ("Duffing", "driven", {"offset": 0.1}),
    ("Duffing", "driven, ragged", {"noise": "student_t", "max_step_size": 0.04}),
    ("Duffing", "driven, irregular", {"noise": "ar1", "integrator": "rk4"}),
    ("Hierarchical", "three", {}),
    ("Hierarchical", "nine", {"system": "spring", "damping": None}),
    ("Hierarchical", "ragged gaps", {"system": "spring"}),
    ("Hierarchical", "gaps", {"damping": None, "max_step_size": 0.05}),
    ("NoisyStates", "three", {"hidden_sizes": (8,), "weight_prior_scale": 1.0}),
    ("NoisyStates", "ragged", {"hidden_sizes": (8,), "weight_prior_scale": 0.5, "activation": "tanh"}),
    ("NoisyStates", "gaps", {"hidden_sizes": (8,), "weight_prior_scale": 1.0, "noise": "ar1"}),
    ("NoisyStates", "one", {"hidden_sizes": (8,), "weight_prior_scale": 1.0, "mass": (1.0, 0.1)}),
    ("NoisyStates", "irregular", {"hidden_sizes": (8,), "weight_prior_scale": 1.0, "damping": (0.1, 1.0)}),
]
KINDS = {"Pendulum": "pendulum", "MassSpring": "mass_spring", "Duffing": "duffing"}


def density_of(name: str, data: Trajectories, options: dict[str, Any]) -> LogDensity:
    kind = getattr(models, name)
    model = kind(data, getattr(models, f"{name}Config")(**options))
    return LogDensity(model, data, initial_values=model.initial_values(data))


@pytest.mark.parametrize(("name", "shape", "options"), SUITE, ids=lambda x: str(x))
def test_the_suite(name: str, shape: str, options: dict[str, Any]) -> None:
    spring = name == "Hierarchical" and options.get("system") == "spring"
    data = DATA[shape]("mass_spring" if spring else KINDS.get(name, "pendulum"))
    check(density_of(name, data, options), scale=0.03 if options.get("integrator") == "so2" else 0.1)


def test_a_hamiltonian_network() -> None:
    data = with_gaps(simulated(num_trajectories=2, num_times=6))
    model = models.HamiltonianStates(data, models.HamiltonianStatesConfig(hidden_sizes=(4,)))
    fix_parameters(model)
    check(LogDensity(model, data, initial_values=model.initial_values(data)), batches=(5,))


def test_two_coordinates() -> None:
    data = simulated("coupled_oscillators")
    check(density_of("MassSpring", with_gaps(data), {"noise": "ar1"}), batches=(5,))
    check(density_of("Hierarchical", ragged(data), {"system": "spring"}), batches=(5,))
    network = {"hidden_sizes": (8,), "weight_prior_scale": 1.0}
    check(density_of("NoisyStates", data, network), batches=(5,))


@pytest.mark.parametrize("sizes", [(8,), (5, 4)])
def test_point_estimates_are_fixed_when_it_is_compiled(sizes: tuple[int, ...]) -> None:
    data = simulated()
    model = models.NoisyStates(data, models.NoisyStatesConfig(hidden_sizes=sizes))
    with pytest.warns(NumericalWarning, match="holds fixed"):
        density = LogDensity(model, data, initial_values=model.initial_values(data))
    check(density, batches=())
    u = points(density, 3)
    before = [reference(density, x)[0] for x in u]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        pyro.get_param_store()
    assert not torch.allclose(torch.stack([reference(density, x)[0] for x in u]), torch.stack(before))
    native = compiled(density)
    close([native.value_and_gradient(x.numpy())[0] for x in u], torch.stack(before))
    close(native.batch_value_and_gradient(u.numpy())[0], torch.stack(before))


def test_data_are_fixed_when_it_is_compiled() -> None:
    y = torch.tensor([0.3, -0.2])

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(x, 0.1).to_event(1), obs=y)

    density = LogDensity(model)
    native = compiled(density)
    before = reference(density, density.initial)[0]
    y.add_(1.0)
    close(native.value_and_gradient(density.initial.numpy())[0], before)
    close(native.batch_value_and_gradient(density.initial[None].numpy())[0], before[None])


def test_where_a_step_has_no_solution_there_is_no_density() -> None:
    density = density_of("Pendulum", simulated(), {"integrator": "so2"})
    native = compiled(density)
    far = density.initial + 9.0
    value, _ = native.value_and_gradient(far.numpy())
    assert np.isnan(value)
    with pytest.warns(UserWarning, match="Encountered NaN"):
        assert torch.isnan(density._reference(far))
    assert call_address(native, far) != 0
    assert call_address(native, density.initial) == 0
    both = native.batch_value_and_gradient(torch.stack([far, density.initial]).numpy())[0]
    assert np.isnan(both).tolist() == [True, False]


def call_address(native: CompiledDensity, u: Tensor) -> int:
    """Call the compiled function as other languages do."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_uint64, *[ctypes.c_void_p] * 4)
    gradient, value = torch.empty_like(u), torch.empty(1)
    pointers = [x.contiguous().data_ptr() for x in (u, gradient, value)]
    found = int(kind(native.address)(len(u), *pointers, native.context))
    expected, slope = native.value_and_gradient(u.numpy())
    close(value[0].nan_to_num(), np.nan_to_num(expected))
    close(gradient.nan_to_num(), np.nan_to_num(slope))
    return found


# Models as users write them


def plates(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.2), 0.5))
    share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 3.0))
    width = pyro.sample("width", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("groups", 4, dim=-1):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), width))
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), torch.tensor(3.0)))
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("obs", dist.StudentT(4.0, mean * share, scale * rate), obs=y)


def masks(y: Tensor) -> None:
    known = torch.arange(12).reshape(3, 4) % 3 != 0
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    slope = pyro.sample("slope", dist.Uniform(-1.0, 2.0))
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1), poutine.mask(mask=known):
        pyro.sample("obs", dist.Normal(x * slope, 0.3), obs=y)
    pyro.sample("more", dist.Normal(x, 1.0).mask(known[0]).to_event(1), obs=y[1])
    pyro.factor("penalty", -(x**4).sum())


def matrices(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    b = pyro.sample("b", dist.Laplace(torch.zeros(3), 1.0).to_event(1))
    level = torch.cumsum(b, -1)
    hidden = torch.einsum("ij,kj->ki", w, y).tanh() + level
    output = hidden @ w
    output = torch.where(output > 0, output, 0.1 * output)
    pyro.sample("obs", dist.Normal(output, 0.5).to_event(2), obs=y)


def pieces(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    a, b = x.split([2, 4])
    c = torch.stack([a, b[::2], b[1::2]])
    d = torch.cat([c, c.flip(0)[:1]]).T.reshape(4, 2).mT
    e = d[:, [0, 2, 1, 3]] + x[torch.tensor([5, 0, 5, 1])]
    f = e.index_select(0, torch.tensor([1, 0, 1])) - x.clamp(-0.5, 0.5).sum()
    pyro.sample("obs", dist.Normal(f, x.square().mean().exp()).to_event(2), obs=y)


def nested(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    raw = pyro.sample(
        "raw", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.TanhTransform())
    )
    shape = pyro.sample("shape", dist.Weibull(torch.tensor(1.5), torch.tensor(2.0)))
    wrapped = pyro.sample("wrapped", dist.Exponential(torch.tensor(1.5)))
    mean = z.cumsum(0) * raw + (z * z).log1p() * shape * 0.1
    pyro.sample("obs", dist.Cauchy(mean, wrapped + 0.1).to_event(1), obs=y[0])


class Mechanical(PyroModule):
    """A model with everything that a VIN can have."""

    def __init__(self, mass: Any, integrator: str = "velocity_verlet") -> None:
        super().__init__()
        prior = dist.LogNormal(torch.tensor(0.0), torch.tensor(0.3))
        self.vin = VIN(
            CoupledSprings(prior.expand([3]).to_event(1), dim=2),
            mass=mass,
            forces=[LinearDamping(prior)],
            integrator=integrator,
        )
        self.scale = PyroSample(dist.HalfNormal(torch.tensor(1.0)))

    def forward(self, y: Tensor) -> None:
        scale = self.scale
        with pyro.plate("trajectory", 3):
            q = pyro.sample("q", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        path = self.vin(PhaseState(q, torch.zeros_like(q)), TimeGrid.regular(4, 0.2))
        with pyro.plate("data", 3):
            pyro.sample("obs", dist.Normal(path.q, scale).to_event(2), obs=y.expand(3, 4, 2))


def custom_potential(y: Tensor) -> None:
    a = pyro.sample("a", dist.LogNormal(torch.tensor(0.0), 0.5))
    vin = VIN(
        FunctionPotential(lambda q, a: (a * q.cosh() + torch.where(q > 0, q**3, 0.0)).sum(-1), {"a": 1.0})
    )
    vin.potential.a = a
    path = vin(PhaseState(y[:, :1], torch.zeros(3, 1)), TimeGrid.regular(4, 0.1))
    pyro.sample("obs", dist.Normal(path.q.squeeze(-1), 0.3).to_event(2), obs=y)


Y = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
LOG_NORMAL = dist.LogNormal(torch.tensor(0.0), torch.tensor(0.2))
SUPPORTED: dict[str, Callable[[], Any]] = {
    **{f.__name__: (lambda f=f: f) for f in (plates, masks, matrices, pieces, nested, custom_potential)},
    "diagonal mass": lambda: Mechanical(Diagonal(dist.LogNormal(torch.zeros(2), 0.2).to_event(1))),
    "scalar mass": lambda: Mechanical(dist.LogNormal(torch.tensor(0.0), torch.tensor(0.2)), "rk4"),
}


POSITIONS = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)


@pytest.mark.parametrize("name", SUPPORTED)
def test_models_of_users(name: str) -> None:
    check(LogDensity(SUPPORTED[name](), POSITIONS if "mass" in name else Y))


MATRIX = torch.tensor([[1.2, 0.3], [0.3, 0.9]], dtype=torch.float64)


def test_a_mass_that_is_a_matrix() -> None:
    check(LogDensity(Mechanical(Full(MATRIX)), POSITIONS))


def mass_of_unknown_shape(y: Tensor) -> None:
    sizes = pyro.sample("sizes", dist.LogNormal(torch.zeros(2), 0.3).to_event(1))
    matrix = torch.diag_embed(sizes) + 0.2
    mass = bind_mass(matrix, Full(matrix))
    system = Mechanics(lambda q: q.sin(), mass, None, (False, False))
    start = PhaseState(torch.zeros(2), torch.ones(2))
    path = rollout(system, start, TimeGrid.regular(4, 0.2), integrator=VelocityVerlet())
    pyro.sample("obs", dist.Normal(path.q, 0.1).to_event(2), obs=y)


# What has no compiled form


def falls_back(reason: str, model: Any, *args: Any, exact: bool = True) -> None:
    """Check that Pyro's density serves, and that a notice says once why."""
    density = LogDensity(model, *args)
    notice = f"^the density of .* runs without compiled code: .*{reason}"
    with pytest.warns(PerformanceWarning, match=notice) as record:
        assert not density.compile()
    assert len(record) == 1
    assert density.native is None
    assert not density.compile()  # a second notice would be an error
    if exact:
        value, gradient = density.value_and_gradient(density.initial)
        expected, slope = reference(density, density.initial)
        assert float(value) == float(expected)
        assert torch.equal(gradient, slope)


def branch(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.5), 1.0))
    if x > 0:
        x = x * 2
    pyro.sample("obs", dist.Normal(x, 1.0).expand([3, 4]).to_event(2), obs=y)


def number(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.5), 1.0))
    pyro.sample("obs", dist.Normal(x * float(x.detach()), 1.0).expand([3, 4]).to_event(2), obs=y)


def noisy(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.5), 1.0))
    pyro.sample("obs", dist.Normal(x + 0.1 * torch.randn(3, 4), 1.0).to_event(2), obs=y)


def sorted_(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("obs", dist.Normal(x.sort().values, 1.0).to_event(1), obs=y[0])


def shares(y: Tensor) -> None:
    pyro.sample("p", dist.Dirichlet(torch.tensor([1.5, 2.0, 3.0])))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (branch, "control flow that depends on the values of tensors"),
        (number, "control flow that depends on the values of tensors"),
        (noisy, "random numbers"),
        (sorted_, "the operation aten.sort.default"),
        (shares, "the operation aten.cumprod.default"),
    ],
)
def test_models_without_a_compiled_form(model: Callable[..., None], reason: str) -> None:
    falls_back(reason, model, Y, exact=reason != "random numbers")


def test_a_mass_matrix_of_unknown_shape_falls_back() -> None:
    falls_back("the operation aten.", mass_of_unknown_shape, POSITIONS)


def test_every_reason_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(2):
            assert not LogDensity(branch, Y).compile()
            assert not LogDensity(sorted_, Y).compile()
    assert [w.category for w in record] == [PerformanceWarning] * 2


def test_the_reference_never_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("vinppl.native.compiled.CompiledDensity", fail)
    density = LogDensity(plates, Y, backend="reference")
    assert not density.compile()
    value, gradient = density.value_and_gradient(density.initial)
    expected, slope = reference(density, density.initial)
    assert torch.equal(gradient, slope)
    assert float(value) == float(expected)


def test_single_precision_falls_back() -> None:
    def single() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2, dtype=torch.float32))

    falls_back("a density of torch.float32 on cpu", single)


def test_failures_of_the_compiler_are_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    falls_back("llvmlite could not be imported", plates, Y)


# As a function of torch


def test_it_is_differentiable() -> None:
    density = density_of("Pendulum", simulated(), {})
    plain = density_of("Pendulum", simulated(), {})
    compiled(density)
    (u,) = points(density, 1)

    def through(one: LogDensity) -> tuple[Tensor, Tensor]:
        at = u.clone().requires_grad_(True)
        value = 2.0 * one(at.sin()) + at.sum()
        (gradient,) = torch.autograd.grad(value, at)
        return value.detach(), gradient

    for actual, expected in zip(through(density), through(plain), strict=True):
        close(actual, expected)
    hessians = [torch.autograd.functional.hessian(one, u) for one in (density, plain)]
    close(*hessians, rtol=1e-8)
    assert not density(u).requires_grad
    with torch.no_grad():
        assert not density(u.clone().requires_grad_()).requires_grad


def test_points_of_other_shapes_are_refused() -> None:
    density = LogDensity(plates, Y)
    native = compiled(density)
    u = density.initial.numpy()
    for wrong in (u[:-1], u[None], np.append(u, 0.0)):
        with pytest.raises(ValueError, match="shape"):
            native.value_and_gradient(wrong)
    for wrong in (u, u[None, :-1], u[None, None]):
        with pytest.raises(ValueError, match="shape"):
            native.batch_value_and_gradient(wrong)
    assert native.batch_value_and_gradient(u[None][:0])[0].shape == (0,)
    strided = np.stack([u, u], -1)[:, 0].astype(np.float32)
    close(native.value_and_gradient(strided)[0], reference(density, torch.from_numpy(strided).double())[0])


@pytest.mark.parametrize("batch", [False, True])
def test_several_threads(batch: bool) -> None:
    density = density_of("Pendulum", ragged(simulated()), {"noise": "ar1"})
    native = compiled(density)
    some = points(density, 8).numpy()
    expected = [native.value_and_gradient(u) for u in some]
    wrong: list[int] = []

    def work() -> None:
        for i in range(500):
            k = i % len(some)
            if batch:
                values, gradients = native.batch_value_and_gradient(some[k : k + 3])
                value, gradient = values[0], gradients[0]
                same = abs(value - expected[k][0]) <= 1e-12 * abs(value)
                same &= bool(np.allclose(gradient, expected[k][1], rtol=1e-10, atol=1e-9))
            else:
                value, gradient = native.value_and_gradient(some[k])
                same = value == expected[k][0] and np.array_equal(gradient, expected[k][1])
            if not same:
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_variables() -> None:
    def wide(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(200), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(x.cumsum(0), 0.5).to_event(1), obs=y)

    check(LogDensity(wide, torch.linspace(-1, 1, 200)), batches=(5,))


def test_long_functions_go_on_in_others(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []

    def remember(module: Any) -> Any:
        texts.append(str(module))
        return compile_module(module)

    monkeypatch.setattr("vinppl.native.compiled.compile_module", remember)
    monkeypatch.setattr("vinppl.native.writer.MAX_BLOCKS", 20)
    check(density_of("Pendulum", with_gaps(ragged(simulated())), {"noise": "ar1"}))
    assert all(text.count("noinline") > 3 for text in texts)


def test_one_variable() -> None:
    def narrow() -> None:
        pyro.sample("x", dist.Gamma(torch.tensor(2.0), torch.tensor(3.0)))

    check(LogDensity(narrow))
