"""Two evaluations of the same documents: is the difference more than chance?

Scores of two models on one test set are correlated, so the comparison is paired: McNemar's exact test on
the documents where exactly one is right, a paired bootstrap of the difference, and the smallest
difference that this many documents would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loom.console import console
from loom.errors import LoomError
from loom.evals.beside import same
from loom.evals.beside.difference import Difference, difference, ratio
from loom.evals.beside.paired import Key, Parts, task_metrics, task_parts, text_parts
from loom.evals.beside.stored import TEXT, Row, few, has_rows, has_text, read_results, read_rows, read_scores
from loom.evals.perplexity import DocumentScore, by

BITS = "bits_per_byte"


@dataclass(frozen=True)
class _Side:
    """One evaluation: its `results.json`, and the rows behind it as they are asked for."""

    folder: Path
    body: Mapping[str, Any]

    def has_rows(self, task: str) -> bool:
        return has_rows(self.body, self.folder, task)

    def rows(self, task: str) -> list[Row]:
        return list(read_rows(self.folder / f"{task}.jsonl"))

    def sources(self) -> dict[str, list[DocumentScore]]:
        """Measured documents by source."""
        if not has_text(self.body, self.folder):
            return {}
        return by(read_scores(self.folder / TEXT), "source")


def compare(a: Path, b: Path, metrics: Sequence[str] = (), seed: int = 0) -> list[Difference]:
    """Every task that both folders have by row, by its headline metric (or the `metrics` named), and text by source.

    So too the held-out answers, pairs and prompts of an evaluation of tuned models. What has no rows (a refused
    task, judged answers, the better of two forms) is left out, and that is said; so is what only one has, and how
    many documents either has where they are not the same.
    Raises `LoomError` if a folder is no evaluation, if they share nothing, if a task's rows or a text differ, and
    for a metric that no task has.
    """
    left, right = (_Side(folder, read_results(folder)) for folder in (a, b))
    shared = [task for task in left.body["tasks"] if task in right.body["tasks"]]
    tasks = [task for task in shared if left.has_rows(task) and right.has_rows(task)]
    for task in tasks:
        if (why := same.other_rows(left.body, right.body, task)) is not None:
            raise LoomError(
                f"{a} and {b} evaluated {task} {why[0]}, so documents cannot be paired. Evaluate both {why[1]}."
            )
    rows = {task: (left.rows(task), right.rows(task)) for task in tasks}
    texts = left.sources(), right.sources()
    _check_metrics(metrics, rows, any(texts))
    others = [task for task in shared if task not in tasks]
    notes = [f"not compared row by row: {', '.join(others)}"] if others else []
    result: list[Difference] = []
    for task, of in rows.items():
        found, more = _tasks(task, left.body["tasks"][task]["headline"], of, metrics, seed, (a, b))
        result += found
        notes += more
    result += _texts(left, right, texts, seed)
    notes += [
        f"{item.task}: {item.n_a:,} documents of A, {item.n_b:,} of B, compared on {item.n:,}"
        for item in result
        if not item.n_a == item.n_b == item.n
    ]
    for name, side, text, other in (("A", left, *texts), ("B", right, *texts[::-1])):
        alone = {*side.body["tasks"]} - {*shared} | text.keys() - other.keys()
        notes += [f"only in {name}, not compared: {few(sorted(alone), 20)}"] if alone else []
    if not result:
        raise LoomError(f"{a} and {b} have no task in common: evaluate both on the same tasks first.")
    for note in dict.fromkeys(notes):  # several metrics of a task say the same of it
        console.say(note)
    return result


def _check_metrics(
    metrics: Sequence[str], rows: Mapping[str, tuple[list[Row], list[Row]]], text: bool
) -> None:
    """Raise `LoomError` for a metric that nothing has by document."""
    known = {
        task: list(dict.fromkeys(name for side in of for name in task_metrics(side)))
        for task, of in rows.items()
    }
    there = {name for names in known.values() for name in names} | ({BITS} if text else set())
    if unknown := [name for name in metrics if name.removeprefix("macro_") not in there]:
        told = "; ".join(f"{task} has {', '.join(names) or 'none'}" for task, names in known.items())
        told = "; ".join(filter(None, (told, f"text has {BITS}" if text else "")))
        raise LoomError(f"There is no metric {unknown[0]!r} by document: {told or 'no task has rows'}.")


def _tasks(
    task: str,
    headline: str,
    rows: tuple[list[Row], list[Row]],
    metrics: Sequence[str],
    seed: int,
    folders: tuple[Path, Path],
) -> tuple[list[Difference], list[str]]:
    """A task by its headline, or by those of the metrics that it has; and what was left out."""
    there = {name for side in rows for name in task_metrics(side)}
    if headline == BITS and BITS not in there:
        headline = "bpb"  # what is pooled over a ranked task has this value by row
    result, notes = [], []
    for metric in (name.removeprefix("macro_") for name in metrics or (headline,)):
        if metrics and metric not in there:
            notes.append(f"{task} has no {metric} by document: not compared by it")
            continue
        first, second = (task_parts(side, metric) for side in rows)
        both = [key for key in first if key in second]
        keys = [key for key in both if first[key][1] == second[key][1]]
        if cut := len(both) - len(keys):
            notes.append(
                f"{task}: {cut:,} of {len(both):,} documents are left out, they are longer on one side than on the "
                f"other (cut to another context)"
            )
        if not keys:
            raise LoomError(f"{folders[0]} and {folders[1]} share no scored document of {task}.")
        result.append(_pair(task, metric, first, second, keys, seed))
    return result, notes


def _texts(
    left: _Side,
    right: _Side,
    texts: tuple[Mapping[str, list[DocumentScore]], Mapping[str, list[DocumentScore]]],
    seed: int,
) -> list[Difference]:
    """Bits per byte by source: ratios of sums, documents resampled together on both sides."""
    shared = [source for source in texts[0] if source in texts[1]]
    names = f"{left.folder} and {right.folder}"
    if other := same.other_texts(left.body, right.body, shared):
        raise LoomError(
            f"{names} measured different texts under the name {other[0]!r} (the files' digests differ): evaluate both "
            f"on the same text."
        )
    result = []
    for source in shared:
        first, second = (text_parts(side[source]) for side in texts)
        keys = [key for key in first if key in second]
        if unlike := next((key for key in keys if first[key][1] != second[key][1]), None):
            raise LoomError(
                f"{names} hold different texts under the name {unlike[2]!r} of {source!r}: evaluate both on the same "
                f"text."
            )
        if not keys:
            raise LoomError(
                f"{names} share no document of {source!r}: evaluate both on the same text, the same split of it."
            )
        if any(first[key][1] for key in keys):
            result.append(_pair(source, BITS, first, second, keys, seed))
    return result


def _pair(name: str, metric: str, first: Parts, second: Parts, keys: Sequence[Key], seed: int) -> Difference:
    x, y = (np.array([side[key][0] for key in keys]) for side in (first, second))
    below = np.array([first[key][1] for key in keys])
    of = len(first), len(second)
    if (below == 1).all():
        return difference(name, metric, x, y, seed, of=of)
    return ratio(name, metric, x, y, below, seed, of=of)
