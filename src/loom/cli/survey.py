from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)


@app.command()
def survey(
    out: Annotated[Path, typer.Option(help="Folder for survey.json and the page.")],
    corpus: Annotated[list[str] | None, typer.Argument(help="Files, folders or globs of the corpus.")] = None,
    documents: Annotated[list[str] | None, typer.Option(help="The same, as an option.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Other corpora, each a glob or folder.")] = None,
    only: Annotated[str, typer.Option(help="Analyses, separated by commas; all by default.")] = "",
    ngrams: Annotated[str, typer.Option(help="Lengths of n-grams.")] = "1,2,3,5,10",
    top: Annotated[int, typer.Option(help="N-grams listed.")] = 25,
    table: Annotated[int, typer.Option(help="N-grams counted exactly, for each length.")] = 1 << 20,
    eval: Annotated[
        list[str] | None, typer.Option(help="Evaluation rows to look for: files or folders.")
    ] = None,
    toxic_model: Annotated[Path | None, typer.Option(help="A fastText classifier of toxic text.")] = None,
    search: Annotated[list[str] | None, typer.Option(help="Phrases: 'a OR b AND c'.")] = None,
    regex: Annotated[list[str] | None, typer.Option(help="Regular expressions, RE2's.")] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
) -> dict[str, Any]:
    """What is in a corpus: counts, domains, n-grams, duplicates, contamination, overlap and more.

    Example: loom survey runs/quickstart/curated --against runs/quickstart/raw --out runs/survey
    """
    import json

    from loom.console import format_bytes
    from loom.survey.registry import Options
    from loom.survey.survey import Survey
    from loom.survey.survey import survey as run

    named = [*(corpus or ()), *(documents or ())]
    if not named:
        raise typer.BadParameter("name a corpus: loom survey CORPUS --out DIR")
    try:
        lengths = [part.strip() for part in ngrams.split(",") if part.strip()]
        if not all(part.isdigit() for part in lengths):
            raise ValueError(f"--ngrams is {ngrams!r}; name lengths as in 1,2,3")
        sizes = tuple(map(int, lengths))
        model = str(toxic_model) if toxic_model else None
        options = Options(
            sizes, top, table, tuple(eval or ()), model, tuple(search or ()), tuple(regex or ())
        )
    except ValueError as error:
        raise LoomError(f"{error}.") from None
    names = tuple(part.strip() for part in only.split(",") if part.strip())
    recipe = Survey(tuple(named), tuple((pattern,) for pattern in against or ()), names, options)
    made = run(recipe, out, choose(engine, workers, address))
    found: dict[str, Any] = json.loads(made.file("survey.json").read_bytes())
    if "counts" in found:
        rows = [
            (
                part["corpus"],
                part["counts"]["documents"],
                part["counts"]["words"],
                format_bytes(part["counts"]["bytes"]),
            )
            for part in (found, *found["against"].values())
        ]
        console.table("Surveyed", ["corpus", "documents", "words", "text"], rows)
    for query in found.get("search", {}).get("queries", []):
        console.say(f"{query['query']}: {query['occurrences']:,} times in {query['documents']:,} documents")
    console.say(f"page: {made.file('survey.html')}")
    return found
