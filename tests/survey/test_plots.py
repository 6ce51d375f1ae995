"""A survey's plots show its numbers: widths in proportion, unknown values left open, every point on the plot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.engine import LocalEngine
from loom.survey import plots
from loom.survey.registry import NAMES, Options
from loom.survey.survey import Survey, survey
from tests.survey.test_survey import write


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Every analysis over two small corpora, the second holding half of the first, and the page."""
    folder = tmp_path_factory.mktemp("plots")
    rows = [
        {
            "id": f"d{n}",
            "source": f"s{n % 2}",
            "text": f"The woman said that page {n} is good. Write to me{n}@example.org. "
            + "word " * (n % 7) ** 3,
            "created": f"20{10 + n % 6}-01-0{1 + n % 9}T00:00:00.000Z",
            "metadata": {"url": f"https://www.site{n % 9}.co.uk/{n}.html"},
        }
        for n in range(60)
    ]
    write(folder / "one" / "documents" / "a.jsonl", rows)
    write(folder / "two" / "documents" / "a.jsonl", rows[30:])
    write(folder / "piqa.validation.jsonl", [{"goal": "page 7", "sol1": "is good", "sol2": "write to"}])
    options = Options(eval=(str(folder / "piqa.validation.jsonl"),), search=("woman AND page",))
    asked = Survey((str(folder / "one"),), ((str(folder / "two"),),), options=options)
    made = survey(asked, folder / "out", LocalEngine(1))
    return json.loads(made.file("survey.json").read_bytes()), made.file("survey.html").read_text(
        encoding="utf-8"
    )


def test_every_analysis_is_drawn_for_every_corpus(surveyed: tuple[dict[str, Any], str]) -> None:
    body, page = surveyed
    results = [body, *body["against"].values()]
    for name in NAMES:
        drawn = (
            plots.overlaps(["one", "two"], body["overlap"], results)
            if name == "overlap"
            else plots.draw(name, results)
        )
        assert drawn, name
        for plot in drawn:
            assert plot.title in page.replace("&#39;", "'")
            match plot:
                case plots.Bars(rows=rows):
                    assert {bar.corpus for _, row in rows for bar in row} == {0, 1}
                    assert all(0 <= bar.width <= 100 for _, row in rows for bar in row)
                case plots.Curves(lines=lines, marks=marks):
                    assert [line.corpus for line in lines] == [0, 1]
                    found = [float(x) for line in lines for x in line.points.replace(",", " ").split()]
                    assert all(0 <= x <= 100 for x in found)
                    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y, _, _ in marks)
                case plots.Moods(rows=rows):
                    assert all(0 <= m.negative + m.positive <= 100 for _, row in rows for m in row)
                case plots.Grid(cells=cells):
                    assert [cells[0][0], cells[1][1]] == [None, None]
    assert "<script" not in page


def test_the_overlap_is_a_share_of_the_rows_own_documents(surveyed: tuple[dict[str, Any], str]) -> None:
    body, _ = surveyed
    text, url = plots.overlaps(["one", "two"], body["overlap"], [body, *body["against"].values()])
    for plot in (text, url):
        assert isinstance(plot, plots.Grid)
        assert plot.cells[0][1] == (50.0, "50 %")
        assert plot.cells[1][0] == (100.0, "100 %")


@given(st.lists(st.lists(st.floats(0, 1e9), min_size=2, max_size=2), min_size=1, max_size=8))
def test_bars_are_in_proportion(values: list[list[float]]) -> None:
    drawn = plots.bars("t", [(str(n), row) for n, row in enumerate(values)], plots.amount)
    most = max(value for row in values for value in row)
    for row, (_, made) in zip(values, drawn.rows, strict=True):
        assert [bar.width for bar in made] == [pytest.approx(100 * v / most) if most else 0.0 for v in row]


def test_what_a_cut_list_does_not_reach_is_left_open() -> None:
    told: list[Any] = plots.union([{"a": 3.0, "b": 1.0}, {"b": 2.0}], [False, False])
    assert told == [("a", [3.0, None]), ("b", [1.0, 2.0])]
    assert plots.union([{"a": 3.0}, {"b": 2.0}], [True, True]) == [("a", [3.0, 0.0]), ("b", [0.0, 2.0])]


def test_names_are_as_long_as_tells_them_apart() -> None:
    assert plots.short_names(["/x/raw/documents", "/x/curated/documents/"]) == [
        "raw/documents",
        "curated/documents",
    ]
    assert plots.short_names(["a/b.jsonl", "a/c.jsonl"]) == ["b.jsonl", "c.jsonl"]
    assert len(set(plots.short_names(["a", "a"]))) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (999.6, "1,000"),
        (5484.2, "5,484"),
        (44100, "44.1 k"),
        (2.17e6, "2.17 M"),
        (3e12, "3 T"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert plots.amount(value) == text
