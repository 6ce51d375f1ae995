from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console
from loom.errors import LoomError

if TYPE_CHECKING:
    from loom.engine import Engine

app = typer.Typer(add_completion=False)
DOCUMENTS = {"--skip-empty", "--min-length", "--min-words", "--bloom", "--expected"}
PARAGRAPHS = DOCUMENTS | {"--ngram", "--stride", "--overlap"}
MINHASH = {"--words", "--bands", "--rows", "--seed"}


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Dolma's deduper configuration.")
    ] = None,
    documents: Annotated[list[str] | None, typer.Option(help="Document files: globs or folders.")] = None,
    by: Annotated[
        str | None, typer.Option(help="document (the default), paragraph, minhash, or a key: $.metadata.url.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The attributes' folder and name; duplicates by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Root that gets attributes/; the documents' own.")] = None,
    skip_empty: Annotated[
        bool | None,
        typer.Option(
            "--skip-empty/--no-skip-empty", help="Leave empty documents and paragraphs alone; yes by default."
        ),
    ] = None,
    min_length: Annotated[int | None, typer.Option(help="Bytes under which nothing is looked at.")] = None,
    min_words: Annotated[int | None, typer.Option(help="Words under which nothing is looked at.")] = None,
    ngram: Annotated[
        int | None, typer.Option(help="Paragraphs by the share of their n-grams seen before.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Words from one n-gram to the next; 1 by default.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of n-grams from which a paragraph is marked; 0.8 by default.")
    ] = None,
    bloom: Annotated[
        Path | None, typer.Option(help="File of a Bloom filter to use and keep; without one exact.")
    ] = None,
    expected: Annotated[
        int | None, typer.Option(help="Entries a Bloom filter is sized for: use one, of so many.")
    ] = None,
    words: Annotated[int | None, typer.Option(help="minhash: words of a shingle; 5 by default.")] = None,
    bands: Annotated[int | None, typer.Option(help="minhash: bands; 14 by default.")] = None,
    rows: Annotated[int | None, typer.Option(help="minhash: hashes a band; 8 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="minhash: of the hash functions; 1 by default.")] = None,
    compat: Annotated[
        str, typer.Option(help="dolma-1.2: its output byte for byte, defects and all (with -c).")
    ] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Mark duplicate documents and paragraphs, or near-duplicates; the first in input order stays unmarked.

    Exact, by 128-bit fingerprints, unless a Bloom filter is asked for (--bloom, --expected, or Dolma's -c FILE).

    Example: loom dedupe --documents corpus/documents --by paragraph --name bff
    """
    from loom.corpus import remote
    from loom.corpus.dolma import config as dolma
    from loom.corpus.dolma import places
    from loom.recipe import build

    remote.use_endpoint(endpoint)
    if compat not in ("", "dolma-1.2"):
        raise LoomError(f"--compat knows dolma-1.2 only, not {compat!r}.")
    if (config is None) == (not documents):
        raise LoomError("Give either -c FILE or --documents GLOB...")
    given: dict[str, Any] = {"--skip-empty": skip_empty, "--min-length": min_length, "--min-words": min_words}
    given |= {"--ngram": ngram, "--stride": stride, "--overlap": overlap, "--bloom": bloom}
    given |= {"--expected": expected, "--words": words, "--bands": bands, "--rows": rows, "--seed": seed}
    if config is not None:
        _refuse(given | {"--by": by, "--name": name, "--out": out}, set(), "with -c, where the file says")
        chosen = dolma.load(config, dolma.Deduper)
        if chosen.dryrun:
            return _dry_run(chosen, compat)
        return _dedupe(
            chosen, compat, None, choose(engine, workers or places.workers(chosen.processes), address)
        )
    if compat:
        raise LoomError("--compat is for Dolma's own files (-c FILE).")
    by, name = by or "document", name or "duplicates"
    if by == "minhash":
        _refuse(given, MINHASH, "with --by minhash")
        chosen_by = {"words": words, "bands": bands, "rows": rows, "seed": seed}
        return _minhash(documents or [], name, out, chosen_by, choose(engine, workers, address))
    _refuse(given, PARAGRAPHS if by == "paragraph" else DOCUMENTS, f"with --by {by}")
    if ngram is None:
        _refuse({"--stride": stride, "--overlap": overlap}, set(), "without --ngram")
    ngrams = {
        "ngram_length": ngram or 0,
        "stride": 1 if stride is None else stride,
        "overlap_threshold": 0.8 if overlap is None else overlap,
    }
    what: dict[str, Any] = (
        {"paragraphs": {"attribute_name": name, "by_ngram": ngrams}}
        if by == "paragraph"
        else {"documents": {"attribute_name": name, "key": "$.text" if by == "document" else by}}
    )
    values: dict[str, Any] = {
        "documents": documents,
        "dedupe": {
            "name": name,
            "skip_empty": skip_empty is not False,
            "min_length": min_length or 0,
            "min_words": min_words or 0,
            **what,
        },
    }
    if bloom is not None or expected is not None:
        values["bloom_filter"] = {
            "file": remote.address(bloom or "") or str(bloom or ""),
            "read_only": False,
            "estimated_doc_count": expected or 10_000_000,
            "desired_false_positive_rate": 1e-6,
        }
    return _dedupe(build(values, dolma.Deduper, "loom dedupe"), "", out, choose(engine, workers, address))


def _refuse(given: Mapping[str, Any], allowed: set[str], why: str) -> None:
    """Raise `LoomError` for a flag that would be ignored."""
    if idle := [flag for flag, value in given.items() if value is not None and flag not in allowed]:
        raise LoomError(f"{idle[0]} says nothing {why}: leave it out.")


def _dedupe(chosen: Any, compat: str, out: Path | None, engine: Engine) -> dict[str, Any]:
    from loom.corpus import remote
    from loom.corpus.dolma.deduping import dedupe

    artifact = dedupe(chosen, compat, engine, out)
    counters = dict(artifact.counters)
    where = remote.address(artifact.path) or str(artifact.path)
    row = (chosen.dedupe.name, counters["documents"], counters["rejected"], counters["duplicates"], where)
    console.table("Duplicates", ["name", "documents", "rejected", "marked", "written to"], [row])
    return {"attributes": where, **counters}


def _dry_run(chosen: Any, compat: str) -> dict[str, Any]:
    from loom.corpus import remote
    from loom.corpus.dolma.deduping import plan

    planned = plan(chosen, compat)
    where = remote.address(planned.root) or str(planned.root)
    row = (chosen.dedupe.name, len(planned.files), where)
    console.table("Dry run: nothing was done", ["name", "files", "would be written to"], [row])
    return {"dryrun": True, "files": len(planned.files), "attributes": where}


def _minhash(
    documents: list[str], name: str, out: Path | None, chosen: Mapping[str, int | None], engine: Engine
) -> dict[str, Any]:
    from loom.corpus.dedupe.minhash import MinHash, minhash
    from loom.recipe import build

    values = {"documents": documents, "name": name, **{k: v for k, v in chosen.items() if v is not None}}
    artifact = minhash(build(values, MinHash, "loom dedupe"), engine, out)
    counters = dict(artifact.counters)
    keys = ("documents", "rejected", "clusters", "duplicates")
    columns = ["name", "documents", "rejected", "clusters", "marked", "written to"]
    console.table("Near-duplicates", columns, [(name, *(counters[key] for key in keys), str(artifact.path))])
    return {"attributes": str(artifact.path), **counters}
