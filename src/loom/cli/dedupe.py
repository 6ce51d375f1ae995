from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console

if TYPE_CHECKING:
    from loom.engine import Engine

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="Dolma's deduper configuration.")
    ] = None,
    documents: Annotated[list[str] | None, typer.Option(help="Document files: globs or folders.")] = None,
    by: Annotated[
        str, typer.Option(help="document, paragraph, minhash, or a key such as $.metadata.url.")
    ] = ("document"),
    name: Annotated[str, typer.Option(help="The attributes' folder and name.")] = "duplicates",
    skip_empty: Annotated[bool, typer.Option(help="Leave empty documents and paragraphs alone.")] = True,
    min_length: Annotated[int, typer.Option(help="Bytes under which nothing is looked at.")] = 0,
    min_words: Annotated[int, typer.Option(help="Words under which nothing is looked at.")] = 0,
    ngram: Annotated[int, typer.Option(help="Paragraphs by the share of their n-grams seen before.")] = 0,
    stride: Annotated[int, typer.Option(help="Words from one n-gram to the next.")] = 1,
    overlap: Annotated[float, typer.Option(help="Share of n-grams from which a paragraph is marked.")] = 0.8,
    bloom: Annotated[Path | None, typer.Option(help="File of the Bloom filter to keep.")] = None,
    expected: Annotated[int, typer.Option(help="Entries the Bloom filter is sized for.")] = 10_000_000,
    compat: Annotated[str, typer.Option(help="dolma-1.2: its output byte for byte, defects and all.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
) -> dict[str, Any]:
    """Mark duplicate documents and paragraphs; the first in input order stays unmarked.

    Example: loom dedupe --documents corpus/documents --by paragraph --name bff
    """
    from loom.corpus.dolma import config as dolma
    from loom.corpus.dolma.deduping import dedupe
    from loom.errors import LoomError
    from loom.recipe import build

    if compat not in ("", "dolma-1.2"):
        raise LoomError(f"--compat knows dolma-1.2 only, not {compat!r}.")
    if (config is None) == (not documents):
        raise LoomError("Give either -c FILE or --documents GLOB...")
    if config is not None:
        chosen = dolma.load(config, dolma.Deduper)
    elif by == "minhash":
        return _minhash(documents or [], name, choose(engine, workers, address))
    else:
        if ngram and by != "paragraph":
            raise LoomError("--ngram is for paragraphs: add --by paragraph.")
        ngrams = {"ngram_length": ngram, "stride": stride, "overlap_threshold": overlap}
        what: dict[str, Any] = (
            {"paragraphs": {"attribute_name": name, "by_ngram": ngrams}}
            if by == "paragraph"
            else {"documents": {"attribute_name": name, "key": "$.text" if by == "document" else by}}
        )
        values = {
            "documents": documents,
            "dedupe": {
                "name": name,
                "skip_empty": skip_empty,
                "min_length": min_length,
                "min_words": min_words,
                **what,
            },
            "bloom_filter": {
                "file": str(bloom or ""),
                "read_only": False,
                "estimated_doc_count": expected,
                "desired_false_positive_rate": 1e-6,
            },
        }
        chosen = build(values, dolma.Deduper, "loom dedupe")
    artifact = dedupe(
        chosen, compat, choose(engine, workers or (chosen.processes if config else None), address)
    )
    counters = dict(artifact.counters)
    rows = [(chosen.dedupe.name, counters["documents"], counters["duplicates"], str(artifact.path))]
    console.table("Duplicates", ["name", "documents", "marked", "written to"], rows)
    return {"attributes": str(artifact.path), **counters}


def _minhash(documents: list[str], name: str, engine: Engine) -> dict[str, Any]:
    from loom.corpus.dedupe.minhash import MinHash, minhash

    artifact = minhash(MinHash(documents=tuple(documents), name=name), engine)
    counters = dict(artifact.counters)
    rows = [(name, counters["documents"], counters["clusters"], counters["duplicates"], str(artifact.path))]
    console.table("Near-duplicates", ["name", "documents", "clusters", "marked", "written to"], rows)
    return {"attributes": str(artifact.path), **counters}
