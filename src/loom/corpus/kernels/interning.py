"""Numbering distinct byte strings and keys: open-addressing tables whose answers are exact."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.vectors import WORD, product, word
from loom.native import kernel

MIX = np.uint64(0x9E3779B97F4A7C15)
SEED = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x100000001B3)


@kernel(inline="always")
def slot_of(hashed, shift):  # type: ignore[no-untyped-def]
    """A table slot from a 64-bit hash: the top bits of its product with the golden ratio."""
    return np.int64((hashed * MIX) >> shift)


@kernel
def table_bits(items):  # type: ignore[no-untyped-def]
    """Bits of a table at most half full with `items` entries."""
    bits = 4
    while (1 << bits) < 2 * items:
        bits += 1
    return bits


@kernel
def _key(data, start, end):  # type: ignore[no-untyped-def]
    """The bytes themselves, where there are at most eight; else a hash of them."""
    size = end - start
    if size <= 8:
        return word(data, start, end)
    key = SEED ^ np.uint64(size)
    for at in range(start, end - 8, 8):
        key = product(key ^ WORD(data, at), MIX)
    return product(key ^ WORD(data, end - 8), MIX)


@kernel
def _same(data, one, other, size):  # type: ignore[no-untyped-def]
    """Whether `size` bytes, more than eight, are the same at two places."""
    for k in range(0, size - 8, 8):
        if WORD(data, one + k) != WORD(data, other + k):
            return False
    return WORD(data, one + size - 8) == WORD(data, other + size - 8)


@kernel
def number_of(data, low, start, end, table, bits, stamp, firsts, sizes, known):  # type: ignore[no-untyped-def]
    """The number of `data[low + start:low + end]` among the `known` strings seen so far; `known` if it is new.

    An entry of `table`, uint64[slots, 2], is a key and stamp << 32 | number, of the first 2^bits slots; those
    with another stamp are empty. `firsts` and `sizes` say where a string was first seen. Bytes are compared,
    so equal numbers are equal strings.
    """
    mask = (1 << bits) - 1
    size = np.int64(end - start)
    key = _key(data, low + start, low + end)
    slot = slot_of(key, np.uint64(64 - bits))
    while True:
        value = table[slot, 1]
        if value >> np.uint64(32) != stamp:
            table[slot, 0] = key
            table[slot, 1] = stamp << np.uint64(32) | np.uint64(known)
            firsts[known] = start
            sizes[known] = size
            return known
        if table[slot, 0] == key:
            number = np.int64(value & np.uint64(0xFFFFFFFF))
            if sizes[number] == size and (size <= 8 or _same(data, low + firsts[number], low + start, size)):
                return number
        slot = (slot + 1) & mask


@kernel
def doubled(rows):  # type: ignore[no-untyped-def]
    """`rows` with as much room again (not by a slice: Numba's check of its size needs Python at run time)."""
    out = np.empty((2 * rows.shape[0], rows.shape[1]), rows.dtype)
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            out[row, column] = rows[row, column]
    return out
