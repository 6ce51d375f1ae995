from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    what: Annotated[str, typer.Argument(help="taggers, tasks, presets or recipes.")],
    like: Annotated[str, typer.Argument(help="Only names that hold this text.")] = "",
) -> dict[str, Any]:
    """What there is: taggers, tasks, presets, recipes.

    Example: loom list taggers pii
    """
    kinds = {"taggers": _taggers, "tasks": _tasks, "presets": _presets, "recipes": _recipes}
    if what not in kinds:
        from loom.errors import LoomError
        from loom.recipe import nearest

        near = nearest(what, kinds)
        hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(kinds)}."
        raise LoomError(f"loom list knows no {what!r}. {hint}")
    columns, rows = kinds[what]()
    rows = [row for row in rows if like in row[0]]
    console.table(what.capitalize(), columns, rows, left=len(columns))
    return {what: [dict(zip(columns, row, strict=True)) for row in rows]}


def _taggers() -> tuple[list[str], list[tuple[str, ...]]]:
    from loom.corpus.taggers import available

    rows: list[tuple[str, ...]] = [
        (item.name, item.spans, item.source, item.summary + (f" Reads {item.needs}." if item.needs else ""))
        for item in available()
    ]
    return ["name", "spans", "source", "what"], rows


def _tasks() -> tuple[list[str], list[tuple[str, ...]]]:
    from loom.tasks.registry import SUITES, TASKS, WRITTEN

    rows: list[tuple[str, ...]] = [
        (
            task.name,
            task.splits[0] if task.splits else "",
            ", ".join(task.metrics),
            str(task.shots),
            "all"
            if task.sample is None
            else f"{task.sample:,}" + (f" if over {task.sample_above:,}" if task.sample_above else ""),
            task.source,
        )
        for task in TASKS.values()
    ]
    written = "prompts that the model answers; --judge makes a figure"
    rows += [(name, "", "n, or the judge's", "0", "all", written) for name in WRITTEN]
    rows += [
        (name, "", "", "", "", f"suite: {', '.join(SUITES[name] + WRITTEN * (name == 'adaptation'))}")
        for name in SUITES
    ]
    return ["name", "split", "reports", "shots", "rows", "from"], rows


def _presets() -> tuple[list[str], list[tuple[str, ...]]]:
    from loom.model.presets import PRESETS

    rows: list[tuple[str, ...]] = [
        (name, f"{shape.parameters:,}", str(shape.n_layers), str(shape.d_model), str(shape.context_length))
        for name, shape in PRESETS.items()
    ]
    return ["name", "parameters", "layers", "width", "context"], rows


def _recipes() -> tuple[list[str], list[tuple[str, ...]]]:
    """The recipes that come with Loom, by the name every verb takes, and those in ./recipes that do not."""
    from loom.recipe import folder

    shipped = folder()
    rows = [(path.stem, _sentence(path)) for path in sorted(shipped.glob("*.yaml"))]
    own = Path("recipes")
    if own.is_dir() and own.resolve() != shipped.resolve():
        rows += [(str(path), _sentence(path)) for path in sorted(own.glob("*.yaml"))]
    return ["name", "what"], list(rows)


def _sentence(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    whole = " ".join(line.lstrip("# ") for line in lines if not line.startswith("#  "))
    first, end, _ = whole.partition(". ")
    return first + end.strip()
