"""Words, lines and candidates found 64 bytes at a time are those that Python finds."""

from __future__ import annotations

import json
import random
import re
import subprocess
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus import words
from loom.corpus.batch import utf8
from loom.corpus.kernels import word_breaks
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


PROPERTIES = """
import sys
from uniseg.emoji import extended_pictographic
from uniseg.wordbreak import WordBreak, word_break
kinds = {kind: number for number, kind in enumerate(WordBreak)}
points = map(chr, range(0x110000))
sys.stdout.buffer.write(bytes(kinds[word_break(c)] | 32 * bool(extended_pictographic(c)) for c in points))
"""
UNITS = """
import json, sys
from uniseg.wordbreak import words
json.dump([list(words(text)) for text in json.load(sys.stdin)], sys.stdout)
"""


def ask(python: Any, code: str, data: bytes = b"") -> bytes:
    return subprocess.run([str(python), "-c", code], input=data, capture_output=True, check=True).stdout


def test_unicode_s_words_are_uniseg_s(oracle: Any) -> None:
    """Every code point has uniseg's properties; characters of every kind, in any order, are parted as there."""
    table = word_breaks.properties()
    theirs = np.frombuffer(ask(oracle("dolma"), PROPERTIES), np.uint8)
    assert np.array_equal(table & ~np.uint8(word_breaks.BLANK), theirs)
    assert [chr(p).isspace() for p in range(0x4000)] == (table[:0x4000] & word_breaks.BLANK > 0).tolist()
    choose = random.Random(29)
    points = np.delete(np.arange(0x110000), np.arange(0xD800, 0xE000))
    kinds = [points[theirs[points] == kind].tolist() for kind in np.unique(theirs).tolist()]
    some = [chr(choose.choice(kind)) for kind in kinds for _ in range(3)] + list("\n\r1a'\u200d\U0001f1e9")
    texts = ["".join(choose.choices(some, k=choose.randint(1, 12))) for _ in range(4000)]
    found = json.loads(ask(oracle("dolma"), UNITS, json.dumps(texts).encode()))
    assert [words.split(text) for text in texts] == found
    counts = [sum(not unit.isspace() for unit in units) for units in found]
    assert [words.count_words(text) for text in texts] == counts


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_units_joined_are_the_text(text: str) -> None:
    assert "".join(words.split(text)) == text
    assert words.count_words(text) == sum(not unit.isspace() for unit in words.split(text))
