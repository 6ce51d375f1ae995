"""From encoded documents to shards, by an external merge sort.

Encoding a file gives a *part*: raw ids in some *runs*, and an index with a row a document, each run
sorted by the keyed hash of the document's id. A shard is a range of that hash, gathered from every
part. So sources are interleaved, the order of documents depends on nothing but their ids, no stage
holds the corpus in memory, and any number of workers writes the same bytes.

Conversations go the same way; their parts carry a weight a token and some more columns. There, rows
that belong together (the pieces of one conversation, the two sides of a pair) share a hash, follow one
another, and only the first has `conversation` 1 in the part; a shard's numbers count those.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from loom.artifact import Input, atomic_write
from loom.engine import Done, Operation, Task
from loom.tokens.pieces import Mapped, write_pieces
from loom.tokens.tokenizer import Batch

ORDER_KEY = 0x0DE5
HELD_OUT_KEY = 0x4E1D
RUN_TOKENS = 1 << 25  # ids held in memory before a run is written
ROW_GROUP = 1 << 16  # rows of an index read at a time
COLUMNS = ("start", "end", "id", "source", "origin")

BASE_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in COLUMNS[:2]] + [(name, pa.string()) for name in COLUMNS[2:]]
)
CHAT_FIELDS = [
    pa.field("conversation", pa.int64()),
    pa.field("prompt_end", pa.int64()),
    pa.field("pair", pa.int64()),
    pa.field("side", pa.string()),
]
INDEX_FIELDS = [  # of a part's index only
    pa.field("hash", pa.uint64()),
    pa.field("held_out", pa.bool_()),
    pa.field("bytes", pa.int64()),
    pa.field("trained", pa.int64()),
]


def order_hash(identity: str) -> int:
    """Where a document stands in the order of the corpus: 64 bits."""
    return int(xxhash.xxh3_64_intdigest(identity.encode(), seed=ORDER_KEY))


def is_held_out(identity: str, fraction: float) -> bool:
    """Whether a document is held out: a keyed hash of its id, independent of everything else."""
    return bool(xxhash.xxh3_64_intdigest(identity.encode(), seed=HELD_OUT_KEY) < fraction * 2**64)


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass
class PartWriter:
    """Collects the encoded documents of one task and writes them in sorted runs.

    Documents that must stay together (the two sides of a pair) share a hash and come one after the
    other: the sort is stable.
    """

    ids: IO[bytes]
    dtype: np.dtype[Any]
    weights: IO[bytes] | None = None
    written: int = 0
    _tokens: list[NDArray[Any]] = field(default_factory=list)
    _weights: list[NDArray[np.uint8]] = field(default_factory=list)
    _rows: list[dict[str, list[Any]]] = field(default_factory=list)
    _held: int = 0
    _runs: list[pa.Table] = field(default_factory=list)

    def add(self, batch: Batch, rows: dict[str, list[Any]], weights: NDArray[np.uint8] | None = None) -> None:
        """Add documents: `rows` has the columns beside start and end; text i of `batch` is row i."""
        lengths = np.diff(batch.offsets)
        self._tokens.append(batch.ids.astype(self.dtype, copy=False))
        if weights is not None:
            self._weights.append(weights)
        self._rows.append({**rows, "length": lengths.tolist()})
        self._held += len(batch.ids)
        if self._held >= RUN_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns: dict[str, list[Any]] = {key: [] for key in self._rows[0]}
        for rows in self._rows:
            for key, values in rows.items():
                columns[key] += values
        lengths = np.asarray(columns.pop("length"), dtype=np.int64)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        order = np.argsort(np.asarray(columns["hash"], dtype=np.uint64), kind="stable")
        sizes = [len(rows["length"]) for rows in self._rows]
        batch = np.repeat(np.arange(len(sizes)), sizes)
        before = (np.cumsum([0, *map(len, self._tokens)])[:-1])[batch]  # of a batch's first id
        pieces = (batch[order], (starts - before)[order], (ends - before)[order])
        write_pieces(self.ids, self._tokens, *pieces)
        if self.weights is not None:
            write_pieces(self.weights, self._weights, *pieces)
        sorted_ends = self.written + np.cumsum(lengths[order])
        schema = _part_schema(columns)
        arrays: dict[str, Any] = {"start": sorted_ends - lengths[order], "end": sorted_ends}
        if "prompt_end" in columns:
            prompt = np.asarray(columns.pop("prompt_end"), dtype=np.int64)
            arrays["prompt_end"] = arrays["start"] + prompt[order]
        made = []
        for column in schema:
            name, kind = column.name, column.type
            values = arrays[name] if name in arrays else _take(columns[name], order)
            made.append(_strings(values) if kind == pa.string() else _numbers(values, kind))
        self._runs.append(pa.Table.from_arrays(made, schema=schema))
        self.written += int(lengths.sum())
        self._tokens, self._weights, self._rows, self._held = [], [], [], 0

    def index(self) -> pa.Table:
        """Write what is left; the part's index, run after run."""
        self._flush()
        if not self._runs:
            return pa.schema([*BASE_SCHEMA, *INDEX_FIELDS]).empty_table()
        return pa.concat_tables(self._runs)


def _part_schema(columns: Mapping[str, Any]) -> pa.Schema:
    chat = CHAT_FIELDS if "conversation" in columns else []
    return pa.schema([*BASE_SCHEMA, *chat, *INDEX_FIELDS])


def _take(values: list[Any], order: NDArray[np.int64]) -> list[Any]:
    return [values[index] for index in order]


def _strings(values: Sequence[str]) -> pa.Array:
    """Text as Arrow has it; from a list Arrow makes it too, but looks for pandas first."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)])
    kind, width = (pa.string(), np.int32) if ends[-1] < 1 << 31 else (pa.large_string(), np.int64)
    buffers = [None, pa.py_buffer(ends.astype(width)), pa.py_buffer(b"".join(encoded))]
    made = pa.Array.from_buffers(kind, len(encoded), buffers)
    return made if kind == pa.string() else made.cast(pa.string())


def _numbers(values: Any, kind: pa.DataType) -> pa.Array:
    """Whole numbers, none missing, as Arrow has them."""
    if kind == pa.bool_():
        packed = np.packbits(np.asarray(values, bool), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(packed)])
    held = np.ascontiguousarray(values, np.uint64 if kind == pa.uint64() else np.int64)
    return pa.Array.from_buffers(kind, held.size, [None, pa.py_buffer(held)])


def _integers(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of 64-bit numbers, none missing."""
    kind = np.dtype(np.uint64 if column.type == pa.uint64() else np.int64)
    parts = [np.zeros(0, kind)]
    for chunk in column.chunks:
        parts.append(np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * 8))
    return np.concatenate(parts)


def _held_out(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """A column of yes and no, none missing."""
    parts = [np.zeros(0, np.bool_)]
    for chunk in column.chunks:
        bits = np.unpackbits(np.frombuffer(chunk.buffers()[1], np.uint8), bitorder="little")
        parts.append(bits[chunk.offset : chunk.offset + len(chunk)].astype(np.bool_))
    return np.concatenate(parts)


def write_table(path: Path, table: pa.Table, durable: bool = True) -> None:
    """A Parquet file, zstd, the same bytes every time. `durable` is `atomic_write`'s."""
    with atomic_write(path, durable) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=ROW_GROUP)


def shard_tasks(
    parts: Sequence[Input], totals: Mapping[bool, int], settings: Mapping[str, Any]
) -> list[Task]:
    """One task a shard: training shards first, then held-out ones, each a range of the hash.

    `parts` are the parts' names below the output's folder without their endings; `totals` are tokens to
    train on (False) and held out (True).
    """
    tasks = []
    for held_out in (False, True):
        count = math.ceil(totals[held_out] / settings["shard_tokens"]) or (0 if held_out else 1)
        for number in range(count):
            stem = f"{'heldout/' if held_out else ''}shard-{number:05d}"
            outputs = [f"{stem}.npy", f"{stem}.docs.parquet"]
            if settings["weights"]:
                outputs.append(f"{stem}.weights.u8")
            if settings["csv"]:
                outputs.append(f"{stem}.csv.gz")
            span = {"number": number, "of": count, "held_out": held_out}
            tasks.append(Task(tuple(parts), tuple(outputs), span))
    return tasks


def write_shard(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Gather one range of the hash from every part, in order of (hash, part, place in the part)."""
    span = task.parameters
    low = span["number"] * 2**64 // span["of"]
    high = (span["number"] + 1) * 2**64 // span["of"] - 1
    chosen, where = [], []
    for position, item in enumerate(task.inputs):
        table = _rows(out / f"{item.path}.parquet", low, high, span["of"] == 1, span["held_out"])
        if len(table):
            chosen.append(table)
            where.append(np.full(len(table), position))
    table = pa.concat_tables(chosen) if chosen else pa.schema([*BASE_SCHEMA, *INDEX_FIELDS]).empty_table()
    owner = np.concatenate(where) if where else np.zeros(0, np.int64)
    order = np.argsort(_integers(table.column("hash")), kind="stable")
    table, owner = table.take(_numbers(order, pa.int64())), owner[order]
    starts, ends = _integers(table.column("start")), _integers(table.column("end"))
    dtype = np.dtype(settings["dtype"])
    _gather(out, task, task.outputs[0], ".ids", dtype, owner, starts, ends)
    if settings["weights"]:
        _gather(out, task, task.outputs[2], ".weights", np.dtype("u1"), owner, starts, ends)
    lengths = ends - starts
    new_ends = np.cumsum(lengths)
    new_starts = new_ends - lengths
    identities = table.column("id").to_pylist()
    sources = _by_source(table, lengths, settings["weights"])
    if settings["weights"] and len(table):
        before = _conversations_before(out, task, low)
        numbers = before + np.cumsum(table.column("conversation").to_numpy()) - 1
        pairs = np.where(table.column("pair").to_numpy() < 0, -1, numbers)
        moved = new_starts + (table.column("prompt_end").to_numpy() - starts)
        for name, values in (("conversation", numbers), ("prompt_end", moved), ("pair", pairs)):
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int64()))
    table = table.drop_columns([item.name for item in INDEX_FIELDS])
    table = table.set_column(0, BASE_SCHEMA.field(0), _numbers(new_starts, pa.int64()))
    table = table.set_column(1, BASE_SCHEMA.field(1), _numbers(new_ends, pa.int64()))
    write_table(out / task.outputs[1], table)
    if settings["csv"]:
        _write_csv(out / task.outputs[-1], table)
    tokens = int(lengths.sum())
    counters = {
        "documents": len(table),
        "tokens": tokens,
        "duplicate_ids": 0 if settings["weights"] else len(identities) - len(set(identities)),
        "sources": sources,
    }
    return Done(dict.fromkeys(task.outputs, tokens) | {task.outputs[1]: len(table)}, counters)


def _rows(path: Path, low: int, high: int, every: bool, held_out: bool) -> pa.Table:
    """The rows of a part's index in a range of the hash (or `every` one), held out or not."""
    if every:
        table = pq.ParquetFile(path).read()
        wanted = _held_out(table.column("held_out")) == held_out
        return table if wanted.all() else table.filter(_numbers(wanted, pa.bool_()))
    return pq.read_table(
        path,
        filters=(pc.field("hash") >= pa.scalar(low, pa.uint64()))
        & (pc.field("hash") <= pa.scalar(high, pa.uint64()))
        & (pc.field("held_out") == held_out),
    )


def _conversations_before(out: Path, task: Task, low: int) -> int:
    """How many conversations stand in earlier shards."""
    span = task.parameters
    if span["number"] == 0:
        return 0
    earlier = (pc.field("hash") < pa.scalar(low, pa.uint64())) & (pc.field("held_out") == span["held_out"])
    counts = [
        pc.sum(pq.read_table(out / f"{item.path}.parquet", columns=["conversation"], filters=earlier)[0])
        for item in task.inputs
    ]
    return sum(count.as_py() or 0 for count in counts)


def _write_csv(path: Path, table: pa.Table) -> None:
    """Dolma's list of documents: start, end, id, file and row, without a header; gz without a time."""
    starts, ends, names, origins = (
        table.column(name).to_pylist() for name in ("start", "end", "id", "origin")
    )
    places = [origin.rpartition(":") for origin in origins]
    with atomic_write(path) as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed:
        plain = io.TextIOWrapper(packed, "utf-8", newline="")
        writer = csv.writer(plain, lineterminator="\n")
        writer.writerows(
            (start, end, name, place[0], place[2])
            for start, end, name, place in zip(starts, ends, names, places, strict=True)
        )
        plain.flush()


def _gather(
    out: Path,
    task: Task,
    name: str,
    suffix: str,
    dtype: np.dtype[Any],
    owner: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    parts = Mapped([out / f"{item.path}{suffix}" for item in task.inputs], dtype)
    with atomic_write(out / name) as stream:
        write_pieces(stream, parts.arrays, owner, starts, ends, parts.let_go)


def _by_source(table: pa.Table, lengths: NDArray[np.int64], weighted: bool) -> dict[str, dict[str, int]]:
    coded = table.column("source").combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    which = np.frombuffer(coded.indices.buffers()[1] or b"", np.int32, len(coded), coded.offset * 4)
    sums = {"documents": np.ones_like(lengths), "tokens": lengths, "bytes": _integers(table.column("bytes"))}
    sums |= {"trained": _integers(table.column("trained"))} if weighted else {}
    totals = {key: np.zeros(len(names), np.int64) for key in sums}
    for key, values in sums.items():
        np.add.at(totals[key], which, values)
    return {
        names[index]: {key: int(found[index]) for key, found in totals.items()}
        for index in sorted(range(len(names)), key=names.__getitem__)
    }


def shard_operation(dtype: np.dtype[Any], shard_tokens: int, weights: bool, listing: bool) -> Operation:
    """The operation that `shard_tasks` are for."""
    settings = {"dtype": dtype.str, "shard_tokens": shard_tokens, "weights": weights, "csv": listing}
    return Operation("write shard", 1, write_shard, settings, threads=True)
