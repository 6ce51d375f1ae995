"""Paragraphs by the share of their n-grams that were seen before, as Dolma's deduper counts them.

N-grams are put in while they are asked for, so a paragraph that repeats itself meets itself. One with fewer
than two n-grams is compared as a whole. Words are UAX 29's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from loom.corpus.batch import Batch, utf8
from loom.corpus.dolma import config
from loom.corpus.words import split

BETWEEN = "\x1f"  # no word holds it


def paragraph_ngrams(batch: Batch, rules: config.Dedupe, compat: bool) -> tuple[Any, Any, Any]:
    """(fingerprints uint64[m, 2] in order, (paragraph, weight) of each int64[m, 2], paragraphs int64[p, 3]).

    A paragraph is (row, start, end) in code points, its newline included. Where one is compared as a whole
    its n-gram, if it has one, is put in but has no weight.
    """
    from loom.corpus.kernels import fingerprints

    assert rules.paragraphs is not None and rules.paragraphs.by_ngram is not None
    chosen = rules.paragraphs.by_ngram
    keys: list[str] = []
    owners: list[tuple[int, int]] = []
    spans: list[tuple[int, int, int]] = []
    for row, text in enumerate(batch.texts()):
        size = len(text.encode())
        at = 0
        for paragraph in text.split("\n") if text else ():
            start, at = at, at + len(paragraph)
            inside = at < size - 1 if compat else at < len(text)  # Dolma compares characters with bytes
            at += inside
            if (at if compat else len(paragraph)) < (rules.min_length or 0):
                continue
            words = [found for found in split(paragraph) if not found.isspace()]
            if rules.min_words:
                if compat or len(words) < rules.min_words:
                    continue
            elif rules.skip_empty and not paragraph.strip():
                continue
            starts = _starts(len(words) - chosen.ngram_length + 1, chosen.stride, compat)
            found = [BETWEEN.join(words[first : first + chosen.ngram_length]) for first in starts]
            whole = len(found) < 2 and not chosen.skip_short_paragraphs
            owners += [(len(spans), int(not whole)) for _ in found]
            keys += found
            if whole:
                owners.append((len(spans), 1))
                keys.append(paragraph)
            if found or whole:
                spans.append((row, start, at))
    prints = fingerprints.documents(*utf8(pa.chunked_array([pa.array(keys, pa.large_string())])))
    return prints, np.array(owners, np.int64).reshape(-1, 2), np.array(spans, np.int64).reshape(-1, 3)


def _starts(count: int, stride: int, compat: bool) -> list[int]:
    """The words where n-grams begin: 0, then every `stride`-th. Dolma takes the first two side by side."""
    step = max(stride, 1)
    if not compat:
        return list(range(0, count, step))
    return [start for start in (0, *range(1, count, step)) if start < count]


def scores(owners: Any, weights: Any, found: Any, count: int) -> Any:
    """Of each paragraph the share of its fingerprints that were there, by weight, float32[count].

    `found` are the places of those that were.
    """
    hit = np.zeros(owners.size, np.int64)
    hit[found] = 1
    total = np.bincount(owners, weights, minlength=count)
    return (np.bincount(owners, hit * weights, minlength=count) / total).astype(np.float32)
