"""A Bloom filter over 128-bit fingerprints, consumed in input order.

Every bit's place comes from all 128 bits of the fingerprint. Places taken straight from first + i * second
(Kirsch and Mitzenmacher) would agree for two entries as soon as both hashes do modulo the filter's size: a
false hit in n / m^2 questions, which for Paloma's 2 million paragraphs is 1e-10 where 1e-15 was asked for.
"""

from __future__ import annotations

import math

import numpy as np

from loom.corpus.kernels.fingerprints import finish
from loom.corpus.kernels.vectors import (
    INKED,
    LEAD,
    NEWLINE,
    NONE,
    ONE,
    WIDE,
    bits_set,
    first_bit,
    line_end,
    prefetch,
)
from loom.native import kernel

AHEAD = 64  # entries whose places are fetched before the first of them is looked at
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
def consume(prints, bits, hashes, read_only, part, parts):  # type: ignore[no-untyped-def]
    """Which of uint64[m, 2] were in the filter when their turn came; each is put in unless `read_only`.

    `bits` is uint64[words]; an entry's bits are at mix(first + i * second) modulo the filter's size. Of a
    filter in `parts`, a power of two, it is part number `part`, and only the entries of that part are looked
    at. Places are worked out and fetched some entries ahead of their turn.
    """
    total = np.uint64(bits.size * 64)
    mask = total - np.uint64(1)
    masked = total & mask == 0  # a power of two: no division
    shift = 0
    while parts > 1 << shift:
        shift += 1
    shift = 64 - shift
    out = np.zeros(prints.shape[0], np.bool_)
    held = np.empty(AHEAD, np.int64)
    places = np.empty(AHEAD * hashes, np.uint64)
    count = 0
    for k in range(prints.shape[0]):
        at, second = prints[k, 0], prints[k, 1]
        if parts == 1 or np.int64(second >> np.uint64(shift)) == part:
            held[count] = k
            for i in range(count * hashes, (count + 1) * hashes):
                place = finish(at) & mask if masked else finish(at) % total
                places[i] = place
                prefetch(bits, np.int64(place >> np.uint64(6)))
                at += second
            count += 1
        if count < AHEAD and k + 1 < prints.shape[0]:
            continue
        for entry in range(count):
            present = True
            for i in range(entry * hashes, (entry + 1) * hashes):
                place = places[i]
                bit = np.uint64(1) << (place & np.uint64(63))
                if not bits[place >> np.uint64(6)] & bit:
                    present = False
                    if read_only:
                        break
                    bits[place >> np.uint64(6)] |= bit
            out[held[entry]] = present
        count = 0
    return out


@kernel
def _line(data, at, high):  # type: ignore[no-untyped-def]
    """A line's end before its newline or `high`, its code points, whether anything in it is above a space."""
    points = 0
    inked = False
    while at + WIDE <= data.size:
        ends = NEWLINE(data, at)
        if high - at < WIDE:
            ends |= ONE << np.uint64(high - at)
        if ends == NONE:
            points += bits_set(LEAD(data, at))
            inked |= INKED(data, at) != NONE
            at += WIDE
            continue
        size = first_bit(ends)
        inside = (ONE << np.uint64(size)) - ONE
        inked |= INKED(data, at) & inside != NONE
        return at + size, points + bits_set(LEAD(data, at) & inside), inked
    while at < high and data[at] != 10:
        points += (data[at] & 0xC0) != 0x80
        inked |= data[at] > 32
        at += 1
    return at, points, inked


@kernel
def dolma_lines(data, offsets, skip_empty, min_length, as_dolma):  # type: ignore[no-untyped-def]
    """Lines that Dolma's deduper looks at: int64[m, 3] (row, start, end) and byte ranges int64[m, 2].

    A span takes its newline in. `as_dolma` repeats its arithmetic: the newline is counted while the offset
    in code points is below the length in bytes less one.
    """
    count = offsets.size - 1
    at = offsets[0]
    while at < offsets[-1]:
        at = line_end(data, at) + 1
        count += 1
    spans = np.empty((count, 3), np.int64)
    ranges = np.empty((count, 2), np.int64)
    found = 0
    for row in range(offsets.size - 1):
        low, high = offsets[row], offsets[row + 1]
        if low == high:
            continue
        start = low
        position = 0
        while True:
            first = position
            end, points, inked = _line(data, start, high)
            position += points
            if as_dolma:
                position += position < high - low - 1
            else:
                position += end < high
            if points >= min_length and (inked or not skip_empty):
                spans[found, 0], spans[found, 1], spans[found, 2] = row, first, position
                ranges[found, 0], ranges[found, 1] = start, end
                found += 1
            if end >= high:
                break
            start = end + 1
    return spans[:found], ranges[:found]


@kernel
def chosen(firsts, spans, found):  # type: ignore[no-untyped-def]
    """Of spans int32[m, 2], row i's being firsts[i] to firsts[i + 1], those numbered `found`, in order.

    Returns (offsets int64[n + 1], starts int64[f], ends int64[f]).
    """
    offsets = np.zeros(firsts.size, np.int64)
    starts = np.empty(found.size, np.int64)
    ends = np.empty(found.size, np.int64)
    row = 0
    for k in range(found.size):
        while firsts[row + 1] <= found[k]:
            row += 1
            offsets[row] = k
        starts[k], ends[k] = spans[found[k], 0], spans[found[k], 1]
    offsets[row + 1 :] = found.size
    return offsets, starts, ends
