"""Sorting a text's suffixes: pieces by divsufsort, then ranges of the whole order from all pieces.

A piece is sorted with `lookahead` tokens of what follows it, so suffixes that agree for longer than
that stand in an order of convenience; a query is never longer, so every answer is exact.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loom.artifact import Input, Output, atomic_write
from loom.engine import Done, Finished, Operation, Task
from loom.errors import LoomError
from loom.trace import kernels
from loom.trace.layout import TABLE, TOKENS, pointer_width

LOOKAHEAD = 100_000  # tokens; also the longest query
RANGE_TOKENS = 1 << 23  # entries merged at a time
SAMPLES = 64  # suffixes drawn from a piece for each range, to part the order evenly


def piece_tasks(
    texts: Mapping[str, Output], dtype: np.dtype[Any], piece_tokens: int, lookahead: int, work: str
) -> tuple[Operation, list[Task]]:
    """A task a piece; `texts` are the shards' texts by name, their rows in tokens."""
    tasks = []
    for name, text in texts.items():
        number = int(name.rpartition(".")[2])
        pieces = -(-text.rows // piece_tokens)
        edges = [text.rows * piece // pieces for piece in range(pieces + 1)]
        for piece in range(pieces):
            output = f"{TABLE}.{number}" if pieces == 1 else f"{work}/piece-{number}-{piece:05d}"
            span = {"shard": number, "first": edges[piece], "last": edges[piece + 1], "whole": pieces == 1}
            tasks.append(Task((Input(name, text.digest),), (output,), span))
    settings = {"dtype": dtype.str, "lookahead": lookahead}
    return Operation("sort suffixes", 1, run_sort, settings, threads=True), tasks


def open_text(out: Path, number: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A shard's ids with separators, mapped from disk."""
    return np.asarray(np.memmap(out / f"{TOKENS}.{number}", dtype, mode="r"))


def run_sort(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Sort the suffixes that start in one piece: uint32 offsets in the piece, or the table itself."""
    span = task.parameters
    dtype = np.dtype(settings["dtype"])
    text = open_text(out, span["shard"], dtype)
    piece = text[span["first"] : span["last"] + (0 if span["whole"] else settings["lookahead"])]
    order = sort_suffixes(piece, span["last"] - span["first"])
    with atomic_write(out / task.outputs[0]) as stream:
        if not span["whole"]:
            stream.write(memoryview(order))  # type: ignore[arg-type]
        else:
            width = pointer_width(len(text) * dtype.itemsize)
            for at in range(0, len(order), RANGE_TOKENS):
                part = kernels.packed_entries(order[at : at + RANGE_TOKENS], dtype.itemsize, width)
                stream.write(memoryview(part))
    return Done({task.outputs[0]: len(order)})


def sort_suffixes(tokens: NDArray[Any], keep: int) -> NDArray[np.uint32]:
    """The offsets below `keep` of `tokens`, in the order of their suffixes' little-endian bytes.

    divsufsort (Mori, libdivsufsort) sorts every byte's suffix; those that start inside a token are left
    out. The library is called directly, because that frees the GIL and copies nothing.
    """
    from pydivsufsort.dll import libdivsufsort, libdivsufsort64

    data = np.ascontiguousarray(tokens).view(np.uint8)
    small = len(data) < 2**31
    order = np.empty(len(data), np.int32 if small else np.int64)
    sorter, count = (
        (libdivsufsort.divsufsort, ctypes.c_int32(len(data)))
        if small
        else (
            libdivsufsort64.divsufsort64,
            ctypes.c_int64(len(data)),
        )
    )
    where = [ctypes.c_void_p(array.ctypes.data) for array in (data, order)]
    if len(data) and sorter(*where, count) != 0:
        raise LoomError(
            f"Sorting {len(tokens):,} tokens failed for want of memory: give fewer --piece-tokens."
        )
    kept = np.empty(keep, np.uint32)
    found = kernels.token_entries(order, tokens.dtype.itemsize, keep, kept)
    assert found == keep
    return kept


def merge_tasks(
    pieces: Sequence[Finished],
    texts: Mapping[str, Output],
    dtype: np.dtype[Any],
    lookahead: int,
    out: Path,
    work: str,
) -> tuple[Operation, list[Task]]:
    """A task a range of each shard's order: how far each piece reaches is worked out here."""
    by_shard: dict[int, list[Finished]] = {}
    for piece in pieces:
        if not piece.task.parameters["whole"]:
            by_shard.setdefault(piece.task.parameters["shard"], []).append(piece)
    tasks = []
    for number, mine in sorted(by_shard.items()):
        text = open_text(out, number, dtype)
        runs = [_open_piece(out, piece.task.outputs[0]) for piece in mine]
        bases = [piece.task.parameters["first"] for piece in mine]
        cuts = part_order(text, runs, bases, lookahead)
        inputs = tuple(Input(item.path, item.digest) for piece in mine for item in piece.outputs)
        for part, (low, high) in enumerate(pairwise(cuts)):
            tasks.append(
                Task(
                    inputs,
                    (f"{work}/range-{number}-{part:05d}",),
                    {"shard": number, "bases": bases, "low": low, "high": high},
                )
            )
    settings = {"dtype": dtype.str, "lookahead": lookahead}
    return Operation("merge pieces", 1, run_merge, settings, threads=True), tasks


def part_order(
    text: NDArray[Any], runs: Sequence[NDArray[np.uint32]], bases: Sequence[int], lookahead: int
) -> list[list[int]]:
    """Where to cut every run so that ranges hold about `RANGE_TOKENS`: positions [ranges + 1][runs]."""
    total = sum(map(len, runs))
    ranges = max(1, -(-total // RANGE_TOKENS))
    size = text.dtype.itemsize
    samples = [
        int(run[at]) + base
        for run, base in zip(runs, bases, strict=True)
        for at in np.linspace(0, len(run) - 1, min(len(run), SAMPLES * ranges)).astype(int)
    ]

    def order(a: int, b: int) -> int:
        return int(kernels.compare(text, a, b, 0, lookahead, size)) or a - b

    samples.sort(key=cmp_to_key(order))
    cuts = [[0] * len(runs)]
    for part in range(1, ranges):
        splitter = samples[len(samples) * part // ranges]
        cut = [
            int(kernels.split_run(text, run, base, splitter, lookahead, size))
            for run, base in zip(runs, bases, strict=True)
        ]
        cuts.append([max(a, b) for a, b in zip(cut, cuts[-1], strict=True)])
    return [*cuts, [len(run) for run in runs]]


def run_merge(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Merge one range of the order from all pieces into table bytes."""
    span = task.parameters
    dtype = np.dtype(settings["dtype"])
    text = open_text(out, span["shard"], dtype)
    sizes = [high - low for low, high in zip(span["low"], span["high"], strict=True)]
    entries = np.empty(sum(sizes), np.int64)
    bounds = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    for run, item in enumerate(task.inputs):
        part = _open_piece(out, item.path)[span["low"][run] : span["high"][run]]
        entries[bounds[run] : bounds[run + 1]] = part
        entries[bounds[run] : bounds[run + 1]] += span["bases"][run]
    width = pointer_width(len(text) * dtype.itemsize)
    merged = kernels.merge(text, entries, bounds, settings["lookahead"], dtype.itemsize, width)
    with atomic_write(out / task.outputs[0]) as stream:
        stream.write(memoryview(merged))
    return Done({task.outputs[0]: len(entries)})


def run_join(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Ranges one after the other, as the shard's table."""
    with atomic_write(out / task.outputs[0]) as stream:
        for item in task.inputs:
            with open(out / item.path, "rb") as part:
                while chunk := part.read(1 << 24):
                    stream.write(chunk)
    return Done({task.outputs[0]: task.parameters["rows"]})


def _open_piece(out: Path, name: str) -> NDArray[np.uint32]:
    return np.asarray(np.memmap(out / name, np.uint32, mode="r"))
