"""Compiled loops over a suffix array: compare, search, count what follows.

Suffixes stand in the order of their little-endian bytes, as infini-gram's do; tokens are compared as
whole numbers whose bytes are swapped first, which is the same order. A table entry is a byte offset of
`width` bytes, least significant first. Every kernel releases the GIL and is compiled once a machine.
"""

from __future__ import annotations

import numpy as np

from loom.native import kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHALLOW = 64  # tokens compared before copies are thought of
KNOWN_BITS = 14


@kernel(inline="always")
def rank_of(token, size):  # type: ignore[no-untyped-def]
    """A token as a number that orders like its little-endian bytes; `size` is bytes a token."""
    value = np.uint64(token)
    if size == 1:
        return value
    if size == 2:
        return ((value & np.uint64(0xFF)) << np.uint64(8)) | (value >> np.uint64(8))
    return (
        ((value & np.uint64(0xFF)) << np.uint64(24))
        | ((value & np.uint64(0xFF00)) << np.uint64(8))
        | ((value >> np.uint64(8)) & np.uint64(0xFF00))
        | (value >> np.uint64(24))
    )


@kernel(inline="always")
def place_at(table, width, size, rank):  # type: ignore[no-untyped-def]
    """The token offset that entry `rank` of the table points to."""
    value = np.int64(0)
    base = rank * width
    for k in range(width):
        value |= np.int64(table[base + k]) << (8 * k)
    return value // size


@kernel
def common_prefix(tokens, place, query, first):  # type: ignore[no-untyped-def]
    """How many tokens `tokens[place:]` and `query[first:]` share at their start."""
    count = 0
    limit = min(len(tokens) - place, len(query) - first)
    while count < limit and tokens[place + count] == query[first + count]:
        count += 1
    return count


@kernel
def bound(tokens, table, width, size, query, first, length, after, low, high):  # type: ignore[no-untyped-def]
    """The first entry in [low, high) whose suffix is not below `query[first:first + length]`.

    With `after`, the first whose suffix neither is below nor begins with it.
    """
    while low < high:
        middle = (low + high) >> 1
        place = place_at(table, width, size, middle)
        depth = 0
        limit = min(len(tokens) - place, length)
        while depth < limit and tokens[place + depth] == query[first + depth]:
            depth += 1
        if depth == length:
            below = after
        elif depth == limit:  # the text ends here: a prefix stands before what is longer
            below = True
        else:
            below = rank_of(tokens[place + depth], size) < rank_of(query[first + depth], size)
        if below:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def find(tokens, table, width, size, query, first, length):  # type: ignore[no-untyped-def]
    """Entries [low, high) whose suffixes begin with `query[first:first + length]`."""
    entries = len(table) // width
    low = bound(tokens, table, width, size, query, first, length, False, 0, entries)
    high = bound(tokens, table, width, size, query, first, length, True, low, entries)
    return low, high


@kernel
def longest_prefixes(tokens, table, width, size, query, starts, limits, out):  # type: ignore[no-untyped-def]
    """For each of `starts`, the longest prefix of `query[start:start + limit]` that occurs in the text.

    One search finds where the suffix would stand; its two neighbours share the most with it.
    `out` [n] keeps the larger of what it held and what is found, so that shards are taken in turn.
    """
    entries = len(table) // width
    for index in range(len(starts)):
        first = starts[index]
        length = min(limits[index], len(query) - first)
        at = bound(tokens, table, width, size, query, first, length, False, 0, entries)
        best = 0
        for neighbour in (at - 1, at):
            if 0 <= neighbour < entries:
                place = place_at(table, width, size, neighbour)
                shared = min(common_prefix(tokens, place, query, first), length)
                best = max(best, shared)
        out[index] = max(out[index], best)


@kernel
def next_tokens(tokens, table, width, size, low, high, depth):  # type: ignore[no-untyped-def]
    """What follows the first `depth` tokens of entries [low, high): distinct tokens and their counts.

    The entries are sorted, so each token's run ends where a galloping search says. The end of the text
    is not a token and is left out.
    """
    values = []
    counts = []
    at = low
    while at < high:
        place = place_at(table, width, size, at) + depth
        if place >= len(tokens):
            at += 1
            continue
        token = tokens[place]
        step = 1
        last = at  # the last entry known to be of this token
        while last + step < high:
            beyond = place_at(table, width, size, last + step) + depth
            if tokens[beyond] != token:
                break
            last += step
            step *= 2
        left = last + 1
        right = min(last + step, high)
        while left < right:
            middle = (left + right) >> 1
            if tokens[place_at(table, width, size, middle) + depth] == token:
                left = middle + 1
            else:
                right = middle
        values.append(np.int64(token))
        counts.append(np.int64(left - at))
        at = left
    return values, counts


@kernel
def places(table, width, size, ranks):  # type: ignore[no-untyped-def]
    """Token offsets of table entries."""
    out = np.empty(len(ranks), np.int64)
    for index in range(len(ranks)):
        out[index] = place_at(table, width, size, ranks[index])
    return out


@kernel
def pack(out, at, width, value):  # type: ignore[no-untyped-def]
    """Write `value` as entry `at` of a table."""
    for k in range(width):
        out[at * width + k] = np.uint8((value >> (8 * k)) & 0xFF)


@kernel
def token_entries(sorted_bytes, size, limit, out):  # type: ignore[no-untyped-def]
    """From a suffix array of bytes, the token offsets below `limit` tokens, in order, into `out`."""
    count = 0
    for index in range(len(sorted_bytes)):
        value = sorted_bytes[index]
        if value % size == 0 and value // size < limit:
            out[count] = value // size
            count += 1
    return count


@kernel
def packed_entries(entries, size, width):  # type: ignore[no-untyped-def]
    """Token offsets as a table's bytes."""
    out = np.empty(len(entries) * width, np.uint8)
    for index in range(len(entries)):
        pack(out, index, width, np.int64(entries[index]) * size)
    return out


@kernel
def compare(tokens, a, b, depth, limit, size):  # type: ignore[no-untyped-def]
    """-1, 0 or 1 as the suffix at `a` stands before, with or after the one at `b`.

    The first `depth` tokens are known to be equal; no more than `limit` are looked at.
    """
    end = len(tokens)
    while depth < limit:
        if a + depth >= end or b + depth >= end:
            if a == b:
                return 0
            return -1 if a > b else 1  # the later suffix ends first
        x = tokens[a + depth]
        y = tokens[b + depth]
        if x != y:
            return -1 if rank_of(x, size) < rank_of(y, size) else 1
        depth += 1
    return 0


@kernel
def head_key(tokens, place, size):  # type: ignore[no-untyped-def]
    """The first 8 bytes of a suffix as one number, zeros past the end."""
    key = np.uint64(0)
    for k in range(8 // size):
        key <<= np.uint64(8 * size)
        if place + k < len(tokens):
            key |= rank_of(tokens[place + k], size)
    return key


@kernel
def compare_copies(tokens, a, b, limit, size, known):  # type: ignore[no-untyped-def]
    """`compare`, remembering what is equal: copies of a long document are not read again from every token.

    `known` int64 [slots, 3] holds, for a distance between two places, a stretch [low, high) that equals the
    text that far on. Without it, merging two copies of n tokens would cost n * n / 2 comparisons.
    """
    order = compare(tokens, a, b, 0, min(SHALLOW, limit), size)
    if order != 0 or limit <= SHALLOW or a == b:
        return order
    first = min(a, b)
    distance = max(a, b) - first
    slot = (np.uint64(distance) * GOLDEN) >> np.uint64(64 - KNOWN_BITS)
    end = len(tokens) - distance
    last = min(first + limit, end)
    at = first + SHALLOW
    mine = known[slot, 0] == distance
    low = known[slot, 1]
    high = known[slot, 2]
    while at < last:
        if mine and low <= at < high:
            at = high
            continue
        if tokens[at] != tokens[at + distance]:
            break
        at += 1
    if mine and low <= at and first <= high:
        known[slot, 1] = min(low, first)
        known[slot, 2] = max(high, at)
    else:
        known[slot, 0] = distance
        known[slot, 1] = first
        known[slot, 2] = at
    if at - first >= limit:
        return 0
    if at >= end:
        order = 1  # the later one ends first, so it stands before
    elif rank_of(tokens[at], size) < rank_of(tokens[at + distance], size):
        order = -1
    else:
        order = 1
    return order if a < b else -order


@kernel
def before(  # type: ignore[no-untyped-def]
    tokens, keys, entries, a, b, limit, size, owner_a, owner_b, known
):
    if keys[a] != keys[b]:
        return keys[a] < keys[b]
    order = compare_copies(tokens, entries[a], entries[b], limit, size, known)
    return order < 0 or (order == 0 and owner_a < owner_b)


@kernel
def merge(tokens, entries, bounds, limit, size, width):  # type: ignore[no-untyped-def]
    """Merge sorted runs of suffixes into a table's bytes.

    Run r is `entries[bounds[r]:bounds[r + 1]]`, token offsets. A heap of runs; most comparisons are
    settled by the suffixes' first 8 bytes, taken for the whole range beforehand.
    """
    keys = np.empty(len(entries), np.uint64)
    for index in range(len(entries)):
        keys[index] = head_key(tokens, entries[index], size)
    out = np.empty(len(entries) * width, np.uint8)
    known = np.full((1 << KNOWN_BITS, 3), -1, np.int64)
    runs = len(bounds) - 1
    heads = bounds[:-1].copy()
    heap = np.empty(runs, np.int64)
    filled = 0
    for run in range(runs):
        if heads[run] < bounds[run + 1]:
            at = filled
            filled += 1
            while at > 0:
                parent = (at - 1) >> 1
                other = heap[parent]
                if not before(
                    tokens, keys, entries, heads[run], heads[other], limit, size, run, other, known
                ):
                    break
                heap[at] = other
                at = parent
            heap[at] = run
    for done in range(len(entries)):
        run = heap[0]
        pack(out, done, width, entries[heads[run]] * size)
        heads[run] += 1
        if heads[run] == bounds[run + 1]:
            filled -= 1
            run = heap[filled]
        at = 0
        while True:
            child = 2 * at + 1
            if child >= filled:
                break
            best = heap[child]
            if child + 1 < filled:
                other = heap[child + 1]
                if before(tokens, keys, entries, heads[other], heads[best], limit, size, other, best, known):
                    child += 1
                    best = other
            if not before(tokens, keys, entries, heads[best], heads[run], limit, size, best, run, known):
                break
            heap[at] = best
            at = child
        if filled:
            heap[at] = run
    return out


@kernel
def split_run(tokens, run, base, splitter, limit, size):  # type: ignore[no-untyped-def]
    """How many entries of a sorted run (token offsets less `base`) stand before the suffix at `splitter`."""
    low = 0
    high = len(run)
    while low < high:
        middle = (low + high) >> 1
        if compare(tokens, np.int64(run[middle]) + base, splitter, 0, limit, size) < 0:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def lay(tokens, starts, ends, separator, out, counts):  # type: ignore[no-untyped-def]
    """Documents one after the other into `out`, each after a separator, and their ids into `counts`.

    The first id outside `counts`, or -1.
    """
    at = 0
    for document in range(len(starts)):
        out[at] = separator
        at += 1
        for place in range(starts[document], ends[document]):
            token = tokens[place]
            if token >= len(counts):
                return np.int64(token)
            counts[token] += 1
            out[at] = token
            at += 1
    return np.int64(-1)
