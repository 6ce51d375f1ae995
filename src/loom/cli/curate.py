from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A curation recipe: recipes/quickstart-corpus.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, on top of the recipe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/curated"),
    workers: Annotated[int | None, typer.Option(help="Workers; all cores by default.")] = None,
    engine: Annotated[str, typer.Option(help="Where tasks run: local.")] = "local",
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and stop.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Try the recipe against the data, and stop.")
    ] = False,
) -> dict[str, Any]:
    """The six curation steps as one resumable run: tag, judge, deduplicate, decontaminate, mix.

    Example: loom curate recipes/quickstart-corpus.yaml documents=runs/raw --out runs/curated
    """
    from loom.corpus.rules import Curate
    from loom.recipe import load

    loaded = load(recipe, Curate, overrides or ())
    if plan:
        return _plan(loaded)
    if check:
        from loom.corpus.plan import check as try_out

        found = try_out(loaded)
        rows = list(found.items())
        console.table("The recipe fits; first rows of each source", ["source", "documents"], rows)
        return {"checked": found}
    from loom.corpus.curate import curate
    from loom.corpus.summary import show
    from loom.engine import local_engine

    artifact = curate(loaded, out, local_engine(engine, workers))
    show(artifact.counters)
    return {"out": str(out), **artifact.counters}


def _plan(recipe: Any) -> dict[str, Any]:
    from loom.console import format_bytes
    from loom.corpus.plan import plan

    found = plan(recipe)
    rows = [
        (
            name,
            part["files"],
            format_bytes(part["bytes"]),
            len(part["remove"]),
            part["share"],
            ", ".join(part["taggers"]),
        )
        for name, part in found["sources"].items()
    ]
    console.table("Would run", ["source", "files", "on disk", "rules", "share", "taggers"], rows)
    console.say(f"Steps: {', '.join(found['steps'])}")
    return found
