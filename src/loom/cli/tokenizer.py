from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Train a byte-level BPE tokenizer."""


@app.command()
def train(
    documents: Annotated[list[str], typer.Option(help="Files, folders or quoted globs of documents.")],
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write, or a folder for it.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, the five special tokens included.")] = 50_304,
    sample: Annotated[float, typer.Option(help="Share of documents to read, by hash of their id.")] = 1.0,
) -> dict[str, Any]:
    """Train a byte-level BPE tokenizer on documents and write a Hugging Face tokenizer.json.

    Example: loom tokenizer train --documents corpus --vocab-size 8192 --out tok/tokenizer.json
    """
    from loom.tokens.bpe import TrainTokenizer
    from loom.tokens.bpe import train as train_tokenizer

    try:
        recipe = TrainTokenizer(tuple(documents), vocab_size, sample)
    except ValueError as error:
        raise LoomError(f"{error}.") from None
    made = train_tokenizer(recipe, out)
    facts = made.facts["tokenizer"]
    rows = [[key.replace("_", " "), value] for key, value in made.counters.items()]
    for name in ("eos", "pad"):
        rows.append([f"{name} token", f"{facts[name]['token']} = {facts[name]['id']}"])
    console.table(f"Tokenizer {made.path / facts['path']}", ["", "value"], rows)
    return {"path": str(made.path / facts["path"]), "digest": facts["digest"], **made.counters}
