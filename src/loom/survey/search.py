"""Search a corpus by phrase or by regular expression: how often, in how many documents, in which.

`rain OR snow AND umbrella` is (rain or snow) and umbrella in one document. Regular expressions are RE2's,
whose time grows with the text's length only, whatever the pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loom.errors import LoomError
from loom.survey.analysis import Chunk, Places, shown
from loom.survey.sketches import First, Partial, Tally

SHOWN = 20


def clauses(query: str) -> list[list[str]]:
    """AND of OR of phrases. Raises `LoomError` where a phrase is missing."""
    found = [[phrase.strip() for phrase in part.split(" OR ")] for part in f" {query} ".split(" AND ")]
    if not all(phrase for part in found for phrase in part):
        raise LoomError(
            f"{query!r} lacks a phrase beside AND or OR: write for example 'rain OR snow AND hail'."
        )
    return found


class Search:
    """Counts and documents of queries, case and all."""

    name, title = "search", "Search"

    def __init__(self, phrases: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        self.phrases, self.patterns = tuple(phrases), tuple(patterns)
        for phrase in self.phrases:
            clauses(phrase)
        for pattern in self.patterns:
            try:
                pc.count_substring_regex(pa.array([""]), pattern)
            except pa.ArrowInvalid as error:
                raise LoomError(f"{pattern!r} is no regular expression of RE2's: {error}.") from None

    @property
    def queries(self) -> list[tuple[str, bool]]:
        return [(query, False) for query in self.phrases] + [(query, True) for query in self.patterns]

    def start(self) -> Partial:
        return {
            "counts": Tally(2),
            **{f"{number}": First(SHOWN) for number in range(len(self.queries))},
        }

    def map(self, partial: Partial, chunk: Chunk) -> None:
        tally = partial["counts"]
        assert isinstance(tally, Tally)
        column = chunk.batch.table.column("text")
        for number, (query, is_pattern) in enumerate(self.queries):
            first = partial[f"{number}"]
            assert isinstance(first, First)
            occurrences, matched = self._match(column, query, is_pattern)
            tally.add(f"{number}", occurrences, int(matched.sum()))
            for row in matched.nonzero()[0][:SHOWN].tolist():
                first.add(int(chunk.where[row]), None)

    def _match(self, column: Any, query: str, is_pattern: bool) -> tuple[int, Any]:
        """(occurrences of all phrases, which documents match [n])."""
        if is_pattern:
            counts = pc.count_substring_regex(column, query).to_numpy()
            return int(counts.sum()), counts > 0
        total, kept = 0, None
        for clause in clauses(query):
            any_of = None
            for phrase in clause:
                counts = pc.count_substring(column, phrase).to_numpy()
                total += int(counts.sum())
                any_of = counts > 0 if any_of is None else any_of | (counts > 0)
            kept = any_of if kept is None else kept & any_of
        return total, kept

    def wanted(self, partial: Partial) -> Sequence[int]:
        return [
            entry[0]
            for part in partial.values()
            if isinstance(part, First)
            for entry in part.dump()["entries"]
        ]

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        tally = partial["counts"]
        assert isinstance(tally, Tally)
        out = []
        for number, (query, is_pattern) in enumerate(self.queries):
            first = partial[f"{number}"]
            assert isinstance(first, First)
            occurrences, documents = tally.values.get(f"{number}", [0, 0])
            out.append(
                {
                    "query": query,
                    "regex": is_pattern,
                    "occurrences": occurrences,
                    "documents": documents,
                    "first": [shown(places, at) for at, _ in first.dump()["entries"]],
                }
            )
        return {"queries": out}
