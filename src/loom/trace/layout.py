"""The files of an index: infini-gram's own, shard after shard.

For shard i: `tokenized.i` little-endian ids, each document after a separator of all ones; `table.i` the
suffix array, a byte offset an entry; `offset.i` uint64, where each document's separator stands in
`tokenized.i`; `metadata.i` a JSON line a document `{"path", "linenum", "metadata"}` and `metaoff.i`
uint64, where each line starts; `unigram.i` lines of id and count. (infini_gram/indexing.py, version 4.)

Loom's metadata holds the document's id and source and its place: the token shard and the offset there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loom.errors import LoomError

TOKENS, TABLE, OFFSETS = "tokenized", "table", "offset"
METADATA, METADATA_OFFSETS, UNIGRAM = "metadata", "metaoff", "unigram"
TYPES: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


def pointer_width(size: int) -> int:
    """Bytes of a table entry over a text of `size` bytes."""
    return max(1, -(-(size - 1).bit_length() // 8))


def separator(dtype: np.dtype[Any]) -> int:
    """The id that stands before every document; no token may have it."""
    return int(np.iinfo(dtype).max)


@dataclass(frozen=True)
class Document:
    """A document in an index: its number in the shard, its tokens there [first, last), and who it is."""

    shard: int
    number: int
    first: int
    last: int
    id: str
    source: str | None
    origin: str
    token_shard: int | None
    token_start: int | None
    """Its place in the token folder; None in an index that Loom did not build."""


@dataclass(frozen=True)
class IndexShard:
    """One shard's files, mapped from disk when first asked for."""

    folder: Path
    number: int
    dtype: np.dtype[Any]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.number}"

    def _map(self, name: str, dtype: Any) -> NDArray[Any]:
        path = self.path(name)
        size = path.stat().st_size
        width = np.dtype(dtype).itemsize
        if size % width:
            raise LoomError(f"{path} has {size:,} bytes, not whole entries of {width}: it was cut short.")
        return np.asarray(np.memmap(path, dtype, mode="r")) if size else np.zeros(0, dtype)

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """Ids with separators, [n]."""
        return self._map(TOKENS, self.dtype)

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """The suffix array's bytes, [n * width]."""
        return self._map(TABLE, np.uint8)

    @cached_property
    def width(self) -> int:
        """Bytes of a table entry."""
        width, rest = divmod(len(self.table), len(self.tokens))
        if rest or width != pointer_width(len(self.tokens) * self.dtype.itemsize):
            raise LoomError(
                f"{self.path(TABLE)} has {len(self.table):,} bytes for {len(self.tokens):,} tokens of "
                f"{self.dtype.name}: the two do not belong together, or the ids have another type. Build the "
                f"index again: loom index."
            )
        return width

    @cached_property
    def starts(self) -> NDArray[np.uint64]:
        """Where each document's separator stands, in tokens, [documents]."""
        return self._map(OFFSETS, "<u8") // np.uint64(self.dtype.itemsize)

    @cached_property
    def lines(self) -> NDArray[np.uint64] | None:
        """Where each document's line starts in the metadata; None where an index has none."""
        return self._map(METADATA_OFFSETS, "<u8") if self.path(METADATA_OFFSETS).is_file() else None

    @cached_property
    def _metadata(self) -> NDArray[np.uint8]:
        return self._map(METADATA, np.uint8)

    @cached_property
    def unigrams(self) -> dict[int, int]:
        """Count by id, separators left out."""
        path = self.path(UNIGRAM)
        if path.is_file():
            pairs = (line.split() for line in path.read_text().splitlines())
            counts = {int(token): int(count) for token, count in pairs}
        else:
            found = np.bincount(self.tokens.astype(np.int64, copy=False))
            counts = {int(token): int(found[token]) for token in np.flatnonzero(found)}
        counts.pop(separator(self.dtype), None)
        return counts

    @property
    def documents(self) -> int:
        return len(self.starts)

    def document_at(self, place: int) -> int:
        """The number of the document that holds token `place`."""
        return int(np.searchsorted(self.starts, np.uint64(place), side="right")) - 1

    def document(self, number: int) -> Document:
        """A document's tokens and who it is."""
        first = int(self.starts[number]) + 1
        last = int(self.starts[number + 1]) if number + 1 < self.documents else len(self.tokens)
        line = self.line(number)
        inner = line.get("metadata") or {}
        path, row = line.get("path"), line.get("linenum")
        origin = f"{path}:{row + 1}" if path is not None and row is not None else ""
        identity = inner.get("id") or origin or f"{self.number}:{number}"
        return Document(
            self.number,
            number,
            first,
            last,
            str(identity),
            inner.get("source"),
            origin,
            inner.get("shard"),
            inner.get("start"),
        )

    def line(self, number: int) -> dict[str, Any]:
        """A document's metadata line as it is; empty where the index has none."""
        if self.lines is None:
            return {}
        start = int(self.lines[number])
        end = int(self.lines[number + 1]) if number + 1 < len(self.lines) else len(self._metadata)
        value = orjson.loads(self._metadata[start:end].tobytes())
        return value if isinstance(value, dict) else {}


def shards_of(folder: Path, dtype: np.dtype[Any]) -> tuple[IndexShard, ...]:
    """The shards of an index folder, by number. Raises `LoomError` where one lacks a file."""
    numbers = sorted(
        int(path.name.rpartition(".")[2])
        for path in folder.glob(f"{TOKENS}.*")
        if path.name.rpartition(".")[2].isdigit()
    )
    if not numbers:
        raise LoomError(f"{folder} holds no index: there is no {TOKENS}.0. Build one: loom index TOKENS.")
    for number in numbers:
        for name in (TABLE, OFFSETS):
            if not (folder / f"{name}.{number}").is_file():
                raise LoomError(
                    f"{folder} is a half-built index: {name}.{number} is missing. Run `loom index` again; it "
                    f"goes on where it stopped."
                )
    return tuple(IndexShard(folder, number, dtype) for number in numbers)
