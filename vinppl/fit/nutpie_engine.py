"""Chains of nutpie's NUTS, which runs in Rust: on a compiled log density no Python runs inside a draw.

nutpie has a public way in for Python functions. It has none for compiled ones, so that `_PointerModel` goes
through inner parts; where a version of nutpie lacks one, the compiled density is called from Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.ops.integrator import potential_grad
from torch import Tensor

from vinppl._checks import require
from vinppl.errors import NumericalWarning
from vinppl.fit.chains import ChainJob, MCMCProgress, Message
from vinppl.fit.nuts import DrawStats

if TYPE_CHECKING:
    from vinppl.native.compiled import CompiledDensity, Whitened

__all__ = ["Compiled", "NutpieJob", "is_installed", "prepare", "require_installed"]

Array = NDArray[Any]

TELL_EVERY = 0.1
"""Seconds between two messages of progress."""

_INTEGER, _ADDRESS = ctypes.c_uint64, ctypes.c_void_p
_LOG_DENSITY = ctypes.CFUNCTYPE(ctypes.c_int64, _INTEGER, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
_EXPAND = ctypes.CFUNCTYPE(ctypes.c_int64, _INTEGER, _INTEGER, _ADDRESS, _ADDRESS, _ADDRESS)


def is_installed() -> bool:
    """Return whether there is a nutpie to import."""
    return importlib.util.find_spec("nutpie") is not None


def require_installed() -> None:
    """Raise `ValueError` if there is no nutpie to import."""
    require(
        is_installed(),
        "engine='nutpie' needs the package nutpie",
        "no such package",
        "Install it (pip install nutpie), or choose engine='pyro'.",
    )


@dataclass(frozen=True)
class Compiled:
    """A compiled log density of the sampler's coordinates.

    Attributes:
        native: its C function returns 0, or a positive number where the density is not finite.
        direct: nutpie calls it without Python in between.
    """

    native: Whitened
    direct: bool

    def __call__(self, x: Array) -> tuple[float, Array]:
        """Return the value and the gradient at one point, NaN where there is none."""
        point, gradient, value = np.ascontiguousarray(x, np.float64), np.zeros(x.size), np.zeros(1)
        pointers = (array.ctypes.data for array in (point, gradient, value))
        status = _LOG_DENSITY(self.native.address)(x.size, *pointers, self.native.user_data)
        return (float(value[0]) if status == 0 else math.nan), gradient


def prepare(native: CompiledDensity | None, centre: Tensor, factor: Tensor) -> Compiled | None:
    """Load nutpie and return the compiled density in the sampler's coordinates, `None` if there is none.

    Warns:
        NumericalWarning: if this nutpie takes no compiled function.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ, which nutpie imports, announces its next version
        import nutpie
    if native is None:
        return None
    whitened = native.whitened(_float64(centre), _float64(factor))
    try:
        _PointerModel(whitened, np.zeros(centre.numel())).build()
    except (AttributeError, ImportError, TypeError) as error:
        warnings.warn(
            f"nutpie {nutpie.__version__} takes no compiled function as version 0.16 does ({error}), so that "
            "sampling goes through Python and is slower",
            NumericalWarning,
            stacklevel=2,
        )
        return Compiled(whitened, direct=False)
    return Compiled(whitened, direct=True)


def _float64(x: Tensor) -> Array:
    return np.ascontiguousarray(x.detach().cpu().numpy(), np.float64)


@dataclass(frozen=True)
class NutpieJob(ChainJob):
    """A chain that is saved when it is finished; interrupted, it starts again to the same draws.

    Attributes:
        compiled: the density of the sampler's coordinates; `None` to call `whitened`.
    """

    kind: ClassVar[str] = "nutpie"

    compiled: Compiled | None = None

    def run(self) -> Iterator[Message]:
        """Yield progress a few times a second, and the finished chain at the end."""
        state = self.saved()
        if state is None or len(state["draws"]) < self.options.num_draws:
            state = yield from self._sample()
            self.save(state)
        else:
            yield self._progress(state["stats"].numpy(), warmup=0)
        yield self.finished(state["draws"], state["stats"], state["seconds"], state["sampling_seconds"])

    def _sample(self) -> Generator[MCMCProgress, None, dict[str, Any]]:
        """Run the chain, with progress; return what is saved of it."""
        began, warmup = time.monotonic(), self.options.num_warmup
        density = _Guarded(self._python_density if self.compiled is None else self.compiled)
        with _sampling(self._model(density), self._settings()) as sampler, contextlib.closing(density):
            trace, pause = None, TELL_EVERY
            while trace is None:
                try:
                    trace = sampler.wait(timeout=pause)
                except TimeoutError:
                    asked = time.monotonic()
                    _, table = _read(sampler.inspect(), self.centre.numel())  # copies all draws
                    pause = max(TELL_EVERY, 10 * (time.monotonic() - asked))
                    if len(table):
                        yield self._progress(table, warmup=warmup)
                density.raise_error()
        points, table = _read(trace, self.centre.numel())
        yield self._progress(table, warmup=warmup)
        steps = table[:, DrawStats._fields.index("n_steps")]
        seconds = time.monotonic() - began
        return {
            "draws": torch.tensor(points[warmup:], dtype=self.centre.dtype),
            "stats": torch.tensor(table[warmup:]),
            "seconds": seconds,
            "sampling_seconds": seconds * float(steps[warmup:].sum() / steps.sum()),
        }

    def _progress(self, table: Array, *, warmup: int) -> MCMCProgress:
        """Return the latest row of a table of statistics of which the first `warmup` are not kept."""
        latest = DrawStats(*table[-1].tolist())
        latest = latest._replace(
            n_steps=int(latest.n_steps), tree_depth=int(latest.tree_depth), diverging=bool(latest.diverging)
        )
        divergences = int(table[warmup:, DrawStats._fields.index("diverging")].sum())
        count = self.options.num_warmup - warmup + len(table)
        return MCMCProgress(self.index, count, latest, divergences)

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "draws": options.num_draws,
            "tune": options.num_warmup,
            "seed": self.seed % 2**64,
            "target_accept": options.target_accept,
            "maxdepth": options.max_tree_depth,
            "low_rank_modified_mass_matrix": options.dense_mass,
        }

    def _model(self, density: _Guarded) -> Any:
        """Return what nutpie samples."""
        start = self._start(density)
        if self.compiled is not None and self.compiled.direct:
            return _PointerModel(self.compiled.native, start)
        from nutpie.compiled_pyfunc import from_pyfunc

        return from_pyfunc(
            ndim=start.size,
            make_logp_fn=lambda: density,
            make_expand_fn=lambda *seeds: lambda x: {"x": x},
            expanded_dtypes=[np.dtype("float64")],
            expanded_shapes=[(start.size,)],
            expanded_names=["x"],
            make_initial_point_fn=lambda seed: start,
        )

    def _start(self, density: _Guarded) -> Array:
        """Return the starting point, nearer to the centre where it lies too far down the density.

        A normal falls by half the number of dimensions from its centre to a typical point. A narrow,
        curved posterior falls off much further along a straight line, into the reach of other modes.
        nutpie scales its first steps by the gradient and takes no zeros in it, as on an axis of symmetry.
        """
        start = _float64(self.start())
        top, _ = density(0.0 * start)
        density.raise_error()
        typical = start.size + 2 * math.sqrt(2 * start.size)  # of twice the fall
        for nearness, shift in itertools.product((*(0.7**k for k in range(12)), 0.0), (0.0, 1e-3)):
            point = nearness * start + shift
            value, gradient = density(point)
            density.raise_error()
            near = value > top - 0.5 * typical or nearness == 0.0
            if near and math.isfinite(value) and np.isfinite(gradient).all() and gradient.all():
                return point
        raise ValueError("the density is not finite, or constant, around the centre of the starting points")

    def _python_density(self, x: Array) -> tuple[float, Array]:
        """Return the log density and its gradient as Pyro's sampler does, NaN where steps are unsolvable."""
        at = {"x": torch.as_tensor(x, dtype=self.centre.dtype, device=self.centre.device)}
        gradients, potential = potential_grad(lambda point: -self.whitened(point["x"]), at)
        return -float(potential), -_float64(gradients["x"])


class _Guarded:
    """A log density to be called from nutpie's thread, where an error would be a panic of Rust's.

    An error is kept for the thread that waits. From then on, or when it is closed, a standard normal
    stands in, so that what is under way comes to an end soon and without harm.
    """

    def __init__(self, function: Callable[[Array], tuple[float, Array]]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._closed = False

    def __call__(self, x: Array) -> tuple[float, Array]:
        if not self._closed:
            try:
                return self._function(x)
            except BaseException as error:  # also an interrupt must not unwind into Rust
                self._error, self._closed = error, True
        return -0.5 * float(x @ x), -x

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closed = True


class _PointerModel:
    """A compiled density as nutpie's models are, the part of them that sampling calls."""

    def __init__(self, native: Whitened, start: Array) -> None:
        self._native, self._start = native, start
        self.n_dim = start.size

    def build(self) -> Any:
        """Return the model of nutpie's inner library."""
        from nutpie import _lib as lib

        size = self.n_dim
        address, owner = _copying()
        sizes: dict[str, int] = {}  # filled in by `new_variables`
        return lib.PyMcModel(
            lib.LogpFunc(self._native.address, self._native.user_data, self._native),
            lib.ExpandFunc(size, size, address, 0, owner),
            lib.PyVariable.new_variables(["x"], ["float64"], [(size,)], sizes, {}),
            size,
            sizes,
            {},
            lambda seed: self._start,
            None,
        )

    def _make_sampler(self, settings: Any, init_mean: Array, cores: int, progress: Any, store: Any) -> Any:
        from nutpie._lib import PySampler

        return PySampler.from_pymc(settings, cores, self.build(), progress, store)


def _copying() -> tuple[int, Any]:
    """Return the address of a C function that copies a point, and what keeps it alive.

    Its arguments are the sizes of source and target, both addresses, and user data; it is called once
    a draw.
    """
    import vinppl.native

    offered = getattr(vinppl.native, "identity_address", None)
    if offered is not None:
        return int(offered()), None

    @_EXPAND
    def copy(size: int, _: int, source: int, target: int, user_data: int) -> int:
        ctypes.memmove(target, source, 8 * size)
        return 0

    return int(ctypes.cast(copy, _ADDRESS).value or 0), copy


@contextlib.contextmanager
def _sampling(model: Any, settings: dict[str, Any]) -> Iterator[Any]:
    """Start one chain in the background; it is stopped when the block is left early."""
    import nutpie

    sampler = nutpie.sample(
        model, chains=1, cores=1, blocking=False, progress_bar=False, return_raw_trace=True, **settings
    )
    try:
        yield sampler
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # Rust's; it is no Exception, and nothing runs on
            raise RuntimeError(f"nutpie stopped: {str(error).splitlines()[0]}") from error
        sampler.cancel()
        raise


_NAMES = ("logp", "energy", "mean_tree_accept", "step_size", "n_steps", "depth", "diverging")
"""nutpie's names of the statistics, in the order of `DrawStats`."""


def _read(trace: Any, size: int) -> tuple[Array, Array]:
    """Return all draws of the only chain, warm-up included, `(draw, size)`, and their `DrawStats`."""
    import pyarrow

    draws, stats = (pyarrow.record_batch(batches[0]) for batches in trace.get_arrow_trace())
    column = {name: stats.column(name).to_numpy(zero_copy_only=False) for name in (*_NAMES, "energy_error")}
    column["energy"] = column["energy"] - column["energy_error"]  # at the start of the trajectory
    table = np.stack([column[name] for name in _NAMES], axis=-1).astype(np.float64)
    return draws.column("x").flatten().to_numpy().reshape(-1, size), table
