"""What an evaluation will read, found before a model is loaded or a figure is lost: unknown names, missing
files and rows that cannot be used are errors here, not after the first hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loom.console import console
from loom.errors import LoomError
from loom.evals.judged import check_references, judges_for
from loom.evals.settings import EvalRecipe
from loom.evals.tuned import held_out
from loom.evals.written import WRITTEN, Prompt, Written
from loom.tasks import data, registry
from loom.tasks.data import Found, Loaded
from loom.tasks.item import Task


@dataclass(frozen=True)
class Plan:
    """Tasks with their rows, written tasks with their prompts and judges; `missing` are those of a suite that takes what
    there is, and why they cannot be measured."""

    recipe: EvalRecipe
    ranked: tuple[tuple[Task, Loaded], ...] = ()
    written: tuple[tuple[Written, tuple[Prompt, ...]], ...] = ()
    judges: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)
    """The files of each written task's prompts."""
    missing: Mapping[str, str] = field(default_factory=dict)


def plan(recipe: EvalRecipe) -> Plan:
    """Raises `LoomError` for nothing to do, an unknown task, a missing file or a bad row."""
    if not any((recipe.tasks, recipe.text, recipe.conversations, recipe.pairs)):
        raise LoomError("Nothing to evaluate on: name --tasks a,b with --data DIR, or --text FILES.")
    for folder, objective in ((recipe.conversations, "sft"), (recipe.pairs, "dpo")):
        if folder is not None:
            held_out(folder, objective)
    if recipe.present and recipe.data is None:
        recipe = replace(recipe, tasks=())
    written = [name for name in dict.fromkeys(recipe.tasks) if name in WRITTEN]
    judges = judges_for(recipe.judges, written)
    tasks = registry.tasks([name for name in recipe.tasks if name not in written])
    if recipe.tasks and recipe.data is None:
        raise LoomError("--tasks needs --data DIR, the folder that holds their rows (<task>.<split>.jsonl).")
    ranked: list[tuple[Task, Loaded]] = []
    asked: list[tuple[Written, tuple[Prompt, ...]]] = []
    files: dict[str, tuple[Found, ...]] = {}
    missing: dict[str, str] = {}
    for task in tasks:
        if (reason := _absent(task, recipe)) is not None:
            missing[task.name] = reason
            continue
        loaded = load(task, recipe)
        if len(loaded.found) < len(task.subjects):
            console.say(
                f"{task.name}: {len(loaded.found)} of {len(task.subjects)} subjects are in {recipe.data}"
            )
        ranked.append((task, loaded))
    for name in written:
        assert recipe.data is not None
        try:
            files[name] = tuple(WRITTEN[name].files(recipe.data))
        except LoomError as error:
            if not recipe.present:
                raise
            missing[name] = f"its rows are not there ({error})"
            continue
        prompts = tuple(prompt for found in files[name] for prompt in WRITTEN[name].read(found))
        if not prompts:
            raise LoomError(f"{files[name][0].path} holds nothing to ask.")
        if name in judges:
            check_references(name, judges[name], files[name], prompts)
        asked.append((WRITTEN[name], prompts[: recipe.limit]))
    return Plan(recipe, tuple(ranked), tuple(asked), judges, files, missing)


def load(task: Task, recipe: EvalRecipe) -> Loaded:
    assert recipe.data is not None
    return data.load(
        task,
        recipe.data,
        limit=recipe.limit,
        sample=recipe.sample,
        skip_bad=recipe.skip_bad,
        split=recipe.split,
    )


def _absent(task: Task, recipe: EvalRecipe) -> str | None:
    """Why a task of a suite that takes what there is cannot be measured: its rows are not there."""
    if not recipe.present or recipe.data is None:
        return None
    try:
        data.load(task, recipe.data, limit=1, skip_bad=True, split=recipe.split)
    except LoomError as error:
        return f"its rows are not there ({error})"
    return None
