"""Three questions to the tuned model, answered greedily and kept as they come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, atomic_write

FAMILIAR = "textwrap.dedent"  # asked first where the collection has it, else its first function
FILE = "answers.jsonl"


def answers(exported: Artifact, questions: Artifact, out: Path) -> list[dict[str, Any]]:
    """One function the model was tuned on, two it never saw: rows of question, answer, expected, seen."""
    inputs = [artifact.refer(exported, out), artifact.refer(questions, out)]
    if artifact.finished(out, "answers", {}, inputs) is None:
        rows = _ask(exported.path, questions)
        with atomic_write(out / FILE) as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        artifact.commit(
            out, "answers", recipe={}, inputs=inputs, outputs=artifact.describe(out, [FILE]), counters={}
        )
    return read_answers(out)


def read_answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_bytes().splitlines()]


def _ask(model: Path, questions: Artifact) -> list[dict[str, Any]]:
    from loom.model.sampling import Sampling
    from loom.serve.complete import answer, open_session

    session = open_session(model)
    rows = []
    for question, expected, seen in _choose(questions):
        reply = answer(session, question, Sampling(64, temperature=0.0))
        text = reply.text.strip()
        rows.append(
            {"question": question, "answer": text, "expected": expected, "seen": seen, "finish": reply.finish}
        )
    return rows


def _choose(questions: Artifact) -> list[tuple[str, str, bool]]:
    known = [json.loads(line) for line in questions.file("sft.jsonl").read_bytes().splitlines()]
    first = next((row for row in known if row["id"] == FAMILIAR), known[0])
    held = [json.loads(line) for line in questions.file("heldout.jsonl").read_bytes().splitlines()]
    asked = [(first["messages"][0]["content"], first["messages"][1]["content"], True)]
    return asked + [(row["question"], row["summary"], False) for row in held[:2]]
