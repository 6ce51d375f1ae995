from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT_OR_RUN...", help="Checkpoints, or runs: all they hold."),
    ],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    last: Annotated[int | None, typer.Option(help="Of a run only its newest so many.", min=1)] = None,
) -> dict[str, Any]:
    """The mean of several checkpoints' weights, as a checkpoint: often better than the last one.

    It is a MODEL, to evaluate, tune or export.

    Example: loom average runs/tiny --last 3 --out runs/tiny-mean
    """
    from loom.train.average import average, chosen

    folders = chosen(models, last)
    with console.progress("averaging"):
        average(folders, out)
    console.table(
        f"The mean of {len(folders)} checkpoints: {out}", ["of"], [[str(f)] for f in folders], left=1
    )
    return {"out": str(out), "checkpoints": [str(folder) for folder in folders]}
