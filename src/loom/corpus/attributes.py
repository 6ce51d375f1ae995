"""Attributes: what a tagger says of each document, kept beside the documents, row by row.

A key's values are spans `[start, end, score]` in code points. A value of the whole document is one span
`[0, length, score]`. In memory a key is a `Spans` of numpy columns; on disk a folder `attributes/<name>/`
mirrors the documents' files, as JSON lines (Dolma's format) or as Parquet with one column a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from loom.artifact import atomic_write
from loom.corpus import remote
from loom.corpus.batch import utf8
from loom.corpus.documents import read_lines, write_lines
from loom.errors import LoomError

PRECISION = 5  # decimals of a score, as Dolma writes them
SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("score", pa.float64())])
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spans:
    """Spans of n documents: document i has `starts[offsets[i]:offsets[i + 1]]` and so on.

    `present[i]` is False where the key is absent altogether, which Dolma tells from an empty list.
    """

    offsets: Ints
    starts: Ints
    ends: Ints
    scores: Floats
    present: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return self.offsets.size - 1

    def rows(self) -> Ints:
        """The document of each span, int64[spans]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def of(self, row: int) -> list[tuple[int, int, float]] | None:
        """Document `row`'s spans, or None where the key is absent."""
        if self.present is not None and not self.present[row]:
            return None
        low, high = int(self.offsets[row]), int(self.offsets[row + 1])
        return list(
            zip(
                self.starts[low:high].tolist(),
                self.ends[low:high].tolist(),
                self.scores[low:high].tolist(),
                strict=True,
            )
        )


def whole(lengths: Ints, scores: Any, present: npt.NDArray[np.bool_] | None = None) -> Spans:
    """One span over each whole document; with `present`, none where it is False."""
    scores = np.broadcast_to(np.asarray(scores, np.float64), lengths.shape)
    if present is None:
        count = lengths.size
        return Spans(np.arange(count + 1), np.zeros(count, np.int64), lengths.astype(np.int64), scores.copy())
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int64)
    kept = lengths[present].astype(np.int64)
    return Spans(offsets, np.zeros(kept.size, np.int64), kept, scores[present], present)


def gathered(
    count: int, rows: Any, starts: Any, ends: Any, scores: Any = 1.0, *, absent_if_empty: bool = True
) -> Spans:
    """Spans of `count` documents from columns sorted by document."""
    rows = np.asarray(rows, np.int64)
    per_row = np.bincount(rows, minlength=count)
    offsets = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int64)
    return Spans(
        offsets,
        np.asarray(starts, np.int64),
        np.asarray(ends, np.int64),
        np.broadcast_to(np.asarray(scores, np.float64), rows.shape).copy(),
        (per_row > 0) if absent_if_empty else None,
    )


def from_lists(values: Sequence[Sequence[Sequence[float]] | None]) -> Spans:
    """Spans from a list of lists a document, None where the key is absent."""
    present = np.array([value is not None for value in values], bool)
    counts = [len(value or ()) for value in values]
    flat = [span for value in values for span in value or ()]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns = np.array(flat, np.float64).reshape(-1, 3)
    return Spans(
        offsets,
        columns[:, 0].astype(np.int64),
        columns[:, 1].astype(np.int64),
        columns[:, 2].copy(),
        None if present.all() else present,
    )


def rounded(scores: Floats) -> Floats:
    """Scores to `PRECISION` decimals, exactly as Python's `round` gives them."""
    scaled = scores * 10**PRECISION
    out: Floats = np.rint(scaled) / 10**PRECISION
    doubtful = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 1e-6
    for at in np.flatnonzero(doubtful):
        out[at] = round(float(scores[at]), PRECISION)
    return out


def key_name(experiment: str, tagger: str, key: str) -> str:
    """Dolma's full key: characters that no variable may have become underscores in each part."""
    return "__".join((experiment, _variable(tagger), _variable(key)))


def _variable(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


Sidecar = Mapping[str, Spans]


@contextmanager
def writer(path: Path, *, as_deduper: bool = False) -> Iterator[Callable[[Any, Any, Sidecar], None]]:
    """Open a sidecar, JSON lines or Parquet by its suffix, for batches of (ids, sources, spans by full key).

    Ids and sources are text columns (Arrow) or lists of strings; a missing source is written empty. JSON
    lines are as Dolma's taggers write them, or `as_deduper`: without source, whole scores without a point.
    """
    if path.name.endswith(".parquet"):
        with _parquet_writer(path) as write:
            yield write
        return
    with write_lines(path, level=1 if path.name.endswith(".gz") else None) as out:

        def write_rows(ids: Any, sources: Any, spans: Sidecar) -> None:
            names, origins = _strings(ids), _strings(sources)
            few = len(names) < 64 and sum(value.starts.size for value in spans.values()) < 1024
            out.write((_lines if few else _lines_compiled)(names, origins, spans, as_deduper))

        yield write_rows


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[Any, Any, Sidecar], None]]:
    import pyarrow.parquet as pq

    opened: list[Any] = []
    with atomic_write(path) as stream:

        def write(ids: Any, sources: Any, spans: Sidecar) -> None:
            columns = {"id": _strings(ids).cast(pa.string()), **{k: _list(v) for k, v in spans.items()}}
            table = pa.table(columns)
            if not opened:
                opened.append(pq.ParquetWriter(stream, table.schema, compression="zstd", compression_level=1))
            opened[0].write_table(table)

        yield write
        if not opened:
            opened.append(pq.ParquetWriter(stream, pa.schema([("id", pa.string())]), compression="zstd"))
        opened[0].close()


def write_parquet(path: Path, batches: Iterable[tuple[Any, Sidecar]]) -> int:
    """Write batches of (ids, spans by full key) as a Parquet sidecar; returns the rows."""
    count = 0
    with writer(path) as write:
        for ids, spans in batches:
            write(ids, [None] * len(ids), spans)
            count += len(ids)
    return count


def _list(spans: Spans) -> pa.Array:
    values = pa.StructArray.from_arrays(
        [
            pa.array(spans.starts.astype(np.int32)),
            pa.array(spans.ends.astype(np.int32)),
            pa.array(rounded(spans.scores)),
        ],
        fields=list(SPAN),
    )
    mask = None if spans.present is None else pa.array(~spans.present)
    return pa.ListArray.from_arrays(pa.array(spans.offsets.astype(np.int32)), values, mask=mask)


def write_jsonl(path: Path, batches: Iterable[tuple[Any, Any, Sidecar]]) -> int:
    """Write batches of (ids, sources, spans by full key) as Dolma writes attributes; returns the rows."""
    count = 0
    with writer(path) as write:
        for ids, sources, spans in batches:
            write(ids, sources, spans)
            count += len(ids)
    return count


def _strings(values: Any) -> pa.Array:
    """Text as one large_string array without nulls."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], pa.string())
    array = values if isinstance(values, pa.Array) else pa.array(values, pa.large_string())
    if array.null_count == 0 and array.type == pa.large_string():
        return array
    if array.null_count == 0 and array.type == pa.string() and len(array):
        _, offsets, data = array.buffers()  # Arrow's own cast loads its compute functions first, and pandas
        where = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4).astype(np.int64)
        return pa.Array.from_buffers(pa.large_string(), len(array), [None, pa.py_buffer(where), data])
    return array.cast(pa.large_string()).fill_null("")


def text_of(column: Any) -> tuple[npt.NDArray[np.uint8], Ints]:
    """A column of text as (bytes, offsets int64[n + 1]), nulls as empty text."""
    return utf8(pa.chunked_array([_strings(column)]))


def text_from(data: npt.NDArray[np.uint8], offsets: Ints) -> pa.Array:
    """Text from (bytes, offsets int64[n + 1])."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.large_string(), offsets.size - 1, buffers)


def _lines(ids: pa.Array, sources: pa.Array, spans: Sidecar, short: bool) -> bytes:
    """The rows one by one."""
    lists = {key: _row_lists(value) for key, value in spans.items()}
    rows = []
    for row, (identity, source) in enumerate(zip(ids.to_pylist(), sources.to_pylist(), strict=True)):
        attributes = {key: v[row] for key, v in lists.items() if v[row] is not None}
        if short:
            kept = {
                key: [(a, b, int(c) if c == int(c) else c) for a, b, c in v or ()]
                for key, v in attributes.items()
            }
            rows.append(orjson.dumps({"attributes": kept, "id": identity}) + b"\n")
        else:
            rows.append(orjson.dumps({"id": identity, "attributes": attributes, "source": source}) + b"\n")
    return b"".join(rows)


def _lines_compiled(ids: pa.Array, sources: pa.Array, spans: Sidecar, short: bool) -> Any:
    """The rows of `_lines` by a compiled loop; scores too large for it go to `_lines`."""
    from loom.corpus.kernels import attribute_lines as kernels

    count, columns = len(ids), list(spans.values())
    scores = rounded(np.concatenate([np.zeros(0), *(value.scores for value in columns)]))
    if not (np.abs(scores) < kernels.LARGEST).all():
        return _lines(ids, sources, spans, short)
    keys = [orjson.dumps(key) + b":" for key in spans]
    firsts = np.cumsum([0, *(value.starts.size for value in columns)])
    offsets = np.empty((len(columns), count + 1), np.int64)
    present = np.ones((len(columns), count), np.bool_)
    for index, value in enumerate(columns):
        offsets[index] = value.offsets + firsts[index]
        if value.present is not None:
            present[index] = value.present
    empty = np.zeros(0, np.int64)
    return kernels.lines(
        *utf8(pa.chunked_array([ids])),
        *utf8(pa.chunked_array([sources])),
        np.frombuffer(b"".join(keys), np.uint8),
        np.cumsum([0, *map(len, keys)]),
        present,
        offsets,
        np.concatenate([empty, *(value.starts for value in columns)]),
        np.concatenate([empty, *(value.ends for value in columns)]),
        scores,
        np.frombuffer(
            b'{"attributes":{\n\n},"id":' if short else b'{"id":\n,"attributes":{\n},"source":', np.uint8
        ),
        short,
    ).data


def _row_lists(spans: Spans) -> list[list[tuple[int, int, float]] | None]:
    flat = list(zip(spans.starts.tolist(), spans.ends.tolist(), rounded(spans.scores).tolist(), strict=True))
    where = spans.offsets.tolist()
    absent = None if spans.present is None else (~spans.present).tolist()
    return [
        None if absent is not None and absent[row] else flat[where[row] : where[row + 1]]
        for row in range(len(spans))
    ]


def read(path: Path) -> Iterator[tuple[list[str], dict[str, Spans]]]:
    """A sidecar's rows in batches: (ids, spans by full key)."""
    if path.name.endswith(".parquet"):
        yield from _read_parquet(path)
        return
    ids: list[str] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = orjson.loads(line)
            ids.append(row["id"])
            rows.append(row["attributes"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise LoomError(
                f"{path}, row {number:,}, is no attribute row ({error}). Attributes are made, never mended: "
                f"remove the file and run the tagger again."
            ) from None
        if len(ids) == 1 << 14:
            yield ids, _columns(rows)
            ids, rows = [], []
    if ids:
        yield ids, _columns(rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Spans]:
    """Spans by key; what is no list of spans (the id of a duplicate's survivor) is left out."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, list))
    return {key: from_lists([row.get(key) for row in rows]) for key in keys}


def _read_parquet(path: Path) -> Iterator[tuple[list[str], dict[str, Spans]]]:
    import pyarrow.parquet as pq

    try:
        with remote.open_raw(path, whole=False) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                yield (
                    table.column("id").to_pylist(),
                    {name: _spans(table.column(name)) for name in table.column_names if name != "id"},
                )
    except (pa.ArrowException, OSError) as error:
        raise LoomError(
            f"{path} cannot be read as Parquet ({error}). Remove it and run the tagger again."
        ) from None


def _spans(column: pa.ChunkedArray) -> Spans:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.list_(SPAN))
    missing = array.null_count > 0
    counts = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = array.flatten()
    return Spans(
        offsets,
        flat.field("start").to_numpy().astype(np.int64),
        flat.field("end").to_numpy().astype(np.int64),
        flat.field("score").to_numpy(),
        array.is_valid().to_numpy(zero_copy_only=False) if missing else None,
    )


def concatenate(parts: Sequence[Spans]) -> Spans:
    """Spans of consecutive batches as one."""
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    present = (
        np.concatenate([np.ones(len(part), bool) if part.present is None else part.present for part in parts])
        if any(part.present is not None for part in parts)
        else None
    )
    return Spans(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.scores for part in parts]),
        present,
    )
