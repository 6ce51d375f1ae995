from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with Loom.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value ...", help="Dotted keys; values are YAML.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder; a run goes on where it stopped.")] = Path(
        "run"
    ),
) -> dict[str, Any]:
    """Pretrain, fine-tune or preference-tune from a recipe.

    Example: loom train tiny data.tokens=tokens train.steps=1000 --out runs/tiny
    """
    import json
    import os
    import sys
    from contextlib import nullcontext

    from loom.recipe import load
    from loom.report.power import sampled
    from loom.road.evaluation import recipe_evaluation
    from loom.road.training import run_training
    from loom.train.config import RunConfig

    config = load(recipe, RunConfig, overrides or ())
    first = os.environ.get("RANK", "0") == "0"
    if not first:  # one rank speaks for all; what goes wrong is said by whom it meets
        console.quiet = True
    # One process a node could sample; the first node's stands for all (report.power).
    ranks, here = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    nodes = max(1, ranks // here) if here else 1
    with sampled(out, nodes=nodes) if first else nullcontext():
        last = run_training(config, out, evaluate=recipe_evaluation(config))
    if not first:
        sys.exit(0)  # not a word, nor the object of --json
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    final = json.loads(lines[-1])
    shown = {name: value for name, value in final.items() if isinstance(value, float | int)}
    console.table(f"{out}", ["at the last step", "value"], [[name, value] for name, value in shown.items()])
    console.say(f"checkpoint: {last}")
    return {"out": str(out), "checkpoint": str(last), **shown}
