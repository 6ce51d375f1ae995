"""Exact duplicates by 128-bit fingerprints, partitioned by hash, each partition consumed in input order.

Two fingerprints agree by chance once in 2^128 pairs. A partition needs about 56 bytes an entry, so the
number of partitions bounds memory whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loom.artifact import atomic_write

Prints = npt.NDArray[np.uint64]
ENTRIES = 1 << 25  # entries a partition should hold: about 2 GB


def partitions_for(entries: int) -> int:
    """A power of two of partitions, so that each holds about `ENTRIES`."""
    count = 1
    while count * ENTRIES < entries:
        count *= 2
    return count


def partition_of(prints: Prints, partitions: int) -> npt.NDArray[np.int64]:
    """The partition of each fingerprint, by bits that `first_of` does not use first."""
    return (prints[:, 1] >> np.uint64(40)).astype(np.int64) & (partitions - 1)


def save(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Arrays in one file, without times, atomically."""
    with atomic_write(path) as stream:
        for name in sorted(arrays):
            header = f"{name} {arrays[name].dtype.str} {' '.join(map(str, arrays[name].shape))}\n"
            stream.write(header.encode())
            stream.write(np.ascontiguousarray(arrays[name]).tobytes())


def load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What `save` wrote."""
    out = {}
    with open(path, "rb") as stream:
        while header := stream.readline():
            name, kind, *shape = header.decode().split()
            dtype = np.dtype(kind)
            sizes = tuple(map(int, shape))
            data = stream.read(int(np.prod(sizes)) * dtype.itemsize)
            out[name] = np.frombuffer(data, dtype).reshape(sizes)
    return out


def mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What `save` wrote, mapped: only what is looked at is read."""
    out = {}
    with open(path, "rb") as stream:
        while header := stream.readline():
            name, kind, *shape = header.decode().split()
            dtype, sizes = np.dtype(kind), tuple(map(int, shape))
            count, start = int(np.prod(sizes)), stream.tell()
            out[name] = (
                np.memmap(path, dtype, "r", start, sizes) if count else np.zeros(sizes, dtype)
            )  # fmt: skip
            stream.seek(start + count * dtype.itemsize)
    return out


def duplicates(prints: Sequence[Prints], partition: int, partitions: int) -> list[npt.NDArray[np.int64]]:
    """Of each file's fingerprints the repeated ones that fall into `partition`.

    Returns for each file int64[d, 3]: the entry's index, and the file and index of the first occurrence.
    """
    from loom.corpus.kernels.fingerprints import first_of

    chosen = [np.flatnonzero(partition_of(part, partitions) == partition) for part in prints]
    files = np.repeat(np.arange(len(prints)), [where.size for where in chosen])
    places = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    every = np.concatenate([part[where] for part, where in zip(prints, chosen, strict=True)])
    first = first_of(np.ascontiguousarray(every))
    repeated = np.flatnonzero(first != np.arange(first.size))
    table = np.stack([places[repeated], files[first[repeated]], places[first[repeated]]], axis=1)
    owner = files[repeated]
    return [table[owner == index] for index in range(len(prints))]
