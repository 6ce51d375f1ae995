"""How much there is: documents, words, bytes; how long documents are, and lengths that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loom.survey.analysis import Chunk, Places, shown
from loom.survey.kernels import COUNT, KEY, WHERE
from loom.survey.sketches import Counts, Extremes, Partial, Tally

EDGES = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000]
PEAKS = 10
NEIGHBOURS = 10  # lengths on either side that a peak is compared with
LEAST = 5  # documents of a length before it can stand out


class Summary:
    """Documents, words and bytes, and the smallest and largest document."""

    name, title = "counts", "Documents, words and bytes"

    def start(self) -> Partial:
        return {"totals": Tally(4), "words": Extremes(), "bytes": Extremes(), "sources": Tally(3)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        totals, sources = partial["totals"], partial["sources"]
        words, sizes = partial["words"], partial["bytes"]
        assert isinstance(totals, Tally)
        assert isinstance(sources, Tally)
        assert isinstance(words, Extremes)
        assert isinstance(sizes, Extremes)
        counts = chunk.words.counts
        points = chunk.characters
        totals.add("all", len(chunk), int(counts.sum()), int(chunk.sizes.sum()), int(points.sum()))
        for number, extremes in ((counts, words), (chunk.sizes, sizes)):
            for row in {int(np.argmin(number)), int(np.argmax(number))} if len(chunk) else ():
                extremes.add(int(number[row]), int(chunk.where[row]), chunk.ids[row])
        names = chunk.batch.table.column("source").to_pylist()
        for name in sorted({str(name) for name in names}):
            mine = np.array([str(value) == name for value in names])
            sources.add(name, int(mine.sum()), int(counts[mine].sum()), int(chunk.sizes[mine].sum()))

    def wanted(self, partial: Partial) -> Sequence[int]:
        return []

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        totals, sources = partial["totals"], partial["sources"]
        assert isinstance(totals, Tally)
        assert isinstance(sources, Tally)
        documents, words, size, points = totals.values.get("all", [0, 0, 0, 0])
        out: dict[str, Any] = {"documents": documents, "words": words, "bytes": size, "characters": points}
        out["words_per_document"] = words / documents if documents else 0.0
        for key in ("words", "bytes"):
            extremes = partial[key]
            assert isinstance(extremes, Extremes)
            for side, entry in (("fewest", extremes.low), ("most", extremes.high)):
                if entry is not None:
                    out[f"{side}_{key}"] = {"number": entry[0], "id": entry[2]}
        out["sources"] = [
            {"source": name, "documents": row[0], "words": row[1], "bytes": row[2]}
            for name, row in sources.ranked()
        ]
        return out


class Lengths:
    """The distribution of lengths in characters and in words, and lengths far commoner than their like."""

    name, title = "lengths", "Lengths and their odd peaks"

    def start(self) -> Partial:
        return {"characters": Counts(), "words": Counts()}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        values = {"characters": chunk.characters, "words": chunk.words.counts}
        for key, numbers in values.items():
            counts = partial[key]
            assert isinstance(counts, Counts)
            counts.add(numbers.astype(np.uint64), chunk.where)

    def _peaks(self, counts: Counts) -> list[tuple[int, int, float, int]]:
        """(length, documents, expected, first place): expected is the mean of the neighbouring lengths."""
        rows = counts.rows()
        rows = rows[np.argsort(rows[:, KEY])]
        lengths, numbers = rows[:, KEY].astype(np.int64), rows[:, COUNT].astype(np.int64)
        totals = np.concatenate(([0], np.cumsum(numbers)))
        low = np.searchsorted(lengths, lengths - NEIGHBOURS, side="left")
        high = np.searchsorted(lengths, lengths + NEIGHBOURS, side="right")
        span = np.minimum(lengths, NEIGHBOURS) + NEIGHBOURS  # neighbours there can be: none is below 0
        expected = (totals[high] - totals[low] - numbers) / span
        # A Poisson count that far above its expectation is no accident.
        excess = (numbers - expected) / np.sqrt(expected + 1)
        odd = np.flatnonzero((numbers >= LEAST) & (numbers > 3 * expected + 2))
        order = odd[np.argsort(-excess[odd], kind="stable")][:PEAKS]
        return [
            (int(lengths[at]), int(numbers[at]), float(expected[at]), int(rows[at, WHERE])) for at in order
        ]

    def wanted(self, partial: Partial) -> Sequence[int]:
        found = []
        for key in ("characters", "words"):
            counts = partial[key]
            assert isinstance(counts, Counts)
            found += [where for *_, where in self._peaks(counts)]
        return found

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        out = {}
        for key in ("characters", "words"):
            counts = partial[key]
            assert isinstance(counts, Counts)
            rows = counts.rows()
            rows = rows[np.argsort(rows[:, KEY])]
            lengths, numbers = rows[:, KEY].astype(np.int64), rows[:, COUNT].astype(np.int64)
            below = np.concatenate(([0], np.cumsum(numbers)))
            total = int(below[-1])
            edges = np.searchsorted(lengths, EDGES, side="left")
            bins = [
                {"from": low, "below": high, "documents": int(below[end] - below[start])}
                for low, high, start, end in zip(
                    EDGES, [*EDGES[1:], None], edges, [*edges[1:], len(lengths)], strict=True
                )
            ]
            quantiles = {
                f"{share:g}": int(lengths[np.searchsorted(below[1:], share * total, side="left")])
                for share in (0.05, 0.25, 0.5, 0.75, 0.95)
                if total
            }
            peaks = [
                {"length": length, "documents": number, "expected": round(expected, 2)} | shown(places, where)
                for length, number, expected, where in self._peaks(counts)
            ]
            mean = float((lengths * numbers).sum() / total) if total else 0.0
            out[key] = {"mean": mean, "quantiles": quantiles, "histogram": bins, "peaks": peaks}
            out[key] |= {"exact": counts.exact, "missed": counts.missed}
        return out
