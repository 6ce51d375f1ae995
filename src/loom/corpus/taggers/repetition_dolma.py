"""Dolma's repetition taggers: runs of equal characters, and of equal tokens with a short period."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loom.corpus.attributes import Ints, Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.errors import LoomError

CHARACTERS = re.compile(r"(.+?)(\s?\1){3,}")
LINES = re.compile(r"[^\n]*\n|[^\n]+$")  # nothing but a newline ends one
PERIODS = range(1, 14)
FEWEST_TIMES = 3
CHUNK = 100_000  # code points that v2r2 tokenizes at a time
TOKENIZER = "a tokenizer.json (Dolma's is allenai/eleuther-ai-gpt-neox-20b-pii-special)"
KEYS = ("repetition", "doc_max_score_repetition", "doc_max_length_repetition", "doc_frac_repetition")
Span = tuple[int, int, float]


def _make(find: Callable[[str], list[Span]], always: bool = True) -> Tagger:
    """Spans and their statistics; without `always`, a text without a repetition gets no statistics."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        found = [find(text) for text in texts.strings]
        present = np.array([always or bool(spans) for spans in found], bool)
        longest = [max((end - start for start, end, _ in spans), default=0) for spans in found]
        most = [max((score for *_, score in spans), default=0.0) for spans in found]
        covered = [sum(end - start for start, end, _ in spans) for spans in found]
        lengths = texts.lengths
        share = np.divide(covered, lengths, out=np.zeros(len(texts)), where=lengths > 0)
        values = (
            from_lists([spans or None for spans in found]),
            whole(lengths, np.array(most, np.float64), present),
            whole(lengths, np.array(longest, np.float64), present),
            whole(lengths, share, present),
        )
        return dict(zip(KEYS, values, strict=True))

    return tag


def characters(text: str) -> list[Span]:
    """Four or more of the same in a row; the score is how often it comes."""
    return [
        (match.start(), match.end(), float(match.group().count(match.group(1))))
        for match in CHARACTERS.finditer(text)
    ]


def _by_line(find: Callable[[str], list[Span]], text: str, margin: int = 0) -> Iterable[Span]:
    """`find` in each line (with its newline, `margin` spaces before it), in code points of `text`."""
    at = 0
    for line in LINES.findall(text):
        for start, end, score in find(" " * margin + line):
            yield start + at - margin, end + at - margin, score
        at += len(line)


def periodic(ids: Ints, periods: Iterable[int] = PERIODS) -> list[tuple[int, int, int]]:
    """(start, end, times) of runs that repeat with a period at least three times, period by period.

    The array is cut into rows of a period's length; rows that equal the one before make a run, which is
    then stretched by the equal values at both ends.
    """
    runs = []
    for period in periods:
        if period > ids.size // FEWEST_TIMES:
            break
        same = np.zeros(ids.size, bool)
        same[period:] = ids[period:] == ids[:-period]
        rows = np.flatnonzero(same[: ids.size // period * period].reshape(-1, period).all(axis=1))
        if rows.size == 0:
            continue
        for group in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            start, end = int(group[0]) * period, (int(group[-1]) + 1) * period
            while same[start - 1] and start > period:
                start -= 1
            while end < ids.size and same[end]:
                end += 1
            start -= period
            if (end - start) // period >= FEWEST_TIMES:
                runs.append((start, end, (end - start) // period))
    return runs


def _tokens(path: Path) -> Callable[[str], list[Span]]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise LoomError(f"{path} is no tokenizer file ({error}).") from None

    def find(text: str) -> list[Span]:
        encoded: Any = tokenizer.encode(text, add_special_tokens=False)
        where = encoded.offsets
        return [
            (where[start][0], where[end - 1][1], float(times))
            for start, end, times in periodic(np.array(encoded.ids, np.int64))
        ]

    return find


@tagger("repetitions_v1", spans="spans, document", source="Dolma 1.2")
def repetitions_v1() -> Tagger:
    """Characters that repeat four times or more, and their statistics."""
    return _make(characters)


@tagger("paragraph_repetitions_v1", spans="spans, document", source="Dolma 1.2")
def paragraph_repetitions_v1() -> Tagger:
    """The same within each line."""
    return _make(lambda text: list(_by_line(characters, text)))


@tagger("tokenizer_repetitions_v1", spans="spans, document", source="Dolma 1.2", needs=TOKENIZER, keys=KEYS)
def tokenizer_repetitions_v1(path: Path) -> Tagger:
    """Tokens that repeat with a period of 1 to 13 three times or more."""
    return _make(_tokens(path))


@tagger(
    "paragraph_tokenizer_repetitions_v1",
    spans="spans, document",
    source="Dolma 1.2",
    needs=TOKENIZER,
    keys=KEYS,
)
def paragraph_tokenizer_repetitions_v1(path: Path) -> Tagger:
    """The same within each line."""
    find = _tokens(path)
    return _make(lambda text: list(_by_line(find, text, margin=1)))


@tagger("tokenizer_repetitions_v2r2", spans="spans, document", source="Dolma 1.2", needs=TOKENIZER, keys=KEYS)
def tokenizer_repetitions_v2r2(path: Path) -> Tagger:
    """The same without spans inside others; a text without repetitions gets no statistics."""
    find = _tokens(path)

    def outermost(text: str) -> list[Span]:
        kept: list[Span] = []
        for low in range(0, len(text), CHUNK):
            last = (-1, -1)
            for start, end, score in sorted(
                find(text[low : low + CHUNK]), key=lambda s: (s[0], -s[1], -s[2])
            ):
                if not (start >= last[0] and end <= last[1]):
                    last = (start, end)
                    kept.append((low + start, low + end, score))
        return kept

    return _make(outermost, always=False)
