"""Stochastic variational inference: one loop that keeps its best state, stops early and resumes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vinppl._checks import require, require_choice
from vinppl.checkpoint import load_checkpoint, save_checkpoint
from vinppl.draws import (
    Draws,
    collect,
    latent_sites,
    learned,
    plate_nesting,
    prototype,
    seeded,
    trace_batch,
)
from vinppl.errors import ConvergenceWarning, NonFiniteError, SolveError
from vinppl.fit.amortised import AmortisedELBO, initial_amortised
from vinppl.fit.starts import find_start, starting_values
from vinppl.guides import AMORTISED, GUIDES, AmortisedGuide, FullRankGuide, GuideName, make_guide
from vinppl.interrupts import deferred_interrupts
from vinppl.nn import AbstractMLP

if TYPE_CHECKING:
    from vinppl.data import Trajectories

__all__ = ["SVIOptions", "SVIResult", "SVIStep", "fit_svi"]


@dataclass(frozen=True)
class SVIOptions:
    """Options of stochastic variational inference.

    Attributes:
        guide: variational family, see `vinppl.guides`; `auto` takes the model's `default_guide`.
        num_steps: optimisation steps at most; `None` takes the model's `default_num_steps`, or 2000.
        learning_rate: Adam's first step size; `None` takes the model's `default_learning_rate`, or 0.0005
            for an amortised guide and 0.02 for others.
        final_learning_rate: its last, the decay between being exponential; `None` takes a hundredth.
        latent_rate: the factor by which means and scales of latent sites learn faster than the
            weights of networks.
        window: fit windows of this many samples instead of whole trajectories, each with its own
            initial state (the paper's rollout depth); 0 fits whole trajectories. Windows do not overlap;
            every step shifts them at random. Only for guides that are amortised.
        final_window: length that the windows grow to, doubling in equal shares of the steps, so that long
            horizons are met by a model that knows short ones; 0 keeps `window`.
        kl_weight: factor of the divergence of guide from prior; 1 is the evidence lower bound.
        num_particles: draws per step, evaluated as one batch.
        clip_norm: largest gradient norm of the loss per observation.
        check_every: steps between looks at the smoothed loss, which decide the best state.
        patience: looks without improvement before stopping early; 0 never stops.
        start: `mode` climbs to a mode over growing horizons first, gives a full-rank guide the
            curvature there and an amortised one an encoder taught on simulations; `values` takes the
            model's rough estimates; `prior` the prior medians.
        seed: of everything random.
        checkpoint_every: seconds between checkpoints.
    """

    guide: GuideName | Literal["auto"] = "auto"
    num_steps: int | None = None
    learning_rate: float | None = None
    final_learning_rate: float | None = None
    latent_rate: float = 10.0
    window: int = 0
    final_window: int = 0
    kl_weight: float = 1.0
    num_particles: int = 8
    clip_norm: float = 10.0
    check_every: int = 50
    patience: int = 10
    start: Literal["mode", "values", "prior"] = "mode"
    seed: int = 0
    checkpoint_every: float = 20.0

    def __post_init__(self) -> None:
        require(self.num_steps is None or self.num_steps >= 1, "num_steps must be at least 1", self.num_steps)
        require(self.latent_rate > 0, "latent_rate must be positive", self.latent_rate)
        require(self.window == 0 or self.window >= 3, "window must be 0 or at least 3 samples", self.window)
        require(
            self.final_window == 0 or 0 < self.window <= self.final_window,
            "final_window must be 0 or at least window, which must be given",
            f"window={self.window}, final_window={self.final_window}",
        )
        require(self.kl_weight >= 0, "kl_weight must not be negative", self.kl_weight)
        require(self.num_particles >= 1, "num_particles must be at least 1", self.num_particles)
        first, last = self.learning_rate, self.final_learning_rate
        rates = [rate for rate in (first, last) if rate is not None]
        falling = all(rate > 0 for rate in rates) and rates == sorted(rates, reverse=True)
        require(falling, "learning rates must be positive and must not grow", f"{first} to {last}")
        require(self.clip_norm > 0, "clip_norm must be positive", self.clip_norm)
        require(self.check_every >= 1, "check_every must be at least 1", self.check_every)
        require(self.patience >= 0, "patience must not be negative", self.patience)
        require_choice("start", self.start, ("mode", "values", "prior"))
        require_choice("guide", self.guide, ("auto", *GUIDES))

    def for_model(self, model: Any) -> SVIOptions:
        """Return these options with the defaults of `model` in place of `auto` and `None`."""
        guide: Any = getattr(model, "default_guide", "full_rank") if self.guide == "auto" else self.guide
        steps = getattr(model, "default_num_steps", None) if self.num_steps is None else self.num_steps
        rate = self.learning_rate
        rate = getattr(model, "default_learning_rate", None) if rate is None else rate
        return replace(self, guide=guide, num_steps=steps, learning_rate=rate)

    @property
    def schedule(self) -> tuple[int, float, float]:
        """Number of steps, first and last learning rate, where no model has its own."""
        steps = 2000 if self.num_steps is None else self.num_steps
        usual = 0.0005 if self.guide in AMORTISED else 0.02
        first = usual if self.learning_rate is None else self.learning_rate
        return steps, first, 0.01 * first if self.final_learning_rate is None else self.final_learning_rate


@dataclass(frozen=True)
class SVIStep:
    """What a progress callback sees after every step.

    Attributes:
        step: steps done.
        loss: negative evidence lower bound (ELBO) of this step, in nats.
        smoothed: mean of the last `check_every` losses.
        best: lowest smoothed loss so far.
        learning_rate: present step size.
    """

    step: int
    loss: float
    smoothed: float
    best: float
    learning_rate: float


@dataclass
class SVIResult:
    """A fitted guide and how it got there.

    Attributes:
        model: the Pyro model, with its learned parameters.
        guide: the fitted guide.
        data: what it was fitted to; with windows, or a model whose guide reads a few samples only
            (`num_context`), the last ones of every trajectory, from which forecasts start.
        losses: negative ELBO of every step, in nats.
        best_step: step of the kept state.
        best_loss: smoothed negative ELBO there.
        stopped_early: whether patience ran out.
        seconds: wall time, over all sessions of a resumed run.
    """

    model: Any
    guide: Any
    data: Trajectories
    losses: list[float]
    best_step: int
    best_loss: float
    stopped_early: bool
    seconds: float
    parameters: dict[str, Tensor] = field(repr=False, default_factory=dict)

    def sample(self, num_draws: int, *, data: Trajectories | None = None, seed: int = 0) -> Draws:
        """Draw from the guide.

        Args:
            num_draws: number of draws.
            data: other trajectories, for an amortised guide; by default those of the fit.
            seed: of the draws.

        Returns:
            Latent sites, each of shape `(num_draws, *site)`.
        """
        data = self.data if data is None else data
        nesting = plate_nesting(prototype(self.model, data))
        with learned(self.guide, data, self.parameters), seeded(seed), torch.no_grad():
            trace = trace_batch(self.guide, (data,), num_draws, nesting)
        names = [name for name in latent_sites(trace) if not trace.nodes[name]["infer"].get("is_auxiliary")]
        return collect(trace, names, num_draws, nesting)


def fit_svi(
    model: Any,
    data: Trajectories,
    options: SVIOptions = SVIOptions(),
    *,
    guide: Any = None,
    checkpoint: str | Path | None = None,
    on_step: Callable[[SVIStep], None] | None = None,
) -> SVIResult:
    """Fit a guide (and the model's learned parameters) by maximising the ELBO.

    Args:
        model: Pyro model of one argument, the data.
        data: the measurements.
        options: see `SVIOptions`.
        guide: a guide of the user's, instead of `options.guide`.
        checkpoint: file to save to and, if it exists, to resume from; a resumed run gives the
            same numbers as one that was never interrupted.
        on_step: called after every step.

    Returns:
        The result at the state with the lowest smoothed loss.

    Raises:
        NonFiniteError: when a loss or gradient is not finite, naming the step, the site and the
            likely cause. The checkpoint keeps the state that it was last saved with.
        SolveError: when 20 draws of a step in a row have no solution of an implicit step.
    """
    options = options.for_model(model)
    began = time.monotonic()
    with seeded(options.seed), pyro.get_param_store().scope(), warnings.catch_warnings():
        # The order of sites does not matter to a guide whose initial states follow the sites they share:
        # the model's prior has them independent.
        warnings.filterwarnings("ignore", message="Failed to verify mean field restriction")
        resumed = None if checkpoint is None else load_checkpoint(checkpoint)
        if guide is None:
            guide = _initial_guide(model, data, options, resumed is not None)
        run = _Run(model, guide, data, options)
        identity = asdict(options), data.fingerprint()
        if resumed is not None:
            run.restore(resumed, *identity)

        def save() -> None:
            if checkpoint is not None:
                save_checkpoint(checkpoint, run.state(*identity))

        saved, elapsed_before = began, run.seconds
        _train(True, model, guide)
        try:
            while run.step < run.num_steps and not run.stopped_early:
                with deferred_interrupts():
                    run.advance()
                run.seconds = elapsed_before + time.monotonic() - began
                if on_step is not None:
                    on_step(run.report())
                if time.monotonic() - saved > options.checkpoint_every:
                    save()
                    saved = time.monotonic()
        except BaseException:
            if run.consistent:
                with deferred_interrupts():
                    save()
            raise
        finally:
            _train(False, model, guide)
        run.finish()
        save()
        return SVIResult(
            model,
            guide,
            _last_context(model, data, options),
            run.losses,
            run.best_step,
            run.best_loss,
            run.stopped_early,
            run.seconds,
            {name: value.detach().clone() for name, value in run.parameters.items()},
        )


def _train(mode: bool, *programs: Any) -> None:
    """Tell modules whether they are being trained, when a model may look at a part of its data."""
    for program in programs:
        if isinstance(program, torch.nn.Module):
            program.train(mode)


def _last_context(model: Any, data: Trajectories, options: SVIOptions) -> Trajectories:
    """Return the part of the data from which forecasts start."""
    read = getattr(model, "num_context", max(options.window, options.final_window))
    return data.last(read) if 0 < read < data.num_times else data


class _ScaledDivergence(Messenger):
    """Latent sites of model and guide count `weight` times."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and self.weight != 1:
            msg["scale"] = self.weight * msg["scale"]


class _Windows:
    """Which data a step sees: the whole trajectories, or windows that begin at a random offset."""

    def __init__(self, data: Trajectories, options: SVIOptions) -> None:
        require(
            options.guide in AMORTISED or options.window == 0,
            "windows need an amortised guide",
            f"guide={options.guide!r}",
            "Set window=0, or guide=amortised.",
        )
        self._data = data
        last = min(max(options.window, options.final_window), data.num_times)
        growths = max(0, math.ceil(math.log2(last / options.window))) if options.window else 0
        lengths = [min(options.window * 2**k, last) for k in range(growths + 1)]
        self._lengths = [length if length < data.num_times else 0 for length in lengths]
        self._num_steps, _, _ = options.schedule
        self._cut: dict[tuple[int, int], Trajectories] = {}

    def first(self) -> Trajectories:
        """Return the windows without an offset."""
        return self._at(self._lengths[0], 0)

    def began(self, step: int) -> int:
        """Return the first step that saw windows as long as those of `step`."""
        return -(-self._stage(step) * self._num_steps // len(self._lengths))

    def last_growth(self) -> int:
        """Return the first step with the longest windows."""
        return self.began(self._num_steps)

    def _stage(self, step: int) -> int:
        """Return how often the windows have grown by then."""
        return min(step * len(self._lengths) // self._num_steps, len(self._lengths) - 1)

    def pick(self, step: int) -> Trajectories:
        """Return the data of one step."""
        length = self._lengths[self._stage(step)]
        shortest = int(self._data.lengths.min())
        latest = min(length, shortest - length + 1)
        return self._at(length, int(torch.randint(latest, ())) if latest > 1 else 0)

    def _at(self, length: int, offset: int) -> Trajectories:
        if not length:
            return self._data
        if (length, offset) not in self._cut:
            self._cut[length, offset] = self._data.windows(length, length, offset)
        return self._cut[length, offset]


MAX_REDRAWS = 20
"""Draws of a step at most, if an implicit step of an integrator has no solution for the first ones."""


WARM_UP = 50
"""Steps over which the step size of an amortised guide of states grows. Adam's first steps move every weight
of an encoder by all of it, and what the encoder was taught is lost."""


class _Run:
    """The state of an optimisation: parameters, optimiser, best state, losses, random stream."""

    def __init__(self, model: Any, guide: Any, data: Trajectories, options: SVIOptions) -> None:
        self.model, self.guide, self.data, self.options = model, guide, data, options
        elbo = AmortisedELBO if isinstance(guide, AmortisedGuide) else Trace_ELBO
        self.elbo = elbo(
            num_particles=options.num_particles,
            vectorize_particles=options.num_particles > 1,
            max_plate_nesting=plate_nesting(prototype(model, data)),
        )
        self.windows = _Windows(data, options)
        self.num_steps, rate, _ = options.schedule
        self.step, self.seconds, self.consistent = 0, 0.0, True
        self.losses: list[float] = []
        self.best_loss, self.best_step, self.stopped_early = math.inf, 0, False
        self.parameters = self._collect()
        require(len(self.parameters) > 0, "the guide or model must have parameters to optimise", "none")
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        networks = {id(p) for module in (model, guide) for p in _network_parameters(module)}
        groups = {True: [], False: []}  # type: dict[bool, list[Tensor]]
        for value in self.parameters.values():
            groups[id(value) in networks].append(value)
        both = bool(groups[True]) and bool(groups[False])
        self.factors = [1.0, options.latent_rate if both else 1.0]
        self.optimiser = torch.optim.Adam(
            [{"params": groups[True]}, {"params": groups[False]}], lr=rate, betas=(0.9, 0.99)
        )

    def _collect(self) -> dict[str, Tensor]:
        """Return every unconstrained parameter of model and guide, by name."""
        state = torch.random.get_rng_state()
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            self.elbo.loss(self.model, self.guide, self.data)
        torch.random.set_rng_state(state)
        named = {}
        for name, site in capture.trace.nodes.items():
            if site["type"] == "param" and name not in named:
                value: Any = site["value"]
                named[name] = value.unconstrained()
        return {name: value for name, value in named.items() if value.requires_grad}

    def advance(self) -> None:
        """Do one optimisation step."""
        num_steps, first, last = self.options.schedule
        rate = first * (last / first) ** (self.step / max(1, num_steps - 1))
        if getattr(self.guide, "is_joint", False):
            rate *= min(1.0, (self.step + 1) / WARM_UP)
        for group, factor in zip(self.optimiser.param_groups, self.factors, strict=True):
            group["lr"] = factor * rate
        self.consistent = False
        self.optimiser.zero_grad(set_to_none=True)
        data, loss = self._solvable_loss()
        (loss / max(1, int(data.num_observed))).backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.options.clip_norm)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            raise NonFiniteError(
                f"the loss became non-finite at step {self.step}: {_diagnose(self.model, self.guide, data)}",
                step=self.step,
                quantity="loss" if not bool(torch.isfinite(loss)) else "gradient",
            )
        self.optimiser.step()
        self.losses.append(loss.item())
        self.step += 1
        if self.windows.began(self.step) == self.step:  # losses of longer windows are others
            self.best_loss = math.inf
        elif self.step % self.options.check_every == 0 or self.step == self.num_steps:
            self._look()
        self.consistent = True

    def _solvable_loss(self) -> tuple[Trajectories, Tensor]:
        """Return data of a step and their loss; where an implicit step has no solution, of other draws."""
        for remaining in reversed(range(MAX_REDRAWS)):
            data = self.windows.pick(self.step)
            try:
                with _ScaledDivergence(self.options.kl_weight):
                    return data, self.elbo.differentiable_loss(self.model, self.guide, data)
            except SolveError:
                if not remaining:
                    raise
        raise AssertionError("unreachable")

    def _look(self) -> None:
        if self.smoothed < self.best_loss:
            self.best_loss, self.best_step = self.smoothed, self.step
            self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        looks = (self.step - max(self.best_step, self.windows.began(self.step))) / self.options.check_every
        may_stop = self.windows.last_growth() <= self.step < self.num_steps
        self.stopped_early = 0 < self.options.patience <= looks and may_stop

    @property
    def smoothed(self) -> float:
        """Mean of the latest losses, all of windows of one length."""
        recent = self.losses[max(self.windows.began(self.step), self.step - self.options.check_every) :]
        return math.fsum(recent) / max(1, len(recent))

    def report(self) -> SVIStep:
        """Return what a callback sees."""
        rate = self.optimiser.param_groups[0]["lr"]
        return SVIStep(self.step, self.losses[-1], self.smoothed, min(self.best_loss, self.smoothed), rate)

    def finish(self) -> None:
        """Return to the best state."""
        if self.best_step == 0:
            warnings.warn("the run ended before its first look at the loss", ConvergenceWarning, stacklevel=3)
            return
        self._assign(self.best)

    def _assign(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(values[name])

    def state(self, options: dict[str, Any], fingerprint: str) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain values."""
        return {
            "kind": "svi",
            "options": options,
            "data": fingerprint,
            "step": self.step,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "seconds": self.seconds,
            "parameters": {name: value.detach().clone() for name, value in self.parameters.items()},
            "best": self.best,
            "buffers": _buffers(self.guide),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.random.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any], options: dict[str, Any], fingerprint: str) -> None:
        """Continue from `state`; the options that shape the numbers and the data must be the same."""
        require(state.get("kind") == "svi", "the checkpoint must come from SVI", str(state.get("kind")))
        free = {"checkpoint_every"}
        changed = [k for k in options if k not in free and state["options"].get(k) != options[k]]
        require(
            not changed,
            "a run resumes only with the options it began with",
            f"changed: {', '.join(changed)}",
            "Use a new run folder (or --overwrite) for new options.",
        )
        require(
            state["data"] == fingerprint,
            "a run resumes only on the data it began with",
            "data with another fingerprint",
            "Use a new run folder for new data.",
        )
        require(
            set(state["parameters"]) == set(self.parameters),
            "a run resumes only with the model it began with",
            f"parameters {sorted(self.parameters)[:3]}...",
        )
        self.step, self.losses = int(state["step"]), state["losses"].tolist()
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.stopped_early, self.seconds = state["stopped_early"], state["seconds"]
        self.best = dict(state["best"])
        self._assign(state["parameters"])
        for name, buffer in _buffers(self.guide).items():
            buffer.copy_(state["buffers"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.random.set_rng_state(state["random"])


def _initial_guide(model: Any, data: Trajectories, options: SVIOptions, resuming: bool) -> Any:
    """Build the guide and move it to where the options say it starts."""
    assert options.guide != "auto"
    if options.guide in AMORTISED:
        first = _Windows(data, options).first()
        return initial_amortised(model, data, first, options.guide, "prior" if resuming else options.start)
    if options.start == "prior":
        return make_guide(options.guide, model, data)
    if options.start == "values" or resuming:
        guide = make_guide(options.guide, model, data, initial_values=starting_values(model, data))
        if resuming:
            poutine.block(guide)(data)  # builds the guide's prototype, whose values are then restored
        return guide
    start = find_start(model, data)
    guide = make_guide(options.guide, model, data, initial_values=start.values)
    if isinstance(guide, FullRankGuide) and start.covariance is not None:
        poutine.block(guide)(data)  # builds the guide's prototype
        guide.set_geometry(start.density.names, start.centre, start.covariance)
    return guide


NETWORK_LAYERS = (
    AbstractMLP,
    torch.nn.Linear,
    torch.nn.LSTM,
    torch.nn.Conv2d,
    torch.nn.ConvTranspose2d,
)


def _network_parameters(module: Any) -> Iterator[Tensor]:
    """Yield the parameters of a model or guide that are weights of networks."""
    if isinstance(module, torch.nn.Module):
        for child in module.modules():
            if isinstance(child, NETWORK_LAYERS):
                yield from child.parameters(recurse=False)


def _buffers(guide: Any) -> dict[str, Tensor]:
    """Return the constants of a guide that is a module."""
    return dict(guide.named_buffers()) if isinstance(guide, torch.nn.Module) else {}


def _diagnose(model: Any, guide: Any, data: Trajectories) -> str:
    """Say which site is to blame for a loss that is not finite."""
    with torch.no_grad():
        trace = poutine.block(poutine.trace(guide).get_trace)(data)
        for name, site in trace.nodes.items():
            value = site["value"] if site["type"] in ("sample", "param") else None
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                return (
                    f"the guide's {name} is not finite. The step size is likely too large; "
                    "lower learning_rate or clip_norm."
                )
        replayed = poutine.block(poutine.trace(poutine.replay(model, trace)).get_trace)(data)
        replayed.compute_log_prob()
        for name, site in replayed.nodes.items():
            value = site.get("value")  # the model's own arguments have none
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                return (
                    f"the value of {name} is not finite. A trajectory likely ran away: lower learning_rate, "
                    "shorten max_step_size, or tighten the priors of the initial state and potential."
                )
            if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob"]).all()):
                return (
                    f"the log density of {name} is not finite. Its scale has likely collapsed; "
                    "check its prior."
                )
    return (
        "every site is finite now, so a single draw was extreme; lower learning_rate or raise num_particles."
    )
