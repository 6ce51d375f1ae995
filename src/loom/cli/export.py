from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The Hugging Face folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: as stored.")] = None,
    shard_bytes: Annotated[
        int, typer.Option(help="At most this many bytes of tensors in a file.")
    ] = 5_000_000_000,
    chat: Annotated[
        str, typer.Option(help="Write a chat template: auto (if it was tuned), yes, no.")
    ] = "auto",
) -> dict[str, Any]:
    """Write a model as a Hugging Face folder, and check every weight and a probe text against the source.

    Example: loom export runs/quickstart/dpo runs/quickstart/export
    """
    from loom.recipe import build
    from loom.release.export import Export, export

    recipe = build({"dtype": dtype, "shard_bytes": shard_bytes, "chat": chat}, Export, "loom export")
    made = export(checkpoint, out, recipe)
    files = [{"path": item.path, "bytes": item.bytes} for item in made.outputs]
    return {"path": str(out), **made.counters, **made.facts["model"], "files": files}
