"""The document: its schema, its batches, its files.

A document is one JSON object a line: `id`, `text` and `source`, optionally `added`, `created`,
`version` and `metadata`. In memory documents travel in batches of Arrow columns; kernels take the UTF-8
buffer and the offsets of the text column. On disk they are JSON lines (plain, .gz, .zst) or Parquet.

A row that is not a document (broken JSON, no `id`, no `text`, invalid UTF-8) is set aside with its line
and the reason; a file that ends in mid-stream is an error.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import zstandard
from isal import igzip, isal_zlib

from loom.artifact import MANIFEST, RUN, atomic_write
from loom.corpus import pieces, remote
from loom.corpus.batch import SCHEMA, Batch, make_batch
from loom.errors import LoomError
from loom.recipe import nearest
from loom.tokens.documents import JSON_SUFFIXES as JSON_SUFFIXES
from loom.tokens.documents import SUFFIXES as SUFFIXES
from loom.tokens.documents import ZSTD, Rejected

BATCH_BYTES = 32 << 20  # text in a batch, so that memory does not grow with the file
DAMAGED: tuple[Any, ...] = (
    EOFError,
    zlib.error,
    isal_zlib.error,
    gzip.BadGzipFile,
    zstandard.ZstdError,
)
ZSTD_LEVEL = 3
GZIP_LEVEL = 2  # igzip's, of 0 to 3: ten times zlib's speed at its level 6, files a sixth larger
SMALL = 1 << 18  # bytes of a file on disk below which compiled reading does not pay its start
BLOCK = 1 << 22  # decompressed bytes asked for at a time


def find_files(patterns: Iterable[str | Path]) -> list[Path]:
    """The files that globs match, each once: pattern by pattern, sorted within one. No match is an error.

    A folder stands for every document file below it, or below its `documents/` where it has one (beside them
    lie attributes and rows set aside). Patterns may be addresses (`s3://bucket/*.jsonl.gz`).
    """
    found: dict[str, None] = {}
    for pattern in map(str, patterns):
        if (url := remote.address(pattern)) is not None:
            matches = remote.find(url, SUFFIXES)
            below = f"{url.rstrip('/')}/documents/"
            matches = [name for name in matches if name.startswith(below)] or matches
        elif os.path.isdir(pattern):
            root = Path(pattern, "documents")
            matches = sorted(
                str(path)
                for path in (root if root.is_dir() else Path(pattern)).rglob("*")
                if path.name.endswith(SUFFIXES)
                and path.name not in (MANIFEST, RUN)
                and not path.name.startswith(".")
                and path.is_file()
            )
        else:
            matches = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        if not matches:
            raise LoomError(f"No file matches {pattern!r}.{_near_file(pattern)} Check the path and its glob.")
        found.update(dict.fromkeys(matches))
    if not found:
        raise LoomError("No documents were named: give at least one file, folder or glob.")
    return [Path(name) for name in found]


def _near_file(pattern: str) -> str:
    if remote.address(pattern) is not None:
        return ""
    parent = Path(pattern)
    while parent != parent.parent and not parent.is_dir():
        child, parent = parent.name, parent.parent
        if parent.is_dir():
            near = nearest(child, [entry.name for entry in os.scandir(parent)])
            return f" In {parent} there is {near!r}." if near else f" {parent} has no {child!r}."
    return ""


def relative_name(path: Path, patterns: Iterable[str | Path]) -> str:
    """A document file's name below its root: what follows `documents/`, else the globs' fixed prefix."""
    parts = path.parts
    if "documents" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("documents")
        return "/".join(parts[last + 1 :])
    for pattern in map(str, patterns):
        folder = os.path.isdir(pattern) or (
            remote.address(pattern) is not None
            and not glob.has_magic(pattern)
            and not pattern.endswith(SUFFIXES)
        )
        prefix = pattern if folder else os.path.dirname(_fixed(pattern))
        try:
            return path.relative_to(prefix or ".").as_posix()
        except ValueError:
            continue
    return path.name


def _fixed(pattern: str) -> str:
    for index, character in enumerate(pattern):
        if character in "*?[":
            return pattern[:index]
    return pattern


def read(path: Path, batch_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
    """A file's documents in order, in batches of about `batch_bytes` of text.

    Rows that are no documents come in `Batch.rejected`. Raises `LoomError` for a file that is cut short
    or of a kind unknown here.
    """
    piece = pieces.parse(path)
    name = path.name if piece is None else piece.path.name
    if name.endswith(".parquet"):
        yield from _read_parquet(path)
        return
    if not name.endswith(JSON_SUFFIXES):
        raise LoomError(f"{path} is no document file: its name should end in one of {', '.join(SUFFIXES)}.")
    from loom.corpus.json_lines import parse, parse_compiled

    compiled = _size(path) > SMALL
    number = 1
    for block in read_blocks(path, batch_bytes):
        batch = parse_compiled(block, number, path.name) if compiled else parse(block, number, path.name)
        number += _newlines(block) if compiled else block.count(b"\n")
        if len(batch) or batch.rejected:
            yield batch


def _newlines(block: bytes) -> int:
    from loom.corpus.kernels.json_lines import count_lines

    return int(count_lines(np.frombuffer(block, np.uint8))) - (not block.endswith(b"\n"))


def _size(path: Path) -> int:
    if remote.address(path) is not None or pieces.parse(path) is not None:
        return SMALL + 1
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_blocks(path: Path, size: int = BATCH_BYTES) -> Iterator[bytes]:
    """Whole lines of a plain, .gz or .zst file, about `size` bytes at a time.

    Raises `LoomError` where the file ends in mid-stream.
    """
    held: list[Any] = []
    have = 0
    try:
        with open_compressed(path) as stream:
            while chunk := stream.read(BLOCK):
                held.append(chunk)
                have += len(chunk)
                if have < size or (cut := chunk.rfind(b"\n") + 1) == 0:
                    continue
                held[-1] = memoryview(chunk)[:cut]
                block = b"".join(held)
                held, have = ([chunk[cut:]], len(chunk) - cut) if cut < len(chunk) else ([], 0)
                yield block
    except FileNotFoundError:
        raise LoomError(f"There is no file {path}.") from None
    except DAMAGED as error:
        raise _damaged(path, _rows_before(path, size), error) from None
    if held:
        yield b"".join(held)


def _rows_before(path: Path, size: int) -> int:
    """Rows in the blocks of `size` bytes that come before the damage in a file."""
    rows = here = have = 0
    try:
        with open_compressed(path) as stream:
            while chunk := stream.read(BLOCK):
                here += chunk.count(b"\n")
                have += len(chunk)
                if have >= size and (cut := chunk.rfind(b"\n") + 1):
                    rows, here, have = rows + here, 0, len(chunk) - cut
    except DAMAGED:
        pass
    return rows


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain, .gz or .zst file. Raises `LoomError` where the file ends in mid-stream."""
    count = 0
    try:
        with open_compressed(path) as stream:
            for line in stream:
                yield line
                count += 1
    except FileNotFoundError:
        raise LoomError(f"There is no file {path}.") from None
    except DAMAGED as error:
        raise _damaged(path, count, error) from None


def _damaged(path: Path, rows: int, error: Exception) -> LoomError:
    return LoomError(
        f"{path} is cut short or damaged after row {rows:,} ({error}). Fetch or make it again; "
        f"nothing was taken from it."
    )


@contextmanager
def open_compressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or a piece of one, for reading, decompressed by its suffix.

    A .zst that lacks its end raises EOFError.
    """
    piece = pieces.parse(path)
    if piece is not None:
        with open(piece.path, "rb") as raw:
            size = piece.path.stat().st_size
            yield io.BufferedReader(pieces.Lines(raw, piece, size), 1 << 20)
        return
    with remote.open_raw(path) as raw:
        if path.name.endswith(".gz"):
            with igzip.open(raw, "rb") as stream:  # type: ignore[no-untyped-call]
                yield stream
        elif path.name.endswith(ZSTD):
            yield io.BufferedReader(pieces.Frames(raw), 1 << 20)
        else:
            yield raw


def _read_parquet(path: Path) -> Iterator[Batch]:
    piece = pieces.parse(path)
    with remote.open_raw(piece.path if piece else path, whole=False) as stream:
        yield from _read_row_groups(stream, path, piece)


def _read_row_groups(stream: IO[bytes], path: Path, piece: pieces.Piece | None) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise LoomError(f"{path} cannot be read as Parquet ({error}). Fetch or make it again.") from None
    missing = [name for name in ("id", "text") if name not in file.schema_arrow.names]
    if missing:
        near = nearest(missing[0], file.schema_arrow.names)
        hint = f" Did you mean {near!r}?" if near else ""
        raise LoomError(f"{path} has no column {missing[0]!r}, which every document needs.{hint}")
    first, last = (piece.start, piece.end) if piece else (0, file.num_row_groups)
    line = 1 + sum(file.metadata.row_group(group).num_rows for group in range(first))
    for group in range(first, last):
        for part in _parts(file, group, path):
            table = pa.Table.from_batches([part])
            columns: dict[str, Any] = {}
            rejected: dict[int, str] = {}
            for field in SCHEMA:
                if field.name not in table.column_names:
                    columns[field.name] = pa.nulls(table.num_rows, field.type)
                    continue
                columns[field.name], broken = _as_text(table.column(field.name), field.type)
                for row in broken:
                    rejected.setdefault(row, f"{field.name!r} is not UTF-8")
            for name in ("id", "text"):
                for row in np.flatnonzero(columns[name].is_null().to_numpy()).tolist():
                    rejected.setdefault(row, f"no {name!r}")
            good = np.ones(table.num_rows, bool)
            good[list(rejected)] = False
            lines = line + np.flatnonzero(good)
            aside = tuple(Rejected(path.name, line + row, rejected[row]) for row in sorted(rejected))
            yield Batch(pa.table(columns).filter(pa.array(good)), lines.astype(np.int64), aside)
            line += table.num_rows


def _parts(file: Any, group: int, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=1 << 16, row_groups=[group])
    except (pa.ArrowException, OSError) as error:
        raise LoomError(
            f"{path} is damaged: its row group {group} cannot be read ({error}). Fetch or make it again."
        ) from None


def _as_text(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    """A column as text, objects as JSON, and the rows that are not UTF-8, which are null in it."""
    nested = pa.types.is_struct(column.type) or pa.types.is_map(column.type) or pa.types.is_list(column.type)
    try:
        if nested:
            return pa.chunked_array([pa.array([_text(value) for value in column.to_pylist()], kind)]), []
        made = column.cast(kind)
        made.validate(full=True)
        return made, []
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass  # which rows it is, is asked of each
    values: list[str | None] = []
    broken = []
    for row, scalar in enumerate(column):
        try:
            values.append(_text(scalar.as_py()))
        except UnicodeDecodeError:
            values.append(None)
            broken.append(row)
    return pa.chunked_array([pa.array(values, kind)]), broken


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode() if isinstance(value, bytes) else orjson.dumps(value, default=str).decode()


@contextmanager
def write_lines(path: Path, level: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file atomically, compressed as its suffix says, without time or name in it."""
    with atomic_write(path) as raw:
        if path.name.endswith(".gz"):
            kind = GZIP_LEVEL if level is None else level
            packed = igzip.IGzipFile("", "wb", kind, raw, mtime=0)  # type: ignore[no-untyped-call]
            with io.BufferedWriter(packed, 1 << 20) as stream:
                yield stream
        elif path.name.endswith(ZSTD):
            compressor = zstandard.ZstdCompressor(level=level or ZSTD_LEVEL)
            with io.BufferedWriter(compressor.stream_writer(raw, closefd=False), 1 << 20) as out:  # type: ignore
                yield out
        else:
            yield raw


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write documents to a JSON-lines or Parquet file; returns how many."""
    count = 0
    if path.name.endswith(".parquet"):
        import pyarrow.parquet as pq

        kept = list(rows)
        batch = make_batch(kept, range(1, len(kept) + 1))
        with atomic_write(path) as stream:
            pq.write_table(batch.table, stream, compression="zstd", row_group_size=1 << 14)
        return len(kept)
    with write_lines(path) as out:
        for row in rows:
            out.write(orjson.dumps(row) + b"\n")
            count += 1
    return count
