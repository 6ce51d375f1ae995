"""Evaluation sets in the corpus: rows whose whole input stands in one document, and n-grams shared.

A row's input is the fields of `INPUTS` for a task named there, by the file's name, else every string in
it but labels and ids. It counts as contained where one document holds
each of its fields, word for word, case and punctuation apart (Elazar et al. 2024, "What's In My Big
Data?", section 4.4.1, which asks a search engine for the same). A WinoGrande row counts as well where its
sentence stands with either option in the blank: so it reads where it was taken from a page.
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
from loom.tasks.data import SUFFIXES, read_rows

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
    "heldout": ("summary",),
    "heldout-pairs": ("prompt", "chosen", "rejected"),
    "mmlu": ("question", "choices"),
    "openbookqa": ("question_stem", "choices"),
    "piqa": ("goal", "sol1", "sol2"),
    "rte": ("sentence1", "sentence2"),
    "sciq": ("question", "distractor1", "distractor2", "distractor3", "correct_answer"),
    "siqa": ("context", "question", "answerA", "answerB", "answerC"),
    "social_iqa": ("context", "question", "answerA", "answerB", "answerC"),
    "sst2": ("sentence",),
    "truthful_qa": ("question",),
    "truthfulqa": ("question",),
    "truthfulqa_mc1": ("question",),
    "truthfulqa_mc2": ("question",),
    "winogrande": ("sentence", "option1", "option2"),
}
SUBJECTS = "mmlu"  # a folder of files, a subject each, that are one set
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


def readings(row: Any, task: str) -> Iterator[list[str]]:
    """The forms in which a row may stand in a document: one, but for a blank that can be filled in."""
    yield list(inputs(row, task))
    if task == "winogrande" and isinstance(row, Mapping) and "_" in str(row.get("sentence")):
        for option in ("option1", "option2"):
            if option in row:
                yield [str(row["sentence"]).replace("_", str(row[option]), 1)]


def find_sets(names: Sequence[str]) -> list[Path]:
    """Evaluation files as they are named, and those in folders that are. Raises `LoomError` for none."""
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            there = sorted(
                file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file()
            )
            if not there:
                raise LoomError(
                    f"{name} holds no evaluation rows: it should hold files <task>.<split>.jsonl."
                )
            found += there
        elif path.is_file():
            found.append(path)
        else:
            raise LoomError(f"There is no evaluation file {name}. Name the rows of a task, as JSON lines.")
    return list(dict.fromkeys(found))


def set_name(path: Path) -> str:
    """What a file's set is called: its task, and for a subject of MMLU the whole."""
    return SUBJECTS if path.parent.name == SUBJECTS else path.name.split(".")[0]


def hash_words(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The words of a text as the corpus's are hashed, ASCII capitals as small letters."""
    data = np.frombuffer(text.encode(), np.uint8)
    return find_words(data, np.array([0, len(data)], np.int64), True).hashes


class Questions:
    """The rows of one set: for each its readings, a reading's fields as word hashes."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self.rows: list[list[list[np.ndarray[Any, np.dtype[np.uint64]]]]] = []
        for path in paths:
            read = [
                [
                    [hashed for text in reading if len(hashed := hash_words(text))]
                    for reading in readings(row, name)
                ]
                for row in read_rows(path)
            ]
            if not any(field for row in read for field in row):
                raise LoomError(
                    f"{path} holds no row with text: contamination needs the questions as strings."
                )
            self.rows += read

    @cached_property
    def grams(self) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
        """Each row's n-grams of `OVERLAP` words, field by field, of its first reading."""
        return [
            np.array(
                [
                    kernels.gram_hash(field, at, OVERLAP)
                    for field in row[0]
                    for at in range(len(field) - OVERLAP + 1)
                ],
                np.uint64,
            )
            for row in self.rows
        ]


class Contamination:
    """For each evaluation set: rows that a document contains, and the share of their 8-grams seen.

    `files` are files of rows or folders of them, as `loom eval --data` reads them.
    """

    name, title = "contamination", "Evaluation sets in the corpus"

    def __init__(self, files: Sequence[str] = ()) -> None:
        self.files = tuple(files)

    @cached_property
    def sets(self) -> list[Questions]:
        named: dict[str, list[Path]] = {}
        for path in find_sets(self.files):
            named.setdefault(set_name(path), []).append(path)
        return [Questions(name, paths) for name, paths in named.items()]

    @cached_property
    def _owners(self) -> list[tuple[int, int, int]]:
        """(set, row, reading) of every anchor, which is a reading's longest field."""
        return [
            (s, r, number)
            for s, item in enumerate(self.sets)
            for r, row in enumerate(item.rows)
            for number, reading in enumerate(row)
            if reading
        ]

    @cached_property
    def _anchors(self) -> tuple[Any, ...]:
        """Arguments of `phrase_hits`: the anchors as sorted hashes, and the phrases themselves."""
        phrases = [max(self.sets[s].rows[r][number], key=len) for s, r, number in self._owners]
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
            number, row, reading = self._owners[owner]
            held = words.hashes[words.bounds[document] : words.bounds[document + 1]]
            if all(_holds(held, field) for field in self.sets[number].rows[row][reading]):
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
            return {"sets": [], "note": "no evaluation set was named: --eval FILE_OR_FOLDER..."}
        contained, grams = partial["contained"], partial["grams"]
        assert isinstance(contained, Flags)
        assert isinstance(grams, Flags)
        known, _ = self._grams
        out = []
        for number, item in enumerate(self.sets):
            seen = contained.seen
            rows = {row for at, (owner, row, _) in enumerate(self._owners) if owner == number and seen[at]}
            ratios = [float(grams.seen[np.searchsorted(known, row)].mean()) for row in item.grams if len(row)]
            first = partial[f"examples:{item.name}"]
            assert isinstance(first, First)
            out.append(
                {
                    "name": item.name,
                    "rows": len(item.rows),
                    "contained": len(rows),
                    "share": len(rows) / len(item.rows),
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
