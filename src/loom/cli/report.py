from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A quickstart's or a training run's folder.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: RUN/report.html.")] = None,
) -> dict[str, Any]:
    """Draw a run's page anew from its records.

    Example: loom report runs/quickstart
    """
    from loom.report.page import write_report
    from loom.report.records import read_records

    page = out or path / "report.html"
    data = read_records(path)
    write_report(page, data)
    console.table(
        f"Report {page}",
        ["what", "value"],
        [
            ["title", data.title],
            ["runs", len(data.training)],
            ["models compared", len(data.comparison.models) if data.comparison else 0],
            ["stages", len(data.stages)],
        ],
    )
    return {"path": str(page), "title": data.title}
