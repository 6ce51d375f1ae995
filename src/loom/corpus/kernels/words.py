"""Where the words of a text are, as `str.split` sees them: runs of what is no white space."""

from __future__ import annotations

from typing import Any

import numpy as np

from loom.corpus.kernels.characters import wide_space
from loom.corpus.kernels.vectors import LEAD, NEWLINE, NONE, ONE, WIDE, _bits, _loaded, bits_set, first_bit
from loom.native import intrinsic, kernel

ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@intrinsic("uint64", "array", "int64")
def SPACE(builder: Any, data: Any, at: Any) -> Any:
    """ASCII at which `str.split` splits."""
    vector, every = _loaded(builder, data, at)
    out = builder.icmp_unsigned("==", vector, every(32))
    out = builder.or_(out, builder.icmp_unsigned("<", builder.sub(vector, every(9)), every(5)))
    return _bits(
        builder, builder.or_(out, builder.icmp_unsigned("<", builder.sub(vector, every(28)), every(4)))
    )


@intrinsic("uint64", "array", "int64")
def MAY_BE_SPACE(builder: Any, data: Any, at: Any) -> Any:
    """First bytes of characters among which there is white space beyond ASCII: 0xC2, 0xE1, 0xE2, 0xE3."""
    vector, every = _loaded(builder, data, at)
    out = builder.icmp_unsigned("==", vector, every(0xC2))
    return _bits(
        builder, builder.or_(out, builder.icmp_unsigned("<", builder.sub(vector, every(0xE1)), every(3)))
    )


@intrinsic("uint64", "array", "int64")
def BEYOND(builder: Any, data: Any, at: Any) -> Any:
    """What is not ASCII."""
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_signed("<", vector, every(0)))


@kernel
def below(n):  # type: ignore[no-untyped-def]
    """The lowest `n` bits, 0 to 64."""
    return ALL if n >= 64 else (ONE << np.uint64(n)) - ONE


@kernel
def tail(data, at, out):  # type: ignore[no-untyped-def]
    """Copy what is left of `data` from `at` on into the 64 bytes of `out`, spaces behind it."""
    for k in range(WIDE):
        out[k] = data[at + k] if at + k < data.size else 32


@kernel
def spaces(data, at, held, over):  # type: ignore[no-untyped-def]
    """White space in the 64 bytes at `at`, that beyond ASCII too: (mask, what of it reaches into the next 64).

    `over` is what the 64 bytes before said of these. `held` is 64 bytes of room for the end of the data.
    """
    if at + WIDE <= data.size:
        mask = SPACE(data, at)
        maybe = MAY_BE_SPACE(data, at)
    else:
        tail(data, at, held)
        mask = SPACE(held, 0)
        maybe = MAY_BE_SPACE(held, 0)
    mask |= over
    over = NONE
    while maybe != NONE:
        bit = first_bit(maybe)
        maybe &= maybe - ONE
        if wide_space(data, at + bit):
            size = np.uint64(2) if data[at + bit] == 0xC2 else np.uint64(3)
            bits = (ONE << size) - ONE
            mask |= bits << np.uint64(bit)
            if bit > 61:
                over |= bits >> np.uint64(64 - bit)
    return mask, over


@kernel
def count(data, low, high, held):  # type: ignore[no-untyped-def]
    """(words, code points) of `data[low:high]`."""
    words = points = 0
    before = ONE
    over = NONE
    at = low
    while at < high:
        mask, over = spaces(data, at, held, over)
        inside = below(high - at)
        words += bits_set(~mask & (mask << ONE | before) & inside)
        before = mask >> np.uint64(63)
        points += bits_set((LEAD(data, at) if at + WIDE <= data.size else LEAD(held, 0)) & inside)
        at += WIDE
    return words, points


@kernel
def spans(data, low, high, held, starts, ends):  # type: ignore[no-untyped-def]
    """Write where the words of `data[low:high]` start and end, from `low`; returns how many there are."""
    found = 0
    begun = False
    over = NONE
    at = low
    while at < high:
        mask, over = spaces(data, at, held, over)
        mask |= ~below(high - at)
        place = at - low
        # A word starts where a space is followed by none, and ends where none is followed by a space.
        edges = mask ^ (mask << ONE | (NONE if begun else ONE))
        while edges != NONE:
            bit = first_bit(edges)
            edges &= edges - ONE
            if begun:
                ends[found] = place + bit
                found += 1
            else:
                starts[found] = place + bit
            begun = not begun
        at += WIDE
    if begun:
        ends[found] = high - low
        found += 1
    return found


@kernel
def newline(data, at, high):  # type: ignore[no-untyped-def]
    """The place of the next newline from `at` on, or `high`."""
    while at < high and at + WIDE <= data.size:
        mask = NEWLINE(data, at)
        if mask != NONE:
            return min(high, at + first_bit(mask))
        at += WIDE
    while at < high and data[at] != 10:
        at += 1
    return min(at, high)


@kernel
def characters(data, low, high):  # type: ignore[no-untyped-def]
    """Code points of `data[low:high]`."""
    points = 0
    at = low
    while at < high and at + WIDE <= data.size:
        points += bits_set(LEAD(data, at) & below(high - at))
        at += WIDE
    for k in range(at, high):
        points += (data[k] & 0xC0) != 0x80
    return points
