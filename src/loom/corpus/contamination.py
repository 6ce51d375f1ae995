"""Decontamination as Paloma does it, and by n-grams: attributes that mark what evaluation sets share.

Paloma: paragraphs (lines) of 13 or more words that are not punctuation alone are looked for as they are; a
document with one of them goes. They are held in a Bloom filter over 128-bit fingerprints, sized as Dolma sizes
Paloma's: one false hit in 1e15 paragraphs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from loom.artifact import Artifact, Input, commit, digest_file, discard, finished
from loom.corpus import attributes, decontaminate, documents, remote, tag
from loom.corpus.attributes import Spans, gathered
from loom.corpus.batch import utf8
from loom.corpus.documents import find_files
from loom.corpus.words import count_words
from loom.engine import Done, Engine, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import Rejected

FEWEST_WORDS = 13  # a paragraph of fewer is common property


@dataclass(frozen=True)
class Decontaminate:
    """Documents to search, evaluation texts to search for, how, and the share of hits that is too much."""

    documents: tuple[str, ...]
    against: tuple[str, ...]
    mode: Literal["paloma", "ngram"] = "paloma"
    name: str = "decontamination"
    field: str = "text"
    ngram: int = 8
    shortest: int = 5
    most_removed: float = 0.001  # Paloma's rule: above this share use a smaller evaluation set
    false_positives: float = 1e-15  # of the filter of paragraphs

    def __post_init__(self) -> None:
        if not 0 < self.false_positives < 1 or not 0 <= self.most_removed <= 1:
            raise ValueError("false_positives and most_removed are shares, from 0 to 1")


def run(recipe: Decontaminate, out: Path | None = None, engine: Engine | None = None) -> Artifact:
    """Write `attributes/<name>/` with the spans that evaluation texts share with each document.

    Raises `LoomError` if no evaluation text can be searched for, or more documents are hit than
    `most_removed` allows (the attributes are not published then).
    """
    started = time.monotonic()
    files = tag.find(recipe.documents)
    against = find_files(recipe.against)
    root = (out or tag.root_of(files)) / "attributes" / recipe.name
    extra = tuple(Input(remote.place(path), _digest(path)) for path in against)
    inputs = [*(Input(remote.place(file.path), file.digest) for file in files), *extra]
    plain = to_plain(recipe)
    if (before := finished(root, "attributes", plain, inputs)) is not None:
        clear_work(root)
        return before
    discard(root, "attributes")
    settings = {**plain, "files": [str(path) for path in against]}
    searched = search_terms(settings)
    tasks = [
        Task(
            (Input(str(file.path), file.digest), *extra),
            (tag.sidecar_name(file, "jsonl"), f"{tag.REJECTED}/{file.stem}.jsonl"),
            {"path": str(file.path)},
        )
        for file in files
    ]
    operation = Operation("decontaminate", 3, _task, settings, _prepare, threads=True)
    done = (engine or LocalEngine()).run(operation, tasks, root, "decontaminate")
    counters: dict[str, Any] = sum_counters([item.counters for item in done])
    counters["searched_for"] = searched[1]
    share = counters["contaminated"] / max(counters["documents"], 1)
    if share > recipe.most_removed:
        raise LoomError(
            f"{counters['contaminated']:,} of {counters['documents']:,} documents ({share:.3%}) hold "
            f"evaluation text, more than most_removed ({recipe.most_removed:.3%}). Either these documents are that set "
            f"itself, or it is too common a text: search for a smaller one, or raise --most-removed."
        )
    artifact = commit(
        root,
        "attributes",
        recipe=plain,
        inputs=inputs,
        outputs=tag.kept(done, root),
        counters=counters,
        started=started,
    )
    clear_work(root)
    return artifact


def _digest(path: Path) -> str:
    """Of a file's content here, of its store's version elsewhere."""
    url = remote.address(path)
    return digest_file(path) if url is None else remote.identity(url)[1]


def search_terms(settings: Mapping[str, Any]) -> tuple[Any, int]:
    """What to search for, and how many paragraphs or texts that is. None at all is an error."""
    texts = [
        text
        for path in settings["files"]
        for text in decontaminate.read_texts(
            decontaminate.Questions(path, settings["field"], settings["ngram"], settings["shortest"])
        )
    ]
    if settings["mode"] == "ngram":
        held = decontaminate.hold(texts, settings["ngram"], settings["shortest"])
        return held, held.texts - held.unusable
    prints = paragraph_prints(texts)
    if prints.shape[0] == 0:
        raise LoomError(
            f"No paragraph of the {len(texts):,} evaluation texts has {FEWEST_WORDS} words, so nothing could "
            f"match. For short questions use --mode ngram."
        )
    return fill(prints, settings["false_positives"]), prints.shape[0]


def paragraph_prints(texts: list[str]) -> Any:
    """Distinct fingerprints of paragraphs that are long enough and not punctuation alone, uint64[m, 2]."""
    from loom.corpus.kernels import fingerprints

    kept = {
        line
        for text in texts
        for line in text.split("\n")
        if len(line) > FEWEST_WORDS and any(map(str.isalnum, line)) and count_words(line) >= FEWEST_WORDS
    }
    column = pa.chunked_array([pa.array(sorted(kept), pa.large_string())])
    return np.unique(fingerprints.documents(*utf8(column)), axis=0)


def _prepare(settings: Mapping[str, Any]) -> Any:
    found, _ = search_terms(settings)
    return (
        partial(decontaminate.find, found) if settings["mode"] == "ngram" else partial(find_paragraphs, found)
    )


@dataclass(frozen=True)
class Filter:
    """A Bloom filter of fingerprints: its bits, uint64[words], and how many an entry sets."""

    bits: Any
    hashes: int


def fill(prints: Any, false_positives: float) -> Filter:
    """A filter that holds `prints`, uint64[m, 2], and takes others for one of them at that rate."""
    from loom.corpus.kernels.bloom import consume, hashes_for, size_for

    size = size_for(prints.shape[0], false_positives)
    made = Filter(np.zeros(size // 8, np.uint64), hashes_for(size, prints.shape[0]))
    consume(np.ascontiguousarray(prints), made.bits, made.hashes, False, 0, 1)
    return made


def find_paragraphs(held: Filter, data: Any, offsets: Any) -> Spans:
    """Lines of each document that are in the filter."""
    from loom.corpus.kernels.bloom import consume, dolma_lines
    from loom.corpus.kernels.fingerprints import ranges

    spans, where = dolma_lines(data, offsets, True, FEWEST_WORDS, False)
    hit = consume(ranges(data, where), held.bits, held.hashes, True, 0, 1)
    return gathered(offsets.size - 1, spans[hit, 0], spans[hit, 1], spans[hit, 2])


def _task(find: Any, task: Task, out: Path) -> Done:
    name = out.name
    found = []
    counters = {"documents": 0, "rejected": 0, "contaminated": 0, "spans": 0}
    rejected: list[Rejected] = []
    for batch in documents.read(Path(task.parameters["path"])):
        spans = find(*batch.utf8())
        found.append((batch.ids, batch.table.column("source").to_pylist(), {name: spans}))
        rejected += batch.rejected
        counters["documents"] += len(batch)
        counters["contaminated"] += int((np.diff(spans.offsets) > 0).sum())
        counters["spans"] += spans.starts.size
    rows = attributes.write_jsonl(out / task.outputs[0], found)
    with documents.write_lines(out / task.outputs[1]) as stream:
        stream.writelines(item.json() + b"\n" for item in rejected)
    counters["rejected"] = len(rejected)
    return Done({task.outputs[0]: rows, task.outputs[1]: len(rejected)}, counters)
