"""Offline evaluation: a model on tasks or on text, into a folder with `results.json`.

`results.json` holds, by task, every metric with its standard error and n; `<task>.jsonl` holds a line a
document with the log-likelihood of every choice. Text gives bits per byte by domain, and `text.jsonl`
the sums of every document.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from loom import artifact
from loom.artifact import Artifact, Input, atomic_write, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals import cache, metrics, perplexity, tuned
from loom.evals.contamination import History, Seen
from loom.evals.items import Scores, score_items
from loom.evals.judges import Comparison, Judge, find_judge, win_rate
from loom.evals.subject import Subject
from loom.evals.text import by_source, is_token_folder, read_texts, text_documents, token_documents
from loom.evals.verdicts import toxicity, truthfulness
from loom.evals.written import WRITTEN, Prompt, Written, write_answers
from loom.recipe import to_plain
from loom.tasks import data, registry
from loom.tasks.item import Item, Task
from loom.version import VERSION


@dataclass(frozen=True)
class EvalRecipe:
    """What to measure. `tasks` need `data`, the folder with their rows; `text` are folders or files."""

    tasks: tuple[str, ...] = ()
    data: Path | None = None
    text: tuple[Path, ...] = ()
    text_split: str | None = None
    limit: int | None = None
    """Rows of each task (and subject), or documents of each source, from the start; None for all."""
    sample: int | None = None
    """Rows of each task drawn with a fixed seed."""
    split: str | None = None
    """The split to read in place of the protocol's."""
    skip_bad: bool = False
    token_budget: int = 8192
    """Tokens in a batch; the results do not depend on it."""
    max_length: int | None = None
    """Context in tokens, at most the model's."""
    seed: int = 0
    chat: bool = False
    """Written answers: prompts in the chat format, for a tuned model."""
    judge: str | None = None
    """Who judges written answers: replay:FILE, model:FOLDER, endpoint:URL#MODEL; classifier:FOLDER."""
    max_new_tokens: int | None = None
    conversations: Path | None = None
    """A folder of `loom prepare sft --held-out N`: held-out answers, whether answers end, probes."""
    pairs: Path | None = None
    """A folder of `loom prepare dpo --held-out N`: preference accuracy."""
    present: bool = False
    """Leave out tasks whose rows are not there, and written ones without a judge; say which."""
    use_cache: bool = True


def evaluate(subject: Subject, recipe: EvalRecipe, out: Path) -> Artifact:
    """Evaluate and commit kind "evaluation". What differs from run to run is in `run.json` alone."""
    started = time.monotonic()
    if not any((recipe.tasks, recipe.text, recipe.conversations, recipe.pairs)):
        raise LoomError("Nothing to evaluate on: name --tasks a,b with --data DIR, or --text FILES.")
    if recipe.present and recipe.data is None:
        recipe = replace(recipe, tasks=())
    if recipe.tasks and recipe.data is None:
        raise LoomError("--tasks needs --data DIR, the folder that holds their rows (<task>.<split>.jsonl).")
    artifact.discard(out)
    results: dict[str, dict[str, Any]] = {}
    sources: dict[str, Any] = {}
    names: list[str] = []
    seconds: dict[str, float] = {}
    history = History(subject.path)
    for gone in history.missing:
        console.warn(f"{gone} is gone, so whether the model was trained on these rows is not fully known.")
    written = [name for name in recipe.tasks if name in WRITTEN]
    missing: dict[str, str] = {}
    for task in registry.tasks([name for name in recipe.tasks if name not in written]):
        if (reason := _absent(task, recipe, history)) is not None:
            missing[task.name] = reason
            continue
        before = time.monotonic()
        found, lines, facts = evaluate_task(subject, task, recipe, history)
        results |= found
        sources[task.name] = facts
        names.append(f"{task.name}.jsonl")
        _write_lines(out / names[-1], lines)
        seconds[task.name] = round(time.monotonic() - before, 3)
    for name in written:
        if (reason := _absent(WRITTEN[name], recipe, history)) is not None:
            missing[name] = reason
            continue
        before = time.monotonic()
        found, lines, facts = evaluate_written(subject, WRITTEN[name], recipe, history)
        results |= found
        sources[name] = facts
        names.append(f"{name}.jsonl")
        _write_lines(out / names[-1], lines)
        seconds[name] = round(time.monotonic() - before, 3)
    for name, work in _held_out(subject, recipe).items():
        before = time.monotonic()
        results[name], lines = work()
        sources[name] = {"headline": next(iter(results[name]))}
        names.append(f"{name}.jsonl")
        _write_lines(out / names[-1], lines)
        seconds[name] = round(time.monotonic() - before, 3)
    for name, reason in missing.items():
        console.say(f"{name}: not measured, {reason}")
    if recipe.text:
        before = time.monotonic()
        found, lines = evaluate_text(subject, recipe)
        for name, share in history.shares.items():
            if name in found:  # the fit follows the mixture
                found[name]["training_share"] = share
        results |= found
        names.append("text.jsonl")
        _write_lines(out / "text.jsonl", lines)
        seconds["text"] = round(time.monotonic() - before, 3)
    body = {
        "results": clean(results),
        "model": {"path": artifact.relative(subject.path, out), "digest": subject.digest},
        "tokenizer": subject.tokenizer.digest,
        "dtype": subject.dtype,
        "loom": VERSION,
        "max_length": _length(subject, recipe),
        "prefix": "end of text before an empty context, a chat prompt and a document; nothing otherwise",
        "seed": recipe.seed,
        "tasks": sources,
        **({"not_measured": missing} if missing else {}),
    }
    write_json(out / "results.json", body)
    names.append("results.json")
    made = artifact.commit(
        out,
        "evaluation",
        recipe=_plain(recipe, out),
        inputs=[Input(artifact.relative(subject.path, out), subject.digest)],
        outputs=artifact.describe(out, names),
        counters={"tasks": len(sources), "text": len(recipe.text)},
        started=started,
    )
    write_json(out / artifact.RUN, artifact.read_run(out) | {"seconds_by_task": seconds})
    return made


def _absent(task: Task | Written, recipe: EvalRecipe, history: History) -> str | None:
    """Why a task of a suite that takes what there is cannot be measured."""
    if not recipe.present or recipe.data is None:
        return None
    try:
        if isinstance(task, Task):
            data.load(task, recipe.data, limit=1, skip_bad=True, split=recipe.split)
            return None
        prompts = [prompt.text for prompt in task.prompts(recipe.data)]
    except LoomError as error:
        return f"its rows are not there ({error})"
    if recipe.judge is None and history.saw(prompts, ()) is None:
        return "no judge was named"
    return None


def _held_out(subject: Subject, recipe: EvalRecipe) -> dict[str, Callable[[], tuned.Found]]:
    """What is measured on held-out conversations and pairs."""
    work: dict[str, Callable[[], tuned.Found]] = {}
    if (folder := recipe.conversations) is not None:
        work["answers"] = lambda: tuned.answers(subject, folder, recipe.seed)
        work["instructions"] = lambda: tuned.instructions(subject, folder, recipe.max_new_tokens)
        work["probes"] = lambda: tuned.probes(subject, recipe.max_new_tokens)
    if (pairs := recipe.pairs) is not None:
        work["preferences"] = lambda: tuned.preferences(subject, pairs)
    return work


def evaluate_task(
    subject: Subject, task: Task, recipe: EvalRecipe, history: History
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Results by name (the task, and its subjects), a line a document, and what was read."""
    assert recipe.data is not None
    loaded = data.load(
        task,
        recipe.data,
        limit=recipe.limit,
        sample=recipe.sample,
        skip_bad=recipe.skip_bad,
        split=recipe.split,
    )
    if len(loaded.found) < len(task.subjects):
        console.say(f"{task.name}: {len(loaded.found)} of {len(task.subjects)} subjects are in {recipe.data}")
    prompts = [_question(item) for item in loaded.items]
    seen = history.saw(prompts, [found.digest for found in loaded.found])
    if seen is not None:
        return {task.name: _refused(task.name, seen)}, [], {"headline": task.metrics[0], "seen": vars(seen)}
    settings = [_length(subject, recipe), subject.dtype, subject.digest, subject.tokenizer.digest]
    key = cache.key(loaded.items, settings)
    scores = cache.read(key) if recipe.use_cache else None
    cached = scores is not None
    if scores is None:
        with console.progress(task.name, total=len(loaded.items)) as progress:
            scores = score_items(
                subject.model,
                loaded.items,
                subject.tokenizer,
                _length(subject, recipe),
                budget=recipe.token_budget,
                device=subject.device,
                progress=progress,
            )
        cache.write(key, scores)
    outcomes = metrics.outcomes(loaded.items, scores)
    results = {task.name: summarise(task, loaded.items, scores, outcomes)}
    for group in dict.fromkeys(item.group for item in loaded.items if item.group):
        of = [index for index, item in enumerate(loaded.items) if item.group == group]
        results[f"{task.name}_{group}"] = summarise(task, loaded.items, scores, outcomes, of)
    facts = {
        "files": [
            {"path": f.path.relative_to(recipe.data).as_posix(), "split": f.split, "digest": f.digest}
            for f in loaded.found
        ],
        "protocol_split": task.splits[0] if task.splits else "",
        "headline": task.metrics[0],
        "rows": loaded.rows,
        "subjects": len(loaded.found) if task.subjects else 0,
        "bad": dict(loaded.bad),
        "truncated": scores.truncated,
        "not_scored": [loaded.items[index].doc_id for index in scores.lost],
        "close": sum(outcome.close for outcome in outcomes if outcome is not None),
        "cached": cached,
        "tokens_read": scores.read,
        "tokens_one_choice_at_a_time": scores.naive,
    }
    return results, list(_lines(loaded.items, scores, outcomes)), facts


def _question(item: Item) -> str:
    """What a user would have asked: the context without its few-shot header and the chat format's frame."""
    text = item.pairs[0][0].removeprefix(item.header)
    return text.removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n")


def _refused(name: str, seen: Seen) -> dict[str, Any]:
    what = f"{seen.prompts:,} of its prompts are" if seen.prompts else "its own rows are"
    console.warn(f"{name}: no figure, {what} in what the model was trained on ({seen.where}).")
    return {"n": 0, "refused": f"{what} in the training data", "seen_prompts": seen.prompts}


def evaluate_written(
    subject: Subject, task: Written, recipe: EvalRecipe, history: History
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Answers in the upstream's schema, and a figure where a judge was named."""
    assert recipe.data is not None
    prompts = list(task.prompts(recipe.data))[: recipe.limit]
    headline = {"headline": "n"}
    if (seen := history.saw([prompt.text for prompt in prompts], ())) is not None:
        return {task.name: _refused(task.name, seen)}, [], headline | {"seen": vars(seen)}
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
    if found.unjudged:
        console.warn(f"{metric}: {found.unjudged:,} of {len(comparisons):,} answers were not judged.")
    figures = {
        metric: found.win_rate,
        f"{metric}_stderr": found.stderr,
        f"alpaca_discrete_win[{judge.name}]": found.discrete,
        "judged": found.n,
        "not_judged": found.unjudged,
        "n": len(comparisons),
    }
    return figures, {"judge": judge.describe()}


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


def summarise(
    task: Task,
    items: Sequence[Item],
    scores: Scores,
    outcomes: Sequence[metrics.Outcome | None],
    of: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Every metric's mean with its standard error, the protocol's first; `n` items that were scored."""
    chosen = [i for i in (range(len(items)) if of is None else of) if outcomes[i] is not None]
    kept = [outcome for i in chosen if (outcome := outcomes[i]) is not None]
    clusters = [items[i].cluster or str(i) for i in chosen]
    names = list(dict.fromkeys(name for outcome in kept for name in outcome.values))
    result: dict[str, Any] = {}
    if all(isinstance(items[i].gold, int) for i in chosen):
        bits, error = metrics.pooled_bpb([items[i] for i in chosen], [scores.logp[i] for i in chosen])
        pooled: dict[str, Any] = {"bits_per_byte": bits, "bits_per_byte_stderr": error}
    else:
        pooled = {}
    if all(isinstance(items[i].gold, int) and len(items[i].pairs) > 1 for i in chosen) and chosen:
        pooled["chance"] = sum(1 / len(items[i].pairs) for i in chosen) / len(chosen)
    for name in names:
        values = [outcome.values[name] for outcome in kept]
        result[name], result[f"{name}_stderr"] = metrics.mean(values)
        clustered = metrics.mean(values, clusters)[1]
        if clustered != result[f"{name}_stderr"]:
            result[f"{name}_stderr_clustered"] = clustered
    result |= pooled
    ordered = [name for name in task.metrics if name in result]
    ordered += [name for name in result if name not in ordered]
    return {name: result[name] for name in ordered} | {"n": len(kept)}


def _lines(
    items: Sequence[Item], scores: Scores, outcomes: Sequence[metrics.Outcome | None]
) -> Sequence[dict[str, Any]]:
    lines = []
    for item, logp, outcome in zip(items, scores.logp, outcomes, strict=True):
        line: dict[str, Any] = {"doc_id": item.doc_id}
        if item.group:
            line["subject"] = item.group
        line["gold"] = item.gold
        line["loglikelihoods"] = [None if math.isnan(value) else float(value) for value in logp]
        line["predictions"] = dict(outcome.predictions) if outcome else {}
        line["values"] = dict(outcome.values) if outcome else {}
        lines.append(line)
    return lines


def evaluate_text(
    subject: Subject, recipe: EvalRecipe
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Bits per byte by domain, and where there are several, pooled and macro; a line a document."""
    folders = [path for path in recipe.text if is_token_folder(path)]
    texts = list(read_texts([path for path in recipe.text if path not in folders], recipe.text_split))
    documents = text_documents(texts, subject.tokenizer)
    for folder in folders:
        subject.tokenizer.check(artifact.load(folder, "tokens").facts["tokens"], str(folder))
        documents += token_documents(folder)
    if recipe.limit is not None:
        documents = [document for group in by_source(documents) for document in group[: recipe.limit]]
    with console.progress("bits per byte") as progress:
        scores = perplexity.score_documents(
            subject.model,
            documents,
            subject.tokenizer.eos_id,
            _length(subject, recipe),
            budget=recipe.token_budget,
            device=subject.device,
            progress=progress,
        )
    return perplexity.table(scores, recipe.seed), [vars(score) for score in scores]


def _length(subject: Subject, recipe: EvalRecipe) -> int:
    return min(recipe.max_length or subject.max_length, subject.max_length)


def _plain(recipe: EvalRecipe, out: Path) -> dict[str, Any]:
    """The recipe as it is recorded: paths as seen from `out`, and not what cannot change a result."""
    plain: dict[str, Any] = to_plain(recipe)
    plain.pop("token_budget")
    plain.pop("use_cache")
    plain["data"] = artifact.relative(recipe.data, out) if recipe.data else None
    for name in ("conversations", "pairs"):
        path = getattr(recipe, name)
        plain[name] = artifact.relative(path, out) if path else None
    plain["text"] = [artifact.relative(path, out) for path in recipe.text]
    return plain


def clean(value: Any) -> Any:
    """NaN, which JSON does not have, as None."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        stream.writelines(orjson.dumps(line) + b"\n" for line in lines)
