"""Mixing: what becomes of a document's text once every rule has spoken.

Spans that overlap are merged before anything is replaced, so masked text never survives in part; the
merged span is replaced by what its first span asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.corpus import attributes, documents
from loom.corpus import ids as ids_index
from loom.corpus.attributes import Spans, key_name
from loom.corpus.batch import Batch, as_rows
from loom.corpus.decontaminate import Questions
from loom.corpus.dedupe import exact
from loom.corpus.documents import write_lines
from loom.corpus.rules import replaced
from loom.corpus.sampling import fraction
from loom.engine import Done, Task
from loom.errors import LoomError
from loom.recipe import nearest

NOT_SAMPLED, EMPTY = "not_sampled", "nothing_left"
DUPLICATE_ID, DUPLICATE_KEY, DUPLICATE_DOCUMENT = "duplicate_id", "duplicate_key", "duplicate_document"
NEAR_DUPLICATE = "near_duplicate"
DUPLICATE_PARAGRAPH, HELD_OUT = "duplicate_paragraph", "held_out"


@dataclass(frozen=True)
class Edit:
    """Replace `text[start:end]` (code points) by `replacement`; `kind` is what it is counted under."""

    start: int
    end: int
    replacement: str
    kind: str


def merge(edits: Iterable[Edit]) -> list[Edit]:
    """Edits by start, overlapping ones joined; of equal starts the longest speaks, then the first named."""
    merged: list[Edit] = []
    for edit in sorted(edits, key=lambda item: (item.start, -item.end)):
        if edit.end <= edit.start:
            continue
        if merged and edit.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Edit(last.start, max(last.end, edit.end), last.replacement, last.kind)
        else:
            merged.append(edit)
    return merged


def apply(text: str, merged: Sequence[Edit]) -> str:
    """`text` with every merged edit made."""
    parts = []
    at = 0
    for edit in merged:
        parts += [text[at : edit.start], edit.replacement]
        at = edit.end
    parts.append(text[at:])
    return "".join(parts)


def sidecar(out: Path, tagger: str, name: str, ids: Sequence[str]) -> dict[str, Spans]:
    """A tagger's spans by key for a whole file; rows that do not line up with `ids` are an error."""
    parts: dict[str, list[Spans]] = {}
    seen: list[str] = []
    prefix = key_name(tagger, tagger, "")
    for names, spans in attributes.read(out / name):
        seen += names
        for key, value in spans.items():
            parts.setdefault(key.removeprefix(prefix), []).append(value)
    if seen != list(ids):
        raise LoomError(
            f"{out / name} has {len(seen):,} rows that do not line up with the {len(ids):,} documents. "
            f"Remove it and run the same command again."
        )
    return {key: attributes.concatenate(values) for key, values in parts.items()}


@dataclass(frozen=True)
class Mixing:
    """What every file of a mix shares: the held-out texts, and the work files of the steps before."""

    held: Any
    judged: Sequence[str]
    duplicates: Mapping[str, Sequence[str]]  # by rule
    paragraphs: Sequence[str]


def prepare_mix(settings: Mapping[str, Any]) -> Mixing:
    from loom.corpus import decontaminate

    held = None
    if settings["questions"] is not None:
        questions = Questions(**settings["questions"])
        held = decontaminate.hold(decontaminate.read_texts(questions), questions.ngram, questions.shortest)
    return Mixing(held, settings["judged"], settings["duplicates"], settings["paragraphs"])


def mix_task(mixing: Mixing, task: Task, out: Path) -> Done:
    parameters = task.parameters
    batches = list(documents.read(Path(parameters["path"])))
    ids = [identity for batch in batches for identity in batch.ids]
    judged = exact.mapped(out / parameters["judged"])
    fate: list[str | None] = [None if v < 0 else parameters["rules"][v] for v in judged["verdict"].tolist()]
    survivors: dict[int, tuple[int, int]] = {}
    others = ids_index.Rows(out, mixing.judged)
    for reason, names in mixing.duplicates.items():
        for row, other, place in dead_rows(out, names, parameters["index"]).tolist():
            fate[row] = reason
            survivors[row] = (other, place)
    edits = _edits(mixing, parameters, batches, ids, judged, out)
    counters: dict[str, Any] = {
        "removed": {}, "removed_bytes": {}, "masked": {}, "cut": {}, "held_out_hits": 0,
        "documents_out": 0, "bytes_out": 0,
    }  # fmt: skip
    row = 0
    with (
        write_lines(out / task.outputs[0]) as kept,
        write_lines(out / task.outputs[1]) as removed,
    ):
        for batch in batches:
            for document in as_rows(batch):
                text = document["text"]
                rule = fate[row]
                if rule is None and row in edits:
                    merged = merge(edit for edit, _ in edits[row])
                    document["text"] = apply(text, merged)
                    if len(document["text"].strip()) < parameters["fewest_characters"]:
                        rule, document["text"] = EMPTY, text
                    else:
                        _count_edits(counters, edits[row])
                elif rule is None and len(text.strip()) < parameters["fewest_characters"]:
                    rule = EMPTY
                if rule is None:
                    for copy in range(copies(document["id"], parameters["share"], parameters["seed"])):
                        again = {"id": f"{document['id']}#{copy + 1}"} if copy else {}
                        kept.write(orjson.dumps({**document, **again}) + b"\n")
                        counters["documents_out"] += 1
                        counters["bytes_out"] += len(document["text"].encode())
                else:
                    size = len(text.encode())
                    counters["removed"][rule] = counters["removed"].get(rule, 0) + 1
                    counters["removed_bytes"][rule] = counters["removed_bytes"].get(rule, 0) + size
                    if parameters["keep_removed"]:
                        document["removed"] = {"rule": rule}
                        if row in survivors:
                            document["removed"]["survivor"] = others.at(*survivors[row])
                        removed.write(orjson.dumps(document) + b"\n")
                row += 1
    gone = sum(counters["removed"].values()) if parameters["keep_removed"] else 0
    return Done({task.outputs[0]: counters["documents_out"], task.outputs[1]: gone}, counters)


def copies(identity: str, share: float, seed: int) -> int:
    """How often a document is kept at a share above 1; below 1 the draw was made when it was judged."""
    if share <= 1:
        return 1
    return int(share) + (fraction(identity, seed) < share - int(share))


def _edits(
    mixing: Mixing,
    parameters: Mapping[str, Any],
    batches: Sequence[Batch],
    ids: Sequence[str],
    judged: Any,
    out: Path,
) -> dict[int, list[tuple[Edit, int]]]:
    """Edits by row, each with the number of matches it stands for."""
    edits: dict[int, list[tuple[Edit, int]]] = {}
    by_tagger = {t: sidecar(out, t, name, ids) for t, name in parameters["sidecars"].items()}
    for name, replacement in parameters["replace"].items():
        tagger, key, least = replaced(name)
        if ids and key not in by_tagger[tagger]:
            near = nearest(key, by_tagger[tagger])
            raise LoomError(
                f"replace reads {name!r}, but {tagger!r} writes {', '.join(by_tagger[tagger])}."
                + (f" Did you mean {tagger}.{near}?" if near else "")
            )
        if ids:
            spans = by_tagger[tagger][key]
            for row, start, end, score in zip(
                spans.rows().tolist(), spans.starts.tolist(), spans.ends.tolist(), spans.scores.tolist(),
                strict=True,
            ):  # fmt: skip
                if score >= least:
                    edits.setdefault(row, []).append((Edit(start, end, replacement, key), 1))
    for partition in mixing.paragraphs:
        table = exact.one(out / partition, f"{parameters['index']:08d}")
        if table is not None:
            for row, start, end in judged["spans"][table].tolist():
                edits.setdefault(row, []).append((Edit(start, end, "", DUPLICATE_PARAGRAPH), 1))
    if mixing.held is not None:
        from loom.corpus import decontaminate

        first = 0
        for batch in batches:
            spans = decontaminate.find(mixing.held, *batch.utf8())
            for row, start, end, score in zip(
                spans.rows().tolist(), spans.starts.tolist(), spans.ends.tolist(), spans.scores.tolist(),
                strict=True,
            ):  # fmt: skip
                edits.setdefault(first + row, []).append((Edit(start, end, "", HELD_OUT), int(score)))
            first += len(batch)
    return edits


def _count_edits(counters: dict[str, Any], edits: Sequence[tuple[Edit, int]]) -> None:
    for edit, matches in edits:
        kind = "masked" if edit.replacement else "cut"
        counters[kind][edit.kind] = counters[kind].get(edit.kind, 0) + 1
        if edit.kind == HELD_OUT:
            counters["held_out_hits"] += matches


def dead_rows(out: Path, names: Sequence[str], index: int) -> Any:
    """What earlier steps removed of a file: int64[d, 3], its row, and the file and row of the survivor."""
    tables = [exact.one(out / name, f"{index:08d}") for name in names]
    found = [table for table in tables if table is not None]
    return np.concatenate(found) if found else np.zeros((0, 3), np.int64)
