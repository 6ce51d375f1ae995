"""Where tasks run: in this process, on this machine's cores, or on a cluster (`loom.cluster`).

Work is a list of content-addressed tasks. A task's key is the digest of (operation and version, its
settings, its inputs' digests, its output's name, its parameters); when its outputs are in place a
receipt named by that key is written, and a task whose receipt is there and whose outputs have their
sizes is skipped. Resume therefore does not depend on the number of workers nor on the engine.

Operations are module-level functions. Those whose time is spent in compiled code that releases the
GIL run on threads, which start at once; the others run in spawned processes that end with their
parent. An operation's `prepare` (a model to load, a filter to read) runs once a worker.

Tasks carry only plain values and paths, and receipts lie beside the output, so that an engine need say
no more than how to execute what is not yet done.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from loom.artifact import Input, Output, atomic_write, canonical_json, describe, digest_json
from loom.console import console

RECEIPTS = "tasks"  # folder beside the outputs; removed when the artifact's manifest is written


@dataclass(frozen=True)
class Operation:
    """What tasks do.

    `run(state, task, out)` writes the files `task.outputs` below the folder `out`, each atomically, and
    returns what was done; `state` is what `prepare(settings)` returned in this worker, else `settings`.
    """

    name: str
    version: int
    run: Callable[[Any, Task, Path], Done]
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, Any]], Any] | None = None
    threads: bool = False
    memory: int = 0  # bytes a worker may need, where that decides on which node of a cluster it fits

    @cached_property
    def digest(self) -> str:
        """That of name, version and settings: taken once, however many tasks there are."""
        return digest_json([self.name, self.version, self.settings])


@dataclass(frozen=True)
class Task:
    """One piece of work: inputs by digest, plain parameters, outputs relative to the artifact's folder."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def key(self, operation: Operation) -> str:
        return digest_json(
            [
                operation.digest,
                [item.digest for item in self.inputs],
                self.outputs,
                self.parameters,
            ]
        )


@dataclass(frozen=True)
class Done:
    """What a task did: rows by output file, and counters to be summed over tasks."""

    rows: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A task that is done, now or in an earlier run."""

    task: Task
    outputs: tuple[Output, ...]
    counters: Mapping[str, Any]


class Engine(Protocol):
    """Runs tasks; results come in the order of the tasks, whatever order they ran in."""

    workers: int

    def run(
        self, operation: Operation, tasks: Sequence[Task], out: Path, description: str = ""
    ) -> list[Finished]: ...


class ResumingEngine:
    """What engines share: skip what has a receipt, execute the rest, answer in the order of the tasks."""

    workers: int

    def _execute(
        self, operation: Operation, waiting: Sequence[tuple[str, Task]], out: Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Execute tasks in any order, and give each one's key and receipt as it is finished."""
        raise NotImplementedError

    def run(
        self, operation: Operation, tasks: Sequence[Task], out: Path, description: str = ""
    ) -> list[Finished]:
        """Run what is not yet done below `out`; the first failure stops the rest and is raised."""
        receipts = read_receipts(out)
        keys = [task.key(operation) for task in tasks]
        results = {key: done for key in keys if (done := _still_there(receipts.get(key), out)) is not None}
        waiting = [(key, task) for key, task in zip(keys, tasks, strict=True) if key not in results]
        name = description or operation.name
        with console.progress(name, total=len(tasks)) as progress:
            progress.update(len(results))
            for key, receipt in self._execute(operation, waiting, out):
                results[key] = receipt
                progress.advance()
        return [
            Finished(
                task, tuple(Output(**item) for item in results[key]["outputs"]), results[key]["counters"]
            )
            for key, task in zip(keys, tasks, strict=True)
        ]


class LocalEngine(ResumingEngine):
    """This machine: `workers` threads or spawned processes; one worker runs in this process itself."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cores()

    def _execute(
        self, operation: Operation, waiting: Sequence[tuple[str, Task]], out: Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        workers = min(self.workers, len(waiting))
        if workers <= 1:
            worker = TaskWorker(operation, out)
            for key, task in waiting:
                yield key, worker(key, task)
            return
        pool: Executor
        if operation.threads:
            _keep_memory()
            local = threading.local()

            def start() -> None:
                local.worker = TaskWorker(operation, out)

            pool = ThreadPoolExecutor(workers, initializer=start)
            submit: Callable[[str, Task], Future[Any]] = lambda key, task: pool.submit(  # noqa: E731
                lambda: local.worker(key, task)
            )
        else:
            import multiprocessing  # which takes its time, and threads need none of it
            from concurrent.futures import ProcessPoolExecutor

            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(
                workers, context, initializer=_start_process, initargs=(operation, out)
            )
            submit = lambda key, task: pool.submit(_in_process, key, task)  # noqa: E731
        with pool:
            pending = {submit(key, task): key for key, task in waiting}
            try:
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield pending.pop(future), future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


@cache
def _keep_memory() -> None:
    """Have the C library keep the memory that threads give back: tasks ask for the same blocks again and again.

    Else each block is mapped anew, and the kernel clears every page of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        arenas, mapped, trimmed = -8, -3, -1  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        mallopt(arenas, 1)
        mallopt(mapped, 1 << 30)
        mallopt(trimmed, (1 << 31) - 1)


def give_back() -> None:
    """Hand the memory that the C library keeps free back to the system: what comes next needs less, or other, of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class TaskWorker:
    """A worker: what `prepare` made, and the running of one task after another."""

    def __init__(self, operation: Operation, out: Path) -> None:
        self.operation, self.out = operation, out
        self.state = operation.prepare(operation.settings) if operation.prepare else operation.settings

    def __call__(self, key: str, task: Task) -> dict[str, Any]:
        done = self.operation.run(self.state, task, self.out)
        outputs = describe(self.out, task.outputs, done.rows)
        data = canonical_json({"outputs": [asdict(item) for item in outputs], "counters": done.counters})
        with atomic_write(self.out / RECEIPTS / f"{key}.json") as stream:
            stream.write(data)
        receipt: dict[str, Any] = json.loads(data)  # as a resumed run will read it, to the order of keys
        return receipt


_process_worker: TaskWorker | None = None


def _start_process(operation: Operation, out: Path) -> None:
    global _process_worker
    _end_with_parent()
    _process_worker = TaskWorker(operation, out)


def _in_process(key: str, task: Task) -> dict[str, Any]:
    assert _process_worker is not None
    return _process_worker(key, task)


def _end_with_parent() -> None:
    """A spawned worker whose parent was killed ends within a second."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_receipts(out: Path) -> dict[str, dict[str, Any]]:
    """Every receipt below `out`, by task key: one listing of the folder. One cut short counts as none."""
    receipts = {}
    folder = out / RECEIPTS
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                try:
                    receipts[entry.name.removesuffix(".json")] = json.loads(Path(entry.path).read_bytes())
                except ValueError:
                    continue
    return receipts


def read_receipt(out: Path, key: str) -> dict[str, Any] | None:
    """The receipt of one task whose outputs are in place, else None."""
    try:
        return _still_there(json.loads((out / RECEIPTS / f"{key}.json").read_bytes()), out)
    except (OSError, ValueError):
        return None


def _still_there(receipt: dict[str, Any] | None, out: Path) -> dict[str, Any] | None:
    if receipt is None:
        return None
    for item in receipt["outputs"]:
        try:
            if (out / item["path"]).stat().st_size != item["bytes"]:
                return None
        except OSError:
            return None
    return receipt


def clear_receipts(out: Path) -> None:
    """Remove the receipts once the manifest that replaces them is written."""
    folder = out / RECEIPTS
    if folder.is_dir():
        for entry in os.scandir(folder):
            os.unlink(entry.path)
        folder.rmdir()


def clear_work(out: Path, *folders: str) -> None:
    """Remove what only unfinished work needs: receipts, and work folders.

    Also where a run was stopped between its manifest and this, so that equal work leaves equal folders.
    """
    clear_receipts(out)
    for name in folders:
        shutil.rmtree(out / name, ignore_errors=True)


def sum_counters(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum counters key by key; nested mappings are summed within."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                total[key] = sum_counters([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


def available_cores() -> int:
    """Cores this process may use (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
