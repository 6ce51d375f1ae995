from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def classifier() -> None:
    """fastText classifiers for the taggers: train one from labelled lines.

    Example: loom classifier train --input labelled.txt --out toxic.bin
    """


@app.command()
def train(
    input: Annotated[list[str], typer.Option(help="Files of lines: __label__NAME words ...")],
    out: Annotated[Path, typer.Option(help="The model file to write.")],
    epoch: Annotated[int, typer.Option(help="Passes over the lines.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate at the start; it falls to 0.")] = 0.5,
    dim: Annotated[int, typer.Option(help="Numbers a vector.")] = 16,
    word_ngrams: Annotated[int, typer.Option(help="Longest word n-gram.")] = 2,
    min_count: Annotated[int, typer.Option(help="Words that come less often are left out.")] = 1,
    bucket: Annotated[int, typer.Option(help="Rows that word n-grams share by hash.")] = 1 << 18,
    seed: Annotated[int, typer.Option(help="Order of the lines and first vectors.")] = 0,
) -> dict[str, Any]:
    """Train a fastText classifier and write its .bin, which fastText and Dolma load as well.

    Example: loom classifier train --input labelled.txt --out toxic.bin
    then: loom tag --taggers fasttext_document_v1 --file fasttext_document_v1=toxic.bin --documents corpus
    """
    from loom.corpus.classifier import Training
    from loom.corpus.classifier import train as run
    from loom.recipe import build

    values = {
        "input": input, "epoch": epoch, "lr": lr, "dim": dim, "word_ngrams": word_ngrams,
        "min_count": min_count, "bucket": bucket, "seed": seed,
    }  # fmt: skip
    trained = run(build(values, Training, "loom classifier train"), out)
    rows = [(label, count) for label, count in trained.labels.items()]
    console.table(f"Written to {out}", ["label", "lines"], rows)
    console.say(
        f"{trained.words:,} words; loss {trained.loss:.4f} nats in the last pass; "
        f"{trained.accuracy:.1%} of the training lines get their label"
    )
    return {"out": str(out), "lines": trained.lines, "labels": trained.labels, "words": trained.words,
            "loss": trained.loss, "training_accuracy": trained.accuracy}  # fmt: skip
