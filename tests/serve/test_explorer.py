"""The explorer, clicked through in a headless browser; and what it refuses."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from loom.corpus.curate import curate
from loom.corpus.rules import Curate, Dedupe, Rules, Source
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.road.training import run_training
from loom.serve.explorer import Explorer, make_server
from loom.tokens.tokenize import Tokenize, tokenize
from loom.trace.build import IndexTokens, build_index
from tests.browser import chromium
from tests.small import library_texts, make_tokenizer, write_lines
from tests.trace.runs import lm

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> \x1b[31m a lighthouse keeper's tale"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    texts = [*library_texts()[:60], HOSTILE, "Write to ada@example.org, a lighthouse keeper.\n"]
    rows = [{"id": f"doc-{n}", "text": text, "source": "made"} for n, text in enumerate(texts)]
    rows.append({"id": "dropped", "text": "{ lorem ipsum }", "source": "made"})
    write_lines(folder / "raw" / "documents" / "made" / "a.jsonl", rows)
    rules = Rules(("c4_v2", "pii_v1"), {"lorem": "c4_v2.has_lorem_ipsum"}, {"pii_v1.EMAIL_ADDRESS": "[mail]"})
    recipe = Curate(
        {"made": Source("plain")},
        {"plain": rules},
        str(folder / "raw"),
        dedupe=Dedupe(documents=False, paragraphs=False),
    )
    curate(recipe, folder / "curated", LocalEngine(1))
    tokenizer = make_tokenizer(folder)
    tokenize(Tokenize((str(folder / "curated"),), tokenizer), folder / "tokens", LocalEngine(1))
    build_index(IndexTokens(folder / "tokens"), folder / "index", LocalEngine(1))
    run_training(lm(folder / "tokens", steps=40, batch=16), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    server = make_server(Explorer(run), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_page_answers_and_mistakes_are_named(address: str) -> None:
    assert "tokens" in get(f"{address}/")[1]
    assert "Step 3" in get(f"{address}/step?n=3")[1]
    assert "no step 99" in get(f"{address}/step?n=99")[1]
    assert get(f"{address}/step?n=x")[0] == 400
    assert get(f"{address}/document?id=nobody")[0] == 400
    assert get(f"{address}/find?q=a+AND+")[0] == 400
    assert get(f"{address}/elsewhere")[0] == 404
    assert get(f"{address}/", host="evil.example")[0] == 403


def test_a_corpus_is_browsed_and_a_document_shows_its_marks_and_its_fate(address: str) -> None:
    assert "curated" in get(f"{address}/corpus")[1]
    files = re.findall(r'href="/corpus\?a=0&amp;file=([^"]+)"', get(f"{address}/corpus?a=0")[1])
    kept, gone = (next(name for name in files if name.startswith(kind)) for kind in ("documents", "removed"))
    page = get(f"{address}/corpus?a=0&file={kept}&from=20")[1]
    assert "row 20" in page
    assert "row 45" not in page
    assert 'rel="next"' in page
    status, page = get(f"{address}/look?a=0&file={kept}&row=62")
    assert status == 200
    assert ">ada@example.org</mark>" in page
    assert "Kept, with" in page
    page = get(f"{address}/look?a=0&file={kept}&row=62&mark=c4_v2.lines_with_too_few_words")[1]
    assert ">ada@example.org</mark>" not in page
    page = get(f"{address}/look?a=0&file={gone}&row=1")[1]
    assert "Removed by the rule &#39;lorem&#39;" in page
    assert "<script" not in get(f"{address}/look?a=0&file={kept}&row=61")[1]


@pytest.mark.parametrize(
    "asked",
    ["corpus?a=9", "corpus?a=x", "corpus?a=0&file=../manifest.json", "look?a=0&file=/etc/passwd&row=1"],
)
def test_only_the_corpora_of_the_run_are_shown(address: str, asked: str) -> None:
    assert get(f"{address}/{asked}")[0] == 400


def test_hostile_text_stays_text(address: str) -> None:
    status, page = get(f"{address}/document?id=doc-60")
    assert status == 200
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="no finished checkpoint"):
        Explorer(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_clicked_through_by_mouse_and_by_keyboard(address: str, scheme: str) -> None:
    with chromium() as browser:
        page = browser.new_page(color_scheme=scheme)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.get_by_role("link", name="Trace").click()
        page.get_by_label("Text").fill("Here a lighthouse keeper's tale is told.")
        page.get_by_role("button", name="Trace").press("Enter")
        page.get_by_role("link", name="doc-60").first.click()
        assert "lighthouse keeper" in page.inner_text("main")
        assert page.title() != "taken"
        page.get_by_role("link", name="which read it first").press("Enter")
        assert page.get_by_role("heading", level=1).inner_text().startswith("Step ")
        page.get_by_role("link", name="Find").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Phrases").fill("lighthouse keeper")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="doc-60").wait_for()
        page.get_by_role("link", name="Corpus").focus()
        page.keyboard.press("Enter")
        page.locator("article a").first.click()
        page.get_by_role("link", name="documents/made").click()
        page.get_by_role("link", name="doc-2", exact=True).press("Enter")
        assert "Kept" in page.inner_text("main")
        page.goto(f"{address}/step?n=2")
        page.get_by_role("link", name="Next").click()
        assert page.get_by_role("heading", level=1).inner_text() == "Step 3"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(","))
        assert (lightness > 600) == (scheme == "light")
        assert not problems
