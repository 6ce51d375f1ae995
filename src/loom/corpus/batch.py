"""Documents as the curation stages hold them: a batch of rows of one file, as an Arrow table.

The columns are Dolma's document schema (id, text, source, added, created, version, metadata).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from loom.tokens.documents import Rejected

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("added", pa.string()),
        pa.field("created", pa.string()),
        pa.field("version", pa.string()),
        pa.field("metadata", pa.string()),  # a JSON object
    ]
)


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of one file. `lines[i]` is document i's row in the file, from 1."""

    table: pa.Table
    lines: npt.NDArray[np.int64]
    rejected: tuple[Rejected, ...] = field(default=())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> list[str]:
        column: list[str] = self.table.column("id").to_pylist()
        return column

    def texts(self) -> list[str]:
        column: list[str] = self.table.column("text").to_pylist()
        return column

    def utf8(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The text column as (bytes, offsets): document i is `bytes[offsets[i]:offsets[i + 1]]`, no copy."""
        return utf8(self.table.column("text"))


def utf8(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A large_string column's buffers as numpy arrays; offsets start where the column's slice does."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.large_string())
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    where = np.frombuffer(offsets, np.int64, count=len(array) + 1, offset=array.offset * 8)
    values = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return values, where


def make_batch(
    rows: Sequence[dict[str, Any]], lines: Sequence[int], rejected: Sequence[Rejected] = ()
) -> Batch:
    """Rows that have passed `check_row` as a batch."""
    columns = {
        "id": [row["id"] for row in rows],
        "text": [row["text"] for row in rows],
        "source": [_plain(row.get("source")) for row in rows],
        "added": [_plain(row.get("added")) for row in rows],
        "created": [_plain(row.get("created")) for row in rows],
        "version": [_plain(row.get("version")) for row in rows],
        "metadata": [
            orjson.dumps(row["metadata"]).decode() if row.get("metadata") is not None else None
            for row in rows
        ],
    }
    table = pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()})
    return Batch(table, np.asarray(lines, np.int64), tuple(rejected))


def _plain(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def check_row(row: Any) -> str | None:
    """Why `row` is not a document, or None if it is one."""
    if not isinstance(row, dict):
        return "not a JSON object"
    for key in ("id", "text"):
        if key not in row:
            return f"no {key!r}"
        if not isinstance(row[key], str):
            return f"{key!r} is not text"
    return None


def as_rows(batch: Batch) -> Iterator[dict[str, Any]]:
    """A batch's documents as plain objects, absent fields left out, metadata parsed."""
    for row in batch.table.to_pylist():
        document = {key: value for key, value in row.items() if value is not None}
        if "metadata" in document:
            document["metadata"] = orjson.loads(document["metadata"])
        yield document
