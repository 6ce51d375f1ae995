"""Offline evaluation: a model on tasks or on text, into a folder with `results.json`.

`results.json` holds, by task, every metric with its standard error and n; `<task>.jsonl` holds a line a
document with the log-likelihood of every choice. Text gives bits per byte by domain, and `text.jsonl`
the sums of every document.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

import loom
from loom import artifact
from loom.artifact import Artifact, Input, atomic_write, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals import metrics, perplexity
from loom.evals.items import Scores, score_items
from loom.evals.subject import Subject
from loom.evals.text import by_source, is_token_folder, read_texts, text_documents, token_documents
from loom.recipe import to_plain
from loom.tasks import data, registry
from loom.tasks.item import Item, Task


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


def evaluate(subject: Subject, recipe: EvalRecipe, out: Path) -> Artifact:
    """Evaluate and commit kind "evaluation". What differs from run to run is in `run.json` alone."""
    started = time.monotonic()
    if not recipe.tasks and not recipe.text:
        raise LoomError("Nothing to evaluate on: name --tasks a,b with --data DIR, or --text FILES.")
    if recipe.tasks and recipe.data is None:
        raise LoomError("--tasks needs --data DIR, the folder that holds their rows (<task>.<split>.jsonl).")
    artifact.discard(out)
    results: dict[str, dict[str, Any]] = {}
    sources: dict[str, Any] = {}
    names: list[str] = []
    seconds: dict[str, float] = {}
    for task in registry.tasks(recipe.tasks):
        before = time.monotonic()
        found, lines, facts = evaluate_task(subject, task, recipe)
        results |= found
        sources[task.name] = facts
        names.append(f"{task.name}.jsonl")
        _write_lines(out / names[-1], lines)
        seconds[task.name] = round(time.monotonic() - before, 3)
    if recipe.text:
        before = time.monotonic()
        found, lines = evaluate_text(subject, recipe)
        results |= found
        names.append("text.jsonl")
        _write_lines(out / "text.jsonl", lines)
        seconds["text"] = round(time.monotonic() - before, 3)
    body = {
        "results": clean(results),
        "model": {"path": artifact.relative(subject.path, out), "digest": subject.digest},
        "tokenizer": subject.tokenizer.digest,
        "dtype": subject.dtype,
        "loom": loom.__version__,
        "max_length": _length(subject, recipe),
        "prefix": "end of text before an empty context, a chat prompt and a document; nothing otherwise",
        "seed": recipe.seed,
        "tasks": sources,
    }
    write_json(out / "results.json", body)
    names.append("results.json")
    return artifact.commit(
        out,
        "evaluation",
        recipe=_plain(recipe, out),
        inputs=[Input(artifact.relative(subject.path, out), subject.digest)],
        outputs=artifact.describe(out, names),
        counters={"tasks": len(sources), "text": len(recipe.text)},
        started=started,
    )


def evaluate_task(
    subject: Subject, task: Task, recipe: EvalRecipe
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
    outcomes = metrics.outcomes(loaded.items, scores)
    results = {task.name: summarise(task, loaded.items, scores, outcomes)}
    for group in dict.fromkeys(item.group for item in loaded.items if item.group):
        of = [index for index, item in enumerate(loaded.items) if item.group == group]
        results[f"{task.name}_{group}"] = summarise(task, loaded.items, scores, outcomes, of)
    facts = {
        "files": [{"path": str(f.path), "split": f.split, "digest": f.digest} for f in loaded.found],
        "protocol_split": task.splits[0] if task.splits else "",
        "headline": task.metrics[0],
        "rows": loaded.rows,
        "bad": dict(loaded.bad),
        "truncated": scores.truncated,
        "not_scored": [loaded.items[index].doc_id for index in scores.lost],
        "close": sum(outcome.close for outcome in outcomes if outcome is not None),
        "tokens_read": scores.read,
        "tokens_one_choice_at_a_time": scores.naive,
    }
    return results, list(_lines(loaded.items, scores, outcomes)), facts


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
        pooled = {"bits_per_byte": bits, "bits_per_byte_stderr": error}
    else:
        pooled = {}
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
    plain["data"] = artifact.relative(recipe.data, out) if recipe.data else None
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
