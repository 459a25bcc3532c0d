"""Ground truths: against independent solutions, their invariants and their contract."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm
from scipy.optimize import brentq
from torch import Tensor

from vinppl.errors import SolveError
from vinppl.state import PhaseState, Trajectory
from vinppl.systems import (
    SYSTEMS,
    AbstractSystem,
    CoupledOscillators,
    DampedPendulum,
    DrivenOscillator,
    Duffing,
    HenonHeiles,
    Kepler,
    MassSpring,
    Pendulum,
    system,
)
from vinppl.systems._elliptic import incomplete_first, jacobi
from vinppl.systems._gauss import integrate

F64 = torch.float64

# Every system at its defaults, and the variants that take another branch.
VARIANTS: dict[str, AbstractSystem] = {
    **{name: kind() for name, kind in SYSTEMS.items()},
    "pendulum_other": Pendulum(mass=2.0, length=0.5, gravity=3.0),
    "spring_under": MassSpring(mass=2.0, stiffness=3.0, damping=0.4),
    "spring_critical": MassSpring(mass=1.0, stiffness=1.0, damping=2.0),
    "spring_over": MassSpring(mass=0.5, stiffness=1.0, damping=3.0),
    "driven_over": DrivenOscillator(damping=5.0, drive_frequency=2.5),
    "damped_pendulum_linear": DampedPendulum(quadratic_damping=0.0),
    "damped_pendulum_none": DampedPendulum(damping=0.0, quadratic_damping=0.0),
    "duffing_forced": Duffing(damping=0.25, drive_amplitude=0.4, drive_frequency=1.2),
    "duffing_wells": Duffing(stiffness=-1.0),
    "duffing_linear": Duffing(cubic=0.0),
    "chain_free": CoupledOscillators(masses=(1.0, 2.0, 0.5, 1.5), stiffnesses=(0.0, 1.0, 3.0, 0.7, 0.0)),
    "kepler_other": Kepler(mass=3.0, gravitational_parameter=2.0),
    "henon_heiles_other": HenonHeiles(coupling=0.5),
}
every_variant = pytest.mark.parametrize("truth", VARIANTS.values(), ids=VARIANTS.keys())


def draw(truth: AbstractSystem, num: int, seed: int = 0) -> PhaseState:
    """Return initial states of the system in double precision."""
    state = truth.sample_initial(num, torch.Generator().manual_seed(seed))
    return PhaseState(state.q.to(F64), state.v.to(F64))


def state(q: Sequence[float], v: Sequence[float]) -> PhaseState:
    """Return one state in double precision."""
    return PhaseState(torch.tensor(q, dtype=F64), torch.tensor(v, dtype=F64))


def grid(*times: float) -> Tensor:
    return torch.tensor(times, dtype=F64)


def relative_error(path: Trajectory, reference: np.ndarray) -> float:
    """Return the largest error of (q, v), `(*batch, time, 2 dim)`, relative to the largest value."""
    got = torch.cat([path.q, path.v], -1).numpy()
    return float(np.abs(got - reference).max() / np.abs(reference).max())


def gauss_path(truth: AbstractSystem, initial: PhaseState, times: Tensor) -> np.ndarray:
    """Integrate the torch force by collocation, without any closed form."""
    q, v = integrate(
        lambda q, v, t, sign: truth._acceleration(q, v, t),
        initial.q.numpy(),
        initial.v.numpy(),
        times.numpy(),
    )
    return np.concatenate([q, v], -1)


class TestContract:
    """One battery over every member of the registry."""

    @every_variant
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    def test_broadcasts_over_batch_dimensions(self, truth: AbstractSystem, batch: tuple[int, ...]) -> None:
        flat = draw(truth, 6)
        num = math.prod(batch)
        initial = PhaseState(*(x[:num].reshape(*batch, truth.dim) for x in flat))
        times = grid(-0.4, 0.0, 0.13, 0.13, 1.7)
        path = truth.solve(initial, times)
        assert path.q.shape == path.v.shape == (*batch, 5, truth.dim)
        torch.testing.assert_close(path.time, times, rtol=0, atol=0)
        assert torch.equal(path.at(0).q, initial.q)
        assert torch.equal(path.at(0).v, initial.v)
        # A repeated time repeats the state.
        assert torch.equal(path.at(2).q, path.at(3).q)
        # Each member goes its own way: the batch only stacks single solutions. Vectorised
        # elementary functions may differ from scalar ones by units in the last place.
        one = truth.solve(PhaseState(flat.q[0], flat.v[0]), times)
        torch.testing.assert_close(path.q.reshape(num, 5, -1)[0], one.q, rtol=1e-13, atol=1e-13)
        for value in (truth.potential(path.q), truth.energy(path.q, path.v)):
            assert value.shape == (*batch, 5)
        assert truth.force(path.q, path.v, times).shape == path.q.shape

    @every_variant
    def test_single_time(self, truth: AbstractSystem) -> None:
        initial = draw(truth, 2)
        path = truth.solve(initial, grid(3.0))
        assert torch.equal(path.q[:, 0], initial.q)
        assert torch.equal(path.v[:, 0], initial.v)

    @every_variant
    def test_empty_batch(self, truth: AbstractSystem) -> None:
        nothing = torch.empty(0, truth.dim, dtype=F64)
        assert truth.solve(PhaseState(nothing, nothing), grid(0.0, 1.0)).q.shape == (0, 2, truth.dim)

    @every_variant
    def test_float32_in_float32_out(self, truth: AbstractSystem) -> None:
        initial = PhaseState(*(x.float() for x in draw(truth, 3)))
        times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32)
        path = truth.solve(initial, times)
        assert path.time.dtype == path.q.dtype == path.v.dtype == torch.float32
        exact = truth.solve(PhaseState(*(x.double() for x in initial)), times.double())
        # Solved in double precision, so only the rounding of the result is left.
        torch.testing.assert_close(path.q, exact.q.float(), rtol=0, atol=0)
        assert truth.force(path.q, path.v, times).dtype == torch.float32
        assert truth.energy(path.q, path.v).dtype == torch.float32

    @every_variant
    def test_restart_in_the_middle(self, truth: AbstractSystem) -> None:
        # The flow property, with the absolute time of a drive: 0 -> 3 equals 0 -> 1.1 -> 3.
        # Tolerance: two solutions of 1e-13 each, times the growth of a perturbation over 1.9 s,
        # which is below exp(3.2 * 1.9) = 440 for a pendulum near the top.
        initial = draw(truth, 4)
        path = truth.solve(initial, grid(0.0, 1.1, 3.0))
        again = truth.solve(path.at(1), grid(1.1, 3.0))
        torch.testing.assert_close(again.at(1).q, path.at(2).q, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(again.at(1).v, path.at(2).v, rtol=1e-11, atol=1e-11)

    @every_variant
    def test_path_obeys_the_equation_of_motion(self, truth: AbstractSystem) -> None:
        # Central difference of order 6 with h = 0.01: truncation h⁶ f⁽⁷⁾ / 140 below 1e-14 f⁽⁷⁾,
        # with f⁽⁷⁾ up to 1e5 here; rounding 1e-15 / h = 1e-13. The kink of |v| v costs more: a stencil
        # across a turning point sees a jump of the second derivative, 0.05 * 2 * a² * h ~ 0.1.
        h = 0.01
        smooth = not (isinstance(truth, DampedPendulum) and truth.quadratic_damping > 0)
        middle = 1.3
        path = truth.solve(draw(truth, 5), grid(0.0, *(middle + i * h for i in range(-3, 4))))
        weights = torch.tensor([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0], dtype=F64) / (60.0 * h)
        q, v = path.q[:, 4], path.v[:, 4]
        rate_q, rate_v = (torch.einsum("ntd,t->nd", x[:, 1:], weights) for x in (path.q, path.v))
        acceleration = truth.force(q, v, middle) / torch.from_numpy(truth.inertia)
        tolerance = 1e-8 if smooth else 0.1
        torch.testing.assert_close(rate_q, v, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(rate_v, acceleration, rtol=tolerance, atol=tolerance)

    @every_variant
    def test_force_is_minus_the_gradient_of_the_potential(self, truth: AbstractSystem) -> None:
        q, v = draw(truth, 5)
        q = q.requires_grad_()
        (slope,) = torch.autograd.grad(truth.potential(q).sum(), q)
        rest = truth.force(q, v, 0.7) + slope
        if "energy" in truth.conserved:
            assert rest.abs().max() <= 1e-13 * slope.abs().max()
        else:
            assert rest.abs().max() > 1e-3

    @every_variant
    def test_energy_balance(self, truth: AbstractSystem) -> None:
        # Work theorem: E(t) - E(0) = ∫ v·F_nc dt, by Gauss quadrature of 12 nodes on intervals of 0.1 s
        # (exact to round-off for smooth motion). At a kink, F_nc v = |v|³ has a jump only in its
        # third derivative, 6 * 0.05 * a³ ~ 300, which leaves 300 (0.1 / 12)⁴ / 24 ~ 1e-7 per turning point.
        x, w = np.polynomial.legendre.leggauss(12)
        edges = np.arange(0.0, 3.0, 0.1)
        nodes = (edges[:, None] + 0.05 * (x + 1.0)).ravel()
        path = truth.solve(draw(truth, 5), grid(0.0, *nodes, 3.0))
        q, v = path.q.requires_grad_(), path.v
        (slope,) = torch.autograd.grad(truth.potential(q).sum(), q)
        power = (v * (truth.force(q, v, path.time) + slope)).sum(-1).detach()[:, 1:-1]
        work = power @ torch.from_numpy(np.tile(0.05 * w, len(edges)))
        energy = truth.energy(path.q, path.v).detach()
        smooth = not (isinstance(truth, DampedPendulum) and truth.quadratic_damping > 0)
        tolerance = (1e-12 if smooth else 1e-6) * max(1.0, float(energy.abs().max()))
        torch.testing.assert_close(energy[:, -1] - energy[:, 0], work, rtol=0, atol=tolerance)

    @every_variant
    def test_invariants_are_kept(self, truth: AbstractSystem) -> None:
        path = truth.solve(draw(truth, 20), torch.linspace(2.0, 22.0, 57, dtype=F64))
        values = truth.invariants(path.q, path.v)
        assert tuple(values) == truth.conserved
        for name, value in values.items():
            assert value.shape[:2] == (20, 57)
            # Round-off of the path, 1e-14 relative, with a factor of 1000 to spare: 1e-11.
            assert (value - value[:, :1]).abs().max() <= 1e-11 * value.abs().max(), name

    @every_variant
    def test_friction_only_takes_energy(self, truth: AbstractSystem) -> None:
        if getattr(truth, "damping", 0.0) == 0.0 or getattr(truth, "drive_amplitude", 0.0) > 0.0:
            pytest.skip("no friction, or a drive that feeds it")
        path = truth.solve(draw(truth, 5), torch.linspace(0.0, 10.0, 101, dtype=F64))
        assert (truth.energy(path.q, path.v).diff(dim=-1) <= 1e-14).all()

    @every_variant
    def test_declarations(self, truth: AbstractSystem) -> None:
        parameters = {field.name for field in dataclasses.fields(truth)}
        assert set(truth.units) == {"q", "v", "time", "energy"} | parameters
        assert len(truth.coordinate_names) == len(truth.angle_coordinates) == truth.dim
        assert truth.inertia.shape == (truth.dim,)
        assert truth.inertia.dtype == np.float64
        assert SYSTEMS[truth.name] is type(truth)
        for parameter in parameters:
            assert f"{parameter}:" in (type(truth).__doc__ or "")

    @every_variant
    def test_is_frozen_and_comparable(self, truth: AbstractSystem) -> None:
        assert dataclasses.replace(truth) == truth
        assert dataclasses.replace(truth).conserved == truth.conserved
        with pytest.raises(dataclasses.FrozenInstanceError):
            truth.name = "other"  # type: ignore[misc]

    @every_variant
    def test_sampling_is_reproducible(self, truth: AbstractSystem) -> None:
        before = torch.get_rng_state()
        first, second, other = draw(truth, 7, 3), draw(truth, 7, 3), draw(truth, 7, 4)
        assert first.q.shape == first.v.shape == (7, truth.dim)
        assert torch.equal(first.q, second.q)
        assert torch.equal(first.v, second.v)
        assert not torch.equal(first.q, other.q)
        assert torch.equal(torch.get_rng_state(), before)

    @every_variant
    def test_sampling_follows_the_default_dtype(self, truth: AbstractSystem) -> None:
        old = torch.get_default_dtype()
        results = []
        try:
            for dtype in (torch.float32, torch.float64):
                torch.set_default_dtype(dtype)
                results.append(truth.sample_initial(3, torch.Generator().manual_seed(1)))
                assert results[-1].q.dtype == results[-1].v.dtype == dtype
        finally:
            torch.set_default_dtype(old)
        torch.testing.assert_close(results[0].q, results[1].q.float(), rtol=0, atol=0)

    @pytest.mark.parametrize("name", SYSTEMS)
    def test_factory(self, name: str) -> None:
        assert system(name) == SYSTEMS[name]()


class TestInputErrors:
    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"name of a system must be one of .*pendulum.*; got pendulun"):
            system("pendulun")

    def test_unknown_parameter(self) -> None:
        with pytest.raises(
            ValueError, match=r"parameters of pendulum must be among mass, length, gravity; got l\."
        ):
            system("pendulum", l=2.0)

    @pytest.mark.parametrize(
        ("name", "parameter", "value", "message"),
        [
            ("pendulum", "length", 0.0, "length of pendulum must be a positive finite number; got 0.0"),
            ("pendulum", "gravity", math.inf, "gravity of pendulum must be a positive"),
            ("mass_spring", "mass", "1", "mass of mass_spring must be a positive"),
            ("mass_spring", "mass", True, "mass of mass_spring must be a positive"),
            ("mass_spring", "damping", -0.1, "damping of mass_spring must be a non-negative"),
            ("driven_oscillator", "damping", 0.0, "damping of driven_oscillator must be a positive"),
            ("damped_pendulum", "quadratic_damping", -1.0, "quadratic_damping of damped_pendulum"),
            ("duffing", "cubic", -1.0, "cubic of duffing must be a non-negative"),
            ("duffing", "stiffness", math.nan, "stiffness of duffing must be a finite number"),
            ("kepler", "gravitational_parameter", -1.0, "gravitational_parameter of kepler"),
            ("henon_heiles", "coupling", 0.0, "coupling of henon_heiles"),
            ("coupled_oscillators", "masses", (1.0, -1.0, 1.0), r"masses\[1\] of coupled_oscillators"),
            ("coupled_oscillators", "masses", (), "at least one mass"),
            ("coupled_oscillators", "stiffnesses", (1.0, 1.0), "got 2 for 3 masses"),
            ("coupled_oscillators", "stiffnesses", (1.0, 0.0, 1.0, 1.0), r"stiffnesses\[1\] .* positive"),
        ],
    )
    def test_bad_parameter(self, name: str, parameter: str, value: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            system(name, **{parameter: value})

    def test_duffing_without_any_restoring_force(self) -> None:
        with pytest.raises(ValueError, match="must be positive where cubic is zero"):
            Duffing(stiffness=-1.0, cubic=0.0)

    @pytest.mark.parametrize(
        ("initial", "times", "message"),
        [
            (state([0.1, 0.2], [0.1, 0.2]), grid(0.0), r"initial position must have shape \(\*batch, 1\)"),
            (state([0.1], [0.1, 0.2]), grid(0.0), "initial velocity must have shape"),
            (state([math.nan], [0.1]), grid(0.0), "initial position must be finite; got NaN"),
            (state([0.1], [0.1]), grid(0.0, math.inf), "times must be finite"),
            (state([0.1], [0.1]), grid(0.0, 2.0, 1.0), r"times must not decrease; got -1\. Sort"),
            (state([0.1], [0.1]), grid(), r"times must have shape \(time,\)"),
            (state([0.1], [0.1]), grid(0.0)[None], r"times must have shape \(time,\)"),
            (state([0.1], [0.1]), torch.arange(3), "times must have a floating dtype; got torch.int64"),
            (PhaseState(torch.ones(1), torch.ones(1, dtype=F64)), grid(0.0), "must share a dtype"),
        ],
    )
    def test_bad_arguments_of_solve(self, initial: PhaseState, times: Tensor, message: str) -> None:
        if initial.q.dtype == torch.get_default_dtype() == F64 and "share" in message:
            initial = PhaseState(initial.q.float(), initial.v)
        with pytest.raises(ValueError, match=message):
            Pendulum().solve(initial, times)

    def test_gradients_are_refused(self) -> None:
        initial = PhaseState(torch.ones(1, dtype=F64, requires_grad=True), torch.ones(1, dtype=F64))
        with pytest.raises(ValueError, match="must not require a gradient"):
            Pendulum().solve(initial, grid(0.0, 1.0))

    @pytest.mark.parametrize("truth", [kind() for kind in SYSTEMS.values()], ids=SYSTEMS)
    def test_number_of_draws(self, truth: AbstractSystem) -> None:
        with pytest.raises(ValueError, match="num must be at least 1; got 0"):
            truth.sample_initial(0, torch.Generator())

    @pytest.mark.parametrize(
        ("initial", "message"),
        [
            (state([1.0, 0.0], [0.0, 1.5]), "must be bound"),
            (state([0.0, 0.0], [0.0, 1.0]), "must not be the centre of force"),
            (state([1.0, 0.0], [0.0, 0.0]), "eccentricity below 1"),
        ],
    )
    def test_kepler_needs_an_ellipse(self, initial: PhaseState, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Kepler().solve(initial, grid(0.0, 1.0))

    def test_escape_in_finite_time_is_reported(self) -> None:
        with pytest.raises(SolveError, match="run away in finite time") as caught:
            HenonHeiles().solve(state([0.0, 2.0], [0.0, 1.0]), grid(0.0, 20.0))
        # y alone: ½ v² = E - ½ y² + y³ / 3 with E = ½ + 2 - 8/3 gives the time to infinity by quadrature;
        # with y = 2 + s² / (1 - s)² an integrable form. The step fails within 1e-6 of that time.
        height = 0.5 + 2.0 - 8.0 / 3.0

        def slowness(y: float) -> float:
            return 1.0 / math.sqrt(2.0 * (height - 0.5 * y * y + y**3 / 3.0))

        escape = quad(slowness, 2.0, 10.0)[0] + quad(lambda u: 2 * slowness(1 / u**2) / u**3, 0, 0.1**0.5)[0]
        assert caught.value.time == pytest.approx(escape, abs=1e-6)


class TestSampling:
    def test_pendulum_ranges(self) -> None:
        q, v = draw(Pendulum(), 4000)
        assert q.abs().max() <= math.pi - 0.1
        assert q.abs().min() >= math.pi / 2
        assert v.abs().max() <= 1.0
        # 4000 draws leave no gap of 1 % of a range (probability 0.99^2000 ~ 2e-9 per end).
        assert q.max() > 3.02
        assert q.min() < -3.02
        assert v.max() > 0.98
        assert v.min() < -0.98
        # Share of rotations: known to be about 5 %, standard error 0.35 %.
        top = 2.0 * 9.82
        rotations = (Pendulum().energy(q, v) > top).double().mean()
        assert 0.02 < rotations < 0.08

    @pytest.mark.parametrize("truth", [MassSpring(), DrivenOscillator(), Duffing()])
    def test_spring_ranges(self, truth: AbstractSystem) -> None:
        q, v = draw(truth, 4000)
        assert 1.0 <= q.abs().min() < 1.01 < 1.49 < q.abs().max() <= 1.5
        assert v.abs().min() < 0.01 < 0.49 < v.abs().max() <= 0.5
        # All four pairs of signs occur, each in a quarter of the draws: 4 standard errors are 2.8 %.
        for a in (-1, 1):
            for b in (-1, 1):
                assert abs(((q * a > 0) & (v * b > 0)).double().mean() - 0.25) < 0.028

    def test_henon_heiles_is_bound(self) -> None:
        truth = HenonHeiles(coupling=2.0)
        energy = truth.energy(*draw(truth, 1000)) * truth.coupling**2
        assert energy.min() >= 1 / 24 - 1e-12
        assert energy.max() <= 1 / 8 + 1e-12

    def test_kepler_elements(self) -> None:
        truth = Kepler(gravitational_parameter=2.0)
        q, v = draw(truth, 1000)
        a = -truth.gravitational_parameter / (2.0 * truth.energy(q, v))
        e = truth.laplace_runge_lenz(q, v).norm(dim=-1) / truth.gravitational_parameter
        assert 0.8 - 1e-12 <= a.min() < 0.81 < 1.19 < a.max() <= 1.2 + 1e-12
        assert e.min() < 0.01 < 0.59 < e.max() <= 0.6 + 1e-12


class TestEllipticFunctions:
    @pytest.mark.parametrize("m1", [1.0, 0.7, 0.31, 0.29, 0.1, 1e-4, 1e-10, 1e-25, 1e-60])
    def test_against_mpmath(self, m1: float) -> None:
        mp = pytest.importorskip("mpmath")
        with mp.workdps(100):
            m = 1 - mp.mpf(m1)
            quarter = float(mp.ellipk(m))
            u = np.linspace(-2.0, 2.0, 41) * quarter
            reference = np.array(
                [[float(mp.ellipfun(k, u=mp.mpf(x), m=m)) for k in ("sn", "cn", "dn")] for x in u]
            )
        got = np.stack(jacobi(u, m1)[:3], -1)
        # One rounding of u is eps |u| <= eps 2 K, with K <= 71 here, and the derivatives are at most 1.
        np.testing.assert_allclose(got, reference, rtol=0, atol=8 * 2.3e-16 * max(1.0, 2 * quarter))

    @pytest.mark.parametrize("m1", [1.0, 0.3, 1e-3, 1e-9])
    def test_amplitude_inverts_the_integral_and_counts_turns(self, m1: float) -> None:
        phi = np.linspace(-3.1, 3.1, 63)
        u = incomplete_first(np.sin(phi), np.cos(phi), m1)
        # du = dphi / dn, so a relative rounding of u (|u| <= 24) costs at most that much in phi.
        np.testing.assert_allclose(jacobi(u, m1)[3], phi, rtol=0, atol=2e-14)
        assert (np.diff(jacobi(np.linspace(-60, 60, 4001), m1)[3]) > 0).all()

    @pytest.mark.parametrize("m1", [0.7, 0.31, 0.29, 1e-4, 1e-10, 1e-25])
    def test_small_values_keep_their_relative_accuracy(self, m1: float) -> None:
        mp = pytest.importorskip("mpmath")
        with mp.workdps(100):
            m = 1 - mp.mpf(m1)
            u = np.linspace(0.0, 0.95, 20) * float(mp.ellipk(m))
            reference = np.array([[float(mp.ellipfun(k, u=mp.mpf(x), m=m)) for k in ("cn", "dn")] for x in u])
        # cn and dn fall like exp(-u): a rounding of K or u, eps K, is the relative error; K - u >= K / 20
        # makes it 20 times larger for cn.
        np.testing.assert_allclose(np.stack(jacobi(u, m1)[1:3], -1), reference, rtol=2e-13)

    def test_on_the_separatrix(self) -> None:
        u = np.array([-800.0, -3.0, 0.0, 0.5, 800.0])
        sn, cn, dn, am = jacobi(u, 0.0)
        np.testing.assert_allclose(sn, np.tanh(u), rtol=1e-15)
        np.testing.assert_allclose(cn[1:4], 1 / np.cosh(u[1:4]), rtol=1e-15)
        np.testing.assert_array_equal(cn, dn)
        np.testing.assert_allclose(am, np.arctan(np.sinh(np.clip(u, -700, 700))), rtol=1e-15)


def exact_pendulum(q0: float, v0: float, times: Sequence[float], gravity: float = 9.82) -> np.ndarray:
    """Return angle and velocity for l = 1 with 40 digits, `(time, 2)`."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        w0, q, v = mp.sqrt(mp.mpf(gravity)), mp.mpf(q0), mp.mpf(v0)
        turn = 2 * mp.pi * mp.nint(q / (2 * mp.pi))
        s, w = mp.sin((q - turn) / 2), v / (2 * w0)
        m = s**2 + w**2
        k = mp.sqrt(m)
        rows = []
        for t in times:
            if m < 1:
                u = mp.ellipf(mp.atan2(s, w), m) + w0 * mp.mpf(t)
                sn, cn, dn = (mp.ellipfun(kind, u=u, m=m) for kind in ("sn", "cn", "dn"))
                rows.append((turn + 2 * mp.atan2(k * sn, dn), 2 * w0 * k * cn))
            else:
                u = mp.ellipf((q - turn) / 2, 1 / m) + mp.sign(w) * k * w0 * mp.mpf(t)
                half_period = 2 * mp.ellipk(1 / m)
                n = mp.nint(u / half_period)
                sn, cn, dn = (
                    mp.ellipfun(kind, u=u - n * half_period, m=1 / m) for kind in ("sn", "cn", "dn")
                )
                rows.append((turn + 2 * (n * mp.pi + mp.atan2(sn, cn)), mp.sign(w) * 2 * w0 * k * dn))
        return np.array([[float(x) for x in row] for row in rows])


SEPARATRIX_SPEED = 2.0 * math.sqrt(9.82)


class TestPendulum:
    @pytest.mark.parametrize(
        ("q0", "v0"),
        [
            (2.5, 0.3),
            (-1.6, -0.9),
            (3.0, 1.0),
            (3.04, -0.9),
            (0.3, 7.0),
            (0.3, -7.0),
            (-9.0, 0.5),
            (100.0, 3.0),
            (1e-8, 0.0),
            (0.0, 1e-9),
            (math.pi, 0.4),
        ],
    )
    def test_libration_and_rotation(self, q0: float, v0: float) -> None:
        times = [0.0, 0.3, 1.7, 4.1, 10.0]
        path = Pendulum().solve(state([q0], [v0]), grid(*times))
        # Rounding of the initial energy, eps, moves the phase by about eps ωt = 32 eps, times a
        # factor of about 1 / (1 - m) <= 100 here; relative to the path's own size.
        assert relative_error(path, exact_pendulum(q0, v0, times)) < 1e-13

    @pytest.mark.parametrize("gap", [1e-3, -1e-3, 1e-6, -1e-6, 1e-12, -1e-12])
    def test_near_the_separatrix(self, gap: float) -> None:
        # A rounding of the start grows like exp(ωt) until it meets the top, and the passage
        # over the top is late by eps / (ω gap): the bound is on what the problem allows.
        v0 = SEPARATRIX_SPEED * (1.0 + gap)
        times = [0.0, 0.3, 1.7, 4.1, 10.0]
        got = Pendulum().solve(state([0.0], [v0]), grid(*times))
        reference = exact_pendulum(0.0, v0, times)
        error = np.abs(torch.cat([got.q, got.v], -1).numpy() - reference).max(1)
        amplification = np.minimum(np.exp(3.14 * np.array(times)), 1.0 / abs(gap))
        assert (error <= 50 * 2.3e-16 * SEPARATRIX_SPEED * amplification * (1 + np.array(times))).all()

    @pytest.mark.parametrize("side", [1.0, -1.0])
    def test_on_the_separatrix(self, side: float) -> None:
        # q = 2 arctan(sinh ωt) from the bottom; near the top the error has grown by exp(ωt) at most.
        times = torch.linspace(0.0, 4.0, 9, dtype=F64)
        path = Pendulum(gravity=4.0).solve(state([0.0], [side * 4.0]), times)
        exact = side * 2.0 * torch.arctan(torch.sinh(2.0 * times))
        assert ((path.q[:, 0] - exact).abs() <= 4e-16 * (2.0 + torch.exp(2.0 * times))).all()

    def test_falling_along_the_separatrix(self) -> None:
        # v = -2ω cos(q/2) to rounding: through the bottom and up to the other top.
        v0 = -SEPARATRIX_SPEED * math.cos(1.0)
        times = [0.0, 0.3, 0.6, 1.0]
        path = Pendulum().solve(state([2.0], [v0]), grid(*times))
        assert relative_error(path, exact_pendulum(2.0, v0, times)) < 1e-13

    def test_equilibria(self) -> None:
        path = Pendulum().solve(state([0.0], [0.0]), grid(0.0, 1.0, 50.0))
        assert torch.equal(path.q, torch.zeros(3, 1, dtype=F64))
        # The float next to π is 1.2e-16 off: it takes ln(1e16) / ω = 12 s to fall.
        top = Pendulum().solve(state([math.pi], [0.0]), grid(0.0, 1.0, 5.0))
        assert (top.q - math.pi).abs().max() < 1e-8

    def test_against_scipy(self) -> None:
        q, v = draw(Pendulum(), 3)
        times = np.linspace(0.0, 5.0, 6)
        path = Pendulum().solve(PhaseState(q, v), torch.from_numpy(times))
        for i in range(3):
            result = solve_ivp(
                lambda t, y: [y[1], -9.82 * math.sin(y[0])],
                (0.0, 5.0),
                [q[i, 0].item(), v[i, 0].item()],
                method="DOP853",
                t_eval=times,
                rtol=1e-13,
                atol=1e-13,
            )
            # DOP853 itself is good to about 1e-12 times the growth of errors past the top (up to 1e3).
            np.testing.assert_allclose(path.q[i, :, 0].numpy(), result.y[0], rtol=0, atol=1e-9)

    def test_angles_count_revolutions(self) -> None:
        path = Pendulum().solve(state([0.1], [9.0]), torch.linspace(0.0, 20.0, 401, dtype=F64))
        assert (path.q.diff(dim=0) > 0).all()
        assert path.q[-1, 0] > 20 * math.pi

    def test_parameters_scale(self) -> None:
        # Length and time scale out: the motion depends on g / l only, and not on the mass.
        initial, times = draw(Pendulum(), 4), grid(0.0, 0.4, 2.0)
        one = Pendulum(mass=1.0, length=1.0, gravity=4.0).solve(initial, times)
        other = Pendulum(mass=5.0, length=2.0, gravity=8.0).solve(initial, times)
        torch.testing.assert_close(one.q, other.q, rtol=0, atol=0)


class TestDampedPendulum:
    def test_without_friction_it_is_the_pendulum(self) -> None:
        # The whole numerical route against elliptic functions over 10 s. Round-off 1e-15 of each
        # grows by up to 1e3 on passages near the top (|q| <= π - 0.1 with |v| <= 1).
        initial, times = draw(Pendulum(), 30), torch.linspace(0.0, 10.0, 23, dtype=F64)
        exact = Pendulum().solve(initial, times)
        path = DampedPendulum(damping=0.0, quadratic_damping=0.0).solve(initial, times)
        torch.testing.assert_close(path.q, exact.q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(path.v, exact.v, rtol=1e-12, atol=1e-12)

    def test_quadratic_friction_has_a_first_integral(self) -> None:
        # With c alone, w = v² obeys dw/dq + 2κσw = -2ω² sin q on a swing of direction σ, so that
        # w = A (cos q - 2κσ sin q) + C exp(-2κσq), A = 2ω² / (1 + 4κ²). Follow it from swing to swing.
        kappa, omega2 = 0.3, 9.82
        truth = DampedPendulum(damping=0.0, quadratic_damping=kappa)
        times = torch.linspace(0.0, 10.0, 1001, dtype=F64)
        path = truth.solve(state([2.9], [0.0]), times)
        q, v = path.q[:, 0].numpy(), path.v[:, 0].numpy()
        A = 2.0 * omega2 / (1.0 + 4.0 * kappa**2)

        def square(x: float, sign: float, at: float) -> float:
            free = A * (math.cos(at) - 2 * kappa * sign * math.sin(at))
            steady = A * (math.cos(x) - 2 * kappa * sign * math.sin(x))
            return steady - free * math.exp(-2.0 * kappa * sign * (x - at))

        turn, sign, swings = 2.9, -1.0, 0
        for x, speed in zip(q[1:], v[1:], strict=True):
            if speed * sign < 0:
                # The next turning point lies on the other side of the bottom.
                turn = brentq(square, 0.0, -turn, args=(sign, turn), xtol=1e-15, rtol=1e-15)
                sign, swings = -sign, swings + 1
            # v² up to 30, chained over 11 swings of a contracting map: 30 * 11 * eps ~ 1e-13.
            assert abs(square(x, sign, turn) - speed**2) < 1e-12
        assert swings >= 8

    def test_linear_friction_against_taylor_series(self) -> None:
        mp = pytest.importorskip("mpmath")
        truth = DampedPendulum(quadratic_damping=0.0)
        times = [0.0, 2.0, 5.0]
        with mp.workdps(20):
            flow = mp.odefun(
                lambda t, y: [y[1], -mp.mpf(9.82) * mp.sin(y[0]) - mp.mpf(0.1) * y[1]],
                0,
                [mp.mpf(2.8), mp.mpf(0.7)],
            )
            reference = np.array([[float(x) for x in flow(t)] for t in times])
        path = truth.solve(state([2.8], [0.7]), grid(*times))
        assert relative_error(path, reference) < 1e-13  # round-off times the growth near the top, about 10

    def test_friction_that_stops_it(self) -> None:
        # Overdamped: the slow rate of a'' + b a' + ω² a = 0 governs the end, and the angle keeps its sign.
        truth = DampedPendulum(damping=10.0, quadratic_damping=2.0)
        path = truth.solve(state([1.0], [0.0]), torch.linspace(0.0, 20.0, 21, dtype=F64))
        slow = 5.0 - math.sqrt(25.0 - 9.82)
        assert (path.q > 0).all()
        ratio = torch.log(path.q[-2, 0] / path.q[-1, 0]).item()
        # By 19 s the angle is e^-20 and nonlinear terms are below 1e-8.
        assert ratio == pytest.approx(slow, abs=1e-7)

    def test_at_rest_it_stays(self) -> None:
        path = DampedPendulum().solve(state([0.0], [0.0]), grid(0.0, 1.0, 7.0))
        assert torch.equal(path.q, torch.zeros(3, 1, dtype=F64))

    def test_sampling_does_not_matter(self) -> None:
        # The same end through 1 and through 200 intervals: turning points fall anywhere in them.
        initial = draw(DampedPendulum(), 10)
        coarse = DampedPendulum().solve(initial, grid(0.0, 10.0))
        fine = DampedPendulum().solve(initial, torch.linspace(0.0, 10.0, 201, dtype=F64))
        torch.testing.assert_close(coarse.at(-1).q, fine.at(-1).q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(coarse.at(-1).v, fine.at(-1).v, rtol=1e-12, atol=1e-12)


class TestOscillators:
    @pytest.mark.parametrize("damping", [0.0, 0.3, 2.0 - 1e-9, 2.0, 2.0 + 1e-9, 7.0, 1000.0])
    def test_spring_against_matrix_exponential(self, damping: float) -> None:
        truth = MassSpring(mass=1.0, stiffness=1.0, damping=damping)
        times = [0.0, 0.01, 0.5, 3.0, 10.0]
        path = truth.solve(state([1.2], [-0.4]), grid(*times))
        generator = np.array([[0.0, 1.0], [-1.0, -damping]])
        reference = np.array([expm(generator * t) @ [1.2, -0.4] for t in times])
        # expm by scaling and squaring loses about eps ||A t||: 1e4 eps in the stiffest case.
        assert relative_error(path, reference) < 3e-16 * (30.0 + 10.0 * damping)

    def test_overdamped_for_long(self) -> None:
        path = MassSpring(damping=100.0).solve(state([1.0], [0.0]), grid(0.0, 1e3, 1e5))
        # Only the slow mode is left: q'/q = -2 / (50 + sqrt(2498)) exactly.
        ratio = path.v[1, 0] / path.q[1, 0]
        assert ratio.item() == pytest.approx(-2.0 / (50.0 + math.sqrt(2498.0)), rel=1e-14)
        assert path.q[2, 0] >= 0

    @pytest.mark.parametrize("damping", [0.02, 0.2, 2.0 * math.sqrt(2.0), 6.0])
    @pytest.mark.parametrize("frequency", [0.3, math.sqrt(2.0), 4.0])
    def test_drive_against_collocation(self, damping: float, frequency: float) -> None:
        truth = DrivenOscillator(damping=damping, drive_amplitude=0.8, drive_frequency=frequency)
        initial, times = draw(truth, 3), torch.linspace(-1.0, 9.0, 11, dtype=F64)
        # Round-off times the steady amplitude, up to 0.8 / (0.02 * 1.4) = 28.
        assert relative_error(truth.solve(initial, times), gauss_path(truth, initial, times)) < 1e-13

    def test_drive_settles_to_the_resonance_curve(self) -> None:
        truth = DrivenOscillator(damping=0.5, drive_frequency=1.1)
        path = truth.solve(
            state([3.0], [0.0]), torch.cat([grid(0.0), torch.linspace(200, 220, 4001, dtype=F64)])
        )
        expected = 0.5 / math.hypot(2.0 - 1.1**2, 0.5 * 1.1)
        # Sampling at 0.005 s misses a maximum by at most (Ω 0.0025)² / 2 = 4e-6 of it.
        assert path.q[1:].abs().max().item() == pytest.approx(expected, rel=4e-6)

    @pytest.mark.parametrize("cubic", [0.0, 1e-6, 1.0, 1e3])
    def test_duffing_elliptic_against_collocation(self, cubic: float) -> None:
        truth = Duffing(mass=2.0, stiffness=1.5, cubic=cubic)
        initial, times = draw(truth, 10), torch.linspace(1.0, 11.0, 9, dtype=F64)
        # Phase error eps ωt, where ω reaches sqrt(1e3 * 2.3 / 2) ~ 35 for the hardest spring.
        tolerance = 1e-13 if cubic <= 1.0 else 1e-12
        assert relative_error(truth.solve(initial, times), gauss_path(truth, initial, times)) < tolerance

    def test_duffing_at_rest_and_in_every_quadrant(self) -> None:
        truth = Duffing()
        assert torch.equal(truth.solve(state([0.0], [0.0]), grid(0.0, 9.0)).q, torch.zeros(2, 1, dtype=F64))
        corners = [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (-2.0, 0.5)]
        initial = PhaseState(*(x[:, None] for x in torch.tensor(corners, dtype=F64).T))
        times = torch.linspace(0.0, 10.0, 7, dtype=F64)
        assert relative_error(truth.solve(initial, times), gauss_path(truth, initial, times)) < 1e-13

    def test_forced_double_well_against_taylor_series(self) -> None:
        mp = pytest.importorskip("mpmath")
        truth = Duffing(stiffness=-1.0, damping=0.25, drive_amplitude=0.4)
        times = [3.0, 5.0, 13.0]
        with mp.workdps(20):
            flow = mp.odefun(
                lambda t, y: [y[1], y[0] - y[0] ** 3 - y[1] / 4 + mp.mpf(0.4) * mp.cos(t)],
                3,
                [mp.mpf(1.1), mp.mpf(0.3)],
            )
            reference = np.array([[float(x) for x in flow(t)] for t in times])
        path = truth.solve(state([1.1], [0.3]), grid(*times))
        assert relative_error(path, reference) < 1e-13  # round-off, with no exponential growth in this window

    @pytest.mark.parametrize("name", ["coupled_oscillators", "chain_free"])
    def test_chain_against_matrix_exponential(self, name: str) -> None:
        truth = VARIANTS[name]
        assert isinstance(truth, CoupledOscillators)
        n = truth.dim
        initial, times = draw(truth, 1), [0.0, 0.3, 4.0, 10.0]
        lower = -truth.stiffness_matrix / truth.inertia[:, None]
        generator = np.block([[np.zeros((n, n)), np.eye(n)], [lower, np.zeros((n, n))]])
        start = torch.cat(initial, -1)[0].numpy()
        reference = np.array([expm(generator * t) @ start for t in times])
        path = truth.solve(PhaseState(initial.q[0], initial.v[0]), grid(*times))
        assert relative_error(path, reference) < 1e-13  # expm: eps ||A t|| ~ 100 eps

    def test_chain_modes(self) -> None:
        truth = CoupledOscillators(masses=(1.0, 1.0), stiffnesses=(2.0, 3.0, 2.0))
        frequencies, shapes = truth.modes()
        # In phase: only the walls pull, ω² = 2; out of phase: ω² = 2 + 2 * 3.
        np.testing.assert_allclose(frequencies**2, [2.0, 8.0], rtol=1e-14)
        np.testing.assert_allclose(shapes.T * truth.inertia @ shapes, np.eye(2), atol=1e-15)
        q, v = draw(truth, 4)
        torch.testing.assert_close(truth.mode_energies(q, v).sum(-1), truth.energy(q, v), rtol=1e-14, atol=0)

    def test_single_mass_chain_is_a_spring(self) -> None:
        truth = CoupledOscillators(masses=(1.5,), stiffnesses=(1.0, 2.0))
        initial, times = draw(truth, 3), grid(0.0, 1.0, 6.0)
        exact = MassSpring(mass=1.5, stiffness=3.0).solve(initial, times)
        torch.testing.assert_close(truth.solve(initial, times).q, exact.q, rtol=1e-13, atol=1e-14)

    def test_free_mass_keeps_its_velocity(self) -> None:
        path = CoupledOscillators(masses=(2.0,), stiffnesses=(0.0, 0.0)).solve(
            state([1.0], [3.0]), grid(0, 4.0)
        )
        torch.testing.assert_close(path.q[:, 0], grid(1.0, 13.0), rtol=1e-15, atol=0)


class TestCelestial:
    @pytest.mark.parametrize("e", [0.0, 0.3, 0.9, 0.99])
    def test_kepler_returns_after_whole_periods(self, e: float) -> None:
        # From the pericentre a = μ = 1: the period is 2π. A rounding of n t by eps 2πN
        # moves the body by v times that, with v = sqrt((1 + e) / (1 - e)).
        v = math.sqrt((1 + e) / (1 - e))
        path = Kepler().solve(state([1.0 - e, 0.0], [0.0, v]), grid(0.0, math.pi, 2 * math.pi, 20 * math.pi))
        slack = 2.3e-16 * 20 * math.pi * v * 10 / (1 - e)
        torch.testing.assert_close(path.q[1], grid(-1.0 - e, 0.0), rtol=0, atol=slack)
        torch.testing.assert_close(path.q[2], path.q[0], rtol=0, atol=slack)
        torch.testing.assert_close(path.q[3], path.q[0], rtol=0, atol=slack)

    def test_kepler_after_many_periods(self) -> None:
        # 1000 periods: whole turns are taken out first, so only the rounding of n t is left, eps 2000π v.
        v = math.sqrt(1.3 / 0.7)
        path = Kepler().solve(state([0.7, 0.0], [0.0, v]), grid(0.0, 2000 * math.pi))
        torch.testing.assert_close(path.q[1], path.q[0], rtol=0, atol=4 * 2.3e-16 * 2000 * math.pi * v)

    def test_kepler_against_collocation(self) -> None:
        for name in ("kepler", "kepler_other"):
            truth = VARIANTS[name]
            initial, times = draw(truth, 10), torch.linspace(5.0, 15.0, 12, dtype=F64)
            # Phase errors grow by 3/2 n t δa / a: a few 1e-15 of round-off times 10 to 30 rad.
            error = relative_error(truth.solve(initial, times), gauss_path(truth, initial, times))
            assert error < 1e-12

    def test_kepler_circle(self) -> None:
        times = torch.linspace(0.0, 30.0, 31, dtype=F64)
        path = Kepler().solve(state([1.0, 0.0], [0.0, 1.0]), times)
        exact = torch.stack([times.cos(), times.sin()], -1)
        torch.testing.assert_close(path.q, exact, rtol=0, atol=1e-13)  # eps n t = 30 eps, with a margin of 15

    def test_kepler_moves_by_the_third_law_and_turns_one_way(self) -> None:
        truth = Kepler(mass=3.0, gravitational_parameter=2.0)
        q, v = draw(truth, 20)
        a = -0.5 * truth.mass * truth.gravitational_parameter / truth.energy(q, v)
        period = 2 * math.pi * torch.sqrt(a**3 / truth.gravitational_parameter)
        for i in range(20):
            path = truth.solve(PhaseState(q[i], v[i]), grid(0.0, period[i].item()))
            torch.testing.assert_close(path.q[1], q[i], rtol=0, atol=1e-13)
        # Both senses of rotation would need a negative semi-minor axis: the draw turns anticlockwise.
        assert (truth.angular_momentum(q, v) > 0).all()

    def test_kepler_momentum_map(self) -> None:
        # J(q, p) generates rotations: its Hamiltonian vector field (dJ/dp, -dJ/dq) is the
        # infinitesimal rotation (ξq, ξp), with ξ the quarter turn.
        truth = Kepler(mass=2.0)
        q, v = (x.requires_grad_() for x in draw(truth, 5))
        grad_q, grad_v = torch.autograd.grad(truth.angular_momentum(q, v).sum(), (q, v))
        quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
        torch.testing.assert_close(grad_v / truth.mass, q @ quarter.T, rtol=1e-15, atol=0)
        torch.testing.assert_close(-grad_q, truth.mass * v @ quarter.T, rtol=1e-15, atol=0)

    def test_laplace_vector_points_at_the_pericentre(self) -> None:
        truth = Kepler(mass=2.0, gravitational_parameter=3.0)
        e, a = 0.4, 1.5
        q = grid(a * (1 - e), 0.0)
        v = grid(0.0, math.sqrt(3.0 / a * (1 + e) / (1 - e)))
        expected = grid(2.0**2 * 3.0 * e, 0.0)
        torch.testing.assert_close(truth.laplace_runge_lenz(q, v), expected, rtol=1e-14, atol=1e-14)

    def test_henon_heiles_against_taylor_series(self) -> None:
        mp = pytest.importorskip("mpmath")
        times = [0.0, 2.0, 10.0]
        with mp.workdps(20):
            flow = mp.odefun(
                lambda t, y: [y[2], y[3], -y[0] - 2 * y[0] * y[1], -y[1] - y[0] ** 2 + y[1] ** 2],
                0,
                [mp.mpf(x) for x in (0.1, 0.2, 0.3, -0.2)],
            )
            reference = np.array([[float(x) for x in flow(t)] for t in times])
        path = HenonHeiles().solve(state([0.1, 0.2], [0.3, -0.2]), grid(*times))
        assert relative_error(path, reference) < 1e-14

    def test_henon_heiles_scales_with_its_coupling(self) -> None:
        times = grid(0.0, 3.0, 20.0)
        q, v = draw(HenonHeiles(), 5)
        one = HenonHeiles().solve(PhaseState(q, v), times)
        other = HenonHeiles(coupling=4.0).solve(PhaseState(q / 4.0, v / 4.0), times)
        torch.testing.assert_close(other.q * 4.0, one.q, rtol=1e-12, atol=1e-12)

    def test_henon_heiles_has_threefold_symmetry(self) -> None:
        c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
        turn = torch.tensor([[c, -s], [s, c]], dtype=F64)
        q, v = draw(HenonHeiles(), 5)
        times = grid(0.0, 3.0, 10.0)
        one = HenonHeiles().solve(PhaseState(q, v), times)
        other = HenonHeiles().solve(PhaseState(q @ turn.T, v @ turn.T), times)
        torch.testing.assert_close(other.q, one.q @ turn.T, rtol=0, atol=1e-12)


class TestReferenceIntegrator:
    @staticmethod
    def oscillator(q: np.ndarray, v: np.ndarray, t: np.ndarray, sign: np.ndarray) -> np.ndarray:
        return -q

    def test_long_run_stays_at_round_off(self) -> None:
        q, v = integrate(self.oscillator, np.ones((1, 1)), np.zeros((1, 1)), np.array([0.0, 1000.0]))
        # Compensated sums: the phase error is a random walk of eps per step, far below eps n t = 2e-13.
        assert abs(q[0, 1, 0] - math.cos(1000.0)) < 5e-14
        assert abs(v[0, 1, 0] + math.sin(1000.0)) < 5e-14

    def test_late_start_keeps_its_digits(self) -> None:
        times = np.array([1e6, 1e6 + 0.125, 1e6 + 8.0])
        q, _ = integrate(self.oscillator, np.ones((1, 1)), np.zeros((1, 1)), times)
        np.testing.assert_allclose(q[0, :, 0], np.cos(times - 1e6), rtol=0, atol=1e-14)

    def test_runaway_is_reported_with_its_time(self) -> None:
        def explode(q: np.ndarray, v: np.ndarray, t: np.ndarray, sign: np.ndarray) -> np.ndarray:
            return 6.0 * q**2

        # q = (1 - t)^-2 solves it: infinite at t = 1.
        with pytest.raises(SolveError) as caught:
            integrate(explode, np.ones((1, 1)), 2.0 * np.ones((1, 1)), np.array([0.0, 2.0]))
        assert caught.value.time == pytest.approx(1.0, abs=1e-6)

    def test_constant_friction_direction(self) -> None:
        # a = -1 - sign(v) / 2: up with 3/2, down with 1/2. From v = 3 the top, q = 3, comes at t = 2;
        # then q = 3 - (t - 2)² / 4.
        def force(q: np.ndarray, v: np.ndarray, t: np.ndarray, sign: np.ndarray) -> np.ndarray:
            return -1.0 - 0.5 * sign

        q, v = integrate(
            force, np.zeros((1, 1)), 3.0 * np.ones((1, 1)), np.array([0.0, 1.0, 2.0, 5.0]), kink=True
        )
        np.testing.assert_allclose(q[0, :, 0], [0.0, 2.25, 3.0, 0.75], rtol=0, atol=1e-14)
        np.testing.assert_allclose(v[0, :, 0], [3.0, 1.5, 0.0, -1.5], rtol=0, atol=1e-14)


def test_invariants_of_dissipative_variants_are_empty() -> None:
    cases: list[tuple[Callable[[], AbstractSystem], tuple[str, ...]]] = [
        (lambda: MassSpring(damping=0.1), ()),
        (MassSpring, ("energy",)),
        (DampedPendulum, ()),
        (lambda: Duffing(damping=0.1), ()),
        (lambda: Duffing(drive_amplitude=0.1), ()),
        (DrivenOscillator, ()),
        (lambda: VARIANTS["chain_free"], ("energy", "mode_energies", "momentum")),
    ]
    for build, conserved in cases:
        assert build().conserved == conserved
