"""Results depend on the work alone: not on workers, threads, order, nor on how often it was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loom.artifact import Input, atomic_write
from loom.engine import RECEIPTS, Done, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError


def load_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"suffix": settings["suffix"], "pid": os.getpid()}


def double(state: dict[str, Any], task: Task, out: Path) -> Done:
    number = task.parameters["number"]
    if number == task.parameters.get("fail"):
        raise LoomError(f"task {number} fails")
    time.sleep(task.parameters.get("seconds", 0))
    with atomic_write(out / task.outputs[0]) as stream:
        stream.write(f"{2 * number}{state['suffix']}".encode())
    return Done({task.outputs[0]: 1}, {"sum": number, "by": {"odd": number % 2}})


def operation(threads: bool = False, version: int = 1) -> Operation:
    return Operation("double", version, double, {"suffix": "!"}, load_model, threads)


def tasks(count: int, **parameters: Any) -> list[Task]:
    return [
        Task((Input(f"in-{i}", f"{i:032x}"),), (f"out-{i}.txt",), {"number": i, **parameters})
        for i in range(count)
    ]


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (2, True), (5, True), (2, False)])
def test_the_same_results_whatever_runs_them(tmp_path: Path, workers: int, threads: bool) -> None:
    results = LocalEngine(workers).run(operation(threads), tasks(7), tmp_path)
    assert [r.outputs[0].path for r in results] == [f"out-{i}.txt" for i in range(7)]
    assert [(tmp_path / f"out-{i}.txt").read_text() for i in range(7)] == [f"{2 * i}!" for i in range(7)]
    assert sum_counters([r.counters for r in results]) == {"sum": 21, "by": {"odd": 3}}
    reference = LocalEngine(1).run(operation(), tasks(7), tmp_path / "reference")
    assert [r.outputs for r in results] == [r.outputs for r in reference]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    engine = LocalEngine(1)
    engine.run(operation(), tasks(3), tmp_path)
    before = [(tmp_path / f"out-{i}.txt").stat().st_mtime_ns for i in range(3)]
    again = LocalEngine(2).run(operation(threads=True), tasks(3), tmp_path)
    assert [(tmp_path / f"out-{i}.txt").stat().st_mtime_ns for i in range(3)] == before
    assert [r.counters["sum"] for r in again] == [0, 1, 2]


def test_a_changed_setting_version_or_input_is_new_work() -> None:
    task = tasks(1)[0]
    keys = {
        task.key(operation()),
        task.key(operation(version=2)),
        task.key(Operation("double", 1, double, {"suffix": "?"}, load_model)),
        Task((Input("in-0", "f" * 32),), task.outputs, task.parameters).key(operation()),
        Task(task.inputs, task.outputs, {"number": 1}).key(operation()),
        Task(task.inputs, ("other.txt",), task.parameters).key(operation()),
    }
    assert len(keys) == 6
    moved = Task((Input("elsewhere", task.inputs[0].digest),), task.outputs, task.parameters)
    assert moved.key(operation()) == task.key(operation())


def test_an_output_cut_short_is_made_again(tmp_path: Path) -> None:
    LocalEngine(1).run(operation(), tasks(2), tmp_path)
    (tmp_path / "out-1.txt").write_bytes(b"")
    LocalEngine(1).run(operation(), tasks(2), tmp_path)
    assert (tmp_path / "out-1.txt").read_text() == "2!"


@pytest.mark.parametrize("threads", [True, False])
def test_a_failure_is_raised_and_what_was_done_is_kept(tmp_path: Path, threads: bool) -> None:
    with pytest.raises(LoomError, match="task 3 fails"):
        LocalEngine(2).run(operation(threads), tasks(6, fail=3), tmp_path)
    done = len(list((tmp_path / RECEIPTS).glob("*.json")))
    assert done == len(list(tmp_path.glob("out-*.txt"))) > 0


def test_receipts_go_when_the_manifest_is_there(tmp_path: Path) -> None:
    LocalEngine(1).run(operation(), tasks(2), tmp_path)
    clear_receipts(tmp_path)
    assert not (tmp_path / RECEIPTS).exists()


PROGRAM = """
import sys
from pathlib import Path
from loom.engine import LocalEngine
from tests.test_engine import operation, tasks
if __name__ == "__main__":
    LocalEngine(2).run(operation(threads=sys.argv[2] == "threads"), tasks(8, seconds=0.15), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_killed_and_run_again_gives_the_same_bytes_and_leaves_no_process(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(program), str(out), kind]
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("out-*.txt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 120
    while _group_is_alive(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _group_is_alive(running.pid), "workers outlive their parent"
    subprocess.run(command, env=environment, check=True)
    assert sorted(p.name for p in out.glob("out-*.txt")) == [f"out-{i}.txt" for i in range(8)]
    assert [(out / f"out-{i}.txt").read_text() for i in range(8)] == [f"{2 * i}!" for i in range(8)]


def _group_is_alive(group: int) -> bool:
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
