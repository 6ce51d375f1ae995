"""Exact duplicates by 128-bit fingerprints, partitioned by hash, each partition consumed in input order.

Two fingerprints agree by chance once in 2^128 pairs. A partition needs about 56 bytes an entry, so the
number of partitions bounds memory whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loom.artifact import atomic_write
from loom.errors import LoomError

Prints = npt.NDArray[np.uint64]
ENTRIES = 1 << 25  # entries a partition should hold


def partitions_for(entries: int) -> int:
    """A power of two of partitions, so that each holds about `ENTRIES`."""
    count = 1
    while count * ENTRIES < entries:
        count *= 2
    return count


def memory_for(entries: int) -> int:
    """Bytes a worker needs for a partition of so many entries in all: fingerprints, places and a table."""
    return 64 * -(-entries // partitions_for(entries))


def partition_of(prints: Prints, partitions: int) -> npt.NDArray[np.int64]:
    """The partition of each fingerprint, by the first bits of its second hash."""
    if partitions == 1:
        return np.zeros(prints.shape[0], np.int64)
    shift = np.uint64(64 - (partitions.bit_length() - 1))
    return (prints[:, 1] >> shift).astype(np.int64)


def spread(name: str, prints: Prints) -> dict[str, npt.NDArray[Any]]:
    """Fingerprints uint64[n, 2] as arrays to be saved, so that a partition is a range of them.

    `name`: uint64[2, n], second hashes in ascending order above the first ones; `name`_rows: their places.
    """
    order = np.argsort(prints[:, 1], kind="stable")
    return {name: prints[order][:, ::-1].T, f"{name}_rows": order.astype(np.uint32)}


def share(
    held: Mapping[str, npt.NDArray[Any]], name: str, partition: int, partitions: int
) -> tuple[Prints, npt.NDArray[np.int64]]:
    """What of `spread` falls into a partition, in the order of the rows: (uint64[m, 2], rows int64[m]).

    Only that range is read.
    """
    seconds = held[name][0]
    low, high = partition * 2**64 // partitions, (partition + 1) * 2**64 // partitions - 1
    first = int(np.searchsorted(seconds, np.uint64(low)))
    last = int(np.searchsorted(seconds, np.uint64(high), "right"))
    rows = np.asarray(held[f"{name}_rows"][first:last]).astype(np.int64)
    order = np.argsort(rows)
    prints = np.ascontiguousarray(np.asarray(held[name][:, first:last])[::-1].T[order])
    return prints, rows[order]


ENTRY = np.dtype([("name", "S40"), ("kind", "S8"), ("shape", "<i8", 4), ("axes", "<i8"), ("start", "<i8")])
TRAILER = 16  # bytes at the end: how many arrays, and MAGIC
MAGIC = b"LOOMARR1"


def save(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Arrays in one file, without times, atomically; a table at its end says where each one is."""
    save_arrays(path, arrays)


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], durable: bool = True) -> None:
    """`save`, with `atomic_write`'s `durable`."""
    entries = np.zeros(len(arrays), ENTRY)
    at = 0
    with atomic_write(path, durable) as stream:
        for number, name in enumerate(sorted(arrays, key=str.encode)):
            array = np.ascontiguousarray(arrays[name])
            if len(name) > ENTRY["name"].itemsize or array.ndim > 4:
                raise ValueError(f"{name!r}: names have up to 40 letters, arrays up to four axes")
            shape = (*array.shape, *([0] * (4 - array.ndim)))
            entries[number] = (name.encode(), array.dtype.str.encode(), shape, array.ndim, at)
            padding = -array.nbytes % 8
            stream.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
            stream.write(b"\0" * padding)
            at += array.nbytes + padding
        stream.write(entries.tobytes() + len(arrays).to_bytes(8, "little") + MAGIC)


def _table(path: Path) -> npt.NDArray[Any]:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(max(0, size - TRAILER))
        trailer = stream.read()
    if trailer[8:] != MAGIC:
        raise LoomError(
            f"{path} is cut short or no work file of Loom's. Remove it and run the command again."
        )
    count = int.from_bytes(trailer[:8], "little")
    if not count:
        return np.zeros(0, ENTRY)
    return np.memmap(path, ENTRY, "r", size - TRAILER - count * ENTRY.itemsize, (count,))


def _array(path: Path, entry: Any) -> npt.NDArray[Any]:
    dtype = np.dtype(entry["kind"].decode())
    shape = tuple(entry["shape"][: entry["axes"]].tolist())
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", int(entry["start"]), shape))  # which kernels take


def mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What `save` wrote, mapped: only what is looked at is read."""
    return {entry["name"].decode(): _array(path, entry) for entry in _table(path)}


def one(path: Path, name: str) -> npt.NDArray[Any] | None:
    """One of the arrays, mapped, found by bisection: nothing else of the file is read. None if not there."""
    table = _table(path)
    at = int(np.searchsorted(table["name"], name.encode()))
    return _array(path, table[at]) if at < table.size and table["name"][at] == name.encode() else None


def load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What `save` wrote, in memory."""
    return {name: np.array(array) for name, array in mapped(path).items()}


def duplicates(prints: Sequence[Prints]) -> list[npt.NDArray[np.int64]]:
    """Of each file's fingerprints, all of one partition, the repeated ones.

    Returns for each file int64[d, 3]: the entry's index, and the file and index of the first occurrence.
    """
    from loom.corpus.kernels.fingerprints import first_of

    files = np.repeat(np.arange(len(prints)), [part.shape[0] for part in prints])
    places = np.concatenate([np.arange(part.shape[0]) for part in prints])
    first = first_of(np.ascontiguousarray(np.concatenate(prints)))
    repeated = np.flatnonzero(first != np.arange(first.size))
    table = np.stack([places[repeated], files[first[repeated]], places[first[repeated]]], axis=1)
    ends = np.searchsorted(files[repeated], np.arange(len(prints)), "right")
    return np.split(table, ends[:-1])
