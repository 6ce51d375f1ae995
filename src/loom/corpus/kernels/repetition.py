"""Periodic runs of words."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import ascii_space
from loom.corpus.kernels.interning import PRIME, SEED
from loom.native import kernel

PERIODS = 13
TIMES = 3


@kernel
def runs(data, offsets):  # type: ignore[no-untyped-def]
    """For every document, float64[n, 2]: words in the longest run, fraction of words in any run.

    A run repeats the words before it with a period of 1 to 13 and spans at least three periods. Words are
    split at ASCII space and compared by a 64-bit hash.
    """
    documents = offsets.size - 1
    out = np.zeros((documents, 2))
    ring = np.zeros(16, np.uint64)
    matched = np.zeros(PERIODS + 1, np.int64)
    for row in range(documents):
        matched[:] = 0
        words = covered = longest = 0
        covered_to = 0  # words before this one are counted
        at, high = offsets[row], offsets[row + 1]
        while at < high:
            byte = data[at]
            if byte < 0x80 and ascii_space(byte):
                at += 1
                continue
            hashed = SEED
            while at < high:
                byte = data[at]
                if byte < 0x80 and ascii_space(byte):
                    break
                hashed = (hashed ^ np.uint64(byte)) * PRIME
                at += 1
            for period in range(1, PERIODS + 1):
                if words >= period and ring[(words - period) & 15] == hashed:
                    matched[period] += 1
                    length = matched[period] + period
                    if length >= TIMES * period:
                        longest = max(longest, length)
                        start = max(words + 1 - length, covered_to)
                        covered += words + 1 - start
                        covered_to = words + 1
                else:
                    matched[period] = 0
            ring[words & 15] = hashed
            words += 1
        out[row, 0] = longest
        out[row, 1] = covered / max(words, 1)
    return out
