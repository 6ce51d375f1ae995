from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 8090,
    index: Annotated[Path | None, typer.Option(help="An index; by default `index` beside the run.")] = None,
) -> dict[str, Any]:
    """Browse a run on this machine: its steps' documents, phrases, an answer's trace.

    Example: loom explore runs/quickstart/pretrain --port 8090
    """
    from loom.errors import LoomError
    from loom.serve.explorer import HOST, Explorer, make_server

    explorer = Explorer(run, index)
    try:
        server = make_server(explorer, port)
    except OSError as error:
        raise LoomError(
            f"Port {port} cannot be had ({error.strerror}): choose another with --port."
        ) from None
    address = f"http://{HOST}:{server.server_port}/"
    console.say(f"{address}  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return {"address": address}
