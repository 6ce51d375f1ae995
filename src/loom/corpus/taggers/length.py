"""Lengths of documents and paragraphs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from loom.corpus.attributes import Ints, Spans, from_lists, gathered, whole
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


def paragraphs(text: str, blank: bool = False) -> list[tuple[int, int]]:
    """Dolma's paragraphs: lines with their newline, blank ones only if asked for, as (start, end)."""
    found = []
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if blank or text[start:end].strip():
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


def unit_counts(texts: Texts, where: Sequence[tuple[int, int]]) -> Ints:
    """(units, those that are not blank) of byte ranges of the batch, as UAX 29 parts them, int64[m, 2]."""
    from loom.corpus.kernels import word_breaks

    ranges = np.array(where, np.int64).reshape(-1, 2)
    counts: Ints = word_breaks.count(texts.utf8[0], ranges, word_breaks.properties())
    return counts


def stripped_bytes(text: str, start: int, end: int, low: int) -> tuple[int, int]:
    """Where `text[start:end].strip()` lies in UTF-8, if `text[start:]` lies at `low`."""
    part = text[start:end]
    bare = part.strip()
    first = low + len(part[: len(part) - len(part.lstrip())].encode()) if bare else low
    return first, first + len(bare.encode())


@tagger("uniseg_length_v1", spans="document", source="Dolma 1.2")
def uniseg_length_v1() -> Tagger:
    """`length`: words, marks and spaces of the text without the whitespace around it (UAX 29)."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        _, offsets = texts.utf8
        where = [
            stripped_bytes(text, 0, len(text), low)
            for text, low in zip(texts.strings, offsets.tolist(), strict=False)
        ]
        return {"length": whole(texts.lengths, unit_counts(texts, where)[:, 0])}

    return tag


def _uniseg_paragraphs(blank: bool, document: bool) -> Tagger:
    """By paragraph, blank ones too if asked for; `document` adds their sum. Every count also as a negative."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        _, offsets = texts.utf8
        rows, spans, where = [], [], []
        for row, (text, low) in enumerate(zip(texts.strings, offsets.tolist(), strict=False)):
            for start, end in paragraphs(text, blank=True):
                place = stripped_bytes(text, start, end, low)
                if blank or place[0] < place[1]:
                    rows.append(row)
                    spans.append((start, end))
                    where.append(place)
                low += len(text[start:end].encode())
        counts = unit_counts(texts, where)[:, 1]
        starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
        totals = np.bincount(np.array(rows, np.int64), counts, len(texts)).astype(np.float64)
        found = {
            "paragraph": gathered(len(texts), rows, starts, ends, counts),
            "negative_paragraph": gathered(len(texts), rows, starts, ends, -counts),
        }
        if document:
            found |= {
                "document": whole(texts.lengths, totals),
                "negative_document": whole(texts.lengths, 0.0 - totals),
            }
        return found

    return tag


@tagger("uniseg_length_paragraphs_v1", spans="paragraphs", source="Dolma 1.2")
def uniseg_length_paragraphs_v1() -> Tagger:
    """`paragraph`, `negative_paragraph`: words and marks (UAX 29), and the same below zero."""
    return _uniseg_paragraphs(blank=False, document=False)


@tagger("uniseg_length_paragraphs_with_empty_v1", spans="paragraphs", source="Dolma 1.2")
def uniseg_length_paragraphs_with_empty_v1() -> Tagger:
    """The same, of blank paragraphs too."""
    return _uniseg_paragraphs(blank=True, document=False)


@tagger("uniseg_length_paragraphs_with_doc_length_v1", spans="paragraphs, document", source="Dolma 1.2")
def uniseg_length_paragraphs_with_doc_length_v1() -> Tagger:
    """The same, and `document`, `negative_document`: their sums."""
    return _uniseg_paragraphs(blank=False, document=True)


def _pretokenizer() -> Callable[[str], int]:
    """Pieces of OLMo's first pre-tokenizer: marks and digits alone, the rest as GPT-2 parts it."""
    from tokenizers import Regex, pre_tokenizers

    isolated = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (r" ?\p{P}", r" ?\d")]
    whole_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made = pre_tokenizers.Sequence([*isolated, whole_bytes])
    return lambda text: len(made.pre_tokenize_str(text))


@tagger("olmo_pretokenizer_v1", spans="document", source="Dolma 1.2")
def olmo_pretokenizer_v1() -> Tagger:
    """`length`: pieces of OLMo's first pre-tokenizer."""
    pieces = _pretokenizer()
    return lambda texts: {"length": whole(texts.lengths, [float(pieces(text)) for text in texts.strings])}


@tagger("olmo_pretokenizer_with_paragraphs_v1", spans="paragraphs, document", source="Dolma 1.2")
def olmo_pretokenizer_with_paragraphs_v1() -> Tagger:
    """The same by paragraph; `document` is the paragraphs' sum."""
    return _by_paragraph(_pretokenizer(), lambda _, scores: sum(scores))


def _tokens(key: str, bare: bool) -> Callable[[Path], Tagger]:
    def make(path: Path) -> Tagger:
        """Tokens of the document, by the `tokenizer.json` that is named for it."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))

        def tag(texts: Texts) -> Mapping[str, Spans]:
            found = [text.strip() for text in texts.strings] if bare else texts.strings
            encoded = tokenizer.encode_batch_fast(found, add_special_tokens=bare)
            counts = [float(len(one)) if text else 0.0 for one, text in zip(encoded, found, strict=True)]
            return {key: whole(texts.lengths, counts)}

        return tag

    return make


for _name in ("dolma_v1_tokenizer", "dolma_v2_tokenizer"):
    tagger(_name, spans="document", source="Dolma 1.2", needs="a tokenizer.json")(_tokens("length", True))
for _name in ("tokenizers_EleutherAI_GPT_NeoX_20B", "tokenizers_AI2_OLMo_v1"):
    tagger(_name, spans="document", source="Dolma 1.2", needs="a tokenizer.json")(_tokens("tokens", False))
