"""Instances that repeat a short period many times are found: just those that a plain search finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.tokens.repetition import repeats


def by_search(row: list[int], longest: int, times: int) -> bool:
    """Whether some sequence of at most `longest` tokens stands `times` times in a row."""
    for period in range(1, longest + 1):
        for start in range(len(row) - period * times + 1):
            unit = row[start : start + period]
            if row[start : start + period * times] == unit * times:
                return True
    return False


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=24, max_size=24), min_size=1, max_size=4))
def test_as_a_plain_search_finds_them(rows: list[list[int]]) -> None:
    found = repeats(np.array(rows), longest_period=3, times=4)
    assert found.tolist() == [by_search(row, 3, 4) for row in rows]


def test_olmo_2s_limits_are_thirteen_tokens_thirty_two_times() -> None:
    generator = np.random.default_rng(3)
    rows = generator.integers(0, 50_000, (5, 2048))
    unit, longer = generator.integers(0, 50_000, 13), generator.integers(0, 50_000, 14)
    rows[1, 700 : 700 + 13 * 32] = np.tile(unit, 32)
    rows[2, 700 : 700 + 13 * 31] = np.tile(unit, 31)  # once too few
    rows[3, 700 : 700 + 14 * 40] = np.tile(longer, 40)  # a token too long
    rows[4, -32:] = 7
    assert repeats(rows).tolist() == [False, True, False, False, True]
    assert repeats(rows[:, :31]).tolist() == [False] * 5  # shorter than any
