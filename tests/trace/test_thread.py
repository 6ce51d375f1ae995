"""The whole thread through the real commands: from an answer to documents, rules and steps, and back."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from loom.cli import main
from loom.road.training import run_training
from loom.trace.page import write_trace_page
from loom.trace.visible import around, squeezed, step_ranges, visible
from tests.small import library_texts, make_tokenizer, write_lines
from tests.trace.runs import lm

HOSTILE = (
    "<script>alert('a word')</script> <img src=x onerror=alert(1)> \x1b[31mred\x07 \u202egnp.exe "
    "{{ 7 * 7 }} {% for x in y %} </article></main><svg/onload=alert(2)>"
)


def loom(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    out, error = capsys.readouterr()
    assert ended.value.code == 0, error
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    _, error = capsys.readouterr()
    assert ended.value.code == 1
    return error


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus -> curated -> tokens -> run and index, with one hostile document and one mail address."""
    folder = tmp_path_factory.mktemp("road")
    tokenizer = make_tokenizer(folder)
    texts = [
        *library_texts(),
        HOSTILE,
        "Write to the keeper at jane.roe@example.org about the lighthouse, please.",
    ]
    rows = [
        {"id": f"doc-{n}", "text": text, "source": "notes", "metadata": {"url": f"https://example.org/{n}"}}
        for n, text in enumerate(texts)
    ]
    write_lines(folder / "raw" / "documents" / "notes" / "a.jsonl", rows[0::2])
    write_lines(folder / "raw" / "documents" / "notes" / "b.jsonl", rows[1::2])
    (folder / "curate.yaml").write_text(
        f"""
documents: {folder / "raw"}
sources: {{notes: {{rules: all}}}}
rules:
  all: {{taggers: [pii_v1], replace: {{pii_v1.EMAIL_ADDRESS: " |||EMAIL_ADDRESS||| "}}, paragraphs: false}}
"""
    )
    for words in (
        ["curate", folder / "curate.yaml", "--out", folder / "curated", "--workers", "1"],
        ["tokenize", "--documents", folder / "curated", "--tokenizer", tokenizer, "--out", folder / "tokens"],
        ["index", folder / "tokens", "--out", folder / "index"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        assert ended.value.code == 0
    run_training(lm(folder / "tokens", steps=30, batch=32), folder / "run")
    return folder


def test_from_an_answer_to_documents_rules_and_steps(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "Go and write to the keeper at once about the lighthouse, please."
    told = loom(capsys, "trace", "--index", road / "index", "--run", road / "run", answer)
    last = len(library_texts()) + 1
    span = next(span for span in told["spans"] if "about the lighthouse" in span["text"])
    assert answer[span["start"] : span["end"]] == span["text"]
    (document,) = span["documents"]
    assert (document["id"], document["source"]) == (f"doc-{last}", "notes")
    assert document["metadata"] == {"url": f"https://example.org/{last}"}
    assert document["rules"] == ["pii_v1.EMAIL_ADDRESS (1 replaced)"]
    assert document["mixture"] == "notes: 100 % of the source was kept"
    assert document["steps"], "30 steps read this small corpus more than once"
    for step in document["steps"]:
        batch = loom(capsys, "inspect", "--run", road / "run", "--step", step)
        held = {row["id"] for instance in batch["instances"] for row in instance["documents"]}
        assert document["id"] in held


def test_a_saved_answer_and_its_page(road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"prompt": "<b>Who?</b>", "text": HOSTILE + " " + " ".join(library_texts()[10].split()[:30])}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    page = tmp_path / "trace.html"
    chat = ("--chat", tmp_path / "answer.json", "--page", page)
    told = loom(capsys, "trace", "--index", road / "index", "--run", road / "run", *chat)
    hostile = f"doc-{len(library_texts())}"
    assert any(document["id"] == hostile for document in told["documents"])
    harmless(page.read_text(encoding="utf-8"))
    assert "read in steps" in page.read_text(encoding="utf-8")
    assert "{{ 7 * 7 }}" in page.read_text(encoding="utf-8"), "text is never a template"


def test_a_steps_page_is_harmless_too(road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = loom(
        capsys, "trace", "--index", road / "index", "--run", road / "run", "red gnp.exe", "--no-corpus"
    )
    step = next(d["steps"][0] for d in told["documents"] if d["id"] == f"doc-{len(library_texts())}")
    loom(capsys, "inspect", "--run", road / "run", "--step", step, "--page", tmp_path / "step.html")
    harmless((tmp_path / "step.html").read_text(encoding="utf-8"))


def harmless(page: str) -> None:
    """No element, attribute or character of a document's text is alive in the page."""
    seen: set[str] = set()
    attributes: set[str] = set()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.add(tag)
            attributes.update(name for name, _ in attrs)

    Reader().feed(page)
    assert "alert(" in page, "the hostile document is shown"
    assert not seen & {"script", "img", "svg", "iframe", "object", "b"}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "srcdoc"})
    assert not any(character in page for character in "\x1b\x07\u202e\x00")
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_documents_by_phrase(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = library_texts()
    both = [n for n, text in enumerate(texts) if " import" in text and (" class" in text or " def" in text)]
    found = loom(
        capsys, "trace", "--index", road / "index", "--find", "import AND class OR def", "--documents", 1000
    )
    assert found["exact"]
    assert set(map(int, (d["id"].removeprefix("doc-") for d in found["documents"]))) >= set()
    assert found["count"] == len(found["documents"])
    named = {int(document["id"].removeprefix("doc-")) for document in found["documents"]}
    assert named <= {n for n, t in enumerate(texts) if "import" in t and ("class" in t or "def" in t)}
    assert len(named & set(both)) > 0.8 * len(both), "a phrase inside a longer token is not that phrase"
    error = refused(capsys, "trace", "--index", road / "index", "--find", "a AND ")
    assert "lacks a phrase" in error


def test_a_takedown_is_found_in_every_artifact_and_run(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text('doc-5\n{"id": "doc-6"}\nnobody\n')
    words = ("--index", road / "index", "--run", road / "run", "--takedown", tmp_path / "list.txt")
    found = loom(capsys, "trace", *words)
    by_id = {entry["id"]: entry for entry in found["documents"]}
    assert by_id["nobody"] == {"id": "nobody", "found": [], "runs": []}
    for identity in ("doc-5", "doc-6"):
        kinds = sorted({place["kind"] for place in by_id[identity]["found"]})
        assert kinds == ["documents", "index", "tokens"]
        for step in by_id[identity]["runs"][0]["steps"]:
            batch = loom(capsys, "inspect", "--run", road / "run", "--step", step)
            assert any(row["id"] == identity for i in batch["instances"] for row in i["documents"])


def test_bad_use_is_named(road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no index" in refused(capsys, "trace", "--index", tmp_path / "none", "text")
    assert "holds 'tokens'" in refused(capsys, "trace", "--index", road / "tokens", "text")
    assert "no step 31" in refused(capsys, "inspect", "--run", road / "run", "--step", "31")
    wrong = make_tokenizer(tmp_path, 700)
    assert "another tokenizer" in refused(
        capsys, "trace", "--index", road / "index", "--tokenizer", wrong, "text"
    )


def test_what_an_answer_says_twice_is_shown_once(tmp_path: Path) -> None:
    """Both places in the answer lead to one section; empty lines do not push the match out of sight."""
    passage = {
        "before": "far\n \n\n\t\n\n",
        "match": "a cat",
        "after": "\n\n\n\n sat",
        "cut_before": True,
        "cut_after": False,
    }
    document = {
        "id": "d",
        "source": "s",
        "origin": "a.jsonl:1",
        "at": 0,
        "tokens": 9,
        "relevance": 1.0,
        "passage": passage,
    }
    span = {"text": "a cat", "tokens": 2, "count": 1, "documents": [document]}
    told = {
        "text": "a cat, a cat",
        "tokens": 5,
        "spans": [span | {"start": 0, "end": 5}, span | {"start": 7, "end": 12}],
        "documents": [document],
    }
    write_trace_page(tmp_path / "page.html", told)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('href="#span-0"') == 2
    assert page.count('<section id="span-') == 1
    assert "once in the training tokens; 1 document shown. The answer says it 2 times." in page
    assert "… far\n\n<mark>a cat</mark>\n\n sat" in page


def test_steps_and_text_as_people_read_them() -> None:
    assert around("1\n2\n3\n4\n", "\na\nb\nc", 3) == ("…\n3\n4\n", "\na\nb\n…")
    assert around("a ", " b") == ("a ", " b")
    assert squeezed("a\n\nb\n\n \n\nc\n") == "a\n\nb\n\nc\n"
    assert step_ranges([3, 4, 5, 9]) == "3–5, 9"
    assert step_ranges([]) == "none yet"
    assert step_ranges(range(1, 60, 2), 2) == "1, 3 and 28 more"
    assert visible("a\tb\nc\x00\x1b\x7f\u202e") == "a\tb\nc␀␛␡⟨202E⟩"
