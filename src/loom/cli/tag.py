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
    compat: Annotated[
        str, typer.Option(help="dolma-1.2, with -c: Dolma's names write Dolma's attributes in any case.")
    ] = "",
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
    if compat not in ("", "dolma-1.2"):
        raise LoomError(f"--compat knows dolma-1.2 only, not {compat!r}.")
    files = _files(file or [])
    if config is not None:
        idle = {
            "--taggers": names,
            "--out": out,
            "--experiment": experiment,
            "--tagger-modules": tagger_modules,
        }
        if given := next((flag for flag, value in idle.items() if value), None):
            raise LoomError(f"{given} says nothing with -c, where the file says: leave it out.")
        return _dolma(config, files, format, engine, workers, address)
    if compat:
        raise LoomError("--compat is for Dolma's own files (-c FILE).")
    values: dict[str, Any] = {"documents": documents, "taggers": names, "experiment": experiment}
    values |= {"format": format, "modules": tagger_modules or [], "files": files}
    return _report(tag(build(values, Tag, "loom tag"), out, choose(engine, workers, address)))


def _report(artifacts: list[Any]) -> dict[str, Any]:
    from loom.corpus import remote

    where = [remote.address(item.path) or str(item.path) for item in artifacts]
    rows = [
        (item.path.name, item.counters["documents"], item.counters["rejected"], place)
        for item, place in zip(artifacts, where, strict=True)
    ]
    console.table("Tagged", ["tagger", "documents", "rejected", "written to"], rows)
    roots = {item.path.parent: item for item in artifacts}.values()  # each counts its documents once
    total = {key: sum(item.counters[key] for item in roots) for key in ("documents", "bytes", "rejected")}
    return {"attributes": where, **total}


def _dolma(
    config: Path, files: dict[str, list[str]], format: str, engine: str, workers: int | None, address: str
) -> dict[str, Any]:
    from loom.corpus import remote
    from loom.corpus.dolma import places
    from loom.corpus.dolma.config import Tagger, load
    from loom.corpus.dolma.tagging import plan, tag

    chosen = load(config, Tagger)
    read = {name: tuple(paths) for name, paths in files.items()}
    if chosen.dryrun:
        roots = [remote.address(item.root) or str(item.root) for item in plan(chosen, read, format)]
        rows = [(root, ", ".join(chosen.taggers)) for root in roots]
        console.table("Dry run: nothing was done", ["root", "taggers"], rows)
        return {"dryrun": True, "roots": roots, "taggers": list(chosen.taggers)}
    count = workers or (1 if chosen.debug else places.workers(chosen.processes))
    return _report(tag(chosen, read, choose(engine, count, address), format))


def _files(given: list[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for item in given:
        name, found, path = item.partition("=")
        if not found:
            raise typer.BadParameter(f"--file takes NAME=PATH, not {item!r}.")
        files.setdefault(name, []).append(path)
    return files
