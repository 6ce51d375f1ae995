"""The statistics of Dolma's Gopher tagger, exactly, without a Python object a word.

Words are numbered, n-grams are numbered from the number of their first n-1 words and their last word, and
only n-grams whose two (n-1)-grams both occur twice can occur twice themselves: after trigrams almost
nothing is left to count. No hash decides equality. What is asked of a word (letters, symbols, its length) is
asked of each distinct one once. Tables are not emptied between documents: entries carry a number that tells
whose they are.
"""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ALPHA, code_point
from loom.corpus.kernels.interning import number_of, slot_of, table_bits
from loom.corpus.kernels.vectors import word
from loom.corpus.kernels.words import characters as characters_of
from loom.corpus.kernels.words import count as count_words
from loom.corpus.kernels.words import newline, spans
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
REQUIRED = ("be", "to", "of", "the", "and", "that", "have", "with")
REQUIRED_WORDS = np.array([int.from_bytes(name.encode(), "little") for name in REQUIRED], np.uint64)
HAS_ALPHA, HAS_SYMBOL, IS_REQUIRED = 1, 2, 4


@kernel
def _facts(data, low, high, table):  # type: ignore[no-untyped-def]
    """Of a word: (HAS_ALPHA, HAS_SYMBOL and IS_REQUIRED as bits, code points)."""
    facts = length = 0
    at = low
    while at < high:
        byte = data[at]
        length += 1
        if byte < 0x80:
            if 97 <= byte | 32 <= 122:
                facts |= HAS_ALPHA
            elif byte == 35:
                facts |= HAS_SYMBOL
            at += 1
            continue
        if table[code_point(data, at)] & ALPHA:
            facts |= HAS_ALPHA
        if byte == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6:
            facts |= HAS_SYMBOL
        at += 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)
    if 2 <= high - low <= 4 and data[high - 1] != 0:
        name = word(data, low, high)
        for required in REQUIRED_WORDS:
            if name == required:
                facts |= IS_REQUIRED
    return facts, length


@kernel
def _median(sums, words, histogram):  # type: ignore[no-untyped-def]
    """The median of the words' lengths; `histogram` counts those below SHORT_WORD."""
    upper = words // 2
    lower = upper if words % 2 else upper - 1
    seen = 0
    first = -1
    for length in range(SHORT_WORD):
        seen += histogram[length]
        if first < 0 and seen > lower:
            first = length
        if seen > upper:
            return (np.float64(first) + np.float64(length)) / 2.0
    ordered = np.empty(words, np.int64)
    for k in range(words):
        ordered[k] = sums[k + 1] - sums[k]
    ordered.sort()
    return (np.float64(ordered[lower]) + np.float64(ordered[upper])) / 2.0


@kernel
def _ngrams(words, ids, counts, sums, characters, out, numbers, places, table, stamp):  # type: ignore[no-untyped-def]
    """Fill out[0:9]; `sums` are prefix sums of word lengths. Returns the last stamp used.

    An entry of `table`, uint64[slots, 2], is a key and stamp << 32 | count; an n-gram's number is its slot.
    `numbers` and `places` hold the (n-1)-grams that occur twice, in the order of the text.
    """
    alive = 0
    for k in range(words):
        if counts[ids[k]] > 1:
            numbers[alive] = ids[k]
            places[alive] = k
            alive += 1
    for n in range(2, 11):
        positions = words - n + 1
        if positions <= 0:
            break
        best_count, best_at = 1, 0
        repeated = 0
        if alive:
            stamp += np.uint64(1)
            bits = table_bits(alive * 5 // 8)  # most n-grams recur, so that it is never near full
            shift = np.uint64(64 - bits)
            mask = (1 << bits) - 1
            candidates = 0
            for j in range(alive - 1):
                k = int(places[j])
                if places[j + 1] != k + 1:
                    continue
                key = np.uint64(numbers[j]) << np.uint64(32) | np.uint64(ids[k + n - 1])
                slot = slot_of(key, shift)
                while True:
                    value = table[slot, 1]
                    if value >> np.uint64(32) != stamp:
                        table[slot, 0] = key
                        table[slot, 1] = stamp << np.uint64(32) | np.uint64(1)
                        break
                    if table[slot, 0] == key:
                        table[slot, 1] = value + np.uint64(1)
                        break
                    slot = (slot + 1) & mask
                places[candidates] = k
                numbers[candidates] = slot
                candidates += 1
            alive = 0
            for j in range(candidates):  # in order of the text: the first of equals wins, as in Counter
                found = int(table[numbers[j], 1] & np.uint64(0xFFFFFFFF))
                if found == 1:
                    continue
                k = int(places[j])
                if found > best_count:
                    best_count, best_at = found, k
                repeated += int(sums[k + n] - sums[k])
                places[alive] = k
                numbers[alive] = numbers[j]
                alive += 1
        if n <= 4:
            chars = sums[best_at + n] - sums[best_at]
            out[n - 2] = best_count * chars / max(characters, 1)
        else:
            total = 0  # of sums[k + n] - sums[k]: all but the outermost cancel
            for k in range(max(n, positions), words + 1):
                total += int(sums[k])
            for k in range(min(n, positions)):
                total -= int(sums[k])
            out[n - 2] = repeated / max(total, 1)
    return stamp


@kernel
def gopher(data, offsets, characters, merge_newlines):  # type: ignore[no-untyped-def]
    """Every statistic of `KEYS` for every document: float64[n, 19], NaN where Dolma writes no key.

    `merge_newlines` is gopher_v2 (lines are split at runs of newlines), else gopher_v1. `characters` is
    `character_table()`.
    """
    documents = offsets.size - 1
    out = np.full((documents, 19), np.nan)
    capacity = 0
    table = np.zeros((1, 2), np.uint64)
    held = np.empty(64, np.uint8)
    histogram = np.zeros(SHORT_WORD, np.int64)
    stamp = np.uint64(0)
    for row in range(documents):
        low, high = offsets[row], offsets[row + 1]
        values = out[row]
        if high == low:
            values[9:] = 0.0
            continue
        words, code_points = count_words(data, low, high, held)
        lines = 1
        at = newline(data, low, high)
        while at < high:
            lines += 1
            at = newline(data, at + 1, high)
        if capacity < max(words, lines) + 1:
            capacity = max(words, lines) + min(max(words, lines) // 4, 1 << 20) + 1024
            starts = np.empty(capacity, np.int32)
            ends = np.empty(capacity, np.int32)
            ids = np.empty(capacity, np.int32)
            firsts = np.empty(capacity, np.int32)
            sizes = np.empty(capacity, np.int32)
            counts = np.empty(capacity, np.int32)
            facts = np.empty(capacity, np.uint8)
            lengths = np.empty(capacity, np.int32)
            sums = np.empty(capacity + 1, np.int32)
        slots = 1 << max(table_bits(words * 5 // 8), table_bits(lines))
        if table.shape[0] < slots:
            table = np.zeros((slots, 2), np.uint64)
            stamp = np.uint64(0)

        # Words.
        spans(data, low, high, held, starts, ends)
        stamp += np.uint64(1)
        bits = table_bits(words * 5 // 8)
        known = total = 0
        histogram[:] = 0
        sums[0] = 0
        for k in range(words):
            number = number_of(data, low, starts[k], ends[k], table, bits, stamp, firsts, sizes, known)
            if number == known:
                fact, length = _facts(data, low + starts[k], low + ends[k], characters)
                facts[known], lengths[known] = fact, length
                counts[known] = 0
                known += 1
            counts[number] += 1
            ids[k] = number
            length = int(lengths[number])
            total += length
            sums[k + 1] = total
            if length < SHORT_WORD:
                histogram[length] += 1
        symbols = with_alpha = required = 0
        for number in range(known):
            with_alpha += counts[number] if facts[number] & HAS_ALPHA else 0
            symbols += counts[number] if facts[number] & HAS_SYMBOL else 0
            required += counts[number] if facts[number] & IS_REQUIRED else 0
        values[9] = code_points
        values[10] = words
        values[11] = _median(sums, words, histogram) if words else 0.0
        values[12] = symbols / max(words, 1)
        values[13] = with_alpha / max(words, 1)
        values[14] = required
        # Where words begin and end is not asked again.
        stamp = _ngrams(words, ids, counts, sums, total, values, starts, ends, table, stamp)

        # Lines, numbered in the same table.
        stamp += np.uint64(1)
        bits = table_bits(lines)
        known = count = bullets = ellipses = 0
        at = low
        while True:
            start = at
            at = newline(data, at, high)
            number = number_of(data, low, start - low, at - low, table, bits, stamp, firsts, sizes, known)
            if number == known:
                counts[known] = 0
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
                first = low + firsts[number]
                duplicate_lines += counts[number]
                duplicate_characters += characters_of(data, first, first + sizes[number]) * counts[number]
        values[15] = bullets / max(count, 1)
        values[16] = ellipses / max(count, 1)
        values[17] = duplicate_lines / max(count, 1)
        values[18] = duplicate_characters / max(total, 1)
    return out
