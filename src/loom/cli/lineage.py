from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.artifact import Lineage, lineage
from loom.console import console

app = typer.Typer(add_completion=False)
RAW = ("file", "address")
SHOWN_FILES = 3  # raw files printed below one artifact; the rest are counted


@app.command()
def run(
    path: Annotated[Path, typer.Argument(help="An artifact's folder, or a file in one.")],
) -> dict[str, Any]:
    """Walk manifests from PATH back to the raw files it was made from.

    Example: loom lineage runs/quickstart/export
    """
    root = lineage(path)
    _show(root, 0)
    return _plain(root)


def _show(node: Lineage, depth: int) -> None:
    mark = "  (changed since)" if node.stale and node.kind != "missing" else ""
    console.say(f"{'  ' * depth}{node.kind}  {_place(node)}  {node.digest[:12]}{mark}")
    files = [item for item in node.parents if item.kind in RAW]
    for item in node.parents:
        if item.kind not in RAW:
            _show(item, depth + 1)
    for item in files[:SHOWN_FILES]:
        _show(item, depth + 1)
    if len(files) > SHOWN_FILES:
        console.say(f"{'  ' * (depth + 1)}... and {len(files) - SHOWN_FILES:,} more raw files")


def _place(node: Lineage) -> str:
    from loom.tokens.remote import address

    return address(node.path) or str(node.path)


def _plain(node: Lineage) -> dict[str, Any]:
    return {
        "path": _place(node),
        "kind": node.kind,
        "digest": node.digest,
        "stale": node.stale,
        "parents": [_plain(item) for item in node.parents],
    }
