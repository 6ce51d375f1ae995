"""Attribute rows written as JSON lines from columns of spans."""

from __future__ import annotations

import numpy as np

from loom.native import kernel

LARGEST = 9e9  # a score from here on is left to the general writer


@kernel
def _copy(out, at, source, low, high):  # type: ignore[no-untyped-def]
    for k in range(low, high):
        out[at + k - low] = source[k]
    return at + high - low


@kernel
def _integer(out, at, value):  # type: ignore[no-untyped-def]
    """A whole number that is not negative, in decimal."""
    digits = 1
    rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    for k in range(digits - 1, -1, -1):
        out[at + k] = 48 + value % 10
        value //= 10
    return at + digits


@kernel
def _score(out, at, value, short):  # type: ignore[no-untyped-def]
    """A number of at most five decimals, the last zeros left out but for one behind the point (not `short`)."""
    scaled = np.int64(np.rint(value * 100_000.0))
    if scaled < 0:
        out[at] = 45
        at += 1
        scaled = -scaled
    at = _integer(out, at, scaled // 100_000)
    rest = scaled % 100_000
    if short and rest == 0:
        return at
    out[at] = 46
    at += 1
    place = 10_000
    while True:
        out[at] = 48 + rest // place
        at += 1
        rest %= place
        if rest == 0:
            return at
        place //= 10


@kernel
def _quoted(out, at, data, low, high):  # type: ignore[no-untyped-def]
    """A JSON string; what must be escaped is escaped as orjson does it."""
    out[at] = 34
    at += 1
    for k in range(low, high):
        byte = data[k]
        if byte >= 0x20 and byte != 34 and byte != 92:
            out[at] = byte
            at += 1
            continue
        out[at] = 92
        if byte == 34 or byte == 92:
            out[at + 1] = byte
        elif byte == 10:
            out[at + 1] = 110
        elif byte == 9:
            out[at + 1] = 116
        elif byte == 13:
            out[at + 1] = 114
        elif byte == 8:
            out[at + 1] = 98
        elif byte == 12:
            out[at + 1] = 102
        else:
            out[at + 1], out[at + 2], out[at + 3] = 117, 48, 48
            out[at + 4] = 48 + (byte >> 4)
            low_digit = byte & 15
            out[at + 5] = low_digit + (48 if low_digit < 10 else 87)
            at += 4
        at += 2
    out[at] = 34
    return at + 1


@kernel
def lines(  # type: ignore[no-untyped-def]
    ids,
    id_offsets,
    sources,
    source_offsets,
    keys,
    key_offsets,
    present,
    offsets,
    starts,
    ends,
    scores,
    heads,
    short,
):
    """Rows `{"id": ..., "attributes": {key: [[start, end, score], ...]}, "source": ...}` as bytes.

    `keys` are the quoted keys with their colon; `present` is bool[keys, n]; key k of row i has the spans
    `offsets[k, i]` to `offsets[k, i + 1]`; scores are rounded. `heads` are the three fixed pieces, parted
    by newline bytes that are not written. With `short` the rows are those of Dolma's deduper: the id comes
    last, there is no source, and whole scores have no point.
    """
    count = id_offsets.size - 1
    number = key_offsets.size - 1
    size = count * (heads.size + 8 + number * 4 + keys.size)
    size += 6 * (id_offsets[-1] - id_offsets[0] + source_offsets[-1] - source_offsets[0])
    widest = 1
    for k in range(ends.size):
        while ends[k] >= 10**widest:
            widest += 1
    largest = 1
    for k in range(scores.size):
        while abs(scores[k]) >= 10.0**largest:
            largest += 1
    size += starts.size * (2 * widest + largest + 12)
    out = np.empty(size, np.uint8)
    first = second = 0
    while heads[first] != 10:
        first += 1
    second = first + 1
    while heads[second] != 10:
        second += 1
    at = 0
    for row in range(count):
        at = _copy(out, at, heads, 0, first)
        if not short:
            at = _quoted(out, at, ids, id_offsets[row], id_offsets[row + 1])
            at = _copy(out, at, heads, first + 1, second)
        some = False
        for k in range(number):
            if not present[k, row]:
                continue
            if some:
                out[at] = 44
                at += 1
            some = True
            at = _copy(out, at, keys, key_offsets[k], key_offsets[k + 1])
            out[at] = 91
            at += 1
            low, high = offsets[k, row], offsets[k, row + 1]
            for span in range(low, high):
                if span > low:
                    out[at] = 44
                    at += 1
                out[at] = 91
                at = _integer(out, at + 1, starts[span])
                out[at] = 44
                at = _integer(out, at + 1, ends[span])
                out[at] = 44
                at = _score(out, at + 1, scores[span], short)
                out[at] = 93
                at += 1
            out[at] = 93
            at += 1
        at = _copy(out, at, heads, second + 1, heads.size)
        if short:
            at = _quoted(out, at, ids, id_offsets[row], id_offsets[row + 1])
        else:
            at = _quoted(out, at, sources, source_offsets[row], source_offsets[row + 1])
        out[at] = 125
        out[at + 1] = 10
        at += 2
    return out[:at]
