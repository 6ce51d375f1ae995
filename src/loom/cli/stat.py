from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    attributes: Annotated[list[str], typer.Option(help="Attribute files: globs, folders or addresses.")],
    like: Annotated[str, typer.Option(help="Only attributes whose name holds this text.")] = "",
    page: Annotated[Path | None, typer.Option(help="Also write the histograms as a page.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Histograms of attributes, in the terminal and as a page.

    Example: loom stat --attributes corpus/attributes/gopher_v2 --like word_count
    """
    from loom.corpus import remote
    from loom.corpus.statistics import files_of, histograms, write_page

    remote.use_endpoint(endpoint)
    found = histograms(files_of(attributes), like)
    rows = [
        (item.key, item.present, item.spans, item.mean, *item.quantiles[1:4], item.bars) for item in found
    ]
    columns = ["attribute", "documents", "spans", "mean", "25 %", "50 %", "75 %", "low to high"]
    console.table(f"{found[0].documents:,} documents", columns, rows)
    if page is not None:
        write_page(found, page)
        console.say(f"The page is {page}")
    return {"attributes": [asdict(item) for item in found]}
