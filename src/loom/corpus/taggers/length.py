"""Lengths of documents and paragraphs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger

CIRCLED = (
    *range(0x24B6, 0x24EA),
    *range(0x1F130, 0x1F14A),
    *range(0x1F150, 0x1F16A),
    *range(0x1F170, 0x1F18A),
)


@tagger("bytes_length_v1", spans="document", source="Dolma 1.2")
def bytes_length_v1() -> Tagger:
    """`bytes`: the length in UTF-8."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        _, offsets = texts.utf8
        return {"bytes": whole(texts.lengths, np.diff(offsets))}

    return tag


@tagger("doc_count_v1", spans="document", source="Dolma 1.2")
def doc_count_v1() -> Tagger:
    """`docs`: one for every document."""
    return lambda texts: {"docs": whole(texts.lengths, 1.0)}


@tagger("char_length_v1", spans="document", source="Dolma 1.2")
def char_length_v1() -> Tagger:
    """`length`: code points."""
    return lambda texts: {"length": whole(texts.lengths, texts.lengths)}


@tagger("char_length_strip_ws_v1", spans="document", source="Dolma 1.2")
def char_length_strip_ws_v1() -> Tagger:
    """`length_no_ws`: code points without the whitespace around the text."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        stripped = np.array([len(text.strip()) for text in texts.strings], np.int64)
        return {"length_no_ws": whole(texts.lengths, stripped)}

    return tag


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Dolma's paragraphs: lines with their newline that are not blank, as (start, end)."""
    found = []
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if text[start:end].strip():
            found.append((start, end))
        start = end
    return found


def _by_paragraph(score: Callable[[str], int], total: Callable[[str, list[int]], int]) -> Tagger:
    def tag(texts: Texts) -> Mapping[str, Spans]:
        spans: list[list[tuple[int, int, float]]] = []
        totals = []
        for text in texts.strings:
            found = [(start, end, float(score(text[start:end]))) for start, end in paragraphs(text)]
            spans.append(found)
            totals.append(total(text, [int(item[2]) for item in found]))
        return {
            "paragraph": from_lists([found or None for found in spans]),
            "document": whole(texts.lengths, np.asarray(totals, np.float64)),
        }

    return tag


@tagger("char_length_with_paragraphs_v1", spans="paragraphs, document", source="Dolma 1.2")
def char_length_with_paragraphs_v1() -> Tagger:
    """`paragraph` and `document`: code points."""
    return _by_paragraph(len, lambda text, _: len(text))


@cache
def token() -> re.Pattern[str]:
    """A run of word characters or of others that are no space, both as Unicode (UTS 18) has them.

    Python's own \\w lacks combining marks and joiners and takes superscripts; its \\s takes four control
    characters. Word characters are letters, marks, digits, connectors, circled letters and joiners.
    """
    circled = set(CIRCLED)
    word, space = [], []
    for point in range(0x110000):
        kind = unicodedata.category(chr(point))
        if kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or point in circled or point in (0x200C, 0x200D):
            word.append(point)
        elif kind[0] == "Z" or 9 <= point <= 13 or point == 0x85:
            space.append(point)
    return re.compile(f"[{_ranges(word)}]+|[^{_ranges(word)}{_ranges(space)}]+")


def _ranges(points: list[int]) -> str:
    out = []
    start = previous = points[0]
    for point in [*points[1:], -1]:
        if point != previous + 1:
            out.append(f"\\U{start:08x}-\\U{previous:08x}")
            start = point
        previous = point
    return "".join(out)


def gaps(text: str) -> int:
    """One more than the runs of word characters and of other characters: what Dolma calls a length."""
    return sum(1 for _ in token().finditer(text)) + 1


@tagger("whitespace_tokenizer_v1", spans="document", source="Dolma 1.2")
def whitespace_tokenizer_v1() -> Tagger:
    """`length`: Dolma splits at tokens and so counts the gaps between them, one more than there are."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        return {"length": whole(texts.lengths, [float(gaps(text)) for text in texts.strings])}

    return tag


@tagger("whitespace_tokenizer_with_paragraphs_v1", spans="paragraphs, document", source="Dolma 1.2")
def whitespace_tokenizer_with_paragraphs_v1() -> Tagger:
    """The same by paragraph; `document` is the paragraphs' sum."""
    return _by_paragraph(gaps, lambda _, scores: sum(scores))


@tagger("unicode_words_v1", spans="document", source="Loom")
def unicode_words_v1() -> Tagger:
    """`document`: words and marks as UAX 29 parts them, near enough (Dolma's uniseg lengths are these)."""
    from loom.corpus.words import count_words

    def tag(texts: Texts) -> Mapping[str, Spans]:
        return {"document": whole(texts.lengths, [float(count_words(text)) for text in texts.strings])}

    return tag
