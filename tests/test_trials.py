"""Studies: what is kept, what is run again, and what survives workers and clients that are killed.

Whatever needs dask runs in processes of its own: its threads would outlive a test, and other tests fork.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vinppl.trials.records
from vinppl.trials import (
    Progress,
    Trial,
    TrialResult,
    code_version,
    print_progress,
    read_table,
    run_trials,
    table,
    write_table,
)
from vinppl.trials.local import MAX_FUTILE, LocalWorkers
from vinppl.trials.workers import _Workers

DASHBOARD_PORT = 8787  # where dask's schedulers show themselves by default
SQUARES = [Trial(f"square-{i}", {"x": i}) for i in range(4)]


def square(x: float) -> list[dict[str, Any]]:
    return [{"square": np.float32(x * x), "part": 0}, {"square": math.nan, "part": np.int64(1)}]


def run(folder: Path, function: Any = square, trials: Any = SQUARES, **options: Any) -> list[TrialResult]:
    return run_trials(function, trials, folder, num_workers=0, **options)


def never(**arguments: Any) -> list[dict[str, Any]]:
    raise AssertionError(f"{arguments} should not have been run")


# Files, in this process


def test_finished_trials_are_read_instead_of_run_in_the_given_order(tmp_path: Path) -> None:
    first = run(tmp_path, trials=SQUARES[1:3])
    assert [r.rows[0] for r in first] == [{"square": 1.0, "part": 0}, {"square": 4.0, "part": 0}]
    assert math.isnan(first[0].rows[1]["square"])
    assert not any(r.reused or r.failed for r in first)
    again = run(tmp_path)
    assert [r.trial for r in again] == SQUARES
    assert [r.reused for r in again] == [False, True, True, False]
    last = run(tmp_path, never, reversed(SQUARES))
    assert [r.trial for r in last] == SQUARES[::-1]
    for old, new in zip(again, last[::-1], strict=True):
        assert json.dumps(new.rows) == json.dumps(old.rows)
        assert (new.seconds, new.versions) == (old.seconds, old.versions)
    assert {"python", "torch", "vinppl"} <= last[0].versions.keys()


def test_changed_arguments_and_versions_are_refused_or_run_again(tmp_path: Path) -> None:
    run(tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "trials").iterdir()}
    changed = [*SQUARES[:3], Trial("square-3", {"x": 7})]
    with pytest.raises(ValueError, match=r"square-3\.json.*x: 3 there, 7 here.*rerun_changed"):
        run(tmp_path, never, changed)
    with pytest.raises(ValueError, match="version: '' there, '2' here"):
        run(tmp_path, never, version="2")
    assert {path: path.read_bytes() for path in kept} == kept
    results = run(tmp_path, trials=changed, rerun_changed=True)
    assert [r.reused for r in results] == [True, True, True, False]
    assert run(tmp_path, never, changed)[3].rows[0]["square"] == 49.0


@pytest.mark.parametrize("content", [b"", b'{"rows": [{"a"', b"[]", b'{"rows": []}', b"\xff\xfe{}"])
def test_a_damaged_file_is_reported_and_its_trial_run_again(content: bytes, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "trials" / "square-1.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"square-1\.json is damaged.*run again"):
        results = run(tmp_path)
    assert [r.reused for r in results] == [True, False, True, True]
    assert all(r.reused for r in run(tmp_path, never))


def test_a_failing_trial_stops_no_other_and_is_run_again(tmp_path: Path) -> None:
    broken = True

    def function(x: int) -> list[dict[str, Any]]:
        if broken and x == 1:
            raise ArithmeticError("no\nroot")
        if broken and x == 2:
            sys.exit("stop")
        return square(x)

    with pytest.warns(UserWarning, match="2 of 4 trials failed, first square-1: ArithmeticError: no root"):
        results = run(tmp_path, function)
    assert [r.failed for r in results] == [False, True, True, False]
    assert results[1].rows == []
    record = json.loads((tmp_path / "failures" / "square-1.json").read_text())
    assert record["arguments"] == {"x": 1}
    assert "in function" in record["traceback"]
    assert not (tmp_path / "trials" / "square-1.json").exists()
    assert set(table(results)["trial"]) == {"square-0", "square-3"}
    broken = False
    results = run(tmp_path, function)
    assert [r.reused for r in results] == [True, False, False, True]
    assert list((tmp_path / "failures").iterdir()) == []


@pytest.mark.parametrize("rows", [None, {"a": 1}, [1.0], [{"a": object()}], "rows"])
def test_what_is_no_table_fails_its_trial(rows: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="TypeError: .*(list of dicts|JSON cannot hold)"):
        run(tmp_path, lambda: rows, [Trial("a")])


def test_arguments_reach_the_function_as_they_are_kept(tmp_path: Path) -> None:
    def function(sizes: list[int], **others: Any) -> list[dict[str, Any]]:
        assert sizes == [1, 2]
        sizes.append(3)
        return []

    trial = Trial("a", {"sizes": (1, np.int64(2)), "tolerance": math.nan})
    assert trial.arguments["sizes"] == [1, 2]
    run(tmp_path, function, [trial])
    assert run(tmp_path, never, [trial])[0].reused


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "a b", "x" * 300, "a\n"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a file name of letters"):
        Trial(name)


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arguments of trial a must be values that JSON can hold"):
        Trial("a", {"x": object()})
    with pytest.raises(ValueError, match=r"a name of its own; got 'A'"):
        run(tmp_path, trials=[Trial("a"), Trial("A")])
    with pytest.raises(ValueError, match="num_workers must not be negative"):
        run_trials(square, SQUARES, tmp_path, num_workers=-1)
    with pytest.raises(ValueError, match="must be left out with a scheduler"):
        run(tmp_path, scheduler="tcp://127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_or_a_full_disk_keeps_what_was_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = vinppl.trials.records.write_atomically

    def full(path: Path, content: Any) -> Path:
        if path.name == "square-2.json":
            raise error
        return write(path, content)

    monkeypatch.setattr(vinppl.trials.records, "write_atomically", full)
    with pytest.raises(type(error)):
        run(tmp_path)
    monkeypatch.undo()
    assert [r.reused for r in run(tmp_path)] == [True, True, False, False]


def test_progress_counts_earlier_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, trials=SQUARES[:1])
    seen: list[Progress] = []
    run(tmp_path, on_result=lambda result, progress: seen.append(progress))
    assert [(p.done, p.failed, p.total) for p in seen] == [(2, 0, 4), (3, 0, 4), (4, 0, 4)]
    assert seen[-1].seconds_left == 0
    assert all(0 <= p.seconds_left < 60 for p in seen)
    result = TrialResult(SQUARES[0], [], 1.26, {})
    print_progress(result, Progress(3, 1, 9, 7300.0))
    print_progress(TrialResult(SQUARES[1], [], math.nan, {}, error="E: x"), Progress(3, 2, 9, 150.0))
    assert capsys.readouterr().out.splitlines() == [
        "3 of 9 done, 1 failed, 2.0 h left: square-0 (1.3 s)",
        "3 of 9 done, 2 failed, 2 min left: square-1 (FAILED, E: x)",
    ]


# Tables


def test_tables_keep_their_values_and_say_how_they_were_made(tmp_path: Path) -> None:
    trials = [
        Trial(f"{m}-{i}", {"x": i, "model": m, "sizes": [1]}) for m in ("None", "a=1") for i in range(2)
    ]
    results = run(
        tmp_path, lambda x, model, sizes: [{"error": x / 3, "x": x + 10}, {"error": math.nan}], trials
    )
    frame = table(results)
    assert list(frame.columns) == ["trial", "x", "model", "error"]
    assert list(frame["x"][:3]) == [10, 0, 11]
    path = tmp_path / "tables" / "scores.csv"
    write_table(frame, path, command="python study.py", seeds=range(5))
    head = path.read_text().splitlines()[:2]
    assert head == ["# command: python study.py", f"# seeds: 0 to 4; commit: {code_version()}"]
    pd.testing.assert_frame_equal(read_table(path), frame, rtol=1e-4, check_dtype=False)
    write_table(frame, path, command="c", seeds=[0, 3], commit="abc")
    assert "# seeds: 0, 3; commit: abc" in path.read_text()
    with pytest.raises(ValueError, match="command must be one line"):
        write_table(frame, path, command="a\nb", seeds="0")


# Workers

STUDY = """
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from vinppl.trials import Trial, print_progress, run_trials, table


class Square:
    def __init__(self, x):
        self.value = x * x


def fit(x, kind, marks):
    started_before = list(Path(marks).glob(f"{x}-*"))
    (Path(marks) / f"{x}-{time.time_ns()}").write_text(str(os.getpid()))
    if kind == "once" and not started_before:
        time.sleep(300)
    if kind == "raises":
        raise ArithmeticError("no root")
    if kind == "fatal":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "forks":
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map(abs, [-x]) == [x]
    time.sleep(0.05)
    return [{"square": Square(x).value, "threads": os.environ["OMP_NUM_THREADS"]}]


if __name__ == "__main__":
    marks = Path("marks")
    marks.mkdir(exist_ok=True)
    options = json.loads(sys.argv[1])
    try:
        run_trials(fit, [Trial("none")], "nowhere", scheduler=options.pop("unreachable"))
    except (KeyError, ValueError) as error:
        print(error, flush=True)
    trials = [Trial(f"t{x}", {"x": x, "kind": k, "marks": str(marks.resolve())})
              for x, k in enumerate(options.pop("kinds"))]
    results = run_trials(fit, trials, "study", on_result=print_progress, **options)
    assert [r.trial for r in results] == trials
    print(table(results)[["trial", "square"]].to_json(orient="values"))
"""


def start(cwd: Path, *command: str) -> subprocess.Popen[str]:
    """Start a Python command in a process group of its own."""
    (cwd / "study.py").write_text(STUDY)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default::UserWarning:__main__"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env=environment, start_new_session=True, **pipes
    )


@contextlib.contextmanager
def running(cwd: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python command; end it and all that it started in any case."""
    process = start(cwd, *command)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def study(cwd: Path, **options: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return running(cwd, "study.py", json.dumps(options))


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    out, _ = process.communicate(timeout=150)
    assert process.returncode == status, out
    return out


def wait_for(sign: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Return what `sign` returns once that is true; fail when the process ends or time runs out."""
    deadline = time.monotonic() + 120
    while not (found := sign()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def starts(cwd: Path) -> Counter[int]:
    """Return how often each trial was started."""
    return Counter(int(path.name.split("-")[0]) for path in (cwd / "marks").iterdir())


def pid_of(cwd: Path, x: int) -> int | None:
    """Return the process in which a trial was started."""
    texts = [path.read_text() for path in (cwd / "marks").glob(f"{x}-*")] if (cwd / "marks").exists() else []
    return int(texts[0]) if texts and texts[0] else None


def alive(pid: int) -> bool:
    """Return whether a process runs (not whether it only waits to be reaped)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def expect_death(pid: int) -> None:
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid), "a worker outlived its study"


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        with contextlib.suppress(OSError):  # another process has it, which serves as well
            listener.bind(("127.0.0.1", port))
            listener.listen()
        yield


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_study_on_cores_survives_kills_interruptions_and_fatal_trials(tmp_path: Path) -> None:
    kinds = ["plain", "plain", "once", "plain", "once", "forks", "raises", "fatal", "plain"]
    options = {"kinds": kinds, "num_workers": 1}
    with study(tmp_path, **options) as process:
        worker = wait_for(lambda: pid_of(tmp_path, 2), process)
        process.kill()
        process.wait(timeout=30)
        expect_death(worker)
    assert starts(tmp_path) == {0: 1, 1: 1, 2: 1}

    with taken(DASHBOARD_PORT), study(tmp_path, **options) as process:
        worker = wait_for(lambda: pid_of(tmp_path, 4), process)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
        began = time.monotonic()
        out = finish(process, -signal.SIGINT)
        assert time.monotonic() - began < 15
        assert out.splitlines()[-1] == "KeyboardInterrupt"
        assert "distributed" not in re.sub(r'File ".*"', "", out), "dask is quiet"
        expect_death(worker)
    assert starts(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}

    with study(tmp_path, **options) as process:
        out = finish(process)
    # Only what was missing ran, and nothing was held against the trials beside the fatal one.
    assert starts(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 1, 7: 3, 8: 1}
    assert "2 of 9 trials failed, first t6: ArithmeticError: no root" in out
    assert "t7 (FAILED, RuntimeError: its worker process died 3 times" in out
    assert json.loads(_table_line(out)) == [[f"t{x}", x * x] for x in range(9) if x not in (6, 7)]
    record = json.loads((tmp_path / "study" / "trials" / "t5.json").read_text())
    assert record["rows"][0]["threads"] == "1"


def _table_line(out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith("[["))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_study_on_a_scheduler_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(running(tmp_path, *scheduler, "--port", str(port)))
        for _ in range(2):
            stack.enter_context(running(tmp_path, *worker))

        kinds = ["plain", "once", *["plain"] * 6]
        unreachable = f"tcp://127.0.0.1:{free_port()}"
        options = {"kinds": kinds, "scheduler": address, "unreachable": unreachable}
        process = stack.enter_context(study(tmp_path, **options))
        victim = wait_for(lambda: pid_of(tmp_path, 1), process)
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        out = finish(process)
        assert f"a dask scheduler must answer at '{unreachable}'; got none within 5 s" in out
        assert json.loads(_table_line(out)) == [[f"t{x}", x * x] for x in range(8)]
        assert starts(tmp_path) == {x: 2 if x == 1 else 1 for x in range(8)}
        assert len(list((tmp_path / "study" / "trials").iterdir())) == 8

        kinds = [*kinds, "once"]
        process = stack.enter_context(study(tmp_path, kinds=kinds, scheduler=address))
        wait_for(lambda: pid_of(tmp_path, 8), process)
        hub.kill()
        out = finish(process, 1)
        assert f"ConnectionError: the connection to the dask scheduler at {address} was lost" in out


class FakeClient:
    """A client of a scheduler with these workers."""

    class scheduler:
        address = "tcp://host:8786"

    def __init__(self, *threads: int) -> None:
        self.threads = threads

    def nthreads(self) -> dict[str, int]:
        return {f"tcp://worker:{i}": number for i, number in enumerate(self.threads)}


def test_workers_with_threads_are_refused_and_a_lack_of_workers_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _Workers(FakeClient(1, 1)).count() == 2
    with pytest.raises(ValueError, match=r"one thread each.*got workers with 4 threads.*--nthreads 1"):
        _Workers(FakeClient(1, 4)).count()
    workers = _Workers(FakeClient())
    assert workers.count() == 0
    monkeypatch.setattr("vinppl.trials.workers.NO_WORKER_SECONDS", -1)
    with pytest.warns(UserWarning, match="tcp://host:8786 has no workers; waiting"):
        workers.count()
    assert workers.count() == 0


def test_workers_that_cannot_start_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinppl.trials.local.CODE", "raise SystemExit(7)")
    workers = LocalWorkers("tcp://127.0.0.1:1", 1)
    try:
        for _ in range(2 * MAX_FUTILE):
            workers.processes[0].wait(timeout=30)
            workers.replace_dead(useful=True)
        for _ in range(MAX_FUTILE - 1):
            workers.processes[0].wait(timeout=30)
            workers.replace_dead(useful=False)
        workers.processes[0].wait(timeout=30)
        with pytest.raises(RuntimeError, match=r"end as soon as they start \(status 7\)"):
            workers.replace_dead(useful=False)
    finally:
        workers.stop()
