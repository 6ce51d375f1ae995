"""128-bit fingerprints of documents, lines and blocks, and who was first."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ascii_space
from loom.corpus.kernels.interning import MIX, SEED, doubled, slot_of, table_bits
from loom.corpus.kernels.vectors import WORD, product, word
from loom.native import kernel

SECOND_SEED = np.uint64(0x6C62272E07BB0142)
FIRST_KEY, SECOND_KEY = np.uint64(0x9E6C63D0676A9A99), np.uint64(0xD6E8FEB86659FD93)
VERSION = 2  # of `fingerprint`, for what is kept longer than a run
WHOLE, LINE, BLOCK = 0, 1, 2


@kernel
def finish(value):  # type: ignore[no-untyped-def]
    """Mix 64 bits so that every one of them decides every other (MurmurHash3's last step)."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@kernel
def fingerprint(data, start, end):  # type: ignore[no-untyped-def]
    """Two independent 64-bit hashes of `data[start:end]`; never (0, 0).

    Sixteen bytes at a time, each half by a product of 128 bits that takes both words in.
    """
    first, second = SEED, SECOND_SEED
    at = start
    while at + 16 <= end:
        one, other = WORD(data, at), WORD(data, at + 8)
        first = product(one ^ FIRST_KEY, other ^ first)
        second = product(other ^ SECOND_KEY, one ^ second)
        at += 16
    if at < end:
        one, other = word(data, at, end), word(data, min(at + 8, end), end)
        first = product(one ^ FIRST_KEY, other ^ first)
        second = product(other ^ SECOND_KEY, one ^ second)
    size = np.uint64(end - start)
    return finish(first ^ size * MIX), finish(second + size * MIX) | np.uint64(1)


@kernel
def documents(data, offsets):  # type: ignore[no-untyped-def]
    """A fingerprint a document, uint64[n, 2]."""
    out = np.empty((offsets.size - 1, 2), np.uint64)
    for row in range(out.shape[0]):
        out[row, 0], out[row, 1] = fingerprint(data, offsets[row], offsets[row + 1])
    return out


@kernel
def ranges(data, where):  # type: ignore[no-untyped-def]
    """Fingerprints of byte ranges int64[m, 2], uint64[m, 2]."""
    out = np.empty((where.shape[0], 2), np.uint64)
    for k in range(where.shape[0]):
        out[k, 0], out[k, 1] = fingerprint(data, where[k, 0], where[k, 1])
    return out


@kernel
def paragraphs(data, offsets, unit, fewest_words):  # type: ignore[no-untyped-def]
    """Lines (unit LINE) or blocks between empty lines (unit BLOCK) of at least `fewest_words` words.

    Returns (spans int64[m, 3]: row, start and end in code points, the newlines behind included;
    fingerprints uint64[m, 2] of the text without surrounding newlines).
    """
    spans = np.empty((4096, 3), np.int64)
    prints = np.empty((4096, 2), np.uint64)
    count = 0
    for row in range(offsets.size - 1):
        at, high = offsets[row], offsets[row + 1]
        position = 0
        while at < high:
            start, first = at, position
            words = 0
            inside = False
            last = at  # end of the text without trailing newlines
            blank_line = False
            while at < high:
                byte = data[at]
                if byte == 10:
                    at += 1
                    position += 1
                    inside = False
                    if unit == LINE:
                        break
                    peek = at  # a block ends where a line holds nothing but spaces
                    while peek < high and (data[peek] == 32 or data[peek] == 9 or data[peek] == 13):
                        peek += 1
                    if peek < high and data[peek] == 10:
                        blank_line = True
                        position += peek - at
                        at = peek
                        continue
                    if blank_line:
                        break
                    continue
                if byte < 0x80 and ascii_space(byte):
                    inside = False
                elif not inside:
                    inside = True
                    words += 1
                position += (byte & 0xC0) != 0x80
                at += 1
                last = at
            if words >= fewest_words and words > 0:
                if count == spans.shape[0]:
                    spans = doubled(spans)
                    prints = doubled(prints)
                spans[count, 0], spans[count, 1], spans[count, 2] = row, first, position
                prints[count, 0], prints[count, 1] = fingerprint(data, start, last)
                count += 1
    return spans[:count], prints[:count]


@kernel
def first_of(prints):  # type: ignore[no-untyped-def]
    """For every fingerprint of uint64[m, 2] the index of its first occurrence, int64[m], in input order."""
    total = prints.shape[0]
    out = np.empty(total, np.int64)
    bits = table_bits(total)
    mask = (1 << bits) - 1
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, np.int64)
    for k in range(total):
        slot = slot_of(prints[k, 0], shift)
        while True:
            entry = table[slot]
            if entry == 0:
                table[slot] = k + 1
                out[k] = k
                break
            if prints[entry - 1, 0] == prints[k, 0] and prints[entry - 1, 1] == prints[k, 1]:
                out[k] = entry - 1
                break
            slot = (slot + 1) & mask
    return out
