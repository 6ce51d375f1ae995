from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a Hugging Face folder.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this one thing and leave.")
    ] = None,
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens at least this times as likely as the best.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens an answer.")] = 512,
    seed: Annotated[
        int | None, typer.Option(help="Repeat a conversation; default: another each time.")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="An index, for /trace.")] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The run that read the index's tokens.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
) -> dict[str, Any]:
    """Talk to a model. Lines that begin with a slash are commands: /help. Lines of a pipe are messages.

    Example: loom chat runs/quickstart/dpo
    """
    from loom.chat.format import Message
    from loom.chat.prompts import conversation
    from loom.chat.template import chat_template
    from loom.model.sampling import Sampling
    from loom.serve.complete import open_session
    from loom.serve.terminal import Chat, converse, to_stdout
    from loom.serve.text import require_utf8
    from loom.serve.thread import tracer
    from loom.train.opening import model_folder

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed or 0)
    session = open_session(model, dtype)
    form = conversation(session.tokenizer, chat_template(model_folder(model).path))
    quiet = console.json_mode
    chat = Chat(
        session,
        form,
        sampling,
        (lambda text: None) if quiet else to_stdout,
        tracer(index, run_folder) if index else None,
        seeded=seed is not None,
        system=require_utf8(system, "--system"),
    )
    interactive = prompt is None and sys.stdin.isatty()
    if interactive:
        console.say(f"{model} ({form.note}). /help lists commands.")
        import readline  # noqa: F401  (line editing and history in input())
    if prompt is not None:
        chat.messages.append(Message("user", require_utf8(prompt, "--prompt")))
        chat.answer()
    else:
        converse(chat, sys.stdin, interactive)
    return {"messages": [{"role": m.role, "content": m.content} for m in chat.messages]}
