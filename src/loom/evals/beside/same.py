"""Whether two evaluations read the same: the files that they name by digest.

Whether the documents are the same as well is seen from the rows (`loom.evals.beside.paired`): `--limit` and `--sample`
take others of one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_WHERE = (
    ("files", "on different rows (the files' digests differ)", "on the same --data"),
    ("example_files", "with different worked examples (the files' digests differ)", "on the same --data"),
    ("prompts", "on different prompts (the files' digests differ)", "on the same --data"),
    ("digest", "on different held-out rows (their digests differ)", "on the same folders"),
)
"""Of a task: the key, how two differ that have other digests there, and where to evaluate both."""


def other_rows(a: Mapping[str, Any], b: Mapping[str, Any], task: str) -> tuple[str, str] | None:
    """Of two `results.json`: what differs in what was read for a task, and where to evaluate both; None where
    nothing does."""
    one, two = (body["tasks"].get(task, {}) for body in (a, b))
    for key, how, where in _WHERE:
        if _digests(one.get(key)) != _digests(two.get(key)):
            return how, where
    if _judge(one) != _judge(two):
        return "by different judges, or against different answers", "with the same --judge"
    return None


def _judge(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Who judged, and against what. A replay's file is another for every model: its annotators and baselines count."""
    judge = dict(facts.get("judge") or {})
    keys = (
        ("judge", "annotators", "baselines")
        if judge.get("judge") == "replay"
        else judge.keys() - {"failures"}
    )
    return {key: judge.get(key) for key in sorted(keys)} | {"reference": facts.get("reference")}


def _digests(found: Any) -> Any:
    return [file.get("digest") for file in found] if isinstance(found, list) else found


def other_texts(a: Mapping[str, Any], b: Mapping[str, Any], sources: Iterable[str]) -> list[str]:
    """Those of `sources` whose files have other digests in two `results.json`.

    A token folder's digest is the tokenizer's too, and models may differ in that: there the documents alone decide.
    """
    return [
        source
        for source in sources
        if (one := _of_source(a, source)) and (two := _of_source(b, source)) and one != two
    ]


def _of_source(body: Mapping[str, Any], source: str) -> list[str]:
    """The digests of a source's files."""
    return sorted(
        str(file.get("digest"))
        for file in body.get("text", ())
        if file.get("source") == source and "held_out" not in file  # which a token folder says
    )
