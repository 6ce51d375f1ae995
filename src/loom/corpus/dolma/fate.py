"""What Dolma's mixer did with one document, worked out again from the recipe and the inputs it names.

The mixer writes no index of ids: the document is looked for in the inputs from the first file on, which costs
what reading them costs, and judged by the rules that judged it then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loom.artifact import Artifact
from loom.corpus import remote
from loom.corpus.documents import find_files, read_blocks
from loom.corpus.dolma import columns, config, joining, mixing, names, places
from loom.errors import LoomError
from loom.recipe import build

SHOWN = 160  # characters of a changed span
Row = dict[str, Any]


def fate(identity: str, artifact: Artifact) -> dict[str, Any]:
    """The fate of a document in what `loom mix -c` wrote, in the form of `why.why`; other streams in `later`.

    Raises `LoomError` for an id that no stream read, and for inputs that changed since or are gone.
    """
    recipe: Any = artifact.recipe
    streams = [build(item, config.Stream, str(artifact.path)) for item in recipe["streams"]]
    found = [
        _judged(stream, recipe["compat"], path, number, row)
        for stream in streams
        for path, number, row in _found(identity, stream, recipe["compat"], artifact)
    ]
    if not found:
        raise LoomError(f"No document {identity!r} went into {artifact.path}.")
    found.sort(key=lambda item: not item["kept"])
    said = [
        f"In the stream {item['stream']!r}, {item['file']} row {item['row']}: {item['verdict']}"
        for item in found
    ]
    first = {key: value for key, value in found[0].items() if key != "stream"}
    return {"id": identity, **first, "survivor": None, "later": said[1:]}


def _found(
    identity: str, stream: config.Stream, compat: str, artifact: Artifact
) -> Iterator[tuple[Path, int, Row]]:
    """A stream's rows of that id, with their attributes."""
    held = {item.path: item.digest for item in artifact.inputs}
    spelt = {identity, json.dumps(identity)[1:-1], identity.replace("/", "\\/")}
    needles = [text.encode() for text in spelt]
    beside = places.Sidecars()
    for path in find_files(stream.documents):
        sidecars = [beside.of(path, name) for name in stream.attributes]
        for item in (path, *sidecars):
            if held.get(remote.place(item)) != places.identity(item):
                raise LoomError(
                    f"{remote.address(item) or item} is not what went into {artifact.path}: it changed since. "
                    f"Mix it again."
                )
        if not path.name.endswith(".parquet") and not any(
            needle in block for block in read_blocks(path, columns.BLOCK) for needle in needles
        ):
            continue
        rows = joining.joined(path, [str(item) for item in sidecars], bool(compat), lambda item: None)
        yield from ((path, number, row) for number, row in rows if str(row["id"]) == identity)


def _judged(stream: config.Stream, compat: str, path: Path, number: int, row: Row) -> dict[str, Any]:
    rules = mixing.Mixing(stream, compat)
    removed_by = rules.removed_by(row)
    before = row["text"]
    spans = [] if removed_by is not None else sorted(rules.spans_of(row))
    after, _ = rules.edited(row)
    least = stream.output.min_text_length or 0
    left = len(after.strip().encode())
    if removed_by == mixing.NOT_INCLUDED:
        verdict = "Removed: no `include` expression matches it."
    elif removed_by is not None:
        verdict = f"Removed by the `exclude` expression {removed_by!r}."
    elif left < least:
        removed_by = "min_text_length"
        verdict = f"Removed: {left:,} bytes of text are left, and min_text_length is {least:,}."
    elif after == before:
        verdict = "Kept as it is."
    else:
        verdict = f"Kept, with {len(before):,} characters become {len(after):,}."
    return {
        "stream": stream.name,
        "source": row.get("source") or stream.name,
        "file": remote.address(path) or str(path),
        "row": number,
        "kept": removed_by is None,
        "verdict": verdict,
        "removed_by": removed_by,
        "rules": list(_rules(stream.filter, bool(compat), row, removed_by == mixing.NOT_INCLUDED)),
        "spans": [
            {
                "kind": f"replaced by {by!r}" if by else "cut",
                "start": start,
                "end": end,
                "text": before[start:end][:SHOWN],
            }
            for start, end, by in spans
        ],
    }


def _rules(
    chosen: config.Filter | None, as_is: bool, row: Row, not_included: bool
) -> Iterator[dict[str, Any]]:
    """Every expression, whether it removes the row, and the values that it read."""
    if chosen is None:
        return
    for kind, texts in (("include", chosen.include), ("exclude", chosen.exclude)):
        for text in texts:
            alone = replace(chosen, include=(), exclude=(text,))
            matched = mixing.judge(alone, mended=not as_is)(row) is not None
            read = names.read_by(text if as_is else names.mend(text), chosen.syntax)
            held = row.get("attributes")
            values = ", ".join(
                f"{name} = {_shown(held if isinstance(held, dict) else {}, name)}"
                for name in dict.fromkeys(read)
            )
            removes = not_included if kind == "include" else matched
            yield {"rule": kind, "expression": text, "matched": removes, "values": values}


def _shown(attributes: Mapping[str, Any], name: str) -> str:
    if name not in attributes:
        return "not there"
    value = attributes[name]
    if not isinstance(value, list) or any(not isinstance(span, list) or len(span) != 3 for span in value):
        return json.dumps(value)[:SHOWN]
    return f"{value[0][2]:.5g}" if len(value) == 1 else f"{len(value)} spans"
