"""What the corpus knows of a document that the tokens do not: metadata, the rules that touched it.

From the index to its tokens to the documents they were made from, by manifests. Where those folders are
no longer beside the index, nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loom.artifact import MANIFEST, Artifact, load
from loom.corpus.attributes import key_name
from loom.corpus.documents import read_lines
from loom.trace.query import Index

MOST = 40  # documents looked up, the most relevant first
METADATA = 300  # code points of a value kept
REPLACED = 0.5  # the score from which a span is replaced


def add_corpus(index: Index, told: dict[str, Any]) -> None:
    """Add `metadata`, `rules` and `mixture` to the documents of a trace, where the corpus is still there."""
    wanted = {(entry["id"], entry["origin"]) for entry in told["documents"][:MOST]}
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for corpus in document_artifacts(index):
        for key, value in look_up(corpus, wanted - known.keys()):
            known[key] = value
    for document in told["documents"] + [d for span in told["spans"] for d in span["documents"]]:
        document.update(known.get((document["id"], document["origin"]), {}))


def document_artifacts(index: Index) -> list[Artifact]:
    """The finished folders of documents that the index's tokens were made from."""
    found = []
    for item in index.artifact.inputs if index.artifact is not None else ():
        tokens = index.path / item.path
        if not (tokens / MANIFEST).is_file():
            continue
        for source in load(tokens).inputs:
            path = tokens / source.path
            if path.is_dir() and (path / MANIFEST).is_file():
                artifact = load(path)
                if artifact.kind == "documents" and artifact.digest == source.digest:
                    found.append(artifact)
    return found


def look_up(
    corpus: Artifact, wanted: set[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """For documents (id, origin) of a corpus: ((id, origin), what it knows of them)."""
    by_file: dict[str, dict[int, tuple[str, str]]] = {}
    for identity, origin in wanted:
        name, _, row = origin.rpartition(":")
        if row.isdigit():
            by_file.setdefault(name, {})[int(row)] = (identity, origin)
    for name, rows in sorted(by_file.items()):
        path = corpus.path / "documents" / name
        if not path.is_file():
            continue
        touched = _touched(corpus, name, {identity for identity, _ in rows.values()})
        for line, document in _rows(path, set(rows)):
            key = rows[line]
            if document.get("id") != key[0]:
                continue
            metadata = document.get("metadata") or {}
            yield (
                key,
                {
                    "metadata": {
                        str(k): _short(v) for k, v in metadata.items() if v not in (None, "", [], {})
                    },
                    "rules": touched.get(key[0], []),
                    **_mixture(corpus, name),
                },
            )


def _rows(path: Path, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.name.endswith(".parquet"):
        table = pq.read_table(path)
        for row in sorted(wanted):
            value = table.slice(row - 1, 1).to_pylist()[0]
            if isinstance(value.get("metadata"), str):
                value["metadata"] = orjson.loads(value["metadata"])
            yield row, value
        return
    last = max(wanted)
    for row, line in enumerate(read_lines(path), 1):
        if row in wanted:
            yield row, orjson.loads(line)
        if row >= last:
            return


def _touched(corpus: Artifact, name: str, ids: set[str]) -> dict[str, list[str]]:
    """By document: the keys whose spans were replaced in it, with how many."""
    stem = name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[0]
    out: dict[str, list[str]] = {}
    for tagger, keys in _replacing(corpus.recipe, name).items():
        path = corpus.path / "attributes" / tagger / f"{stem}.parquet"
        if not path.is_file():
            continue
        table = pq.read_table(path, filters=pc.field("id").isin(pa.array(sorted(ids))))
        for row in table.to_pylist():
            for key in keys:
                spans = row.get(key_name(tagger, tagger, key)) or []
                count = sum(span["score"] >= REPLACED for span in spans)
                if count:
                    out.setdefault(row["id"], []).append(f"{tagger}.{key} ({count} replaced)")
    return out


def _replacing(recipe: Any, name: str) -> dict[str, list[str]]:
    """tagger -> keys that the source's rules replace."""
    rules = _rules(recipe, name)
    found: dict[str, list[str]] = {}
    for key in rules.get("replace", {}):
        tagger, _, rest = key.partition(".")
        found.setdefault(tagger, []).append(rest)
    return found


def _rules(recipe: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(recipe, Mapping):
        return {}
    source = (recipe.get("sources") or {}).get(name.split("/")[0]) or {}
    rules: Mapping[str, Any] = (recipe.get("rules") or {}).get(source.get("rules")) or {}
    return rules


def _mixture(corpus: Artifact, name: str) -> dict[str, str]:
    recipe = corpus.recipe if isinstance(corpus.recipe, Mapping) else {}
    source = name.split("/")[0]
    share = ((recipe.get("sources") or {}).get(source) or {}).get("share")
    return {} if share is None else {"mixture": f"{source}: {100 * share:g} % of the source was kept"}


def _short(value: Any) -> Any:
    if isinstance(value, str | list | dict):
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        return text if len(text) <= METADATA else text[: METADATA - 1] + "…"
    return value
