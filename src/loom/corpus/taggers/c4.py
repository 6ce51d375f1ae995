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


def bucket_of(three: bytes) -> int:
    """The 16-bit bucket of three bytes; the kernel computes the same."""
    return int.from_bytes(three, "little") * 0x9E3779B1 >> 16 & 0xFFFF


BEHIND = (0, *range(9, 14), *range(28, 33), 0xC2, 0xE1, 0xE2, 0xE3)  # what may stand behind a word


def fingerprints(words: Iterable[str]) -> list[str]:
    """A word list as lines `kind size anchor bucket hash`: kind w for single words, p for phrases.

    A phrase's anchor is a space in it, its bucket that of the two bytes before and the one behind. A word's
    bucket is that of its first three bytes; a word of two has a line for each byte that may follow. Raises
    `ValueError` for a phrase without a space behind two bytes, and for a word of one.
    """
    lines = set()
    for word in words:
        data = word.encode()
        size, hashed = len(data), fnv1a(data)
        if " " in word:
            anchor = data.index(b" ", 2)
            bucket = bucket_of(data[anchor - 2 : anchor] + data[anchor + 1 : anchor + 2])
            lines.add(f"p {size} {anchor} {bucket:04x} {hashed:016x}")
            continue
        if size < 2:
            raise ValueError("a word of one byte cannot be in the list")
        for behind in BEHIND if size == 2 else (0,):
            lines.add(f"w {size} 0 {bucket_of((data + bytes([behind]))[:3]):04x} {hashed:016x}")
    return sorted(lines)


@dataclass(frozen=True)
class WordList:
    """What the kernel needs of a word list; see `kernels.c4.c4`."""

    words: Any
    longest: int
    word_bits: Any
    phrase_bits: Any
    buckets: Any
    anchors: Any
    sizes: Any
    phrases: Any


@cache
def word_list(path: Path = WORDS) -> WordList:
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    words = np.array(sorted({int(row[4], 16) for row in rows if row[0] == "w"}), np.uint64)
    phrases = sorted(
        (int(row[3], 16), int(row[2]), int(row[1]), int(row[4], 16)) for row in rows if row[0] == "p"
    )
    word_bits, phrase_bits = np.zeros(1 << 13, np.uint8), np.zeros(1 << 13, np.uint8)
    for row in rows:
        bucket = int(row[3], 16)
        (word_bits if row[0] == "w" else phrase_bits)[bucket >> 3] |= 1 << (bucket & 7)
    return WordList(
        words,
        max(int(row[1]) for row in rows if row[0] == "w"),
        word_bits,
        phrase_bits,
        np.array([item[0] for item in phrases], np.int64),
        np.array([item[1] for item in phrases], np.int64),
        np.array([item[2] for item in phrases], np.int64),
        np.array([item[3] for item in phrases], np.uint64),
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
            known.word_bits,
            known.phrase_bits,
            known.buckets,
            known.anchors,
            known.sizes,
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
