"""What Dolma's C4 tagger asks of a text and its lines, on a lower-cased copy of the bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from loom.corpus.kernels.characters import ascii_space, wide_space
from loom.corpus.kernels.interning import PRIME, SEED
from loom.corpus.kernels.vectors import (
    LEAD,
    NEWLINE,
    NONE,
    ONE,
    WIDE,
    WORD,
    _bits,
    _loaded,
    bits_set,
    first_bit,
)
from loom.corpus.kernels.words import below, newline, spaces
from loom.native import intrinsic, kernel

CURLY, LOREM, JAVASCRIPT, NAUGHTY = 1, 2, 4, 8
FRONT = 8  # zero bytes in front of the text that is worked on, so that what stands before a word can be read
BEFORE_IPSUM = np.uint64(int.from_bytes(b"em i", "little"))


@intrinsic("uint64", "array", "int64")
def CURLY_BRACE(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("==", vector, every(123)))


@intrinsic("uint64", "array", "int64")
def LETTER_J(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("==", vector, every(106)))


@intrinsic("uint64", "array", "int64")
def MAY_BE_LONGER(builder: Any, data: Any, at: Any) -> Any:
    """First bytes of the characters beyond ASCII that have ASCII in their lower case: 0xC4, 0xE2."""
    vector, every = _loaded(builder, data, at)
    out = builder.icmp_unsigned("==", vector, every(0xC4))
    return _bits(builder, builder.or_(out, builder.icmp_unsigned("==", vector, every(0xE2))))


@intrinsic("void", "array", "int64", "array", "int64")
def LOWER(builder: Any, out: Any, to: Any, data: Any, at: Any) -> None:
    """Copy 64 bytes from `data[at:]` to `out[to:]`, A to Z in lower case."""
    vector, every = _loaded(builder, data, at)
    capital = builder.icmp_unsigned("<", builder.sub(vector, every(65)), every(26))
    lower = builder.select(capital, builder.add(vector, every(32)), vector)
    place = builder.bitcast(builder.gep(out, [to]), vector.type.as_pointer())
    builder.store(lower, place, align=1)


@intrinsic("int64", "uint64")
def last_bit(builder: Any, mask: Any) -> Any:
    """The place of the highest bit that is set; there must be one."""
    from llvmlite import ir

    zeros = builder.ctlz(mask, ir.Constant(ir.IntType(1), 0))
    return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)


@kernel
def lower_ascii(data, low, high, out):  # type: ignore[no-untyped-def]
    """Lower-case `data[low:high]` into `out[FRONT:]` as far as ASCII results go; returns where it ends.

    Besides A-Z only two characters have ASCII in their lower case: the Kelvin sign is k, and the dotted
    capital I is i and a combining dot. Other letters stay as they are: no rule here looks at them.
    """
    at, size = low, FRONT
    while at < high and at + WIDE <= data.size:
        LOWER(out, size, data, at)
        maybe = MAY_BE_LONGER(data, at) & below(high - at)
        step = min(high - at, WIDE)
        while maybe != NONE:
            place = at + first_bit(maybe)
            maybe &= maybe - ONE
            if (data[place] == 0xC4 and data[place + 1] == 0xB0) or (
                data[place] == 0xE2 and data[place + 1] == 0x84 and data[place + 2] == 0xAA
            ):
                step = place - at
                break
        at += step
        size += step
        if step < WIDE:
            break
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
def bucket_of(three):  # type: ignore[no-untyped-def]
    """A 16-bit hash of three bytes, the first one the lowest of a number."""
    return np.int64(
        (three & np.uint64(0xFFFFFF)) * np.uint64(0x9E3779B1) >> np.uint64(16) & np.uint64(0xFFFF)
    )


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
def _forbidden_word(text, start, end, words, longest):  # type: ignore[no-untyped-def]
    """Whether the word at `start` is one of `words`."""
    at = start
    hashed = SEED
    while at < end:
        byte = text[at]
        if ascii_space(byte) if byte < 0x80 else wide_space(text, at):
            break
        if at - start == longest:
            return False
        hashed = (hashed ^ np.uint64(byte)) * PRIME
        at += 1
    return _contains(words, hashed)


@kernel
def _forbidden_phrase(text, place, end, bucket, buckets, anchors, sizes, phrases):  # type: ignore[no-untyped-def]
    """Whether one of the phrases whose anchor is in `bucket` stands around the space at `place`."""
    j = np.searchsorted(buckets, bucket)
    while j < buckets.size and buckets[j] == bucket:
        start = place - anchors[j]
        stop = start + sizes[j]
        if start >= FRONT and stop <= end and _hash(text, start, stop) == phrases[j]:
            return True
        j += 1
    return False


@kernel
def c4(  # type: ignore[no-untyped-def]
    data, offsets, words, longest, word_bits, phrase_bits, buckets, anchors, sizes, phrases, javascript, lorem
):
    """Flags and line spans of every document, as Dolma's c4_v2 defines them.

    `words` are the sorted hashes of single forbidden words, the longest of `longest` bytes; `phrases[j]` is
    the hash of a phrase of `sizes[j]` bytes that has a space at `anchors[j]`, and `buckets[j]`, by which they
    are sorted, the bucket of the two bytes before it and the one behind. `word_bits` has a bit for every
    bucket of a word's first three bytes (with what may follow a shorter one), `phrase_bits` for every one of
    `buckets`: most words end there. Returns (flags[n], line counts[n], then for each line type: rows, starts,
    ends). Positions are code points of the lower-cased text, as Dolma counts them.
    """
    documents = offsets.size - 1
    lines = documents
    biggest = 0
    for row in range(documents):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
    at = newline(data, offsets[0], offsets[documents])
    while at < offsets[documents]:
        lines += 1
        at = newline(data, at + 1, offsets[documents])
    flags = np.zeros(documents, np.uint8)
    counts = np.zeros(documents, np.int64)
    open_rows = np.empty(lines, np.int32)
    open_starts = np.empty(lines, np.int32)
    open_ends = np.empty(lines, np.int32)
    few_rows = np.empty(lines, np.int32)
    few_starts = np.empty(lines, np.int32)
    few_ends = np.empty(lines, np.int32)
    opened = few = 0
    held = np.empty(WIDE, np.uint8)
    text = np.zeros(FRONT + biggest + biggest // 2 + 2 * WIDE, np.uint8)
    for row in range(documents):
        end = lower_ascii(data, offsets[row], offsets[row + 1], text)
        text[end : end + 8] = 0
        flag = 0
        start = position = words_in_line = 0
        last = np.uint8(0)
        over = NONE
        before = ONE
        at = FRONT
        while at < end:
            inside = below(end - at)
            mask, over = spaces(text, at, held, over)
            ink = ~mask & inside
            begins = ink & (mask << ONE | before)
            before = mask >> np.uint64(63)
            leads = LEAD(text, at) & inside
            breaks = NEWLINE(text, at) & inside
            left = inside
            while True:  # the lines that end here, and what there is of the next
                upto = left if breaks == NONE else left & ((breaks & (~breaks + ONE)) - ONE)
                words_in_line += bits_set(begins & upto)
                if ink & upto != NONE:
                    last = text[at + last_bit(ink & upto)]
                position += bits_set(leads & upto)
                if breaks == NONE:
                    break
                position += 1
                counts[row] += 1
                if not (last == 46 or last == 63 or last == 33 or last == 34):
                    open_rows[opened], open_starts[opened], open_ends[opened] = row, start, position
                    opened += 1
                if words_in_line < 3:
                    few_rows[few], few_starts[few], few_ends[few] = row, start, position
                    few += 1
                start = position
                words_in_line = 0
                last = np.uint8(0)
                left &= ~below(first_bit(breaks) + 1)
                breaks &= breaks - ONE
            if CURLY_BRACE(text, at) & inside != NONE:
                flag |= CURLY
            if not flag & JAVASCRIPT:
                letters = LETTER_J(text, at) & inside
                while letters != NONE:
                    if _starts(text, at + first_bit(letters), end, javascript):
                        flag |= JAVASCRIPT
                    letters &= letters - ONE
            while begins != NONE:
                place = at + first_bit(begins)
                begins &= begins - ONE
                around = WORD(text, place - 3)
                ipsum = around & np.uint64(0xFFFFFFFF) == BEFORE_IPSUM and place - 6 >= FRONT
                if ipsum and _starts(text, place - 6, end, lorem):
                    flag |= LOREM
                if flag & NAUGHTY:
                    continue
                bucket = bucket_of(around >> np.uint64(24))
                maybe = word_bits[bucket >> 3] >> (bucket & 7) & 1
                if maybe and _forbidden_word(text, place, end, words, longest):
                    flag |= NAUGHTY
                bucket = bucket_of(around & np.uint64(0xFFFF) | around >> np.uint64(8) & np.uint64(0xFF0000))
                maybe = phrase_bits[bucket >> 3] >> (bucket & 7) & 1 and text[place - 1] == 32
                if maybe and _forbidden_phrase(
                    text, place - 1, end, bucket, buckets, anchors, sizes, phrases
                ):
                    flag |= NAUGHTY
            at += WIDE
        counts[row] += 1
        if not (last == 46 or last == 63 or last == 33 or last == 34):
            open_rows[opened], open_starts[opened], open_ends[opened] = row, start, position
            opened += 1
        if words_in_line < 3:
            few_rows[few], few_starts[few], few_ends[few] = row, start, position
            few += 1
        flags[row] = flag
    return (
        flags, counts,
        open_rows[:opened], open_starts[:opened], open_ends[:opened],
        few_rows[:few], few_starts[:few], few_ends[:few],
    )  # fmt: skip
