"""Documents that share their whole text, or their URL, within a corpus and between corpora."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from loom.survey.analysis import Chunk, Places, shown
from loom.survey.kernels import COUNT, KEY, WHERE
from loom.survey.sketches import Counts, Distinct, Partial, Sample, Table

TOP = 30
MOST = 1 << 22  # texts whose counts are kept exactly
SHOWN = 200  # code points of a duplicated text


def fingerprint(data: bytes | memoryview) -> int:
    """xxh3-64, never 0."""
    return int(xxhash.xxh3_64_intdigest(data)) or 1


class Duplicates:
    """Clusters of equal texts and of equal URLs: how many documents are copies, and the largest clusters."""

    name, title = "duplicates", "Duplicates of text and URL"

    def start(self) -> Partial:
        partial: Partial = {}
        for key in ("text", "url"):
            partial |= {key: Counts(MOST), f"{key}:distinct": Distinct(), f"{key}:sample": Sample()}
        return partial

    def map(self, partial: Partial, chunk: Chunk) -> None:
        data, offsets = chunk.utf8
        view, ends = data.data, offsets.tolist()
        texts = [fingerprint(view[a:b]) for a, b in pairwise(ends)]
        self._add(partial, "text", np.array(texts, np.uint64), chunk.where)
        urls = [(fingerprint(url.encode()), at) for at, url in enumerate(chunk.urls) if url]
        places = chunk.where[[at for _, at in urls]]
        self._add(partial, "url", np.array([key for key, _ in urls], np.uint64), places)

    def _add(
        self, partial: Partial, key: str, keys: npt.NDArray[np.uint64], where: npt.NDArray[np.uint64]
    ) -> None:
        counts, distinct, sample = parts(partial, key)
        counts.add(keys, where)
        rows = np.zeros((len(keys), 4), np.uint64)
        rows[:, KEY], rows[:, COUNT], rows[:, WHERE] = keys, 1, where
        sample.add_rows(rows)
        note_all(distinct, keys)

    def wanted(self, partial: Partial) -> Sequence[int]:
        found: list[int] = []
        for key in ("text", "url"):
            found += parts(partial, key)[0].largest(TOP, least=2)[:, WHERE].tolist()
        return found

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        out = {}
        for key in ("text", "url"):
            counts, distinct, _ = parts(partial, key)
            rows = counts.rows()
            doubled = rows[rows[:, COUNT] > 1]
            documents = int(rows[:, COUNT].sum())
            unique = counts.used if counts.exact else round(distinct.estimate())
            clusters = []
            for row in counts.largest(TOP, least=2):
                entry = {"documents": int(row[COUNT])} | shown(places, int(row[WHERE]))
                if key == "text" and int(row[WHERE]) in places:
                    entry["text"] = places[int(row[WHERE])].text[:SHOWN]
                clusters.append(entry)
            out[key] = {
                "documents": documents if counts.exact else None,
                "unique": unique,
                "clusters": len(doubled),
                "in_clusters": int(doubled[:, COUNT].sum()),
                "copies": int(doubled[:, COUNT].sum()) - len(doubled),
                "largest": clusters,
                "exact": counts.exact,
                "missed": counts.missed,
            }
        return out


def parts(partial: Partial, key: str) -> tuple[Counts, Distinct, Sample]:
    counts, distinct, sample = partial[key], partial[f"{key}:distinct"], partial[f"{key}:sample"]
    assert isinstance(counts, Counts)
    assert isinstance(distinct, Distinct)
    assert isinstance(sample, Sample)
    return counts, distinct, sample


def note_all(distinct: Distinct, keys: npt.NDArray[np.uint64]) -> None:
    from loom.survey.kernels import note_distinct

    for key in keys:
        note_distinct(distinct.registers, key)


def overlap(first: Partial, second: Partial, key: str) -> dict[str, Any]:
    """What two corpora share by text or by URL: different ones in both, and documents of each that are.

    Counted while both are exact; else estimated from the samples of different ones, with the standard
    error of a proportion.
    """
    (counts_a, distinct_a, sample_a), (counts_b, distinct_b, sample_b) = (
        parts(first, key),
        parts(second, key),
    )
    if counts_a.exact and counts_b.exact:
        shared, in_a, in_b = _common(counts_a.rows(), counts_b.rows())
        return {
            "shared": shared,
            "documents": [in_a, in_b],
            "unique": [counts_a.used, counts_b.used],
            "exact": True,
            "error": 0.0,
        }
    low = min(sample_a.low, sample_b.low)
    sample_a.keep_below(low)
    sample_b.keep_below(low)
    shared, in_a, in_b = _common(sample_a.rows(), sample_b.rows())
    scale = 1 / sample_a.share
    return {
        "shared": round(shared * scale),
        "documents": [round(in_a * scale), round(in_b * scale)],
        "unique": [round(distinct_a.estimate()), round(distinct_b.estimate())],
        "exact": False,
        "error": (1 / shared) ** 0.5 if shared else None,
    }


def _common(a: Table, b: Table) -> tuple[int, int, int]:
    """(keys in both, their documents in a, their documents in b)."""
    in_a, in_b = np.isin(a[:, KEY], b[:, KEY]), np.isin(b[:, KEY], a[:, KEY])
    return int(in_a.sum()), int(a[in_a][:, COUNT].sum()), int(b[in_b][:, COUNT].sum())
