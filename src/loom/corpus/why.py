"""What happened to one document in a curation, found through the index of ids that the run wrote.

A look-up opens one partition of the index, then the document's own file, its sidecars and its output: what
it costs does not depend on the size of the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import MANIFEST, Artifact, load
from loom.corpus import attributes, documents, expression, ids
from loom.corpus.attributes import Spans, key_name
from loom.corpus.batch import as_rows
from loom.corpus.documents import read_lines
from loom.corpus.rules import Curate, replaced, resolved, source_files
from loom.corpus.sampling import keyed_hash
from loom.corpus.tag import File
from loom.errors import LoomError
from loom.recipe import build

SHOWN = 160  # characters of a changed span


def why(identity: str, folder: Path) -> dict[str, Any]:
    """The fate of a document: its verdict in a sentence, each rule with its values, the spans changed.

    `folder` is what `loom curate`, `loom mix` or `loom tokenize` wrote. From a mixture or tokens it goes back
    to the curation, or the run of Dolma's mixer, they were made from: `later` says what they did with it.
    Raises `LoomError` for another folder and for an id that was never in it.
    """
    later: list[str] = []
    curated: Path | None = folder
    while curated is not None:
        artifact = load(curated)
        recipe = artifact.recipe if isinstance(artifact.recipe, Mapping) else {}
        if artifact.kind == "documents" and "rules" in recipe:
            found = _curation(identity, artifact)
            return {**found, "later": [*found["later"], *later[::-1]]}
        if artifact.kind == "documents" and "streams" in recipe:
            from loom.corpus.dolma.fate import fate

            found = fate(identity, artifact)
            return {**found, "later": [*found["later"], *later[::-1]]}
        if artifact.kind == "tokens":
            later.append(_among_tokens(identity, artifact))
        elif artifact.kind == "documents" and "most_copies" in recipe:
            later.append(_in_mixture(identity, artifact))
        elif not later:
            raise LoomError(
                f"{curated} was not written by `loom curate`, `loom mix` or `loom tokenize`, so it knows "
                f"nothing of one document's fate. Name one of their folders."
            )
        curated = _made_from(artifact)
    return {
        "id": identity, "source": None, "file": None, "row": None, "kept": None, "verdict": later[-1],
        "removed_by": None, "survivor": None, "rules": [], "spans": [], "later": later[-2::-1],
    }  # fmt: skip


def _made_from(artifact: Artifact) -> Path | None:
    """The folder of documents that an artifact was made from, where there is one."""
    for item in artifact.inputs:
        path = Path(os.path.normpath(artifact.path / item.path))
        if (path / MANIFEST).is_file() and load(path).kind == "documents":
            return path
    return None


def _among_tokens(identity: str, artifact: Artifact) -> str:
    from loom.tokens.lookup import find_document

    places = find_document(artifact, identity)
    if not places:
        return f"Not among the tokens in {artifact.path}: it was no input of theirs, or empty."
    said = [
        f"tokens {place.start:,} to {place.end:,} of {'heldout/' if place.held_out else ''}{place.shard}"
        for place in places
    ]
    return f"In {artifact.path}: {'; '.join(said)}."


def _in_mixture(identity: str, artifact: Artifact) -> str:
    from loom.corpus import sample

    recipe = build(artifact.recipe, sample.Sample, str(artifact.path))
    files = sample.input_files(recipe, artifact.path)
    for number, row in ids.places(identity, artifact):
        name, file = files[number]
        if _row(file, row, identity)[1]["id"] != identity:
            continue
        cut = artifact.counters["sources"][name]["cut"]
        limit = int(cut["below"], 16)
        hashed = keyed_hash(identity, recipe.seed)
        copies = sample.Cut(cut["whole"], limit).copies(hashed)
        where = f"its hash is {hashed:016x}, and {name!r} was taken below {limit:016x}"
        if not copies:
            return f"Not drawn into {artifact.path}: {where}."
        return f"Drawn into {artifact.path} {copies} time{'s' if copies > 1 else ''}: {where}."
    return f"No input of the mixture {artifact.path}."


def _curation(identity: str, artifact: Artifact) -> dict[str, Any]:
    """The fate of the document of this id, of several the one that stayed; the others are told of in `later`."""
    recipe = resolved(build(artifact.recipe, Curate, str(artifact.path)))
    files = source_files(recipe, at=artifact.path)
    flat = [(name, file) for name, found in files.items() for file in found]
    rows: dict[int, list[int]] = {}
    for number, row in every(identity, artifact, [file for _, file in flat]):
        rows.setdefault(number, []).append(row)
    fates = [
        fate
        for number, here in rows.items()
        for fate in _fates(identity, artifact.path, recipe, *flat[number], here)
    ]
    fates.sort(key=lambda fate: not fate["kept"])
    also = [
        f"The same id in {fate['source']!r}, {fate['file']} row {fate['row']:,}: {fate['verdict']}"
        for fate in fates[1:]
    ]
    return {"id": identity, **fates[0], "later": also}


def _fates(
    identity: str, curated: Path, recipe: Curate, source: str, file: File, rows: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """What became of a file's rows of one id: what was removed lies in the file's order, and at most one stayed,
    the first that no rule speaks against."""
    rules = recipe.rules[recipe.sources[source].rules]
    removed = _lookup(curated / "removed", file, identity)
    stayed = next(_lookup(curated / "documents", file, identity), None)
    for place in rows:
        number, row = _row(file, place, identity)
        columns, spans = _columns(curated, file, rules.taggers, place, row["text"])
        judged = [_judge(rule, text, columns, spans) for rule, text in rules.remove.items()]
        kept = None if any(rule["matched"] for rule in judged) else stayed
        stayed = stayed if kept is None else None
        gone = next(removed, None) if kept is None else None
        changed = [] if gone else _changed(row["text"], (kept or {}).get("text", ""))
        yield {
            "source": source,
            "file": str(file.path),
            "row": number,
            "kept": kept is not None,
            "verdict": _verdict(gone, kept, row["text"]),
            "removed_by": (gone or {}).get("removed", {}).get("rule"),
            "survivor": (gone or {}).get("removed", {}).get("survivor"),
            "rules": judged,
            "spans": [
                {**item, "text": row["text"][item["start"] : item["end"]][:SHOWN]}
                for item in _named(changed, rules.replace, spans)
            ],
        }


def _verdict(removed: Mapping[str, Any] | None, kept: Mapping[str, Any] | None, text: str) -> str:
    if removed is not None:
        fate = removed["removed"]
        copy = f"; the copy that stayed is {fate['survivor']}" if "survivor" in fate else ""
        return f"Removed by the rule {fate['rule']!r}{copy}."
    if kept is None:
        return "Removed; which rule did it was not kept (keep_removed was false)."
    same = kept["text"] == text
    return "Kept as it is." if same else f"Kept, with {len(text):,} characters become {len(kept['text']):,}."


def find(identity: str, artifact: Artifact, files: Sequence[File]) -> tuple[int, int]:
    """(file, row from 0) of a document, of several of its id the first."""
    return every(identity, artifact, files)[0]


def every(identity: str, artifact: Artifact, files: Sequence[File]) -> list[tuple[int, int]]:
    """(file, row from 0) of every document of that id, in input order, through the index; none is an error."""
    found = sorted(
        (file, row)
        for file, row in ids.places(identity, artifact)
        if _row(files[file], row, identity)[1]["id"] == identity
    )
    if not found:
        raise LoomError(
            f"No document {identity!r} went into {artifact.path}. Ids look like {_example(files)!r}."
        )
    return found


def _example(files: Sequence[File]) -> str:
    for batch in documents.read(files[0].path):
        return batch.ids[0] if len(batch) else ""
    return ""


def _row(file: File, row: int, identity: str) -> tuple[int, dict[str, Any]]:
    seen = 0
    for batch in documents.read(file.path):
        if row < seen + len(batch):
            at = row - seen
            found = next(as_rows(type(batch)(batch.table.slice(at, 1), batch.lines[at : at + 1])))
            return int(batch.lines[at]), found
        seen += len(batch)
    raise LoomError(
        f"{file.path} changed since it was curated: {identity!r} is no longer in row {row + 1:,}."
    )


def _columns(
    curated: Path, file: File, taggers: Sequence[str], row: int, text: str
) -> tuple[expression.Columns, dict[str, Spans]]:
    spans: dict[tuple[str, str], Spans] = {}
    for tagger in taggers:
        seen = 0
        prefix = key_name(tagger, tagger, "")
        for names, found in attributes.read(curated / "attributes" / tagger / f"{file.stem}.parquet"):
            if row < seen + len(names):
                for key, value in found.items():
                    spans[tagger, key.removeprefix(prefix)] = attributes.from_lists([value.of(row - seen)])
                break
            seen += len(names)
    sizes = np.array([len(text)]), np.array([len(text.encode())])
    columns = expression.Columns(spans, *sizes)
    return columns, {f"{tagger}.{key}": value for (tagger, key), value in spans.items()}


def _judge(rule: str, text: str, columns: expression.Columns, spans: Mapping[str, Spans]) -> dict[str, Any]:
    parsed = expression.parse(text)
    values = []
    for tagger, key in parsed.names:
        found = spans[f"{tagger}.{key}"].of(0) or []
        shown = f"{found[0][2]:.5g}" if len(found) == 1 else f"{len(found)} spans"
        values.append(f"{key} = {shown}")
    matched = bool(parsed(columns)[0])
    return {"rule": rule, "expression": text, "matched": matched, "values": ", ".join(values)}


def _lookup(folder: Path, file: File, identity: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{file.stem}.jsonl.zst"
    needle = orjson.dumps(identity)
    for line in read_lines(path) if path.exists() else ():
        if needle in line:
            row: dict[str, Any] = orjson.loads(line)
            if row["id"] == identity:
                yield row


def _changed(before: str, after: str) -> list[tuple[int, int]]:
    """Ranges of `before` that are not in `after`, line by line, then by the characters that differ."""
    import difflib

    if before == after:
        return []
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    starts = np.concatenate([[0], np.cumsum([len(line) for line in old])]).astype(int).tolist()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [(starts[a], starts[b]) for tag, a, b, _, _ in matcher.get_opcodes() if tag != "equal" and b > a]


def _named(
    changed: Sequence[tuple[int, int]], replace: Mapping[str, str], spans: Mapping[str, Spans]
) -> list[dict[str, Any]]:
    """Masked spans by their attribute; what else is gone was cut."""
    found = []
    masked = [
        (key, start, end)
        for tagger, key, least in map(replaced, replace)
        if f"{tagger}.{key}" in spans
        for start, end, score in spans[f"{tagger}.{key}"].of(0) or []
        if score >= least
    ]
    for low, high in changed:
        inside = [(kind, start, end) for kind, start, end in masked if start < high and end > low]
        found += [{"kind": f"masked: {kind}", "start": start, "end": end} for kind, start, end in inside]
        if not inside:
            found.append({"kind": "cut: duplicate or held-out text", "start": low, "end": high})
    return [dict(item) for item in {tuple(item.items()): item for item in found}.values()]


def marked(identity: str, curated: Artifact) -> dict[str, Any]:
    """A document as it came in and every attribute it has: {"text", "values", "spans"}.

    `values` are the scores of attributes of the whole document, `spans` by attribute [start, end, score]
    in code points. Raises `LoomError` for an id that never went into the curation.
    """
    recipe = build(curated.recipe, Curate, str(curated.path))
    files = source_files(recipe, at=curated.path)
    flat = [(name, file) for name, found in files.items() for file in found]
    place = find(identity, curated, [file for _, file in flat])
    source, file = flat[place[0]]
    text = _row(file, place[1], identity)[1]["text"]
    rules = recipe.rules[recipe.sources[source].rules]
    _, columns = _columns(curated.path, file, rules.taggers, place[1], text)
    values, spans = {}, {}
    for key, column in columns.items():
        found = column.of(0) or []
        if len(found) == 1 and found[0][0] == 0 and found[0][1] == len(text):
            values[key] = found[0][2]
        elif found:
            spans[key] = found
    return {"text": text, "values": values, "spans": spans}
