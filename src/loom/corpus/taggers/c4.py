"""C4's questions to a document and its lines, as Dolma 1.2's c4_v2 puts them.

The list of words that C4 refuses is kept as fingerprints (FNV-1a, 64 bits): enough to recognise a word, and
nobody has to read it. `fingerprints` makes the same file from any list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loom.corpus.attributes import Spans, gathered, whole
from loom.corpus.taggers import Tagger, Texts, tagger

WORDS = Path(__file__).with_name("c4_words.txt")


def fnv1a(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def bucket_of(start: bytes) -> int:
    """The 16-bit bucket of a phrase by its first three bytes; the kernel computes the same."""
    return ((start[0] << 16 | start[1] << 8 | start[2]) * 40503) >> 4 & 0xFFFF


def fingerprints(words: Iterable[str]) -> list[str]:
    """A word list as lines `kind size bucket hash`: kind w for single words, p for phrases."""
    lines = set()
    for word in words:
        data = word.encode()
        phrase = " " in word
        bucket = bucket_of(data) if phrase else 0
        lines.add(f"{'p' if phrase else 'w'} {len(data)} {bucket:04x} {fnv1a(data):016x}")
    return sorted(lines)


@dataclass(frozen=True)
class WordList:
    """What the kernel needs of a word list; see `kernels.c4.c4`."""

    words: Any
    longest: int
    buckets: Any
    phrase_buckets: Any
    phrase_sizes: Any
    phrases: Any


@cache
def word_list(path: Path = WORDS) -> WordList:
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    words = np.array(sorted(int(row[3], 16) for row in rows if row[0] == "w"), np.uint64)
    phrases = sorted((int(row[2], 16), int(row[1]), int(row[3], 16)) for row in rows if row[0] == "p")
    buckets = np.zeros(1 << 16, np.uint8 if len(phrases) < 255 else np.int32)  # small: it stays in cache
    for index, (bucket, _, _) in reversed(list(enumerate(phrases))):
        buckets[bucket] = index + 1
    return WordList(
        words,
        max(int(row[1]) for row in rows if row[0] == "w"),
        buckets,
        np.array([item[0] for item in phrases], np.int64),
        np.array([item[1] for item in phrases], np.int64),
        np.array([item[2] for item in phrases], np.uint64),
    )


@tagger("c4_v2", spans="lines, document", source="Dolma 1.2")
def c4_v2() -> Tagger:
    """Lines without final punctuation or of under three words; naughty words, javascript, lorem ipsum."""
    from loom.corpus.kernels import c4

    known = word_list()
    javascript = np.frombuffer(b"javascript", np.uint8)
    lorem = np.frombuffer(b"lorem ipsum", np.uint8)
    flags_of = {
        "has_curly_brace": c4.CURLY,
        "has_lorem_ipsum": c4.LOREM,
        "has_javascript": c4.JAVASCRIPT,
        "has_naughty_word": c4.NAUGHTY,
    }

    def tag(texts: Texts) -> Mapping[str, Spans]:
        flags, counts, *lines = c4.c4(
            *texts.utf8,
            known.words,
            known.longest,
            known.buckets,
            known.phrase_buckets,
            known.phrase_sizes,
            known.phrases,
            javascript,
            lorem,
        )
        lengths = texts.lengths
        out = {key: whole(lengths, 1.0, flags & bit != 0) for key, bit in flags_of.items()}
        out["lines_with_no_ending_punctuation"] = gathered(len(texts), *lines[0:3])
        out["lines_with_too_few_words"] = gathered(len(texts), *lines[3:6])
        out["line_count"] = whole(lengths, counts)
        return out

    return tag
