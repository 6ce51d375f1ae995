"""Rows compute what separate sequences would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.evals.rows import Row, Scored, batches, chain, fill, join, tree

TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=9)


def ancestors(row: Row, index: int) -> list[int]:
    return [j for j in range(index + 1) if index < row.ends[j]]


@given(st.lists(TOKENS, min_size=1, max_size=5), st.data())
def test_every_prediction_sees_its_own_beginning_and_nothing_else(
    texts: list[list[int]], data: st.DataObject
) -> None:
    scored = [data.draw(st.integers(1, len(text) - 1)) for text in texts]
    row = tree([Scored(text, n, key) for key, (text, n) in enumerate(zip(texts, scored, strict=True))])
    seen: dict[int, list[tuple[list[int], int]]] = {key: [] for key in range(len(texts))}
    for at, target, key in zip(row.at, row.targets, row.keys, strict=True):
        path = ancestors(row, int(at))
        assert list(row.positions[path]) == list(range(len(path)))
        seen[int(key)].append(([int(token) for token in row.tokens[path]], int(target)))
    for key, (text, n) in enumerate(zip(texts, scored, strict=True)):
        expected = [(text[:i], text[i]) for i in range(len(text) - n, len(text))]
        assert sorted(seen[key]) == sorted(expected)


@given(st.lists(TOKENS, min_size=1, max_size=6))
def test_a_tree_holds_each_distinct_beginning_once(texts: list[list[int]]) -> None:
    row = tree([Scored(text, 1, key) for key, text in enumerate(texts)])
    beginnings = {tuple(text[:i]) for text in texts for i in range(1, len(text))}
    assert len(row) == len(beginnings)


def test_chain_is_a_tree_of_one() -> None:
    one, other = chain(Scored([5, 6, 7, 8], 2, 3)), tree([Scored([5, 6, 7, 8], 2, 3)])
    for name in ("tokens", "positions", "ends", "at", "targets", "keys"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.chain


def test_nothing_before_the_first_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="before its first prediction"):
        tree([Scored([1, 2], 2, 0)])
    with pytest.raises(ValueError, match="before its first prediction"):
        chain(Scored([1, 2], 2, 0))


@given(st.lists(st.integers(2, 30), min_size=1, max_size=30))
def test_batches_and_bins_hold_every_row_once_and_keep_to_their_size(lengths: list[int]) -> None:
    rows = [chain(Scored(list(range(n)), 1, key)) for key, n in enumerate(lengths)]
    groups = list(batches(rows, 64))
    assert sorted(int(row.keys[0]) for group in groups for row in group) == list(range(len(rows)))
    assert all(len(group) * max(map(len, group)) <= 64 for group in groups)
    bins = fill(rows, 32)
    assert sorted(int(row.keys[0]) for group in bins for row in group) == list(range(len(rows)))
    assert all(len(join(group)) <= 32 for group in bins)
