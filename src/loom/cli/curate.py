from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(help="A curation recipe, for example recipes/quickstart-corpus.yaml.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, on top of the recipe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/curated"),
    workers: Annotated[int | None, typer.Option(help="Workers; all cores by default.")] = None,
    engine: Annotated[str, typer.Option(help="Where tasks run: local.")] = "local",
) -> dict[str, Any]:
    """The six curation steps as one resumable run: tag, judge, deduplicate, decontaminate, mix.

    Example: loom curate recipes/quickstart-corpus.yaml documents=runs/raw --out runs/curated
    """
    from loom.corpus.curate import Curate, curate
    from loom.corpus.summary import show
    from loom.engine import local_engine
    from loom.recipe import load

    loaded = load(recipe, Curate, overrides or ())
    artifact = curate(loaded, out, local_engine(engine, workers))
    show(artifact.counters)
    return {"out": str(out), **artifact.counters}
