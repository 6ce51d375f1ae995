from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Dolma's tagger configuration.")
    ] = None,
    documents: Annotated[list[str] | None, typer.Option(help="Document files: globs or folders.")] = None,
    taggers: Annotated[str, typer.Option(help="Tagger names, by commas (loom list taggers).")] = "",
    out: Annotated[Path | None, typer.Option(help="Root that gets attributes/; the documents' own.")] = None,
    experiment: Annotated[str | None, typer.Option(help="One name for all taggers' attributes.")] = None,
    format: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    tagger_modules: Annotated[
        list[str] | None,
        typer.Option("--tagger-modules", "--tagger-module", help="Modules that register more taggers."),
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="A file that a tagger reads: NAME=MODEL.bin, NAME=LIST.txt.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Run taggers over documents: attributes beside them, row by row.

    Example: loom tag --documents 'corpus/documents/*.jsonl.gz' --taggers gopher_v2,c4_v2 --out corpus
    """
    from loom.corpus import remote
    from loom.corpus.tag import Tag, tag
    from loom.errors import LoomError
    from loom.recipe import build

    remote.use_endpoint(endpoint)
    if (config is None) == (not documents):
        raise LoomError("Give either -c FILE or --documents GLOB... with --taggers.")
    names = [name.strip() for name in taggers.split(",") if name.strip()]
    values: dict[str, Any] = {"documents": documents, "taggers": names, "experiment": experiment}
    values |= {"format": format, "modules": tagger_modules or [], "files": _files(file or [])}
    if config is not None:
        from loom.corpus.dolma.config import Tagger, load

        dolma = load(config, Tagger)
        values |= {"documents": dolma.documents, "taggers": dolma.taggers, "experiment": dolma.experiment}
        values["modules"] = dolma.tagger_modules
        workers = workers or dolma.processes
        if isinstance(dolma.destination, tuple) and len(dolma.destination) > 1:
            raise LoomError(f"{config}: `destination` names several folders; run one at a time.")
        if dolma.destination:
            out = Path(dolma.destination if isinstance(dolma.destination, str) else dolma.destination[0])
            out = out.parent if out.name == "attributes" else out
    artifacts = tag(build(values, Tag, "loom tag"), out, choose(engine, workers, address))
    rows = [
        (item.path.name, item.counters["documents"], item.counters["rejected"], str(item.path))
        for item in artifacts
    ]
    console.table("Tagged", ["tagger", "documents", "rejected", "written to"], rows)
    return {
        "attributes": [str(item.path) for item in artifacts],
        "documents": artifacts[0].counters["documents"],
        "bytes": artifacts[0].counters["bytes"],
        "rejected": artifacts[0].counters["rejected"],
    }


def _files(given: list[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for item in given:
        name, found, path = item.partition("=")
        if not found:
            raise typer.BadParameter(f"--file takes NAME=PATH, not {item!r}.")
        files.setdefault(name, []).append(path)
    return files
