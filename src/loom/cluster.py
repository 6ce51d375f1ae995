"""Tasks on a Ray cluster: the same tasks, the same receipts, the same bytes as on this machine.

A worker is an actor that holds one core and what the operation's `prepare` made, so a model is loaded
once a worker. The driver hands a task to whichever worker is free. Where a worker or its node is lost,
its task goes to another and a new worker is asked for; what the lost one had finished is found by its
receipt. Outputs are renamed into place, so that half a file is never taken for a whole one.

All nodes must see the output folder and the inputs under the same paths (a shared file system), and must
have the same Loom; both are checked when a worker starts.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loom.artifact import atomic_write
from loom.console import console
from loom.engine import RECEIPTS, Operation, ResumingEngine, Task, TaskWorker, read_receipt
from loom.errors import LoomError
from loom.version import VERSION

ATTEMPTS = 4  # workers that a task, or a start, may lose before it is called at fault
ORDINARY = 512 << 20  # bytes that every core has: below this nothing is asked of the cluster
PATIENCE = 30.0  # seconds without any answer before the driver says what it waits for


class RayEngine(ResumingEngine):
    """A Ray cluster. `address`: `auto` (RAY_ADDRESS, or the cluster this machine is part of), `host:port`,
    `ray://host:port`, or `local` for a cluster of this machine that ends with this process.

    `workers` is at most how many actors run at once; by default one for each core of the cluster. They are
    kept from one operation to the next and end with this process, however it ends.
    """

    def __init__(self, address: str = "auto", workers: int | None = None) -> None:
        self._ray = connect(address, workers)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        self.workers = max(1, min(workers or cores, cores))
        self._kept: list[Any] = []
        self._memory = 0  # bytes reserved for each that is kept

    def _execute(
        self, operation: Operation, waiting: Sequence[tuple[str, Task]], out: Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        if not waiting:
            return
        memory = operation.memory if operation.memory > ORDINARY else 0
        if self._memory != memory:
            self._let_go()
            self._memory = memory
        kept, self._kept = self._kept, []
        pool = _Pool(self._ray, operation, out, min(self.workers, len(waiting)), kept, memory)
        try:
            yield from pool.work(waiting)
        finally:
            self._kept = pool.close()

    def _let_go(self) -> None:
        for worker in self._kept:
            self._ray.kill(worker, no_restart=True)
        self._kept = []


def connect(address: str, workers: int | None = None) -> Any:
    """The module `ray`, connected. Raises `LoomError` where Ray is not installed or no cluster answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Loom reports to nobody
    try:
        import ray
    except ImportError:
        raise LoomError(
            "The engine `ray` needs Ray, which is not installed: pip install 'loom-lm[ray]', on every node."
        ) from None
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise LoomError(
            f"No Ray cluster answers at {address!r} ({str(error).splitlines()[0]}). Start one with `ray start "
            f"--head` and name it (--address HOST:6379), or let Loom start its own with --address local."
        ) from None
    return ray


class RemoteWorker:
    """What runs on a node: one core, one task at a time."""

    def __init__(self, folder: str, path: Sequence[str]) -> None:
        for entry in path:
            if entry not in sys.path:
                sys.path.append(entry)
        if os.path.isdir(folder):
            os.chdir(folder)  # tasks may name files relative to where the command was given
        self._worker: TaskWorker | None = None

    def start(self, operation: Operation, out: str, token: str, version: str) -> int:
        """Check that this node is fit, and load what the operation needs. Returns the process id."""
        node = os.uname().nodename
        if version != VERSION:
            raise LoomError(
                f"The node {node} has Loom {VERSION}, but this is Loom {version}: install the same one there."
            )
        if not (Path(out) / RECEIPTS / f".{token}").is_file():
            raise LoomError(
                f"The node {node} does not see {out}, so nothing it wrote would arrive. Every node of the "
                f"cluster needs the same shared folders under the same paths."
            )
        self._worker = TaskWorker(operation, Path(out))
        return os.getpid()

    def run(self, key: str, task: Task) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker(key, task)


class _Pool:
    """The workers of one operation. Everything outstanding is a reference with its worker and its task."""

    def __init__(
        self, ray: Any, operation: Operation, out: Path, size: int, kept: Sequence[Any], memory: int
    ) -> None:
        self._ray, self._operation, self._out = ray, operation, Path(os.path.abspath(out))
        self._token = secrets.token_hex(8)
        with atomic_write(self._out / RECEIPTS / f".{self._token}"):
            pass
        options: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        if memory:
            options["memory"] = memory
        self._remote = ray.remote(RemoteWorker).options(**options)
        self._workers: list[Any] = list(kept)
        self._idle: list[Any] = []
        self._outstanding: dict[Any, tuple[Any, tuple[str, Task] | None]] = {}
        self._lost: Counter[str] = Counter()
        for worker in kept[:size]:
            self._start(worker)
        for _ in range(size - len(kept)):
            self._launch()

    def _launch(self) -> None:
        worker = self._remote.remote(os.getcwd(), [path for path in sys.path if path])
        self._workers.append(worker)
        self._start(worker)

    def _start(self, worker: Any) -> None:
        started = worker.start.remote(self._operation, str(self._out), self._token, VERSION)
        self._outstanding[started] = (worker, None)

    def work(self, waiting: Sequence[tuple[str, Task]]) -> Iterator[tuple[str, dict[str, Any]]]:
        queue = deque(waiting)
        left = len(waiting)
        said = False
        while left:
            while queue and self._idle:
                worker, item = self._idle.pop(), queue.popleft()
                self._outstanding[worker.run.remote(*item)] = (worker, item)
            done, _ = self._ray.wait(list(self._outstanding), num_returns=1, timeout=PATIENCE)
            if not done:
                if not said and all(item is None for _, item in self._outstanding.values()):
                    console.warn(
                        "the cluster has no free core and memory yet; still waiting for a worker to start"
                    )
                    said = True
                continue
            worker, answered = self._outstanding.pop(done[0])
            answer = self._answer(done[0], worker, answered)
            if answer is None:  # the worker is lost
                if answered is None:
                    continue
                key, task = answered
                receipt = read_receipt(self._out, key)
                if receipt is None:
                    queue.appendleft((key, task))
                    continue
                answer = receipt
            else:
                self._idle.append(worker)
            if answered is not None:
                left -= 1
                yield answered[0], answer

    def _answer(self, reference: Any, worker: Any, item: tuple[str, Task] | None) -> Any:
        """What the worker answered; None if it is lost, and then another was asked for."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayError as error:
            self._workers.remove(worker)
            what = item[1].outputs[0] if item else "their start"
            self._lost[what] += 1
            if self._lost[what] >= (ATTEMPTS if item else ATTEMPTS + len(self._workers)):
                raise LoomError(
                    f"{self._operation.name}: {self._lost[what]} workers were lost over {what} "
                    f"({str(error).splitlines()[0]}). Out of memory, most likely: give nodes more, or run "
                    f"fewer workers on each. What is finished is kept; the same command goes on from there."
                ) from None
            self._launch()
            return None

    def close(self) -> list[Any]:
        """The workers that are free, for the next operation; those that are not are ended.

        A task that still ran (another one failed) leaves at most a temporary file.
        """
        (self._out / RECEIPTS / f".{self._token}").unlink(missing_ok=True)
        for worker, _ in self._outstanding.values():
            self._workers.remove(worker)
            self._ray.kill(worker, no_restart=True)
        return self._workers
