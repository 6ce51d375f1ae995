from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with Loom.")],
    values: Annotated[
        list[str],
        typer.Argument(metavar="key=a,b,c ...", help="Several values make runs; one is set for all."),
    ],
    out: Annotated[Path, typer.Option(help="A folder for all runs, one below it for each.")],
) -> dict[str, Any]:
    """Train a recipe at every combination of some keys' values, and compare the runs. Goes on where it stopped.

    Example: loom sweep tiny data.tokens=tokens optimizer.learning_rate=2e-3,4e-3 seed=1,2,3 --out runs/sweep
    """
    from loom.recipe import load
    from loom.report.noise import sentences
    from loom.report.page import write_report
    from loom.report.records import compare_runs, outcome
    from loom.report.sweep import groups, table
    from loom.road.evaluation import recipe_evaluation
    from loom.road.sweep import combinations
    from loom.road.training import run_training
    from loom.train.config import RunConfig

    chosen = combinations(values)
    # All are read before the first is run, so that a mistake in the last is known at once.
    configs = {name: load(recipe, RunConfig, overrides) for name, overrides in chosen.items()}
    for number, (name, config) in enumerate(configs.items(), start=1):
        console.say(f"{number} of {len(configs)}: {name}")
        run_training(config, out / name, evaluate=recipe_evaluation(config), name=name)
    paths = [out / name for name in configs]
    page = out / "report.html"
    write_report(page, compare_runs(paths))
    keys, found = groups([outcome(path) for path in paths])
    columns, rows = table(keys, found)
    console.table(f"{len(paths)} runs, best first", columns, rows, left=len(keys))
    for sentence in sentences(keys, found):
        console.say(sentence)
    console.say(f"page: {page}")
    return {"out": str(out), "page": str(page), "runs": list(configs), "columns": columns, "rows": rows}
