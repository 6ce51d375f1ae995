from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    a: Annotated[Path, typer.Argument(help="The --out of one evaluation.")],
    b: Annotated[Path, typer.Argument(help="The --out of another, on the same rows.")],
    metrics: Annotated[str, typer.Option(help="Metrics between commas; default: each task's headline.")] = "",
) -> dict[str, Any]:
    """Compare two evaluations document by document: B minus A, with McNemar's test and a paired bootstrap.

    Example: loom compare runs/quickstart/eval/base runs/quickstart/eval/sft
    """
    from loom.evals.beside.compare import compare
    from loom.evals.beside.difference import plain

    found = compare(a, b, tuple(filter(None, metrics.split(","))))
    console.table(
        f"B minus A: {b} minus {a}",
        ["task", "metric", "n", "A", "B", "B - A", "95 % from", "to", "only A", "only B", "p", "detectable"],
        [
            [
                item.task,
                item.metric,
                item.n,
                *map(_short, (item.a, item.b, item.difference, item.low, item.high)),
                item.only_a,
                item.only_b,
                item.p,
                _short(item.detectable),
            ]
            for item in found
        ],
        left=2,
    )
    console.say("detectable: the difference that this many documents show in four cases of five.")
    return {"comparisons": plain(found)}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
