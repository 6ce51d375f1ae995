"""A Bloom filter over 128-bit fingerprints, consumed in input order.

Every bit's place comes from all 128 bits of the fingerprint. Places taken straight from first + i * second
(Kirsch and Mitzenmacher) would agree for two entries as soon as both hashes do modulo the filter's size: a
false hit in n / m^2 questions, which for Paloma's 2 million paragraphs is 1e-10 where 1e-15 was asked for.
"""

from __future__ import annotations

import math

import numpy as np

from loom.corpus.kernels.fingerprints import finish
from loom.native import kernel

MOST_HASHES = 64  # at which a filter that is half full errs once in 2^64


def size_for(entries: int, false_positives: float) -> int:
    """Bytes of a filter, as Dolma sizes it: from 1 MiB doubled until the rate is reached."""
    size = 1 << 20
    while expected_rate(size, entries) > false_positives:
        size *= 2
    return size


def hashes_for(size: int, entries: int) -> int:
    """Hash functions for `entries` in a filter of `size` bytes: (m / n) ln 2, rounded up, at most 64."""
    return min(MOST_HASHES, max(1, math.ceil(size * 8 / max(entries, 1) * math.log(2))))


def fewest_hashes(size: int, entries: int, false_positives: float) -> int:
    """The fewest hash functions that reach the rate, each a miss of the cache; the best number if none does.

    A size that was doubled until it sufficed is mostly larger than it must be, and then few suffice.
    """
    best = hashes_for(size, entries)
    for hashes in range(1, best):
        if expected_rate(size, entries, hashes) <= false_positives:
            return hashes
    return best


def expected_rate(size: int, entries: int, hashes: int | None = None) -> float:
    """False positives to expect: (1 - e^(-kn/m))^k, by default with the best number of hash functions."""
    hashes = hashes or hashes_for(size, entries)
    return float((1.0 - math.exp(-hashes * entries / (size * 8))) ** hashes)


@kernel
def consume(prints, bits, hashes, read_only):  # type: ignore[no-untyped-def]
    """Which of uint64[m, 2] were in the filter when their turn came; each is put in unless `read_only`.

    `bits` is uint64[words]; an entry's bits are at mix(first + i * second) modulo the filter's size.
    """
    total = np.uint64(bits.size * 64)
    mask = total - np.uint64(1)
    masked = total & mask == 0  # a power of two: no division
    out = np.zeros(prints.shape[0], np.bool_)
    for k in range(prints.shape[0]):
        first, second = prints[k, 0], prints[k, 1]
        present = True
        at = first
        for _ in range(hashes):
            place = finish(at) & mask if masked else finish(at) % total
            bit = np.uint64(1) << (place & np.uint64(63))
            if not bits[place >> np.uint64(6)] & bit:
                present = False
                if read_only:
                    break
                bits[place >> np.uint64(6)] |= bit
            at += second
        out[k] = present
    return out


@kernel
def dolma_lines(data, offsets, skip_empty, min_length, as_dolma):  # type: ignore[no-untyped-def]
    """Lines that Dolma's deduper looks at: int64[m, 3] (row, start, end) and byte ranges int64[m, 2].

    A span takes its newline in. `as_dolma` repeats its arithmetic: the newline is counted while the offset
    in code points is below the length in bytes less one.
    """
    count = offsets.size - 1
    for at in range(offsets[0], offsets[-1]):
        count += data[at] == 10
    spans = np.empty((count, 3), np.int64)
    ranges = np.empty((count, 2), np.int64)
    found = 0
    for row in range(offsets.size - 1):
        low, high = offsets[row], offsets[row + 1]
        if low == high:
            continue
        at = low
        position = 0
        while True:
            start, first = at, position
            blank = True
            while at < high and data[at] != 10:
                byte = data[at]
                if byte > 32:
                    blank = False
                position += (byte & 0xC0) != 0x80
                at += 1
            last = at >= high
            short = position - first < min_length
            if as_dolma:
                position += position < high - low - 1
            else:
                position += not last
            if not short and not (skip_empty and blank):
                spans[found, 0], spans[found, 1], spans[found, 2] = row, first, position
                ranges[found, 0], ranges[found, 1] = start, at
                found += 1
            if last:
                break
            at += 1
    return spans[:found], ranges[:found]
