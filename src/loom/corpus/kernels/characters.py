"""Characters in UTF-8: what Python's `str.split`, `str.isalpha` and `len` see, read from bytes."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from loom.corpus.kernels.vectors import LEAD, WIDE, bits_set
from loom.native import kernel

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


ALPHA, DECIMAL = 1, 2
LETTERS_END = 0x40000  # the planes from here on hold no letters and no digits


@cache
def character_table() -> Bytes:
    """One byte a code point, from this Python's Unicode: bits ALPHA (`str.isalpha`), DECIMAL (`\\d`)."""
    every = np.arange(LETTERS_END, dtype=np.uint32).view("U1")  # numpy asks Python of each
    alpha = np.strings.isalpha(every).view(np.uint8)
    decimal = np.strings.isdecimal(every).view(np.uint8)
    table: Bytes = np.zeros(0x110000, np.uint8)
    table[:LETTERS_END] = alpha * ALPHA + decimal * DECIMAL
    return table


@kernel(inline="always")
def width(lead):  # type: ignore[no-untyped-def]
    """Bytes of the character that starts with `lead`."""
    if lead < 0x80:
        return 1
    if lead < 0xE0:
        return 2
    if lead < 0xF0:
        return 3
    return 4


@kernel
def code_point(data, at):  # type: ignore[no-untyped-def]
    """The code point whose first byte is `data[at]`."""
    lead = np.uint32(data[at])
    if lead < 0x80:
        return lead
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | (np.uint32(data[at + 1]) & 0x3F)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | (np.uint32(data[at + 1]) & 0x3F) << 6 | (np.uint32(data[at + 2]) & 0x3F)
    return (
        (lead & 0x07) << 18
        | (np.uint32(data[at + 1]) & 0x3F) << 12
        | (np.uint32(data[at + 2]) & 0x3F) << 6
        | (np.uint32(data[at + 3]) & 0x3F)
    )


@kernel(inline="always")
def ascii_space(byte):  # type: ignore[no-untyped-def]
    """Whether `str.split` splits at this ASCII byte."""
    return byte == 32 or (9 <= byte <= 13) or (28 <= byte <= 31)


@kernel
def wide_space(data, at):  # type: ignore[no-untyped-def]
    """Whether the character beyond ASCII at `at` is whitespace to `str.split` and `str.strip`."""
    lead = data[at]
    if lead == 0xC2:
        return data[at + 1] == 0x85 or data[at + 1] == 0xA0
    if lead == 0xE1:
        return data[at + 1] == 0x9A and data[at + 2] == 0x80
    if lead == 0xE2:
        last = data[at + 2]
        if data[at + 1] == 0x80:
            return (0x80 <= last <= 0x8A) or last == 0xA8 or last == 0xA9 or last == 0xAF
        return data[at + 1] == 0x81 and last == 0x9F
    if lead == 0xE3:
        return data[at + 1] == 0x80 and data[at + 2] == 0x80
    return False


@kernel
def lengths(data, offsets):  # type: ignore[no-untyped-def]
    """Code points of every document, int64[n]: the bytes that do not continue a character."""
    out = np.empty(offsets.size - 1, np.int64)
    for row in range(out.size):
        count = 0
        at, high = offsets[row], offsets[row + 1]
        while at + WIDE <= high:
            count += bits_set(LEAD(data, at))
            at += WIDE
        while at < high:
            count += (data[at] & 0xC0) != 0x80
            at += 1
        out[row] = count
    return out
