"""N-grams of lower-cased words, looked up in a set of 64-bit hashes."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.interning import PRIME, SEED, doubled, slot_of, table_bits
from loom.native import kernel

BASE = np.uint64(0x9E3779B97F4A7C15 | 1)


@kernel(inline="always")
def _word_byte(byte):  # type: ignore[no-untyped-def]
    """Letters, digits and everything beyond ASCII make words; punctuation and spaces part them."""
    return (97 <= byte <= 122) or (65 <= byte <= 90) or (48 <= byte <= 57) or byte >= 0x80


@kernel
def _words(data, low, high, hashes, starts):  # type: ignore[no-untyped-def]
    count = 0
    at = low
    while at < high:
        if not _word_byte(data[at]):
            at += 1
            continue
        starts[count] = at
        hashed = SEED
        while at < high and _word_byte(data[at]):
            byte = data[at]
            if 65 <= byte <= 90:
                byte += np.uint8(32)
            hashed = (hashed ^ np.uint64(byte)) * PRIME
            at += 1
        hashes[count] = hashed ^ (hashed >> np.uint64(31))
        count += 1
    return count


@kernel
def _sums(hashes, count, sums):  # type: ignore[no-untyped-def]
    sums[0] = 0
    for k in range(count):
        sums[k + 1] = sums[k] * BASE + hashes[k]


@kernel
def _power(n):  # type: ignore[no-untyped-def]
    out = np.uint64(1)
    for _ in range(n):
        out *= BASE
    return out


@kernel
def collect(data, offsets, n, shortest):  # type: ignore[no-untyped-def]
    """The n-grams of every text: (words in it, hash) uint64[m, 2].

    A text of fewer than n but at least `shortest` words gives one entry, itself whole.
    """
    biggest = 1
    total = 0
    for row in range(offsets.size - 1):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
        total += offsets[row + 1] - offsets[row]
    hashes = np.empty(biggest, np.uint64)
    starts = np.empty(biggest, np.int64)
    sums = np.empty(biggest + 1, np.uint64)
    out = np.empty((total + 1, 2), np.uint64)
    count = 0
    for row in range(offsets.size - 1):
        words = _words(data, offsets[row], offsets[row + 1], hashes, starts)
        size = min(n, words)
        if size < shortest or size == 0:
            continue
        _sums(hashes, words, sums)
        power = _power(size)
        for k in range(words - size + 1):
            out[count, 0] = size
            out[count, 1] = sums[k + size] - sums[k] * power
            count += 1
    return out[:count]


@kernel
def make_table(hashes):  # type: ignore[no-untyped-def]
    """A set of hashes as an open-addressing table, 0 where empty."""
    bits = table_bits(max(2 * hashes.size, 8))
    table = np.zeros(1 << bits, np.uint64)
    mask = (1 << bits) - 1
    shift = np.uint64(64 - bits)
    for hashed in hashes:
        slot = slot_of(hashed, shift)
        while table[slot] != 0 and table[slot] != hashed:
            slot = (slot + 1) & mask
        table[slot] = hashed
    return table


@kernel
def find(data, offsets, sizes, starts_of, tables):  # type: ignore[no-untyped-def]
    """Lines of every document that share an n-gram with the set.

    `sizes[j]` words make an n-gram of table j, which is `tables[starts_of[j]:starts_of[j + 1]]`. Returns
    int64[m, 4]: row, start and end in code points of a run of touched lines (the last newline included),
    and how many separate matches lie in it.
    """
    biggest = 1
    for row in range(offsets.size - 1):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
    hashes = np.empty(biggest, np.uint64)
    starts = np.empty(biggest, np.int64)
    sums = np.empty(biggest + 1, np.uint64)
    marked = np.zeros(biggest, np.uint8)
    out = np.empty((256, 4), np.int64)
    count = 0
    for row in range(offsets.size - 1):
        low, high = offsets[row], offsets[row + 1]
        words = _words(data, low, high, hashes, starts)
        _sums(hashes, words, sums)
        hit = False
        for j in range(sizes.size):
            n = sizes[j]
            table = tables[starts_of[j] : starts_of[j + 1]]
            mask = table.size - 1
            bits = 0
            while (1 << bits) < table.size:
                bits += 1
            shift = np.uint64(64 - bits)
            power = _power(n)
            for k in range(words - n + 1):
                hashed = sums[k + n] - sums[k] * power
                slot = slot_of(hashed, shift)
                while table[slot] != 0:
                    if table[slot] == hashed:
                        if not hit:
                            marked[:words] = 0
                            hit = True
                        for i in range(k, k + n):
                            marked[i] = 1
                        break
                    slot = (slot + 1) & mask
        if not hit:
            continue
        at = low
        position = 0
        word = 0
        open_start = -1
        open_end = matches = 0
        running = False
        while at < high:
            line_start = position
            touched = False
            found = 0
            while at < high:
                byte = data[at]
                if word < words and starts[word] == at:
                    if marked[word]:
                        touched = True
                        if not running:
                            found += 1
                        running = True
                    else:
                        running = False
                    word += 1
                position += (byte & 0xC0) != 0x80
                at += 1
                if byte == 10:
                    break
            if touched:
                if open_start < 0:
                    open_start = line_start
                open_end = position
                matches += found
            if open_start >= 0 and (not touched or at >= high):
                if count == out.shape[0]:
                    out = doubled(out)
                out[count, 0], out[count, 1], out[count, 2] = row, open_start, open_end
                out[count, 3] = matches
                count += 1
                open_start = -1
                matches = 0
    return out[:count]
