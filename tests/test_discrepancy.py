"""Forces that a model does not know: their process, their work, and what forecasts make of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro
import pytest
import torch
from example_data import ragged, simulated
from pyro import poutine
from torch import Tensor

from vinppl.data import Trajectories
from vinppl.discrepancy import DiscrepancyForce, make_discrepancy
from vinppl.draws import latent_sites, predict, prototype
from vinppl.dynamics import VIN
from vinppl.fit import SVIOptions, find_start, fit_svi
from vinppl.forces import CoulombFriction, KnotSignal
from vinppl.forecast import extend, forecast
from vinppl.logdensity import LogDensity
from vinppl.matern import matern_path
from vinppl.models import MassSpring, MassSpringConfig, Pendulum, PendulumConfig
from vinppl.parameters import Learned
from vinppl.posterior import prior_draws
from vinppl.potentials import FlatPotential, Harmonic
from vinppl.priors import log_normal
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid


def matern(lag: Tensor, length: float) -> Tensor:
    """Return the Matérn-3/2 correlation, as in Rasmussen and Williams (2006), eq. (4.17)."""
    r = math.sqrt(3) * lag.abs() / length
    return (1 + r) * (-r).exp()


# The process


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
def test_the_covariance_at_knots_is_the_kernel(ratio: float) -> None:
    # The map from innovations to the process is linear: its matrix gives the covariance without sampling.
    knots = 9
    basis = torch.eye(2 * knots).reshape(2 * knots, 1, knots, 2)
    values, slopes = (x[:, 0, :, 0] for x in matern_path(basis, torch.tensor(ratio)))  # (innovation, knot)
    lag = ratio * (torch.arange(knots).unsqueeze(-1) - torch.arange(knots))
    torch.testing.assert_close(values.mT @ values, matern(lag, 1.0), rtol=0, atol=1e-11)
    # The slope's covariance is minus the second derivative of the kernel; times the spacing squared.
    r = math.sqrt(3) * lag.abs()
    torch.testing.assert_close(slopes.mT @ slopes, 3 * ratio**2 * (1 - r) * (-r).exp(), rtol=0, atol=1e-11)


def test_between_knots_the_variance_lost_is_as_documented() -> None:
    knots, spacing, length = 6, 0.5, 1.0
    basis = torch.eye(2 * knots).reshape(2 * knots, 1, knots, 2)
    signal = KnotSignal(torch.zeros(1), spacing, *matern_path(basis, torch.tensor(spacing / length)))
    t = torch.linspace(0, 2.5, 41)
    x = signal.at(t)[:, 0, :, 0]
    error = x.mT @ x - matern(t.unsqueeze(-1) - t, length)
    bound = (math.sqrt(3) * spacing / length) ** 3 / 48
    assert bound < 0.014
    assert float(error.abs().max()) < 1.05 * bound


def test_drawn_forces_have_the_covariance_of_the_kernel_across_the_end_of_the_fit() -> None:
    data = simulated(num_trajectories=4000, num_times=12)  # 1.1 s
    force = DiscrepancyForce(2.0, 0.4, spacing=0.2, span=0.5)
    assert force.num_knots == 4
    trace = poutine.trace(
        lambda: force(data, pyro.plate("trajectory", 4000, dim=-1)).at(data.times[0])
    ).get_trace()
    sites = {name: site["value"].shape for name, site in trace.nodes.items() if site["type"] == "sample"}
    assert sites["innovations"] == (4000, 4, 2)
    assert sites["continuation"] == (4000, 3, 2)
    x = trace.nodes["_RETURN"]["value"][..., 0]
    t = data.times[0]
    # Standard errors of 4,000 samples: 4 sqrt(2) / sqrt(4000) = 0.09 of a variance.
    torch.testing.assert_close(x.mT @ x / 4000, 4 * matern(t.unsqueeze(-1) - t, 0.4), rtol=0, atol=0.35)


def test_several_coordinates_and_particles() -> None:
    data = simulated("coupled_oscillators", num_trajectories=5)
    force = DiscrepancyForce(log_normal(1.0, 0.3), log_normal(0.5, 0.3), spacing=0.2, span=1.1, dim=2)
    with pyro.plate("particles", 3, dim=-2):
        trace = poutine.trace(force).get_trace(data, pyro.plate("trajectory", 5, dim=-1))
    signal = trace.nodes["_RETURN"]["value"]
    assert trace.nodes["innovations"]["value"].shape == (3, 5, force.num_knots, 4)
    whole = signal.at(data.times[0])
    assert whole.shape == (3, 5, data.num_times, 2)
    # The same numbers for one particle alone, and for times of each trajectory.
    alone = {name: trace.nodes[name]["value"][1].squeeze(0) for name in ("amplitude", "correlation_time")}
    alone["innovations"] = trace.nodes["innovations"]["value"][1]
    again = poutine.condition(force, alone)(data, pyro.plate("trajectory", 5, dim=-1))
    torch.testing.assert_close(again.at(data.times), whole[1], rtol=0, atol=1e-12)


def test_what_a_discrepancy_refuses() -> None:
    with pytest.raises(ValueError, match="spacing must be positive and finite; got 0"):
        DiscrepancyForce(1.0, 1.0, spacing=0.0, span=1.0)
    with pytest.raises(ValueError, match="span must be positive and finite"):
        DiscrepancyForce(1.0, 1.0, spacing=0.1, span=-1.0)
    with pytest.raises(ValueError, match="scale of a half-normal prior must be positive"):
        make_discrepancy(simulated(), -1.0)
    with pytest.raises(ValueError, match="coordinates must be one of innovations, knots"):
        make_discrepancy(simulated(), 1.0, coordinates="force")  # type: ignore[arg-type]


def test_an_inactive_discrepancy_has_no_sites() -> None:
    data = simulated()
    force = make_discrepancy(data, None)
    trace = poutine.trace(force).get_trace(data, pyro.plate("trajectory", 3, dim=-1))
    assert trace.nodes["_RETURN"]["value"] is None
    assert latent_sites(trace) == []
    assert force.initial_values(data) == {}


# Signals by knots


def test_cubics_are_reproduced() -> None:
    spacing = 0.5
    t = spacing * torch.arange(5)
    values, slopes = t**3 - 2 * t + 1, spacing * (3 * t**2 - 2)
    signal = KnotSignal(torch.tensor([1.0]), spacing, values[None, :, None], slopes[None, :, None])
    at = torch.tensor([0.9, 1.0, 1.3, 2.5, 3.0, 3.2])  # a little outside of the knots too
    x = at - 1
    torch.testing.assert_close(signal.at(at)[0, :, 0], x**3 - 2 * x + 1, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"the knots must cover every time.*there are 5, 0\.5 apart"):
        signal.at(torch.tensor([4.0]))


# Forces and energy


def test_the_work_of_the_force_is_the_energy_gained() -> None:
    knots = 21
    torch.manual_seed(1)
    signal = KnotSignal(torch.zeros(1), 0.5, *matern_path(torch.randn(1, knots, 2), torch.tensor(0.5)))
    vin = VIN(Harmonic(2.0), mass=1.5)
    grid = TimeGrid.regular(2001, 0.005)
    path = vin(PhaseState(torch.tensor([[1.0]]), torch.zeros(1, 1)), grid, force=signal)
    power = (signal.at(grid.times) * path.v)[0, :, 0]
    energy = vin.energy(path)[0]
    work = torch.cumulative_trapezoid(power, dx=0.005)
    assert float(work.abs().max()) > 0.3
    # Velocity Verlet and the trapezoidal rule err by h^2 = 2.5e-5 times energies and powers up to twenty.
    assert float(energy.max()) < 20
    torch.testing.assert_close(energy[1:] - energy[0], work, rtol=0, atol=5e-4)


def test_dry_friction_takes_out_the_energy_that_it_works() -> None:
    vin = VIN(Harmonic(2.0), mass=1.5, forces=[CoulombFriction(0.1, smoothing=0.02)])
    grid = TimeGrid.regular(4001, 0.0025)
    path = vin(PhaseState(torch.tensor([1.0]), torch.zeros(1)), grid)
    v = path.v[:, 0]
    energy = vin.energy(path)
    dissipated = torch.cumulative_trapezoid(0.1 * (v / 0.02).tanh() * v, dx=0.0025)
    assert float(dissipated[-1]) > 0.6
    torch.testing.assert_close(energy[0] - energy[1:], dissipated, rtol=0, atol=2e-5)
    assert bool((dissipated.diff() >= 0).all())


def test_a_force_moves_a_free_body_as_it_should() -> None:
    # A constant force a: q = a t^2 / (2 m), exactly by velocity Verlet.
    knots = torch.full((1, 3, 1), 0.8)
    signal = KnotSignal(torch.zeros(1), 1.0, knots, 0 * knots)
    path = VIN(FlatPotential(), mass=2.0)(
        PhaseState(torch.zeros(1, 1), torch.zeros(1, 1)), TimeGrid.regular(11, 0.2), force=signal
    )
    torch.testing.assert_close(path.q[0, :, 0], 0.2 * path.time**2, rtol=0, atol=1e-13)


# In models


def build(data: Trajectories, **options: Any) -> Pendulum:
    return Pendulum(data, PendulumConfig(discrepancy=0.5, discrepancy_time=(0.4, 0.5), **options))


@pytest.mark.parametrize("coordinates", ["innovations", "knots"])
def test_compiled_and_reference_densities_agree(coordinates: Any) -> None:
    data = ragged(simulated())
    model = build(data, noise="ar1")
    model.discrepancy = make_discrepancy(data, 0.5, (0.4, 0.5), coordinates=coordinates)
    density = LogDensity(model, data, initial_values=model.initial_values(data), soften=True)
    assert density.compile()
    for seed in range(3):
        u = density.initial + 0.1 * torch.randn(density.size, generator=torch.Generator().manual_seed(seed))
        value, gradient = density.value_and_gradient(u)
        at = u.clone().requires_grad_()
        reference = density._reference(at)
        (slope,) = torch.autograd.grad(reference, at)
        torch.testing.assert_close(value, reference.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-7)


def test_shorter_data_have_the_same_sites() -> None:
    # The search for a mode begins with the first samples alone.
    data = simulated()
    model = build(data)
    assert "discrepancy.innovations" in latent_sites(prototype(model, data.first(4)))
    shapes = {
        prototype(model, d).nodes["discrepancy.innovations"]["value"].shape for d in (data, data.first(4))
    }
    assert len(shapes) == 1


def test_forecasts_continue_the_process_and_widen() -> None:
    data = simulated("mass_spring", num_trajectories=2)
    spread = {}
    for amplitude in (None, 0.3):
        model = MassSpring(data, MassSpringConfig(discrepancy=amplitude, discrepancy_time=(0.5, 0.3)))
        draws = {
            name: value[:1].expand(300, *value.shape[1:])
            for name, value in prior_draws(model, data, 1).items()
        }
        if amplitude is not None:
            draws["discrepancy.amplitude"] = torch.full((300,), 0.3)
        future = extend(data, horizon=6.0)
        result = forecast(model, draws, data, future)
        states = torch.as_tensor(result["predictions"]["states"].values[0])
        spread[amplitude] = states[:, 0, :, 0].std(0)
        if amplitude is not None:
            force = torch.as_tensor(result["predictions"]["discrepancy.force"].values[0])[:, 0, :, 0]
            assert "discrepancy.continuation" not in result["predictions"]
    inside = data.num_times
    assert float(spread[None].max()) < 1e-12  # one draw, repeated
    assert float(spread[0.3][:inside].max()) < 1e-12  # its force is known where it was inferred
    later = spread[0.3][[inside + 5, inside + 20, inside + 55]]
    assert bool((later.diff() > 0).all())
    assert float(force[:, inside:].std(0)[-20:].mean()) == pytest.approx(0.3, rel=0.1)
    # A white force of spectral density S = 4 A^2 l / sqrt(3) at frequency zero makes an oscillator's
    # amplitude diffuse: its variance after t is at most S t / (2 k m), more than that of correlated forces.
    bound = 4 * 0.3**2 * float(draws["discrepancy.correlation_time"][0]) / math.sqrt(3)
    assert float(later[-1]) ** 2 < 6.5 * bound


def test_predictions_within_the_fit_need_no_continuation() -> None:
    data = simulated()
    model = build(data)
    draws = prior_draws(model, data, 5)
    predicted = predict(model, draws, data)
    assert predicted["discrepancy.force"].shape == (5, 3, data.num_times, 1)
    again = predict(model, draws, data)
    torch.testing.assert_close(predicted["states"], again["states"], rtol=0, atol=0)


def test_svi_fits_and_a_learned_amplitude_gets_a_gradient() -> None:
    data = simulated()
    options = SVIOptions(guide="mean_field", num_steps=2, check_every=1, start="values", num_particles=2)
    result = fit_svi(build(data), data, options)
    assert result.sample(3)["discrepancy.innovations"].shape[:2] == (3, 3)
    model = build(data)
    model.discrepancy = DiscrepancyForce(Learned(0.5), Learned(0.4), spacing=0.2, span=1.1)
    torch.manual_seed(0)
    poutine.trace(model).get_trace(data).log_prob_sum().backward()
    for name, parameter in model.discrepancy.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad) != 0, name


def test_both_coordinates_are_one_process() -> None:
    # The density of the force plus that of what it explains, by either coordinates: the Jacobian is constant.
    data = simulated(num_trajectories=2)
    difference = []
    for seed in range(3):
        torch.manual_seed(seed)
        z, total = torch.randn(2, 4, 2), {}
        for coordinates in ("innovations", "knots"):
            force = DiscrepancyForce(2.0, 0.4, spacing=0.4, span=1.1, coordinates=coordinates)
            value = (
                z
                if coordinates == "innovations"
                else 2 * torch.cat(matern_path(z, torch.tensor(1.0)), dim=-1)
            )
            trace = poutine.trace(poutine.condition(force, {coordinates: value}))
            trace = trace.get_trace(data, pyro.plate("trajectory", 2, dim=-1))
            total[coordinates] = trace.log_prob_sum(), trace.nodes["_RETURN"]["value"].at(data.times[0])
        torch.testing.assert_close(total["innovations"][1], total["knots"][1], rtol=0, atol=1e-12)
        difference.append(float(total["knots"][0] - total["innovations"][0]))
    assert max(difference) - min(difference) < 1e-9


@pytest.mark.parametrize("coordinates", ["innovations", "knots"])
def test_the_search_for_a_start_keeps_the_scale_of_the_force(coordinates: Any) -> None:
    # The joint mode of an amplitude and its process is where the amplitude is zero (knots) or far too large
    # (innovations); neither is a start.
    data = simulated(num_times=30)
    model = build(data)
    model.discrepancy = make_discrepancy(data, 0.5, (0.4, 0.5), coordinates=coordinates)
    start = find_start(model, data, soften=True)
    assert start.converged
    assert 0.02 < float(start.values["discrepancy.amplitude"]) < 1.0
    assert start.covariance is not None


def test_starting_values_are_those_of_the_law_alone() -> None:
    data = dataclasses.replace(simulated())
    model = build(data)
    values = model.initial_values(data)
    assert values["discrepancy.innovations"].shape == (3, model.discrepancy.num_knots, 2)
    assert not bool(values["discrepancy.innovations"].any())
    assert float(values["discrepancy.correlation_time"]) == 0.4
    # Half of a half-normal lies below.
    assert float(values["discrepancy.amplitude"]) == pytest.approx(0.5 * 0.6745, rel=1e-4)
