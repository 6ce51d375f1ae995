"""Masks of 64 bytes say what a loop over the bytes says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus.kernels import vectors
from loom.corpus.kernels.vectors import BACKSLASH, INKED, LEAD, NEWLINE, SPECIAL, TO_ESCAPE
from loom.native import kernel

BYTES = st.lists(st.sampled_from(b'\\\\\\"\n\t az\x00\x1f!\x7f\x80\xbf\xc3\xff'), min_size=64, max_size=150)


@kernel
def masks(data, at):  # type: ignore[no-untyped-def]
    return (
        SPECIAL(data, at),
        TO_ESCAPE(data, at),
        NEWLINE(data, at),
        BACKSLASH(data, at),
        LEAD(data, at),
        INKED(data, at),
    )


folded = vectors.product


@kernel
def product(one, other):  # type: ignore[no-untyped-def]
    return folded(one, other)


@given(BYTES, st.data())
@settings(max_examples=60, deadline=None)
def test_masks(values: list[int], draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(values) - 64))
    data = np.array(values, np.uint8)
    here = values[at : at + 64]
    tests: tuple[Callable[[int], bool], ...] = (
        lambda byte: byte < 32 or byte >= 128 or byte in b'"\\',
        lambda byte: byte < 32 or byte in b'"\\',
        lambda byte: byte == 10,
        lambda byte: byte == 92,
        lambda byte: byte & 0xC0 != 0x80,
        lambda byte: byte > 32,
    )
    for mask, test in zip(masks(data, at), tests, strict=True):
        assert mask == sum(1 << k for k, byte in enumerate(here) if test(byte))


@given(st.lists(st.booleans(), min_size=64, max_size=64), st.booleans())
@settings(max_examples=100, deadline=None)
def test_escaped(backslashes: list[bool], before: bool) -> None:
    wanted, inside = 0, before
    for k, backslash in enumerate(backslashes):
        wanted |= inside << k
        inside = backslash and not inside
    mask = np.uint64(sum(flag << k for k, flag in enumerate(backslashes)))
    found, over = vectors.escaped(mask, np.uint64(before))
    assert (int(found), bool(over)) == (wanted, inside)


@given(BYTES, st.integers(0, 70), st.integers(0, 90))
@settings(max_examples=100, deadline=None)
def test_places(values: list[int], at: int, size: int) -> None:
    data = np.array(values, np.uint8)
    at = min(at, len(values))
    high = min(at + size, len(values))
    here = values[at:high]
    assert vectors.line_end(data, at) == at + [*values[at:], 10].index(10)
    plain = [k for k, byte in enumerate(here) if byte < 32 or byte >= 128 or byte in b'"\\']
    assert vectors.plain_until(data, at, high) == (at + plain[0] if plain else high)
    out = np.zeros(len(values) + 7, np.uint8)
    assert vectors.copied(out, 7, data, at, high) == 7 + high - at
    assert out[7 : 7 + high - at].tolist() == here
    assert vectors.word(data, at, high) == int.from_bytes(bytes(here[:8]), "little")


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_numbers(mask: int, other: int) -> None:
    places = [k for k in range(64) if mask >> k & 1]
    for n in range(0, len(places), 7):
        assert vectors.nth_bit(np.uint64(mask), n) == places[n]
    whole = mask * other
    assert product(np.uint64(mask), np.uint64(other)) == (whole ^ (whole >> 64)) & (2**64 - 1)
