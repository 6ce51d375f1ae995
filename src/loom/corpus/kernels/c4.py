"""What Dolma's C4 tagger asks of a text and its lines, on a lower-cased copy of the bytes."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ascii_space, wide_space
from loom.corpus.kernels.interning import PRIME, SEED
from loom.native import kernel

CURLY, LOREM, JAVASCRIPT, NAUGHTY = 1, 2, 4, 8


@kernel
def lower_ascii(data, low, high, out):  # type: ignore[no-untyped-def]
    """Lower-case `data[low:high]` into `out` as far as ASCII results go; returns the bytes written.

    Besides A-Z only two characters have ASCII in their lower case: the Kelvin sign is k, and the dotted
    capital I is i and a combining dot. Other letters stay as they are: no rule here looks at them.
    """
    size = 0
    at = low
    while at < high:
        byte = data[at]
        if 65 <= byte <= 90:
            out[size] = byte + 32
        elif byte == 0xC4 and data[at + 1] == 0xB0:
            out[size] = 105
            out[size + 1] = 0xCC
            out[size + 2] = 0x87
            size += 3
            at += 2
            continue
        elif byte == 0xE2 and data[at + 1] == 0x84 and data[at + 2] == 0xAA:
            out[size] = 107
            size += 1
            at += 3
            continue
        else:
            out[size] = byte
        size += 1
        at += 1
    return size


@kernel
def _hash(text, start, end):  # type: ignore[no-untyped-def]
    hashed = SEED
    for k in range(start, end):
        hashed = (hashed ^ np.uint64(text[k])) * PRIME
    return hashed


@kernel
def bucket_of(a, b, c):  # type: ignore[no-untyped-def]
    """A 16-bit hash of three bytes."""
    return ((np.int64(a) << 16 | np.int64(b) << 8 | np.int64(c)) * 40503) >> 4 & 0xFFFF


@kernel
def _contains(sorted_hashes, hashed):  # type: ignore[no-untyped-def]
    at = np.searchsorted(sorted_hashes, hashed)
    return at < sorted_hashes.size and sorted_hashes[at] == hashed


@kernel
def _starts(text, at, end, pattern):  # type: ignore[no-untyped-def]
    if at + pattern.size > end:
        return False
    for k in range(pattern.size):  # noqa: SIM110 (Numba compiles no generator)
        if text[at + k] != pattern[k]:
            return False
    return True


@kernel
def c4(data, offsets, words, longest, buckets, phrase_buckets, phrase_sizes, phrases, javascript, lorem):  # type: ignore[no-untyped-def]
    """Flags and line spans of every document, as Dolma's c4_v2 defines them.

    `words` are the sorted hashes of single forbidden words, the longest of `longest` bytes; `phrases[j]` is
    the hash of a phrase of `phrase_sizes[j]` bytes, sorted by `phrase_buckets`, the bucket of its first
    three bytes; `buckets[b]` is 1 + the first phrase of bucket b, or 0. Returns (flags[n], line counts[n],
    then for each line type: rows, starts, ends).
    Positions are code points of the lower-cased text, as Dolma counts them.
    """
    documents = offsets.size - 1
    lines = documents
    biggest = 0
    for row in range(documents):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
    for at in range(offsets[0], offsets[documents]):
        lines += data[at] == 10
    flags = np.zeros(documents, np.uint8)
    counts = np.zeros(documents, np.int64)
    open_rows = np.empty(lines, np.int32)
    open_starts = np.empty(lines, np.int32)
    open_ends = np.empty(lines, np.int32)
    few_bits = np.zeros(1 << 13, np.uint8)  # 16 bits of every word's hash: most words are not there
    for hashed in words:
        few_bits[(hashed >> np.uint64(3)) & np.uint64(0x1FFF)] |= np.uint8(1) << (hashed & np.uint64(7))
    few_rows = np.empty(lines, np.int32)
    few_starts = np.empty(lines, np.int32)
    few_ends = np.empty(lines, np.int32)
    opened = few = 0
    text = np.empty(biggest + biggest // 2 + 8, np.uint8)
    for row in range(documents):
        size = lower_ascii(data, offsets[row], offsets[row + 1], text)
        flag = 0
        start = position = 0
        at = 0
        while True:  # a line
            words_in_line = 0
            last = np.uint8(0)
            while at < size and text[at] != 10:
                byte = text[at]
                if byte < 0x80:
                    if ascii_space(byte):
                        at += 1
                        position += 1
                        continue
                elif wide_space(text, at):
                    at += 2 if byte < 0xE0 else 3
                    position += 1
                    continue
                word_start = at
                hashed = SEED
                while at < size:
                    byte = text[at]
                    if byte < 0x80:
                        if ascii_space(byte):
                            break
                    elif byte >= 0xC0 and wide_space(text, at):
                        break
                    hashed = (hashed ^ np.uint64(byte)) * PRIME
                    position += (byte & 0xC0) != 0x80
                    at += 1
                last = text[at - 1]
                words_in_line += 1
                if (
                    at - word_start <= longest
                    and few_bits[(hashed >> np.uint64(3)) & np.uint64(0x1FFF)] >> (hashed & np.uint64(7)) & 1
                    and _contains(words, hashed)
                ):
                    flag |= NAUGHTY
            newline = 1 if at < size else 0
            end = position + newline
            if not (last == 46 or last == 63 or last == 33 or last == 34):
                open_rows[opened], open_starts[opened], open_ends[opened] = row, start, end
                opened += 1
            if words_in_line < 3:
                few_rows[few], few_starts[few], few_ends[few] = row, start, end
                few += 1
            counts[row] += 1
            if not newline:
                break
            at += 1
            position = start = end
        for at in range(size):
            byte = text[at]
            if byte == 123:
                flag |= CURLY
            elif byte == 106:
                if not flag & JAVASCRIPT and _starts(text, at, size, javascript):
                    flag |= JAVASCRIPT
            elif byte == 108 and not flag & LOREM and _starts(text, at, size, lorem):
                flag |= LOREM
            if at + 2 < size and not flag & NAUGHTY:
                bucket = bucket_of(byte, text[at + 1], text[at + 2])
                j = np.int64(buckets[bucket]) - 1
                while 0 <= j < phrases.size and phrase_buckets[j] == bucket:
                    end = at + phrase_sizes[j]
                    if end <= size and _hash(text, at, end) == phrases[j]:
                        flag |= NAUGHTY
                        break
                    j += 1
        flags[row] = flag
    return (
        flags, counts,
        open_rows[:opened], open_starts[:opened], open_ends[:opened],
        few_rows[:few], few_starts[:few], few_ends[:few],
    )  # fmt: skip
