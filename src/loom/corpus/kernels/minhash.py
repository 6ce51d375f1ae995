"""MinHash signatures of word shingles, and the clusters that banded matches make."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.fingerprints import finish
from loom.corpus.kernels.interning import PRIME, SEED
from loom.native import kernel

BASE = np.uint64(0x9E3779B97F4A7C15)
HIGHEST = np.uint32(0xFFFFFFFF)


@kernel
def _shingles(data, low, high, size, words, out):  # type: ignore[no-untyped-def]
    """Hashes of the runs of `size` words of one text into `out`; returns how many.

    Words are runs of letters and digits, lower-cased in ASCII, every digit as 0, everything beyond ASCII a
    letter. A text of fewer words is one shingle; a text without words has none.
    """
    count = 0
    at = low
    while at < high:
        byte = data[at]
        letter = byte >= 0x80 or 48 <= byte <= 57 or 97 <= (byte | 32) <= 122
        if not letter:
            at += 1
            continue
        hashed = SEED
        while at < high:
            byte = data[at]
            if 65 <= byte <= 90:
                byte |= np.uint8(32)
            elif 48 <= byte <= 57:
                byte = np.uint8(48)
            elif not (byte >= 0x80 or 97 <= byte <= 122):
                break
            hashed = (hashed ^ np.uint64(byte)) * PRIME
            at += 1
        words[count] = hashed
        count += 1
    if count == 0:
        return 0
    used = min(size, count)
    for k in range(count - used + 1):
        hashed = SEED
        for j in range(used):
            hashed = (hashed ^ words[k + j]) * BASE
            hashed ^= hashed >> np.uint64(31)
        out[k] = finish(hashed)
    return count - used + 1


@kernel
def signatures(data, offsets, size, factors, terms):  # type: ignore[no-untyped-def]
    """MinHash signatures uint32[n, permutations] and shingles int64[n].

    Permutation p of the upper 32 bits h of a shingle's hash is h * factors[p] + terms[p]; odd factors make it
    a bijection of 32 bits, and eight or sixteen of them fit a vector register. A text without shingles keeps
    the highest value everywhere and matches nothing.
    """
    documents = offsets.size - 1
    biggest = 1
    for row in range(documents):
        biggest = max(biggest, offsets[row + 1] - offsets[row])
    words = np.empty(biggest // 2 + 2, np.uint64)
    shingles = np.empty(biggest // 2 + 2, np.uint64)
    permutations = factors.size
    out = np.full((documents, permutations), HIGHEST)
    counts = np.zeros(documents, np.int64)
    for row in range(documents):
        count = _shingles(data, offsets[row], offsets[row + 1], size, words, shingles)
        counts[row] = count
        lowest = out[row]
        for k in range(count):
            hashed = np.uint32(shingles[k] >> np.uint64(32))
            for p in range(permutations):
                value = np.uint32(hashed * factors[p] + terms[p])
                lowest[p] = min(lowest[p], value)
    return out, counts


@kernel
def shingle_hashes(data, offsets, size):  # type: ignore[no-untyped-def]
    """Shingle hashes of every text, one after the other, and where each begins: for exact Jaccard."""
    total = offsets[-1] - offsets[0]
    words = np.empty(total // 2 + 2, np.uint64)
    buffer = np.empty(total // 2 + 2, np.uint64)
    out = np.empty(total // 2 + offsets.size, np.uint64)
    starts = np.zeros(offsets.size, np.int64)
    for row in range(offsets.size - 1):
        count = _shingles(data, offsets[row], offsets[row + 1], size, words, buffer)
        out[starts[row] : starts[row] + count] = buffer[:count]
        starts[row + 1] = starts[row] + count
    return out[: starts[-1]], starts


@kernel
def bands(signature, counts, rows):  # type: ignore[no-untyped-def]
    """A 128-bit key a band of `rows` hashes: uint64[n, bands, 2]; (0, 0) where a text has no shingles."""
    documents = signature.shape[0]
    number = signature.shape[1] // rows
    out = np.zeros((documents, number, 2), np.uint64)
    for row in range(documents):
        if counts[row] == 0:
            continue
        for band in range(number):
            first, second = SEED, BASE
            for k in range(band * rows, (band + 1) * rows):
                first = (first ^ signature[row, k]) * PRIME
                first ^= first >> np.uint64(29)
                second = (second + signature[row, k]) * BASE
                second ^= second >> np.uint64(31)
            out[row, band, 0] = finish(first)
            out[row, band, 1] = second | np.uint64(1)
    return out


@kernel
def join(pairs, parent):  # type: ignore[no-untyped-def]
    """Join the components of int64[m, 2] pairs in `parent`, int64[documents]; the first one is the root."""
    for k in range(pairs.shape[0]):
        a, b = pairs[k, 0], pairs[k, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@kernel
def resolve(parent):  # type: ignore[no-untyped-def]
    """Point every document at the first of its component; returns the components of more than one."""
    seen = np.zeros(parent.size, np.bool_)
    components = 0
    for k in range(parent.size):
        root = parent[parent[k]]  # a parent never comes after its child, so the parent's is final
        parent[k] = root
        if root != k and not seen[root]:
            seen[root] = True
            components += 1
    return components
