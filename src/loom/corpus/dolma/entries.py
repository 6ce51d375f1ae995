"""What Dolma's deduper looks at in a document, as fingerprints: a key of it, its paragraphs, their n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loom.corpus import attributes, documents
from loom.corpus.batch import Batch, as_rows, utf8
from loom.corpus.dedupe import exact
from loom.corpus.documents import write_lines
from loom.corpus.dolma import config
from loom.corpus.dolma.jsonpath import compile_path
from loom.corpus.dolma.ngrams import paragraph_ngrams
from loom.corpus.words import count_words
from loom.engine import Done, Task
from loom.tokens.documents import Rejected

BATCH = 1 << 23  # text taken up at a time: what stays in the processor's cache
FIRST, AGAIN, SKIPPED = 0, 1, 2


def print_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Save a file's fingerprints, spans and ids; rows that are no documents go to the second output."""
    from loom.recipe import build

    rules = build(settings["dedupe"], config.Dedupe, "dedupe")
    compat = bool(settings["compat"])
    made: dict[str, list[Any]] = {
        "prints": [np.zeros((0, 2), np.uint64)],
        "spans": [np.zeros((0, 2), np.int32)],
        "owners": [np.zeros((0, 2), np.int64)],
        "skipped": [np.zeros(0, np.int8)],
        "per_row": [np.zeros(0, np.int64)],
        "id_bytes": [np.zeros(0, np.uint8)],
        "id_sizes": [np.zeros(0, np.int64)],
    }
    keyed = looked = rows = paragraphs = 0
    rejected: list[Rejected] = []
    for batch in documents.read(Path(task.parameters["path"]), BATCH):
        rejected += batch.rejected
        every = np.arange(len(batch))
        skipped = np.diff(batch.utf8()[1]) == 0
        if rules.documents is not None:
            prints, lengths, skipped, present = _document_prints(batch, rules, compat)
            keyed += present
            looked += int((skipped == FIRST).sum())
            spans = np.stack([every, np.zeros(len(batch), int), lengths], axis=1)
        elif by_ngram(rules):
            prints, owners, spans = paragraph_ngrams(batch, rules, compat)
            owners[:, 0] += paragraphs
            paragraphs += spans.shape[0]
            made["owners"].append(owners)
        else:
            prints, spans = _paragraph_prints(batch, rules, compat)
        made["prints"].append(prints)
        made["spans"].append(spans[:, 1:].astype(np.int32))
        made["per_row"].append(np.bincount(spans[:, 0], minlength=len(batch)))
        made["skipped"].append(skipped.astype(np.int8))
        data, offsets = attributes.text_of(batch.table.column("id"))
        made["id_bytes"].append(data[offsets[0] : offsets[-1]])
        made["id_sizes"].append(np.diff(offsets))
        rows += len(batch)
    held = {name: np.concatenate(parts) for name, parts in made.items()}
    for name, sizes in (("firsts", "per_row"), ("id_offsets", "id_sizes")):
        held[name] = np.concatenate([[0], np.cumsum(held.pop(sizes))]).astype(np.int64)
    looked = looked if rules.documents is not None else len(held["prints"])
    if settings["exact"]:
        held |= exact.spread("prints", held["prints"])  # so that a partition is a range of them
    exact.save_arrays(out / task.outputs[0], held, durable=not settings["since"])
    with write_lines(out / task.outputs[1]) as stream:
        stream.writelines(item.json() + b"\n" for item in rejected)
    counters = {"documents": rows, "keyed": keyed, "looked": looked, "rejected": len(rejected)}
    return Done({task.outputs[0]: rows, task.outputs[1]: len(rejected)}, counters)


def by_ngram(rules: config.Dedupe) -> config.Ngrams | None:
    """The n-gram rule, where there is one."""
    chosen = rules.paragraphs.by_ngram if rules.paragraphs is not None else None
    return chosen if chosen is not None and chosen.ngram_length else None


def _document_prints(batch: Batch, rules: config.Dedupe, compat: bool) -> tuple[Any, Any, Any, int]:
    from loom.corpus.kernels import fingerprints

    assert rules.documents is not None
    keys: list[str | None] = (
        list(batch.texts())
        if rules.documents.key == "$.text"
        else [_key(row, rules.documents.key) for row in as_rows(batch)]
    )
    column = pa.chunked_array([pa.array([key or "" for key in keys], pa.large_string())])
    prints = fingerprints.documents(*utf8(column))
    lengths = [len((key or "").encode()) if compat else len(key or "") for key in keys]
    state = np.array([_state(key, rules, compat) for key in keys], np.int8)
    return prints, np.array(lengths, np.int64), state, sum(key is not None for key in keys)


def _key(row: dict[str, Any], path: str) -> str | None:
    found = compile_path(path).find(row)
    return found[0] if found and isinstance(found[0], str) else None


def _state(key: str | None, rules: config.Dedupe, compat: bool) -> int:
    """FIRST for a key to look at, SKIPPED for one that is left out (Dolma writes an empty list)."""
    if key is None:
        return SKIPPED
    if rules.min_words:
        few = count_words(key) < rules.min_words
        return SKIPPED if few else (AGAIN if compat else FIRST)  # Dolma forgets to look at the others
    if len(key.encode()) < (rules.min_length or 0) or (rules.skip_empty and not key.strip()):
        return SKIPPED
    return FIRST


def _paragraph_prints(batch: Batch, rules: config.Dedupe, compat: bool) -> tuple[Any, Any]:
    from loom.corpus.kernels.bloom import dolma_lines
    from loom.corpus.kernels.fingerprints import ranges

    assert rules.paragraphs is not None
    data, offsets = batch.utf8()
    spans, where = dolma_lines(data, offsets, bool(rules.skip_empty), rules.min_length or 0, compat)
    if rules.min_words:
        enough = [
            count_words(data[low:high].tobytes().decode()) >= rules.min_words and not compat
            for low, high in where.tolist()
        ]
        spans, where = spans[enough], where[enough]
    return ranges(data, where), spans
