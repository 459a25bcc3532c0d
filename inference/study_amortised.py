"""Are forecasts from an encoder as sure as they should be? Amortised guides against NUTS on the same data.

    python inference/study_amortised.py --out runs/amortised                    the whole study
    python inference/study_amortised.py --quick --out runs/amortised_quick      a look, in minutes
    python inference/study_amortised.py --scheduler tcp://host:8786 --out runs/amortised   on a dask cluster

Two kinds of trials:

Pendulum, MassSpring   physics, noise and three initial states come from the prior, and measurements
                       of 2 s from the model; fitted, and forecast for 4 s more
NoisyStates            a network is trained on many trajectories of 2 s and reads new ones, forecast likewise

and four engines:

nuts                   chains (with the trained network held, and on the new trajectories alone)
amortised_mean_field   an encoder for initial states, independent normals over everything else (not of
                       networks, where only the noise is left)
amortised              one normal over everything else, which the encoder's means follow
refined                draws of the latter put right by importance sampling (`vinppl.refinement`; of new
                       trajectories `vinppl.assimilation`, from where the encoder begins)

gap_nats is the log evidence less the evidence lower bound, per trajectory (of new ones both given the shared
sites); sd_ratio the geometric mean over unconstrained latent numbers of posterior standard deviations, as a
ratio to those of NUTS; seconds are of CPU time, a fit and its draws. Coverages are means over seeds; CRPS,
widths, gaps, ratios and seconds are medians: the prior holds motions that run away.

Writes OUT/amortisation.csv and a file for every finished trial, from which a run that was stopped goes on.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import biject_to

from vinppl import scores
from vinppl.assimilation import assimilate
from vinppl.cli import run_script
from vinppl.data import Trajectories
from vinppl.draws import latent_sites, learned, predict, prototype, seeded, split_log_prob
from vinppl.encoders import INITIAL_SITES
from vinppl.fit import MCMCOptions, SVIOptions, SVIResult, fit_mcmc, fit_svi
from vinppl.models import MassSpring, NoisyStates, NoisyStatesConfig, Pendulum
from vinppl.posterior import prior_draws
from vinppl.refinement import refine
from vinppl.simulate import simulate
from vinppl.systems import system
from vinppl.trials import StudyOptions, Trial, run_study, table, write_table

STEP = 0.1
FITTED = 20  # samples of a trajectory
FORECAST = 40
PARTS = 4  # of the horizon
KNOWN = {"pendulum": Pendulum, "mass_spring": MassSpring}
GUIDES = ("amortised_mean_field", "amortised")
LEVELS = (0.5, 0.8, 0.9, 0.95)
COVERAGES = [f"coverage_{100 * level:g}" for level in LEVELS]


@dataclass(frozen=True)
class Config(StudyOptions):
    """Options of the study.

    Attributes:
        num_seeds: data sets of each known-form model.
        num_neural: trained networks for each system.
        num_trained: trajectories that a network is trained on.
        num_new: new ones that it reads.
        num_draws: predictive draws.
        num_steps: of SVI for known-form models, which start at a mode with the curvature there.
        num_neural_steps: of SVI for networks.
    """

    out: Path = Path("runs/amortised")
    num_seeds: int = 20
    num_neural: int = 1
    num_trained: int = 25
    num_new: int = 20
    num_draws: int = 400
    num_steps: int = 60
    num_neural_steps: int = 1000


def main(config: Config) -> None:
    """Run what is missing, then write the table."""
    if config.quick:
        small = {"num_seeds": 1, "num_neural": 1, "num_trained": 6, "num_new": 3}
        config = replace(config, **small, num_draws=100, num_steps=10, num_neural_steps=10)
    began = time.monotonic()
    results = run_study(trial, trials(config), config, version=VERSION)
    rows = table(results)
    command = f"python inference/study_amortised.py {' '.join(sys.argv[1:])}"
    path = config.out / "amortisation.csv"
    frame = summary(rows)
    write_table(frame, path, command=command, seeds=range(config.num_seeds))
    print(frame[frame["horizon"] == POOLED].to_string(index=False, float_format="%.3g"))
    print(f"\n{path} ({time.monotonic() - began:.0f} s in this call)")


def trials(config: Config) -> list[Trial]:
    """Return all trials, seed by seed."""
    common: dict[str, Any] = {"num_draws": config.num_draws, "quick": config.quick}
    known = {"num_steps": config.num_steps}
    neural = {
        "num_steps": config.num_neural_steps,
        "num_trained": config.num_trained,
        "num_new": config.num_new,
    }
    found = []
    for kind, count, own in (("known", config.num_seeds, known), ("neural", config.num_neural, neural)):
        for seed, name in product(range(count), KNOWN):
            arguments = {"kind": kind, "system_name": name, "seed": seed, **common, **own}
            found.append(Trial(f"{kind}-{name}-{seed}", arguments))
    return found


POOLED = "all"
"""Horizon of rows for all parts of the horizon together."""


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return means of coverages and medians of all else over seeds, with a row for all horizons together."""
    keys = ["model", "system", "engine"]
    rows = rows.assign(horizon=rows["horizon"].astype(object))
    numbers = [*COVERAGES, "crps", "width", "gap_nats", "sd_ratio", "seconds"]
    pooled = rows.groupby([*keys, "seed"], sort=False)[numbers].mean().reset_index().assign(horizon=POOLED)
    grouped = pd.concat([rows, pooled]).groupby([*keys, "horizon"], sort=False)
    found = grouped[COVERAGES].mean().join(grouped[[n for n in numbers if n not in COVERAGES]].median())
    return (
        found.join(grouped["seed"].nunique().rename("seeds")).reset_index().sort_values(keys, kind="stable")
    )


# One trial


class Posterior(NamedTuple):
    """What one engine found.

    Attributes:
        predicted: measurements after the fitted ones, `(draw, trajectory, time, channel)`.
        seconds: CPU time of the fit and its draws.
        scales: standard deviations of unconstrained latent numbers.
        gap: log evidence less the evidence lower bound, in nats per trajectory.
    """

    predicted: Tensor
    seconds: float
    scales: Tensor
    gap: float = math.nan


def trial(kind: str, **arguments: Any) -> list[dict[str, Any]]:
    """Fit and forecast one data set by every engine; return the rows of the table."""
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what does not converge is scored as it is
        run = known if kind == "known" else neural
        model, data, found = run(**arguments)
    common = {"model": model, "system": arguments["system_name"]}
    return [
        {**common, "engine": engine, "seconds": posterior.seconds, "gap_nats": posterior.gap}
        | {"sd_ratio": float((posterior.scales / found["nuts"].scales).log().mean().exp()), **row}
        for engine, posterior in found.items()
        for row in score(posterior.predicted.numpy(), data)
    ]


def known(
    system_name: str, seed: int, num_draws: int, num_steps: int, quick: bool
) -> tuple[str, Trajectories, dict[str, Posterior]]:
    """Simulate a data set from the prior of a model of known form; infer it by every engine."""
    sizes: dict[str, Any] = {"num_trajectories": 3, "num_times": FITTED + FORECAST, "step_size": STEP}
    grid, _ = simulate(system(system_name), noise_scale=0.1, seed=1, **sizes)
    model = KNOWN[system_name](grid)
    whole = simulated(model, grid, seed)
    data = whole.first(FITTED)
    began = time.process_time()
    draws = sampled(model, data, seed, quick)
    found = {"nuts": forecast(model, draws, data, whole, num_draws, time.process_time() - began)}
    bounds = {}
    for name in GUIDES:
        began = time.process_time()
        result = fit_svi(model, data, SVIOptions(guide=name, num_steps=num_steps, seed=seed, check_every=20))
        draws, seconds = result.sample(1000, seed=seed), time.process_time() - began
        found[name] = forecast(model, draws, data, whole, num_draws, seconds)
        bounds[name] = lower_bound(result, seed)
    began = time.process_time()
    refined = refine(model, draws, data, seed=seed)
    seconds += time.process_time() - began
    found["refined"] = forecast(model, refined.draws, data, whole, num_draws, seconds)
    for name, bound in bounds.items():
        gap = (refined.log_evidence - bound) / data.num_trajectories
        found[name] = found[name]._replace(gap=gap if refined.is_reliable else math.nan)
    return type(model).__name__, whole, found


def neural(
    system_name: str, seed: int, num_draws: int, num_steps: int, num_trained: int, num_new: int, quick: bool
) -> tuple[str, Trajectories, dict[str, Posterior]]:
    """Train a network on many trajectories of a system; infer new ones by every engine but mean-field."""
    truth, sizes = system(system_name), {"num_times": FITTED + FORECAST, "step_size": STEP}
    train, _ = simulate(truth, num_trajectories=num_trained, noise_scale=0.1, seed=seed, **sizes)
    whole, _ = simulate(truth, num_trajectories=num_new, noise_scale=0.1, seed=10_000 + seed, **sizes)
    train, data = train.first(FITTED), whole.first(FITTED)
    model = NoisyStates(train, NoisyStatesConfig(network_seed=seed))
    began = time.process_time()
    result = fit_svi(model, train, SVIOptions(num_steps=num_steps, seed=seed))
    draws, seconds = result.sample(1000, data=data, seed=seed), time.process_time() - began
    parameters = result.parameters
    read = forecast(model, draws, data, whole, num_draws, seconds, parameters)
    found = {"amortised": read._replace(gap=conditional_gap(result, data, seed))}
    began = time.process_time()
    shared = without_initial(draws)
    options = {"guide": result.guide, "parameters": parameters, "seed": seed}
    refined = assimilate(model, shared, data, num_draws=num_draws, reweigh=False, **options)
    seconds += time.process_time() - began
    future = refined.predict(whole, sites=["obs"], seed=seed)["obs"]
    scales = spread(model, shared | initial(refined.states), data)
    found["refined"] = Posterior(future[:, :, FITTED:], seconds, scales)
    with learned(model, data, parameters):
        began = time.process_time()
        chains = sampled(model, data, seed, quick)
        seconds = time.process_time() - began
    found["nuts"] = forecast(model, chains, data, whole, num_draws, seconds, parameters)
    return "NoisyStates", whole, found


def sampled(model: Any, data: Trajectories, seed: int, quick: bool) -> dict[str, Tensor]:
    """Return draws of NUTS."""
    count = 60 if quick else 400
    options = MCMCOptions(num_chains=2, num_warmup=count, num_draws=count, num_workers=1, seed=seed)
    return fit_mcmc(model, data, options).flat()


def forecast(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Trajectories,
    whole: Trajectories,
    num_draws: int,
    seconds: float,
    parameters: Mapping[str, Tensor] | None = None,
) -> Posterior:
    """Return forecasts from draws, and the spread of these."""
    count = len(next(iter(draws.values())))
    kept = torch.arange(min(count, num_draws)) * count // min(count, num_draws)
    some = {name: value[kept] for name, value in draws.items()}
    predicted = predict(model, some, whole, sites=["obs"], seed=1, parameters=parameters)["obs"]
    return Posterior(predicted[:, :, FITTED:], seconds, spread(model, draws, data))


def spread(model: Any, draws: Mapping[str, Tensor], data: Trajectories) -> Tensor:
    """Return the standard deviations of all unconstrained latent numbers."""
    trace, parts = prototype(model, data), []
    for name in latent_sites(trace):
        numbers = biject_to(trace.nodes[name]["fn"].support).inv(draws[name])
        parts.append(numbers.reshape(len(numbers), -1).std(0))
    return torch.cat(parts)


def initial(states: Tensor) -> dict[str, Tensor]:
    """Return the sites of initial states `(*batch, 2 dim)`."""
    return dict(zip(INITIAL_SITES, states.chunk(2, dim=-1), strict=True))


def without_initial(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sites that trajectories share."""
    return {name: value for name, value in draws.items() if name not in INITIAL_SITES}


def simulated(model: Any, grid: Trajectories, seed: int) -> Trajectories:
    """Return measurements from the prior, drawn again while fitted ones exceed 100 typical sizes."""
    for attempt in range(1000):
        draws = prior_draws(model, grid, 1, seed=1000 * seed + attempt)
        values = predict(model, draws, grid, sites=["obs"], seed=1000 * seed + attempt)["obs"][0]
        if bool((values[:, :FITTED].abs() < 100 * grid.channel_rms).all()):
            return replace(grid, values=values.nan_to_num().clamp(-FAR, FAR))
    raise RuntimeError("no draw of the prior is of the size of the data")


FAR = 1e6


def lower_bound(result: SVIResult, seed: int) -> float:
    """Return the evidence lower bound of the fitted data, in nats."""
    bound = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    with learned(result.guide, result.data, result.parameters), seeded(seed), torch.no_grad():
        return -float(bound.loss(result.model, result.guide, result.data))


def conditional_gap(result: SVIResult, data: Trajectories, seed: int) -> float:
    """Return log evidence less its lower bound, both given shared sites, in nats per trajectory.

    The means are over 10 draws of the shared sites, and 300 of initial states given each.
    """
    shared, guide = without_initial(result.sample(10, data=data, seed=seed)), result.guide
    repeated = {name: value.repeat(300, *[1] * (value.ndim - 1)) for name, value in shared.items()}
    means = []
    with learned(guide, data, result.parameters), seeded(seed), torch.no_grad():
        read = guide.encoder(data)
        if guide.is_joint:
            read = read.given(guide.rest.whitened(shared).unsqueeze(1))
        for widened in (1.0, 1.3):  # proposals of the evidence have to reach farther than the guide
            proposal = read._replace(scale=widened * read.scale)
            noise = torch.randn(300, 10, data.num_trajectories, 2 * data.dim)
            states = proposal.loc + (proposal.factor @ noise.unsqueeze(-1)).squeeze(-1)
            draws = repeated | initial(states.flatten(0, 1))
            density = split_log_prob(result.model, draws, data, parameters=result.parameters)[1]
            ratio = density.unflatten(0, (300, 10)) - proposal.log_prob(states)
            means.append(ratio.mean(0) if widened == 1 else ratio.logsumexp(0) - math.log(300))
    return float((means[1] - means[0]).mean())


def score(predicted: np.ndarray, whole: Trajectories) -> list[dict[str, Any]]:
    """Return coverage, CRPS and width over parts of the horizon.

    Args:
        predicted: measurements after the fitted ones, `(draw, trajectory, time, channel)`.
        whole: what was measured, fitted and later.
    """
    x = np.clip(np.nan_to_num(predicted, nan=FAR), -FAR, FAR)
    truth = whole.values[:, FITTED:].numpy()
    angles = np.array([channel.angle for channel in whole.channels])
    rows = []
    for part in np.array_split(np.arange(truth.shape[1]), PARTS):
        covered = scores.coverage(x[:, :, part], truth[:, part], LEVELS, periodic=angles)
        rows.append(
            {
                "horizon": round(STEP * (part[-1] + 1), 9),
                **dict(zip(COVERAGES, covered.values(), strict=True)),
                "crps": scores.crps(x[:, :, part], truth[:, part], periodic=angles),
                "width": scores.interval_width(x[:, :, part], [0.9], periodic=angles)[0.9],
            }
        )
    return rows


VERSION = "1"
"""To be raised when a trial computes something else, so that results of before are not mixed in."""


if __name__ == "__main__":
    run_script(main, Config, __doc__)
