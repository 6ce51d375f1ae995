from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An export; with --every-checkpoint, a run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List every file and send nothing.")] = False,
    every_checkpoint: Annotated[
        bool,
        typer.Option("--every-checkpoint", help="Each checkpoint of a run as a revision stepN-tokensMB."),
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="A new repository is private otherwise.")] = False,
) -> dict[str, Any]:
    """Publish a model on the Hugging Face Hub. Nothing is sent without this command.

    Example: loom push runs/quickstart/export me/my-first-model --dry-run
    """
    from loom.console import format_bytes
    from loom.release.push import check_repository, listing, plan_push, push

    check_repository(repository)
    uploads = plan_push(model, every_checkpoint)
    rows = [(item.revision, item.name, format_bytes(item.bytes)) for item in uploads]
    title = f"{'Would send' if dry_run else 'Sending'} {len(uploads)} files to {repository}"
    console.table(title, ["revision", "file", "size"], rows, left=2)
    address = None if dry_run else push(repository, uploads, private=not public)
    if address:
        console.say(address)
    return {"repository": repository, "sent": not dry_run, "address": address, "files": listing(uploads)}
