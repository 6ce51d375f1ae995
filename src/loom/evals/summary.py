"""A task's figures and its line a document, from the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loom.evals import metrics
from loom.evals.items import Scores
from loom.tasks.item import Item, Task


def summarise(
    task: Task,
    items: Sequence[Item],
    scores: Scores,
    outcomes: Sequence[metrics.Outcome | None],
    of: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Every metric's mean with its standard error, the protocol's first; `n` items that were scored."""
    chosen = [i for i in (range(len(items)) if of is None else of) if outcomes[i] is not None]
    kept = [outcome for i in chosen if (outcome := outcomes[i]) is not None]
    clusters = [items[i].cluster or str(i) for i in chosen]
    names = list(dict.fromkeys(name for outcome in kept for name in outcome.values))
    result: dict[str, Any] = {}
    if all(isinstance(items[i].gold, int) for i in chosen):
        bits, error = metrics.pooled_bpb([items[i] for i in chosen], [scores.logp[i] for i in chosen])
        pooled: dict[str, Any] = {"bits_per_byte": bits, "bits_per_byte_stderr": error}
    else:
        pooled = {}
    if all(len(items[i].pairs) > 1 for i in chosen) and chosen:
        pooled["chance"] = sum(len(items[i].golds) / len(items[i].pairs) for i in chosen) / len(chosen)
    for name in names:
        values = [outcome.values[name] for outcome in kept]
        result[name], result[f"{name}_stderr"] = metrics.mean(values)
        clustered = metrics.mean(values, clusters)[1]
        if math.isfinite(clustered) and clustered != result[f"{name}_stderr"]:
            result[f"{name}_stderr_clustered"] = clustered
    result |= pooled
    ordered = [name for name in task.metrics if name in result]
    ordered += [name for name in result if name not in ordered]
    return {name: result[name] for name in ordered} | {"n": len(kept)}


def macro(task: Task, whole: dict[str, Any], subjects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`whole` with the plain mean of the subjects' figures in front, where the protocol reports that; its error is
    that of a mean of independent figures."""
    if not task.macro:
        return whole
    metric = task.metrics[0].removeprefix("macro_")
    kept = [subject for subject in subjects if subject["n"]]
    errors = [subject[f"{metric}_stderr"] for subject in kept]
    value = sum(subject[metric] for subject in kept) / len(kept) if kept else math.nan
    error = math.sqrt(sum(one**2 for one in errors)) / len(kept) if kept else math.nan
    return {task.metrics[0]: value, f"{task.metrics[0]}_stderr": error, "subjects": len(kept)} | whole


def lines_of(
    items: Sequence[Item], scores: Scores, outcomes: Sequence[metrics.Outcome | None]
) -> Sequence[dict[str, Any]]:
    """What a metric is made of: every choice's log-likelihood, alone and after the unconditioned context, and its
    tokens; with the predictions and values that came of them."""
    lines = []
    parts = zip(items, scores.logp, scores.free, scores.tokens, outcomes, strict=True)
    for item, logp, free, tokens, outcome in parts:
        line: dict[str, Any] = {"doc_id": item.doc_id}
        if item.group:
            line["subject"] = item.group
        line["gold"] = item.gold
        line["loglikelihoods"] = [None if math.isnan(value) else float(value) for value in logp]
        if free is not None:
            line["unconditioned"] = [float(value) for value in free]
        line["tokens"] = [int(count) for count in tokens]
        line["predictions"] = dict(outcome.predictions) if outcome else {}
        line["values"] = dict(outcome.values) if outcome else {}
        lines.append(line)
    return lines
