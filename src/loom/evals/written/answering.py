"""A written task from its prompts to the files and figures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.artifact import atomic_write
from loom.console import console
from loom.errors import LoomError
from loom.evals.judge.answers import judge_answers
from loom.evals.settings import EvalRecipe, length
from loom.evals.subject import Subject
from loom.evals.written.questions import Prompt, missing_groups
from loom.evals.written.schemas import ANNOTATIONS, generator_name, write_lines
from loom.evals.written.tasks import Written, chat_of, write_answers


@dataclass(frozen=True)
class Answered:
    """A task's part of `results` and of `tasks` in results.json, and the files that were written below `out`."""

    result: dict[str, Any]
    facts: dict[str, Any]
    files: list[str]


def answer_task(
    subject: Subject,
    task: Written,
    prompts: Sequence[Prompt],
    recipe: EvalRecipe,
    judge: str | None,
    out: Path,
) -> Answered:
    """Answers are on disk before they are judged; where the judge fails, `judge_failed` says why, and everything else
    is as it would be without one."""
    with console.progress(task.name, total=len(prompts)) as progress:
        found = write_answers(
            subject,
            task,
            prompts,
            chat=recipe.chat,
            max_new_tokens=recipe.max_new_tokens,
            max_length=length(subject, recipe),
            progress=progress,
        )
    answers = [task.trim(text) for text in found.texts]
    generator = generator_name(subject.path)
    lines = [
        task.store(prompt, answer, generator) | dict.fromkeys(task.verdicts)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    files = [f"{task.name}.jsonl"]
    write_lines(out / files[0], lines)
    for name, content in task.also(prompts, answers, generator).items():
        with atomic_write(out / name) as stream:
            stream.write(content)
        files.append(name)
    result: dict[str, Any] = {
        "n": len(answers),
        "empty_answers": sum(not answer for answer in answers),
        "prompts_cut": found.prompts_cut,
        "cut_answers": found.cut,
    }
    opened = subject.tokenizer.decode(subject.opening.always) or "an end-of-text token"
    facts: dict[str, Any] = {
        "headline": "n",
        "format": chat_of(subject).note if recipe.chat else f"raw text after {opened}",
        "generator": generator,
        "max_new_tokens": found.limit,
    }
    if groups := [prompt.group for prompt in prompts if prompt.group]:
        facts["missing_groups"] = missing_groups(groups)
    if judge is None:
        return Answered(result, facts, files)
    try:
        judged = judge_answers(task, prompts, answers, generator, judge, subject.cached)
    except LoomError as error:
        console.warn(f"{task.name} was not judged; its answers are kept. {judge}: {error}")
        return Answered(result | {"judge_failed": f"{judge}: {error}"}, facts, files)
    for column, verdicts in judged.verdicts.items():
        lines = [line | {column: one} for line, one in zip(lines, verdicts, strict=True)]
    if judged.verdicts:
        write_lines(out / files[0], lines)
    if judged.annotations:
        files.append(ANNOTATIONS)
        write_lines(out / ANNOTATIONS, judged.annotations)
    facts |= {"judge": judged.facts, "headline": next(iter(judged.figures))}
    return Answered(result | judged.figures, facts, files)
