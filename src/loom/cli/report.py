from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A quickstart's or training run's folder; or several."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page; default: RUN/report.html.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Folders of `loom eval`, shown with the OLMo paper's figures beside."),
    ] = None,
    pue: Annotated[float | None, typer.Option(help="The data centre's power usage effectiveness.")] = None,
    carbon: Annotated[float | None, typer.Option(help="Carbon intensity, kg CO2eq a kWh.")] = None,
    grid_source: Annotated[str | None, typer.Option(help="Who says so.")] = None,
) -> dict[str, Any]:
    """Draw a run's page anew from its records; of several runs, one page that compares them.

    Example: loom report runs/quickstart
    Example: loom report runs/1b --eval eval/1b
    Example: loom report runs/on-mi250x runs/on-a100 --out same.html
    """
    from loom.report.energy import Given
    from loom.report.page import write_report
    from loom.report.records import compare_runs, read_records
    from loom.report.scores import read_scores

    page = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    given = Given(pue, carbon, grid_source)
    data = read_records(paths[0], given) if len(paths) == 1 else compare_runs(paths)
    if evaluation:
        data = replace(data, scores=read_scores(evaluation))
    write_report(page, data)
    console.table(
        f"Report {page}",
        ["what", "value"],
        [
            ["title", data.title],
            ["runs", len(data.training) or len(data.beside)],
            ["models compared", len(data.comparison.models) if data.comparison else 0],
            ["stages", len(data.stages)],
        ],
    )
    if data.outcomes:
        titles, *rows = data.outcomes
        console.table("What differs, and how the runs ended", titles, rows, left=len(titles) - 1)
    for sentence in data.noise:
        console.say(sentence)
    return {"path": str(page), "title": data.title, "noise": list(data.noise)}
