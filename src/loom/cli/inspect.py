from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)
SHOWN = 12  # documents of an instance listed on the terminal
EXCERPT = 60  # code points of a document's part shown on the terminal


@app.command()
def inspect(
    run: Annotated[Path, typer.Option(help="A run's folder, or one of its checkpoints.")],
    step: Annotated[int, typer.Option(help="The step; steps count from 1.")],
    rank: Annotated[int, typer.Option(help="Only what this rank read.")] = 0,
    ranks: Annotated[int, typer.Option(help="How many ranks shared the batch.")] = 1,
    text: Annotated[bool, typer.Option("--text", help="The text of instances and documents too.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="First read the token shards and compare their digests.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="At most this many instances.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the batch as a page to this file.")] = None,
) -> dict[str, Any]:
    """The exact documents of a training step's batch, with source and place.

    Example: loom inspect --run runs/quickstart/pretrain --step 100 --text
    """
    from contextlib import nullcontext

    from loom.trace.inspect import inspect_step
    from loom.trace.visible import one_line

    with console.progress("reading the shards") if verify else nullcontext():
        found = inspect_step(
            run, step, rank=rank, ranks=ranks, text=text or page is not None, limit=limit, verify=verify
        )
    if page is not None:
        from loom.trace.page import write_step_page

        write_step_page(page, found)
        console.say(f"page: {page}")
    rows: list[list[Any]] = []
    for number, instance in enumerate(found["instances"]):
        for document in instance["documents"][:SHOWN]:
            place = f"{document['start']}–{document['end']}"
            name = f"{document['id']} ({document['side']})" if "side" in document else document["id"]
            shown = [name, document["source"], document["origin"], place]
            excerpt = one_line(document["text"], EXCERPT) if "text" in document else ""
            rows.append([number, *(one_line(str(value), EXCERPT) for value in shown), excerpt])
        if len(instance["documents"]) > SHOWN:
            rest = f"... {len(instance['documents']) - SHOWN:,} more documents"
            rows.append([number, rest, "", "", "", ""])
    columns = ["instance", "document", "source", "place in the corpus", "tokens", "text"]
    most = len(columns) if text else len(columns) - 1
    console.table(f"Step {step:,} of {run}", columns[:most], [row[:most] for row in rows], left=most)
    return found
