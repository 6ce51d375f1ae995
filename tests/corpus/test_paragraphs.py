"""Paragraphs as Dolma's deduper takes them, and the filter that consumes them, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus.kernels import bloom, fingerprints

TEXTS = st.lists(st.text(st.sampled_from("ab \n\n\té漢😀 zz"), max_size=150), max_size=4)


def plain_lines(texts: list[str], skip_empty: bool, least: int, as_dolma: bool) -> list[tuple[int, ...]]:
    """(row, start, end) of every line, by Python's own strings."""
    found: list[tuple[int, ...]] = []
    for row, text in enumerate(texts):
        size, at = len(text.encode()), 0
        lines = text.split("\n") if text else []
        for number, line in enumerate(lines):
            start = at
            at += len(line)
            at += (at < size - 1) if as_dolma else (number < len(lines) - 1)
            blank = all(ord(character) <= 32 for character in line)
            if len(line) >= least and not (skip_empty and blank):
                found.append((row, start, at))
    return found


@pytest.mark.parametrize("as_dolma", [False, True])
@given(TEXTS, st.booleans(), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_lines(as_dolma: bool, texts: list[str], skip_empty: bool, least: int) -> None:
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(encoded), np.uint8)
    offsets = np.cumsum([0, *map(len, encoded)])
    spans, where = bloom.dolma_lines(data, offsets, skip_empty, least, as_dolma)
    assert [tuple(span) for span in spans.tolist()] == plain_lines(texts, skip_empty, least, as_dolma)
    for low, high in where.tolist():
        assert b"\n" not in data[low:high].tobytes()


@given(st.binary(max_size=60), st.binary(max_size=20), st.binary(max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_fingerprint_does_not_depend_on_what_stands_around(
    text: bytes, before: bytes, behind: bytes
) -> None:
    alone = np.frombuffer(text, np.uint8)
    inside = np.frombuffer(before + text + behind, np.uint8)
    whole = fingerprints.ranges(alone, np.array([[0, len(text)]]))
    part = fingerprints.ranges(inside, np.array([[len(before), len(before) + len(text)]]))
    assert whole.tolist() == part.tolist()


def test_lines_that_differ_in_a_byte_have_other_fingerprints() -> None:
    lines = [f"line number {number}".encode() for number in range(20_000)]
    lines += [bytes([low, high]) for low in range(100) for high in range(100)]
    lines += [b"\0" * size for size in range(3, 100)]
    found = fingerprints.documents(np.frombuffer(b"".join(lines), np.uint8), np.cumsum([0, *map(len, lines)]))
    assert np.unique(found[:, 0]).size == np.unique(found[:, 1]).size == len(lines)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_of_a_filter_say_together_who_was_there(parts: int) -> None:
    generator = np.random.default_rng(parts)
    prints = generator.integers(0, 2**64, (4_000, 2), np.uint64)
    prints[2_000:] = prints[generator.integers(0, 2_000, 2_000)]
    seen: set[tuple[int, ...]] = set()
    wanted = []
    for entry in map(tuple, prints.tolist()):
        wanted.append(entry in seen)
        seen.add(entry)
    found = np.zeros(len(prints), bool)
    for part in range(parts):
        bits = np.zeros((1 << 15) // parts, np.uint64)  # a thousand bits an entry: no false hits
        found |= bloom.consume(prints, bits, 7, False, part, parts)
    assert found.tolist() == wanted


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_chosen_spans_by_row(per_row: list[int], draw: st.DataObject) -> None:
    firsts = np.cumsum([0, *per_row])
    spans = np.arange(2 * firsts[-1], dtype=np.int32).reshape(-1, 2)
    found = np.array(sorted(draw.draw(st.sets(st.integers(0, max(0, int(firsts[-1]) - 1))))), np.int64)
    found = found[found < firsts[-1]]
    offsets, starts, ends = bloom.chosen(firsts, spans, found)
    assert offsets.tolist() == [int((found < first).sum()) for first in firsts]
    assert (starts.tolist(), ends.tolist()) == (spans[found, 0].tolist(), spans[found, 1].tolist())
