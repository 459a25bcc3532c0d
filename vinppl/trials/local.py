"""Worker processes on this machine.

They are started here rather than by dask's own supervisor, which gives up on a worker that dies while it
starts, makes daemons of them (which may not start processes, as chains do), and reads the script in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading

__all__ = ["LocalWorkers", "serve"]

MAX_FUTILE = 5
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
CODE = "import sys; from vinppl.trials.local import serve; serve(sys.argv[1])"


class LocalWorkers:
    """Processes that work for a scheduler; those that die are replaced.

    Args:
        address: of the scheduler.
        number: how many processes.
    """

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self.futile = 0
        self.processes = [self._start() for _ in range(number)]

    def replace_dead(self, *, useful: bool) -> None:
        """Start a process for each one that died.

        Args:
            useful: whether any has done something since the last call.

        Raises:
            RuntimeError: if they die without having done anything.
        """
        self.futile *= not useful
        for index, process in enumerate(self.processes):
            if process.poll() is not None:
                self.futile += 1
                if self.futile > MAX_FUTILE * len(self.processes):
                    raise RuntimeError(
                        f"worker processes end as soon as they start (status {process.returncode}). "
                        "num_workers=0 runs the trials in this process."
                    )
                _end(process)
                self.processes[index] = self._start()

    def stop(self) -> None:
        """End all, and whatever they have started."""
        for process in self.processes:
            _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        return subprocess.Popen(
            [sys.executable, "-c", CODE, self.address],
            env={**os.environ, **THREADS, "PYTHONPATH": path},
            stdin=subprocess.PIPE,  # closed by the system when this process ends in any way
            start_new_session=True,  # Ctrl-C is for the study alone, and a trial's processes end with it
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def serve(address: str) -> None:
    """Work for a scheduler for as long as the parent process lives."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(address))


async def _serve(address: str) -> None:
    import dask
    from distributed import Worker

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its import sets another
    dask.config.set({"distributed.worker.profile.enabled": False})
    async with Worker(address, nthreads=1, memory_limit=0) as worker:
        await worker.finished()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through `sys.stdin`, whose lock a fork would copy
    os.killpg(0, signal.SIGKILL)
