"""fastText's features and scores (Joulin et al. 2016) over text bytes, every distinct word summed up once."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ascii_space
from loom.corpus.kernels.fingerprints import finish
from loom.corpus.kernels.interning import PRIME, SEED
from loom.corpus.kernels.vectors import NONE, bits_set
from loom.native import kernel

FNV, FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
NGRAM = np.uint64(116049371)
CACHE_BITS = 19
CACHE_BYTES = 64 << 20  # of word vectors
END = np.frombuffer(b"</s>", np.uint8)
LEAST = 1e-5  # fastText's guard in every logarithm, and the score below which it keeps silent


@kernel
def _hash(data, low, high):  # type: ignore[no-untyped-def]
    """fastText's FNV-1a of 32 bits: bytes from 128 on count as negative numbers."""
    value = FNV
    for k in range(low, high):
        byte = np.uint32(data[k])
        if byte >= 128:
            byte |= np.uint32(0xFFFFFF00)
        value = np.uint32((value ^ byte) * FNV_PRIME)
    return value


@kernel
def _lookup(hashed, ids, keys):  # type: ignore[no-untyped-def]
    """The value of a key in an open-addressing table (ids: -1 where empty), or -1."""
    mask = np.int64(ids.size - 1)
    slot = np.int64(finish(hashed) & np.uint64(mask))
    while ids[slot] >= 0:
        if keys[slot] == hashed:
            return ids[slot]
        slot = (slot + 1) & mask
    return np.int64(-1)


@kernel
def table(keys):  # type: ignore[no-untyped-def]
    """An open-addressing table of uint64 keys, each with its place: (ids int64, keys uint64)."""
    size = 16
    while size < 2 * keys.size:
        size *= 2
    ids = np.full(size, -1, np.int64)
    held = np.zeros(size, np.uint64)
    mask = np.int64(size - 1)
    for k in range(keys.size):
        slot = np.int64(finish(keys[k]) & np.uint64(mask))
        while ids[slot] >= 0:
            slot = (slot + 1) & mask
        ids[slot] = k
        held[slot] = keys[k]
    return ids, held


@kernel
def word_key(data, low, high):  # type: ignore[no-untyped-def]
    """A 64-bit hash of a word."""
    value = SEED
    for k in range(low, high):
        value = (value ^ np.uint64(data[k])) * PRIME
    return finish(value ^ np.uint64(high - low))


@kernel
def word_keys(data, offsets):  # type: ignore[no-untyped-def]
    """`word_key` of every word, uint64[n]."""
    out = np.empty(offsets.size - 1, np.uint64)
    for k in range(out.size):
        out[k] = word_key(data, offsets[k], offsets[k + 1])
    return out


@kernel
def _row(bucket, words, kept):  # type: ignore[no-untyped-def]
    """The input row of a bucket, -1 where pruning took it.

    `kept`, uint64[buckets / 64, 2], has a bit a bucket and how many are set before; nothing if none was taken.
    """
    if kept.shape[0] == 0:
        return words + bucket
    bits = kept[bucket >> 6, 0]
    here = np.uint64(1) << np.uint64(bucket & 63)
    if bits & here == NONE:
        return np.int64(-1)
    return words + np.int64(kept[bucket >> 6, 1]) + bits_set(bits & (here - np.uint64(1)))


@kernel
def _add(out, matrix, row):  # type: ignore[no-untyped-def]
    source = matrix[row]  # one dimension: the loop becomes vector instructions
    for d in range(out.size):
        out[d] += source[d]


@kernel
def _word(  # type: ignore[no-untyped-def]
    data, low, high, wid, out, matrix, words, buckets, shortest, longest, kept, padded
):
    """Add a word's vectors to `out`: its own row and those of its character n-grams; how many they are."""
    count = 0
    if wid >= 0:
        _add(out, matrix, wid)
        count += 1
    if longest <= 0:
        return count
    size = high - low + 2
    padded[0] = 60
    for k in range(low, high):
        padded[1 + k - low] = data[k]
    padded[size - 1] = 62
    divisor = np.uint32(buckets)
    for i in range(size):
        if padded[i] & 0xC0 == 0x80:
            continue
        hashed = FNV
        j = i
        n = 1
        while j < size and n <= longest:
            while True:
                byte = np.uint32(padded[j])
                if byte >= 128:
                    byte |= np.uint32(0xFFFFFF00)
                hashed = np.uint32((hashed ^ byte) * FNV_PRIME)
                j += 1
                if j >= size or padded[j] & 0xC0 != 0x80:
                    break
            if n >= shortest and not (n == 1 and (i == 0 or j == size)):
                row = _row(np.int64(hashed % divisor), words, kept)
                if row >= 0:
                    _add(out, matrix, row)
                    count += 1
            n += 1
    return count


def word_cache(dim: int) -> tuple[np.ndarray, ...]:
    """An empty cache of words for `hidden`: slots, keys, vectors, numbers of rows in each, how many there are."""
    slots = 1 << CACHE_BITS
    most = min(slots // 2, CACHE_BYTES // (8 * dim))
    return (
        np.full(slots, -1, np.int32),
        np.zeros(slots, np.uint64),
        np.empty((most, dim)),
        np.empty(most, np.int64),
        np.zeros(1, np.int64),
    )


@kernel
def hidden(  # type: ignore[no-untyped-def]
    data, offsets, matrix, words, word_ids, word_keys, end_row, buckets, shortest, longest, word_ngrams,
    kept, label, cached, cache_keys, vectors, sizes, known,
):  # fmt: skip
    """The mean input vector of every text, float64[n, dim], as fastText forms it (but summed in 64 bits).

    Words part at ASCII space and NUL; the line's end counts as a word. `words` rows of `matrix` are words,
    the others buckets; `label` is the prefix that marks labels, which are no words. The last five hold
    words from call to call (`word_cache`); what is in them changes no sum.
    """
    dim = matrix.shape[1]
    count = offsets.size - 1
    out = np.zeros((count, dim))
    biggest = 4
    for row in range(count):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
    padded = np.empty(biggest + 2, np.uint8)
    hashes = np.empty(biggest // 2 + 3, np.int32)
    slots = cached.size
    end_hash = np.int32(_hash(END, 0, 4))
    vector = np.zeros(dim)
    for row in range(count):
        at, high = offsets[row], offsets[row + 1]
        mean = out[row]
        total = tokens = 0
        stopped = False
        while at < high and not stopped:
            byte = data[at]
            if byte == 32 or 9 <= byte <= 13 or byte == 0:
                at += 1
                continue
            low = at
            key = SEED
            while at < high:
                byte = data[at]
                if byte == 32 or 9 <= byte <= 13 or byte == 0:
                    break
                key = (key ^ np.uint64(byte)) * PRIME
                at += 1
            size = at - low
            key = finish(key ^ np.uint64(size))
            if (
                size == 4
                and data[low] == 60
                and data[low + 1] == 47
                and data[low + 2] == 115
                and data[low + 3] == 62
            ):
                stopped = True
                continue
            slot = np.int64(key & np.uint64(slots - 1))
            while cached[slot] >= 0 and cache_keys[slot] != key:
                slot = (slot + 1) & (slots - 1)
            number = np.int64(cached[slot])
            if number < 0:
                vector[:] = 0.0
                wid = _lookup(key, word_ids, word_keys)
                marked = size >= label.size
                for k in range(label.size):
                    marked = marked and data[low + k] == label[k]
                if marked and wid < 0:
                    found = -1
                else:
                    found = int(_word(
                        data, low, at, wid, vector, matrix, words, buckets, shortest, longest, kept, padded,
                    ))  # fmt: skip
                place = known[0]
                if place < sizes.size:
                    cached[slot] = place
                    cache_keys[slot] = key
                    for d in range(dim):
                        vectors[place, d] = vector[d]
                    sizes[place] = found
                    known[0] = place + 1
                if found >= 0:
                    for d in range(dim):
                        mean[d] += vector[d]
            else:
                found = sizes[number]
                if found >= 0:
                    _add(mean, vectors, number)
            if found >= 0:
                total += found
                if word_ngrams > 1:
                    hashes[tokens] = np.int32(_hash(data, low, at))
                tokens += 1
        if end_row >= 0:
            _add(mean, matrix, end_row)
            total += 1
        if word_ngrams > 1:
            hashes[tokens] = end_hash
            tokens += 1
            for i in range(tokens):
                value = np.uint64(np.int64(hashes[i]))
                for j in range(i + 1, min(tokens, i + word_ngrams)):
                    value = value * NGRAM + np.uint64(np.int64(hashes[j]))
                    bucket = np.int64(value % np.uint64(buckets))
                    place = _row(bucket, words, kept)
                    if place >= 0:
                        _add(mean, matrix, place)
                        total += 1
        if total:
            for d in range(dim):
                mean[d] /= total
    return out


@kernel
def heads(data, offsets, cap):  # type: ignore[no-untyped-def]
    """Where the first `cap` code points of every text end, int64[n], and whether they are ASCII, bool[n]."""
    ends = np.empty(offsets.size - 1, np.int64)
    plain = np.empty(offsets.size - 1, np.bool_)
    for row in range(ends.size):
        at, high = offsets[row], offsets[row + 1]
        points = 0
        beyond = np.uint8(0)
        while at < high:
            byte = data[at]
            if byte & 0xC0 != 0x80:
                if points == cap:
                    break
                points += 1
            beyond |= byte
            at += 1
        ends[row] = at
        plain[row] = beyond < 0x80
    return ends, plain


@kernel
def prepared(data, offsets, ends, plain, others, other_offsets):  # type: ignore[no-untyped-def]
    """Texts as fastText is asked: lower case, newlines as spaces, stripped; (bytes, offsets int64[n + 1]).

    Those that are not `plain` ASCII come prepared, one after the other, in `others`.
    """
    count = ends.size
    total = others.size
    for row in range(count):
        total += ends[row] - offsets[row] if plain[row] else 0
    out = np.empty(total, np.uint8)
    places = np.zeros(count + 1, np.int64)
    size = taken = 0
    for row in range(count):
        low, high = offsets[row], ends[row]
        if plain[row]:
            while low < high and ascii_space(data[low]):
                low += 1
            while high > low and ascii_space(data[high - 1]):
                high -= 1
            for at in range(low, high):
                byte = data[at]
                out[size] = byte + 32 if 65 <= byte <= 90 else (32 if byte == 10 else byte)
                size += 1
        else:
            for at in range(other_offsets[taken], other_offsets[taken + 1]):
                out[size] = others[at]
                size += 1
            taken += 1
        places[row + 1] = size
    return out[:size], places
