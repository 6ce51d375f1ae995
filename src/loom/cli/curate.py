from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

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
    from loom.engine import local_engine
    from loom.recipe import load

    loaded = load(recipe, Curate, overrides or ())
    artifact = curate(loaded, out, local_engine(engine, workers))
    show(artifact.counters)
    return {"out": str(out), **artifact.counters}


def show(counters: dict[str, Any] | Any) -> None:
    """The table of a curation: documents and bytes in, removed by each rule, masked, out."""
    from loom.console import format_bytes

    rows: list[tuple[Any, ...]] = []
    for name, part in counters["sources"].items():
        rows.append((name, "in", part["documents_in"], format_bytes(part["bytes_in"])))
        rows += [
            ("", f"removed: {rule}", count, format_bytes(part["removed_bytes"][rule]))
            for rule, count in part["removed"].items()
        ]
        rows += [("", f"cut: {kind}", count, None) for kind, count in sorted(part["cut"].items())]
        rows += [("", f"masked: {kind}", count, None) for kind, count in sorted(part["masked"].items())]
        rows.append(("", "out", part["documents_out"], format_bytes(part["bytes_out"])))
    rows.append(("all", "in", counters["documents_in"], format_bytes(counters["bytes_in"])))
    rows.append(("", "out", counters["documents_out"], format_bytes(counters["bytes_out"])))
    console.table("Curation", ["source", "what", "count", "text"], rows, left=2)
