"""Compiled loops of the survey: words, n-grams, and the tables that count them.

A table is uint64 [slots, 4]: key, count, where, at. `where` is file << 40 | row, `at` a byte offset in
the text: together the first place at which the key was seen. A count of 0 is an empty slot.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from numba import njit

KEY, COUNT, WHERE, AT = 0, 1, 2, 3
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1 = np.uint64(0xBF58476D1CE4E5B9)
MIX2 = np.uint64(0x94D049BB133111EB)
WORD_SEED = np.uint64(0x2545F4914F6CDD1D)
HLL_BITS = 14
FILTER_BITS = 20


@cache
def word_table() -> npt.NDArray[np.uint8]:
    """One byte a code point, from this Python's Unicode: 1 where a regular expression's `\\w` matches."""
    every = map(chr, range(0x110000))
    table = np.frombuffer(bytes(character.isalnum() or character == "_" for character in every), np.uint8)
    return table


@njit(nogil=True, cache=True, inline="always")
def mixed(value):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * MIX1
    value = (value ^ (value >> np.uint64(27))) * MIX2
    return value ^ (value >> np.uint64(31))


@njit(nogil=True, cache=True)
def words(data, offsets, is_word, lower, hashes, starts, bounds):  # type: ignore[no-untyped-def]
    """Hash and first byte of every word; document i's are [bounds[i], bounds[i + 1]) of them.

    A word is a longest run of characters of `is_word`. With `lower`, ASCII capitals hash as small letters.
    Returns the number of words; there are at most half as many as bytes, and one.
    """
    count = 0
    for document in range(len(offsets) - 1):
        bounds[document] = count
        at = offsets[document]
        end = offsets[document + 1]
        inside = False
        value = np.uint64(0)
        while at < end:
            lead = data[at]
            if lead < 0x80:
                size = 1
                hit = is_word[lead] == 1
            else:
                if lead < 0xE0:
                    size = 2
                    point = (np.int64(lead & 0x1F) << 6) | np.int64(data[at + 1] & 0x3F)
                elif lead < 0xF0:
                    size = 3
                    point = (
                        (np.int64(lead & 0x0F) << 12)
                        | (np.int64(data[at + 1] & 0x3F) << 6)
                        | np.int64(data[at + 2] & 0x3F)
                    )
                else:
                    size = 4
                    point = (
                        (np.int64(lead & 0x07) << 18)
                        | (np.int64(data[at + 1] & 0x3F) << 12)
                        | (np.int64(data[at + 2] & 0x3F) << 6)
                        | np.int64(data[at + 3] & 0x3F)
                    )
                hit = is_word[point] == 1
            if hit:
                if not inside:
                    inside = True
                    value = WORD_SEED
                    starts[count] = at
                for k in range(size):
                    byte = np.uint64(data[at + k])
                    if lower and 65 <= byte <= 90:
                        byte |= np.uint64(32)
                    value = (value ^ byte) * GOLDEN
                    value ^= value >> np.uint64(29)
            elif inside:
                inside = False
                hashes[count] = mixed(value)
                count += 1
            at += size
        if inside:
            hashes[count] = mixed(value)
            count += 1
    bounds[len(offsets) - 1] = count
    return count


@njit(nogil=True, cache=True, inline="always")
def gram_hash(hashes, first, n):  # type: ignore[no-untyped-def]
    """A hash of n words in a row; never 0, and of one word the word's own."""
    value = hashes[first]
    for k in range(1, n):
        value = (value * GOLDEN + hashes[first + k]) ^ (value >> np.uint64(32))
    value = mixed(value) if n > 1 else value
    return value if value != 0 else np.uint64(1)


@njit(nogil=True, cache=True)
def add(table, key, count, where, at):  # type: ignore[no-untyped-def]
    """Add `count` to a key; 1 if the key is new. The first place wins."""
    mask = np.uint64(len(table) - 1)
    slot = (key * GOLDEN) >> np.uint64(20) & mask
    while table[slot, COUNT] != 0:
        if table[slot, KEY] == key:
            table[slot, COUNT] += count
            if where < table[slot, WHERE] or (where == table[slot, WHERE] and at < table[slot, AT]):
                table[slot, WHERE] = where
                table[slot, AT] = at
            return 0
        slot = (slot + np.uint64(1)) & mask
    table[slot, KEY] = key
    table[slot, COUNT] = count
    table[slot, WHERE] = where
    table[slot, AT] = at
    return 1


@njit(nogil=True, cache=True)
def add_rows(table, rows, limit, first):  # type: ignore[no-untyped-def]
    """Add rows [n, 4] from `first` on until `limit` keys are new: (rows taken up to, keys new)."""
    new = 0
    for index in range(first, len(rows)):
        if new >= limit:
            return index, new
        if rows[index, COUNT] != 0:
            new += add(table, rows[index, KEY], rows[index, COUNT], rows[index, WHERE], rows[index, AT])
    return len(rows), new


@njit(nogil=True, cache=True)
def purge(table, threshold, into):  # type: ignore[no-untyped-def]
    """Copy keys whose count is above `threshold` into an empty table; how many."""
    kept = 0
    for index in range(len(table)):
        if table[index, COUNT] > threshold:
            kept += add(into, table[index, KEY], table[index, COUNT], table[index, WHERE], table[index, AT])
    return kept


@njit(nogil=True, cache=True)
def keep_low(table, threshold, into):  # type: ignore[no-untyped-def]
    """Copy keys below `threshold` into an empty table; how many."""
    kept = 0
    for index in range(len(table)):
        if table[index, COUNT] != 0 and table[index, KEY] < threshold:
            kept += add(into, table[index, KEY], table[index, COUNT], table[index, WHERE], table[index, AT])
    return kept


@njit(nogil=True, cache=True, inline="always")
def note_distinct(registers, key):  # type: ignore[no-untyped-def]
    """HyperLogLog: the longest run of leading zeros seen in each register (Flajolet et al. 2007)."""
    value = mixed(key + WORD_SEED)
    register = value >> np.uint64(64 - HLL_BITS)
    rest = value << np.uint64(HLL_BITS)
    run = np.uint8(1)
    while run <= 64 - HLL_BITS and not rest & np.uint64(0x8000000000000000):
        run += np.uint8(1)
        rest <<= np.uint64(1)
    if run > registers[register]:
        registers[register] = run


@njit(nogil=True, cache=True)
def count_grams(  # type: ignore[no-untyped-def]
    hashes,
    starts,
    bounds,
    offsets,
    n,
    where,
    document,
    gram,
    table,
    room,
    registers,
    sample,
    low,
    sample_room,
):
    """Count n-grams from n-gram `gram` of `document` on, until a table has no room for a new key.

    `where[i]` is document i's place; keys below `low` are counted in `sample` too. Returns (document and
    n-gram to go on from, new keys, new keys of the sample).
    """
    new = 0
    sampled = 0
    while document < len(bounds) - 1:
        first = bounds[document]
        grams = bounds[document + 1] - first - n + 1
        base = offsets[document]
        while gram < grams:
            if new >= room or sampled >= sample_room:
                return document, gram, new, sampled
            index = first + gram
            key = gram_hash(hashes, index, n)
            at = np.uint64(starts[index] - base)
            new += add(table, key, np.uint64(1), where[document], at)
            note_distinct(registers, key)
            if key < low:
                sampled += add(sample, key, np.uint64(1), where[document], at)
            gram += 1
        gram = 0
        document += 1
    return document, 0, new, sampled


@njit(nogil=True, cache=True)
def byte_filter(keys):  # type: ignore[no-untyped-def]
    """A table that tells most keys apart from `keys` by their first bits."""
    table = np.zeros(1 << FILTER_BITS, np.uint8)
    for key in keys:
        table[key >> np.uint64(64 - FILTER_BITS)] = 1
    return table


@njit(nogil=True, cache=True)
def phrase_hits(  # type: ignore[no-untyped-def]
    hashes, bounds, lengths, known, sieve, order, heads, phrases, out
):
    """Where phrases stand: (document, phrase) pairs into `out`; how many there are, also if fewer fit.

    A phrase's word hashes are `phrases[heads[p]:heads[p + 1]]`. It is looked for by its first words, as
    many of them as it has but at most `lengths[-1]`: `known` are the hashes of these n-grams, sorted,
    `order` their phrases, `sieve` their filter, `lengths` the numbers of words there are, sorted.
    """
    found = 0
    for document in range(len(bounds) - 1):
        for at in range(bounds[document], bounds[document + 1]):
            for length in lengths:
                if at + length > bounds[document + 1]:
                    break
                key = gram_hash(hashes, at, length)
                if sieve[key >> np.uint64(64 - FILTER_BITS)] == 0:
                    continue
                index = np.searchsorted(known, key)
                while index < len(known) and known[index] == key:
                    phrase = order[index]
                    index += 1
                    size = heads[phrase + 1] - heads[phrase]
                    if min(size, lengths[-1]) != length or at + size > bounds[document + 1]:
                        continue
                    same = True
                    for k in range(length, size):
                        if hashes[at + k] != phrases[heads[phrase] + k]:
                            same = False
                            break
                    if same:
                        if found < len(out):
                            out[found, 0] = document
                            out[found, 1] = phrase
                        found += 1
    return found


@njit(nogil=True, cache=True)
def mark_grams(hashes, bounds, n, known, sieve, seen):  # type: ignore[no-untyped-def]
    """Mark which of the sorted hashes `known` occur among the documents' n-grams."""
    for document in range(len(bounds) - 1):
        for at in range(bounds[document], bounds[document + 1] - n + 1):
            key = gram_hash(hashes, at, n)
            if sieve[key >> np.uint64(64 - FILTER_BITS)] == 0:
                continue
            index = np.searchsorted(known, key)
            if index < len(known) and known[index] == key:
                seen[index] = 1
