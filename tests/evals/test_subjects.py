"""A task of several subjects: what is shown of it, of its subjects and of the four groups they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.cli.eval import show
from loom.errors import LoomError
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.subject import Subject
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import byte_tokenizer, random_model
from tests.tasks import rows

SIZES = {
    "anatomy": 7,
    "virology": 9,
    "sociology": 6,
}  # other: virology; stem: anatomy; social_sciences: sociology


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    tokenizer = Tokenizer(json.dumps(byte_tokenizer()).encode(), "bytes")
    return Subject(random_model(context=256), tokenizer, 256, tmp_path, "none", "float32", "cpu")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        path = tmp_path / "data" / "mmlu" / f"{name}.test.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{**rows.MMLU[i % 3], "question": f"{name} {i}?"} for i in range(size)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data"


def measured(subject: Subject, out: Path, **recipe: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluate(subject, EvalRecipe(**recipe), out)
    (name,) = recipe["tasks"]
    lines = (out / f"{name}.jsonl").read_text().splitlines()
    return json.loads((out / "results.json").read_text()), [json.loads(line) for line in lines]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join("".join(capsys.readouterr()).split())


def test_groups_and_subjects_are_those_of_their_rows(
    subject: Subject, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, lines = measured(subject, tmp_path / "out", tasks=("mmlu",), data=questions)
    groups = {"stem": ["anatomy"], "other": ["virology"], "social_sciences": ["sociology"]}
    wanted = {"mmlu": list(SIZES), **{f"mmlu_{name}": [name] for name in SIZES}}
    wanted |= {f"mmlu_{group}": members for group, members in groups.items()}
    assert set(body["results"]) == set(wanted)
    for name, members in wanted.items():
        values = [line["values"]["acc"] for line in lines if line["subject"] in members]
        assert body["results"][name]["n"] == len(values) == sum(SIZES[member] for member in members)
        assert body["results"][name]["acc"] == pytest.approx(np.mean(values))
    show(body)
    assert "mmlu: 3 of 57 subjects were there" in printed(capsys)


def test_a_subject_by_itself_is_shown_once(subject: Subject, questions: Path, tmp_path: Path) -> None:
    body, _ = measured(subject, tmp_path / "out", tasks=("mmlu_anatomy",), data=questions)
    assert set(body["results"]) == {"mmlu_anatomy"}


def test_questions_of_which_hardly_anything_was_read_are_counted(
    subject: Subject, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut contexts are counted, those that lost more than half by themselves, and what could not be scored is named by
    its subject."""
    longest = [{**rows.MMLU[0], "question": "Why? " * 50}]
    path = questions / "mmlu" / "virology.test.jsonl"
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in longest))
    recipe = {"tasks": ("mmlu_continuation",), "data": questions}
    body, _ = measured(subject, tmp_path / "long", max_length=240, **recipe)
    facts = body["tasks"]["mmlu_continuation"]
    assert (facts["truncated"], facts["mostly_cut"], facts["not_scored"]) == (4, 0, [])
    body, _ = measured(subject, tmp_path / "short", max_length=100, **recipe)
    assert body["tasks"]["mmlu_continuation"]["mostly_cut"] == 1
    show(body)
    assert "1 rows kept less than half of their context" in printed(capsys)
    body, _ = measured(subject, tmp_path / "none", max_length=3, **recipe)
    lost = body["tasks"]["mmlu_continuation"]["not_scored"]
    assert "virology:2" in lost and "anatomy:0" not in lost


def test_a_mean_over_subjects_is_there_for_one_subject_too(
    subject: Subject, questions: Path, tmp_path: Path
) -> None:
    """OLMES's headline is the mean over subjects, and the better of its two forms is taken from headlines."""
    for other in ("anatomy", "sociology"):
        (questions / "mmlu" / f"{other}.test.jsonl").unlink()
    examples = "".join(json.dumps(row) + "\n" for row in rows.MMLU_DEV)
    for name in SIZES:  # those of subjects without rows are no rows
        (questions / "mmlu" / f"{name}.dev.jsonl").write_text(examples)
    forms = ("mmlu:olmes", "mmlu:olmes-mcf")
    evaluate(subject, EvalRecipe(tasks=forms, data=questions), tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert set(results) == {*forms, "mmlu:olmes-max"}
    assert results["mmlu:olmes"]["n"] == SIZES["virology"]
    assert results["mmlu:olmes"]["macro_acc_char"] == results["mmlu:olmes"]["acc_char"]


def test_results_do_not_take_the_place_of_rows(subject: Subject, questions: Path) -> None:
    before = sorted(path.read_bytes() for path in questions.rglob("*.jsonl"))
    with pytest.raises(LoomError, match="--out is --data"):
        evaluate(subject, EvalRecipe(tasks=("mmlu",), data=questions), questions)
    assert sorted(path.read_bytes() for path in questions.rglob("*.jsonl")) == before


def test_a_choice_without_tokens_is_told_before_anything_is_lost(
    subject: Subject, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(subject, EvalRecipe(tasks=("mmlu",), data=questions), tmp_path / "out")
    kept = (tmp_path / "out" / "results.json").read_bytes()

    def nothing(*_: object) -> None:
        raise LoomError("The continuation ' B' has no tokens of its own")

    monkeypatch.setattr("loom.evals.evaluate.encode_items", nothing)
    with pytest.raises(LoomError, match="mmlu: The continuation ' B' has no tokens"):
        evaluate(subject, EvalRecipe(tasks=("mmlu",), data=questions), tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_bytes() == kept
