from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loom.console import console
from loom.errors import LoomError

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
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Score again what was scored before.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Written answers: prompts in the chat format.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="replay:FILE, model:FOLDER or endpoint:URL#MODEL, for written answers.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Reference answers, where MODEL is a file of answers to judge.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of written answers.")] = None,
    conversations: Annotated[
        Path | None,
        typer.Option(help="Folder of `loom prepare sft --held-out N`: its held-out answers, stops, probes."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `loom prepare dpo --held-out N`: preference accuracy on held-out pairs."
        ),
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Every checkpoint of the run MODEL, with a plot.")
    ] = False,
    reweight: Annotated[
        str | None,
        typer.Option(help="a=0.7,b=0.3: bits per byte on that mixture of domains; MODEL is then an --out."),
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Get rows that are missing from the Hub.")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show the OLMo paper's figures beside these.")
    ] = False,
) -> dict[str, Any]:
    """Evaluate a model on tasks or on text; --suite adaptation takes what rows and judges there are.

    Example: loom eval runs/quickstart/sft --tasks docs --data runs/quickstart/questions --out runs/eval
    """
    from loom.evals.evaluate import EvalRecipe, evaluate
    from loom.evals.judged import judge_outputs
    from loom.evals.judges import find_judge
    from loom.evals.subject import load_subject
    from loom.tasks import registry

    if reweight is not None:
        return show_reweighted(model, reweight)
    if model.is_file():
        if judge is None or reference is None:
            raise LoomError(
                f"{model} is a file of answers: give --judge and --reference, the answers to beat."
            )
        judge_outputs(model, reference, find_judge(judge), out)
        return finish(out)
    names = tuple(filter(None, tasks.split(",")))
    names += tuple(name for part in filter(None, suite.split(",")) for name in registry.suite(part))
    tuned = "adaptation" in suite.split(",")
    if tuned:
        from loom.evals.written import WRITTEN

        names += tuple(WRITTEN)
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
        chat=chat,
        judge=judge,
        max_new_tokens=max_new_tokens,
        conversations=conversations,
        pairs=pairs,
        present=tuned,
        use_cache=not no_cache,
    )
    if fetch:
        from loom.evals.fetch import fetch_rows

        fetch_rows(registry.tasks(names), data)
    if curve:
        from loom.evals.curve import evaluate_run

        points = evaluate_run(model, recipe, out, dtype, device)
        metric_names = list(dict.fromkeys(name for point in points for name in point["metrics"]))
        rows = [[point["step"], *(point["metrics"].get(name) for name in metric_names)] for point in points]
        console.table(f"Checkpoints of {model}", ["step", *metric_names], rows)
        console.say(f"Written to {out / 'curve.html'} and {out / 'curve.json'}")
        return {"points": points}
    evaluate(load_subject(model, dtype, device), recipe, out)
    body = finish(out)
    if published:
        from loom.evals.published import table

        columns, rows = table(body)
        console.table("Beside the OLMo paper (zero-shot, each under its own protocol)", columns, rows)
    return body


def show_reweighted(folder: Path, mix: str) -> dict[str, Any]:
    """Another mixture's bits per byte, from the sums that an evaluation of text stored."""
    from loom.evals.perplexity import read_scores, reweighted

    shares: dict[str, float] = {}
    for part in mix.split(","):
        name, _, share = part.rpartition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            shares[name.strip()] = -1.0
    if "" in shares or min(shares.values()) < 0 or not sum(shares.values()):
        raise LoomError(
            f"--reweight {mix} is no mixture: write domain=share,domain=share, as in web=0.7,wiki=0.3."
        )
    scores = read_scores(folder / "text.jsonl")
    domains = sorted({score.domain for score in scores})
    if unknown := sorted(set(shares) - set(domains)):
        raise LoomError(f"{folder} has no domain {unknown[0]!r}; it has {', '.join(domains)}.")
    value = reweighted(scores, shares)
    total = sum(shares.values())
    rows = [[name, share / total] for name, share in shares.items()]
    console.table("Mixture", ["domain", "share of bytes"], rows)
    console.say(f"{value:.4f} bits per byte on this mixture")
    return {"bits_per_byte": value, "mixture": {name: share / total for name, share in shares.items()}}


def finish(out: Path) -> dict[str, Any]:
    import orjson

    body: dict[str, Any] = orjson.loads((out / "results.json").read_bytes())
    show(body)
    console.say(f"Written to {out}")
    return body


def show(body: dict[str, Any]) -> None:
    """Tables of a `results.json`: tasks with their headline metric, text with bits per byte."""
    ranked, measured = [], []
    for name, result in body["results"].items():
        if "bytes" in result:
            row = [
                name,
                result["bits_per_byte"],
                result["bits_per_byte_stderr"],
                result["bytes"],
                result["n"],
            ]
            measured.append([*row, result.get("training_share")])
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
        console.table("Text", ["domain", "bits per byte", "±", "bytes", "documents", "of training"], measured)
