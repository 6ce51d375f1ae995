"""The contract of an analysis, and what it sees of the corpus.

An analysis is a monoid: `start` gives an empty partial result, `map` adds a batch of documents to one,
partial results merge component by component (`loom.survey.sketches`), `finish` turns the whole into
plain JSON values. To add one, write the four and name it in `loom.survey.registry`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from loom.corpus.batch import Batch
from loom.corpus.kernels.characters import lengths as characters
from loom.survey import kernels
from loom.survey.sketches import Partial

WORD = re.compile(r"\w+")
ROW_BITS = 40


def word_set(text: str) -> frozenset[str]:
    """The words of a list written with spaces."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Words:
    """A batch's words: hashes and first bytes [words]; document i has [bounds[i], bounds[i + 1])."""

    hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return np.diff(self.bounds)


def find_words(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], lower: bool) -> Words:
    """Words are runs of letters, digits and underscores, as `\\w+` finds them."""
    most = int(offsets[-1] - offsets[0]) // 2 + len(offsets)
    hashes, starts = np.empty(most, np.uint64), np.empty(most, np.int64)
    bounds = np.empty(len(offsets), np.int64)
    count = kernels.words(data, offsets, kernels.word_table(), lower, hashes, starts, bounds)
    return Words(hashes[:count], starts[:count], bounds)


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents of one file, with what several analyses need of them."""

    batch: Batch
    file: int

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def where(self) -> npt.NDArray[np.uint64]:
        """Each document's place: the file's number << 40 | its row."""
        return (np.uint64(self.file) << np.uint64(ROW_BITS)) | self.batch.lines.astype(np.uint64)

    @cached_property
    def utf8(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self.batch.utf8()

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document."""
        offsets = self.utf8[1]
        return offsets[1:] - offsets[:-1]

    @cached_property
    def characters(self) -> npt.NDArray[np.int64]:
        """Code points of each document."""
        counted: npt.NDArray[np.int64] = characters(*self.utf8)
        return counted

    @cached_property
    def words(self) -> Words:
        return find_words(*self.utf8, False)

    @cached_property
    def lower_words(self) -> Words:
        """The words with ASCII capitals as small letters."""
        return find_words(*self.utf8, True)

    @cached_property
    def texts(self) -> list[str]:
        return self.batch.texts()

    @cached_property
    def ids(self) -> list[str]:
        return self.batch.ids

    @cached_property
    def metadata(self) -> list[dict[str, Any]]:
        """Each document's metadata, empty where it has none."""
        return [_object(value) for value in self.batch.table.column("metadata").to_pylist()]

    @cached_property
    def urls(self) -> list[str | None]:
        """`metadata.url`, else an id that is a URL."""
        found: list[str | None] = []
        for identity, raw in zip(self.ids, self.batch.table.column("metadata").to_pylist(), strict=True):
            metadata = _object(raw) if raw and "url" in raw else {}
            url = metadata.get("url") or metadata.get("warc_url")
            if not isinstance(url, str):
                url = identity if "://" in identity else None
            found.append(url)
        return found


def _object(raw: str | None) -> dict[str, Any]:
    value = orjson.loads(raw) if raw else {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Place:
    """A document that a result points to."""

    id: str
    text: str
    url: str | None
    file: str
    row: int


Places = Mapping[int, Place]


class Analysis(Protocol):
    """One question to a corpus."""

    name: str
    title: str

    def start(self) -> Partial: ...

    def map(self, partial: Partial, chunk: Chunk) -> None: ...

    def wanted(self, partial: Partial) -> Sequence[int]:
        """The places of documents that `finish` will show."""
        ...

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]: ...


def words_at(text: str, at: int, count: int) -> str:
    """`count` words of a text from byte `at` on, a space between them."""
    rest = text.encode()[at:].decode(errors="ignore")
    found = []
    for match in WORD.finditer(rest):
        found.append(match[0])
        if len(found) == count:
            break
    return " ".join(found)


def shown(places: Places, where: int) -> dict[str, Any]:
    """A document as results name it."""
    place = places.get(where)
    if place is None:
        return {}
    out: dict[str, Any] = {"id": place.id, "file": f"{place.file}:{place.row}"}
    if place.url:
        out["url"] = place.url
    return out
