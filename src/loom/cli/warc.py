from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    documents: Annotated[list[str], typer.Option(help="WARC files: globs, folders or addresses.")],
    out: Annotated[Path, typer.Option(help="Root that gets documents/<source>/; several may share it.")],
    source: Annotated[str, typer.Option(help="The documents' source.")] = "warc",
    linearizer: Annotated[
        str, typer.Option(help="HTML to text: resiliparse or trafilatura.")
    ] = "resiliparse",
    html: Annotated[bool, typer.Option("--html", help="Keep each page's HTML in the metadata.")] = False,
    added: Annotated[str, typer.Option(help="Date written as `added` into every document.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """WARC files, as crawlers write them -> documents.

    Example: loom warc --documents 'crawl/*.warc.gz' --source cc --out corpus
    """
    from loom.corpus import remote
    from loom.corpus.sources.warc import Warc, collect
    from loom.recipe import build

    remote.use_endpoint(endpoint)
    values = {
        "files": documents,
        "source": source,
        "linearizer": linearizer,
        "html": html,
        "added": added,
    }
    artifact = collect(build(values, Warc, "loom warc"), out, choose(engine, workers, address))
    counters = dict(artifact.counters["sources"][source])
    rows = [(source, *(counters[key] for key in ("records", "documents", "no_page", "no_text", "rejected")))]
    columns = ["source", "records", "documents", "no pages", "no text", "set aside"]
    console.table(f"Written to {out}", columns, rows)
    return {"out": str(out), **counters}
