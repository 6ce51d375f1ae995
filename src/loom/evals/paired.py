"""The error of a difference between two models' figures, paired by document.

Two models that read the same documents find the same ones hard, so their figures' own errors say little of
the difference: it is taken document by document. A figure is a ratio of sums over documents (a mean has 1
below each), and the error of a difference d is that of the mean of `above_2 - above_1 - d below`, by the
delta method (Cochran, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

Parts = dict[tuple[Any, ...], tuple[float, float]]
"""Of a figure, what each document adds above and below the line."""


def parts(folder: Path, results: Mapping[str, Any], task: str, metric: str) -> Parts | None:
    """The figure's parts by document, or None where the folder does not have them.

    `results` are those of the folder's `results.json`; a source of text is a task here, and `all` is all of it.
    """
    text = "bytes" in results.get(task, {})
    try:
        lines = (folder / ("text.jsonl" if text else f"{task}.jsonl")).read_bytes().splitlines()
    except OSError:
        return None
    found: Parts = {}
    for line in lines:
        row = orjson.loads(line)
        if text and task not in ("all", row["source"]):
            continue
        key = tuple(row.get(name) for name in ("source", "domain", "subject", "doc_id", "id", "prompt"))
        if metric == "bits_per_byte" and "nll" in row and "bytes" in row:
            found[key] = row["nll"] / math.log(2), float(row["bytes"])
        elif (value := (row.get("values") or {}).get(metric.removeprefix("macro_"))) is not None:
            found[key] = float(value), 1.0
    return found or None


def error(before: Sequence[Parts | None], after: Sequence[Parts | None]) -> float | None:
    """The standard error of the difference between two figures, each the mean of one or more runs.

    None where a run has no parts or the documents are not the same: there is nothing to pair then.
    """
    runs = [run for run in (*before, *after) if run is not None]
    if not before or not after or len(runs) < len(before) + len(after):
        return None
    keys = sorted(runs[0], key=repr)
    below = np.array([runs[0][key][1] for key in keys])
    if len(keys) < 2 or any(run.keys() != runs[0].keys() for run in runs):
        return None
    if any(not np.array_equal(below, [run[key][1] for key in keys]) for run in runs):
        return None
    first, second = (
        np.mean([[run[key][0] for key in keys] for run in side if run is not None], axis=0)
        for side in (before, after)
    )
    apart = second - first
    left = apart - apart.sum() / below.sum() * below
    n = len(keys)
    return math.sqrt(n / (n - 1) * float(left @ left)) / float(below.sum())
