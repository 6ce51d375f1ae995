"""Words as Unicode parts them (UAX 29)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def split(text: str) -> list[str]:
    """The units of `text`, in order: words, marks, spaces; joined they are the text."""
    from loom.corpus.kernels import word_breaks

    data = np.frombuffer(text.encode(), np.uint8)
    starts, end = word_breaks.starts(data, word_breaks.properties())
    return [text[a:b] for a, b in pairwise([*starts.tolist(), end])]


def count_words(text: str) -> int:
    """Words and marks of `text`, spaces not counted."""
    from loom.corpus.kernels import word_breaks

    data = np.frombuffer(text.encode(), np.uint8)
    where = np.array([[0, data.size]], np.int64)
    return int(word_breaks.count(data, where, word_breaks.properties())[0, 1])
