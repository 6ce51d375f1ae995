from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a Hugging Face folder.")],
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Elsewhere than on loopback, clients need a key.")] = "127.0.0.1",
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; default: its folder.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
    places: Annotated[int, typer.Option(help="Requests answered at once.")] = 16,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 503.")] = 256,
    key: Annotated[str | None, typer.Option(envvar="LOOM_API_KEY", help="What clients must bring.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="An index: answers can then be traced on the page.")
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The run that read the index's tokens: shows the steps.")
    ] = None,
    body_limit: Annotated[int, typer.Option(help="Largest request body in bytes.")] = 4_000_000,
    token_limit: Annotated[int, typer.Option(help="Most new tokens of one answer.")] = 4096,
    time_limit: Annotated[float, typer.Option(help="Most seconds of one answer.")] = 600.0,
    patience: Annotated[
        float, typer.Option(help="Seconds in which a request must come, and what is sent must be read.")
    ] = 30.0,
) -> None:
    """Serve a model: OpenAI-compatible API under /v1, a chat page at /.

    Example: loom serve runs/quickstart/dpo --port 8000 --index runs/quickstart/index
    """
    from loom.serve.limits import Limits
    from loom.serve.server import Serve, serve

    limits = Limits(
        body=body_limit,
        head_seconds=patience,
        body_seconds=patience,
        send_seconds=2 * patience,
        new_tokens=token_limit,
        request_seconds=time_limit,
    )
    serve(Serve(model, host, port, name, dtype, places, queue, key, index, run_folder, limits))
