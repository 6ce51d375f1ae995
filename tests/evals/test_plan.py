"""What an evaluation will read is known, and refused, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loom.errors import LoomError
from loom.evals.plan import plan
from loom.evals.settings import EvalRecipe
from tests.tasks import rows


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write(tmp_path / "piqa.validation.jsonl", rows.PIQA)
    write(tmp_path / "mmlu" / "anatomy.test.jsonl", rows.MMLU)
    write(tmp_path / "mmlu" / "virology.test.jsonl", rows.MMLU)
    return tmp_path


@pytest.mark.parametrize("name", ["limit", "sample", "token_budget", "max_length", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_under_one_is_refused(questions: Path, name: str, value: int) -> None:
    """0 would be taken for "all", and -1 would drop the last row."""
    recipe = EvalRecipe(tasks=("piqa",), data=questions, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(LoomError, match=f"--{name.replace('_', '-')} {value}: it has to be 1 or more"):
        plan(recipe)
    plan(EvalRecipe(tasks=("piqa",), data=questions, **{name: 1}))  # type: ignore[arg-type]


def test_a_task_and_its_part_cannot_both_be_shown(questions: Path) -> None:
    with pytest.raises(LoomError, match="mmlu_anatomy is a part of mmlu"):
        plan(EvalRecipe(tasks=("mmlu_anatomy", "mmlu"), data=questions))
    assert len(plan(EvalRecipe(tasks=("mmlu_anatomy", "mmlu_virology"), data=questions)).ranked) == 2


def test_a_suite_leaves_out_what_is_absent_and_not_what_is_damaged(questions: Path) -> None:
    recipe = EvalRecipe(tasks=("mmlu", "truthfulqa_mc1"), data=questions, present=True)
    planned = plan(recipe)
    assert [task.name for task, _ in planned.ranked] == ["mmlu"]
    assert list(planned.missing) == ["truthfulqa_mc1"]
    (questions / "mmlu" / "virology.test.jsonl").write_text('{"question": "cut sh')
    with pytest.raises(LoomError, match=r"virology\.test\.jsonl:1 cannot be read"):
        plan(recipe)


def test_pmi_is_asked_of_every_task_that_does_not_have_it(questions: Path) -> None:
    for pmi, wanted in ((False, {None}), (True, {"Answer:"})):
        ((_, loaded),) = plan(EvalRecipe(tasks=("piqa",), data=questions, pmi=pmi)).ranked
        assert {item.unconditioned for item in loaded.items} == wanted


def test_settings_that_written_tasks_cannot_follow_are_refused(questions: Path) -> None:
    for more in ({"sample": 2}, {"split": "test"}, {"skip_bad": True}):
        with pytest.raises(LoomError, match="written tasks \\(alpaca_eval\\) are not drawn from"):
            plan(EvalRecipe(tasks=("alpaca_eval",), data=questions, **more))  # type: ignore[arg-type]


def test_a_limit_counts_within_each_group_of_prompts(questions: Path) -> None:
    for group in ("asian", "women"):
        path = questions / "toxigen" / f"hate_{group}_1k.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"- {group} {number}\\n-\n" for number in range(5)))
    ((_, prompts),) = plan(EvalRecipe(tasks=("toxigen",), data=questions, limit=2)).written
    assert [prompt.group for prompt in prompts] == ["asian", "asian", "women", "women"]
