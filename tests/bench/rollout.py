"""Time the rollout and its gradient: pendulum, 150 steps, float64, one thread.

    python tests/bench/rollout.py [--json FILE] [--repeats 7]

Prints medians of interleaved repeats in milliseconds, and ratios to a rollout written out in plain torch.
Compare ratios, not milliseconds: machines differ and have neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vinppl import NeuralPotential, PendulumPotential, PhaseState, TimeGrid, Torus
from vinppl.dynamics import VIN

STEPS, STEP_SIZE = 150, 0.1


def plain(q: Tensor, v: Tensor, k: Tensor) -> Tensor:
    """Return the path of velocity Verlet as one would first write it, `(time, 2)`."""
    path = [torch.cat([q, v])]
    for _ in range(STEPS):
        v = v - 0.5 * STEP_SIZE * k * torch.sin(q)
        q = q + STEP_SIZE * v
        v = v - 0.5 * STEP_SIZE * k * torch.sin(q)
        path.append(torch.cat([q, v]))
    return torch.stack(path)


def cases() -> dict[str, Callable[[], Tensor]]:
    """Return functions that run a rollout and return a number to differentiate."""
    q = torch.tensor([1.0], requires_grad=True)
    v = torch.tensor([0.1], requires_grad=True)
    k = torch.tensor(9.82, requires_grad=True)
    grid = TimeGrid.regular(STEPS + 1, STEP_SIZE)

    def run(potential: torch.nn.Module, integrator: str, batch: int = 1) -> Callable[[], Tensor]:
        vin = VIN(potential, integrator=integrator)  # type: ignore[arg-type]
        start = PhaseState(q.expand(batch, 1), v.expand(batch, 1))
        return lambda: vin(start, grid).q.square().sum()

    known = {
        name: run(PendulumPotential(9.82), name)
        for name in ("stormer_verlet", "velocity_verlet", "so2", "rk4")
    }
    return {
        "plain torch": lambda: plain(q, v, k).square().sum(),
        **known,
        "velocity_verlet, batch 1000": run(PendulumPotential(9.82), "velocity_verlet", 1000),
        "neural (128), velocity_verlet": run(
            NeuralPotential(Torus(1), hidden_sizes=(128,)), "velocity_verlet"
        ),
    }


def main() -> None:
    """Time every case and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    functions = cases()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for repeat in range(options.repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            value = function()
            middle = time.perf_counter()
            if value.requires_grad:
                value.backward()
            if repeat:  # the first round warms up
                times[name].append((middle - began, time.perf_counter() - middle))
    base = statistics.median(sum(t) for t in times["plain torch"])
    rows = []
    for name, measured in times.items():
        forward, backward = (1e3 * statistics.median(t[i] for t in measured) for i in range(2))
        total = statistics.median(sum(t) for t in measured)
        rows.append(
            {"name": name, "forward_ms": forward, "backward_ms": backward, "ratio_to_plain": total / base}
        )
        print(
            f"{name:32s} forward {forward:8.2f} ms  backward {backward:8.2f} ms  "
            f"{total / base:6.2f} x plain torch"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
