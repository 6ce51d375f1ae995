"""A takedown list: where the documents named in it lie, and which runs read them at which steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from loom.artifact import MANIFEST, Artifact, load
from loom.corpus.documents import JSON_SUFFIXES, read_lines
from loom.errors import LoomError
from loom.trace.query import Index
from loom.trace.reading import ancestors, newest_checkpoint, open_reading


def read_list(path: Path) -> list[str]:
    """The ids of a list: a line each, or JSON lines with `id`. Raises `LoomError` for an empty one."""
    ids = []
    for line in read_lines(path):
        text = line.decode("utf-8", errors="replace").strip()
        if text.startswith("{"):
            text = str(orjson.loads(text).get("id", ""))
        if text:
            ids.append(text)
    if not ids:
        raise LoomError(f"{path} names no document: write an id a line, or JSON lines with id.")
    return list(dict.fromkeys(ids))


def take_down(index: Index, path: Path, runs: Sequence[Path] = ()) -> dict[str, Any]:
    """Where each document of the list lies: in the index, in every artifact behind it, and in runs.

    Gives {"documents": [{"id", "found": [{"path", "kind", "place"}], "runs": [{"run", "steps"}]}]}.
    """
    ids = read_list(path)
    wanted = set(ids)
    found: dict[str, list[dict[str, Any]]] = {identity: [] for identity in ids}
    for shard in index.shards:
        for number in range(shard.documents):
            document = shard.document(number)
            if document.id in wanted:
                place = f"{shard.path('metadata').name}:{number + 1}"
                found[document.id].append({"path": str(index.path), "kind": "index", "place": place})
    for artifact in behind(index.artifact):
        for identity, place in places(artifact, wanted):
            entry = {"path": str(artifact.path), "kind": artifact.kind, "place": place}
            found[identity].append(entry)
    seen = runs_that_read(runs, wanted)
    return {
        "documents": [
            {"id": identity, "found": found[identity], "runs": seen.get(identity, [])} for identity in ids
        ]
    }


def behind(artifact: Artifact | None) -> Iterator[Artifact]:
    """Every artifact that this one was made from, directly or not, as far as they are still there."""
    seen: set[Path] = set()
    waiting = [artifact] if artifact is not None else []
    while waiting:
        current = waiting.pop(0)
        for item in current.inputs:
            path = Path(os.path.normpath(current.path / item.path))
            if path.resolve() not in seen and path.is_dir() and (path / MANIFEST).is_file():
                seen.add(path.resolve())
                parent = load(path)
                waiting.append(parent)
                yield parent


def places(artifact: Artifact, wanted: set[str]) -> Iterator[tuple[str, str]]:
    """(id, file:row) of every wanted document in an artifact of documents or of tokens."""
    needles = [orjson.dumps(identity) for identity in wanted]
    for output in artifact.outputs:
        path = artifact.path / output.path
        if output.path.endswith(".docs.parquet"):
            ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
            yield from _rows(output.path, enumerate(ids, 1), wanted)
        elif artifact.kind == "documents" and output.path.startswith(("documents/", "removed/")):
            if output.path.endswith(JSON_SUFFIXES):
                lines = enumerate(read_lines(path), 1)
                likely = ((row, line) for row, line in lines if any(needle in line for needle in needles))
                named = ((row, orjson.loads(line).get("id")) for row, line in likely)
                yield from _rows(output.path, named, wanted)
            elif output.path.endswith(".parquet"):
                ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
                yield from _rows(output.path, enumerate(ids, 1), wanted)


def _rows(name: str, rows: Iterable[tuple[int, Any]], wanted: set[str]) -> Iterator[tuple[str, str]]:
    for row, identity in rows:
        if identity in wanted:
            yield identity, f"{name}:{row}"


def runs_that_read(runs: Sequence[Path], wanted: set[str]) -> dict[str, list[dict[str, Any]]]:
    """By document: the runs, and those they started from, that read it, with their steps."""
    out: dict[str, list[dict[str, Any]]] = {}
    looked: set[Path] = set()
    for run in (ancestor for start in runs for ancestor in ancestors(start)):
        checkpoint = newest_checkpoint(run).resolve()
        if checkpoint in looked:
            continue
        looked.add(checkpoint)
        reading = open_reading(run)
        steps: dict[str, set[int]] = {}
        for source, folder in enumerate(reading.folders):
            for number, shard in enumerate(folder.shards):
                table = pq.read_table(folder.path / shard.path.replace(".npy", ".docs.parquet"))
                for row in table.select(["id", "start", "end"]).to_pylist():
                    if row["id"] in wanted:
                        read = reading.steps(source, number, row["start"], row["end"])
                        steps.setdefault(row["id"], set()).update(read)
        for identity, read_at in steps.items():
            if read_at:
                out.setdefault(identity, []).append({"run": str(run), "steps": sorted(read_at)})
    return out
