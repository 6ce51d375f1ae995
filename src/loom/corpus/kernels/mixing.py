"""Dolma's mixer by columns: spans read from attribute rows, replaced in text, documents written anew."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.attribute_lines import _copy, _integer, _quoted
from loom.corpus.kernels.characters import ascii_space, wide_space
from loom.corpus.kernels.json_lines import (
    ABSENT,
    METADATA,
    UNUSUAL,
    _blank,
    _field,
    _string,
    _unescape,
    _value,
)
from loom.corpus.kernels.vectors import (
    BACKSLASH,
    LEAD,
    NONE,
    ONE,
    WIDE,
    bits_set,
    copied,
    escaped,
    nth_bit,
)
from loom.native import kernel

ID, ATTRIBUTES = 0, 1
TEXT = 1  # among the fields of a document
MOST_MEMBERS = 32
PROVENANCE = np.frombuffer(b"provenance", np.uint8)


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
        out[row, 0, 0], out[row, 0, 1] = head[ID, 0], head[ID, 1]
        low, high = head[ATTRIBUTES, 0], head[ATTRIBUTES, 1]
        if not members(data, low, high, kinds, keys, key_starts, out[row, 1:]):
            return out, False
    return out, True


@kernel
def _number(data, at, high):  # type: ignore[no-untyped-def]
    """A number of at most 15 digits and its end, or -1 there."""
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
    if digits == 0 or digits > 15:
        return 0.0, -1
    if at < high and (data[at] | 32) == 101:
        at += 1
        below = at < high and data[at] == 45
        at += at < high and (below or data[at] == 43)
        exponent = np.int64(0)
        start = at
        while at < high and 48 <= data[at] <= 57 and exponent < 100:
            exponent = exponent * 10 + np.int64(data[at]) - 48
            at += 1
        if at == start:
            return 0.0, -1
        decimals += int(exponent if below else -exponent)
    if decimals < 0 or decimals > 22:
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
def _behind(data, at, high, points):  # type: ignore[no-untyped-def]
    """The place in a JSON string behind so many code points from `at` on, at most `high`; no \\u is in it."""
    if points == 0:
        return at
    before = NONE
    while at < high:
        if at + WIDE > data.size:
            while points and at < high:
                at += 2 if data[at] == 92 else 1
                while at < high and data[at] & 0xC0 == 0x80:
                    at += 1
                points -= 1
            return at
        starts = LEAD(data, at)
        backslashes = BACKSLASH(data, at)
        if backslashes | before != NONE:
            inside, before = escaped(backslashes, before)
            starts &= ~inside
        if high - at < WIDE:
            starts &= (ONE << np.uint64(high - at)) - ONE
        count = bits_set(starts)
        if count > points:
            return at + nth_bit(starts, points)
        points -= count
        at += WIDE
    return high


@kernel
def edited(data, where, firsts, starts, ends, which, pieces, piece_starts):  # type: ignore[no-untyped-def]
    """Texts with spans replaced, as inside JSON strings: (bytes, offsets, which rows are left, as nothing).

    `where` is int64[n, 3] as `json_lines.rows` has it; row i has spans firsts[i] to firsts[i + 1], by code
    points; `which[k]` is the replacement of span k among `pieces`, as inside JSON strings too. A row is left
    where its escapes are not orjson's, or its spans overlap, are empty or begin behind its end.
    """
    count = where.shape[0]
    size = WIDE
    for row in range(count):
        size += where[row, 1] - where[row, 0]
    for k in range(which.size):
        size += piece_starts[which[k] + 1] - piece_starts[which[k]]
    out = np.empty(size, np.uint8)
    offsets = np.zeros(count + 1, np.int64)
    left = np.zeros(count, np.bool_)
    size = 0
    for row in range(count):
        at, high = where[row, 0], where[row, 1]
        begin, before = size, 0
        usual = not where[row, 2] & UNUSUAL
        position = 0
        for k in range(firsts[row], firsts[row + 1]):
            place = _behind(data, at, high, starts[k] - position) if starts[k] >= before else high
            if not usual or place >= high or starts[k] >= ends[k]:
                usual = False
                break
            size = copied(out, size, data, at, place)
            size = copied(out, size, pieces, piece_starts[which[k]], piece_starts[which[k] + 1])
            at = _behind(data, place, high, ends[k] - starts[k])
            position = before = ends[k]
        if usual:
            size = copied(out, size, data, at, high)
        else:
            left[row] = True
            size = begin
        offsets[row + 1] = size
    return out[:size], offsets, left


@kernel
def provenance(data, where, kinds, place, first, kept):  # type: ignore[no-untyped-def]
    """The metadata of every kept row with where it stood, sorted, as orjson writes it.

    Returns (bytes, offsets, which rows are left, as nothing). `where` int64[n, 3] are the metadata's places;
    a row is left unless it has none, or a flat object of at most 32 strings, small whole numbers, true, false
    and null, under names without escapes, none twice and none of them "provenance".
    """
    count = where.shape[0]
    size = WIDE
    for row in range(count):
        size += place.size + 48
        if where[row, 0] >= 0:
            size += where[row, 1] - where[row, 0]
    out = np.empty(size, np.uint8)
    offsets = np.zeros(count + 1, np.int64)
    left = np.zeros(count, np.bool_)
    members = np.empty((MOST_MEMBERS, 4), np.int64)
    size = 0
    for row in range(count):
        if kept[row]:
            number = 0
            if where[row, 0] >= 0:
                number = _flat(data, where[row, 0], where[row, 1], kinds, members)
            before = number  # of the members, how many come before "provenance"
            for k in range(number - 1, -1, -1):
                order = _compared(data, members[k, 0], members[k, 1], PROVENANCE, 0, PROVENANCE.size)
                if order == 0 or (
                    k
                    and not _compared(
                        data, members[k - 1, 0], members[k - 1, 1], data, members[k, 0], members[k, 1]
                    )
                ):
                    number = -1
                    break
                if order > 0:
                    before = k
            left[row] = number < 0
            if number >= 0:
                out[size] = 123
                size += 1
                for k in range(number + 1):
                    if k and (k < number or k == before):
                        out[size] = 44
                        size += 1
                    if k == before:
                        out[size] = 34
                        size = copied(out, size + 1, PROVENANCE, 0, PROVENANCE.size)
                        out[size], out[size + 1], out[size + 2] = 34, 58, 34
                        size = copied(out, size + 3, place, 0, place.size)
                        out[size] = 58
                        size = _integer(out, size + 1, first + row)
                        out[size] = 34
                        size += 1
                    if k < number:
                        if k == before:
                            out[size] = 44
                            size += 1
                        size = copied(out, size, data, members[k, 0] - 1, members[k, 1] + 1)
                        out[size] = 58
                        size = copied(out, size + 1, data, members[k, 2], members[k, 3])
                out[size] = 125
                size += 1
        offsets[row + 1] = size
    return out[:size], offsets, left


@kernel
def _compared(one, low, high, other, start, end):  # type: ignore[no-untyped-def]
    """Below, above or equal to 0 as bytes of one sort before, behind or like those of the other."""
    for k in range(min(high - low, end - start)):
        if one[low + k] != other[start + k]:
            return np.int64(one[low + k]) - np.int64(other[start + k])
    return (high - low) - (end - start)


@kernel
def _flat(data, low, high, kinds, members):  # type: ignore[no-untyped-def]
    """Fill `members` (name's start and end, value's start and end), sorted by name; their number or -1."""
    at = _skip(data, low, high)
    if at >= high or data[at] != 123:
        return -1
    at = _skip(data, at + 1, high)
    number = 0
    if at < high and data[at] == 125:
        return 0
    while at < high and number < MOST_MEMBERS:
        if data[at] != 34:
            return -1
        name = at + 1
        end, escapes = _string(data, name, high, kinds)
        if end < 0 or escapes:
            return -1
        at = _skip(data, end + 1, high)
        if at >= high or data[at] != 58:
            return -1
        at = _skip(data, at + 1, high)
        if at >= high:
            return -1
        start = at
        if data[at] == 34:
            at, escapes = _string(data, at + 1, high, kinds)
            if at < 0 or escapes & UNUSUAL:
                return -1
            at += 1
        elif data[at] == 123 or data[at] == 91 or data[at] == 45:
            return -1
        else:
            at = _value(data, at, high, kinds)
            if at < 0:
                return -1
            for k in range(start, at):
                if data[k] == 46:
                    return -1
        k = number
        while k and _compared(data, name, end, data, members[k - 1, 0], members[k - 1, 1]) < 0:
            for part in range(4):
                members[k, part] = members[k - 1, part]
            k -= 1
        members[k, 0], members[k, 1], members[k, 2], members[k, 3] = name, end, start, at
        number += 1
        at = _skip(data, at, high)
        if at >= high:
            return -1
        if data[at] == 125:
            return number
        if data[at] != 44:
            return -1
        at = _skip(data, at + 1, high)
    return -1


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
    data, where, kept, order, names, name_starts, text, text_offsets, metadata, metadata_offsets
):
    """The kept rows as JSON lines, their fields in `order`; text, as inside a JSON string, and metadata come
    from columns of their own."""
    size = WIDE + text.size + metadata.size
    for row in range(where.shape[0]):
        size += 256
        for field in order:
            if where[row, field, 0] >= 0 and field != TEXT and field != METADATA:
                size += 6 * (where[row, field, 1] - where[row, field, 0])
    out = np.empty(size, np.uint8)
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
            if low < 0 and field != METADATA:
                continue
            if some:
                out[at] = 44
                at += 1
            some = True
            out[at] = 34
            at = _copy(out, at + 1, names, name_starts[field], name_starts[field + 1])
            out[at], out[at + 1] = 34, 58
            at += 2
            if field == METADATA:
                at = copied(out, at, metadata, metadata_offsets[row], metadata_offsets[row + 1])
            elif field != TEXT and where[row, field, 2] & UNUSUAL:
                if high - low > scratch.size:
                    scratch = np.empty(2 * (high - low), np.uint8)
                at = _quoted(out, at, scratch, 0, _unescape(data, low, high, scratch, 0))
            else:
                out[at] = 34
                if field == TEXT:
                    at = copied(out, at + 1, text, text_offsets[row], text_offsets[row + 1])
                else:
                    at = copied(out, at + 1, data, low, high)
                out[at] = 34
                at += 1
        out[at], out[at + 1] = 125, 10
        at += 2
    return out[:at]
