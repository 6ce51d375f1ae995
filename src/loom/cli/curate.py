from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A curation recipe: recipes/quickstart-corpus.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, on top of the recipe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/curated"),
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and stop.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Try the recipe against the data, and stop.")
    ] = False,
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """The six curation steps as one resumable run: tag, judge, deduplicate, decontaminate, mix.

    Example: loom curate recipes/quickstart-corpus.yaml documents=runs/raw --out runs/curated
    """
    from loom.corpus import remote
    from loom.corpus.rules import Curate
    from loom.recipe import load

    remote.use_endpoint(endpoint)

    loaded = load(recipe, Curate, overrides or ())
    if plan:
        return _plan(loaded)
    if check:
        from loom.corpus.plan import check as try_out

        found = try_out(loaded)
        rows = [
            (name, part["files"], part["documents"], part["rejected"], rule, count)
            for name, part in found.items()
            for rule, count in (part["matched"] or {"": 0}).items()
        ]
        columns = ["source", "files", "documents", "rejected", "rule", "would remove"]
        console.table("The recipe fits; some rows of each source", columns, rows)
        return {"checked": found}
    from loom.corpus.curate import curate
    from loom.corpus.summary import show

    artifact = curate(loaded, out, choose(engine, workers, address))
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
    for name, part in found["sources"].items():
        console.heading(f"{name}: what is removed, what is replaced")
        for rule, text in part["remove"].items():
            console.say(f"  {rule}: {text}")
        if part["unique"]:
            console.say(f"  duplicate_key: {part['unique']} that another document had before")
        for span, by in part["replace"].items():
            console.say(f"  {span} -> {by!r}")
    for name, meaning in found["names"].items():
        console.say(f"{name} stands for {meaning}")
    console.say(f"Steps: {', '.join(found['steps'])}")
    return found
