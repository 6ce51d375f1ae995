"""Filter expressions mean what they say, and a name nobody writes is an error."""

from __future__ import annotations

import numpy as np
import pytest

from loom.corpus.attributes import from_lists
from loom.corpus.expression import Columns, check_names, parse
from loom.errors import LoomError

COLUMNS = Columns(
    {
        ("g", "words"): from_lists([[(0, 9, 10.0)], [(0, 9, 60.0)], None]),
        ("c", "lines"): from_lists([[(0, 4, 1.0), (6, 9, 3.0)], [], None]),
        ("c", "curly"): from_lists([None, [(0, 9, 1.0)], []]),
    },
    np.array([10, 10, 0]),
    np.array([12, 10, 0]),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g.words >= 50", [False, True, False]),
        ("g.words < 50", [True, False, False]),
        ("not g.words >= 50", [True, False, True]),
        ("c.curly", [False, True, False]),
        ("c.curly or g.words < 50", [True, True, False]),
        ("frac(c.lines) > 0.5", [True, False, False]),
        ("count(c.lines) == 2", [True, False, False]),
        ("sum(c.lines) == 4 and max(c.lines) == 3 and min(c.lines) == 1", [True, False, False]),
        ("first(c.lines) == 1 and mean(c.lines) == 2", [True, False, False]),
        ("0 < g.words <= 10", [True, False, False]),
        ("document.bytes > document.characters", [True, False, False]),
        ("g.words / document.characters > 5", [False, True, False]),
        ("g.words > -1", [True, True, False]),
    ],
)
def test_meaning(text: str, expected: list[bool]) -> None:
    assert parse(text)(COLUMNS).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g.words >", "no filter expression"),
        ("word_count > 3", "cannot stand"),
        ("__import__('os')", "cannot stand"),
        ("medn(g.words) > 3", "no aggregate"),
        ("document.words > 1", "document.words is unknown"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(LoomError, match=message):
        parse(text)


def test_names_are_checked() -> None:
    known = {"gopher_v2": ("word_count",)}
    with pytest.raises(LoomError, match="Did you mean 'word_count'"):
        check_names(parse("gopher_v2.word_counts > 3"), known, "rule")
    with pytest.raises(LoomError, match="not run"):
        check_names(parse("gopher_v1.word_count > 3"), known, "rule")


def test_a_list_needs_an_aggregate() -> None:
    with pytest.raises(LoomError, match="aggregate"):
        parse("c.lines > 1")(COLUMNS)
