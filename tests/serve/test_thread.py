"""The thread, whole: a corpus, its tokens, its index, a run that read them, a served model, a click in a browser.

Nothing stands in for anything: the answer goes to the server's own /loom/trace and from there to the index.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loom import artifact
from loom.chat.format import DEFAULT, FORMATS
from loom.cli import main
from loom.engine import LocalEngine
from loom.road.training import run_training
from loom.tokens.tokenize import Tokenize, tokenize
from loom.tokens.tokenizer import Tokenizer
from loom.trace.build import IndexTokens, build_index
from loom.trace.inspect import inspect_step
from tests.serve.parrot import parrot, phrase
from tests.serve.running import Running, served
from tests.serve.test_page import ask, few_tokens
from tests.small import library_texts, make_tokenizer, write_lines
from tests.trace.runs import lm

SOUGHT = "doc-40"


@dataclass(frozen=True)
class Road:
    folder: Path
    answer: str

    @property
    def options(self) -> list[str]:
        return ["--index", str(self.folder / "index"), "--run", str(self.folder / "run")]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """documents -> tokens -> index and run; beside them a model that says a stretch of one document."""
    folder = tmp_path_factory.mktemp("thread")
    path = make_tokenizer(folder)
    rows = [
        {
            "id": f"doc-{n}",
            "text": text,
            "source": "library" if n % 2 else "notes",
            "metadata": {"licence": f"L-{n}"},
        }
        for n, text in enumerate(library_texts())
    ]
    corpus, name = folder / "corpus", "documents/all/a.jsonl"
    write_lines(corpus / name, rows)
    outputs = artifact.describe(corpus, [name], {name: len(rows)})
    artifact.commit(corpus, "documents", recipe={}, inputs=[], outputs=outputs, counters={})
    tokenize(Tokenize((str(corpus),), path, 0.0, 20_000), folder / "tokens", LocalEngine(1))
    build_index(IndexTokens(folder / "tokens"), folder / "index", LocalEngine(1))
    run_training(lm(folder / "tokens", steps=30, batch=32), folder / "run")
    tokenizer = Tokenizer.load(path)
    before = FORMATS[DEFAULT].assistant.before
    ids = phrase(tokenizer, rows[40]["text"].strip(), before)
    parrot(folder / "parrot", tokenizer, ids, before)
    return Road(folder, tokenizer.decode(ids))


@pytest.fixture(scope="module")
def server(road: Road) -> Iterator[Running]:
    with served(road.folder / "parrot", road.options) as running:
        yield running


def reads(road: Road, step: int) -> set[str]:
    """The ids of the documents in a step's batch."""
    found = inspect_step(road.folder / "run", step)
    return {document["id"] for instance in found["instances"] for document in instance["documents"]}


def test_the_model_says_what_stands_in_the_document(road: Road, server: Running) -> None:
    asked = {"messages": [{"role": "user", "content": "Well?"}], "temperature": 0}
    status, answer = server.post("/v1/chat/completions", asked)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
    assert answer["choices"][0]["message"]["content"] == road.answer
    assert road.answer in library_texts()[40]
    assert len(road.answer) > 40


def test_the_endpoint_tells_what_loom_trace_tells(
    road: Road, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.call("GET", "/loom/info")[1]["trace"] is True
    status, told = server.post("/loom/trace", {"text": road.answer, "prompt": "Well?"})
    assert status == 200
    (tmp_path / "answer.json").write_text(json.dumps({"text": road.answer, "prompt": "Well?"}))
    with pytest.raises(SystemExit) as ended:
        main(["trace", *road.options, "--chat", str(tmp_path / "answer.json"), "--json"])
    assert ended.value.code == 0
    assert told["spans"] == json.loads(capsys.readouterr().out.splitlines()[-1])["spans"]
    (span,) = (span for span in told["spans"] if SOUGHT in {d["id"] for d in span["documents"]})
    assert road.answer[span["start"] : span["end"]].strip() == road.answer.strip()
    for bad in ({"text": ""}, {"text": "x" * 20_001}, {"text": 3}, {"text": "x", "prompt": 3}, []):
        assert server.post("/loom/trace", bad)[0] == 400


def test_a_click_on_an_answer_leads_to_its_documents_and_steps(road: Road, page: Any) -> None:
    few_tokens(page, 60)
    assert ask(page, "Well?") == road.answer
    page.locator(".message.assistant .text").click()
    page.wait_for_selector(".document")
    assert page.locator(".message.assistant .text").text_content() == road.answer, "marks change no word"
    assert page.locator(".message.assistant mark.chosen").text_content().strip() == road.answer.strip()
    card = page.locator(".document", has=page.locator("h3", has_text=re.compile(rf"^{SOUGHT}$")))
    assert card.locator("mark").text_content().strip() == road.answer.strip()
    assert "notes" in card.text_content()
    assert "licence: L-40" in card.text_content()
    told = card.locator(".steps").text_content()
    assert told.startswith("Read at step")
    steps = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", told.split(" and ")[0])]
    assert steps
    for step in steps:
        assert SOUGHT in reads(road, step)
    page.keyboard.press("Escape")
    assert page.locator("#thread").is_hidden()


def test_the_terminal_traces_too(
    road: Road, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Well?\n/trace\n"))
    with pytest.raises(SystemExit) as ended:
        main(["chat", str(road.folder / "parrot"), *road.options, "--temperature", "0"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(road.answer)
    line = next(line for line in out.splitlines() if line.strip().startswith(f"{SOUGHT} ("))
    assert "(notes, read at step" in line
    steps = line.partition("read at step ")[2].rstrip(")").split(", ")
    assert all(SOUGHT in reads(road, int(step)) for step in steps)
