from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from loom.console import console
from loom.errors import LoomError

app = typer.Typer(add_completion=False, no_args_is_help=True)

Inputs = Annotated[list[str] | None, typer.Option(help="Files, folders or quoted globs of conversations.")]
Mix = Annotated[
    Path | None,
    typer.Option(help="A mixture instead: YAML with input: [{path, weight|count|repeat}], total."),
]
TokenizerFile = Annotated[Path, typer.Option(help="A tokenizer.json, or a folder that holds one.")]
Out = Annotated[Path | None, typer.Option(help="The token folder to write; without it, only --show.")]
Format = Annotated[str, typer.Option(help="olmo-v1, chatml, or a YAML file of your own.")]
Length = Annotated[int, typer.Option(help="Ids a conversation may have.")]
HeldOut = Annotated[
    float, typer.Option(help="Share of prompts (below 1) or number of them kept in heldout/.")
]
MaxBad = Annotated[
    float, typer.Option(help="Share of rows that may be set aside as no conversations; 0: none.")
]
Against = Annotated[
    list[str] | None, typer.Option(help="Files of evaluation questions; what shares 8 words is set aside.")
]
Show = Annotated[int, typer.Option(help="Print so many conversations with what is trained coloured.")]
Workers = Annotated[int | None, typer.Option(help="Default: every core.")]


@app.callback()
def _root() -> None:
    """Conversations or preference pairs into token shards with masks."""


@app.command()
def sft(
    tokenizer: TokenizerFile,
    input: Inputs = None,
    mix: Mix = None,
    out: Out = None,
    format: Format = "olmo-v1",
    max_length: Length = 2048,
    over_long: Annotated[str, typer.Option(help="split (at turns), truncate or drop.")] = "split",
    held_out: HeldOut = 0.0,
    max_bad: MaxBad = 0.05,
    against: Against = None,
    show: Show = 0,
    workers: Workers = None,
) -> dict[str, Any]:
    """Conversations: the answers are trained, and the token that ends them.

    Example: loom prepare sft --input chat.jsonl.gz --tokenizer tok/tokenizer.json --out sft-data --show 2
    """
    return _prepare(
        "sft",
        tokenizer,
        input,
        mix,
        out,
        format,
        max_length,
        over_long,
        held_out,
        max_bad,
        against,
        show,
        workers,
    )


@app.command()
def dpo(
    tokenizer: TokenizerFile,
    input: Inputs = None,
    mix: Mix = None,
    out: Out = None,
    format: Format = "olmo-v1",
    max_length: Length = 2048,
    over_long: Annotated[str, typer.Option(help="truncate (the answers) or drop.")] = "truncate",
    held_out: HeldOut = 0.0,
    max_bad: MaxBad = 0.05,
    against: Against = None,
    show: Show = 0,
    workers: Workers = None,
) -> dict[str, Any]:
    """Preference pairs: one prompt, a chosen and a rejected answer.

    Example: loom prepare dpo --input pairs.jsonl.gz --tokenizer tok/tokenizer.json --out dpo-data
    """
    return _prepare(
        "dpo",
        tokenizer,
        input,
        mix,
        out,
        format,
        max_length,
        over_long,
        held_out,
        max_bad,
        against,
        show,
        workers,
    )


def _prepare(
    objective: Literal["sft", "dpo"],
    tokenizer: Path,
    input: list[str] | None,
    mix: Path | None,
    out: Path | None,
    format: str,
    max_length: int,
    over_long: str,
    held_out: float,
    max_bad: float,
    against: list[str] | None,
    show: int,
    workers: int | None,
) -> dict[str, Any]:
    from loom.chat.prepare import Prepare, prepare
    from loom.chat.show import show_conversations
    from loom.engine import LocalEngine
    from loom.recipe import build, read_yaml

    if (input is None) == (mix is None):
        raise typer.BadParameter("give either --input or --mix")
    if out is None and not show:
        raise typer.BadParameter("give --out, or --show N to look only")
    mixture = read_yaml(mix) if mix is not None else {"input": [{"path": item} for item in input or ()]}
    options = {
        "objective": objective,
        "tokenizer": str(tokenizer),
        "format": format,
        "max_length": max_length,
        "over_long": over_long,
        "held_out": held_out,
        "max_bad": max_bad,
        "against": list(against or ()),
    }
    if not isinstance(mixture, dict):
        raise LoomError(f"{mix} must hold keys and values: input, and total if it has weights.")
    recipe = build({**options, **mixture}, Prepare, str(mix or "loom prepare"))
    if show:
        show_conversations(recipe, show)
    if out is None:
        return {}
    made = prepare(recipe, out, LocalEngine(workers))
    facts, chat, counters = made.facts["tokens"], made.facts["chat"], made.counters
    rows = [
        [name, item["documents"], item["tokens"], item["trained"]] for name, item in facts["sources"].items()
    ]
    console.table(f"{objective.upper()} data {out}", ["source", "documents", "tokens", "trained"], rows)
    console.say(
        f"{counters['rows']:,} rows: {chat['conversations']:,} to train on, {counters['held_out']:,} "
        f"held out ({counters['held_out_tokens']:,} tokens)"
    )
    for title in ("rejected", "over_long"):
        for reason, count in counters[title].items():
            console.say(f"  {title.replace('_', '-')}: {reason}: {count:,}")
    return {
        "path": str(out),
        **counters,
        "trained_tokens": chat["trained_tokens"],
        "sources": facts["sources"],
    }
