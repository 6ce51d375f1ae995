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
        Path, typer.Option("-c", "--config", help="Dolma's mixer configuration, YAML or JSON.")
    ],
    compat: Annotated[str, typer.Option(help="dolma-1.2: its output byte for byte, defects and all.")] = "",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = "auto",
) -> dict[str, Any]:
    """Filter, replace spans, pack: documents and attributes -> mixed documents, as `dolma mix` reads it.

    Example: loom mix -c mixing/cc-head.yaml
    """
    from loom.corpus.dolma.config import Mixer, load
    from loom.corpus.dolma.mixing import mix
    from loom.errors import LoomError

    if compat not in ("", "dolma-1.2"):
        raise LoomError(f"--compat knows dolma-1.2 only, not {compat!r}.")
    mixer = load(config, Mixer)
    artifacts = mix(mixer, compat, choose(engine, workers or mixer.processes, address))
    keys = ["documents_in", "filtered", "too_short", "documents_out", "unlike_dolma"]
    rows = [
        (stream.name, *(item.counters[key] for key in keys), str(item.path))
        for stream, item in zip(mixer.streams, artifacts, strict=True)
    ]
    console.table(
        "Mixed", ["stream", "in", "filtered", "too short", "out", "unlike Dolma", "written to"], rows
    )
    return {
        "streams": {
            stream.name: dict(item.counters) for stream, item in zip(mixer.streams, artifacts, strict=True)
        }
    }
