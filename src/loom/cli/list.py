from __future__ import annotations

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
    kinds = {"taggers": _taggers, "recipes": _recipes}
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

    rows: list[tuple[str, ...]] = [(item.name, item.spans, item.source, item.summary) for item in available()]
    return ["name", "spans", "source", "what"], rows


def _recipes() -> tuple[list[str], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    for path in sorted(Path("recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[:1]
        rows.append((str(path), first[0].lstrip("# ") if first and first[0].startswith("#") else ""))
    return ["name", "what"], rows
