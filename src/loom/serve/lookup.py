"""Speculation by lookup: what followed the last n-gram before is tried again (Saxena 2023, prompt lookup).

A try costs little where the pass over the weights is what takes time. A tried token stays only if it is
the token that would have been drawn, so what comes out is what comes out without.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3  # tokens that must recur


def propose(tokens: Sequence[int], count: int) -> list[int]:
    """`count` tokens that followed the latest earlier occurrence of the last `NGRAM` of `tokens`; none without one.

    Where that is so near that fewer followed, the text goes round, and the proposal goes round with it.
    """
    end = len(tokens)
    if end <= NGRAM:
        return []
    tail = list(tokens[end - NGRAM :])
    for start in range(end - NGRAM - 1, -1, -1):
        if tokens[start] == tail[0] and list(tokens[start : start + NGRAM]) == tail:
            made = list(tokens[start + NGRAM : start + NGRAM + count])
            while len(made) < count:
                made.append(made[len(made) - (end - start - NGRAM)])
            return made
    return []
