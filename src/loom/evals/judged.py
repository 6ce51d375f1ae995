"""Who judges what a model wrote: one judge a written task, checked before anything is generated."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, Input, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals.foreign import is_foreign
from loom.evals.judges import Comparison, Judge, find_judge, win_rate
from loom.evals.settings import clean
from loom.evals.verdicts import toxicity, truthfulness
from loom.evals.written import Prompt, Written
from loom.tasks import data
from loom.tasks.data import Found
from loom.tokens.tokenizer import Tokenizer
from loom.train.opening import model_folder
from loom.version import VERSION

KINDS = {
    "alpaca_eval": ("replay", "model", "endpoint"),
    "toxigen": ("classifier",),
    "truthfulqa_gen": ("model",),
}
SPELLINGS = {
    "alpaca_eval": "replay:FILE, model:FOLDER or endpoint:URL#MODEL",
    "toxigen": "classifier:FOLDER",
    "truthfulqa_gen": "model:TRUTH_JUDGE or model:TRUTH_JUDGE,INFO_JUDGE",
}


def judges_for(words: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """The judge of each written task, from `--judge` words: `TASK=JUDGE`, or a JUDGE by itself for every task
    that takes its kind and has none of its own.

    Everything that can be known without running a judge is checked: raises `LoomError` for a task that is
    not evaluated, a kind that no task takes, and a file or folder that is not there or no model.
    """
    found: dict[str, str] = {}
    for word in words:
        task, equals, spec = word.partition("=")
        if equals and task in KINDS:
            if task not in tasks:
                raise LoomError(f"--judge {word}: {task} is not among the tasks ({', '.join(tasks)}).")
            found[task] = spec
    for word in words:
        task, equals, _ = word.partition("=")
        if equals and task in KINDS:
            continue
        takers = [
            name for name in tasks if name not in found and word.partition(":")[0] in KINDS.get(name, ())
        ]
        if "," in word:  # a pair of judges is TruthfulQA's alone
            takers = [name for name in takers if name == "truthfulqa_gen"]
        if not takers:
            takes = "; ".join(f"{name} takes {SPELLINGS[name]}" for name in tasks if name in KINDS)
            raise LoomError(
                f"--judge {word} judges none of the tasks: {takes or 'none of them is judged'}. A judge for one "
                f"task is written TASK=JUDGE, as in --judge toxigen=classifier:FOLDER."
            )
        found |= dict.fromkeys(takers, word)
    for name, spec in found.items():
        _check(name, spec)
    return found


def _check(task: str, spec: str) -> None:
    """Raise `LoomError` unless `task` can be judged by `spec`, as far as can be seen without loading a model."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS[task] or not rest:
        raise LoomError(f"{task} cannot be judged by {spec!r}: it takes {SPELLINGS[task]}.")
    if kind == "classifier":
        if not (Path(rest) / "config.json").is_file():
            raise LoomError(f"--judge {spec}: there is no config.json in {rest}, so it is no classifier.")
        if importlib.util.find_spec("transformers") is None:
            raise LoomError("A classifier as judge needs transformers: pip install transformers.")
    elif kind == "model":
        folders = rest.split(",")
        if len(folders) > (2 if task == "truthfulqa_gen" else 1):
            raise LoomError(f"{task} cannot be judged by {spec!r}: it takes {SPELLINGS[task]}.")
        for folder in map(Path, folders):
            there = folder if is_foreign(folder) else model_folder(folder).path
            Tokenizer.load(there)
    else:
        find_judge(spec)


def check_references(task: str, spec: str, files: Sequence[Found], prompts: Sequence[Prompt]) -> None:
    """Raise `LoomError`, naming the row, where a judge would compare with an answer that is not there: a model wins
    against none. A replayed judgement compares nothing anew."""
    if task != "alpaca_eval" or spec.startswith("replay:"):
        return
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt.row.get("output"), str):
            raise LoomError(
                f"{files[0].path}:{number}: this row has no output, the reference answer that --judge {spec} is to "
                f"compare with. Name the file of reference answers as alpaca_eval.jsonl in --data, or leave --judge "
                f"out."
            )


def judge_answers(
    task: Written,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    spec: str,
    cached: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures under the judge's name, and what it says of itself. Raises `LoomError` for a judge that cannot
    be loaded."""
    kind, _, rest = spec.partition(":")
    match task.name, kind:
        case "toxigen", "classifier":
            figures, facts = toxicity(lines, Path(rest), cached)
        case "truthfulqa_gen", "model":
            truth, _, info = rest.partition(",")
            questions = [prompt.asked for prompt in prompts]
            trimmed = [answer.removeprefix("A:").split("Q:")[0].strip() for answer in answers]
            figures, facts = truthfulness(
                questions, trimmed, Path(truth), Path(info) if info else None, cached
            )
        case _:
            comparisons = [
                Comparison(prompt.text, str(prompt.row.get("output") or ""), answer)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            figures, described = judged(find_judge(spec, cached), comparisons)
            return figures, {**described, "headline": next(iter(figures))}
    return figures, {"judge": facts, "headline": next(iter(figures))}


def judged(judge: Judge, comparisons: Sequence[Comparison]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`alpaca_win[<judge>]` with its error, and what the judge says of itself."""
    found = win_rate(judge.prefer(comparisons))
    metric = f"alpaca_win[{judge.name}]"
    facts = judge.describe()
    if found.unjudged:
        why = ", ".join(f"{name}: {count:,}" for name, count in facts.get("failures", {}).items())
        console.warn(
            f"{metric}: {found.unjudged:,} of {len(comparisons):,} answers were not judged"
            f"{f' (requests that failed: {why})' if why else ''}; they count neither way."
        )
    figures = {
        metric: found.win_rate,
        f"{metric}_stderr": found.stderr,
        f"alpaca_discrete_win[{judge.name}]": found.discrete,
        "judged": found.n,
        "not_judged": found.unjudged,
        "n": len(comparisons),
    }
    return figures, {"judge": facts}


def judge_outputs(outputs: Path, reference: Path, judge: Judge, out: Path) -> Artifact:
    """Judge answers that lie in a file (rows {instruction, output}) against a reference's, by instruction."""
    started = time.monotonic()
    baseline: dict[str, str] = {}
    for number, row in enumerate(data.read_rows(reference), 1):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
            raise LoomError(f"{reference}:{number}: a reference needs an instruction and its output.")
        baseline[row["instruction"]] = row["output"]
    rows = list(data.read_rows(outputs))
    comparisons = []
    for number, row in enumerate(rows, 1):
        if row.get("instruction") not in baseline or not isinstance(row.get("output"), str):
            raise LoomError(
                f"{outputs}:{number}: a row needs an instruction that {reference} has, and its output."
            )
        comparisons.append(Comparison(row["instruction"], baseline[row["instruction"]], row["output"]))
    figures, facts = judged(judge, comparisons)
    body = {
        "results": clean({"alpaca_eval": figures}),
        "loom": VERSION,
        "tasks": {"alpaca_eval": {**facts, "headline": next(iter(figures))}},
    }
    write_json(out / "results.json", body)
    return artifact.commit(
        out,
        "evaluation",
        recipe={"outputs": artifact.relative(outputs, out), "judge": judge.describe()},
        inputs=[
            Input(artifact.relative(path, out), artifact.digest_file(path)) for path in (outputs, reference)
        ],
        outputs=artifact.describe(out, ["results.json"]),
        counters={"answers": len(rows)},
        started=started,
    )
