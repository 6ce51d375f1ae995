"""Pieces of arrays put into another order: what sorting documents comes down to."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from loom.native import intrinsic, kernel

WRITTEN = 1 << 22  # bytes gathered before they are written: what stays in the processor's cache
LET_GO = 1 << 24  # bytes written before the pages of the files that they came from are given back


class Mapped:
    """Files of ids, mapped; pages that were read count as this process's memory until they are let go."""

    def __init__(self, paths: Sequence[Path], dtype: np.dtype[Any]) -> None:
        self.arrays: list[NDArray[Any]] = []
        self._maps: list[mmap.mmap] = []
        for path in paths:
            if not path.stat().st_size:
                self.arrays.append(np.zeros(0, dtype))
                continue
            with open(path, "rb") as stream:
                self._maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            self.arrays.append(np.frombuffer(self._maps[-1], dtype))

    def let_go(self) -> None:
        """Give the pages back to the system; whoever looks again finds them in its cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for held in self._maps:
                held.madvise(mmap.MADV_DONTNEED)


@intrinsic("void", "array", "int64", "array", "int64", "int64")
def MOVE(builder: Any, out: Any, to: Any, data: Any, at: Any, size: Any) -> None:
    """Copy `size` bytes of `data[at:]` to `out[to:]`, by the C library."""
    from numba.core.cgutils import raw_memcpy

    raw_memcpy(builder, builder.gep(out, [to]), builder.gep(data, [at]), size, 1)  # type: ignore[no-untyped-call]


@kernel
def put(out, data, starts, ends, targets):  # type: ignore[no-untyped-def]
    """Copy the bytes `data[starts[k]:ends[k]]` to `out[targets[k]:]`."""
    for k in range(starts.size):
        MOVE(out, targets[k], data, starts[k], ends[k] - starts[k])


def write_pieces(
    stream: IO[bytes],
    data: Sequence[NDArray[Any]],
    owner: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    let_go: Callable[[], None] | None = None,
) -> None:
    """Write `data[owner[k]][starts[k]:ends[k]]` for every k in turn, some megabytes at a time.

    `let_go` is called every `LET_GO` bytes.
    """
    if not starts.size:
        return
    size = data[0].itemsize
    views = [np.asarray(array).view(np.uint8) for array in data]
    starts, ends = starts * size, ends * size
    after = np.cumsum(ends - starts)
    first = kept = 0
    while first < starts.size:
        before = int(after[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(after, before + WRITTEN, "right")))
        here = slice(first, last)
        out = np.empty(int(after[last - 1]) - before, np.uint8)
        targets = after[here] - before - (ends[here] - starts[here])
        order = np.argsort(owner[here], kind="stable")
        owners = owner[here][order]
        cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), owners.size]
        for low, high in pairwise(cuts):
            mine = order[low:high]
            put(out, views[int(owners[low])], starts[here][mine], ends[here][mine], targets[mine])
        stream.write(out.data)
        first = last
        kept += out.size
        if let_go is not None and kept >= LET_GO:
            let_go()
            kept = 0
