"""Dolma's mixer by columns: spans read from attribute rows, replaced in text, documents written anew."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.attribute_lines import _copy, _quoted
from loom.corpus.kernels.characters import ascii_space, wide_space
from loom.corpus.kernels.json_lines import ABSENT, _blank, _field, _string, _unescape, _value
from loom.native import kernel

ID, ATTRIBUTES = 0, 1


@kernel
def _skip(data, at, high):  # type: ignore[no-untyped-def]
    while at < high and _blank(data[at]):
        at += 1
    return at


@kernel
def members(data, low, high, kinds, names, name_starts, where):  # type: ignore[no-untyped-def]
    """Fill `where` int64[names, 2] with the places of an object's members; whether it could be read."""
    where[:, 0] = ABSENT
    at = _skip(data, low, high)
    if at >= high or data[at] != 123:
        return False
    at = _skip(data, at + 1, high)
    if at < high and data[at] == 125:
        return _skip(data, at + 1, high) == high
    while True:
        if at >= high or data[at] != 34:
            return False
        start = at + 1
        at, escaped = _string(data, start, high, kinds)
        if at < 0 or escaped:
            return False
        field = _field(data, start, at, names, name_starts)
        at = _skip(data, at + 1, high)
        if at >= high or data[at] != 58:
            return False
        start = _skip(data, at + 1, high)
        if start >= high:
            return False
        at = _value(data, start, high, kinds)
        if at < 0:
            return False
        if field >= 0:
            where[field, 0], where[field, 1] = start, at
        at = _skip(data, at, high)
        if at >= high:
            return False
        if data[at] == 125:
            return _skip(data, at + 1, high) == high
        if data[at] != 44:
            return False
        at = _skip(data, at + 1, high)


@kernel
def attribute_rows(data, starts, kinds, names, name_starts, keys, key_starts):  # type: ignore[no-untyped-def]
    """Of every line the place of its id, and in its attributes that of each key.

    Returns (int64[n, 1 + keys, 2], whether every line could be read).
    """
    count = starts.size - 1
    number = key_starts.size - 1
    out = np.empty((count, 1 + number, 2), np.int64)
    head = np.empty((name_starts.size - 1, 2), np.int64)
    for row in range(count):
        high = starts[row + 1]
        if high > starts[row] and data[high - 1] == 10:
            high -= 1
        if not members(data, starts[row], high, kinds, names, name_starts, head):
            return out, False
        if head[ID, 0] < 0 or head[ATTRIBUTES, 0] < 0 or data[head[ID, 0]] != 34:
            return out, False
        out[row, 0] = head[ID]
        low, high = head[ATTRIBUTES, 0], head[ATTRIBUTES, 1]
        if not members(data, low, high, kinds, keys, key_starts, out[row, 1:]):
            return out, False
    return out, True


@kernel
def _number(data, at, high):  # type: ignore[no-untyped-def]
    """A plain number of at most 15 digits and its end, or -1 there."""
    negative = data[at] == 45
    at += negative
    value = np.int64(0)
    digits = decimals = 0
    point = False
    while at < high:
        byte = data[at]
        if 48 <= byte <= 57:
            value = value * 10 + np.int64(byte) - 48
            digits += 1
            decimals += point
        elif byte == 46 and not point:
            point = True
        else:
            break
        at += 1
    if digits == 0 or digits > 15 or (at < high and (data[at] | 32) == 101):
        return 0.0, -1
    number = value / 10.0**decimals  # both exact, so the quotient is the nearest double
    return (-number if negative else number), at


@kernel
def spans(data, where):  # type: ignore[no-untyped-def]
    """The `[start, end, score]` lists at int64[n, 2]: rows, starts, ends, scores, whether all could be read."""
    count = 0
    for row in range(where.shape[0]):
        if where[row, 0] >= 0:
            for at in range(where[row, 0], where[row, 1]):
                count += data[at] == 91
    rows = np.empty(count, np.int64)
    starts = np.empty(count, np.int64)
    ends = np.empty(count, np.int64)
    scores = np.empty(count, np.float64)
    found = 0
    values = np.empty(3, np.float64)
    for row in range(where.shape[0]):
        if where[row, 0] < 0:
            continue
        high = where[row, 1]
        at = where[row, 0]
        if data[at] != 91:
            return rows[:0], starts[:0], ends[:0], scores[:0], False
        at = _skip(data, at + 1, high)
        while data[at] != 93:
            if data[at] != 91:
                return rows[:0], starts[:0], ends[:0], scores[:0], False
            at += 1
            for k in range(3):
                at = _skip(data, at, high)
                values[k], at = _number(data, at, high)
                if at < 0:
                    return rows[:0], starts[:0], ends[:0], scores[:0], False
                at = _skip(data, at, high)
                if data[at] != (93 if k == 2 else 44):
                    return rows[:0], starts[:0], ends[:0], scores[:0], False
                at += 1
            rows[found] = row
            starts[found], ends[found] = np.int64(values[0]), np.int64(values[1])
            if starts[found] != values[0] or ends[found] != values[1]:
                return rows[:0], starts[:0], ends[:0], scores[:0], False
            scores[found] = values[2]
            found += 1
            at = _skip(data, at, high)
            if data[at] == 44:
                at = _skip(data, at + 1, high)
    return rows[:found], starts[:found], ends[:found], scores[:found], True


@kernel
def same_ids(data, where, other, others):  # type: ignore[no-untyped-def]
    """Whether two lists of places hold the same bytes; those of `others` have their quotes."""
    for row in range(where.shape[0]):
        low, size = where[row, 0], where[row, 1] - where[row, 0]
        start = others[row, 0] + 1
        if others[row, 1] - 1 - start != size:
            return False
        for k in range(size):
            if data[low + k] != other[start + k]:
                return False
    return True


@kernel
def replaced(data, offsets, firsts, starts, ends, which, pieces, piece_starts):  # type: ignore[no-untyped-def]
    """Texts with spans replaced, as (bytes, offsets): row i has spans firsts[i] to firsts[i + 1], disjoint.

    `which[k]` is the replacement of span k among `pieces`; places are code points.
    """
    count = offsets.size - 1
    size = offsets[count] - offsets[0]
    for k in range(which.size):
        size += piece_starts[which[k] + 1] - piece_starts[which[k]]
    out = np.empty(size, np.uint8)
    out_offsets = np.zeros(count + 1, np.int64)
    end = 0
    for row in range(count):
        at, high = offsets[row], offsets[row + 1]
        position = 0
        for k in range(firsts[row], firsts[row + 1]):
            low = at
            while position < starts[k] and at < high:
                at += 1
                while at < high and data[at] & 0xC0 == 0x80:
                    at += 1
                position += 1
            out[end : end + at - low] = data[low:at]
            end += at - low
            while position < ends[k] and at < high:
                at += 1
                while at < high and data[at] & 0xC0 == 0x80:
                    at += 1
                position += 1
            end = _copy(out, end, pieces, piece_starts[which[k]], piece_starts[which[k] + 1])
        out[end : end + high - at] = data[at:high]
        end += high - at
        out_offsets[row + 1] = end
    return out[:end], out_offsets


@kernel
def trimmed(data, offsets):  # type: ignore[no-untyped-def]
    """Bytes of every text without the whitespace around it, int64[n]."""
    out = np.zeros(offsets.size - 1, np.int64)
    for row in range(out.size):
        low, high = offsets[row], offsets[row + 1]
        while low < high:
            if data[low] < 0x80:
                if not ascii_space(data[low]):
                    break
                low += 1
            elif wide_space(data, low):
                low += 2 if data[low] < 0xE0 else 3
            else:
                break
        while high > low:
            at = high - 1
            while data[at] & 0xC0 == 0x80:
                at -= 1
            if data[at] < 0x80:
                if not ascii_space(data[at]):
                    break
            elif not wide_space(data, at):
                break
            high = at
        out[row] = high - low
    return out


@kernel
def documents(  # type: ignore[no-untyped-def]
    data, where, kept, order, names, name_starts, text, text_offsets, metadata, metadata_offsets, extra
):
    """The kept rows as JSON lines, their fields in `order`; text and metadata come from columns of their own.

    `extra` are the bytes that the columns may have more than the lines they come from.
    """
    out = np.empty(data.size + extra + where.shape[0] * 96 + metadata.size, np.uint8)
    scratch = np.empty(1024, np.uint8)
    at = 0
    for row in range(where.shape[0]):
        if not kept[row]:
            continue
        out[at] = 123
        at += 1
        some = False
        for field in order:
            low, high = where[row, field, 0], where[row, field, 1]
            if low < 0 and field != 6:
                continue
            if some:
                out[at] = 44
                at += 1
            some = True
            out[at] = 34
            at = _copy(out, at + 1, names, name_starts[field], name_starts[field + 1])
            out[at], out[at + 1] = 34, 58
            at += 2
            if field == 1:
                at = _quoted(out, at, text, text_offsets[row], text_offsets[row + 1])
            elif field == 6:
                at = _copy(out, at, metadata, metadata_offsets[row], metadata_offsets[row + 1])
            elif where[row, field, 2]:
                if high - low > scratch.size:
                    scratch = np.empty(2 * (high - low), np.uint8)
                at = _quoted(out, at, scratch, 0, _unescape(data, low, high, scratch, 0))
            else:
                out[at] = 34
                at = _copy(out, at + 1, data, low, high)
                out[at] = 34
                at += 1
        out[at], out[at + 1] = 125, 10
        at += 2
    return out[:at]
