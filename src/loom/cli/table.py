from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)


@app.command()
def run(
    models: Annotated[
        list[str], typer.Argument(help="LABEL=DIR, or LABEL=DIR,DIR,DIR for runs that differ by their seed.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write it here too: .md, or .json.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="What others published below, protocol by protocol.")
    ] = False,
) -> dict[str, Any]:
    """Evaluations side by side, with errors; several seeds of one model as their mean and spread.

    Example: loom table base=eval/base sft=eval/sft-1,eval/sft-2 dpo=eval/dpo-1,eval/dpo-2 --out table.md
    """
    import orjson

    from loom.artifact import atomic_write
    from loom.evals.beside import table as beside
    from loom.evals.beside.published import tables

    places = {}
    for word in models:
        label, equals, folders = word.partition("=")
        if not equals or not folders:
            raise LoomError(f"{word!r} is not LABEL=DIR: name each model and the --out of its evaluation.")
        if label in places:
            raise LoomError(f"{label} is named twice: runs that differ by their seed are {label}=DIR,DIR.")
        places[label] = [Path(folder) for folder in folders.split(",")]
    given = {label: [beside.read(folder) for folder in of] for label, of in places.items()}
    lines, labels = beside.table(given, places), list(given)
    shown = ("", *beside.rows(lines, labels))
    console.table("Before and after", *shown[1:])
    each = {
        label if len(bodies) == 1 else f"{label} {number}": body
        for label, bodies in given.items()
        for number, body in enumerate(bodies, 1)
    }
    others = tables(each) if published else []
    for title, columns, rows in others:
        console.table(title, columns, rows)
    body = {"models": labels, "lines": beside.plain(lines, labels)}
    if out is not None:
        text = beside.markdown([shown, *others]).encode()
        with atomic_write(out) as stream:
            stream.write(orjson.dumps(body, option=orjson.OPT_INDENT_2) if out.suffix == ".json" else text)
        console.say(f"Written to {out}")
    return body
