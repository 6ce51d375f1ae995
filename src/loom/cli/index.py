from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    tokens: Annotated[Path, typer.Argument(help="A token folder: what `loom tokenize` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; finished parts are kept.")],
    shards: Annotated[int, typer.Option(help="Parts of the index, one a node or a disk.")] = 1,
    memory_gb: Annotated[float, typer.Option(help="Memory to sort in, in all.")] = 4.0,
    piece_tokens: Annotated[int, typer.Option(help="Tokens sorted at a time; never changes the index.")] = (
        1 << 28
    ),
    workers: Annotated[int | None, typer.Option(help="Threads; all cores by default.")] = None,
) -> dict[str, Any]:
    """An index over the training tokens, in infini-gram's layout: counts, phrases, documents.

    Example: loom index runs/quickstart/tokens --out runs/quickstart/index
    """
    from loom.console import format_bytes
    from loom.engine import LocalEngine
    from loom.recipe import build
    from loom.trace.build import IndexTokens, build_index

    values = {"tokens": tokens, "shards": shards, "memory_gb": memory_gb, "piece_tokens": piece_tokens}
    made = build_index(build(values, IndexTokens, "loom index"), out, LocalEngine(workers))
    counters = made.counters
    per_token = counters["bytes"] / counters["tokens"]
    console.table(
        f"Index in {out}",
        ["shards", "documents", "tokens", "on disk", "bytes a token"],
        [(shards, counters["documents"], counters["tokens"], format_bytes(counters["bytes"]), per_token)],
        left=0,
    )
    return {"out": str(out), "shards": shards, **counters, "bytes_per_token": per_token}
