"""The error of a difference between two models' figures, paired by document.

Two models that read the same documents find the same ones hard, so their figures' own errors say little of
the difference: it is taken document by document. A figure is a ratio of sums over documents (a mean has 1
below each), and the error of a difference d is that of the mean of `above_2 - above_1 - d below`, by the
delta method (Cochran, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from loom.evals import paloma
from loom.evals.beside.stored import Row, broken
from loom.evals.perplexity import DocumentScore, by, by_domain

Key = tuple[Any, ...]
Parts = dict[Key, tuple[float, float]]
"""Of a figure, what each document adds above and below the line."""
_NAMES = ("subject", "doc_id", "id", "prompt")


def numbered(keys: Iterable[Key]) -> Iterator[Key]:
    """Each key with how often it stood before, so that documents of one id are not taken for one."""
    before: Counter[Key] = Counter()
    for key in keys:
        yield (*key, before[key])
        before[key] += 1


def task_parts(rows: Sequence[Row], metric: str) -> Parts:
    """The parts of a task's figure by row; empty where no row has the metric. A row that was not scored has none.
    In a mean over subjects a row weighs as one of its subject's."""
    found: Parts = {}
    mean, metric = metric.startswith("macro_"), metric.removeprefix("macro_")
    weighs = Counter(row.get("subject") for place, row in rows if mean and metric in _values(row, place))
    keys = numbered(tuple(row.get(name) for name in _NAMES) for _, row in rows)
    for key, (place, row) in zip(keys, rows, strict=True):
        if metric == "bits_per_byte" and "nll" in row and "bytes" in row:
            found[key] = (
                _number(row["nll"], "nll", place) / math.log(2),
                _number(row["bytes"], "bytes", place),
            )
        elif (value := _values(row, place).get(metric)) is not None:
            weight = 1 / weighs[row.get("subject")] if mean else 1.0
            found[key] = weight * _number(value, metric, place), weight
    return found


def task_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that rows have a value of."""
    found: dict[str, None] = {}
    for place, row in rows:
        found |= dict.fromkeys(_values(row, place))
        if "nll" in row and "bytes" in row:
            found["bits_per_byte"] = None
    return list(found)


def _values(row: dict[str, Any], place: str) -> dict[str, Any]:
    values = row.get("values") or {}
    if not isinstance(values, dict):
        raise broken(place, f"`values` is {values!r}")
    return values


def _number(value: Any, name: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise broken(place, f"`{name}` is {value!r}")
    return float(value)


def text_groups(scores: Sequence[DocumentScore]) -> dict[str, list[DocumentScore]]:
    """The documents behind every figure that `perplexity.table` makes of them, by the figure's name. Paloma's eleven
    are there whatever split they were read from, which a row does not say."""
    groups = by_domain(scores)
    sources = by(scores, "source")
    for source, group in sources.items():
        groups.setdefault(source, group)
    combined = [score for score in scores if score.source in paloma.COMBINED]
    if len(by(combined, "source")) == len(paloma.COMBINED):
        groups[paloma.NAME] = combined
    if len(sources) > 1:
        groups.setdefault("all", list(scores))
    return groups


def text_parts(scores: Sequence[DocumentScore]) -> Parts:
    """The parts of these documents' bits per byte."""
    keys = numbered((score.source, score.domain, score.id) for score in scores)
    return {
        key: (score.nll / math.log(2), float(score.bytes)) for key, score in zip(keys, scores, strict=True)
    }


def error(before: Sequence[Parts], after: Sequence[Parts]) -> float | None:
    """The standard error of the difference between two figures, each the mean of one or more runs.

    None where a run has no parts or the documents are not the same: there is nothing to pair then.
    """
    runs = [*before, *after]
    if not before or not after or not all(runs) or not all(alike(run, runs[0]) for run in runs):
        return None
    keys = list(runs[0])
    below = np.array([runs[0][key][1] for key in keys])
    if np.count_nonzero(below) < 2:
        return None
    first, second = (
        np.mean([[run[key][0] for key in keys] for run in side], axis=0) for side in (before, after)
    )
    apart = second - first
    left = apart - apart.sum() / below.sum() * below
    n = len(keys)
    return math.sqrt(n / (n - 1) * float(left @ left)) / float(below.sum())


def alike(one: Parts, two: Parts) -> bool:
    """Whether both are of the same documents, as long in the one as in the other."""
    return one.keys() == two.keys() and all(one[key][1] == two[key][1] for key in one)
