"""Peak memory of one training step: `python -m peers.memory vinppl` prints bytes, in a process of its own.

A tiny step comes first, so that code, thread pools and compiled kernels are in place. Then free heap is given
back to the system, the kernel's high-water mark of resident memory is reset, and what a full step adds to the
resident memory of that moment is its peak. This counts every allocation, torch's, numpy's or native, once its
pages are touched; weights, states and targets are there before and do not count.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

from peers.training import STEPS, make_task

PROCESS = Path("/proc/self")
TINY = (10, 2, 2)


def main() -> None:
    """Print the bytes that a step adds."""
    make = STEPS[sys.argv[1]]
    make(make_task(*TINY))()
    step = make(make_task(*(int(x) for x in sys.argv[2:])))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    """Return a size from the kernel's account of this process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
