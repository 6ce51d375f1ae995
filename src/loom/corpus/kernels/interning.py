"""Numbering distinct byte strings and keys: open-addressing tables whose answers are exact."""

from __future__ import annotations

import numpy as np

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
def intern(data, start, end, hashed, table, bits, starts, ends, hashes, known):  # type: ignore[no-untyped-def]
    """The number of `data[start:end]` among the `known` strings seen so far; `known` itself if it is new.

    `table` holds number + 1 a slot, 0 where empty; bytes are compared, so equal numbers are equal strings.
    """
    mask = (1 << bits) - 1
    slot = slot_of(hashed, np.uint64(64 - bits))
    size = end - start
    while True:
        entry = table[slot]
        if entry == 0:
            table[slot] = known + 1
            starts[known] = start
            ends[known] = end
            hashes[known] = hashed
            return known
        number = entry - 1
        if hashes[number] == hashed and ends[number] - starts[number] == size:
            other = starts[number]
            same = True
            for k in range(size):
                if data[other + k] != data[start + k]:
                    same = False
                    break
            if same:
                return number
        slot = (slot + 1) & mask
