"""The thread of the road's answers: an index over its tokens, each answer's trace, and one step's batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, write_json
from loom.engine import Engine
from loom.report.data import Echo, Origin, Traced
from loom.road.answers import read_answers

FILE = "traces.json"
DOCUMENTS = 10  # shown for a span
ECHOED = 2  # documents of a span that the report keeps


def index_tokens(tokens: Artifact, out: Path, engine: Engine) -> Artifact:
    """The index over all tokens the road trained on: kind "index"."""
    from loom.trace.build import IndexTokens, build_index

    return build_index(IndexTokens(tokens.path), out, engine)


def trace_answers(index: Artifact, answers: Artifact, run: Path, out: Path) -> Artifact:
    """Every answer's spans and documents, a page for each, and the batch of a step that read one.

    `run` is a run's folder or one of its checkpoints. Kind "trace".
    """
    inputs = [artifact.refer(part, out) for part in (index, answers, artifact.load(run))]
    if (done := artifact.finished(out, "trace", {}, inputs)) is not None:
        return done
    from loom.trace.corpus import add_corpus
    from loom.trace.inspect import inspect_step
    from loom.trace.page import write_step_page, write_trace_page
    from loom.trace.query import open_index
    from loom.trace.trace import trace

    artifact.discard(out, "trace")
    opened = open_index(index.path)
    told: list[dict[str, Any]] = []
    pages: list[str] = []
    for number, row in enumerate(read_answers(answers.path), 1):
        found = trace(opened, row["answer"], prompt=row["question"], run=run, documents=DOCUMENTS)
        add_corpus(opened, found)
        read_by = Path(found["run"])
        found |= {"prompt": row["question"], "run": _name(read_by), "page": f"answer-{number}.html"}
        if (sought := _read(found)) is not None:
            found["step"], document = sought
            found["step_page"] = f"step-{number}.html"
            batch = inspect_step(read_by, found["step"], text=True)
            write_step_page(out / found["step_page"], batch | {"run": _name(read_by), "sought": document})
        write_trace_page(out / found["page"], found)
        pages += [found[key] for key in ("page", "step_page") if key in found]
        told.append(found)
    write_json(out / FILE, told)
    counters = {"answers": len(told), "spans": sum(len(found["spans"]) for found in told)}
    outputs = artifact.describe(out, [FILE, *pages])
    return artifact.commit(out, "trace", recipe={}, inputs=inputs, outputs=outputs, counters=counters)


def _name(run: Path) -> str:
    """Of a run's folder, or of the run that a checkpoint's folder is of."""
    return run.parent.parent.name if run.parent.name == "checkpoints" else run.name


def _read(found: Mapping[str, Any]) -> tuple[int, str] | None:
    """(step, document): the first step that read the best passage of the longest span that any step read."""
    for span in sorted(found["spans"], key=lambda span: -span["tokens"]):
        for document in span["documents"]:
            if document["passage_steps"]:
                return int(document["passage_steps"][0]), str(document["id"])
    return None


def read_traces(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / FILE).read_bytes())
    return rows


def echoed(folder: Path) -> Traced:
    """The answer with the longest span, as the report shows it; of equal ones the first."""
    told = read_traces(folder)
    best = max(told, key=lambda found: max((span["tokens"] for span in found["spans"]), default=0))
    beside = folder.name
    return Traced(
        best["prompt"],
        best["text"],
        tuple(
            Echo(
                span["start"],
                span["end"],
                span["tokens"],
                span["count"],
                tuple(_origin(document) for document in _read_first(span["documents"])[:ECHOED]),
            )
            for span in best["spans"]
        ),
        best["steps_read"],
        page=f"{beside}/{best['page']}",
        step=best.get("step"),
        step_page=f"{beside}/{best['step_page']}#here" if "step_page" in best else "",
    )


def _read_first(documents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By relevance, but first those whose passage the model has read."""
    return sorted(documents, key=lambda document: not document["passage_steps"])


def _origin(document: Mapping[str, Any]) -> Origin:
    passage = document["passage"]
    return Origin(
        document["id"],
        document["source"] or "unknown",
        document["origin"],
        ("… " if passage["cut_before"] else "") + passage["before"],
        passage["match"],
        passage["after"] + (" …" if passage["cut_after"] else ""),
        tuple(document.get("rules", ())),
        {key: str(value) for key, value in document.get("metadata", {}).items()},
        tuple(document["steps"]),
        tuple(document["passage_steps"]),
    )
