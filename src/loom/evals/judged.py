"""Evaluations in which the model writes and a judge, where one is named, makes a figure of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, Input, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals.contamination import History
from loom.evals.judges import Comparison, Judge, find_judge, win_rate
from loom.evals.settings import EvalRecipe, clean, refused
from loom.evals.subject import Subject
from loom.evals.verdicts import toxicity, truthfulness
from loom.evals.written import Prompt, Written, write_answers
from loom.tasks import data
from loom.version import VERSION


def evaluate_written(
    subject: Subject, task: Written, prompts: Sequence[Prompt], recipe: EvalRecipe, history: History
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Answers in the upstream's schema, and a figure where a judge was named."""
    headline = {"headline": "n"}
    if (seen := history.saw([prompt.text for prompt in prompts], ())) is not None:
        return {task.name: refused(task.name, seen)}, [], headline | {"seen": vars(seen)}
    with console.progress(task.name, total=len(prompts)) as progress:
        answers = write_answers(
            subject,
            task,
            prompts,
            chat=recipe.chat,
            max_new_tokens=recipe.max_new_tokens,
            progress=progress,
        )
    name = subject.path.name
    lines = [task.store(prompt, answer, name) for prompt, answer in zip(prompts, answers, strict=True)]
    result: dict[str, Any] = {"n": len(lines), "empty_answers": sum(not answer for answer in answers)}
    if recipe.judge is None:
        return {task.name: result}, lines, headline
    if task.name != "alpaca_eval":
        figures = _verdicts(task, prompts, answers, lines, recipe.judge)
        return {task.name: result | figures}, lines, {"judge": recipe.judge, "headline": next(iter(figures))}
    comparisons = [
        Comparison(prompt.text, prompt.row.get("output", ""), answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    figures, facts = judged(find_judge(recipe.judge), comparisons)
    return {task.name: result | figures}, lines, {**facts, "headline": next(iter(figures))}


def _verdicts(
    task: Written,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    judge: str,
) -> dict[str, float]:
    """ToxiGen takes classifier:FOLDER, TruthfulQA model:TRUTH or model:TRUTH,INFO."""
    kind, _, rest = judge.partition(":")
    if task.name == "toxigen" and kind == "classifier" and rest:
        return toxicity(lines, Path(rest))
    if task.name == "truthfulqa_gen" and kind == "model" and rest:
        truth, _, info = rest.partition(",")
        questions = [prompt.text.rpartition("Q: ")[2] for prompt in prompts]
        trimmed = [answer.removeprefix("A:").split("Q:")[0].strip() for answer in answers]
        return truthfulness(questions, trimmed, Path(truth), Path(info) if info else None)
    raise LoomError(
        f"{task.name} cannot be judged by {judge!r}: toxigen takes classifier:FOLDER, truthfulqa_gen "
        f"model:TRUTH_JUDGE or model:TRUTH_JUDGE,INFO_JUDGE."
    )


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
    baseline = {row["instruction"]: row["output"] for row in data.read_rows(reference)}
    rows = list(data.read_rows(outputs))
    comparisons = []
    for number, row in enumerate(rows, 1):
        if row.get("instruction") not in baseline or "output" not in row:
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
