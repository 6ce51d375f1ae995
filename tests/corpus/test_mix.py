"""Edits: masked text never survives in part, and nothing else changes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loom.corpus.mix import Edit, apply, merge

EDITS = st.lists(
    st.builds(
        lambda start, size, replacement: Edit(start, start + size, replacement, "k"),
        st.integers(0, 40),
        st.integers(0, 12),
        st.sampled_from(["", "<M>"]),
    ),
    max_size=8,
)


@given(edits=EDITS)
def test_what_is_marked_goes_and_what_is_not_stays(edits: list[Edit]) -> None:
    text = "".join(chr(0x1F600 + index) for index in range(60))  # every character once
    marked = {at for edit in edits for at in range(edit.start, edit.end)}
    out = apply(text, merge(edits))
    assert [c for c in out if ord(c) > 0x1000] == [text[at] for at in range(60) if at not in marked]


@given(edits=EDITS)
def test_merged_edits_do_not_touch_and_keep_order(edits: list[Edit]) -> None:
    merged = merge(edits)
    assert all(a.end <= b.start for a, b in pairwise(merged))
    assert merge(merged) == merged


def test_overlap_takes_the_first_span_s_replacement() -> None:
    mail, line = Edit(2, 6, " MAIL ", "mail"), Edit(4, 10, "", "line")
    assert apply("0123456789ab", merge([line, mail])) == "01 MAIL ab"
    assert apply("0123456789ab", merge([Edit(0, 10, "", "line"), mail])) == "ab"
