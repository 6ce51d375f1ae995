"""From an answer to its documents: spans, where each occurs, and when the model read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.errors import LoomError
from loom.trace.layout import Document
from loom.trace.query import Index
from loom.trace.reading import Reading, reading_of
from loom.trace.relevance import bm25
from loom.trace.spans import Choice, Span, find_spans

DOCUMENTS = 10  # shown for a span
CONTEXT = 40  # ids shown on either side of a match
PASSAGE = 250  # ids on either side that the ranking reads


@dataclass(frozen=True)
class _Hit:
    document: Document
    at: int
    span: int


def trace(
    index: Index,
    text: str,
    *,
    prompt: str = "",
    run: Path | None = None,
    choice: Choice | None = None,
    documents: int = DOCUMENTS,
) -> dict[str, Any]:
    """The verbatim spans of `text` in the training tokens, with documents.

    `prompt` joins the text in ranking documents. With `run`, each document carries `steps`, every step
    up to the newest checkpoint that read any of it, and `passage_steps`, those that read the match.

    Gives {"text", "tokens", "spans": [{"start", "end", "text", "count", "documents": [...]}],
    "documents": [...]}: `start` and `end` are code points, a span's documents carry `id`, `source`,
    `origin`, `relevance` (0 to 1, the best document's being 1) and `passage` {"before", "match",
    "after"}; the list at the end names each document once, most relevant first. Raises `LoomError` for
    a run that did not read the index's tokens.
    """
    reading = _reading(index, run) if run is not None else None
    spans = find_spans(index, text, choice)
    hits = [hit for number, span in enumerate(spans) for hit in _hits(index, number, span, documents)]
    relevance = _relevance(index, hits, spans, f"{prompt}\n{text}")
    shown = [_span(index, number, span, text, hits, relevance, reading) for number, span in enumerate(spans)]
    result: dict[str, Any] = {
        "text": text,
        "tokens": len(index.tokenizer.encode(text)),
        "spans": shown,
        "documents": _ranked(shown),
    }
    if reading is not None:
        result |= {"run": str(reading.run), "steps_read": reading.step}
    return result


def _reading(index: Index, run: Path) -> _Numbered:
    if index.artifact is None:
        raise LoomError(
            f"{index.path} was not built by Loom, so its documents have no place in training: leave "
            f"out --run."
        )
    return _Numbered(*reading_of(run, index.artifact.facts["index"]["tokens"]))


@dataclass(frozen=True)
class _Numbered:
    """A reading and the number of the index's tokens among its folders."""

    reading: Reading
    source: int

    @property
    def run(self) -> Path:
        return self.reading.run

    @property
    def step(self) -> int:
        return self.reading.step

    def steps(self, document: Document, first: int, last: int) -> list[int]:
        assert document.token_shard is not None
        assert document.token_start is not None
        start = document.token_start
        return self.reading.steps(self.source, document.token_shard, start + first, start + last)


def _hits(index: Index, number: int, span: Span, limit: int) -> list[_Hit]:
    """At most `limit` documents that hold a span, each once, evenly spaced over its occurrences."""
    found = index.documents_of(index.find(span.ids), limit)
    return [_Hit(document, at, number) for document, at in found]


def _relevance(
    index: Index, hits: Sequence[_Hit], spans: Sequence[Span], query: str
) -> dict[tuple[int, int], float]:
    """By document: BM25 of the passages around its matches, as a share of the best one's."""
    if not hits:
        return {}
    passages: dict[tuple[int, int], list[str]] = {}
    for hit in hits:
        length = len(spans[hit.span].ids)
        ids = index.read(hit.document, hit.at - PASSAGE, hit.at + length + PASSAGE)
        key = (hit.document.shard, hit.document.number)
        passages.setdefault(key, []).append(index.tokenizer.decode(ids.tolist()))
    scores = bm25(query, ["\n".join(parts) for parts in passages.values()])
    best = max(scores) or 1.0
    return {key: score / best for key, score in zip(passages, scores, strict=True)}


def _span(
    index: Index,
    number: int,
    span: Span,
    text: str,
    hits: Sequence[_Hit],
    relevance: Mapping[tuple[int, int], float],
    reading: _Numbered | None,
) -> dict[str, Any]:
    documents = [
        _document(index, hit, len(span.ids), relevance, reading) for hit in hits if hit.span == number
    ]
    documents.sort(key=lambda document: -document["relevance"])
    return {
        "start": span.start,
        "end": span.end,
        "text": text[span.start : span.end],
        "tokens": len(span.ids),
        "count": span.count,
        "surprise": round(span.surprise, 4),
        "documents": documents,
    }


def _document(
    index: Index,
    hit: _Hit,
    length: int,
    relevance: Mapping[tuple[int, int], float],
    reading: _Numbered | None,
) -> dict[str, Any]:
    document, decode = hit.document, index.tokenizer.decode
    size = document.last - document.first
    before = index.read(document, hit.at - CONTEXT, hit.at)
    match = index.read(document, hit.at, hit.at + length)
    after = index.read(document, hit.at + length, hit.at + length + CONTEXT)
    out: dict[str, Any] = {
        "id": document.id,
        "source": document.source,
        "origin": document.origin,
        "shard": document.shard,
        "number": document.number,
        "at": hit.at,
        "tokens": size,
        "relevance": round(relevance[document.shard, document.number], 4),
        "passage": {
            "before": decode(before.tolist()),
            "match": decode(match.tolist()),
            "after": decode(_without_eos(index, after)),
            "cut_before": hit.at > CONTEXT,
            "cut_after": hit.at + length + CONTEXT < size - 1,
        },
    }
    if reading is not None:
        out["steps"] = reading.steps(document, 0, size)
        out["passage_steps"] = reading.steps(document, hit.at, hit.at + length)
    return out


def _without_eos(index: Index, ids: Any) -> list[int]:
    return [token for token in ids.tolist() if token != index.tokenizer.eos_id]


def _ranked(spans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every document once, with the spans that led to it, most relevant first."""
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    kept = ("id", "source", "origin", "tokens", "relevance", "steps")
    for number, span in enumerate(spans):
        for document in span["documents"]:
            entry = merged.setdefault(
                (document["shard"], document["number"]),
                {key: document[key] for key in kept if key in document} | {"spans": []},
            )
            entry["spans"].append(number)
    return sorted(merged.values(), key=lambda entry: -entry["relevance"])


def read_answer(path: Path) -> tuple[str, str]:
    """(prompt, answer) of a saved answer.

    The file is JSON: `{"messages": [{"role", "content"}, ...]}` or that list itself (the last
    assistant message is the answer), a chat completion of an OpenAI-compatible server, or what `loom
    generate --json` prints (`prompt` and `text`). Raises `LoomError` for anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoomError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise LoomError(f"{path} is not JSON ({error}).") from None
    found = _answer_in(value)
    if found is None:
        raise LoomError(
            f"{path} holds no answer: expected messages with one of the role assistant, a chat completion "
            f"with choices, or an object with text."
        )
    return found


def _answer_in(value: Any) -> tuple[str, str] | None:
    match value:
        case {"choices": [{"message": {"content": str(content)}}, *_]}:
            return "", content
        case {"choices": [{"text": str(content)}, *_]}:
            return "", content
        case {"messages": list(messages)} | list(messages):
            said = [m for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)]
            for at in range(len(said) - 1, -1, -1):
                if said[at].get("role") == "assistant":
                    return "\n".join(m["content"] for m in said[:at]), said[at]["content"]
            return None
        case {"text": str(text)}:
            prompt = value.get("prompt")
            return (prompt if isinstance(prompt, str) else ""), text
        case _:
            return None
