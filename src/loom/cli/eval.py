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
    token_budget: Annotated[
        int | None, typer.Option(help="Tokens in a batch; default: what suits the device.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be scored.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Score again what was scored before.")] = False,
    pmi: Annotated[
        bool, typer.Option("--pmi", help='acc_pmi for every task: continuations after "Answer:" alone, too.')
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Written answers: prompts in the chat format.")
    ] = False,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Of written answers: replay:FILE, model:FOLDER, endpoint:URL#MODEL, classifier:FOLDER; for one "
            "task as TASK=JUDGE. May be repeated."
        ),
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
        bool, typer.Option("--published", help="Show what others published beside these.")
    ] = False,
) -> dict[str, Any]:
    """Evaluate a model on tasks or on text; --suite adaptation takes what rows and judges there are.

    Example: loom eval runs/quickstart/sft --tasks docs --data runs/quickstart/questions --out runs/eval
    """
    from loom.evals.evaluate import EvalRecipe, evaluate
    from loom.evals.plan import plan
    from loom.evals.subject import load_subject
    from loom.tasks import registry

    if reweight is not None:
        return show_reweighted(model, reweight)
    if model.is_file():
        others = {"--tasks": tasks, "--suite": suite, "--data": data, "--text": text, "--limit": limit}
        if given := " and ".join(name for name, value in others.items() if value):
            raise LoomError(f"{model} is a file of answers, all of which are judged: leave out {given}.")
        return judge_file(model, judge or [], reference, not no_cache, out)
    if reference is not None:
        raise LoomError(
            f"--reference goes with a file of answers, and {model} is none. A model's answers are compared with those in "
            f"alpaca_eval.jsonl in --data."
        )
    asked, suites = ([name.strip() for name in words.split(",") if name.strip()] for words in (tasks, suite))
    names = (*asked, *(name for part in suites for name in registry.suite(part)))
    tuned = "adaptation" in [*asked, *suites]
    if tuned:
        names += registry.WRITTEN
    recipe = EvalRecipe(
        tasks=names,
        data=data,
        text=tuple(text or ()),
        text_split=split,
        limit=limit,
        sample=sample,
        split=split,
        skip_bad=skip_bad,
        token_budget=token_budget,
        max_length=max_length,
        pmi=pmi,
        chat=chat,
        judges=tuple(judge or ()),
        max_new_tokens=max_new_tokens,
        conversations=conversations,
        pairs=pairs,
        present=tuned,
        use_cache=not no_cache,
    )
    if fetch:
        from loom.evals.fetch import fetch_rows

        fetch_rows(names, data)
    if curve:
        from loom.evals.curve import evaluate_run, overview

        if published:
            raise LoomError(
                "--published stands beside the figures of one model, and --curve measures many: leave one out, or name "
                "one checkpoint."
            )
        points = evaluate_run(model, recipe, out, dtype, device)
        metric_names = overview(points)
        rows = [[point["step"], *(point["metrics"].get(name) for name in metric_names)] for point in points]
        console.table(f"Checkpoints of {model}", ["step", *metric_names], rows)
        console.say(f"Written to {out / 'curve.html'} and {out / 'curve.json'}")
        for point in points:
            for name, why in point["judge_failed"].items():
                raise LoomError(
                    f"{name} of step {point['step']} could not be judged ({why}). Everything else is in {out}: the same "
                    f"command with another --judge writes no answer again."
                )
        return {"points": points}
    planned = plan(recipe)
    evaluate(load_subject(model, dtype, device), recipe, out, planned)
    body = finish(out)
    if published:
        from loom.evals.beside.published import tables

        for title, columns, rows in tables({"this model": body}):
            console.table(title, columns, rows)
    fail_unjudged(
        body,
        f"Everything else is in {out}, and so are the answers: the same command with another --judge writes none again.",
    )
    return body


def judge_file(
    answers: Path, judges: list[str], reference: Path | None, cached: bool, out: Path
) -> dict[str, Any]:
    """A file of answers before a judge, without a model."""
    from loom.evals.judge.answers import find_judge
    from loom.evals.judge.files import judge_outputs

    if len(judges) != 1:
        raise LoomError(
            f"{answers} is a file of answers: give one --judge, and --reference, the answers to beat, unless it is "
            f"replay:FILE."
        )
    spec = judges[0].removeprefix("alpaca_eval=")
    judge_outputs(answers, reference, find_judge(spec, cached=cached), out)
    body = finish(out)
    fail_unjudged(body, "Name another --judge, or mend this one's answers.")
    return body


def fail_unjudged(body: dict[str, Any], mend: str) -> None:
    """Raise `LoomError` where a judge was named and judged nothing."""
    failed = [name for name, result in body["results"].items() if "judge_failed" in result]
    if failed:
        why = body["results"][failed[0]]["judge_failed"]
        raise LoomError(f"{', '.join(failed)} could not be judged ({why}). {mend}")


def show_reweighted(folder: Path, mix: str) -> dict[str, Any]:
    """Another mixture's bits per byte, from the sums that an evaluation of text stored."""
    from loom.evals.mixture import reweigh

    found = reweigh(folder, mix)
    console.table("Mixture", ["domain", "share of bytes"], [[*row] for row in found.shares.items()])
    spread = "" if found.stderr is None else f" ± {found.stderr:.4f}"
    no_error = f"; no error, {found.alone} is one document" if found.stderr is None else ""
    console.say(f"{found.bits_per_byte:.4f}{spread} bits per byte on this mixture{no_error}")
    return {
        "bits_per_byte": found.bits_per_byte,
        "bits_per_byte_stderr": found.stderr,
        "mixture": dict(found.shares),
    }


def finish(out: Path) -> dict[str, Any]:
    import orjson

    body: dict[str, Any] = orjson.loads((out / "results.json").read_bytes())
    show(body)
    console.say(f"Written to {out}")
    return body


def show(body: dict[str, Any]) -> None:
    """Tables of a `results.json`: tasks with what their protocol reports, text with bits per byte; and below
    what a reader must know of them."""
    from loom.evals.judge.answers import notes as judged_notes

    ranked, measured, notes = [], [], []
    for name, result in body["results"].items():
        if "bytes" in result:
            measured.append(_text_row(name, result))
            continue
        parents = [task for task in body["tasks"] if name == task or name.startswith(f"{task}_")]
        parent = max(parents, key=len, default=name)  # mmlu_continuation_anatomy is not of mmlu
        facts = body["tasks"].get(name, body["tasks"].get(parent, {}))
        ranked.append(_task_row(name, name.removeprefix(f"{parent}_"), facts, result))
        if name in body["tasks"]:
            notes += _notes(name, facts, body.get("max_length"))
            notes += [f"{name}: {note}" for note in judged_notes(result, facts)]
    if texts := body.get("text"):
        from loom.evals.sources import notes as text_notes

        notes += text_notes(texts)
    if ranked:
        columns = ["task", "split", "n", "reported", "value", "acc", "acc_norm", "gold bits/byte", "guessing"]
        kept = [i for i in range(len(columns)) if i != 5 or any(row[3] != "acc" for row in ranked)]
        rows = [[row[i] for i in kept] for row in ranked]
        console.table("Tasks", [columns[i] for i in kept], rows, left=2)
    if measured:
        columns = ["domain", "bits per byte", "mean of domains", "bytes", "documents", "of training"]
        kept = [i for i in range(len(columns)) if i not in (2, 5) or any(row[i] for row in measured)]
        rows = [[row[i] for i in kept] for row in measured]
        console.table("Text", [columns[i] for i in kept], rows)
    for note in notes:
        console.say(note)


def _task_row(name: str, shown: str, facts: dict[str, Any], result: dict[str, Any]) -> list[Any]:
    headline = facts.get("headline", "acc")
    if headline not in result:  # a subject's own figure, where the task's is a mean over subjects
        headline = headline.removeprefix("macro_")
    split = facts["files"][0]["split"] if facts.get("files") else ""
    row = [name if name == shown else f"  {shown}", split, result.get("judged", result["n"])]
    if "refused" in result:
        return [*row, "no figure", "seen in training", None, None, None, None]
    if "judge_failed" in result:
        return [*row[:2], 0, "no figure", "not judged", None, None, None, None]
    figures = [_figure(result, metric) for metric in (headline, "acc", "acc_norm", "bits_per_byte")]
    return [*row, headline, *figures, result.get("chance")]


def _text_row(name: str, result: dict[str, Any]) -> list[Any]:
    macro = result.get("macro_bits_per_byte")
    domains = None if macro is None else f"{macro:.4g} of {result['domains']:,}"
    share = result.get("training_share")
    figure = "no figure" if "refused" in result else _figure(result, "bits_per_byte")
    return [
        name, figure, domains, result["bytes"], result["n"],
        None if share is None else f"{share:.1%}",
    ]  # fmt: skip


def _figure(result: dict[str, Any], metric: str) -> str | None:
    """A value with its standard error."""
    value, error = result.get(metric), result.get(f"{metric}_stderr")
    if value is None or metric == "n":
        return None
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _notes(name: str, facts: dict[str, Any], length: int | None) -> list[str]:
    """What was read otherwise than the protocol says, cut, left out or too close to call."""
    found = []
    splits = {file["split"] for file in facts.get("files", ())}
    wanted = facts.get("protocol_split")
    if wanted and splits - {wanted}:
        found.append(f"{', '.join(sorted(splits)) or 'rows without a split'}, the protocol's is {wanted}")
    if 0 < facts.get("subjects", 0) < facts.get("all_subjects", 0):
        found.append(f"{facts['subjects']} of {facts['all_subjects']} subjects were there")
    if "anew" in facts.get("examples", ""):
        found.append(f"examples are {facts['examples']}")
    if truncated := facts.get("truncated"):
        found.append(
            f"{truncated:,} choices lost the left end of their context, longer than {length:,} tokens"
        )
    if mostly := facts.get("mostly_cut"):
        found.append(f"{mostly:,} rows kept less than half of their context: hardly a question is left")
    if lost := facts.get("not_scored"):
        shown = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        found.append(
            f"{len(lost):,} rows are not scored (doc_id {shown}): a choice alone fills the {length:,} tokens"
        )
    if bad := facts.get("bad"):
        first, why = next(iter(bad.items()))
        found.append(f"{len(bad):,} rows are left out as bad ({first}: {why})")
    if close := facts.get("close"):
        found.append(f"{close:,} rows have their two best choices within 0.001 nats")
    return [f"{name}: {note}" for note in found]
