"""Draws of latent sites as arrays, and models run on many draws at once.

A draw array has shape `(num_draws, *plates, *event)`: the plates a site stands in
and its own event, without the singleton dimensions that Pyro's broadcasting needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vinppl._checks import require
from vinppl.rollout import without_energy

__all__ = [
    "CONTINUATION",
    "Draws",
    "ObservedAs",
    "batch_size",
    "batches",
    "collect",
    "continuations",
    "latent_sites",
    "log_joint",
    "plate_nesting",
    "pointwise_log_likelihood",
    "predict",
    "seeded",
    "split_log_prob",
    "trajectory_log_prob",
    "without_singletons",
]

Draws = dict[str, Tensor]
"""Sites by name, each `(num_draws, *plates, *event)`."""


CONTINUATION = "is_continuation"
"""Mark, in the `infer` of a site, of one that exists in forecasts only: it continues a random process beyond
the times of the fit, and is drawn from its prior given what was inferred there."""


class seeded:
    """Run a block on its own random stream and leave the caller's as it was."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *exception: Any) -> None:
        self._fork.__exit__(*exception)


def prototype(model: Any, *args: Any) -> Any:
    """Return a trace of one run of `model`, on its own random stream and parameter store."""
    with seeded(0), torch.no_grad(), pyro.get_param_store().scope():
        return poutine.block(poutine.trace(model).get_trace)(*args)


@contextlib.contextmanager
def learned(model: Any, data: Any, parameters: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Run a block in which the learned parameters of `model` have the given values.

    The block has a parameter store of its own, so that models of the same site names
    do not overwrite one another. Parameters that live in a module keep the values.

    Args:
        model: Pyro model of one argument, the data.
        data: any data that it runs on.
        parameters: unconstrained values by name; those of other programs (a guide) are ignored.
    """
    store = pyro.get_param_store()
    with store.scope():
        with seeded(0), torch.no_grad():
            poutine.block(poutine.trace(model).get_trace)(data)
            for name, value in store.named_parameters():
                if parameters is not None and name in parameters:
                    value.copy_(parameters[name])
        yield


def plate_nesting(trace: Any) -> int:
    """Return the number of plates that the traced model nests."""
    dims = [
        frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims) if dims else 0


def latent_sites(trace: Any) -> list[str]:
    """Return the names of the sites that inference is about, in the order of the model.

    Those that continue a process in forecasts (see `CONTINUATION`) are none of them.
    """
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
        and not site["infer"].get(CONTINUATION, False)
    ]


def continuations(trace: Any) -> list[str]:
    """Return the names of the sites that continue a process in forecasts; see `CONTINUATION`."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get(CONTINUATION, False)
    ]


def require_latent(trace: Any, draws: Mapping[str, Tensor]) -> list[str]:
    """Return `latent_sites`, all of which `draws` must hold.

    Raises:
        ValueError: naming those that it lacks.
    """
    names = latent_sites(trace)
    missing = [name for name in names if name not in draws]
    require(not missing, "draws must hold every latent site of the model", f"none of {', '.join(missing)}")
    return names


def trace_batch(model: Any, args: tuple[Any, ...], num_draws: int, nesting: int) -> Any:
    """Return a trace of one run of `model` inside of a plate of draws, unseen by outer handlers."""

    def run() -> Any:
        with pyro.plate("_draws", num_draws, dim=-1 - nesting):
            return poutine.trace(model).get_trace(*args)

    return poutine.block(run)()


def collect(trace: Any, names: Sequence[str], num_draws: int, nesting: int) -> Draws:
    """Return draw arrays from a trace that ran inside of a plate of draws at `-1 - nesting`."""
    return {name: _without_singletons(trace.nodes[name], num_draws, nesting) for name in names}


def without_singletons(trace: Any, values: Mapping[str, Tensor]) -> Draws:
    """Return draw arrays from values `(num_draws, *site)` of the sites of a trace."""
    nesting, draws = plate_nesting(trace), {}
    for name, value in values.items():
        site = trace.nodes[name]
        num_plates = value.ndim - 1 - site["fn"].event_dim
        full = value.reshape(value.shape[:1] + (1,) * (nesting - num_plates) + value.shape[1:])
        draws[name] = _without_singletons({**site, "value": full}, value.shape[0], nesting)
    return draws


def _own_plates(site: Mapping[str, Any]) -> set[int]:
    return {f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != "_draws"}


def _without_singletons(site: Mapping[str, Any], num_draws: int, nesting: int) -> Tensor:
    value, event = site["value"], site["fn"].event_dim
    missing = nesting + 1 + event - value.ndim
    value = value.reshape((1,) * missing + tuple(value.shape))
    value = value.expand(num_draws, *value.shape[1:])
    own = _own_plates(site)
    outer = [value.ndim - event + dim for dim in range(-nesting, 0) if dim not in own]
    keep = [size for axis, size in enumerate(value.shape) if axis not in outer]
    return value.reshape(keep)


def _with_singletons(value: Tensor, site: Mapping[str, Any], nesting: int) -> Tensor:
    own, event = _own_plates(site), site["fn"].event_dim
    plates = list(value.shape[1 : value.ndim - event])
    shape = [value.shape[0]]
    for dim in range(-nesting, 0):
        shape.append(plates.pop(0) if dim in own else 1)
    return value.reshape(shape + list(value.shape[value.ndim - event :]))


def _run(model: Any, draws: Mapping[str, Tensor], args: tuple[Any, ...], trace: Any) -> tuple[Any, int, int]:
    """Run `model` once on a batch of draws; return its trace, the number of draws and the nesting."""
    nesting = plate_nesting(trace)
    num_draws = next(iter(draws.values())).shape[0]
    given = [*require_latent(trace, draws), *(name for name in continuations(trace) if name in draws)]
    values = {name: _with_singletons(draws[name], trace.nodes[name], nesting) for name in given}
    conditioned = poutine.condition(model, data=values)
    return trace_batch(conditioned, args, num_draws, nesting), num_draws, nesting


MOST_VALUES = 20_000_000
"""Measured values at most, over all draws, that run as one batch."""


def batch_size(data: Any, limit: int | None = None) -> int:
    """Return how many draws may run as one batch over the measurements of `data`, `limit` at most."""
    fitting = max(1, MOST_VALUES // max(1, data.values.numel()))
    return fitting if limit is None else min(limit, fitting)


def batches(draws: Mapping[str, Tensor], size: int) -> Iterator[Draws]:
    """Yield the draws in batches of `size` at most."""
    for start in range(0, next(iter(draws.values())).shape[0], size):
        yield {name: value[start : start + size] for name, value in draws.items()}


ObservedAs = Literal["drawn", "means", "both"]
"""What `predict` returns of observed sites."""


def predict(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    *,
    sites: Sequence[str] | None = None,
    observed: ObservedAs = "drawn",
    chunk_size: int = 250,
    seed: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> Draws:
    """Run `model` forward from posterior (or prior) draws on the times of `data`.

    Everything below the latent sites is computed afresh: deterministic sites among the
    draws are ignored, observed sites are sampled or take their mean given each draw.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *plates, *event)`; those that continue a process may be
            among them, and are drawn otherwise.
        data: where to predict; its values are not looked at.
        sites: sites to return; by default all observed and deterministic ones.
        observed: how observed sites are returned: `drawn`, as `means` given each draw, or `both`, means then
            called `<site>_mean`.
        chunk_size: draws that run as one batch.
        seed: of the predictive noise.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        The sites, each `(num_draws, *plates, *event)`.
    """
    free = poutine.uncondition(model)
    if observed == "means":
        free = _MeanOfObserved()(free)
    trace = prototype(model, data)
    chunks: list[Draws] = []
    skip = contextlib.nullcontext() if sites is None or "energy" in sites else without_energy()
    with learned(model, data, parameters), seeded(seed), torch.no_grad(), skip:
        for part in batches(draws, chunk_size):
            ran, size, nesting = _run(free, part, (data,), trace)
            wanted = [n for n in (_outputs(trace) if sites is None else sites) if n in ran.nodes]
            found = collect(ran, wanted, size, nesting)
            for name in _observed(trace) if observed == "both" else ():
                mean = {**ran.nodes[name], "value": ran.nodes[name]["fn"].mean}
                found[f"{name}_mean"] = _without_singletons(mean, size, nesting)
            chunks.append(found)
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


class _MeanOfObserved(Messenger):
    """Give sites that `poutine.uncondition` freed the mean of their distribution."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed") and not msg["is_observed"]:
            msg["value"], msg["done"] = msg["fn"].mean, True


def _outputs(trace: Any) -> list[str]:
    """Return the observed and deterministic sites of a model."""
    latent = set(latent_sites(trace))
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and name not in latent
        and not site_is_subsample(site)
        and not site["infer"].get(CONTINUATION, False)
    ]


def _observed(trace: Any) -> list[str]:
    """Return the observed sites of a model."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic", False)
    ]


def pointwise_log_likelihood(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    *,
    chunk_size: int = 250,
    parameters: Mapping[str, Tensor] | None = None,
) -> Draws:
    """Return the log density of every observed entry under every draw.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *plates, *event)`.
        data: the measurements.
        chunk_size: draws that run as one batch.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        For each observed site an array `(num_draws, *plates, *event)` where its distribution
        can tell entries apart, otherwise `(num_draws, *plates)`. Entries that were not observed are zero.
    """
    trace = prototype(model, data)
    observed = _observed(trace)

    def entries(ran: Any, size: int, nesting: int) -> Draws:
        return {name: _entries(ran.nodes[name], size, nesting) for name in observed}

    chunks = _of_batches(entries, model, draws, data, trace, chunk_size, parameters)
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def log_joint(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    *,
    chunk_size: int = 250,
    parameters: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the log density of latent sites and measurements together, at every draw.

    Args:
        model: Pyro model of one argument, the data.
        draws: latent sites, each `(num_draws, *plates, *event)`.
        data: the measurements.
        chunk_size: draws that run as one batch.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        Shape `(num_draws,)`; NaN or minus infinity where a draw has no path.
    """
    trace = prototype(model, data)

    def total(ran: Any, size: int, nesting: int) -> Tensor:
        return summed_log_prob(ran, size)

    with pyro.validation_enabled(False):
        return torch.cat(_of_batches(total, model, draws, data, trace, chunk_size, parameters))


T = TypeVar("T")


def _of_batches(
    function: Callable[[Any, int, int], T],
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    trace: Any,
    chunk_size: int,
    parameters: Mapping[str, Tensor] | None,
) -> list[T]:
    """Run the observed model on batches of draws; return a function of every trace, its size and nesting."""
    with learned(model, data, parameters), torch.no_grad(), without_energy():
        return [function(*_run(model, part, (data,), trace)) for part in batches(draws, chunk_size)]


def summed_log_prob(trace: Any, num_draws: int) -> Tensor:
    """Return the log density of every draw of a trace that ran inside of a plate of draws, `(num_draws,)`."""
    trace.compute_log_prob()
    total = torch.zeros(num_draws)
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            value = site["log_prob"]
            own = value.reshape(num_draws, -1).sum(-1) if value.ndim else value
            total = total.to(value) + own
    return total


def trajectory_log_prob(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    *,
    chunk_size: int = 250,
    parameters: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the log density of what belongs to each trajectory: its latent sites and its measurements.

    Args:
        model: Pyro model of one argument, the data, without plates inside of the plate `trajectory`.
        draws: latent sites, each `(num_draws, *plates, *event)`.
        data: the measurements.
        chunk_size: draws that run as one batch.
        parameters: learned parameters of the model, unconstrained, by name.

    Returns:
        Shape `(num_draws, trajectories)`.
    """
    return split_log_prob(model, draws, data, chunk_size=chunk_size, parameters=parameters)[1]


def split_log_prob(
    model: Any,
    draws: Mapping[str, Tensor],
    data: Any,
    *,
    chunk_size: int = 250,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log density of what trajectories share, and of what belongs to each of them.

    Arguments are those of `trajectory_log_prob`.

    Returns:
        The log prior of sites outside of the plate, `(num_draws,)`, and the log density of sites and
        measurements inside of it, `(num_draws, trajectories)`; together all of the model.
    """
    trace = prototype(model, data)
    nesting = plate_nesting(trace)
    require(nesting == 1, "trajectories must be the only plate of the model", f"{nesting} plates")
    like = next(iter(draws.values()))

    def split(ran: Any, size: int, nesting: int) -> tuple[Tensor, Tensor]:
        ran.compute_log_prob()
        sums = [like.new_zeros(size, 1), like.new_zeros(size, data.num_trajectories)]
        for site in ran.nodes.values():
            plain = site["type"] == "sample" and not site["infer"].get("_deterministic")
            if plain and not site_is_subsample(site):
                inside = -1 in _own_plates(site)
                sums[inside] = sums[inside].to(site["log_prob"]) + site["log_prob"]
        return sums[0].squeeze(-1), sums[1]

    chunks = _of_batches(split, model, draws, data, trace, chunk_size, parameters)
    shared, own = zip(*chunks, strict=True)
    return torch.cat(shared), torch.cat(own)


def _entries(site: Mapping[str, Any], num_draws: int, nesting: int) -> Tensor:
    """Return the log density of a site entry by entry."""
    distribution, value = site["fn"], site["value"]
    mask: Any = None
    while True:
        if hasattr(distribution, "pointwise_log_prob"):
            dense, event = distribution.pointwise_log_prob(value), distribution.event_dim
            break
        if isinstance(distribution, pyro.distributions.MaskedDistribution):
            mask, distribution = distribution._mask, distribution.base_dist
        elif isinstance(distribution, torch.distributions.Independent):
            if mask is not None:
                mask = torch.as_tensor(mask)[(...,) + (None,) * distribution.reinterpreted_batch_ndims]
            distribution = distribution.base_dist
        else:
            dense = distribution.log_prob(value)
            event = site["fn"].event_dim - len(distribution.event_shape)
            break
    if mask is not None:
        dense = torch.where(torch.as_tensor(mask), dense, 0.0)
    if site.get("mask") is not None:  # from `poutine.mask`
        dense = torch.where(torch.as_tensor(site["mask"])[(...,) + (None,) * event], dense, 0.0)
    carrier = {
        "value": dense,
        "fn": pyro.distributions.Normal(dense, 1.0, validate_args=False).to_event(event),
        "cond_indep_stack": site["cond_indep_stack"],
    }
    return _without_singletons(carrier, num_draws, nesting)
