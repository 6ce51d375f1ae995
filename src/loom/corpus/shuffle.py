"""A true shuffle of documents, in bounded memory: scattered to partitions by a keyed hash, then sorted.

A document's place is the keyed hash of its id, so the order depends on the ids and the seed alone: not on
the files, their split, the workers or the engine. A partition is a range of the hash and becomes one file;
the files in their order are the shuffled corpus. A scattered file holds a frame a partition for every
64 MB that passed, and an index of the frames, so that a partition reads its own parts and no more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import orjson
import zstandard

from loom.artifact import Input, atomic_write
from loom.corpus.dedupe import exact
from loom.corpus.documents import write_lines
from loom.corpus.sampling import keyed_hash
from loom.engine import Done, Engine, Finished, Operation, Task

HELD = 64 << 20  # bytes of rows in memory before they are written out
ORDER_KEY = 0x5C0FF1E  # added to the seed: the draw of documents uses the seed itself
HEAD = struct.Struct("<QI")


def place(identity: str, seed: int) -> int:
    """Where a document stands in the shuffled corpus: 64 bits."""
    return keyed_hash(identity, seed + ORDER_KEY)


class Scatter:
    """Writes documents to `path`, by partition, with an index of the frames at `path` + `.frames`."""

    def __init__(self, path: Path, partitions: int, seed: int) -> None:
        self._path, self._partitions, self._seed = path, partitions, seed
        self._held: dict[int, bytearray] = {}
        self._size = 0
        self._frames: list[tuple[int, int, int]] = []
        self._at = 0
        self._write = atomic_write(path)

    def __enter__(self) -> Scatter:
        self._stream: IO[bytes] = self._write.__enter__()
        return self

    def add(self, document: dict[str, Any]) -> None:
        hashed = place(document["id"], self._seed)
        line = orjson.dumps(document)
        self._held.setdefault(hashed * self._partitions >> 64, bytearray()).extend(
            HEAD.pack(hashed, len(line)) + line
        )
        self._size += len(line)
        if self._size >= HELD:
            self._flush()

    def _flush(self) -> None:
        pack = zstandard.ZstdCompressor(level=1)
        for partition in sorted(self._held):
            frame = pack.compress(bytes(self._held[partition]))
            self._stream.write(frame)
            self._frames.append((partition, self._at, len(frame)))
            self._at += len(frame)
        self._held, self._size = {}, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._write.__exit__(kind, error, trace)
        if error is None:
            exact.save(
                self._path.with_name(self._path.name + ".frames"),
                frames=np.array(self._frames, np.int64).reshape(-1, 3),
            )


def gather(scattered: Sequence[Finished], partitions: int, out: Path, engine: Engine) -> list[Finished]:
    """Sort every partition into `out/documents/part-NNNNN.jsonl.zst`. `scattered`: (data, frames) outputs."""
    inputs = tuple(Input(item.path, item.digest) for done in scattered for item in done.outputs)
    settings = {"scattered": [done.task.outputs[0] for done in scattered]}
    tasks = [
        Task(inputs, (f"documents/part-{partition:05d}.jsonl.zst",), {"partition": partition})
        for partition in range(partitions)
    ]
    return engine.run(Operation("shuffle", 1, _gather, settings, threads=True), tasks, out, "shuffle")


def _gather(settings: Any, task: Task, out: Path) -> Done:
    rows: list[tuple[int, bytes]] = []
    for name in settings["scattered"]:
        frames = exact.load(out / f"{name}.frames")["frames"]
        mine = frames[frames[:, 0] == task.parameters["partition"]]
        with open(out / name, "rb") as stream:
            for _, start, size in mine.tolist():
                stream.seek(start)
                rows += _rows(zstandard.ZstdDecompressor().decompress(stream.read(size)))
    rows.sort()  # by hash, then by the line itself, so that equal ids have an order too
    with write_lines(out / task.outputs[0]) as made:
        for _, line in rows:
            made.write(line + b"\n")
    return Done({task.outputs[0]: len(rows)}, {"documents": len(rows)})


def _rows(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        hashed, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        yield hashed, data[at : at + size]
        at += size
