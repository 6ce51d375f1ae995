"""What a model must beat: unigram and bigram models counted on the training tokens.

The bigram is interpolated after Witten and Bell (1991; Chen and Goodman 1999, equation 9):

    p(w | v) = (c(v, w) + T(v) p(w)) / (c(v) + T(v))

with T(v) the number of distinct tokens seen after v. The unigram below it is interpolated with the
uniform distribution in the same way, so that no token has probability 0. A document's first token
follows the end-of-text token, as it does in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from loom.evals.perplexity import Document
from loom.tokens.shards import Ids, open_tokens


@dataclass(frozen=True)
class Bigram:
    """Counts of a text. Pairs are sorted by v * vocabulary + w."""

    vocabulary: int
    unigrams: NDArray[np.int64]
    """c(w), [vocabulary]"""
    pairs: NDArray[np.int64]
    counts: NDArray[np.int64]
    before: NDArray[np.int64]
    """c(v) as the first of a pair, [vocabulary]"""
    kinds: NDArray[np.int64]
    """T(v), [vocabulary]"""

    @property
    def unigram(self) -> NDArray[np.float64]:
        """p(w), [vocabulary]: Witten-Bell over the uniform distribution."""
        total, kinds = int(self.unigrams.sum()), int((self.unigrams > 0).sum())
        return (self.unigrams + kinds / self.vocabulary) / (total + kinds)

    def log_probabilities(self, previous: Ids, tokens: Ids) -> NDArray[np.float64]:
        """log p(tokens | previous) in nats."""
        v, w = previous.astype(np.int64), tokens.astype(np.int64)
        key = v * self.vocabulary + w
        place = np.minimum(np.searchsorted(self.pairs, key), max(len(self.pairs) - 1, 0))
        seen = (
            np.where(self.pairs[place] == key, self.counts[place], 0) if len(self.pairs) else np.zeros(len(v))
        )
        below = self.before[v] + self.kinds[v]
        unigram = self.unigram[w]
        mixed = (seen + self.kinds[v] * unigram) / np.maximum(below, 1)
        return np.asarray(np.log(np.where(below > 0, mixed, unigram)))


def count(streams: Sequence[Ids], vocabulary: int, eos: int) -> Bigram:
    """Count token streams; each begins after an end-of-text token."""
    keys = [_pair_keys(stream, vocabulary, eos) for stream in streams if len(stream)]
    joined = np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)
    joined.sort()
    pairs, counts = _runs(joined)
    unigrams = np.zeros(vocabulary, dtype=np.int64)
    for stream in streams:
        unigrams += np.bincount(stream, minlength=vocabulary)
    first = pairs // vocabulary
    before = np.bincount(first, weights=counts, minlength=vocabulary).astype(np.int64)
    kinds = np.bincount(first, minlength=vocabulary).astype(np.int64)
    return Bigram(vocabulary, unigrams, pairs, counts, before, kinds)


def previous_tokens(stream: Ids, eos: int) -> Ids:
    """Each token's predecessor; the first follows an end-of-text token."""
    return np.concatenate([np.array([eos], dtype=stream.dtype), stream[:-1]])


def _pair_keys(stream: Ids, vocabulary: int, eos: int) -> NDArray[np.int64]:
    return previous_tokens(stream, eos).astype(np.int64) * vocabulary + stream.astype(np.int64)


@numba.njit(cache=True)
def _runs(values: Any) -> Any:
    """Distinct values of a sorted array and how often each occurs."""
    distinct = np.empty(len(values), dtype=np.int64)
    counts = np.empty(len(values), dtype=np.int64)
    n = 0
    for value in values:
        if n and distinct[n - 1] == value:
            counts[n - 1] += 1
        else:
            distinct[n] = value
            counts[n] = 1
            n += 1
    return distinct[:n].copy(), counts[:n].copy()


def baselines(
    training: Path, documents: Sequence[Document] | None = None, vocabulary: int | None = None
) -> dict[str, float]:
    """`unigram_entropy` and `bigram_entropy`: cross-entropy in nats a token of held-out documents.

    `training` is a token folder; without `documents`, all of its `heldout/` are measured. Every token
    is predicted, with the end-of-text token that closes each document: exactly the tokens of
    `loom.evals.perplexity.summary`'s loss. `tokens` is their number. Both distributions are over the
    tokenizer's entries, or over `vocabulary`.
    """
    folder = open_tokens(training)
    eos = folder.eos.id
    model = count(list(folder.arrays), vocabulary or folder.vocab_size, eos)
    held = (
        list(open_tokens(training / "heldout").arrays)
        if documents is None
        else [
            np.concatenate([np.asarray(document.tokens, dtype=np.uint32), np.array([eos], dtype=np.uint32)])
            for document in documents
        ]
    )
    total = sum(map(len, held))
    if total == 0:
        return {"unigram_entropy": math.nan, "bigram_entropy": math.nan, "tokens": 0}
    log_unigram = np.log(model.unigram)
    unigram = -sum(float(log_unigram[stream].sum()) for stream in held)
    bigram = -sum(
        float(model.log_probabilities(previous_tokens(stream, eos), stream).sum()) for stream in held
    )
    return {"unigram_entropy": unigram / total, "bigram_entropy": bigram / total, "tokens": total}
