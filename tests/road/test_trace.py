"""The road's answers are followed to documents and steps, once, with the same bytes each time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loom import artifact
from loom.engine import LocalEngine
from loom.report.page import render
from loom.road.trace import echoed, index_tokens, read_traces, trace_answers
from loom.road.training import run_training
from loom.train.checkpoint import checkpoints
from tests.report.synthetic import report
from tests.small import library_texts
from tests.trace.runs import lm, make_tokens


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("road")
    tokens = artifact.load(make_tokens(out))
    index_tokens(tokens, out / "index", LocalEngine(1))
    run_training(lm(tokens.path, steps=30, batch=16), out / "pretrain")
    known = " ".join(library_texts()[20].split("\n")[2].split()[:6])
    rows = [
        {"question": "Nothing?", "answer": "", "expected": "", "seen": False, "finish": "stop"},
        {
            "question": "What <b>?",
            "answer": f"qqq {known} <i>zzz",
            "expected": "",
            "seen": False,
            "finish": "stop",
        },
    ]
    (out / "answers").mkdir()
    (out / "answers" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = artifact.describe(out / "answers", ["answers.jsonl"])
    artifact.commit(out / "answers", "answers", recipe={}, inputs=[], outputs=outputs, counters={})
    return out


def trace(out: Path, name: str) -> artifact.Artifact:
    index, answers = artifact.load(out / "index"), artifact.load(out / "answers")
    return trace_answers(index, answers, checkpoints(out / "pretrain")[-1], out / name)


def test_an_answer_leads_to_a_page_a_document_and_a_step(road: Path) -> None:
    made = trace(road, "trace")
    empty, full = read_traces(made.path)
    assert empty["spans"] == []
    assert max(span["tokens"] for span in full["spans"]) > 2
    assert "step" in full
    page = made.file(full["page"]).read_text()
    assert f'href="{full["step_page"]}#here"' in page
    batch = made.file(full["step_page"]).read_text()
    assert 'id="here"' in batch
    assert f"Step {full['step']}" in batch
    shown = echoed(made.path)
    assert shown.question == "What <b>?"
    assert any(shown.step in echo.documents[0].passage_steps for echo in shown.echoes)
    assert full["run"] == "pretrain"
    assert str(road) not in made.file("traces.json").read_text()
    section = render(replace(report(), traced=shown))
    assert f'href="trace/{full["step_page"]}#here"' in section
    assert "<i>zzz" not in section


def test_done_once_and_again_the_same(road: Path) -> None:
    made = trace(road, "trace")
    stamps = {output.path: made.file(output.path).stat().st_mtime_ns for output in made.outputs}
    assert trace(road, "trace").digest == made.digest
    assert {name: made.file(name).stat().st_mtime_ns for name in stamps} == stamps
    assert trace(road, "again").digest == made.digest
