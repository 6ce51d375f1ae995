"""Documents by phrase: `rain OR snow AND umbrella` is (rain or snow) and umbrella, in one document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loom.errors import LoomError
from loom.trace.query import Index
from loom.trace.reading import reading_of

MOST = 10_000_000  # occurrences of a phrase looked at; of commoner ones that many, evenly spaced


@dataclass(frozen=True)
class Found:
    """Documents as (shard's place, number), in order; `whole` is False where some may be missing."""

    documents: list[tuple[int, int]]
    whole: bool


def parse(query: str) -> list[list[str]]:
    """Clauses of phrases: OR binds tighter than AND. Raises `LoomError` where a phrase is missing."""
    clauses = [[phrase.strip() for phrase in clause.split(" OR ")] for clause in f" {query} ".split(" AND ")]
    if not all(phrase for clause in clauses for phrase in clause):
        raise LoomError(
            f"{query!r} lacks a phrase beside AND or OR: write for example 'rain OR snow AND umbrella'."
        )
    return clauses


def documents_with(index: Index, clauses: list[list[list[int]]]) -> Found:
    """The documents that hold, for every clause, at least one of its phrases, given as ids."""
    kept: set[tuple[int, int]] | None = None
    whole = True
    for clause in clauses:
        mine: set[tuple[int, int]] = set()
        for ids in clause:
            hits = index.find(ids)
            whole = whole and hits.count <= MOST
            for shard, places in index.places(hits, MOST):
                numbers = np.searchsorted(shard.starts, places.astype(np.uint64), side="right") - 1
                at = index.shards.index(shard)
                mine |= {(at, number) for number in np.unique(numbers).tolist()}
        kept = mine if kept is None else kept & mine
    return Found(sorted(kept or ()), whole)


def find_documents(index: Index, query: str, limit: int = 10, run: Path | None = None) -> dict[str, Any]:
    """How many documents match, and the first `limit` of them; with `run`, the steps that read them.

    A phrase is looked up as it stands at a text's start and as it stands after a space.
    """
    clauses = [
        [index.tokenizer.encode(start + phrase).tolist() for phrase in clause for start in ("", " ")]
        for clause in parse(query)
    ]
    found = documents_with(index, clauses)
    reading = None
    if run is not None and index.artifact is not None:
        reading = reading_of(run, index.artifact.facts["index"]["tokens"])
    shown = []
    for at, number in found.documents[:limit]:
        document = index.shards[at].document(number)
        entry: dict[str, Any] = {
            "id": document.id,
            "source": document.source,
            "origin": document.origin,
            "tokens": document.last - document.first,
        }
        if reading is not None and document.token_shard is not None and document.token_start is not None:
            start = document.token_start
            end = start + document.last - document.first
            entry["steps"] = reading[0].steps(reading[1], document.token_shard, start, end)
        shown.append(entry)
    return {"query": query, "count": len(found.documents), "exact": found.whole, "documents": shown}
