"""Compiled loops of the survey: words, n-grams, and the tables that count them.

A table is uint64 [slots, 4]: key, count, where, at. `where` is file << 40 | row, `at` a byte offset in
the text: together the first place at which the key was seen. A count of 0 is an empty slot.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from loom.corpus.kernels.characters import LETTERS_END
from loom.native import kernel

KEY, COUNT, WHERE, AT = 0, 1, 2, 3
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1 = np.uint64(0xBF58476D1CE4E5B9)
MIX2 = np.uint64(0x94D049BB133111EB)
WORD_SEED = np.uint64(0x2545F4914F6CDD1D)
HLL_BITS = 14
FILTER_BITS = 20
AHEAD = 64  # slots looked at before they are used


@cache
def word_table() -> npt.NDArray[np.uint8]:
    """One byte a code point, from this Python's Unicode: 1 where a regular expression's `\\w` matches."""
    table = np.zeros(0x110000, np.uint8)
    every = map(chr, range(LETTERS_END))
    table[:LETTERS_END] = np.frombuffer(bytes(map(str.isalnum, every)), np.uint8)
    table[ord("_")] = 1
    return table


@kernel(inline="always")
def mixed(value):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * MIX1
    value = (value ^ (value >> np.uint64(27))) * MIX2
    return value ^ (value >> np.uint64(31))


@kernel
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
        value = packed = np.uint64(0)
        held = 0  # bytes in `packed`; none is 0, so that packed words of different lengths differ
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
                    packed = np.uint64(0)
                    held = 0
                    starts[count] = at
                for k in range(size):
                    byte = np.uint64(data[at + k])
                    if lower and 65 <= byte <= 90:
                        byte |= np.uint64(32)
                    packed = (packed << np.uint64(8)) | byte
                    held += 1
                    if held == 8:
                        value = (value ^ packed) * GOLDEN
                        value ^= value >> np.uint64(29)
                        packed = np.uint64(0)
                        held = 0
            elif inside:
                inside = False
                value = (value ^ packed) * GOLDEN
                hashes[count] = mixed(value ^ (value >> np.uint64(29)))
                count += 1
            at += size
        if inside:
            value = (value ^ packed) * GOLDEN
            hashes[count] = mixed(value ^ (value >> np.uint64(29)))
            count += 1
    bounds[len(offsets) - 1] = count
    return count


@kernel(inline="always")
def gram_hash(hashes, first, n):  # type: ignore[no-untyped-def]
    """A hash of n words in a row; never 0, and of one word the word's own."""
    value = hashes[first]
    for k in range(1, n):
        value = (value * GOLDEN + hashes[first + k]) ^ (value >> np.uint64(32))
    value = mixed(value) if n > 1 else value
    return value if value != 0 else np.uint64(1)


@kernel(inline="always")
def slot_of(key, mask):  # type: ignore[no-untyped-def]
    return (key * GOLDEN) >> np.uint64(20) & mask


@kernel
def add(table, key, count, where, at):  # type: ignore[no-untyped-def]
    """Add `count` to a key; 1 if the key is new. The first place wins."""
    mask = np.uint64(len(table) - 1)
    slot = slot_of(key, mask)
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


@kernel
def add_rows(table, rows, limit, first):  # type: ignore[no-untyped-def]
    """Add rows [n, 4] from `first` on until `limit` keys are new: (rows taken up to, keys new)."""
    new = 0
    mask = np.uint64(len(table) - 1)
    touched = np.zeros(1, np.uint64)
    index = first
    while index < len(rows):
        if new >= limit:
            return index, new
        end = min(index + AHEAD, index + limit - new, len(rows))
        for ahead in range(index, end):  # so that the processor waits for many slots at once
            touched[0] ^= table[slot_of(rows[ahead, KEY], mask), COUNT]
        for at in range(index, end):
            if rows[at, COUNT] != 0:
                new += add(table, rows[at, KEY], rows[at, COUNT], rows[at, WHERE], rows[at, AT])
        index = end
    return len(rows), new


@kernel
def median_count(table, used):  # type: ignore[no-untyped-def]
    """The count that half of a table's `used` keys, rounded down, lie below or at; 0 where it is over 4,095."""
    numbers = np.zeros(1 << 12, np.int64)
    for index in range(len(table)):
        count = table[index, COUNT]
        if count != 0 and count < np.uint64(1 << 12):
            numbers[np.int64(count)] += 1
    below = 0
    for count in range(1 << 12):
        below += numbers[count]
        if below > used // 2:
            return count
    return 0


@kernel
def purge(table, threshold, into):  # type: ignore[no-untyped-def]
    """Copy keys whose count is above `threshold` into an empty table; how many."""
    kept = 0
    for index in range(len(table)):
        if table[index, COUNT] > threshold:
            kept += add(into, table[index, KEY], table[index, COUNT], table[index, WHERE], table[index, AT])
    return kept


@kernel
def purge_here(table, threshold):  # type: ignore[no-untyped-def]
    """Drop keys whose count is not above `threshold`, in place; how many are left.

    Going on from an empty slot, every key is taken out and put back between its own slot and where it was.
    """
    mask = np.uint64(len(table) - 1)
    first = np.uint64(0)
    while table[first, COUNT] != 0:
        first += np.uint64(1)
    kept = 0
    for step in range(len(table)):
        slot = (first + np.uint64(step)) & mask
        count = table[slot, COUNT]
        if count == 0:
            continue
        table[slot, COUNT] = 0
        if count > threshold:
            key, where, at = table[slot, KEY], table[slot, WHERE], table[slot, AT]
            home = slot_of(key, mask)
            while table[home, COUNT] != 0:
                home = (home + np.uint64(1)) & mask
            table[home, KEY] = key
            table[home, COUNT] = count
            table[home, WHERE] = where
            table[home, AT] = at
            kept += 1
    return kept


@kernel
def keep_low(table, threshold, into):  # type: ignore[no-untyped-def]
    """Copy keys below `threshold` into an empty table; how many."""
    kept = 0
    for index in range(len(table)):
        if table[index, COUNT] != 0 and table[index, KEY] < threshold:
            kept += add(into, table[index, KEY], table[index, COUNT], table[index, WHERE], table[index, AT])
    return kept


@kernel(inline="always")
def note_distinct(registers, key):  # type: ignore[no-untyped-def]
    """HyperLogLog: the longest run of leading zeros seen in each register (Flajolet et al. 2007)."""
    value = mixed(key + WORD_SEED)
    register = value >> np.uint64(64 - HLL_BITS)
    rest = value << np.uint64(HLL_BITS)
    # Nearly always the longest run is longer already: one of as many leading bits is set.
    if registers[register] and rest >> np.uint64(64 - registers[register]):
        return
    run = np.uint8(1)
    while run <= 64 - HLL_BITS and not rest & np.uint64(0x8000000000000000):
        run += np.uint8(1)
        rest <<= np.uint64(1)
    if run > registers[register]:
        registers[register] = run


@kernel
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
    door,
    door_room,
):
    """Count n-grams from n-gram `gram` of `document` on, until a table has no room for a new key.

    `where[i]` is document i's place; keys below `low` are counted in `sample` too. With a `door`, bits of
    a power of two, a key that is not in the table only sets its bit, unless that is set. Returns (document
    and n-gram to go on from, new keys, new keys of the sample, bits set).
    """
    new = met = 0
    last_bit = np.uint64(max(len(door) * 8, 1) - 1)
    sampled = 0
    mask = np.uint64(len(table) - 1)
    keys = np.empty(AHEAD, np.uint64)
    touched = np.zeros(1, np.uint64)
    while document < len(bounds) - 1:
        first = bounds[document]
        grams = bounds[document + 1] - first - n + 1
        base = offsets[document]
        while gram < grams:
            if new >= room or sampled >= sample_room or met >= door_room:
                return document, gram, new, sampled, met
            size = min(AHEAD, grams - gram, room - new, sample_room - sampled)
            for k in range(size):
                keys[k] = gram_hash(hashes, first + gram + k, n)
            for k in range(size):  # so that the processor waits for many slots at once
                touched[0] ^= table[slot_of(keys[k], mask), COUNT]
            for k in range(size):
                key = keys[k]
                slot = slot_of(key, mask)
                while table[slot, COUNT] != 0 and table[slot, KEY] != key:
                    slot = (slot + np.uint64(1)) & mask
                if table[slot, COUNT] != 0:
                    table[slot, COUNT] += np.uint64(1)
                    continue
                note_distinct(registers, key)  # what is in the table was noted when it came
                if len(door):
                    bit = key & last_bit
                    flag = np.uint8(1) << np.uint8(bit & np.uint64(7))
                    if not door[bit >> np.uint64(3)] & flag:
                        door[bit >> np.uint64(3)] |= flag
                        met += 1
                        continue
                table[slot, KEY] = key
                table[slot, COUNT] = 1
                table[slot, WHERE] = where[document]
                table[slot, AT] = np.uint64(starts[first + gram + k] - base)
                new += 1
            for k in range(size):
                if keys[k] < low:
                    at = np.uint64(starts[first + gram + k] - base)
                    sampled += add(sample, keys[k], np.uint64(1), where[document], at)
            gram += size
        gram = 0
        document += 1
    return document, 0, new, sampled, met


@kernel
def byte_filter(keys):  # type: ignore[no-untyped-def]
    """A table that tells most keys apart from `keys` by their first bits."""
    table = np.zeros(1 << FILTER_BITS, np.uint8)
    for key in keys:
        table[key >> np.uint64(64 - FILTER_BITS)] = 1
    return table


@kernel
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


@kernel
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
