from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a Hugging Face folder.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue; default: standard input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens at least this times as likely as the best.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Strings that end the text.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal text.")] = 0,
    lookup: Annotated[
        int, typer.Option(help="Try this many tokens ahead by n-gram lookup; output unchanged.")
    ] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
) -> dict[str, Any]:
    """Continue a text, without a template. `text` and `tokens` are the new part only.

    Example: loom generate runs/quickstart/pretrain --prompt "The module provides" --max-new-tokens 40
    """
    from loom.model.sampling import Sampling
    from loom.serve.complete import Completion, encode_prompt, open_session, stream
    from loom.serve.text import require_utf8

    text = _piped() if prompt is None else require_utf8(prompt, "--prompt")
    session = open_session(model, dtype)
    ids = encode_prompt(session.tokenizer, text)
    sampling = Sampling(
        session.room(ids, max_new_tokens), temperature, top_k, top_p, min_p, repetition_penalty, seed
    )
    result = Completion()
    for piece, result in stream(session, ids, sampling, tuple(stop or ()), lookup=lookup):  # noqa: B007
        if not console.json_mode:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not console.json_mode:
        sys.stdout.write("\n")
    return {
        "text": result.text,
        "tokens": result.tokens,
        "logprobs": result.logprobs,
        "finish": result.finish,
        "prompt_tokens": result.prompt_tokens,
        "seconds": round(result.seconds, 3),
    }


def _piped() -> str:
    from loom.serve.text import require_utf8

    try:
        return require_utf8(sys.stdin.read(), "Standard input")
    except UnicodeDecodeError as error:
        raise LoomError(f"Standard input is not UTF-8 (at byte {error.start}): convert it first.") from None
