from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def collect() -> None:
    """Raw text on this machine -> documents.

    Example: loom collect python --out runs/raw
    """


@app.command()
def python(
    out: Annotated[Path, typer.Option(help="Folder to write; finished parts are kept.")],
    sources: Annotated[str, typer.Option(help="Which sources, separated by commas.")] = (
        "python-docs,packages,code,system-docs"
    ),
    limit_mb: Annotated[float, typer.Option(help="Megabytes of text a source, at most.")] = 15.0,
    total_mb: Annotated[float, typer.Option(help="Megabytes of text in all, at most.")] = 40.0,
    seed: Annotated[int, typer.Option(help="Key of the choice of documents.")] = 0,
    docs: Annotated[Path, typer.Option(help="Folder of system-docs.")] = Path("/usr/share/doc"),
    workers: Workers = None,
) -> dict[str, Any]:
    """This machine's Python: documentation, package descriptions, library code, system documents.

    Example: loom collect python --out runs/raw --limit-mb 5
    """
    from loom.console import format_bytes
    from loom.corpus.sources.python import SOURCES, Collect
    from loom.corpus.sources.python import collect as run
    from loom.recipe import build

    names = [name.strip() for name in sources.split(",") if name.strip()]
    values = {
        "sources": names or list(SOURCES),
        "limit_mb": limit_mb,
        "total_mb": total_mb,
        "seed": seed,
        "docs": str(docs),
    }
    artifact = run(build(values, Collect, "loom collect python"), out, choose("local", workers))
    counters = artifact.counters
    rows = [
        (name, part["documents"], format_bytes(part["bytes"]), part["found"])
        for name, part in counters["sources"].items()
    ]
    rows.append(("all", counters["documents"], format_bytes(counters["bytes"]), None))
    console.table(f"Collected into {out}", ["source", "documents", "text", "found"], rows)
    console.say(f"{counters['functions']:,} functions with a summary")
    return {"out": str(out), **counters}


@app.command()
def dump(
    kind: Annotated[str, typer.Argument(help="reddit, mediawiki, gutenberg, stack, c4 or pes2o.")],
    input: Annotated[list[Path], typer.Option(help="The dump's files.")],
    out: Annotated[Path, typer.Option(help="Folder to write; finished files are kept.")],
    blocklist: Annotated[str, typer.Option(help="Subreddits to leave out, one a line.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
) -> dict[str, Any]:
    """A published dump as documents, by Dolma's rules for its kind.

    Example: loom collect dump mediawiki --input simplewiki-articles.xml.bz2 --out corpus
    """
    from loom.corpus.sources.dumps import Dump, collect
    from loom.recipe import build

    values = {"kind": kind, "files": [str(path) for path in input], "blocklist": blocklist}
    artifact = collect(build(values, Dump, "loom collect dump"), out, choose(engine, workers, address))
    counters = dict(artifact.counters)
    rows = [(kind, counters["seen"], counters["documents"])]
    console.table(f"Collected into {out}", ["kind", "entries", "documents"], rows)
    return {"out": str(out), **counters}
