"""The page: one file, no network, every part there, text of a run never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loom.report.data import Change, Comparison, Measure, Metric, ModelFigures, ReportData, load, save
from loom.report.page import SECTIONS, render, write_report
from tests.browser import chromium
from tests.report.synthetic import report

HOSTILE = (
    "</script></title></style><script>window.stolen = 1</script><img src=x onerror='window.stolen=2'>\"'&"
)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    return parser


def test_page_reaches_for_nothing() -> None:
    page = render(report())
    addresses = re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}", page)
    assert [address for address in addresses if "w3.org" not in address] == []
    attributes = {name for _, attrs in parse(page).tags for name in attrs}
    assert not attributes & {"src", "srcset", "onclick", "onerror", "onload"}
    assert "@import" not in page


def test_every_section_is_there_and_an_empty_record_has_none() -> None:
    found = {attrs.get("id") for tag, attrs in parse(render(report())).tags if tag == "section"}
    assert found == {anchor for _, anchor, _ in SECTIONS} - {"side-by-side"}
    empty = render(ReportData("nothing yet"))
    assert "<section" not in empty
    assert "Not in these records: data, training" in empty


def test_text_of_a_run_stays_text() -> None:
    plain, hostile = parse(render(report())), parse(render(report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert any(HOSTILE in piece for piece in hostile.text)


def test_equal_records_are_equal_bytes_through_a_file(tmp_path: Path) -> None:
    save(tmp_path / "report.json", report())
    again = load(tmp_path / "report.json")
    assert again == report()
    write_report(tmp_path / "report.html", again)
    assert (tmp_path / "report.html").read_bytes() == render(report()).encode()


def test_verdict_marks_only_what_is_beyond_two_standard_errors() -> None:
    metric = Metric("m", "m", better="lower")

    def page(difference: float) -> str:
        models = (ModelFigures("a", {"m": Measure(2.0)}), ModelFigures("b", {"m": Measure(2.0 + difference)}))
        changes = (Change("m", "b", "a", difference, 0.1),)
        return render(ReportData("t", comparison=Comparison((metric,), models, changes)))

    assert "No significant change from a to b" in page(-0.2)
    assert "b is better than a by 0.210" in page(-0.21)
    assert "b is worse than a by 0.210" in page(0.21)


def test_independent_errors_are_used_and_named_where_there_is_no_pair() -> None:
    metric = Metric("m", "m")
    models = (ModelFigures("a", {"m": Measure(1.0, 0.3)}), ModelFigures("b", {"m": Measure(2.0, 0.4)}))
    page = render(ReportData("t", comparison=Comparison((metric,), models)))
    assert "No significant change from a to b (1.000 ± 0.500)" in page
    assert "independent samples" in page


def test_rows_that_do_not_add_up_are_shown() -> None:
    data = report()
    assert data.flow is not None
    kept = dict(data.flow.kept)
    first = next(iter(kept))
    kept[first] = replace(kept[first], documents=kept[first].documents - 5)
    assert "not accounted for" in render(replace(data, flow=replace(data.flow, kept=kept)))
    assert "not accounted for" not in render(data)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (1180, "dark"), (390, "light")])
def test_page_in_a_browser(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    write_report(tmp_path / "report.html", report(HOSTILE))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    assert page.evaluate("window.stolen") is None
    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.locator(".plot").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert "training" in page.locator(".plot .readout").first.inner_text()
    assert page.locator(".threads.bytes").is_visible()
    page.locator("label[for=flow-documents]").click()
    assert page.locator(".threads.documents").is_visible()
    assert not page.locator(".threads.bytes").is_visible()
    page.screenshot(path=str(tmp_path / "page.png"))
    context.close()
    assert problems == []
