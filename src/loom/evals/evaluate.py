"""Offline evaluation: a model on tasks or on text, into a folder with `results.json`.

`results.json` holds, by task, every metric with its standard error and n; `<task>.jsonl` holds a line a
document with the log-likelihood of every choice. Text gives bits per byte by domain, and `text.jsonl`
the sums of every document.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, Input, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals import cache, metrics, perplexity, tuned
from loom.evals.contamination import History, Seen
from loom.evals.encode import encode_items
from loom.evals.folder import discard, refuse_emptying
from loom.evals.judge.files import KINDS
from loom.evals.plan import Plan, plan
from loom.evals.probes import PROBES
from loom.evals.settings import EvalRecipe, clean, length, refused
from loom.evals.sources import Texts, facts_of, trained_on
from loom.evals.subject import Subject
from loom.evals.summary import lines_of, macro, summarise
from loom.evals.written.answering import answer_task
from loom.evals.written.schemas import write_lines
from loom.recipe import to_plain
from loom.tasks import data, mmlu
from loom.tasks.data import Found, Loaded
from loom.tasks.item import Item, Task, asked
from loom.version import VERSION

__all__ = ["EvalRecipe", "best_forms", "evaluate"]


def evaluate(subject: Subject, recipe: EvalRecipe, out: Path, planned: Plan | None = None) -> Artifact:
    """Evaluate and commit kind "evaluation". What differs from run to run is in `run.json` alone.

    `planned` is `plan(recipe)` where it was made before. Raises `LoomError` before anything in `out` is
    touched if a task, a file or a row cannot be used.
    """
    started = time.monotonic()
    planned = planned or plan(recipe)
    recipe = planned.recipe
    subject = replace(subject, cached=recipe.use_cache)
    _check(subject, planned, out)
    discard(out)
    results: dict[str, dict[str, Any]] = {}
    sources: dict[str, Any] = {}
    names: list[str] = []
    seconds: dict[str, float] = {}
    cached: list[str] = []
    missing = dict(planned.missing)
    history = History(subject.path)
    for gone in history.missing:
        console.warn(f"{gone} is gone, so whether the model was trained on these rows is not fully known.")

    def keep(name: str, lines: Sequence[Mapping[str, Any]], facts: dict[str, Any], before: float) -> None:
        sources[name] = facts
        names.append(f"{name}.jsonl")
        write_lines(out / names[-1], lines)
        seconds[name] = round(time.monotonic() - before, 3)

    for task, loaded in planned.ranked:
        before = time.monotonic()
        found, lines, facts, known = evaluate_task(subject, task, loaded, recipe, history)
        results |= found
        cached += [task.name] if known else []
        keep(task.name, lines, facts, before)
    results |= best_forms(results, sources)
    for written, prompts in planned.written:
        own = [digest for found in planned.prompts[written.name] for digest in found.digests]
        seen = history.saw([prompt.spellings for prompt in prompts], own)
        judge = planned.judges.get(written.name)
        if recipe.present and judge is None and seen is None:
            missing[written.name] = "no judge was named"
            continue
        before = time.monotonic()
        about: dict[str, Any] = {
            "headline": "n",
            "prompts": _files(planned.prompts[written.name], recipe.data or out),
        }
        if seen is not None:
            results[written.name] = refused(written.name, seen)
            keep(written.name, [], about | {"seen": vars(seen)}, before)
            continue
        answered = answer_task(subject, written, prompts, recipe, judge, out)
        results[written.name], sources[written.name] = answered.result, about | answered.facts
        names += answered.files
        seconds[written.name] = round(time.monotonic() - before, 3)
    for name, work in _held_out(subject, recipe).items():
        before = time.monotonic()
        given = recipe.conversations if name != "preferences" else recipe.pairs
        assert given is not None
        objective = "dpo" if name == "preferences" else "sft"
        held = tuned.held_out(given, objective)
        seen = None if name == "probes" else history.saw_turns(tuned.said(given, objective), held.parent)
        if seen is not None and name != "preferences":
            results[name] = refused(name, seen)
            keep(name, [], {"headline": "n", "seen": vars(seen)}, before)
            continue
        results[name], lines = work()
        if seen is not None:  # the prompt is not what a pair asks about, but it was read
            console.warn(
                f"preferences: {seen.prompts:,} of its prompts are in what the model was trained on."
            )
            results[name]["seen_prompts"] = seen.prompts
        digest = artifact.load(held, "tokens").digest
        if name == "probes":  # the same ones whatever folder was held out
            digest = artifact.digest_json([[probe.kind, probe.prompt] for probe in PROBES])
        keep(name, lines, {"headline": next(iter(results[name])), "digest": digest}, before)
    for name, reason in missing.items():
        console.say(f"{name}: not measured, {reason}")
    texts: list[dict[str, Any]] = []
    if planned.text is not None:
        before = time.monotonic()
        seen_text = trained_on(planned.text.sources, [history])
        found, lines = evaluate_text(subject, recipe, planned.text, seen_text)
        for name, share in history.shares.items():
            if name in found:  # the fit follows the mixture
                found[name]["training_share"] = share
        texts = facts_of(planned.text, seen_text, out)
        # A text may be called what a task is called; neither takes the other's place.
        results |= {f"text:{name}" if name in results else name: one for name, one in found.items()}
        names.append("text.jsonl")
        write_lines(out / "text.jsonl", lines)
        seconds["text"] = round(time.monotonic() - before, 3)
    body = {
        "results": clean(results),
        "model": {"path": artifact.relative(subject.path, out), "digest": subject.digest},
        "tokenizer": subject.tokenizer.digest,
        "dtype": subject.dtype,
        "loom": VERSION,
        "versions": _versions(),
        "max_length": length(subject, recipe),
        "prefix": subject.opening.note(subject.tokenizer),
        "seed": recipe.seed,
        "sample_seed": data.SEED,
        "tasks": sources,
        **({"text": texts, "training_shares": history.shares} if texts else {}),
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
    of_this_run = {"seconds_by_task": seconds, "cached": cached}
    write_json(out / artifact.RUN, artifact.read_run(out) | of_this_run)
    return made


def _check(subject: Subject, planned: Plan, out: Path) -> None:
    """Raise `LoomError` for what can only be known with the model, and for inputs that lie where results will."""
    recipe = planned.recipe
    if planned.text is not None:
        planned.text.check(subject.tokenizer)
    for folder, objective in ((recipe.conversations, "sft"), (recipe.pairs, "dpo")):
        if folder is not None:
            held = tuned.held_out(folder, objective)
            subject.tokenizer.check(artifact.load(held, "tokens").facts["tokens"], str(held))
    for task, loaded in planned.ranked:
        try:
            encode_items(loaded.items, subject.tokenizer, subject.opening)
        except LoomError as error:
            raise LoomError(f"{task.name}: {error}") from None
    replays = [word.removeprefix("replay:") for word in planned.judges.values() if word.startswith("replay:")]
    refuse_emptying(out, list(map(Path, replays)))
    if recipe.data is not None and recipe.data.resolve() == out.resolve():
        raise LoomError(
            f"--out is --data, {out}: what a model answers would take the place of rows. Name another --out."
        )


def _files(found: Sequence[Found], base: Path) -> list[dict[str, str]]:
    return [{"path": artifact.relative(one.path, base), "digest": one.digest} for one in found]


def best_forms(
    results: Mapping[str, Mapping[str, Any]], sources: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """OLMES's figure of a task: the better of its cloze and its lettered form, where both were scored."""
    found: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        lettered = results.get(f"{name}-mcf") if name.endswith(":olmes") else None
        if lettered is None:
            continue
        both = {name: result, f"{name}-mcf": lettered}
        if any(sources[form]["headline"] not in one for form, one in both.items()):
            continue  # refused, or nothing of it could be scored
        forms = {
            form: (one[sources[form]["headline"]], one[f"{sources[form]['headline']}_stderr"], one["n"])
            for form, one in both.items()
        }
        best = max(forms, key=lambda form: forms[form][0])
        value, stderr, n = forms[best]
        found[f"{name}-max"] = {"acc": value, "acc_stderr": stderr, "form": best, "n": n}
        sources[f"{name}-max"] = {"headline": "acc", "files": sources[best]["files"]}
    return found


def _held_out(subject: Subject, recipe: EvalRecipe) -> dict[str, Callable[[], tuned.Found]]:
    """What is measured on held-out conversations and pairs."""
    work: dict[str, Callable[[], tuned.Found]] = {}
    if (folder := recipe.conversations) is not None:
        work["answers"] = lambda: tuned.answers(subject, folder, recipe.seed, recipe.limit)
        work["instructions"] = lambda: tuned.instructions(
            subject, folder, recipe.max_new_tokens, recipe.limit
        )
        work["probes"] = lambda: tuned.probes(subject, recipe.max_new_tokens)
    if (pairs := recipe.pairs) is not None:
        work["preferences"] = lambda: tuned.preferences(subject, pairs, recipe.limit)
    return work


def evaluate_task(
    subject: Subject, task: Task, loaded: Loaded, recipe: EvalRecipe, history: History
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any], bool]:
    """Results by name (the task, and its subjects), a line a document, what was read, and whether the scores
    were known from before."""
    assert recipe.data is not None
    prompts = [asked(item) for item in loaded.items]
    seen = history.saw(prompts, [digest for found in loaded.found for digest in found.digests])
    if seen is not None:
        no_figure = {"headline": task.metrics[0], "seen": vars(seen)}
        return {task.name: refused(task.name, seen)}, [], no_figure, False
    with console.progress(task.name, total=len(loaded.items)) as progress:
        scores, known = cache.items(
            subject,
            loaded.items,
            length(subject, recipe),
            budget=recipe.token_budget,
            progress=progress,
        )
    outcomes = metrics.outcomes(loaded.items, scores)
    results = {task.name: summarise(task, loaded.items, scores, outcomes)}
    parts = {
        group: [index for index, item in enumerate(loaded.items) if item.group == group]
        for group in dict.fromkeys(item.group for item in loaded.items if item.group)
    }
    subjects = {group: summarise(task, loaded.items, scores, outcomes, of) for group, of in parts.items()}
    results[task.name] = macro(task, results[task.name], list(subjects.values()))
    if len(parts) > 1:  # one subject's figures are the task's
        for category, members in mmlu.GROUPS.items():
            if within := [index for group in members for index in parts.get(group, ())]:
                results[f"{task.name}_{category}"] = macro(
                    task,
                    summarise(task, loaded.items, scores, outcomes, sorted(within)),
                    [subjects[group] for group in members if group in subjects],
                )
        results |= {f"{task.name}_{group}": result for group, result in subjects.items()}
    facts: dict[str, Any] = {
        "files": [_file(one, recipe.data) for one in loaded.found],
        "protocol_split": task.splits[0] if task.splits else "",
        "headline": task.metrics[0],
        "rows": loaded.rows,
        **(
            {
                "examples": _examples(task),
                "example_files": [_file(one, recipe.data) for one in loaded.examples],
            }
            if task.shots
            else {}
        ),
        "subjects": len(loaded.found) if task.subjects else 0,
        "all_subjects": len(task.subjects),
        "bad": dict(loaded.bad),
        "truncated": scores.truncated,
        "mostly_cut": len(set(scores.gutted) - set(scores.lost)),
        "not_scored": [_place(loaded.items[index]) for index in scores.lost],
        "close": sum(outcome.close for outcome in outcomes if outcome is not None),
        "tokens_read": scores.read,
        "tokens_one_choice_at_a_time": scores.naive,
    }
    return results, list(lines_of(loaded.items, scores, outcomes)), facts, known


def _place(item: Item) -> int | str:
    """A row's number, with its subject where there are several."""
    return f"{item.group}:{item.doc_id}" if item.group else item.doc_id


def _file(found: Found, base: Path) -> dict[str, Any]:
    shards = {"shards": len(found.paths)} if len(found.paths) > 1 else {}
    path = found.path.relative_to(base).as_posix()
    return {"path": path, "split": found.split, "digest": found.digest, **shards}


def _examples(task: Task) -> str:
    """Which worked examples were shown, where the protocol's own are others."""
    first = f"the first {task.shots} rows of the dev (else train) file"
    drawn_anew = ":" not in task.name.removesuffix(f":{task.shots}shot") and not task.subjects
    return f"{first}; lm-evaluation-harness draws its examples anew for every row" if drawn_anew else first


def evaluate_text(
    subject: Subject, recipe: EvalRecipe, texts: Texts, seen: Mapping[str, Seen]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Bits per byte by domain, and where there are several, pooled and macro; a line a document. `seen` are sources
    that the model was trained on: they get no figure."""
    documents = texts.documents(subject.tokenizer, seen, recipe.limit)
    eos, first = subject.tokenizer.eos_id, subject.opening.empty
    rows = perplexity.document_rows(documents, eos, length(subject, recipe), first)
    with console.progress("bits per byte", total=len(rows)) as progress:
        logp = cache.rows(subject, rows, 2 * len(documents), budget=recipe.token_budget, progress=progress)
    scores = perplexity.document_scores(documents, logp)
    found: dict[str, dict[str, Any]] = {**perplexity.table(scores, recipe.seed, texts.splits)}
    for source, split in texts.splits.items():
        if split and source in found:
            found[source]["split"] = split
    for source, where in seen.items():  # a domain of another source may have its name
        found[f"text:{source}" if source in found else source] = {"bytes": 0, **refused(source, where)}
    return found, [vars(score) for score in scores]


def _versions() -> dict[str, str]:
    """Of what the figures were computed with."""
    found = {}
    for name in ("torch", "transformers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _plain(recipe: EvalRecipe, out: Path) -> dict[str, Any]:
    """The recipe as it is recorded: paths as seen from `out`, and not what cannot change a result."""
    plain: dict[str, Any] = to_plain(recipe)
    plain.pop("token_budget")
    plain.pop("use_cache")
    plain["data"] = artifact.relative(recipe.data, out) if recipe.data else None
    for name in ("conversations", "pairs"):
        path = getattr(recipe, name)
        plain[name] = artifact.relative(path, out) if path else None
    plain["judges"] = [_judge(word, out) for word in recipe.judges]
    plain["text"] = [artifact.relative(path, out) for path in recipe.text]
    return plain


def _judge(word: str, out: Path) -> str:
    """A judge as it is recorded: its file or folders as seen from `out`."""
    task, equals, spec = word.partition("=")
    if not equals or task not in KINDS:
        task, equals, spec = "", "", word
    kind, _, paths = spec.partition(":")
    if kind == "endpoint" or not paths or not all(Path(path).exists() for path in paths.split(",")):
        return word
    seen = ",".join(artifact.relative(Path(path), out) for path in paths.split(","))
    return f"{task}{equals}{kind}:{seen}"
