"""Words, lines and candidates found 64 bytes at a time are those that Python finds."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus.documents import utf8
from loom.corpus.kernels import words as kernels
from loom.corpus.kernels.characters import LETTERS_END, character_table, lengths
from loom.corpus.kernels.pii import paragraphs, question_marks
from loom.corpus.taggers.c4 import word_list
from loom.corpus.taggers.pii import EMAIL, IP, PHONE

PIECES = [
    "a",
    "Wort",
    "é",
    "日",
    "\U0001f600",
    " ",
    "  ",
    "\n",
    "\t",
    "\x1f",
    "\x00",
    "\x85",
    "\xa0",
    "\u1680",
]
PIECES += ["\u2003", "\u2028", "\u205f", "\u3000", "\u2026", "x" * 60, "y" * 64, "?"]
PRIVATE = [
    "a",
    "@",
    ".",
    ",",
    "?",
    ")",
    " ",
    "\n",
    "\xa0",
    "é",
    "b@c.d ",
    "\x1f",
    "1",
    "123",
    "4567",
    "-",
    "(",
    "٣٤٥",
]
PRIVATE += ["1.2.3.4", "192.168.", "555-123-4567", "x" * 60]


def column(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return utf8(pa.chunked_array([pa.array(texts, pa.large_string())]))


TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), min_size=1, max_size=4)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_words_are_those_of_split(texts: list[str]) -> None:
    data, offsets = column(texts)
    held = np.empty(64, np.uint8)
    starts, ends = np.empty(5000, np.int32), np.empty(5000, np.int32)
    for text, low, high in zip(texts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        found = kernels.spans(data, low, high, held, starts, ends)
        raw = text.encode()
        spans = zip(starts[:found].tolist(), ends[:found].tolist(), strict=True)
        assert [raw[a:b].decode() for a, b in spans] == text.split()
        assert kernels.count(data, low, high, held) == (found, len(text))
        assert kernels.characters(data, low, high) == len(text)
    assert lengths(data, offsets).tolist() == list(map(len, texts))
    assert question_marks(data, offsets).tolist() == [text.count("?") for text in texts]


@given(st.lists(st.lists(st.sampled_from(PRIVATE), max_size=40).map("".join), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_paragraph_with_a_match_is_passed_over(texts: list[str]) -> None:
    data, offsets = column(texts)
    candidates = {
        (row, start): (end, first, kinds)
        for row, start, end, first, kinds in paragraphs(data, offsets, character_table(), True).tolist()
    }
    for row, text in enumerate(texts):
        start, first = int(offsets[row]), 0
        for paragraph in re.findall(r"[^\n]*\n|[^\n]+", text):
            end = start + len(paragraph.encode())
            found = candidates.get((row, start), (end, first, 0))
            assert found[:2] == (end, first)
            mail = any("." in match[1].split("@", 1)[1] for match in EMAIL.finditer(paragraph))
            assert found[2] & 1 or not mail
            assert found[2] & 2 or not PHONE.search(paragraph)
            assert found[2] & 4 or not IP.search(paragraph)
            start, first = end, first + len(paragraph)


def test_letters_and_digits_are_this_python_s() -> None:
    table = character_table()
    for point in range(0, LETTERS_END, 7):
        assert table[point] == chr(point).isalpha() + 2 * chr(point).isdecimal()
    assert not table[LETTERS_END:].any()


def test_every_forbidden_phrase_has_its_bucket() -> None:
    known = word_list()
    assert known.buckets.tolist() == sorted(known.buckets.tolist())
    for bucket in known.buckets.tolist():
        assert known.phrase_bits[bucket >> 3] >> (bucket & 7) & 1
