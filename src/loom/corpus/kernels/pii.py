"""Paragraphs that may hold an address or a number: everything a pattern could match, and little more."""

from __future__ import annotations

from typing import Any

import numpy as np

from loom.corpus.kernels.characters import DECIMAL, ascii_space, code_point
from loom.corpus.kernels.vectors import LEAD, NEWLINE, NONE, ONE, WIDE, _bits, _loaded, bits_set, first_bit
from loom.corpus.kernels.words import BEYOND, below, tail
from loom.native import intrinsic, kernel

EMAIL, PHONE, IP = 1, 2, 4
FEWEST_DIGITS = 9  # below which no runs of digits make a telephone number


@intrinsic("uint64", "array", "int64")
def DIGIT(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("<", builder.sub(vector, every(48)), every(10)))


@intrinsic("uint64", "array", "int64")
def DOT(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("==", vector, every(46)))


@intrinsic("uint64", "array", "int64")
def AT_SIGN(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("==", vector, every(64)))


@intrinsic("uint64", "array", "int64")
def QUESTION_MARK(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned("==", vector, every(63)))


@kernel
def _may_be_address(data, at, end):  # type: ignore[no-untyped-def]
    """Whether Dolma's pattern for addresses can match around the @ at `at` of a line that ends at `end`.

    A character that is neither space nor @ stands before it; behind it a name with a dot, up to a space or to a
    mark with a space behind it. What is beyond ASCII is left to the pattern.
    """
    byte = data[at - 1]
    if byte == 64 or ascii_space(byte):
        return False
    dotted = False
    for k in range(at + 1, end):
        byte = data[k]
        if byte >= 0x80:
            return True
        if ascii_space(byte):
            return dotted
        if (
            byte == 64
            or byte == 44
            or byte == 63
            or byte == 33
            or byte == 59
            or byte == 58
            or 40 <= byte <= 41
        ):
            return dotted and k + 1 < end and (data[k + 1] >= 0x80 or ascii_space(data[k + 1]))
        dotted |= byte == 46
    return False


@kernel
def _kinds(data, start, end, characters, as_dolma):  # type: ignore[no-untyped-def]
    """What a line may hold, byte by byte."""
    kinds = dots = digits = runs = 0
    for at in range(start, end):
        byte = data[at]
        if (byte & 0xC0) == 0x80:
            continue
        digit = 48 <= byte <= 57
        if byte >= 0x80:
            digit = characters[code_point(data, at)] & DECIMAL != 0
        if digit:
            digits += 1
            if digits == 3 or digits == 6 or digits == 10:
                runs += 1
            if dots >= 3:
                kinds |= IP
        elif byte == 46:
            dots = dots + 1 if digits > 0 else 0
            digits = 0
        else:
            if byte == 64 and at > start and (not as_dolma or _may_be_address(data, at, end)):
                kinds |= EMAIL
            dots = digits = 0
    return kinds | PHONE if runs >= 3 else kinds


@kernel
def _grown(found):  # type: ignore[no-untyped-def]
    """Room for twice as many rows."""
    out = np.empty((2 * found.shape[0], found.shape[1]), np.int64)
    for row in range(found.shape[0]):  # a slice would need Python's error for unequal shapes
        for column in range(found.shape[1]):
            out[row, column] = found[row, column]
    return out


@kernel
def paragraphs(data, offsets, characters, as_dolma):  # type: ignore[no-untyped-def]
    """Candidates of every document: (row, first byte, end byte, first code point, kinds), int64[m, 5].

    A paragraph is a line with its newline. Kinds are bits: EMAIL for an @ inside it, PHONE for digits in runs
    that can make 3 + 3 + 4, IP for four dotted numbers; `as_dolma` looks closer at an @, as Dolma's pattern
    does. `characters` is `character_table()`. Most lines have
    too few digits and are only counted over; a character beyond ASCII may be a digit.
    """
    found = np.empty((1024, 5), np.int64)
    count = 0
    held = np.empty(WIDE, np.uint8)
    for row in range(offsets.size - 1):
        high = offsets[row + 1]
        at = start = offsets[row]
        first = points = digits = dots = signs = 0
        while at < high:
            inside = below(high - at)
            if at + WIDE <= data.size:
                leads, breaks, numbers = LEAD(data, at), NEWLINE(data, at), DIGIT(data, at)
                points_there, marks, beyond = DOT(data, at), AT_SIGN(data, at), BEYOND(data, at)
            else:
                tail(data, at, held)
                leads, breaks, numbers = LEAD(held, 0), NEWLINE(held, 0), DIGIT(held, 0)
                points_there, marks, beyond = DOT(held, 0), AT_SIGN(held, 0), BEYOND(held, 0)
            breaks &= inside
            numbers |= beyond & leads
            last = at + WIDE >= high
            left = inside
            while True:  # the lines that end here, and what there is of the next
                upto = left if breaks == NONE else left & (breaks ^ (breaks - ONE))
                digits += bits_set(numbers & upto)
                dots += bits_set(points_there & upto)
                signs += bits_set(marks & upto)
                points += bits_set(leads & upto)
                if breaks == NONE and not last:
                    break
                end = high if breaks == NONE else at + first_bit(breaks) + 1
                if signs or digits >= FEWEST_DIGITS or (digits >= 4 and dots >= 3):
                    kinds = _kinds(data, start, end, characters, as_dolma)
                    if kinds:
                        if count == found.shape[0]:
                            found = _grown(found)
                        found[count, 0] = row
                        found[count, 1] = start
                        found[count, 2] = end
                        found[count, 3] = first
                        found[count, 4] = kinds
                        count += 1
                if breaks == NONE:
                    break
                start = end
                first = points
                digits = dots = signs = 0
                left &= ~upto
                breaks &= breaks - ONE
            at += WIDE
    return found[:count]


@kernel
def question_marks(data, offsets):  # type: ignore[no-untyped-def]
    """Question marks of every document, int64[n]."""
    out = np.zeros(offsets.size - 1, np.int64)
    for row in range(out.size):
        at, high = offsets[row], offsets[row + 1]
        count = 0
        while at < high and at + WIDE <= data.size:
            count += bits_set(QUESTION_MARK(data, at) & below(high - at))
            at += WIDE
        for k in range(at, high):
            count += data[k] == 63
        out[row] = count
    return out
