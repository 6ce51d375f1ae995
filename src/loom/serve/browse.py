"""The explorer's way through a corpus: artifacts, their files, a page of rows, one document and its marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from loom.artifact import MANIFEST, Artifact, Lineage, load
from loom.corpus.batch import as_rows
from loom.corpus.documents import SUFFIXES, read
from loom.corpus.why import marked, why
from loom.errors import LoomError

ROWS = 25  # on a page
FIRST_LINE = 140  # characters of a document on such a page
TEXT = 40_000  # characters of a document that are shown


class Corpora:
    """The artifacts of documents behind a run, the nearest to it first."""

    def __init__(self, node: Lineage) -> None:
        self.artifacts: tuple[Artifact, ...] = tuple(_documents(node, {}).values())

    @property
    def curated(self) -> Artifact | None:
        """The curation among them, which knows every document's fate."""
        rules = (
            item for item in self.artifacts if isinstance(item.recipe, Mapping) and "rules" in item.recipe
        )
        return next(rules, None)

    def listing(self, query: Mapping[str, str]) -> dict[str, Any]:
        """All artifacts; with `a` that one's files; with `file` too a page of its rows, from `from` on."""
        shown: dict[str, Any] = {
            "corpora": [{"path": str(item.path), "counters": _numbers(item)} for item in self.artifacts]
        }
        if "a" not in query:
            return shown
        artifact = self._artifact(query)
        shown |= {"number": query["a"], "files": _files(artifact), "name": None}
        if "file" not in query:
            return shown
        first = max(1, _whole(query.get("from", "1"), "row"))
        rows = _page(artifact.path / self._file(artifact, query), first)
        more = first + ROWS if len(rows) == ROWS else None
        return shown | {
            "name": query["file"],
            "rows": rows,
            "first": first,
            "before": first - ROWS,
            "more": more,
        }

    def look(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A document of a file, its fate in the curation, its text with an attribute's spans marked."""
        artifact = self._artifact(query)
        row = _whole(query.get("row", "1"), "row")
        found = next(iter(_page(artifact.path / self._file(artifact, query), row, 1)), None)
        if found is None:
            raise LoomError(f"{query['file']} has no row {row:,}.")
        shown: dict[str, Any] = {
            "document": found,
            "fate": None,
            "marks": [],
            "values": {},
            "chosen": "",
            "pieces": [],
        }
        shown["pieces"] = _marked(found["text"], [])
        if self.curated is None:
            return shown | {
                "unknown": "No curation lies behind this run, so this document has no fate to tell."
            }
        try:
            fate, known = why(found["id"], self.curated.path), marked(found["id"], self.curated)
        except LoomError as error:
            return shown | {"unknown": str(error)}
        chosen = query.get("mark", "")
        spans = [(name, start, end) for start, end, _ in known["spans"].get(chosen, ()) for name in [chosen]]
        if not chosen:
            spans = [(span["kind"], span["start"], span["end"]) for span in fate["spans"]]
        return shown | {
            "fate": fate,
            "marks": [(key, len(value)) for key, value in sorted(known["spans"].items())],
            "values": known["values"],
            "chosen": chosen,
            "pieces": _marked(known["text"], spans),
        }

    def _artifact(self, query: Mapping[str, str]) -> Artifact:
        number = _whole(query.get("a", "0"), "corpus")
        if number >= len(self.artifacts):
            raise LoomError(f"There is no corpus {number} behind this run; there are {len(self.artifacts)}.")
        return self.artifacts[number]

    def _file(self, artifact: Artifact, query: Mapping[str, str]) -> str:
        """A name of the manifest's own, so that no other file can be asked for."""
        name = query.get("file", "")
        if name not in [file["path"] for file in _files(artifact)]:
            raise LoomError(f"{artifact.path} has no file {name!r}.")
        return name


def _documents(node: Lineage, found: dict[Path, Artifact]) -> dict[Path, Artifact]:
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        if current.kind == "documents" and (current.path / MANIFEST).is_file():
            found.setdefault(current.path, load(current.path))
        waiting += current.parents
    return found


def _files(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {"path": output.path, "rows": output.rows, "bytes": output.bytes}
        for output in artifact.outputs
        if output.path.startswith(("documents/", "removed/")) and output.path.endswith(SUFFIXES)
    ]


def _numbers(artifact: Artifact) -> dict[str, int]:
    return {key: value for key, value in artifact.counters.items() if isinstance(value, int)}


def _page(path: Path, first: int, count: int = ROWS) -> list[dict[str, Any]]:
    """Up to `count` documents from row `first` of a file on."""
    rows: list[dict[str, Any]] = []
    for batch in read(path):
        if len(batch) and int(batch.lines[-1]) < first:
            continue
        for line, row in zip(batch.lines.tolist(), as_rows(batch), strict=True):
            if line >= first:
                line_one = next((part for part in row["text"].split("\n") if part.strip()), "")
                rows.append({**row, "row": line, "line": line_one[:FIRST_LINE]})
            if len(rows) == count:
                return rows
    return rows


def _marked(text: str, spans: Sequence[tuple[str, int, int]]) -> list[dict[str, str]]:
    """The text cut at the spans' ends: what each piece is marked as, empty where it is not."""
    text = text[:TEXT]
    edges = {0, len(text), *(min(at, len(text)) for _, start, end in spans for at in (start, end))}
    pieces = []
    for start, end in pairwise(sorted(edges)):
        names = dict.fromkeys(name for name, low, high in spans if low <= start and end <= high)
        pieces.append({"text": text[start:end], "marks": ", ".join(names)})
    return pieces


def _whole(text: str, what: str) -> int:
    if not text.isdecimal():
        raise LoomError(f"{text!r} is no {what}: write a whole number.")
    return int(text)
