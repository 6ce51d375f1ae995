"""Questions to an index: how often, what follows, which documents.

Every answer is exact. A query is a list of ids of at most `LOOKAHEAD` tokens; the empty query stands
before every token. (Liu et al. 2024, "Infini-gram: Scaling Unbounded n-gram Language Models to a
Trillion Tokens", section 3 for the infinity-gram model.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loom import artifact
from loom.artifact import MANIFEST, Artifact
from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer
from loom.trace import kernels
from loom.trace.layout import TYPES, Document, IndexShard, separator, shards_of
from loom.trace.suffixes import LOOKAHEAD

LOOKED_AT = 1000  # occurrences of a phrase among which its documents are chosen


@dataclass(frozen=True)
class Hits:
    """Where a query occurs: entries [low, high) of each shard's table."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(high - low for low, high in self.ranges)


@dataclass(frozen=True)
class Probability:
    """P(next | context) = continued / context, None where the context never occurs.

    `suffix` is how many of the context's tokens were used (all of them for an n-gram).
    """

    context: int
    continued: int
    suffix: int

    @property
    def value(self) -> float | None:
        return self.continued / self.context if self.context else None


@dataclass(frozen=True)
class Distribution:
    """What follows a context: counts by id, and how often the context occurs."""

    context: int
    counts: dict[int, int]
    suffix: int


class Index:
    """An opened index folder: Loom's, or one that infini-gram's own builder wrote."""

    def __init__(
        self, path: Path, dtype: np.dtype[Any], tokenizer: Path | None, made: Artifact | None
    ) -> None:
        self.path, self.dtype, self._tokenizer_path, self.artifact = path, dtype, tokenizer, made
        self.shards: tuple[IndexShard, ...] = shards_of(path, dtype)

    @property
    def tokens(self) -> int:
        """Of all documents, separators left out."""
        return sum(len(shard.tokens) - shard.documents for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises `LoomError` where the index came without one and none was named."""
        if self._tokenizer_path is None:
            raise LoomError(
                f"{self.path} holds no manifest of Loom's: run the same `loom index` again if it was stopped "
                f"half-way. If infini-gram built it, name its tokenizer with --tokenizer."
            )
        tokenizer = Tokenizer.load(self._tokenizer_path)
        if self.artifact is not None:
            tokenizer.check(self.artifact.facts["index"], str(self.path))
        return tokenizer

    def _query(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        if len(ids) > LOOKAHEAD:
            raise LoomError(
                f"A query of {len(ids):,} tokens is too long: at most {LOOKAHEAD:,} are looked up."
            )
        values = np.asarray(ids, np.int64)
        if len(values) and not (values.min() >= 0 and int(values.max()) < separator(self.dtype)):
            raise LoomError(
                f"The query holds the id {int(values.max())}; ids of this index lie between 0 and "
                f"{separator(self.dtype) - 1:,}. Was it encoded with another tokenizer?"
            )
        return values.astype(self.dtype)

    def find(self, ids: Sequence[int] | NDArray[Any]) -> Hits:
        """Where `ids` occur. Raises `LoomError` for ids outside the index's type or too many of them."""
        query = self._query(ids)
        size = self.dtype.itemsize
        return Hits(
            tuple(
                kernels.find(shard.tokens, shard.table, shard.width, size, query, 0, len(query))
                for shard in self.shards
            )
        )

    def count(self, ids: Sequence[int] | NDArray[Any]) -> int:
        """How often `ids` occur within documents; the empty query, how many tokens there are."""
        return self.find(ids).count if len(ids) else self.tokens

    def probability(self, context: Sequence[int], token: int) -> Probability:
        """P(token | context) by counts: how often the context goes on with `token`."""
        return Probability(self.count(context), self.count([*context, token]), len(context))

    def longest_suffix(self, context: Sequence[int]) -> int:
        """How many of the last tokens of `context` occur together. Longer suffixes are rarer, so bisect."""
        low, high = 0, len(context)
        while low < high:
            middle = (low + high + 1) // 2
            if self.count(context[len(context) - middle :]):
                low = middle
            else:
                high = middle - 1
        return low

    def infinity_probability(self, context: Sequence[int], token: int) -> Probability:
        """P(token | longest suffix of the context that occurs): the infinity-gram model."""
        length = self.longest_suffix(context)
        return self.probability(context[len(context) - length :], token)

    def next_tokens(self, context: Sequence[int]) -> Distribution:
        """Every token that follows `context` and how often."""
        if not len(context):
            totals: dict[int, int] = {}
            for shard in self.shards:
                for token, count in shard.unigrams.items():
                    totals[token] = totals.get(token, 0) + count
            return Distribution(self.tokens, totals, 0)
        counts: dict[int, int] = {}
        hits = self.find(context)
        for shard, (low, high) in zip(self.shards, hits.ranges, strict=True):
            if low == high:
                continue
            found = kernels.next_tokens(
                shard.tokens, shard.table, shard.width, self.dtype.itemsize, low, high, len(context)
            )
            for token, count in zip(*found, strict=True):
                if token != separator(self.dtype):
                    counts[token] = counts.get(token, 0) + count
        return Distribution(hits.count, counts, len(context))

    def infinity_next_tokens(self, context: Sequence[int]) -> Distribution:
        """Every token that follows the longest suffix of `context` that occurs."""
        length = self.longest_suffix(context)
        return self.next_tokens(context[len(context) - length :])

    @cached_property
    def _surprises(self) -> dict[int, float]:
        total = self.tokens
        return {token: -math.log(count / total) for token, count in self.next_tokens([]).counts.items()}

    def surprise(self, token: int) -> float:
        """-ln of a token's share of all tokens; for one that never occurs, as if it did a little."""
        return self._surprises.get(token, math.log(self.tokens + 1))

    def places(self, hits: Hits, limit: int | None = None) -> list[tuple[IndexShard, NDArray[np.int64]]]:
        """Token offsets of hits by shard; with `limit`, that many of them, evenly spaced in the order."""
        chosen = np.arange(hits.count)
        if limit is not None and hits.count > limit:
            chosen = np.arange(limit) * hits.count // limit
        out, before = [], 0
        for shard, (low, high) in zip(self.shards, hits.ranges, strict=True):
            mine = chosen[(chosen >= before) & (chosen < before + high - low)] - before + low
            before += high - low
            if len(mine):
                out.append((shard, kernels.places(shard.table, shard.width, self.dtype.itemsize, mine)))
        return out

    def occurrences(self, hits: Hits, limit: int | None = None) -> Iterator[tuple[Document, int]]:
        """(document, offset of the hit in it) for hits, or for `limit` of them evenly spaced."""
        for shard, where in self.places(hits, limit):
            for place in where.tolist():
                document = shard.document(shard.document_at(place))
                yield document, place - document.first

    def documents_of(self, hits: Hits, limit: int) -> list[tuple[Document, int]]:
        """At most `limit` documents that hold a query, each with the offset of its first hit in it.

        Up to `LOOKED_AT` occurrences are looked at, evenly spaced; documents are drawn evenly from theirs.
        """
        first: dict[tuple[int, int], int] = {}
        found_at = self.places(hits, LOOKED_AT)
        for part, (shard, where) in enumerate(found_at):
            numbers = np.searchsorted(shard.starts, where.astype(np.uint64), side="right") - 1
            for number, place in zip(numbers.tolist(), where.tolist(), strict=True):
                first[part, number] = min(place, first.get((part, number), place))
        chosen = sorted(first.items())
        if len(chosen) > limit:
            chosen = [chosen[at * len(chosen) // limit] for at in range(limit)]
        found = []
        for (part, number), place in chosen:
            document = found_at[part][0].document(number)
            found.append((document, place - document.first))
        return found

    def read(self, document: Document, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Ids [first, last) of a document."""
        tokens = self.shards[[shard.number for shard in self.shards].index(document.shard)].tokens
        end = document.last if last is None else min(document.first + last, document.last)
        return tokens[document.first + max(0, first) : end]

    def longest_prefixes(
        self, ids: NDArray[Any], starts: NDArray[np.int64], limits: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """For each start, how many tokens of `ids[start:start + limit]` occur together, [starts]."""
        values = np.asarray(ids, np.int64)
        known = (values >= 0) & (values < separator(self.dtype))
        query = np.where(known, values, separator(self.dtype)).astype(self.dtype)
        # An id that the index cannot hold ends a match: no limit reaches past it.
        unknown = np.append(np.flatnonzero(~known), len(query))
        reach = unknown[np.searchsorted(unknown, starts)] - starts
        limits = np.minimum(np.minimum(limits, reach), LOOKAHEAD)
        out = np.zeros(len(starts), np.int64)
        for shard in self.shards:
            kernels.longest_prefixes(
                shard.tokens, shard.table, shard.width, self.dtype.itemsize, query, starts, limits, out
            )
        return out

    def documents_with_id(self, identities: Iterable[str]) -> list[Document]:
        """The documents of these ids, by a pass over every document's line."""
        wanted = set(identities)
        return [
            document
            for shard in self.shards
            for number in range(shard.documents)
            if (document := shard.document(number)).id in wanted
        ]


def open_index(path: Path, tokenizer: Path | None = None, dtype: str | None = None) -> Index:
    """Open an index folder.

    One without a manifest is infini-gram's own: `dtype` (uint16 unless said) and `tokenizer` are then
    the caller's to name. Raises `LoomError` for a folder that is no index, is half-built or was cut
    short, whose tokens changed since, or whose tokenizer is another.
    """
    if not path.is_dir():
        raise LoomError(f"There is no index {path}. Build one: loom index TOKENS --out {path}.")
    if not (path / MANIFEST).is_file():
        if (path / "tasks").is_dir() or (path / "work").is_dir():
            raise LoomError(
                f"{path} is a half-built index: it has no {MANIFEST}. Run `loom index` again; it goes on "
                f"where it stopped."
            )
        return Index(path, TYPES[_known_type(dtype or "uint16")], tokenizer, None)
    made = artifact.load(path, "index")
    made.verify()
    facts = made.facts["index"]
    for item in made.inputs:
        _check_source(path, item)
    if tokenizer is not None:
        Tokenizer.load(tokenizer).check(facts, str(path))
    return Index(path, TYPES[facts["dtype"]], path / facts["tokenizer"]["path"], made)


def _known_type(name: str) -> str:
    if name not in TYPES:
        raise LoomError(f"{name!r} is no type of ids; there are {', '.join(TYPES)}.")
    return name


def _check_source(path: Path, item: artifact.Input) -> None:
    """An index is complete without its tokens; where they are there, they must be the same."""
    source = path / item.path
    if (source / MANIFEST).is_file() and artifact.load(source).digest != item.digest:
        raise LoomError(
            f"The tokens in {source} changed since {path} was built from them, so it would answer for text "
            f"that is no longer there. Build it again: loom index {source} --out {path}."
        )
