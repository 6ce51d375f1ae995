from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    minutes: Annotated[
        float | None,
        typer.Option(help="Time for the whole road on this machine.  [default: 8]", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the road; it goes on where it stopped.")] = Path(
        "runs/quickstart"
    ),
    limit_mb: Annotated[float, typer.Option(help="Megabytes of text a source, at most.")] = 15.0,
    total_mb: Annotated[float, typer.Option(help="Megabytes of text in all, at most.")] = 40.0,
    workers: Annotated[
        int | None, typer.Option(help="Workers of the corpus stages; all cores by default.")
    ] = None,
) -> dict[str, Any]:
    """The whole road on this machine: curate its Python's texts, train, tune, evaluate, export, ask.

    Example: loom quickstart --minutes 8 --out runs/quickstart
    """
    from loom.road.result import read_result, show_result

    if (done := read_result(out)) is not None and minutes in (None, done["minutes"]):
        console.say(f"{out} is finished; nothing to do.")
        show_result(done, out)
        return done
    from loom.report.power import sampled
    from loom.road.quickstart import Quickstart, quickstart

    with sampled(out):
        return quickstart(Quickstart(minutes, limit_mb, total_mb, workers=workers), out)
