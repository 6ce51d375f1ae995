"""The statistics of Dolma's Gopher tagger, exactly, without a Python object a word.

Words are numbered, n-grams are numbered from the number of their first n-1 words and their last word, and
only n-grams whose two (n-1)-grams both occur twice can occur twice themselves: after trigrams almost
nothing is left to count. No hash decides equality.
"""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ALPHA, ascii_space, code_point, wide_space
from loom.corpus.kernels.interning import PRIME, SEED, intern, slot_of, table_bits
from loom.native import kernel

COMMON = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)
KEYS = (
    *(f"fraction_of_characters_in_most_common_{n}grams" for n in COMMON),
    *(f"fraction_of_characters_in_duplicate_{n}grams" for n in DUPLICATE),
    "character_count",
    "word_count",
    "median_word_length",
    "symbol_to_word_ratio",
    "fraction_of_words_with_alpha_character",
    "required_word_count",
    "fraction_of_lines_starting_with_bullet_point",
    "fraction_of_lines_ending_with_ellipsis",
    "fraction_of_duplicate_lines",
    "fraction_of_characters_in_duplicate_lines",
)
SHORT_WORD = 256  # lengths below this are counted, not sorted


@kernel
def _required(data, start, size):  # type: ignore[no-untyped-def]
    """the, be, to, of, and, that, have, with."""
    a = data[start]
    if size == 2:
        b = data[start + 1]
        return (a == 98 and b == 101) or (a == 116 and b == 111) or (a == 111 and b == 102)
    if size == 3:
        b, c = data[start + 1], data[start + 2]
        return (a == 116 and b == 104 and c == 101) or (a == 97 and b == 110 and c == 100)
    if size == 4:
        b, c, d = data[start + 1], data[start + 2], data[start + 3]
        return (
            (a == 116 and b == 104 and c == 97 and d == 116)
            or (a == 104 and b == 97 and c == 118 and d == 101)
            or (a == 119 and b == 105 and c == 116 and d == 104)
        )
    return False


@kernel
def _count_words(data, low, high):  # type: ignore[no-untyped-def]
    """At most this many words: transitions from an ASCII space, plus every wide space."""
    count = 1
    previous = True
    for at in range(low, high):
        byte = data[at]
        space = ascii_space(byte) if byte < 0x80 else False
        if byte >= 0xC2 and byte < 0xE4:  # leads of wide spaces lie here
            count += 1
        if previous and not space:
            count += 1
        previous = space
    return count


@kernel
def _median(lens, words, histogram):  # type: ignore[no-untyped-def]
    histogram[:] = 0
    long = 0
    for k in range(words):
        if lens[k] < SHORT_WORD:
            histogram[lens[k]] += 1
        else:
            long += 1
    upper = words // 2
    lower = upper if words % 2 else upper - 1
    if words - long <= upper:
        ordered = np.sort(lens[:words])
        return (np.float64(ordered[lower]) + np.float64(ordered[upper])) / 2.0
    seen = 0
    first = -1
    for length in range(SHORT_WORD):
        seen += histogram[length]
        if first < 0 and seen > lower:
            first = length
        if seen > upper:
            return (np.float64(first) + np.float64(length)) / 2.0
    return 0.0


@kernel
def _ngrams(words, word_ids, word_counts, sums, characters, out, prev, table, keys, counts):  # type: ignore[no-untyped-def]
    """Fill out[0:9]; `sums` are prefix sums of word lengths, `prev` is scratch, one entry a word."""
    for k in range(words):
        prev[k] = word_ids[k] if word_counts[word_ids[k]] > 1 else -1
    alive = True
    for n in range(2, 11):
        positions = words - n + 1
        if positions <= 0:
            break
        candidates = 0
        if alive:
            for k in range(positions):
                if prev[k] >= 0 and prev[k + 1] >= 0:
                    candidates += 1
        best_count, best_at = 1, 0
        repeated = 0
        if candidates == 0:
            alive = False
        else:
            bits = table_bits(candidates)
            mask = (1 << bits) - 1
            shift = np.uint64(64 - bits)
            table[: mask + 1] = 0
            known = 0
            for k in range(positions):
                if prev[k] < 0 or prev[k + 1] < 0:
                    prev[k] = -1
                    continue
                key = np.uint64(prev[k]) << np.uint64(32) | np.uint64(word_ids[k + n - 1])
                slot = slot_of(key, shift)
                while True:
                    entry = table[slot]
                    if entry == 0:
                        table[slot] = known + 1
                        keys[known] = key
                        counts[known] = 1
                        prev[k] = known
                        known += 1
                        break
                    if keys[entry - 1] == key:
                        counts[entry - 1] += 1
                        prev[k] = entry - 1
                        break
                    slot = (slot + 1) & mask
            prev[positions] = -1
            for k in range(positions):  # in order of the text: the first of equals wins, as in Counter
                number = prev[k]
                if number < 0:
                    continue
                if counts[number] > best_count:
                    best_count, best_at = counts[number], k
                if counts[number] > 1:
                    repeated += sums[k + n] - sums[k]
                else:
                    prev[k] = -1
        if n <= 4:
            chars = sums[best_at + n] - sums[best_at]
            out[n - 2] = best_count * chars / max(characters, 1)
        else:
            total = 0
            for k in range(positions):
                total += sums[k + n] - sums[k]
            out[n - 2] = repeated / max(total, 1)


@kernel
def gopher(data, offsets, characters, merge_newlines):  # type: ignore[no-untyped-def]
    """Every statistic of `KEYS` for every document: float64[n, 19], NaN where Dolma writes no key.

    `merge_newlines` is gopher_v2 (lines are split at runs of newlines), else gopher_v1.
    """
    documents = offsets.size - 1
    out = np.full((documents, 19), np.nan)
    capacity = 1 << 12
    starts = np.empty(capacity, np.int64)
    ends = np.empty(capacity, np.int64)
    hashes = np.empty(capacity, np.uint64)
    ids = np.empty(capacity, np.int32)
    lens = np.empty(capacity, np.int32)
    counts = np.empty(capacity, np.int32)
    sums = np.empty(capacity + 1, np.int64)
    prev = np.empty(capacity + 1, np.int32)
    keys = np.empty(capacity, np.uint64)
    gram_counts = np.empty(capacity, np.int32)
    table = np.empty(4 * capacity, np.int32)
    histogram = np.zeros(SHORT_WORD, np.int64)
    for row in range(documents):
        low, high = offsets[row], offsets[row + 1]
        values = out[row]
        if high == low:
            values[9:] = 0.0
            continue
        lines = 1
        for at in range(low, high):
            lines += data[at] == 10
        needed = lines
        if (high - low) // 2 + 2 > capacity:
            needed = max(needed, _count_words(data, low, high) + 2)
        else:
            needed = max(needed, (high - low) // 2 + 2)
        if needed > capacity:
            capacity = needed + needed // 4
            starts = np.empty(capacity, np.int64)
            ends = np.empty(capacity, np.int64)
            hashes = np.empty(capacity, np.uint64)
            ids = np.empty(capacity, np.int32)
            lens = np.empty(capacity, np.int32)
            counts = np.empty(capacity, np.int32)
            sums = np.empty(capacity + 1, np.int64)
            prev = np.empty(capacity + 1, np.int32)
            keys = np.empty(capacity, np.uint64)
            gram_counts = np.empty(capacity, np.int32)
            table = np.empty(4 * capacity + 32, np.int32)

        # Words: a first pass finds them, and interns each.
        bits = table_bits(needed)
        table[: 1 << bits] = 0
        words = known = 0
        symbols = with_alpha = required = total = 0
        code_points = 0
        sums[0] = 0
        at = low
        while at < high:
            byte = data[at]
            if byte < 0x80:
                if ascii_space(byte):
                    at += 1
                    code_points += 1
                    continue
            elif wide_space(data, at):
                at += 2 if byte < 0xE0 else 3
                code_points += 1
                continue
            start = at
            hashed = SEED
            length = 0
            has_alpha = has_symbol = False
            while at < high:
                byte = data[at]
                if byte < 0x80:
                    if ascii_space(byte):
                        break
                    lower = byte | 32
                    has_alpha |= 97 <= lower <= 122
                    has_symbol |= byte == 35
                    hashed = (hashed ^ np.uint64(byte)) * PRIME
                    at += 1
                else:
                    if wide_space(data, at):
                        break
                    size = 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)
                    if not has_alpha:
                        has_alpha = characters[code_point(data, at)] & ALPHA != 0
                    has_symbol |= byte == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6
                    for k in range(size):
                        hashed = (hashed ^ np.uint64(data[at + k])) * PRIME
                    at += size
                length += 1
            number = intern(data, start, at, hashed, table, bits, starts, ends, hashes, known)
            if number == known:
                counts[known] = 0
                known += 1
            counts[number] += 1
            ids[words] = number
            lens[words] = length
            total += length
            code_points += length
            words += 1
            sums[words] = total
            with_alpha += has_alpha
            symbols += has_symbol
            if at - start <= 4 and at - start >= 2:
                required += _required(data, start, at - start)
        values[9] = code_points
        values[10] = words
        values[11] = _median(lens, words, histogram) if words else 0.0
        values[12] = symbols / max(words, 1)
        values[13] = with_alpha / max(words, 1)
        values[14] = required
        _ngrams(words, ids, counts, sums, total, values, prev, table, keys, gram_counts)

        # Lines, numbered in the same tables.
        bits = table_bits(lines)
        table[: 1 << bits] = 0
        known = count = bullets = ellipses = 0
        at = low
        while True:
            start = at
            hashed = SEED
            length = 0
            while at < high and data[at] != 10:
                byte = data[at]
                hashed = (hashed ^ np.uint64(byte)) * PRIME
                length += (byte & 0xC0) != 0x80
                at += 1
            number = intern(data, start, at, hashed, table, bits, starts, ends, hashes, known)
            if number == known:
                counts[known] = 0
                lens[known] = length
                known += 1
            counts[number] += 1
            count += 1
            if at > start:
                bullets += data[start] == 42 or data[start] == 45
                if at - start >= 3:
                    ellipses += data[at - 3] == 0xE2 and data[at - 2] == 0x80 and data[at - 1] == 0xA6
            if at >= high:
                break
            at += 1
            if merge_newlines:
                while at < high and data[at] == 10:
                    at += 1
        duplicate_lines = duplicate_characters = 0
        for number in range(known):
            if counts[number] > 1:
                duplicate_lines += counts[number]
                duplicate_characters += np.int64(lens[number]) * counts[number]
        values[15] = bullets / max(count, 1)
        values[16] = ellipses / max(count, 1)
        values[17] = duplicate_lines / max(count, 1)
        values[18] = duplicate_characters / max(total, 1)
    return out
