"""The section that follows an answer back says what the trace said, and no more."""

from __future__ import annotations

import re
from dataclasses import replace

from loom.report.page import render
from tests.report.synthetic import report, traced


def test_spans_lead_to_their_documents_and_on_to_a_step() -> None:
    page = render(report())
    for number, words in ((1, "Remove any common leading whitespace from"), (2, "the given")):
        link = re.search(rf'<a href="#echo-{number}"[^>]*>([^<]*)', page)
        assert link is not None
        assert link[1] == words
        assert f'id="echo-{number}"' in page
    for part in ("12–14, 977", "pii.EMAIL_ADDRESS", "read in step 13", "none touched it", "none yet"):
        assert part in page
    assert 'href="trace/answer-1.html"' in page
    assert 'href="trace/step-1.html#here"' in page


def test_what_an_answer_says_twice_is_shown_once() -> None:
    told = traced()
    again = replace(told.echoes[1], start=0, end=9)
    page = render(
        replace(
            report(),
            traced=replace(told, answer="the given" + " " * 46 + "the given", echoes=(told.echoes[1], again)),
        )
    )
    assert "echo-1" in page
    assert "echo-2" not in page


def test_an_answer_that_stands_nowhere_says_so() -> None:
    page = render(replace(report(), traced=replace(traced(), echoes=())))
    assert "No run of whole words of this answer stands in the training tokens." in page
    assert "echo-1" not in page
