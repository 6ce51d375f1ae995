from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console

app = typer.Typer(add_completion=False)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="A run, a checkpoint or a Hugging Face folder.")],
    tasks: Annotated[str, typer.Option(help="Tasks and suites between commas; `loom list tasks`.")] = "",
    suite: Annotated[str, typer.Option(help="A suite, as --tasks.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder with <task>.<split>.jsonl(.gz).")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text to measure in bits per byte.")] = None,
    out: Annotated[Path, typer.Option(help="Where results.json and the rows go.")] = Path("eval"),
    limit: Annotated[int | None, typer.Option(help="First rows of each task only.")] = None,
    sample: Annotated[int | None, typer.Option(help="Rows of each task, drawn with a fixed seed.")] = None,
    split: Annotated[str | None, typer.Option(help="This split in place of the protocol's.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bf16; the softmax is float32.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Context in tokens, at most the model's.")] = None,
    token_budget: Annotated[int, typer.Option(help="Tokens in a batch.")] = 8192,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be scored.")
    ] = False,
) -> dict[str, Any]:
    """Evaluate a model on tasks or on text.

    Example: loom eval runs/quickstart/sft --tasks docs --data runs/quickstart/questions --out runs/eval
    """
    import orjson

    from loom.evals.evaluate import EvalRecipe, evaluate
    from loom.evals.subject import load_subject
    from loom.tasks import registry

    names = tuple(filter(None, tasks.split(",")))
    names += tuple(name for part in filter(None, suite.split(",")) for name in registry.suite(part))
    recipe = EvalRecipe(
        tasks=names,
        data=data,
        text=tuple(text or ()),
        limit=limit,
        sample=sample,
        split=split,
        skip_bad=skip_bad,
        token_budget=token_budget,
        max_length=max_length,
    )
    evaluate(load_subject(model, dtype, device), recipe, out)
    body: dict[str, Any] = orjson.loads((out / "results.json").read_bytes())
    show(body)
    console.say(f"Written to {out}")
    return body


def show(body: dict[str, Any]) -> None:
    """Tables of a `results.json`: tasks with their headline metric, text with bits per byte."""

    ranked, measured = [], []
    for name, result in body["results"].items():
        if "bytes" in result:
            measured.append(
                [name, result["bits_per_byte"], result["bits_per_byte_stderr"], result["bytes"], result["n"]]
            )
            continue
        parent = next((task for task in body["tasks"] if name == task or name.startswith(f"{task}_")), name)
        facts = body["tasks"].get(name, body["tasks"].get(parent, {}))
        headline = facts.get("headline", "acc")
        split = facts["files"][0]["split"] if facts.get("files") else ""
        row = [name, split, result["n"], headline, result.get(headline), result.get(f"{headline}_stderr")]
        ranked.append([*row, result.get("acc"), result.get("acc_norm"), result.get("bits_per_byte")])
    if ranked:
        columns = ["task", "split", "n", "headline", "value", "±", "acc", "acc_norm", "gold bits/byte"]
        console.table("Tasks", columns, ranked, left=2)
    if measured:
        console.table("Text", ["domain", "bits per byte", "±", "bytes", "documents"], measured)
