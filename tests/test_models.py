"""One battery over every model of the suite that is found by name; those of films are in test_pixels."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import warnings
from typing import Any

import arviz as az
import pyro
import pytest
import torch
from example_data import driven, ragged, simulated, with_gaps
from pyro import poutine
from pyro.infer import Trace_ELBO

import vinppl.models
from vinppl.assimilation import assimilate
from vinppl.calibration import corrected_draws, leave_one_out
from vinppl.data import Trajectories
from vinppl.draws import latent_sites, predict, prototype
from vinppl.errors import ConvergenceWarning, PerformanceWarning
from vinppl.export import get_group, read_result, write_result
from vinppl.fit import MCMCOptions, SVIOptions, fit_mcmc, fit_svi
from vinppl.forecast import extend, forecast
from vinppl.growth import uncertainty_growth
from vinppl.logdensity import LogDensity
from vinppl.posterior import from_mcmc, from_svi, prior_draws
from vinppl.refinement import refine

PIXELS = ("PixelFree", "PixelVAE", "PixelVIN")
SUITE = {
    name: getattr(vinppl.models, name)
    for name in vinppl.models.__all__
    if name not in PIXELS
    and isinstance(getattr(vinppl.models, name), type)
    and hasattr(getattr(vinppl.models, name), "Config")
}
SYSTEM = {
    "MassSpring": "mass_spring",
    "Duffing": "duffing",
    "DrivenMass": "duffing",
    "HenonHeiles": "henon_heiles",
}  # others are pendulums
DRIVEN = ("DrivenMass", "Duffing")
NETWORKS = ("FreeDynamics", "HamiltonianStates", "NoisyStates")
SMALL: dict[str, dict[str, Any]] = {name: {"hidden_sizes": (4,)} for name in NETWORKS}

pytestmark = [
    # Priors are wide: some of their trajectories run away, which Pyro's validation remarks on.
    pytest.mark.filterwarnings("ignore:Encountered NaN"),
    pytest.mark.filterwarnings("ignore:the model has point-estimated parameters"),
]
every_model = pytest.mark.parametrize("name", SUITE)


def data_for(name: str, **options: Any) -> Trajectories:
    data = simulated(SYSTEM.get(name, "pendulum"), **options)
    return driven(data) if name in DRIVEN else data


def build(name: str, data: Trajectories, **options: Any) -> Any:
    kind = SUITE[name]
    return kind(data, kind.Config(**(SMALL.get(name, {}) | options)))


def has_option(name: str, option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(SUITE[name].Config)}


def test_the_suite_is_found() -> None:
    assert set(SUITE) == {*NETWORKS, *DRIVEN, "HenonHeiles", "Hierarchical", "MassSpring", "Pendulum"}


# Shapes


def check_trace(name: str, model: Any, data: Trajectories) -> None:
    """Prior draws run, with the shapes and the type of the data, alone and as vectorised particles."""
    trace = prototype(model, data)
    near = prototype(poutine.condition(model, model.initial_values(data)), data)
    near.compute_log_prob()
    assert torch.isfinite(near.log_prob_sum())
    count, times, channels = data.num_trajectories, data.num_times, data.num_channels
    assert trace.nodes["states"]["value"].shape == (count, times, 2 * data.dim)
    assert trace.nodes["obs"]["fn"].batch_shape == (count,)
    assert trace.nodes["obs"]["fn"].event_shape == (times, channels)
    for site in latent_sites(trace):
        assert trace.nodes[site]["value"].dtype == data.values.dtype, site
    with pyro.plate("particles", 4, dim=-2):
        particles = poutine.trace(model).get_trace(data)
    particles.compute_log_prob()
    assert particles.nodes["states"]["value"].shape == (4, count, times, 2 * data.dim)
    assert particles.nodes["obs"]["log_prob"].shape == (4, count)
    for site in latent_sites(particles):
        extra = particles.nodes[site]["value"].shape[0]
        assert extra == 4, site


VARIANTS: dict[str, Any] = {
    "plain": lambda d: d,
    "missing values": with_gaps,
    "ragged": ragged,
    "one trajectory": lambda d: d.select([0]),
    "float32": lambda d: d.to(dtype=torch.float32),
}


@every_model
@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes(name: str, variant: str) -> None:
    data = VARIANTS[variant](data_for(name))
    check_trace(name, build(name, data), data)


@every_model
@pytest.mark.parametrize("observe", [("position",), ("velocity",)])
def test_shapes_of_partial_measurements(name: str, observe: tuple[Any, ...]) -> None:
    data = data_for(name, observe=observe)
    check_trace(name, build(name, data), data)


@every_model
@pytest.mark.parametrize("noise", ["gaussian", "student_t", "ar1"])
def test_shapes_of_noises(name: str, noise: str) -> None:
    if not has_option(name, "noise"):
        pytest.skip("has its own noise")
    data = ragged(with_gaps(data_for(name)))
    check_trace(name, build(name, data, noise=noise), data)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Pendulum", {"damping": None, "drag": (0.1, 1.0), "angle_offset": 0.1}),
    ("Pendulum", {"max_step_size": 0.03, "integrator": "so2"}),
    ("MassSpring", {"mass": (1.0, 0.1), "damping": (0.1, 1.0)}),
    ("Duffing", {"offset": 0.1, "gain": (1.0, 0.5), "stiffness": (1.0, 1.0), "cubic": (0.0, 1.0)}),
    ("Pendulum", {"discrepancy": 0.5}),
    ("MassSpring", {"discrepancy": 0.5, "discrepancy_time": (0.3, 0.5)}),
    ("Duffing", {"discrepancy": 0.5, "noise": "ar1"}),
    ("DrivenMass", {"discrepancy": 0.5, "discrepancy_time": (0.3, 0.5)}),
    ("DrivenMass", {"mass": (1.0, 0.5), "damping": (0.1, 1.0), "friction": (0.1, 1.0)}),
    ("DrivenMass", {"gain_error": 0.01}),
    ("DrivenMass", {"smoothing": 0.1, "offset": 0.1, "integrator": "stormer_verlet"}),
    ("Hierarchical", {"system": "spring", "damping": None}),
    ("NoisyStates", {"integrator": "so2", "hidden_sizes": (4, 3), "activation": "tanh"}),
    ("NoisyStates", {"weight_prior_scale": 1.0, "damping": (0.1, 1.0), "mass": (1.0, 0.1)}),
    ("NoisyStates", {"integrator": "stormer_verlet", "initial_scale": (1.0, 2.0), "noise_scale": (0.1, 1.0)}),
    ("NoisyStates", {"potential": "random_features", "num_features": 5}),
    (
        "NoisyStates",
        {"potential": "random_features", "num_features": 5, "integrator": "so2", "damping": (0.1, 1.0)},
    ),
    ("FreeDynamics", {"dynamics": "feed_forward", "weight_prior_scale": 1.0}),
    ("FreeDynamics", {"dynamics": "feed_forward", "max_step_size": 0.05, "angles": ()}),
    ("FreeDynamics", {"dynamics": "ode", "hidden_sizes": (4, 3), "weight_prior_scale": 1.0}),
    ("FreeDynamics", {"max_step_size": 0.03, "activation": "softplus", "angles": ()}),
    ("HamiltonianStates", {"hidden_sizes": (4, 3), "weight_prior_scale": 1.0, "max_step_size": 0.06}),
    ("HamiltonianStates", {"angles": (), "initial_scale": (1.0, 2.0)}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
# The particles of a Bayesian network have weights of their own, which have no compiled form.
@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
def test_shapes_of_options(name: str, options: dict[str, Any]) -> None:
    data = data_for(name)
    if (
        options.get("integrator") == "so2"
    ):  # a prior draw may be unsolvable: compare shapes only near the data
        options = {**options, "initial_scale": (0.1, 0.1)}
        options |= {"gravity_over_length": (3.0, 0.1)} if name == "Pendulum" else {}
    check_trace(name, build(name, data, **options), data)


def test_two_coordinates() -> None:
    data = simulated("coupled_oscillators")
    for name in ("MassSpring", *NETWORKS):
        pyro.clear_param_store()  # two of the networks have the same site names
        check_trace(name, build(name, data), data)
    data = simulated("coupled_oscillators", num_times=10)
    check_trace("Hierarchical", build("Hierarchical", data, system="spring"), data)


def test_a_duffing_oscillator_without_drive_is_free() -> None:
    data = simulated("duffing")
    model = build("Duffing", data)
    assert not any(site.startswith("drive") for site in latent_sites(prototype(model, data)))
    check_trace("Duffing", model, data)


def test_a_drive_of_two_channels_has_two_gains() -> None:
    data = driven(simulated("duffing"))
    assert data.drive is not None
    data = dataclasses.replace(data, drive=data.drive.repeat(1, 1, 2), drive_names=())
    model = build("Duffing", data)
    assert prototype(model, data).nodes["drive.gain"]["value"].shape == (1, 2)
    values = model.initial_values(data)
    assert values["drive.gain"].shape == (1, 2)
    check_trace("Duffing", model, data)


def test_a_driven_mass_needs_a_gain_for_every_drive() -> None:
    data = data_for("DrivenMass")
    assert data.drive is not None
    with pytest.raises(ValueError, match=r"one known gain for each drive.*got 1 gain\(s\) and 0 drive\(s\)"):
        build("DrivenMass", simulated("duffing"))
    two = dataclasses.replace(data, drive=data.drive.repeat(1, 1, 2), drive_names=())
    with pytest.raises(ValueError, match=r"got 1 gain\(s\) and 2 drive\(s\)"):
        build("DrivenMass", two)
    with pytest.raises(ValueError, match="a driven mass has one coordinate; got 3"):
        build("DrivenMass", driven(simulated("coupled_oscillators")))
    check_trace("DrivenMass", build("DrivenMass", two, gain=(1.0, -0.5)), two)
    check_trace("DrivenMass", build("DrivenMass", two, gain=(1.0, -0.5), gain_error=0.02), two)
    with pytest.raises(ValueError, match=r"gain_error must not be negative; got -0\.1"):
        build("DrivenMass", data, gain_error=-0.1)


def test_a_force_that_does_not_show_in_the_motion_gives_no_estimate_of_the_mass() -> None:
    # By least squares the mass would be negative: a start at a tiny inverse mass is 1e9, far from all priors.
    data = data_for("DrivenMass")
    (acceleration,) = torch.gradient(data.values[..., 1:], dim=1)
    data = dataclasses.replace(data, drive=-acceleration)
    model = build("DrivenMass", data)
    assert set(model.initial_values(data)) == {"initial_position", "initial_velocity", "noise_scale"}
    assert 1e-3 < float(prototype(model, data).nodes["mass"]["fn"].base_dist.loc.exp()) < 1e3
    assert "mass" in build("DrivenMass", data_for("DrivenMass")).initial_values(data_for("DrivenMass"))


def test_the_error_of_a_gain_is_a_part_of_that_of_the_mass() -> None:
    # The motion depends on the ratios of forces to the mass alone: the density along the line on which all of
    # them grow alike changes by the priors only.
    data = data_for("DrivenMass")
    sure, unsure = build("DrivenMass", data), build("DrivenMass", data, gain_error=0.02)
    values = unsure.initial_values(data)
    assert float(values["drive.gain"]) == 1.0
    obs = []
    for factor in (1.0, 1.03):
        names = ("mass", "damping.coefficient", "friction.coefficient", "drive.offset", "drive.gain")
        scaled = values | {name: factor * values[name] for name in names}
        trace = poutine.trace(poutine.condition(unsure, scaled)).get_trace(data)
        trace.compute_log_prob()
        obs.append(float(trace.nodes["obs"]["log_prob_sum"]))
    assert obs[1] == pytest.approx(obs[0], rel=1e-9)
    assert "drive.gain" not in latent_sites(prototype(sure, data))


# Inference


@every_model
def test_prior_predictive_is_finite(name: str) -> None:
    data = data_for(name)
    model = build(name, data)
    draws = prior_draws(model, data, 50)
    predicted = predict(model, draws, data)
    # A spring that softens lets go beyond its barrier, and its force then grows with the cube (the square, of
    # Hénon-Heiles): half of the Duffing model's prior does. The others grow at most exponentially.
    share = torch.isfinite(predicted["states"]).flatten(1).all(1).double().mean()
    assert float(share) >= (0.2 if name in ("Duffing", "HenonHeiles") else 1.0)
    if name != "FreeDynamics":  # which has none
        assert predicted["energy"].shape == (50, 3, 12)


@every_model
def test_starting_values_are_inside_of_the_support(name: str) -> None:
    for data in (data_for(name), with_gaps(data_for(name)), ragged(data_for(name))):
        model = build(name, data)
        trace = prototype(model, data)
        for site, value in model.initial_values(data).items():
            assert site in latent_sites(trace), site
            assert value.shape == trace.nodes[site]["value"].shape, site
            assert bool(trace.nodes[site]["fn"].support.check(value).all()), site
            assert value.dtype == data.values.dtype, site


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    data = data_for(name)
    model = build(name, data)
    pyro.clear_param_store()
    values = model.initial_values(data)
    conditioned = poutine.condition(model, {k: v.requires_grad_() for k, v in values.items()})
    poutine.trace(conditioned).get_trace(data).log_prob_sum().backward()
    for site, value in values.items():
        assert value.grad is not None, site
        assert bool(torch.isfinite(value.grad).all()), site
        assert bool((value.grad != 0).any()), site
    for key, parameter in model.named_parameters():
        if "bias" in key and key.endswith("_1"):
            continue  # the potential's constant makes no force
        assert parameter.grad is not None, key
        assert bool((parameter.grad != 0).any()), key


@every_model
def test_svi_forecast_and_arviz(name: str, tmp_path: Any) -> None:
    whole = ragged(with_gaps(data_for(name, num_times=16)))
    train, held_out = whole.split_by_time(0.7)
    model = build(name, train)
    options = SVIOptions(guide="mean_field", num_steps=2, check_every=1, start="values", num_particles=2)
    result = fit_svi(model, train, options)
    posterior = from_svi(result, num_draws=20)
    file = write_result(posterior, tmp_path / "result.nc")
    check_arviz(read_result(file), train)
    future = extend(train, horizon=0.0, held_out=held_out)
    ahead = forecast(model, result.sample(5), train, future, parameters=result.parameters)
    predictions = get_group(ahead, "predictions")
    assert predictions["obs"].shape == (1, 5, 3, future.num_times, future.num_channels)
    assert predictions["states"].dims == ("chain", "draw", "trajectory", "time", "state")


def check_arviz(posterior: Any, data: Trajectories) -> None:
    table = az.summary(posterior, kind="stats")
    assert "initial_position[0, q0]" in table.index
    pointwise = get_group(posterior, "log_likelihood")["obs"]
    if not bool(data.mask.all()):
        assert pointwise.dims == ("chain", "draw", "observation")
        assert pointwise.shape[-1] == data.num_observed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # draws of an unfinished fit are no posterior, and it says so
        result = az.loo(posterior)
    assert result.n_data_points == data.num_observed


@every_model
def test_nuts_and_arviz(name: str) -> None:
    data = data_for(name, num_times=8, num_trajectories=2)
    model = build(name, data)
    options = MCMCOptions(
        num_chains=1, num_warmup=2, num_draws=4, start="values", spread=0.0, max_tree_depth=2
    )
    result = fit_mcmc(model, data, options)
    assert all(bool(torch.isfinite(value).all()) for value in result.draws.values())
    posterior = from_mcmc(result)
    stats = get_group(posterior, "sample_stats")
    assert {"lp", "energy", "diverging", "tree_depth", "n_steps", "step_size"} <= set(stats)
    check_arviz(posterior, data)


@every_model
@pytest.mark.slow
def test_default_fit_explains_the_data(name: str) -> None:
    data = data_for(name, num_times=40, noise_scale=0.02)
    model = build(name, data)
    result = fit_svi(model, data, SVIOptions(num_steps=500))
    draws = result.sample(100)
    states = predict(model, draws, data, sites=["states"], parameters=result.parameters)["states"].mean(0)
    error = (states - data.values).square().mean((0, 1)).sqrt()
    assert bool((error < 0.2 * data.values.square().mean((0, 1)).sqrt()).all())


# Options and texts


@every_model
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("noise", "normal", "noise must be one of"),
        ("noise_scale", (-1.0, 1.0), "median of a log-normal prior must be positive; got -1.0"),
        ("noise_scale", (1.0, 0.0), "log_scale must be positive"),
        ("initial_scale", (0.0, 1.0), "initial_scale must be positive"),
        ("damping", (-0.1, 1.0), "median of a log-normal prior must be positive"),
        ("integrator", "leapfrogs", "integrator must be one of"),
        ("noise_spread", 0.0, "scale of a half-normal prior must be positive"),
        ("system", "top", "system must be one of"),
        ("dynamics", "newtonian", "dynamics must be one of"),
        ("potential", "spline", "potential must be one of network, random_features"),
        ("max_step_size", -0.1, "max_step_size must be"),
        ("hidden_sizes", (0,), "hidden"),
        ("activation", "sine", "activation must be one of"),
    ],
)
def test_bad_options_are_named(name: str, option: str, value: Any, message: str) -> None:
    if not has_option(name, option):
        pytest.skip(f"no option {option}")
    data = data_for(name)
    with pytest.raises(ValueError, match=re.escape(message)):
        build(name, data, **{option: value})(data)


@every_model
def test_configs_are_frozen_and_described(name: str) -> None:
    config = SUITE[name].Config()
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
    text = SUITE[name].Config.__doc__ or ""
    for field_ in dataclasses.fields(config):
        assert re.search(rf"^ +{field_.name}: ", text, re.MULTILINE), field_.name


RULE = re.compile(r"^=+( +=+)+$")


def site_table(text: str) -> dict[str, tuple[str, bool]]:
    """Return the sites of a module docstring with shape, and whether they are observed or deterministic.

    A name that goes on in the next row has an empty rest there; an underscore or dot at its end joins.
    """
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if RULE.match(line)]
    assert len(rules) == 3, "one table with a head"
    edges = [match.span() for match in re.finditer("=+", lines[rules[0]])]
    sites: dict[str, tuple[str, bool]] = {}
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [
            line[a : (edges[k + 1][0] if k + 1 < len(edges) else None)].strip()
            for k, (a, _) in enumerate(edges)
        ]
        if not any(cells[1:]):
            last, value = sites.popitem()
            sites[last + cells[0]] = value
        else:
            sites[cells[0]] = (cells[2], cells[4] in ("observed", "deterministic"))
    return {re.sub(r" ?\(.*\)", "", name): value for name, value in sites.items()}


def everything(name: str, data: Trajectories) -> list[Any]:
    """Models whose options together show every site."""
    found = [build(name, data)]
    if has_option(name, "noise"):
        found += [build(name, data, noise=noise) for noise in ("ar1", "student_t")]
    extra: dict[str, dict[str, Any]] = {
        "Pendulum": {"drag": (0.1, 1.0), "angle_offset": 0.1, "discrepancy": 0.1},
        "MassSpring": {"mass": (1.0, 0.1), "damping": (0.1, 1.0), "discrepancy": 0.1},
        "DrivenMass": {"discrepancy": 0.1, "gain_error": 0.01},
        "Duffing": {"offset": 0.1, "discrepancy": 0.1},
        "HenonHeiles": {},
        "Hierarchical": {"system": "spring"},
        "NoisyStates": {"mass": (1.0, 0.1), "damping": (0.1, 1.0), "weight_prior_scale": 1.0},
        "FreeDynamics": {"weight_prior_scale": 1.0},
        "HamiltonianStates": {"weight_prior_scale": 1.0},
    }
    if has_option(name, "potential"):
        found.append(build(name, data, potential="random_features", num_features=4))
    if has_option(name, "velocity_gain"):
        found.append(build(name, data, velocity_gain=0.1))
    return [*found, build(name, data, **extra[name])]


@every_model
def test_the_docstring_begins_with_equations_and_lists_the_sites(name: str) -> None:
    text = sys.modules[SUITE[name].__module__].__doc__ or ""
    assert text.index("~") < text.index("====")
    table = site_table(text)
    data = data_for(name)
    traced: dict[str, bool] = {}
    for model in everything(name, data):
        trace = prototype(model, data)
        latent = latent_sites(trace)
        for site, node in trace.nodes.items():
            if node["type"] == "sample" and site not in ("states", "energy", "trajectory"):
                traced[re.sub(r"(weight|bias)_\d", r"\1_l", site)] = site in latent
    missing = set(traced) - set(table)
    # What every model shares through an option is described with the option.
    assert missing <= {"correlation_time", "degrees_of_freedom"}, missing
    assert set(table) - set(traced) == set(), "the table lists sites that no option makes"
    for site, latent in traced.items():
        if site in table:
            assert table[site][1] != latent, site


@pytest.mark.parametrize("dynamics", ["feed_forward", "residual", "ode"])
def test_shapes_and_gradients_of_free_dynamics(dynamics: str) -> None:
    data = ragged(with_gaps(data_for("FreeDynamics")))
    model = build("FreeDynamics", data, dynamics=dynamics)
    check_trace("FreeDynamics", model, data)
    model.pretrain(data)
    pyro.clear_param_store()
    poutine.trace(poutine.condition(model, model.initial_values(data))).get_trace(
        data
    ).log_prob_sum().backward()
    for key, parameter in model.named_parameters():
        assert bool((parameter.grad != 0).any()), key


def test_a_feed_forward_model_needs_equal_steps() -> None:
    data = data_for("FreeDynamics")
    times = data.times.clone()
    times[:, 6:] += 0.05
    with pytest.raises(ValueError, match=r"takes steps of 0\.1 only; got one of 0\.15"):
        build("FreeDynamics", data, dynamics="feed_forward")(dataclasses.replace(data, times=times))


def test_elbo_of_vectorised_particles_is_that_of_a_loop() -> None:
    data = simulated("mass_spring")
    model = build("MassSpring", data)
    values = {k: v.detach() for k, v in model.initial_values(data).items()}

    def guide(data: Trajectories) -> None:
        for site in ("potential.stiffness", "noise_scale"):
            event = values[site].ndim
            pyro.sample(site, pyro.distributions.Delta(values[site]).to_event(event))
        with pyro.plate("trajectory", data.num_trajectories, dim=-1):
            for site in ("initial_position", "initial_velocity"):
                pyro.sample(site, pyro.distributions.Delta(values[site]).to_event(1))

    loop = Trace_ELBO(num_particles=2).loss(model, guide, data)
    batch = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss(
        model, guide, data
    )
    assert loop == pytest.approx(batch, rel=1e-12)


# Random features


def random_features(data: Trajectories, **options: Any) -> Any:
    return build("NoisyStates", data, **({"potential": "random_features", "num_features": 6} | options))


@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
@pytest.mark.parametrize("integrator", ["velocity_verlet", "so2"])
def test_random_features_start_near_the_data_and_are_not_trained(integrator: str) -> None:
    data = data_for("NoisyStates", num_times=40, step_size=0.05, noise_scale=0.01)
    model = random_features(data, integrator=integrator, num_features=32)
    values = model.initial_values(data)
    assert values["potential.network.output"].shape == (32,)
    model.pretrain(data)
    assert [name for name, _ in model.named_parameters()] == []
    states = predict(model, {k: v.unsqueeze(0) for k, v in values.items()}, data)["states"][0]
    # Two seconds from rough estimates: nearer than no motion at all.
    error, size = (states - data.values).square().mean((0, 1)), data.values.square().mean((0, 1))
    assert bool((error < size).all())


@pytest.mark.parametrize("integrator", ["velocity_verlet", "so2"])
def test_nuts_of_random_features_is_compiled(integrator: str) -> None:
    data = data_for("NoisyStates", num_times=20, step_size=0.05)
    model = random_features(data, integrator=integrator)
    options = MCMCOptions(num_chains=1, num_warmup=20, num_draws=10, start="values", max_tree_depth=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerformanceWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)  # thirty draws do not converge
        result = fit_mcmc(model, data, options)
    assert result.engine == "nutpie"
    assert result.draws["potential.network.output"].shape == (1, 10, 6)
    assert all(bool(torch.isfinite(value).all()) for value in result.draws.values())


@pytest.mark.filterwarnings("ignore:.*neural potential with weights of several particles")
@pytest.mark.parametrize("guide", ["full_rank", "mean_field", "low_rank"])
@pytest.mark.parametrize("start", ["values", "mode"])
def test_svi_of_random_features(guide: Any, start: Any) -> None:
    data = data_for("NoisyStates", num_times=20, step_size=0.05)
    model = random_features(data)
    result = fit_svi(model, data, SVIOptions(guide=guide, num_steps=5, start=start, num_particles=2))
    draws = result.sample(7)
    assert draws["potential.network.output"].shape == (7, 6)
    assert all(bool(torch.isfinite(value).all()) for value in draws.values())


def test_bad_options_of_random_features() -> None:
    data = data_for("NoisyStates")
    for options, message in (
        ({"num_features": 0}, "num_units must be at least 1"),
        ({"length_scale": 0.0}, "length_scale must be positive"),
        ({"weight_prior_scale": 1.0}, "weight_prior_scale must be None with random features"),
    ):
        with pytest.raises(ValueError, match=message):
            random_features(data, **options)


# Equations


@every_model
def test_equations_hold_the_symbols_of_all_sites(name: str) -> None:
    data = data_for(name)
    told = set()
    for model in everything(name, data):
        equations = model.equations()
        whole = "\n".join(equations.lines)
        told.add(whole)
        for site in latent_sites(prototype(model, data)):
            symbol = equations.symbol(site)
            assert symbol, f"{site} has no symbol"
            assert re.search(rf"(?<![A-Za-zα-ω]){re.escape(symbol)}(?![A-Za-zα-ω_])", whole), (
                f"{symbol} ({site}) is not in {whole}"
            )
    assert len(told) > 1 or name in ("HenonHeiles", "Hierarchical")  # options change what is assumed


# Devices

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_gpu
@every_model
def test_densities_on_a_gpu_are_those_of_the_cpu(name: str) -> None:
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    u: torch.Tensor | None = None
    for device in ("cpu", "cuda"):
        data = data_for(name).to(device)
        pyro.clear_param_store()  # which has the networks of the device before
        model = build(name, data)
        density = LogDensity(model, data, initial_values=model.initial_values(data))
        assert density.initial.device.type == device
        u = density.initial if u is None else u  # prior medians are random
        value, gradient = density.value_and_gradient(u.to(device))
        found.append((value.cpu(), gradient.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


@on_gpu
@every_model
def test_svi_and_forecasts_on_a_gpu(name: str) -> None:
    data, held_out = data_for(name).to("cuda").split_by_time(0.8)
    model = build(name, data)
    result = fit_svi(model, data, SVIOptions(guide=model.default_guide, num_steps=4, check_every=2))
    draws = result.sample(6)
    assert {value.device.type for value in draws.values()} == {"cuda"}
    future = extend(data, horizon=0.0, held_out=held_out)
    ahead = forecast(model, draws, data, future, parameters=result.parameters)
    assert get_group(ahead, "predictions")["obs"].notnull().any()
    assert get_group(from_svi(result, num_draws=6), "posterior").sizes["draw"] == 6


@on_gpu
@every_model
def test_nuts_on_a_gpu(name: str) -> None:
    data = data_for(name).to("cuda")
    options = MCMCOptions(num_chains=1, num_warmup=4, num_draws=4, num_workers=1, max_tree_depth=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = fit_mcmc(build(name, data), data, options)
    assert result.engine == "pyro"
    assert {value.device.type for value in result.draws.values()} == {"cuda"}


@on_gpu
@pytest.mark.filterwarnings("ignore:sites drawn anew")
def test_what_is_made_of_draws_on_a_gpu() -> None:
    data = data_for("Pendulum").to("cuda")
    model = build("Pendulum", data)
    result = fit_svi(model, data, SVIOptions(guide="amortised", num_steps=4, check_every=2))
    draws = result.sample(60)
    refined = refine(model, draws, data, num_draws=20, num_proposals=100, num_rounds=2)
    assert refined.draws["noise_scale"].device.type == "cuda"
    growth = uncertainty_growth(model, draws, data, extend(data, horizon=0.5), num_bootstrap=5)
    assert bool(growth["obs_variance"].notnull().all())
    shared = {site: value for site, value in draws.items() if not site.startswith("initial_")}
    states = assimilate(model, shared, data, num_draws=10, num_proposals=200).states
    assert states.device.type == "cuda"
    found = leave_one_out(model, data, corrected_draws(result, 60))
    assert math.isfinite(found.total)
