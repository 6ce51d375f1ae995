"""The most and least common n-grams, and how many different ones there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loom.survey import kernels
from loom.survey.analysis import Chunk, Places, words_at
from loom.survey.kernels import AT, COUNT, WHERE
from loom.survey.sketches import Counts, Distinct, Partial, Sample


class Grams:
    """N-grams of words within a document: the commonest, some of the rarest, the number of different ones.

    Counts are exact while there are at most `most` n-grams. Beyond, a count may be too low by `missed`,
    the rarest come from a uniform sample of the different ones (with exact counts), and their number is
    HyperLogLog's.
    """

    name, title = "ngrams", "Most and least common n-grams, unique n-grams"

    def __init__(self, sizes: Sequence[int] = (1, 2, 3, 5, 10), top: int = 25, most: int = 1 << 20) -> None:
        self.sizes, self.top, self.most = tuple(sizes), top, most

    def start(self) -> Partial:
        partial: Partial = {}
        for n in self.sizes:
            partial |= {f"{n}": Counts(self.most), f"{n}:sample": Sample(), f"{n}:distinct": Distinct()}
        return partial

    def _parts(self, partial: Partial, n: int) -> tuple[Counts, Sample, Distinct]:
        counts, sample, distinct = (partial[f"{n}{part}"] for part in ("", ":sample", ":distinct"))
        assert isinstance(counts, Counts)
        assert isinstance(sample, Sample)
        assert isinstance(distinct, Distinct)
        return counts, sample, distinct

    def map(self, partial: Partial, chunk: Chunk) -> None:
        words, offsets = chunk.words, chunk.utf8[1]
        for n in self.sizes:
            counts, sample, distinct = self._parts(partial, n)
            document = gram = 0
            while document < len(chunk):
                if counts.room() < 1:
                    counts.make_room()
                    if not counts.exact and not len(counts.door):
                        counts.shut_out_single_ones()
                if counts.door_room() < 1:
                    counts.shut_out_single_ones()
                if sample.room() < 1:
                    sample.make_room()
                document, gram, new, sampled, met = kernels.count_grams(
                    words.hashes, words.starts, words.bounds, offsets, n, chunk.where, document, gram,
                    counts.table, counts.room(), distinct.registers, sample.table, sample.bar, sample.room(),
                    counts.door, counts.door_room(),
                )  # fmt: skip
                counts.used += new
                counts.met += met
                sample.used += sampled

    def _rarest(self, counts: Counts, sample: Sample) -> Any:
        if counts.exact:
            return counts.smallest(self.top)
        rows = sample.rows()
        return rows[np.argsort(rows[:, COUNT].astype(np.int64), kind="stable")[: self.top]]

    def wanted(self, partial: Partial) -> Sequence[int]:
        found: list[int] = []
        for n in self.sizes:
            counts, sample, _ = self._parts(partial, n)
            for rows in (counts.largest(self.top), self._rarest(counts, sample)):
                found += rows[:, WHERE].tolist()
        return found

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        out = {}
        for n in self.sizes:
            counts, sample, distinct = self._parts(partial, n)
            once = int((sample.rows()[:, COUNT] == 1).sum())
            out[f"{n}"] = {
                "most_common": self._texts(counts.largest(self.top), n, places),
                "least_common": self._texts(self._rarest(counts, sample), n, places),
                "unique": counts.used if counts.exact else round(distinct.estimate()),
                "unique_error": 0.0 if counts.exact else Distinct.ERROR,
                "share_seen_once": once / sample.used if sample.used else 0.0,
                "exact": counts.exact,
                "missed": counts.missed,
            }
        return out

    def _texts(self, rows: Any, n: int, places: Places) -> list[dict[str, Any]]:
        found = []
        for row in rows:
            place = places.get(int(row[WHERE]))
            text = words_at(place.text, int(row[AT]), n) if place else ""
            found.append({"text": text, "count": int(row[COUNT])})
        return found
