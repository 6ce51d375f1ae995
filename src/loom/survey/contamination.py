"""Evaluation sets in the corpus: rows whose whole input stands in one document, and n-grams shared.

A row's input is the fields of `INPUTS` for a task named there, by the file's name, else every string in
it but labels and ids. It counts as contained where one document holds
each of its fields, word for word, case and punctuation apart (Elazar et al. 2024, "What's In My Big
Data?", section 4.4.1, which asks a search engine for the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loom.errors import LoomError
from loom.survey import kernels
from loom.survey.analysis import Chunk, Places, find_words, shown, word_set
from loom.survey.sketches import First, Flags, Partial
from loom.tasks.data import read_rows

NOT_INPUT = word_set(
    """
    id idx ind index doc_id uid label labels answer answerkey answer_key gold target source subject
    support category type split url name version
    """
)
# The fields that a question is asked with, of rows that hold other text too.
INPUTS = {
    "arc_challenge": ("question", "choices"),
    "arc_easy": ("question", "choices"),
    "boolq": ("passage", "question"),
    "commonsense_qa": ("question", "choices"),
    "copa": ("premise", "choice1", "choice2"),
    "csqa": ("question", "choices"),
    "gsm8k": ("question",),
    "hellaswag": ("ctx", "endings"),
    "mmlu": ("question", "choices"),
    "openbookqa": ("question_stem", "choices"),
    "piqa": ("goal", "sol1", "sol2"),
    "rte": ("sentence1", "sentence2"),
    "sciq": ("question", "distractor1", "distractor2", "distractor3", "correct_answer"),
    "siqa": ("context", "question", "answerA", "answerB", "answerC"),
    "social_iqa": ("context", "question", "answerA", "answerB", "answerC"),
    "sst2": ("sentence",),
    "winogrande": ("sentence", "option1", "option2"),
}
ANCHOR = 8  # words by which a field is looked for
OVERLAP = 8  # words of the n-grams whose share is told
EXAMPLES = 5
ROOM = 1 << 16


def fields(row: Any) -> Iterator[str]:
    """The input of a row: its strings, lists and objects within included."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, Mapping):
        for key, value in row.items():
            if str(key).lower() not in NOT_INPUT:
                yield from fields(value)
    elif isinstance(row, list | tuple):
        for value in row:
            yield from fields(value)


def inputs(row: Any, task: str) -> Iterator[str]:
    """The input of a row of a task: its named fields where the row has them, else as `fields` finds it."""
    named = INPUTS.get(task, ())
    if named and isinstance(row, Mapping) and all(name in row for name in named):
        row = {name: row[name] for name in named}
    return fields(row)


def hash_words(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The words of a text as the corpus's are hashed, ASCII capitals as small letters."""
    data = np.frombuffer(text.encode(), np.uint8)
    return find_words(data, np.array([0, len(data)], np.int64), True).hashes


class Questions:
    """The rows of one file: their fields as word hashes, the longest of each as its anchor."""

    def __init__(self, path: Path) -> None:
        self.name = path.name.split(".")[0]
        self.rows = [
            [hashed for text in inputs(row, self.name) if len(hashed := hash_words(text))]
            for row in read_rows(path)
        ]
        if not any(self.rows):
            raise LoomError(f"{path} holds no row with text: contamination needs the questions as strings.")

    @cached_property
    def grams(self) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
        """Each row's n-grams of `OVERLAP` words, field by field."""
        return [
            np.array(
                [
                    kernels.gram_hash(field, at, OVERLAP)
                    for field in row
                    for at in range(len(field) - OVERLAP + 1)
                ],
                np.uint64,
            )
            for row in self.rows
        ]


class Contamination:
    """For each evaluation file: rows that a document contains, and the share of their 8-grams seen."""

    name, title = "contamination", "Evaluation sets in the corpus"

    def __init__(self, files: Sequence[str] = ()) -> None:
        self.files = tuple(files)

    @cached_property
    def sets(self) -> list[Questions]:
        return [Questions(Path(file)) for file in self.files]

    @cached_property
    def _owners(self) -> list[tuple[int, int]]:
        """(set, row) of every anchor."""
        return [(s, r) for s, item in enumerate(self.sets) for r, row in enumerate(item.rows) if row]

    @cached_property
    def _anchors(self) -> tuple[Any, ...]:
        """Arguments of `phrase_hits`: the anchors as sorted hashes, and the phrases themselves."""
        phrases = [max(self.sets[s].rows[r], key=len) for s, r in self._owners]
        heads = np.concatenate(([0], np.cumsum([len(phrase) for phrase in phrases]))).astype(np.int64)
        known = np.array(
            [kernels.gram_hash(phrase, 0, min(len(phrase), ANCHOR)) for phrase in phrases], np.uint64
        )
        lengths = np.array(sorted({min(len(phrase), ANCHOR) for phrase in phrases} | {ANCHOR}), np.int64)
        order = np.argsort(known, kind="stable")
        return lengths, known[order], kernels.byte_filter(known), order, heads, np.concatenate(phrases)

    @cached_property
    def _grams(self) -> tuple[Any, Any]:
        every = [np.zeros(0, np.uint64), *(row for item in self.sets for row in item.grams)]
        known = np.unique(np.concatenate(every))
        return known, kernels.byte_filter(known)

    def start(self) -> Partial:
        if not self.files:
            return {}
        return {
            "contained": Flags(np.zeros(len(self._owners), np.uint8)),
            "grams": Flags(np.zeros(len(self._grams[0]), np.uint8)),
            **{f"examples:{item.name}": First(EXAMPLES) for item in self.sets},
        }

    def map(self, partial: Partial, chunk: Chunk) -> None:
        if not self.files:
            return
        contained, grams = partial["contained"], partial["grams"]
        assert isinstance(contained, Flags)
        assert isinstance(grams, Flags)
        words = chunk.lower_words
        known, sieve = self._grams
        kernels.mark_grams(words.hashes, words.bounds, OVERLAP, known, sieve, grams.seen)
        hits = np.empty((ROOM, 2), np.int64)
        lengths, starts, first_filter, order, heads, phrases = self._anchors
        while True:
            found = kernels.phrase_hits(
                words.hashes, words.bounds, lengths, starts, first_filter, order, heads, phrases, hits
            )
            if found <= len(hits):
                break
            hits = np.empty((found, 2), np.int64)
        for document, owner in sorted({(d, p) for d, p in hits[:found].tolist()}):
            number, row = self._owners[owner]
            held = words.hashes[words.bounds[document] : words.bounds[document + 1]]
            if all(_holds(held, field) for field in self.sets[number].rows[row]):
                contained.seen[owner] = 1
                first = partial[f"examples:{self.sets[number].name}"]
                assert isinstance(first, First)
                first.add(int(chunk.where[document]), row)

    def wanted(self, partial: Partial) -> Sequence[int]:
        return [
            entry[0]
            for part in partial.values()
            if isinstance(part, First)
            for entry in part.dump()["entries"]
        ]

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        if not self.files:
            return {"sets": [], "note": "no evaluation set was named: --eval FILE..."}
        contained, grams = partial["contained"], partial["grams"]
        assert isinstance(contained, Flags)
        assert isinstance(grams, Flags)
        known, _ = self._grams
        out = []
        for number, item in enumerate(self.sets):
            mine = [at for at, (owner, _) in enumerate(self._owners) if owner == number]
            ratios = [float(grams.seen[np.searchsorted(known, row)].mean()) for row in item.grams if len(row)]
            count = int(contained.seen[mine].sum())
            first = partial[f"examples:{item.name}"]
            assert isinstance(first, First)
            out.append(
                {
                    "name": item.name,
                    "rows": len(item.rows),
                    "contained": count,
                    "share": count / len(item.rows),
                    "mean_overlap": sum(ratios) / len(ratios) if ratios else 0.0,
                    "rows_half_overlapping": sum(ratio >= 0.5 for ratio in ratios),
                    "examples": [{"row": row} | shown(places, at) for at, row in first.dump()["entries"]],
                }
            )
        return {"sets": out, "ngram": OVERLAP}


def _holds(held: Any, field: Any) -> bool:
    """Whether `field` stands in `held`, both word hashes."""
    size = len(field)
    if len(held) < size:
        return False
    starts = np.flatnonzero(held[: len(held) - size + 1] == field[0])
    return any(np.array_equal(held[at : at + size], field) for at in starts)
