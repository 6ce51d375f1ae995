from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="HF_DIR", help="A Hugging Face folder of an OLMo model, or OLMo's own checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The checkpoint to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json, where the folder has none.")
    ] = None,
) -> dict[str, Any]:
    """Write a Hugging Face model, or OLMo's own checkpoint (model.pt), as a checkpoint at step 0.

    What it makes is a MODEL: to evaluate, tune, serve or export.

    Example: loom import OLMo-1B-hf runs/olmo-1b
    """
    from loom.release.importing import import_model

    made = import_model(folder, out, tokenizer)
    return {"path": str(out), "digest": made.digest, **made.counters}
