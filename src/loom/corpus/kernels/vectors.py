"""Text looked at 64 bytes at a time: which bytes are of a kind, as the bits of a number.

Numba has no vectors, so these are written as LLVM's own: it makes of them whatever the processor has
(AVX-512, AVX2, SSE2, NEON), and every processor answers the same. Bit k of a mask speaks of `data[at + k]`.

The functions in capital letters below read 64 (or 8) bytes that must be there; those without look whether
they are, and take the bytes one by one where the text ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loom.native import intrinsic, kernel

WIDE = 64  # bytes looked at together
ODD = np.uint64(0xAAAAAAAAAAAAAAAA)
ONE = np.uint64(1)
NONE = np.uint64(0)


def _loaded(builder: Any, data: Any, at: Any) -> tuple[Any, Any]:
    """64 bytes as a vector, and what makes one of a byte 64 times over."""
    from llvmlite import ir

    kind = ir.VectorType(ir.IntType(8), WIDE)
    vector = builder.load(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()))
    vector.align = 1
    return vector, lambda byte: ir.Constant(kind, [ir.Constant(ir.IntType(8), byte)] * WIDE)


def _bits(builder: Any, flags: Any) -> Any:
    from llvmlite import ir

    return builder.bitcast(flags, ir.IntType(64))


@intrinsic("uint64", "array", "int64")
def SPECIAL(builder: Any, data: Any, at: Any) -> Any:
    """What is no plain ASCII in a JSON string: below a space, a quote, a backslash, beyond ASCII."""
    vector, every = _loaded(builder, data, at)
    out = builder.icmp_signed("<", vector, every(0x20))  # bytes beyond ASCII are negative
    out = builder.or_(out, builder.icmp_signed("==", vector, every(0x22)))
    return _bits(builder, builder.or_(out, builder.icmp_signed("==", vector, every(0x5C))))


@intrinsic("uint64", "array", "int64")
def TO_ESCAPE(builder: Any, data: Any, at: Any) -> Any:
    """What a JSON string must escape."""
    vector, every = _loaded(builder, data, at)
    out = builder.icmp_unsigned("<", vector, every(0x20))
    out = builder.or_(out, builder.icmp_signed("==", vector, every(0x22)))
    return _bits(builder, builder.or_(out, builder.icmp_signed("==", vector, every(0x5C))))


@intrinsic("uint64", "array", "int64")
def NEWLINE(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_signed("==", vector, every(0x0A)))


@intrinsic("uint64", "array", "int64")
def BACKSLASH(builder: Any, data: Any, at: Any) -> Any:
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_signed("==", vector, every(0x5C)))


@intrinsic("uint64", "array", "int64")
def LEAD(builder: Any, data: Any, at: Any) -> Any:
    """The first bytes of characters: all but 0x80 to 0xBF."""
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_signed(">", vector, every(-65)))


@intrinsic("uint64", "array", "int64")
def INKED(builder: Any, data: Any, at: Any) -> Any:
    """What is above a space."""
    vector, every = _loaded(builder, data, at)
    return _bits(builder, builder.icmp_unsigned(">", vector, every(0x20)))


@intrinsic("void", "array", "int64", "array", "int64")
def COPY(builder: Any, out: Any, to: Any, data: Any, at: Any) -> None:
    """Copy 64 bytes from `data[at:]` to `out[to:]`."""
    vector, _ = _loaded(builder, data, at)
    place = builder.bitcast(builder.gep(out, [to]), vector.type.as_pointer())
    builder.store(vector, place, align=1)


@intrinsic("uint64", "array", "int64")
def WORD(builder: Any, data: Any, at: Any) -> Any:
    """`data[at:at + 8]` as a number, its first byte the lowest."""
    from llvmlite import ir

    word = builder.load(builder.bitcast(builder.gep(data, [at]), ir.IntType(64).as_pointer()))
    word.align = 1
    return word


@intrinsic("uint64", "uint64", "uint64")
def product(builder: Any, one: Any, other: Any) -> Any:
    """The 128 bits of a product, its halves folded into one another."""
    from llvmlite import ir

    word, long = ir.IntType(64), ir.IntType(128)
    whole = builder.mul(builder.zext(one, long), builder.zext(other, long))
    high = builder.trunc(builder.lshr(whole, ir.Constant(long, 64)), word)
    return builder.xor(builder.trunc(whole, word), high)


@intrinsic("int64", "uint64")
def bits_set(builder: Any, mask: Any) -> Any:
    """How many bits are set."""
    return builder.ctpop(mask)


@intrinsic("int64", "uint64")
def first_bit(builder: Any, mask: Any) -> Any:
    """The place of the lowest bit that is set; 64 of none."""
    from llvmlite import ir

    return builder.cttz(mask, ir.Constant(ir.IntType(1), 0))


@intrinsic("void", "array", "int64")
def prefetch(builder: Any, words: Any, at: Any) -> None:
    """Have `words[at]` fetched: it will be read and written soon."""
    from llvmlite import ir

    number, text, name = ir.IntType(32), ir.IntType(8).as_pointer(), "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [text, number, number, number])
    held = builder.module.globals.get(name)
    function = held if held is not None else ir.Function(builder.module, kind, name)
    flags = [ir.Constant(number, value) for value in (1, 3, 1)]  # to write, close, data
    builder.call(function, [builder.bitcast(builder.gep(words, [at]), text), *flags])


@kernel
def plain_until(data, at, high):  # type: ignore[no-untyped-def]
    """The first place from `at` on that is no plain ASCII inside a JSON string, at most `high`."""
    while at + WIDE <= data.size:
        mask = SPECIAL(data, at)
        if mask != NONE:
            return min(high, at + first_bit(mask))
        at += WIDE
        if at >= high:
            return high
    while at < high:
        byte = data[at]
        if byte < 0x20 or byte >= 0x80 or byte == 0x22 or byte == 0x5C:
            break
        at += 1
    return at


@kernel
def line_end(data, at):  # type: ignore[no-untyped-def]
    """The place of the next newline from `at` on, or the size of `data`."""
    while at + WIDE <= data.size:
        mask = NEWLINE(data, at)
        if mask != NONE:
            return at + first_bit(mask)
        at += WIDE
    while at < data.size and data[at] != 10:
        at += 1
    return at


@kernel
def copied(out, to, data, at, high):  # type: ignore[no-untyped-def]
    """Copy `data[at:high]` to `out[to:]`; what stands behind it in `out` may be overwritten. The end in `out`."""
    end = to + high - at
    while at + WIDE <= data.size and to + WIDE <= out.size and to < end:
        COPY(out, to, data, at)
        at += WIDE
        to += WIDE
    while to < end:
        out[to] = data[at]
        at += 1
        to += 1
    return end


@kernel
def word(data, at, high):  # type: ignore[no-untyped-def]
    """The up to eight bytes of `data[at:high]` as a number, zeros above."""
    size = high - at
    if at + 8 <= data.size:
        value = WORD(data, at)
        return value if size >= 8 else value & ((ONE << np.uint64(8 * size)) - ONE)
    value = NONE
    for k in range(min(size, 8)):
        value |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return value


@kernel
def nth_bit(mask, n):  # type: ignore[no-untyped-def]
    """The place of bit number `n` of those that are set, from 0; there must be so many."""
    place = 0
    for step in (32, 16, 8, 4, 2, 1):
        low = mask & ((ONE << np.uint64(step)) - ONE)
        count = bits_set(low)
        if n >= count:
            n -= count
            mask >>= np.uint64(step)
            place += step
        else:
            mask = low
    return place


@kernel
def escaped(backslashes, before):  # type: ignore[no-untyped-def]
    """Which bytes a backslash in front of them escapes, and whether one escapes the byte behind these 64.

    `before` says so of the first byte (1 or 0). Of a run of backslashes every second one is escaped: the
    carries of one addition tell runs that begin at an even place from others.
    """
    backslashes &= ~before
    follows = backslashes << ONE | before
    odd_starts = backslashes & ODD & ~follows
    ends = odd_starts + backslashes
    over = ONE if ends < odd_starts else NONE
    return (~ODD ^ (ends << ONE)) & follows, over
