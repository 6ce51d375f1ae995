"""Rows: several sequences that begin alike, laid out so that every shared beginning is computed once.

The sequences of an item are merged into a tree of tokens, and the tree is written down in depth-first
order. A token's position is its depth, and it sees exactly its ancestors. In depth-first order a
token's descendants follow it without a gap, so one number a token, the end of its subtree, is the
whole mask: the token at i sees the token at j if j <= i < end[j]. Unrelated trees can lie behind each
other in one row, and padding is a tree of one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Tokens of which the last `scored` are predicted, each from those before it.

    `key` says whose log-likelihood the predictions add up to.
    """

    tokens: Sequence[int] | Ints
    scored: int
    key: int


@dataclass(frozen=True)
class Row:
    """One tree, or several behind each other.

    `tokens`, `positions`, `ends` are [n]. Prediction i reads the hidden state at `at[i]`, asks for the
    probability of `targets[i]` and adds it to the sequence `keys[i]`; `at` does not decrease.
    """

    tokens: Ints
    positions: Ints
    ends: Ints
    at: Ints
    targets: Ints
    keys: Ints

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether every token sees all tokens before it, so that the plain causal mask serves."""
        return bool((self.ends == len(self.tokens)).all())


def tree(sequences: Sequence[Scored], start: int = 0) -> Row:
    """Merge sequences into one row. The last token of each is only predicted, never read.

    `start` is the position of the first token, where a prefix lies in a cache before it. Raises
    `ValueError` for a sequence with nothing before its first prediction, unless there is a prefix.
    """
    builder = _Builder(start)
    bodies = [[int(token) for token in sequence.tokens[:-1]] for sequence in sequences]
    paths: list[list[int]] = [[] for _ in sequences]
    builder.grow(bodies, paths, list(range(len(sequences))), 0)
    at, targets, keys = [], [], []
    for sequence, path in zip(sequences, paths, strict=True):
        first = len(sequence.tokens) - sequence.scored
        if first < 1:
            raise ValueError("a sequence needs a token before its first prediction")
        at += path[first - 1 :]
        targets += [int(token) for token in sequence.tokens[first:]]
        keys += [sequence.key] * sequence.scored
    order = np.argsort(np.asarray(at, dtype=np.int64), kind="stable")
    return Row(
        np.asarray(builder.tokens, dtype=np.int64),
        np.asarray(builder.positions, dtype=np.int64),
        np.asarray(builder.ends, dtype=np.int64),
        np.asarray(at, dtype=np.int64)[order],
        np.asarray(targets, dtype=np.int64)[order],
        np.asarray(keys, dtype=np.int64)[order],
    )


def chain(sequence: Scored) -> Row:
    """The row of one sequence."""
    length = len(sequence.tokens) - 1
    if not 0 < sequence.scored <= length:
        raise ValueError("a sequence needs a token before its first prediction")
    tokens = np.asarray(sequence.tokens, dtype=np.int64)
    at = np.arange(length - sequence.scored, length)
    keys = np.full(sequence.scored, sequence.key)
    return Row(tokens[:-1], np.arange(length), np.full(length, length), at, tokens[at + 1], keys)


class _Builder:
    def __init__(self, start: int) -> None:
        self.start = start
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.ends: list[int] = []

    def grow(self, bodies: list[list[int]], paths: list[list[int]], members: list[int], depth: int) -> None:
        """Write the subtree of the bodies `members`, which agree in their first `depth` tokens."""
        groups: dict[int, list[int]] = {}
        for member in members:
            if len(bodies[member]) > depth:
                groups.setdefault(bodies[member][depth], []).append(member)
        for group in groups.values():
            shared = common_prefix([bodies[member] for member in group], depth)
            begin = len(self.tokens)
            self.tokens += bodies[group[0]][depth:shared]
            self.positions += range(self.start + depth, self.start + shared)
            self.ends += [0] * (shared - depth)
            for member in group:
                paths[member] += range(begin, begin + shared - depth)
            self.grow(bodies, paths, group, shared)
            self.ends[begin : begin + shared - depth] = [len(self.tokens)] * (shared - depth)


def common_prefix(sequences: Sequence[list[int]], start: int = 0) -> int:
    """Length of the longest beginning that all sequences share, given that they share `start` tokens.

    The least and the greatest in lexicographic order share no more than any two do.
    """
    least, greatest = min(sequences), max(sequences)
    limit = min(len(least), len(greatest))
    at = start
    while at < limit and least[at] == greatest[at]:
        at += 1
    return at


_NONE = np.zeros(0, dtype=np.int64)
EMPTY = Row(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE)


def join(rows: Sequence[Row]) -> Row:
    """Rows behind each other in one row; none sees another."""
    offsets = np.cumsum([0] + [len(row) for row in rows])[:-1]
    return Row(
        np.concatenate([row.tokens for row in rows]),
        np.concatenate([row.positions for row in rows]),
        np.concatenate([row.ends + offset for row, offset in zip(rows, offsets, strict=True)]),
        np.concatenate([row.at + offset for row, offset in zip(rows, offsets, strict=True)]),
        np.concatenate([row.targets for row in rows]),
        np.concatenate([row.keys for row in rows]),
    )


def batches(rows: Sequence[Row], budget: int) -> Iterable[list[Row]]:
    """Rows by falling length, as many to a batch as make at most `budget` tokens with padding.

    A batch of a 16th of the budget is large enough to compute with; from there on it ends at a row
    that is shorter than its first by more than a 16th, because padding costs what tokens cost. A row
    longer than the budget is a batch by itself.
    """
    batch: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch:
            width, filled = len(batch[0]), len(batch) * len(batch[0])
            if filled + width > budget or (16 * filled >= budget and 16 * len(row) < 15 * width):
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def fill(rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Bins of rows that together have at most `length` tokens (first fit, longest first).

    Raises `ValueError` for a row longer than that.
    """
    bins: list[list[Row]] = []
    free: list[int] = []
    for row in sorted(rows, key=len, reverse=True):
        if len(row) > length:
            raise ValueError(f"a row of {len(row)} tokens does not fit {length}")
        place = next((index for index, room in enumerate(free) if room >= len(row)), len(bins))
        if place == len(bins):
            bins.append([])
            free.append(length)
        bins[place].append(row)
        free[place] -= len(row)
    return bins
