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
    input: Annotated[list[str], typer.Option(help="The dump's files: globs, folders or addresses.")],
    out: Annotated[Path, typer.Option(help="Root that gets documents/<source>/; several may share it.")],
    source: Annotated[
        str, typer.Option(help="The documents' source; by default the kind, and wiki for mediawiki.")
    ] = "",
    blocklist: Annotated[str, typer.Option(help="Subreddits to leave out, one a line.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """A published dump as documents, by Dolma's rules for its kind.

    Example: loom collect dump mediawiki --input simplewiki-articles.xml.bz2 --out corpus
    """
    from loom.corpus import remote
    from loom.corpus.sources.dumps import Dump, collect
    from loom.recipe import build

    remote.use_endpoint(endpoint)
    values = {"kind": kind, "files": input, "blocklist": blocklist, "source": source}
    made = build(values, Dump, "loom collect dump")
    artifact = collect(made, out, choose(engine, workers, address))
    counters = dict(artifact.counters["sources"][made.name])
    rows = [("entries", counters["seen"])]
    rows += [(f"left out: {rule}", count) for rule, count in counters["left_out"].items()]
    rows += [("set aside: cannot be read", counters["rejected"])] if counters["rejected"] else []
    console.table(f"{made.name} in {out}", ["what", "count"], [*rows, ("documents", counters["documents"])])
    if counters["rejected"]:
        console.say(f"What was set aside, with file, line and reason: {out / 'rejected' / made.name}")
    return {"out": str(out), "source": made.name, **counters}
