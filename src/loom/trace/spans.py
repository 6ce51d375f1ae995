"""Maximal verbatim spans of a text in the training tokens, as OLMoTrace finds them.

(Liu et al. 2025, "OLMoTrace: Tracing Language Model Outputs Back to Trillions of Training Tokens",
section 4.) For every word's start the longest run of ids that occurs in the index; cut behind the first
full stop or line end; backed off to the end of a word; kept if no other holds it; then the rarest are
chosen, rarest meaning the least probable as a bag of ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loom.errors import LoomError
from loom.trace.align import Encoded, encode
from loom.trace.query import Index
from loom.trace.suffixes import LOOKAHEAD

DELIMITERS = (".", "\n")


@dataclass(frozen=True)
class Choice:
    """What counts as a span. `keep` of them at least, `density` for each of the text's ids beyond that."""

    min_tokens: int = 1
    max_count: int | None = None
    density: float = 0.05
    keep: int = 10
    across: bool = False
    """Let spans run on past full stops and line ends."""

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or self.keep < 1 or not 0 <= self.density <= 1:
            raise ValueError(
                f"min_tokens and keep must be at least 1 and density lie between 0 and 1: {self}"
            )


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, whose ids occur `count` times; `surprise` is -ln of their unigram probability."""

    start: int
    end: int
    ids: tuple[int, ...]
    count: int
    surprise: float


def find_spans(index: Index, text: str, choice: Choice | None = None) -> list[Span]:
    """The chosen spans in order of their place. Raises `LoomError` for a text of over 100,000 ids.

    A text's first word has no space before it and most words of documents have: it is looked up both ways.
    """
    choice = choice or Choice()
    encoded = encode(index.tokenizer, text)
    if len(encoded.ids) > LOOKAHEAD:
        raise LoomError(
            f"The text has {len(encoded.ids):,} tokens; at most {LOOKAHEAD:,} are traced. Give a part of it."
        )
    found = candidates(index, encoded, choice)
    if text[:1].isalnum():
        spaced = encode(index.tokenizer, " " + text)
        moved = Encoded(text, spaced.ids, np.maximum(spaced.starts - 1, 0), np.maximum(spaced.ends - 1, 0))
        found += candidates(index, moved, choice, only_first=True)
    return choose(maximal(found), choice, len(encoded.ids))


def candidates(index: Index, encoded: Encoded, choice: Choice, only_first: bool = False) -> list[Span]:
    """For each word's start its longest span; possibly one within another."""
    text, ids = encoded.text, encoded.ids
    starts = word_starts(encoded)
    if only_first:
        starts = starts[:1]
    if not len(starts):
        return []
    limits = reach(encoded, starts, choice.across)
    lengths = index.longest_prefixes(ids, starts, limits)
    spans = []
    furthest = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        # One that ends no later than an earlier one lies within it.
        while length and not _ends_word(encoded, start + length):
            length -= 1
        if start + length <= furthest or length < choice.min_tokens:
            continue
        first, last = _trimmed(text, int(encoded.starts[start]), int(encoded.ends[start + length - 1]))
        if first == last:
            continue
        furthest = start + length
        chosen = tuple(ids[start : start + length].tolist())
        count = index.count(chosen)
        if choice.max_count is None or count <= choice.max_count:
            surprise = sum(map(index.surprise, chosen))
            spans.append(Span(first, last, chosen, count, surprise))
    return spans


def word_starts(encoded: Encoded) -> NDArray[np.int64]:
    """The ids with which a word, or something that is no word, begins."""
    text = encoded.text
    return np.array(
        [
            number
            for number, start in enumerate(encoded.starts.tolist())
            if (number == 0 or encoded.ends[number - 1] <= start) and _begins_word(text, start)
        ],
        np.int64,
    )


def _begins_word(text: str, at: int) -> bool:
    return at == 0 or at >= len(text) or not (text[at - 1].isalnum() and text[at].isalnum())


def _ends_word(encoded: Encoded, number: int) -> bool:
    """Whether the ids before `number` end with a word, and not within a character."""
    text, at = encoded.text, int(encoded.ends[number - 1])
    if number < len(encoded.ids) and encoded.starts[number] < at:
        return False
    return at >= len(text) or not (text[at - 1].isalnum() and text[at].isalnum())


def _trimmed(text: str, first: int, last: int) -> tuple[int, int]:
    while first < last and text[first].isspace():
        first += 1
    while last > first and text[last - 1].isspace():
        last -= 1
    return first, last


def reach(encoded: Encoded, starts: NDArray[np.int64], across: bool) -> NDArray[np.int64]:
    """How many ids a span from each start may hold: up to and with the first delimiter after its start."""
    total = len(encoded.ids)
    if across:
        return total - starts
    pairs = zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True)
    ends = [number + 1 for number, (first, last) in enumerate(pairs) if _delimits(encoded.text[first:last])]
    bounds = np.array([*ends, total], np.int64)
    nearest: NDArray[np.int64] = bounds[
        np.searchsorted(bounds, starts, side="right").clip(max=len(bounds) - 1)
    ]
    return nearest - starts


def _delimits(piece: str) -> bool:
    return any(mark in piece for mark in DELIMITERS)


def maximal(spans: Sequence[Span]) -> list[Span]:
    """The spans that lie in no other; of equal ones the first. In order of start."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not kept or span.end > kept[-1].end:
            kept.append(span)
    return kept


def choose(spans: Sequence[Span], choice: Choice, tokens: int) -> list[Span]:
    """The rarest of them, as many as the text's length allows, in order of start."""
    count = max(choice.keep, math.ceil(choice.density * tokens))
    rarest = sorted(spans, key=lambda span: (-span.surprise, span.start))[:count]
    return sorted(rarest, key=lambda span: span.start)
