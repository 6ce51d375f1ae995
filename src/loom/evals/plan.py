"""What an evaluation will read, found before a model is loaded or a figure is lost: unknown names, missing
files and rows that cannot be used are errors here, not after the first hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loom.errors import LoomError
from loom.evals.judge.files import check_references, check_settings, judges_for
from loom.evals.settings import EvalRecipe
from loom.evals.sources import Texts, find_sources, read_sources
from loom.evals.tuned import held_out
from loom.evals.written.questions import Prompt, limited
from loom.evals.written.tasks import WRITTEN, Written
from loom.tasks import data, registry
from loom.tasks.data import Found, Loaded, NotThere
from loom.tasks.item import Task


@dataclass(frozen=True)
class Plan:
    """Tasks with their rows, written tasks with their prompts and judges, text; `missing` are those of a suite that takes
    what there is, and why they cannot be measured."""

    recipe: EvalRecipe
    ranked: tuple[tuple[Task, Loaded], ...] = ()
    written: tuple[tuple[Written, tuple[Prompt, ...]], ...] = ()
    judges: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)
    """The files of each written task's prompts."""
    missing: Mapping[str, str] = field(default_factory=dict)
    text: Texts | None = None


def plan(recipe: EvalRecipe) -> Plan:
    """Raises `LoomError` for nothing to do, a senseless setting, an unknown task, a missing file or a bad row."""
    _check_counts(recipe)
    if not any((recipe.tasks, recipe.text, recipe.conversations, recipe.pairs)):
        raise LoomError("Nothing to evaluate on: name --tasks a,b with --data DIR, or --text FILES.")
    for folder, objective in ((recipe.conversations, "sft"), (recipe.pairs, "dpo")):
        if folder is not None:
            held_out(folder, objective)
    if recipe.present and recipe.data is None:
        recipe = replace(recipe, tasks=())
    written = [name for name in dict.fromkeys(recipe.tasks) if name in WRITTEN]
    check_settings(recipe, written)
    judges = judges_for(recipe.judges, written)
    tasks = registry.tasks([name for name in recipe.tasks if name not in written])
    if recipe.tasks and recipe.data is None:
        raise LoomError("--tasks needs --data DIR, the folder that holds their rows (<task>.<split>.jsonl).")
    _check_names(tasks)
    ranked: list[tuple[Task, Loaded]] = []
    asked: list[tuple[Written, tuple[Prompt, ...]]] = []
    files: dict[str, tuple[Found, ...]] = {}
    missing: dict[str, str] = {}
    for task in tasks:
        if (reason := _absent(task, recipe)) is not None:
            missing[task.name] = reason
            continue
        ranked.append((task, load(task, recipe)))
    for name in written:
        assert recipe.data is not None
        try:
            files[name] = tuple(WRITTEN[name].files(recipe.data))
        except NotThere as error:
            if not recipe.present:
                raise
            missing[name] = f"its rows are not there ({error})"
            continue
        prompts = tuple(prompt for found in files[name] for prompt in WRITTEN[name].read(found))
        if not prompts:
            raise LoomError(f"{files[name][0].path} holds nothing to ask.")
        if name in judges:
            check_references(name, judges[name], files[name], prompts)
        asked.append((WRITTEN[name], limited(prompts, recipe.limit)))
    text = read_sources(find_sources(recipe.text, recipe.text_split)) if recipe.text else None
    return Plan(recipe, tuple(ranked), tuple(asked), judges, files, missing, text)


def load(task: Task, recipe: EvalRecipe) -> Loaded:
    assert recipe.data is not None
    loaded = data.load(
        task,
        recipe.data,
        limit=recipe.limit,
        sample=recipe.sample,
        skip_bad=recipe.skip_bad,
        split=recipe.split,
    )
    if not recipe.pmi:
        return loaded
    items = [
        item if item.chat or item.unconditioned is not None else replace(item, unconditioned="Answer:")
        for item in loaded.items
    ]
    return replace(loaded, items=items)


def _check_counts(recipe: EvalRecipe) -> None:
    """Raise `LoomError` for a number of rows or tokens under 1."""
    for name in ("limit", "sample", "token_budget", "max_length", "max_new_tokens"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise LoomError(
                f"--{name.replace('_', '-')} {value}: it has to be 1 or more; leave it out for all."
            )


def _check_names(tasks: Sequence[Task]) -> None:
    """Raise `LoomError` where a task is also a part of another: their figures would have one name."""
    parts = {f"{task.name}_{subject}": task.name for task in tasks for subject in task.subjects}
    for task in tasks:
        if (whole := parts.get(task.name)) is not None:
            raise LoomError(
                f"{task.name} is a part of {whole}, which shows its figures too: name one of the two."
            )


def _absent(task: Task, recipe: EvalRecipe) -> str | None:
    """Why a task of a suite that takes what there is cannot be measured: its rows are not there."""
    if not recipe.present or recipe.data is None:
        return None
    try:
        data.parts_of(task, recipe.data, (recipe.split,) if recipe.split else task.splits, bool(recipe.split))
    except NotThere as error:
        return f"its rows are not there ({error})"
    return None
