from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    document: Annotated[str, typer.Argument(help="A document's id.")],
    curated: Annotated[
        Path, typer.Option(help="What `loom curate`, `loom mix` or `loom tokenize` wrote.")
    ] = Path("runs/curated"),
    run: Annotated[Path | None, typer.Option(help="A run: the steps that read the document.")] = None,
) -> dict[str, Any]:
    """What happened to one document: the rule that dropped it, or the spans that were changed, with values.

    Example: loom why python-docs/stdlib/textwrap --curated runs/quickstart/curated --run runs/quickstart/dpo
    """
    from loom.corpus.why import why

    found = why(document, curated)
    place = f"  ({found['source']}, {found['file']} row {found['row']})" if found["file"] else ""
    console.say(f"{found['id']}{place}")
    for sentence in (found["verdict"], *found["later"]):
        console.say(sentence)
    rows = [
        (item["rule"], item["expression"], "removes it" if item["matched"] else "", item["values"])
        for item in found["rules"]
    ]
    if rows:
        console.table("Rules", ["rule", "expression", "", "values"], rows, left=4)
    if found["spans"]:
        spans = [(item["kind"], f"{item['start']}:{item['end']}", item["text"]) for item in found["spans"]]
        console.table("Spans that were changed", ["what", "where", "text"], spans, left=3)
    if run is not None:
        from loom.trace.takedown import runs_that_read
        from loom.trace.visible import step_ranges

        found["runs"] = runs_that_read([run], {document}).get(document, [])
        for reading in found["runs"]:
            console.say(f"{reading['run']} read it in steps {step_ranges(reading['steps'])}")
        if not found["runs"]:
            console.say(f"{run} has not read it.")
    return found
