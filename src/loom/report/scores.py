"""Evaluations on a page: each task's figure on one axis, with what others published beside it.

Published figures stand only beside a task under their own protocol: under another, the same model moves by
up to ten points (`loom.evals.beside.published`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom.errors import LoomError
from loom.evals.beside.published import TABLE_3, TASKS
from loom.report.data import Measure, ReportData, Score
from loom.report.figures import number
from loom.report.html import Html, el, join

PROTOCOL = "olmo-paper"
NAMED = ("OLMo-1B", "OLMo-7B", "Llama-2-7B")  # that stand out from the other published models
RESULTS = "results.json"


def read_scores(folders: Sequence[Path]) -> tuple[Score, ...]:
    """The headline figures of folders of `loom eval`, in their order. Raises `LoomError` for one without."""
    found: list[Score] = []
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        label = name if names.count(name) == 1 else "/".join(folder.resolve().parts[-2:])
        try:
            body = json.loads((folder / RESULTS).read_bytes())
        except FileNotFoundError:
            raise LoomError(
                f"{folder} holds no {RESULTS}: name a folder that `loom eval --out` wrote."
            ) from None
        except ValueError as error:
            raise LoomError(f"{folder / RESULTS} is not JSON ({error}): evaluate again.") from None
        found += [score for task in body["results"] if (score := _score(label, task, body)) is not None]
    return tuple(found)


def _score(label: str, task: str, body: Mapping[str, Any]) -> Score | None:
    row = body["results"][task]
    tasks = body.get("tasks", {})
    whole = max((name for name in tasks if task == name or task.startswith(f"{name}_")), key=len, default="")
    metric = tasks.get(whole, {}).get("headline")
    if whole != task and metric is not None:
        metric = metric.removeprefix("macro_")  # one subject's own figure is no mean over subjects
    metric = metric or next((key for key in ("acc", "bits_per_byte") if key in row), None)
    if metric in (None, "n") or "refused" in row or not isinstance(row.get(metric), int | float):
        return None  # a count is no score
    n = row.get("judged", row.get("n"))
    return Score(label, task, metric, Measure(row[metric], row.get(f"{metric}_stderr"), n))


def published(task: str) -> dict[str, float]:
    """model -> accuracy in [0, 1] that the OLMo paper printed for this task under this protocol."""
    name, _, protocol = task.partition(":")
    if protocol != PROTOCOL or name not in TASKS:
        return {}
    return {model: values[TASKS.index(name)] / 100 for model, values in TABLE_3.items()}


def draw(data: ReportData) -> Html | None:
    """The section; None where nothing was evaluated."""
    if not data.scores:
        return None
    tasks = list(dict.fromkeys(score.task for score in data.scores))
    models = list(dict.fromkeys(score.model for score in data.scores))
    beside = [task for task in tasks if published(task)]
    lead = f"{len(tasks)} task{'s' if len(tasks) != 1 else ''}"
    lead += (
        f"; for {len(beside)} of them the OLMo paper printed figures under the same protocol."
        if beside
        else f"; no figures were published under these protocols (`:{PROTOCOL}` tasks have some)."
    )
    shares = [task for task in tasks if all(_is_share(score) for score in data.scores if score.task == task)]
    keys = [el("span", el("i", class_=f"chip c{n % 8}"), model) for n, model in enumerate(models)]
    return join(
        el("h2", "Evaluation"),
        el("p", lead, class_="lead"),
        el("p", *keys, class_="keys") if shares else None,
        el("div", *(_axis(data.scores, models, task) for task in shares), class_="rows scores")
        if shares
        else None,
        el(
            "p",
            "Lines from 0 to 100 %. Hollow: published models, zero-shot, validation rows (Groeneveld et al. "
            "2024, table 3; hover for names). Whiskers: two standard errors.",
            class_="quiet",
        )
        if beside
        else None,
        el(
            "details",
            el("summary", "The same as a table"),
            el("div", _table(data.scores, tasks, models), class_="wide"),
            open=not shares,
        ),
    )


def _is_share(score: Score) -> bool:
    """Whether a figure lies between 0 and 1, as accuracies do and bits per byte do not."""
    return score.metric.startswith(("acc", "mc", "soft"))


def _axis(scores: Sequence[Score], models: Sequence[str], task: str) -> Html:
    """From 0 to 100 %: the published models' circles, and this one's dots with their errors."""
    others = [
        el("i", class_="other", style=f"left:{100 * value:.2f}%", title=f"{model}: {number(value, True)}")
        for model, value in published(task).items()
    ]
    mine = []
    for score in scores:
        if score.task != task:
            continue
        colour, at, error = models.index(score.model) % 8, score.measure.value, score.measure.stderr
        if error:
            low, high = max(0.0, at - 2 * error), min(1.0, at + 2 * error)
            place = f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"
            mine.append(el("i", class_=f"whisker c{colour}", style=place))
        title = f"{score.model}: {number(at, True)}"
        mine.append(el("i", class_=f"dot c{colour}", style=f"left:{100 * at:.2f}%", title=title))
    last = next(score.measure for score in reversed(scores) if score.task == task)
    return el(
        "div",
        el("span", task, class_="name"),
        el("span", *others, *mine, class_="track line"),
        el("span", el("b", number(last.value, True)), class_="value"),
        class_="row",
    )


def _table(scores: Sequence[Score], tasks: Sequence[str], models: Sequence[str]) -> Html:
    cells = {(score.model, score.task): score for score in scores}
    known = {task: published(task) for task in tasks}
    others = [model for model in TABLE_3 if any(model in values for values in known.values())]
    others.sort(key=lambda model: model not in NAMED)
    rows = []
    for task in tasks:
        row = [el("th", task, scope="row")]
        for model in models:
            score = cells.get((model, task))
            row.append(el("td", _figure(score) if score else "not measured"))
        row += [el("td", number(known[task][m], True) if m in known[task] else "–") for m in others]
        rows.append(el("tr", *row))
    head = el("tr", *(el("th", name, scope="col") for name in ("task", *models, *others)))
    return el("table", el("thead", head), el("tbody", *rows), class_="numbers")


def _figure(score: Score) -> str:
    share = _is_share(score)
    error = f" ± {number(score.measure.stderr, share)}" if score.measure.stderr is not None else ""
    items = f", n {score.measure.n:,}" if score.measure.n else ""
    return f"{number(score.measure.value, share)}{error} ({score.metric}{items})"
