"""A forecast over many posterior draws of a pendulum, by a `VIN` and by a loop in C.

Every draw has its own g/l, every trajectory its own initial state; positions and velocities of all times are
kept in `(draw, trajectory, time)`, float64.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from peers.rows import SkippedRow
from pyro.distributions import LogNormal

from vinppl.dynamics import VIN
from vinppl.potentials import PendulumPotential
from vinppl.state import PhaseState
from vinppl.timegrid import TimeGrid

Array = NDArray[np.float64]
Paths = tuple[Array, Array]
STEP_SIZE = 0.05

# The trajectories of a draw advance together, so that the compiler can vectorise the sine.
SOURCE = r"""
#include <math.h>
#include <string.h>

void forecast(const double *k, const double *q0, const double *v0, long draws, long trajectories,
              long times, double h, double *q_path, double *v_path)
{
    double q[64], v[64], a[64];
    for (long d = 0; d < draws; d++)
        for (long first = 0; first < trajectories; first += 64) {
            long lanes = trajectories - first < 64 ? trajectories - first : 64;
            long base = d * trajectories + first;
            memcpy(q, q0 + base, lanes * sizeof(double));
            memcpy(v, v0 + base, lanes * sizeof(double));
            for (long i = 0; i < lanes; i++) a[i] = -k[d] * sin(q[i]);
            for (long t = 0; t < times; t++) {
                for (long i = 0; i < lanes; i++) {
                    q_path[(base + i) * times + t] = q[i];
                    v_path[(base + i) * times + t] = v[i];
                }
                for (long i = 0; i < lanes; i++) {
                    double u = v[i] + 0.5 * h * a[i];
                    q[i] += h * u;
                    a[i] = -k[d] * sin(q[i]);
                    v[i] = u + 0.5 * h * a[i];
                }
            }
        }
}
"""


class Draws(NamedTuple):
    """What is forecast.

    Attributes:
        k: g/l, shape `(draws,)`.
        q: initial angles, shape `(draws, trajectories)`.
        v: initial velocities, same shape.
        num_times: samples, the first included.
    """

    k: Array
    q: Array
    v: Array
    num_times: int


def make_draws(num_draws: int = 1000, num_trajectories: int = 25, num_steps: int = 2000) -> Draws:
    """Return random draws."""
    stream = np.random.default_rng(0)
    q, v = stream.standard_normal((2, num_draws, num_trajectories))
    return Draws(9.82 * np.exp(0.05 * stream.standard_normal(num_draws)), q, v, num_steps + 1)


def vinppl_forecast(draws: Draws) -> Callable[[], Paths]:
    """Return the forecast by a `VIN` whose g/l is a site held at the draws."""
    vin = VIN(PendulumPotential(LogNormal(torch.tensor(2.0), torch.tensor(1.0))))
    vin.to(torch.float64)
    held = poutine.condition(vin, data={"potential.gravity_over_length": torch.from_numpy(draws.k)[:, None]})
    start = PhaseState(torch.from_numpy(draws.q)[..., None], torch.from_numpy(draws.v)[..., None])
    grid = TimeGrid.regular(draws.num_times, STEP_SIZE, dtype=torch.float64)

    def run() -> Paths:
        with torch.no_grad():
            path = held(start, grid)
        return path.q[..., 0].numpy(), path.v[..., 0].numpy()

    return run


def c_forecast(draws: Draws, folder: Path) -> Callable[[], Paths]:
    """Return the forecast by the loop in C, compiled in `folder` for this machine.

    Raises:
        SkippedRow: if there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise SkippedRow("there is no C compiler called cc")
    source, library = folder / "forecast.c", folder / "forecast.so"
    source.write_text(SOURCE)
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-lm"], check=True)
    function = ctypes.CDLL(str(library)).forecast
    arrays = [np.ascontiguousarray(x) for x in (draws.k, draws.q, draws.v)]
    sizes = [ctypes.c_long(n) for n in (*draws.q.shape, draws.num_times)]

    def run() -> Paths:
        q, v = np.empty((2, *draws.q.shape, draws.num_times))
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*arrays, q, v)]
        function(*pointers[:3], *sizes, ctypes.c_double(STEP_SIZE), *pointers[3:])
        return q, v

    return run
