"""An index from a document's id to its file and row, partitioned by hash: a look-up opens one partition.

Every file's ids become a sorted table of 64-bit hashes with their rows. A partition gathers one range of
the hash from every table (found by bisection, without reading the rest) and writes it sorted. Ids whose
hashes agree by chance are both found; the caller compares the ids themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loom.artifact import Artifact, Input
from loom.corpus.dedupe import exact
from loom.corpus.sampling import keyed_hash
from loom.engine import Done, Engine, Finished, Operation, Task
from loom.errors import LoomError

FOLDER = "ids"
ENTRIES = 1 << 22  # entries of a partition: 16 bytes each
SEED = 0
FILES_OPEN = 256


def table(ids: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """A file's ids as arrays to be saved: `id_hashes` uint64[n], sorted, and `id_rows` uint32[n]."""
    hashes = np.array([keyed_hash(identity, SEED) for identity in ids], np.uint64)
    order = np.argsort(hashes, kind="stable")
    return {"id_hashes": hashes[order], "id_rows": order.astype(np.uint32)}


def in_order(ids: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """A file's ids by row, to be saved: `id_bytes` uint8 and `id_ends` int64[n]."""
    encoded = [identity.encode() for identity in ids]
    ends = np.cumsum([len(identity) for identity in encoded]).astype(np.int64)
    return {"id_bytes": np.frombuffer(b"".join(encoded), np.uint8), "id_ends": ends}


class Rows:
    """Ids by file and row, from files that hold `in_order`'s arrays; of each only what is asked for is read."""

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self._out, self._names = out, names
        self._open: dict[int, tuple[Any, Any]] = {}

    def at(self, file: int, row: int) -> str:
        if file not in self._open:
            if len(self._open) >= FILES_OPEN:
                self._open.clear()
            path = self._out / self._names[file]
            self._open[file] = exact.one(path, "id_ends"), exact.one(path, "id_bytes")
        ends, data = self._open[file]
        start = int(ends[row - 1]) if row else 0
        return bytes(data[start : int(ends[row])]).decode()


def every(path: Path) -> Iterator[str]:
    """All ids of such a file, by row."""
    ends, data = exact.one(path, "id_ends"), exact.one(path, "id_bytes")
    assert ends is not None and data is not None
    text, start = data.tobytes(), 0
    for end in ends.tolist():
        yield text[start:end].decode()
        start = end


def write(tables: Sequence[Finished], documents: int, out: Path, engine: Engine) -> list[Finished]:
    """Gather the tables (first outputs of `tables`, in the order of the files) into `out/ids/`."""
    partitions = 1
    while partitions * ENTRIES < documents:
        partitions *= 2
    inputs = tuple(Input(done.outputs[0].path, done.outputs[0].digest) for done in tables)
    names = [done.task.outputs[0] for done in tables]
    tasks = [
        Task(inputs, (f"{FOLDER}/{p:05d}-of-{partitions:05d}.ids",), {"partition": p, "of": partitions})
        for p in range(partitions)
    ]
    operation = Operation("index ids", 1, _gather, {"tables": names}, threads=True)
    return engine.run(operation, tasks, out, "index of ids")


def _gather(settings: Any, task: Task, out: Path) -> Done:
    low, high = bounds(task.parameters["partition"], task.parameters["of"])
    hashes, files, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    for number, name in enumerate(settings["tables"]):
        held = exact.mapped(out / name)
        first = int(np.searchsorted(held["id_hashes"], np.uint64(low)))
        last = int(np.searchsorted(held["id_hashes"], np.uint64(high), "right"))
        hashes.append(np.asarray(held["id_hashes"][first:last]))
        rows.append(np.asarray(held["id_rows"][first:last]))
        files.append(np.full(last - first, number, np.uint32))
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    exact.save(
        out / task.outputs[0],
        hashes=every[order],
        files=np.concatenate(files)[order],
        rows=np.concatenate(rows)[order],
    )
    return Done({task.outputs[0]: every.size})


def bounds(partition: int, partitions: int) -> tuple[int, int]:
    """The first and the last hash of a partition."""
    return partition * 2**64 // partitions, (partition + 1) * 2**64 // partitions - 1


def places(identity: str, artifact: Artifact) -> Iterator[tuple[int, int]]:
    """(file, row from 0) of every document whose id has this hash.

    Raises `LoomError` for an artifact without an index.
    """
    names = [item.path for item in artifact.outputs if item.path.startswith(f"{FOLDER}/")]
    if not names:
        raise LoomError(
            f"{artifact.path} has no index of ids, so it cannot say what became of one document. It was made "
            f"by an older Loom: remove the folder and run the same command again."
        )
    hashed = keyed_hash(identity, SEED)
    held = exact.mapped(artifact.path / sorted(names)[hashed * len(names) >> 64])
    first = int(np.searchsorted(held["hashes"], np.uint64(hashed)))
    last = int(np.searchsorted(held["hashes"], np.uint64(hashed), "right"))
    yield from ((int(held["files"][at]), int(held["rows"][at])) for at in range(first, last))
