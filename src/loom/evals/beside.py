"""Evaluations side by side: one column a model, every figure with its error, losses as well as gains.

A model may stand for several runs that differ by their seed. A cell is then their mean, `±` the mean
standard error (over documents, which all runs share, so that more runs do not lower it), and `sd` the
sample standard deviation over the runs. A figure within two standard errors of what guessing gives is
marked `chance`. Two models are told apart by the differences of the documents that both read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from loom.errors import LoomError
from loom.evals import paired

# Task, metric, what it is called, whether more is better; shown where any model has it.
SHOWN = (
    ("mmlu", "acc", "MMLU accuracy", True),
    ("mmlu:5shot", "acc", "MMLU accuracy, 5 shots", True),
    ("truthfulqa_mc1", "acc", "TruthfulQA MC1", True),
    ("truthfulqa_mc2", "mc2", "TruthfulQA MC2", True),
    ("preferences", "acc", "held-out pairs: accuracy, summed", True),
    ("preferences", "acc_token", "held-out pairs: accuracy, a token", True),
    ("preferences", "margin", "held-out pairs: margin, nats", True),
    ("answers", "bits_per_byte", "held-out answers: bits per byte", False),
    ("instructions", "stop_rate", "held-out prompts: answers that end", True),
    ("instructions", "repeating", "held-out prompts: answers that repeat", False),
    ("instructions", "tokens", "held-out prompts: tokens an answer", None),
    ("probes", "followed", "instruction probes followed", True),
    ("all", "bits_per_byte", "pretraining text: bits per byte", False),
)


@dataclass(frozen=True)
class Cell:
    """One figure of one model; `runs` values stand behind it."""

    value: float
    stderr: float | None
    deviation: float | None
    n: int
    runs: int
    chance: bool

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.stderr is not None:
            text += f" ± {self.stderr:.2g}"
        if self.deviation is not None:
            text += f" (sd {self.deviation:.2g})"
        return f"{text} chance" if self.chance else text


@dataclass(frozen=True)
class Line:
    name: str
    better: bool | None
    """Whether more is better; None where neither is."""
    n: int
    cells: dict[str, Cell | str]
    paired: dict[tuple[str, str], float] = field(default_factory=dict)
    """The standard error of the difference of two neighbours, by document; where rows were found."""


def read(folder: Path) -> dict[str, Any]:
    """The `results.json` of an evaluation. Raises `LoomError` where there is none."""
    try:
        body: dict[str, Any] = orjson.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError) as error:
        raise LoomError(f"{folder} holds no results.json ({error}): name the --out of `loom eval`.") from None
    return body


def table(
    models: Mapping[str, Sequence[Mapping[str, Any]]], folders: Mapping[str, Sequence[Path]] | None = None
) -> list[Line]:
    """A line a figure that any of the models has. `models` gives each label its `results.json` bodies, `folders`
    where they and the rows behind them lie."""
    shown = [*SHOWN, *_ranked(models), *_others(models), *_texts(models)]
    lines = []
    for task, metric, name, better in shown:
        cells: dict[str, Cell | str] = {}
        for label, bodies in models.items():
            if (cell := _cell([body["results"].get(task) for body in bodies], metric)) is not None:
                cells[label] = cell
        if cells:
            n = max((cell.n for cell in cells.values() if isinstance(cell, Cell)), default=0)
            apart = {} if folders is None else _paired(models, folders, task, metric)
            lines.append(Line(name, better, n, cells, apart))
    return lines


def _paired(
    models: Mapping[str, Sequence[Mapping[str, Any]]],
    folders: Mapping[str, Sequence[Path]],
    task: str,
    metric: str,
) -> dict[tuple[str, str], float]:
    """Of each model and the one before it, the error of their difference by document."""
    rows = {
        label: [
            paired.parts(folder, body["results"], task, metric)
            for folder, body in zip(folders[label], bodies, strict=True)
        ]
        for label, bodies in models.items()
    }
    found = {}
    for before, after in pairwise(models):
        read = [
            [facts.get("digest"), *(file["digest"] for file in facts.get("files", ()))]
            for label in (before, after)
            for facts in (body["tasks"].get(task, {}) for body in models[label])
        ]
        error = paired.error(rows[before], rows[after])
        if error is not None and all(files == read[0] for files in read):
            found[before, after] = error
    return found


def _ranked(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, str, bool | None]]:
    """Every other task that has rows, by its headline metric, with the split that was read; those of one protocol
    together."""
    found: dict[str, tuple[str, str]] = {}
    known = {task for task, *_ in SHOWN}
    for bodies in models.values():
        for body in bodies:
            for task, facts in body["tasks"].items():
                if task not in known and ("files" in facts or "seen" in facts) and "prompts" not in facts:
                    splits = dict.fromkeys(file.get("split", "") for file in facts.get("files", ()))
                    found[task] = facts["headline"], "/".join(filter(None, splits))
    return [
        (
            task,
            metric,
            f"{task} {metric}{f' ({split})' if split else ''}",
            metric not in ("bits_per_byte", "bpb"),
        )
        for task, (metric, split) in sorted(found.items(), key=lambda one: one[0].partition(":")[2])
    ]


def _others(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, str, bool | None]]:
    """Written evaluations: by the name of whoever judged, or `refused`."""
    found: dict[tuple[str, str], None] = {}
    for bodies in models.values():
        for body in bodies:
            for task in ("alpaca_eval", "toxigen", "truthfulqa_gen"):
                result = body["results"].get(task, {})
                headline = body["tasks"].get(task, {}).get("headline", "n")
                if "refused" in result or headline != "n":
                    found[task, headline] = None
    judged = {task for task, headline in found if headline != "n"}
    return [
        (
            task,
            headline,
            f"{task} {headline}" if headline != "n" else task,
            "tox" not in task,  # a win rate and a share of true answers: more is better; of toxic ones, less
        )
        for task, headline in found
        if headline != "n" or task not in judged
    ]


def _texts(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, str, bool | None]]:
    names = dict.fromkeys(
        name
        for bodies in models.values()
        for body in bodies
        for name, result in body["results"].items()
        if "bytes" in result and name != "all"
    )
    return [(name, "bits_per_byte", f"{name}: bits per byte", False) for name in names]


def _cell(results: Sequence[Mapping[str, Any] | None], metric: str) -> Cell | str | None:
    kept = [result for result in results if result is not None]
    if any("refused" in result for result in kept):
        return "no figure: seen in training"
    kept = [result for result in kept if result.get(metric) is not None]
    if not kept or metric == "n":
        return None
    values = [float(result[metric]) for result in kept]
    errors = [float(error) for result in kept if (error := result.get(f"{metric}_stderr")) is not None]
    value, stderr = statistics.fmean(values), statistics.fmean(errors) if errors else None
    guess = kept[0].get("chance") if metric.removeprefix("macro_").startswith("acc") else None
    return Cell(
        value,
        stderr,
        statistics.stdev(values) if len(values) > 1 else None,
        int(kept[0]["n"]),
        len(values),
        guess is not None and stderr is not None and abs(value - guess) < 2 * max(stderr, 1e-12),
    )


def verdict(line: Line, before: str, after: str) -> str:
    """better, worse or same: whether the difference is over two of its standard errors, seeds included. Where
    documents cannot be paired errors are taken for independent, which errs on the side of `same`."""
    one, two = line.cells.get(before), line.cells.get(after)
    if not isinstance(one, Cell) or not isinstance(two, Cell) or line.better is None:
        return ""
    error = line.paired.get((before, after))
    documents = [cell.stderr or 0.0 for cell in (one, two)] if error is None else [error]
    seeds = [(cell.deviation or 0.0) / math.sqrt(cell.runs) for cell in (one, two)]
    apart = two.value - one.value
    if abs(apart) <= 2 * math.hypot(*documents, *seeds):
        return "same"
    return "better" if (apart > 0) == line.better else "worse"


def markdown(
    lines: Sequence[Line],
    labels: Sequence[str],
    published: Sequence[tuple[str, list[str], list[list[Any]]]] = (),
) -> str:
    """The table as Markdown; each model is judged against the one before it. `published` tables follow."""
    steps = list(pairwise(labels))
    header = ["", "n", *labels, *(f"{after} against {before}" for before, after in steps)]
    rows = [header, ["---"] * len(header)]
    for line in lines:
        arrow = {True: " ↑", False: " ↓", None: ""}[line.better]
        cells = [str(line.cells.get(label, "–")) for label in labels]
        rows.append([line.name + arrow, f"{line.n:,}", *cells, *(verdict(line, *step) for step in steps)])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    for title, columns, others in published:
        rows = [list(columns), ["---"] * len(columns)]
        rows += [["–" if cell is None else str(cell) for cell in row] for row in others]
        text += f"\n{title}:\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    return text


def plain(lines: Sequence[Line], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The table for JSON."""
    return [
        {
            "name": line.name,
            "more_is_better": line.better,
            "n": line.n,
            **{label: vars(cell) if isinstance(cell, Cell) else cell for label, cell in line.cells.items()},
            "verdicts": {after: verdict(line, before, after) for before, after in pairwise(labels)},
        }
        for line in lines
    ]
