from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Where runs will be written: this disk is tried.")] = Path("."),
    seconds: Annotated[float, typer.Option(help="How long to compute for the clocks.", min=0.5)] = 3.0,
    megabytes: Annotated[int, typer.Option(help="How much to write to the disk.", min=1)] = 256,
) -> dict[str, Any]:
    """Try this machine before hours are spent on it: attention, clocks, disk, communication.

    Example: loom doctor --out runs
    Example: torchrun --nproc-per-node 8 -m loom doctor --out runs
    """
    from loom.errors import LoomError
    from loom.machine.doctor import Finding, examine
    from loom.train.parallel import start_world

    world = start_world()
    try:
        with console.progress("trying this machine"):
            mine = examine(world, out, seconds=seconds, megabytes=megabytes)
        everyone: list[list[Finding]] = world.gather(mine)
    finally:
        world.close()
    # Of each thing the worst that a rank found.
    shown = [
        next((found for found in group if found.verdict == "bad"), group[0])
        for group in zip(*everyone, strict=True)
    ]
    bad: dict[str, list[str]] = {}
    for found in shown:
        if found.verdict == "bad":
            bad.setdefault(found.mend, []).append(found.what)
    if world.first:
        where = f" ({world.size} ranks)" if world.size > 1 else ""
        rows = [[found.what, found.verdict, found.said] for found in shown]
        console.table(f"This machine{where}", ["what", "", "found"], rows, left=3)
    if bad:
        mends = "; ".join(f"for {', '.join(names)}: {mend}" for mend, names in bad.items())
        raise LoomError(f"Not fit to train on: {mends}.")
    return {"ranks": world.size, "device": str(world.device), "findings": [asdict(found) for found in shown]}
