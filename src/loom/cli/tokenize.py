from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.cli.engines import Address, EngineName, Workers, choose
from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)


@app.command()
def run(
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer.json, or a folder that holds one.")],
    out: Annotated[Path, typer.Option(help="The token folder to write.")],
    documents: Annotated[
        list[str] | None, typer.Option(help="Files, folders, quoted globs, addresses.")
    ] = None,
    adopt: Annotated[Path | None, typer.Option(help="Take over a folder of OLMo's or Dolma's .npy.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of documents kept in heldout/; none by default.")
    ] = None,
    shard_tokens: Annotated[
        int | None, typer.Option(help="About how many tokens a shard holds; 500,000,000 by default.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also write Dolma's .csv.gz beside each shard.")] = False,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
) -> dict[str, Any]:
    """Encode documents into token shards, or take over shards that OLMo or Dolma wrote.

    Example: loom tokenize --documents corpus --tokenizer tok/tokenizer.json --out tokens --held-out 0.01
    """
    from loom.tokens import remote
    from loom.tokens.adopt import Adopt
    from loom.tokens.adopt import adopt as take_over
    from loom.tokens.tokenize import Tokenize
    from loom.tokens.tokenize import tokenize as encode

    remote.use_endpoint(endpoint)
    if (documents is None) == (adopt is None):
        raise typer.BadParameter("give either --documents or --adopt")
    if adopt is not None:
        given: dict[str, Any] = {"--held-out": held_out, "--shard-tokens": shard_tokens, "--csv": csv or None}
        given |= {"--workers": workers, "--engine": engine if engine != "local" else None}
        if idle := next((flag for flag, value in given.items() if value is not None), None):
            raise LoomError(
                f"{idle} says nothing with --adopt, which takes files over as they are: leave it out."
            )
    try:
        if adopt is not None:
            made = take_over(Adopt(adopt, tokenizer), out)
        else:
            recipe = Tokenize(tuple(documents or ()), tokenizer, held_out or 0.0, csv=csv)
            recipe = recipe if shard_tokens is None else replace(recipe, shard_tokens=shard_tokens)
            made = encode(recipe, out, choose(engine, workers, address))
    except ValueError as error:
        raise LoomError(f"{error}.") from None
    facts = made.facts["tokens"]
    rows = [
        [name, item["documents"], item["bytes"], item["tokens"], _ratio(item)]
        for name, item in facts["sources"].items()
    ]
    console.table(f"Tokens {out}", ["source", "documents", "bytes", "tokens", "bytes a token"], rows)
    counters = made.counters
    console.say(
        f"{counters['tokens']:,} tokens in {len(facts['shards'])} shards of {facts['dtype']}; "
        + ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in counters.items() if key != "tokens"
        )
    )
    return {"path": str(out), **counters, "sources": facts["sources"]}


def _ratio(item: dict[str, int]) -> float | None:
    return item["bytes"] / item["tokens"] if item["tokens"] and item["bytes"] else None
