"""JSON lines of documents read into columns, and attribute rows written from columns, without a Python object.

Reading is strict: a line in which anything is unusual (an escape in a key, a lone surrogate, a number with an
exponent, deep nesting, an `id` that is no string) is only marked, and a full JSON reader decides about it.
"""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.vectors import BACKSLASH, COPY, WIDE, copied, first_bit, line_end, plain_until
from loom.native import kernel

FIELDS = ("id", "text", "source", "added", "created", "version", "metadata")
STRINGS, METADATA = 6, 6  # the first six are strings; `metadata` may be any JSON
BLANK, GOOD, DOUBTFUL = 0, 1, 2
ABSENT = -1
DEEPEST = 60
PLAIN, QUOTE, ESCAPE, CONTROL, MANY = 0, 1, 2, 3, 4
USUAL, UNUSUAL = 1, 2  # escapes as orjson writes them; others among them


def byte_kinds() -> np.ndarray:
    """What a byte means inside a JSON string, uint8[256]."""
    kinds = np.zeros(256, np.uint8)
    kinds[:0x20] = CONTROL
    kinds[0x22], kinds[0x5C] = QUOTE, ESCAPE
    kinds[0x80:] = MANY
    return kinds


KINDS = byte_kinds()
NAMES = np.frombuffer("".join(FIELDS).encode(), np.uint8)
NAME_STARTS = np.cumsum([0, *map(len, FIELDS)])


@kernel
def _blank(byte):  # type: ignore[no-untyped-def]
    return byte == 32 or byte == 9 or byte == 13


@kernel
def _hex(data, at):  # type: ignore[no-untyped-def]
    """The value of four hexadecimal digits, or -1."""
    value = np.int64(0)
    for k in range(at, at + 4):
        byte = data[k]
        if 48 <= byte <= 57:
            digit = np.int64(byte) - 48
        elif 97 <= (byte | 32) <= 102:
            digit = np.int64(byte | 32) - 87
        else:
            return np.int64(-1)
        value = value * 16 + digit
    return value


@kernel
def _wide(data, at, high):  # type: ignore[no-untyped-def]
    """Bytes of the well-formed UTF-8 character at `at` (RFC 3629), or 0."""
    lead = data[at]
    if 0xC2 <= lead <= 0xDF:
        return 2 if at + 1 < high and data[at + 1] & 0xC0 == 0x80 else 0
    if 0xE0 <= lead <= 0xEF:
        if at + 2 >= high or data[at + 1] & 0xC0 != 0x80 or data[at + 2] & 0xC0 != 0x80:
            return 0
        if (lead == 0xE0 and data[at + 1] < 0xA0) or (lead == 0xED and data[at + 1] > 0x9F):
            return 0
        return 3
    if 0xF0 <= lead <= 0xF4:
        if at + 3 >= high or data[at + 1] & 0xC0 != 0x80:
            return 0
        if data[at + 2] & 0xC0 != 0x80 or data[at + 3] & 0xC0 != 0x80:
            return 0
        if (lead == 0xF0 and data[at + 1] < 0x90) or (lead == 0xF4 and data[at + 1] > 0x8F):
            return 0
        return 4
    return 0


@kernel
def _string(data, at, high, kinds):  # type: ignore[no-untyped-def]
    """From behind the opening quote: (place of the closing quote, bits USUAL and UNUSUAL), or (-1, 0)."""
    escapes = 0
    while at < high:
        kind = kinds[data[at]]
        if kind == PLAIN:
            at = plain_until(data, at, high)
        elif kind == QUOTE:
            return at, escapes
        elif kind == ESCAPE:
            escapes |= USUAL
            if at + 1 >= high:
                return -1, 0
            byte = data[at + 1]
            if byte == 117:  # \u
                escapes |= UNUSUAL
                if at + 6 > high:
                    return -1, 0
                value = _hex(data, at + 2)
                if value < 0 or 0xDC00 <= value <= 0xDFFF:
                    return -1, 0
                at += 6
                if 0xD800 <= value <= 0xDBFF:
                    if at + 6 > high or data[at] != 92 or data[at + 1] != 117:
                        return -1, 0
                    low = _hex(data, at + 2)
                    if not 0xDC00 <= low <= 0xDFFF:
                        return -1, 0
                    at += 6
            elif (
                byte == 34 or byte == 92 or byte == 47 or byte == 98
                or byte == 102 or byte == 110 or byte == 114 or byte == 116
            ):  # fmt: skip
                escapes |= UNUSUAL if byte == 47 else USUAL
                at += 2
            else:
                return -1, 0
        elif kind == MANY:
            size = _wide(data, at, high)
            if size == 0:
                return -1, 0
            at += size
        else:
            return -1, 0
    return -1, 0


@kernel
def _scalar(data, at, high):  # type: ignore[no-untyped-def]
    """The end of a plain number, true, false or null at `at`, or -1."""
    byte = data[at]
    if byte == 116 or byte == 110 or byte == 102:
        size = 5 if byte == 102 else 4
        if at + size > high:
            return -1
        a, b, c = data[at + 1], data[at + 2], data[at + 3]
        if byte == 116:
            return at + 4 if a == 114 and b == 117 and c == 101 else -1
        if byte == 110:
            return at + 4 if a == 117 and b == 108 and c == 108 else -1
        return at + 5 if a == 97 and b == 108 and c == 115 and data[at + 4] == 101 else -1
    start = at
    if byte == 45:
        at += 1
    first = at
    while at < high and 48 <= data[at] <= 57:
        at += 1
    if at == first or (data[first] == 48 and at > first + 1):
        return -1
    if at < high and data[at] == 46:
        at += 1
        point = at
        while at < high and 48 <= data[at] <= 57:
            at += 1
        if at == point:
            return -1
    if at - start > 17 or (at < high and (data[at] | 32) == 101):
        return -1
    return at


@kernel
def _value(data, at, high, kinds):  # type: ignore[no-untyped-def]
    """The end of the JSON value that starts at `at`, or -1."""
    depth = 0
    objects = np.uint64(0)  # bit d: whether level d is an object
    while True:
        while at < high and _blank(data[at]):
            at += 1
        if at >= high:
            return -1
        byte = data[at]
        if byte == 123 or byte == 91:  # opens; empty ones close at once
            at += 1
            while at < high and _blank(data[at]):
                at += 1
            if at >= high:
                return -1
            closing = byte + 2
            if data[at] != closing:
                depth += 1
                if depth > DEEPEST:
                    return -1
                bit = np.uint64(1) << np.uint64(depth)
                objects = objects | bit if byte == 123 else objects & ~bit
                if byte == 123:
                    at = _key(data, at, high, kinds)
                    if at < 0:
                        return -1
                continue
            at += 1
        elif byte == 34:
            at, _ = _string(data, at + 1, high, kinds)
            if at < 0:
                return -1
            at += 1
        else:
            at = _scalar(data, at, high)
            if at < 0:
                return -1
        while True:  # behind a value
            if depth == 0:
                return at
            while at < high and _blank(data[at]):
                at += 1
            if at >= high:
                return -1
            inside = objects >> np.uint64(depth) & np.uint64(1) == 1
            if data[at] == 44:
                at += 1
                if inside:
                    while at < high and _blank(data[at]):
                        at += 1
                    at = _key(data, at, high, kinds)
                    if at < 0:
                        return -1
                break
            if data[at] != (125 if inside else 93):
                return -1
            at += 1
            depth -= 1


@kernel
def _key(data, at, high, kinds):  # type: ignore[no-untyped-def]
    """From a key's quote to behind its colon, or -1."""
    if at >= high or data[at] != 34:
        return -1
    at, _ = _string(data, at + 1, high, kinds)
    if at < 0:
        return -1
    at += 1
    while at < high and _blank(data[at]):
        at += 1
    return at + 1 if at < high and data[at] == 58 else -1


@kernel
def _field(data, start, end, names, name_starts):  # type: ignore[no-untyped-def]
    for k in range(name_starts.size - 1):
        low = name_starts[k]
        if name_starts[k + 1] - low == end - start:
            same = True
            for j in range(end - start):
                if data[start + j] != names[low + j]:
                    same = False
                    break
            if same:
                return k
    return -1


@kernel
def _row(data, at, high, kinds, names, name_starts, where):  # type: ignore[no-untyped-def]
    """Fill `where` int64[fields + 1, 3] (start, end, escapes) of the object in a line; its state.

    Behind the fields it notes whether there are others, or nulls.
    """
    where[:, 0] = ABSENT
    where[name_starts.size - 1, 0] = 0
    while at < high and _blank(data[at]):
        at += 1
    if at >= high:
        return BLANK
    if data[at] != 123:
        return DOUBTFUL
    at += 1
    while True:
        while at < high and _blank(data[at]):
            at += 1
        if at >= high or data[at] != 34:
            return DOUBTFUL
        start = at + 1
        at, escaped = _string(data, start, high, kinds)
        if at < 0 or escaped:
            return DOUBTFUL
        field = _field(data, start, at, names, name_starts)
        at += 1
        while at < high and _blank(data[at]):
            at += 1
        if at >= high or data[at] != 58:
            return DOUBTFUL
        at += 1
        while at < high and _blank(data[at]):
            at += 1
        if at >= high:
            return DOUBTFUL
        start = at
        if 0 <= field < STRINGS and data[at] == 34:
            at, escaped = _string(data, start + 1, high, kinds)
            if at < 0:
                return DOUBTFUL
            where[field, 0], where[field, 1], where[field, 2] = start + 1, at, escaped
            at += 1
        else:
            at = _value(data, start, high, kinds)
            if at < 0:
                return DOUBTFUL
            if field < 0:
                where[name_starts.size - 1, 0] = 1
            else:
                null = data[start] == 110
                if null:
                    where[name_starts.size - 1, 0] = 1
                if field < STRINGS and (field < 2 or not null):
                    return DOUBTFUL
                where[field, 0], where[field, 1] = ABSENT if null else start, at
        while at < high and _blank(data[at]):
            at += 1
        if at >= high:
            return DOUBTFUL
        if data[at] == 44:
            at += 1
            continue
        if data[at] != 125:
            return DOUBTFUL
        at += 1
        while at < high and _blank(data[at]):
            at += 1
        return GOOD if at == high and where[0, 0] >= 0 and where[1, 0] >= 0 else DOUBTFUL


@kernel
def count_lines(data):  # type: ignore[no-untyped-def]
    """Lines of `data`, the last one whether or not it ends in a newline."""
    count = at = 0
    while at < data.size:
        at = line_end(data, at) + 1
        count += 1
    return count


@kernel
def rows(data, kinds, names, name_starts):  # type: ignore[no-untyped-def]
    """Where the fields of every line are: (int64[lines, fields + 1, 3], states, line starts int64[lines + 1])."""
    count = count_lines(data)
    fields = name_starts.size - 1
    where = np.empty((count, fields + 1, 3), np.int64)
    states = np.empty(count, np.uint8)
    starts = np.empty(count + 1, np.int64)
    at = 0
    for line in range(count):
        starts[line] = at
        end = line_end(data, at)
        states[line] = _row(data, at, end, kinds, names, name_starts, where[line])
        at = end + 1
    starts[count] = data.size
    return where, states, starts


@kernel
def _unescape(data, at, end, out, size):  # type: ignore[no-untyped-def]
    while at < end:
        if at + WIDE <= data.size and size + WIDE <= out.size:
            COPY(out, size, data, at)
            plain = min(end - at, first_bit(BACKSLASH(data, at)))
            at += plain
            size += plain
            if plain == WIDE or at >= end:
                continue
        byte = data[at]
        if byte != 92:
            out[size] = byte
            size += 1
            at += 1
            continue
        byte = data[at + 1]
        at += 2
        if byte == 117:
            value = _hex(data, at)
            at += 4
            if 0xD800 <= value <= 0xDBFF:
                value = 0x10000 + ((value - 0xD800) << 10) + _hex(data, at + 2) - 0xDC00
                at += 6
            if value < 0x80:
                out[size] = value
                size += 1
            elif value < 0x800:
                out[size], out[size + 1] = 0xC0 | value >> 6, 0x80 | value & 0x3F
                size += 2
            elif value < 0x10000:
                out[size], out[size + 1] = 0xE0 | value >> 12, 0x80 | value >> 6 & 0x3F
                out[size + 2] = 0x80 | value & 0x3F
                size += 3
            else:
                out[size], out[size + 1] = 0xF0 | value >> 18, 0x80 | value >> 12 & 0x3F
                out[size + 2], out[size + 3] = 0x80 | value >> 6 & 0x3F, 0x80 | value & 0x3F
                size += 4
            continue
        if byte == 110:
            byte = 10
        elif byte == 116:
            byte = 9
        elif byte == 114:
            byte = 13
        elif byte == 98:
            byte = 8
        elif byte == 102:
            byte = 12
        out[size] = byte
        size += 1
    return size


@kernel
def column(data, where, raw):  # type: ignore[no-untyped-def]
    """One field of every row, int64[n, 3], as (bytes, offsets int64[n + 1], present bool[n]).

    Strings are unescaped; with `raw` the JSON value itself is copied, spaces between its tokens left out.
    """
    count = where.shape[0]
    total = 0
    for row in range(count):
        if where[row, 0] >= 0:
            total += where[row, 1] - where[row, 0]
    out = np.empty(total + WIDE, np.uint8)
    offsets = np.zeros(count + 1, np.int64)
    present = np.zeros(count, np.bool_)
    size = 0
    for row in range(count):
        start, end = where[row, 0], where[row, 1]
        if start >= 0:
            present[row] = True
            if raw:
                quoted = False
                at = start
                while at < end:
                    byte = data[at]
                    if byte == 34:
                        quoted = not quoted
                    elif byte == 92:
                        out[size] = byte
                        size += 1
                        at += 1
                        byte = data[at]
                    if quoted or not _blank(byte):
                        out[size] = byte
                        size += 1
                    at += 1
            elif where[row, 2]:
                size = _unescape(data, start, end, out, size)
            else:
                size = copied(out, size, data, start, end)
        offsets[row + 1] = size
    return out[:size], offsets, present
