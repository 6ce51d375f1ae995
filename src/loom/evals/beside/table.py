"""Evaluations side by side: one column a model, every figure with its error, losses as well as gains.

A model may stand for several runs that differ by their seed. A cell is then their mean, `±` the mean
standard error (over documents, which all runs share, so that more runs do not lower it), and `sd` the
sample standard deviation over the runs. A figure within two standard errors of what guessing gives is
marked `chance`. Two models are told apart by the differences of the documents that both read; where they did not
read the same, they are not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from loom.evals.beside import paired, same
from loom.evals.beside.figures import Figure, figures
from loom.evals.beside.paired import Parts
from loom.evals.beside.stored import TEXT, has_rows, has_text, read_results, read_rows, read_scores
from loom.evals.perplexity import DocumentScore

OTHER = "other rows"  # the verdict on models that did not read the same


@dataclass(frozen=True)
class Cell:
    """One figure of one model; `runs` values stand behind it, each of `n` documents."""

    value: float
    stderr: float | None
    deviation: float | None
    n: tuple[int, ...]
    """The number of documents; of runs that differ in it, each."""
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
    cells: dict[str, Cell | str]
    paired: dict[tuple[str, str], float] = field(default_factory=dict)
    """The standard error of the difference of two neighbours, by document; where rows were found."""
    other: frozenset[tuple[str, str]] = frozenset()
    """The neighbours that did not read the same documents."""

    @property
    def n(self) -> int | None:
        """Documents; None where the models' differ."""
        counts = {n for cell in self.cells.values() if isinstance(cell, Cell) for n in cell.n}
        return next(iter(counts), 0) if len(counts) < 2 else None

    def shown(self, label: str) -> str | None:
        """A cell as people read it, with its n where the line has none."""
        cell = self.cells.get(label)
        if not isinstance(cell, Cell) or self.n is not None:
            return None if cell is None else str(cell)
        return f"{cell}, n {', '.join(f'{n:,}' for n in cell.n)}"


@dataclass(frozen=True)
class _Run:
    """One evaluation; with its folder the rows behind its figures too."""

    body: Mapping[str, Any]
    folder: Path | None
    texts: Mapping[str, list[DocumentScore]]
    """Measured documents behind each figure of text."""

    def parts(self, figure: Figure) -> Parts:
        """By document; empty where the folder does not have them."""
        if figure.text:
            return paired.text_parts(self.texts.get(figure.task.removeprefix("text:"), []))
        if self.folder is None or not has_rows(self.body, self.folder, figure.task):
            return {}
        rows = list(read_rows(self.folder / f"{figure.task}.jsonl"))
        return paired.task_parts(rows, figure.metric)


def read(folder: Path) -> dict[str, Any]:
    """The `results.json` of an evaluation. Raises `LoomError` where there is none."""
    return read_results(folder)


def table(
    models: Mapping[str, Sequence[Mapping[str, Any]]], folders: Mapping[str, Sequence[Path]] | None = None
) -> list[Line]:
    """A line a figure that any of the models has. `models` gives each label its `results.json` bodies, `folders`
    where they and the rows behind them lie."""
    runs = {
        label: [
            _run(body, None if folders is None else folders[label][number])
            for number, body in enumerate(bodies)
        ]
        for label, bodies in models.items()
    }
    lines = []
    for figure in figures(body for bodies in models.values() for body in bodies):
        cells: dict[str, Cell | str] = {}
        for label, bodies in models.items():
            if (cell := _cell([figure.result(body) for body in bodies], figure.metric)) is not None:
                cells[label] = cell
        if cells:
            lines.append(Line(figure.name, figure.better, cells, *_told_apart(figure, runs, cells)))
    return lines


def _run(body: Mapping[str, Any], folder: Path | None) -> _Run:
    texts: dict[str, list[DocumentScore]] = {}
    if folder is not None and has_text(body, folder):
        texts = paired.text_groups(read_scores(folder / TEXT))
    return _Run(body, folder, texts)


def _told_apart(
    figure: Figure, runs: Mapping[str, Sequence[_Run]], cells: Mapping[str, Cell | str]
) -> tuple[dict[tuple[str, str], float], frozenset[tuple[str, str]]]:
    """Of each model and the one before it, the error of their difference by document; and which of them did not
    read the same."""
    found, other = {}, set()
    parts = {label: [run.parts(figure) for run in of] for label, of in runs.items()}
    for before, after in pairwise(runs):
        if not isinstance(cells.get(before), Cell) or not isinstance(cells.get(after), Cell):
            continue
        each = [
            (run, of)
            for label in (before, after)
            for run, of in zip(runs[label], parts[label], strict=True)
            if figure.result(run.body) is not None
        ]
        if any(_differ(figure, *each[0], *one) for one in each[1:]):
            other.add((before, after))
        elif (error := paired.error(parts[before], parts[after])) is not None:
            found[before, after] = error
    return found, frozenset(other)


def _differ(figure: Figure, one: _Run, first: Parts, two: _Run, second: Parts) -> bool:
    """Whether a figure of two evaluations is of other files or other documents, as far as they say."""
    a, b = figure.result(one.body), figure.result(two.body)
    assert a is not None and b is not None
    if any(a.get(name) != b.get(name) for name in (("n", "bytes") if figure.text else ("n", "judged"))):
        return True
    if first and second and not paired.alike(first, second):
        return True
    if not figure.text:
        return same.other_rows(one.body, two.body, figure.task) is not None
    sources = {key[0] for key in first} or {figure.task}
    return bool(same.other_texts(one.body, two.body, sources))


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
        tuple(dict.fromkeys(int(result.get("judged", result["n"])) for result in kept)),
        len(values),
        guess is not None and stderr is not None and abs(value - guess) < 2 * max(stderr, 1e-12),
    )


def verdict(line: Line, before: str, after: str) -> str:
    """better, worse or same: whether the difference is over two of its standard errors, seeds included. Where
    documents cannot be paired errors are taken for independent, which errs on the side of `same`; where one of those
    is not known, nothing is said. `other rows` where the two did not read the same."""
    one, two = line.cells.get(before), line.cells.get(after)
    if not isinstance(one, Cell) or not isinstance(two, Cell) or line.better is None:
        return ""
    if (before, after) in line.other:
        return OTHER
    error = line.paired.get((before, after))
    documents = [error] if error is not None else [cell.stderr for cell in (one, two)]
    known = [value for value in documents if value is not None]
    if len(known) < len(documents):
        return ""
    seeds = [(cell.deviation or 0.0) / math.sqrt(cell.runs) for cell in (one, two)]
    apart = two.value - one.value
    if abs(apart) <= 2 * math.hypot(*known, *seeds):
        return "same"
    return "better" if (apart > 0) == line.better else "worse"


def rows(lines: Sequence[Line], labels: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows; each model is judged against the one before it."""
    steps = list(pairwise(labels))
    columns = ["", "n", *labels, *(f"{after} against {before}" for before, after in steps)]
    return columns, [
        [
            line.name + {True: " ↑", False: " ↓", None: ""}[line.better],
            "differs" if line.n is None else line.n,
            *(line.shown(label) for label in labels),
            *(verdict(line, *step) for step in steps),
        ]
        for line in lines
    ]


def markdown(tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]) -> str:
    """Tables of (title, columns, rows) as Markdown, one below the other; a title may be empty."""
    texts = []
    for title, columns, of in tables:
        written = [columns, ["---"] * len(columns), *([_word(cell) for cell in row] for row in of)]
        body = "\n".join("| " + " | ".join(row) + " |" for row in written)
        texts.append(f"{title}:\n\n{body}\n" if title else f"{body}\n")
    return "\n".join(texts)


def _word(cell: Any) -> str:
    if cell is None:
        return "–"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def plain(lines: Sequence[Line], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The table for JSON."""
    return [
        {
            "name": line.name,
            "more_is_better": line.better,
            "n": line.n,
            **{
                label: vars(cell) | {"n": cell.n[0] if len(cell.n) == 1 else list(cell.n)}
                if isinstance(cell, Cell)
                else cell
                for label, cell in line.cells.items()
            },
            "verdicts": {after: verdict(line, before, after) for before, after in pairwise(labels)},
        }
        for line in lines
    ]
