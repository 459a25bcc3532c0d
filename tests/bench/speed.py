"""Compare the library's speed with its peers': plain Pyro and torch, NumPyro and JAX, a loop in C.

    python tests/bench/speed.py --json speed.json          every row but the slow ones: about half an hour
    python tests/bench/speed.py --quick                    a look, in less than a minute
    python tests/bench/speed.py --only nuts_pendulum       some rows; slow ones too
    python tests/bench/speed.py --full                     also 400 fits, counted one by one in a CSV file
    python tests/bench/speed.py --check                    only whether both sides compute the same

Needs `numpyro` and `jax`, and a C compiler; rows without their peer are left out. A ratio is how much better
ours is, and is met at the one asked for. One core and one thread for everything. Short measurements are
medians of CPU time in turns (A B A B ...), fits are medians of wall time; what is compiled is compiled
beforehand, but for rows called cold. Before a row is timed both sides must agree: log densities up to a
constant, gradients, paths. Compare ratios, not seconds: machines differ and have neighbours.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from peers.rows import HEAD, Effort, Row, SkippedRow, write_json

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_ENABLE_X64": "1",
    "JAX_PLATFORMS": "cpu",
}


def main() -> None:
    """Measure, print and write row by row."""
    options = parse()
    use_one_core()
    from peers import measurements

    if options.check:
        measurements.check()
        return
    unknown = sorted(set(options.only or ()) - set(measurements.ROWS))
    if unknown:
        raise SystemExit(f"no row is called {', '.join(unknown)}; known: {', '.join(measurements.ROWS)}")
    effort = Effort(options.quick, options.full, options.convergence_csv)
    rows: list[Row] = []
    print(HEAD, flush=True)
    for name in options.only or measurements.ROWS:
        try:
            rows.append(measurements.measure(name, effort, by_name=options.only is not None))
        except SkippedRow as reason:
            print(f"{name:34s} left out: {reason}", flush=True)
            continue
        print(rows[-1], flush=True)
        if options.json is not None:
            write_json(rows, options.json)


def use_one_core() -> None:
    """Keep this process and those it starts to one core; to be called before torch and JAX are imported."""
    os.environ.update(ENVIRONMENT)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the rows to, after each of them")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure")
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes")
    parser.add_argument("--full", action="store_true", help="also rows that take hours")
    parser.add_argument("--check", action="store_true", help="compare results and measure nothing")
    parser.add_argument(
        "--convergence-csv",
        type=Path,
        default=ROOT / "notebooks" / "results" / "convergence.csv",
        help="where counted fits are kept; those in it are not run again",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
