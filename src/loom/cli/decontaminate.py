from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    documents: Annotated[list[str], typer.Option(help="Document files: globs or folders.")],
    against: Annotated[list[str], typer.Option(help="Evaluation texts: JSON lines or .txt, one a line.")],
    mode: Annotated[str, typer.Option(help="paloma: whole paragraphs; ngram: for question sets.")] = "paloma",
    out: Annotated[Path | None, typer.Option(help="Root that gets attributes/; the documents' own.")] = None,
    name: Annotated[str, typer.Option(help="The attributes' folder and name.")] = "decontamination",
    field: Annotated[str, typer.Option(help="The field of a JSON line that holds the text.")] = "text",
    ngram: Annotated[int, typer.Option(help="Words of an n-gram.")] = 8,
    most_removed: Annotated[
        float, typer.Option(help="Stop where a larger share of documents is hit.")
    ] = 0.001,
    false_positives: Annotated[float, typer.Option(help="Rate of the paragraphs' Bloom filter.")] = 1e-15,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Mark what evaluation sets share with the corpus; `mix` then drops or cuts it.

    Example: loom decontaminate --documents corpus/documents --against paloma/c4_en/val
    """
    from loom.corpus import remote
    from loom.corpus.contamination import Decontaminate
    from loom.corpus.contamination import run as decontaminate
    from loom.recipe import build

    remote.use_endpoint(endpoint)
    values = {
        "documents": documents,
        "against": against,
        "mode": mode,
        "name": name,
        "field": field,
        "ngram": ngram,
        "shortest": min(5, ngram),
        "most_removed": most_removed,
        "false_positives": false_positives,
    }
    artifact = decontaminate(
        build(values, Decontaminate, "loom decontaminate"), out, choose(engine, workers, address)
    )
    counters = dict(artifact.counters)
    share = counters["contaminated"] / max(counters["documents"], 1)
    columns = ["searched for", "documents", "rejected", "contaminated", "share", "spans"]
    row = (
        counters["searched_for"],
        counters["documents"],
        counters["rejected"],
        counters["contaminated"],
        f"{share:.4%}",
        counters["spans"],
    )
    console.table("Decontamination", columns, [row], left=0)
    return {"attributes": str(artifact.path), "share": share, **counters}
