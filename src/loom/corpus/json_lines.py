"""JSON lines as a batch of documents: by the compiled reader, or row by row where a line is unusual."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from loom.corpus.batch import SCHEMA, Batch, check_row, make_batch
from loom.tokens.documents import Rejected


def parse(block: bytes, first: int, name: str) -> Batch:
    """Whole lines, of which the first is row `first` of the file `name`, read one at a time."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    rejected: list[Rejected] = []
    for number, raw in enumerate(block.split(b"\n"), first):
        if not raw.strip():
            continue
        row, reason = _document(raw)
        if reason is not None:
            rejected.append(Rejected(name, number, reason))
            continue
        rows.append(row)
        lines.append(number)
    return make_batch(rows, lines, rejected)


def _document(raw: bytes) -> tuple[Any, str | None]:
    """A line's row, and why it is not a document, if it is not."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return None, f"not JSON: {error}"
    return row, check_row(row)


def parse_compiled(block: bytes, first: int, name: str) -> Batch:
    """The batch of `parse` by compiled loops; a block with a line they leave undecided goes to `parse`.

    `metadata` keeps its spelling (spaces aside), where `parse` has it as orjson writes it.
    """
    from loom.corpus.kernels import json_lines as kernels

    data = np.frombuffer(block, np.uint8)
    where, states, starts = kernels.rows(data, kernels.KINDS, kernels.NAMES, kernels.NAME_STARTS)
    rejected: list[Rejected] = []
    for line in np.flatnonzero(states == kernels.DOUBTFUL).tolist():
        raw = block[starts[line] : starts[line + 1]].rstrip(b"\n")
        if not raw.strip():
            continue
        reason = _document(raw)[1]
        if reason is None:
            return parse(block, first, name)
        rejected.append(Rejected(name, first + line, reason))
    good = np.flatnonzero(states == kernels.GOOD)
    if good.size < states.size:
        where = where[good]
    columns = {}
    for index, field in enumerate(kernels.FIELDS):
        out, offsets, present = kernels.column(
            data, np.ascontiguousarray(where[:, index]), index == kernels.METADATA
        )
        columns[field] = _array(SCHEMA.field(field).type, out, offsets, present)
    return Batch(pa.table(columns), first + good, tuple(rejected))


def _array(kind: pa.DataType, data: Any, offsets: Any, present: Any) -> pa.Array:
    if kind == pa.string():
        offsets = offsets.astype(np.int32)
    missing = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [missing, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, present.size, buffers)
