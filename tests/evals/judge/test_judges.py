"""Judges: the replay gives the published number, and failures are counted, never scored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loom.errors import LoomError
from loom.evals import cache
from loom.evals.judge.answers import find_judge, judge_comparisons
from loom.evals.judge.causal import LocalModel
from loom.evals.judge.judges import Comparison, Replay, win_rate
from loom.evals.subject import Subject
from loom.model.transformer import Transformer
from loom.tokens.tokenizer import Tokenizer

PAIR = Comparison("Say hello.", "Go away.", "Hello!")


def test_replaying_gpt4_gives_the_leaderboards_number(shared_data: Path) -> None:
    """tulu-2-dpo-7b against text-davinci-003: 678 of 805, 84.22360248447205 on the leaderboard."""
    judge = Replay(shared_data / "chat" / "alpaca_eval.annotations.jsonl.gz")
    found = win_rate(judge.prefer(judge.comparisons()))
    assert found.win_rate == pytest.approx(84.22360248447205, abs=1e-10)
    assert found.stderr == pytest.approx(1.2856, abs=5e-5)
    assert (found.n, found.unjudged) == (805, 0)


def test_an_answer_that_was_not_annotated_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"instruction": "Say hello.", "output_1": "x", "output_2": "Hi", "preference": 2})
    )
    assert Replay(path).prefer([PAIR]) == [None]


def annotated(path: Path, *rows: dict[str, Any]) -> Path:
    usual = {"instruction": "Say hello.", "output_1": "x", "output_2": "Hi", "preference": 2}
    path.write_text("".join(json.dumps(usual | row) + "\n" for row in rows))
    return path


def test_annotations_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    """The last one would silently decide; two that agree are one."""
    for other in (1, None, 1.5):
        path = annotated(tmp_path / "a.jsonl", {}, {"output_2": "Ho"}, {"preference": other})
        with pytest.raises(LoomError, match=r"a\.jsonl:3 says .* and .*a\.jsonl:1 says 2\.0"):
            Replay(path)
    agreeing = Replay(annotated(tmp_path / "a.jsonl", {}, {"preference": 2.0}))
    assert len(agreeing.comparisons()) == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": 7}, "instruction is 7 and has to be text"),
        ({"output_2": ["Hi"]}, r"output_2 is \['Hi'\] and has to be text"),
        ({"output_2": None}, "output_2 is None and has to be text"),
    ],
)
def test_a_row_of_another_type_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(LoomError, match=rf"a\.jsonl:2: {why}"):
        Replay(annotated(tmp_path / "a.jsonl", {}, row))


def test_annotations_may_be_an_array_and_not_nothing(tmp_path: Path) -> None:
    """`alpaca_eval` writes annotations.json."""
    path = tmp_path / "a.json"
    row = {"instruction": "Say hello.", "output_1": "x", "output_2": "Hello!", "preference": 1}
    path.write_text(json.dumps([row], indent=2))
    assert Replay(path).prefer([PAIR]) == [1.0]
    path.write_text(json.dumps([row, "x"]))
    with pytest.raises(LoomError, match=r"a\.json:2 is no JSON object"):
        Replay(path)
    for nothing in ("", "[]", "\n\n"):
        path.write_text(nothing)
        with pytest.raises(LoomError, match=r"a\.json has no rows"):
            Replay(path)


def test_a_replay_says_what_the_baseline_was(tmp_path: Path) -> None:
    """Not what is compared with elsewhere: the judgements were made against output_1."""
    row = {"output_2": "Hello!", "generator_1": "davinci", "generator_2": "tulu", "annotator": "gpt4"}
    judge = Replay(annotated(tmp_path / "a.jsonl", {**row, "dataset": "d"}))
    assert judge.describe()["baselines"] == ["davinci"]
    (stored,) = judge_comparisons(judge, [PAIR]).annotations
    assert stored == {
        "instruction": "Say hello.",
        "output_1": "x",
        "generator_1": "davinci",
        "dataset": "d",
        "output_2": "Hello!",
        "generator_2": "tulu",
        "annotator": "gpt4",
        "preference": 2.0,
    }


def test_annotations_that_were_written_can_be_replayed(shared_data: Path, tmp_path: Path) -> None:
    judge = Replay(shared_data / "chat" / "alpaca_eval.annotations.jsonl.gz")
    first = judge_comparisons(judge, judge.comparisons())
    again = tmp_path / "a.jsonl"
    again.write_text("".join(json.dumps(row) + "\n" for row in first.annotations))
    other = Replay(again)
    assert judge_comparisons(other, other.comparisons()).figures == first.figures
    assert first.figures["alpaca_win[replay]"] == pytest.approx(84.22360248447205, abs=1e-10)
    assert other.rows.keys() == judge.rows.keys()
    wanted = {"instruction", "output_1", "generator_1", "dataset", "output_2", "generator_2", "annotator"}
    for key, row in other.rows.items():
        assert {name: row[name] for name in wanted} == {name: judge.rows[key][name] for name in wanted}


@pytest.mark.parametrize("preference", [3, -1, 0.5, "x", [2]])
def test_a_preference_that_is_none_is_named_with_its_line(tmp_path: Path, preference: object) -> None:
    row = {"instruction": "Say hello.", "output_1": "x", "output_2": "Hi", "preference": 2}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "preference": preference}))
    with pytest.raises(LoomError, match=r"a\.jsonl:2: the preference is"):
        Replay(path)


def test_win_rate_by_hand() -> None:
    found = win_rate([2, 1, 1.5, 0, None, 2])
    assert found.win_rate == found.discrete == pytest.approx(100 * 3 / 5)
    assert found.stderr == pytest.approx(100 * math.sqrt(0.7 / 4 / 5))
    assert (found.n, found.unjudged) == (5, 1)
    assert win_rate([1.6]).discrete == 100
    assert math.isnan(win_rate([None]).win_rate)
    with pytest.raises(ValueError, match="between 1"):
        win_rate([3])


def test_a_local_judge_does_not_care_for_the_order(model: Transformer, tokenizer: Tokenizer) -> None:
    judge = LocalModel(Subject(model, tokenizer, 512, Path("."), "d", "float32", "cpu"))
    swapped = Comparison(PAIR.instruction, PAIR.answer, PAIR.baseline)
    one, two = judge.prefer([PAIR, swapped])
    assert one is not None
    assert two is not None
    assert one + two == pytest.approx(3)
    assert 1 < one < 2


def test_what_a_local_judge_cannot_read_whole_it_does_not_judge(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    judge = LocalModel(Subject(model, tokenizer, 300, Path("."), "d", "float32", "cpu"))
    long = Comparison("Tell a story.", "Once upon a time. " * 40, "No.")
    first, second = judge.prefer([long, PAIR])
    assert first is None and second is not None
    assert judge.describe()["failures"] == {"longer than the judge's context": 1}


def stub(monkeypatch: pytest.MonkeyPatch, logp: list[list[float]]) -> list[Any]:
    """Let a model give these log-probabilities of " A" and " B"; what it is asked is put into the list."""
    asked: list[Any] = []

    def items(_: Any, given: list[Any], *__: Any) -> tuple[Any, bool]:
        asked.extend(given)
        rows = [np.log(np.array(row)) for row in logp]
        return SimpleNamespace(logp=rows, cut=(), lost=()), False

    monkeypatch.setattr(cache, "items", items)
    return asked


SUBJECT: Any = SimpleNamespace(max_length=512, digest="d")


def test_a_local_judge_is_asked_for_a_and_b_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stub(monkeypatch, [[0.2, 0.6], [0.3, 0.1]])
    judge = LocalModel(SUBJECT)
    (preference,) = judge.prefer([PAIR])
    # The model's answer is B in the first order (0.6 of 0.8) and A in the second (0.3 of 0.4).
    assert preference == pytest.approx(1.75)
    text = (
        "Which of two answers to an instruction is better?\n\nInstruction:\nSay hello.\n\nAnswer A:\n{}\n\n"
        "Answer B:\n{}\n\nThe better answer is Answer"
    )
    orders = [text.format("Go away.", "Hello!"), text.format("Hello!", "Go away.")]
    assert [item.pairs for item in asked] == [((order, " A"), (order, " B")) for order in orders]
    assert judge.disagree == 0


@pytest.mark.parametrize(("always", "turned", "warned"), [(0, 4, True), (1, 4, True), (2, 2, False)])
def test_a_judge_that_goes_by_the_place_is_counted_and_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    always: int,
    turned: int,
    warned: bool,
) -> None:
    """One that always says A gives 50, which looks like a draw. At half of the comparisons nothing is said."""
    same, other = ([[0.9, 0.1], [0.9, 0.1]], [[0.1, 0.9], [0.9, 0.1]])
    place = [[0.1, 0.9], [0.1, 0.9]] if always == 1 else same
    stub(monkeypatch, place * turned + other * (4 - turned))
    found = judge_comparisons(LocalModel(SUBJECT), [PAIR] * 4)
    assert found.figures["orders_disagree"] == turned
    assert ("goes by their place" in capsys.readouterr().err) == warned
    assert found.figures["alpaca_win[local-model]"] == pytest.approx(50 if warned else 70)


def test_where_nothing_was_judged_there_is_no_figure(tmp_path: Path) -> None:
    judge = Replay(annotated(tmp_path / "a.jsonl", {}))
    with pytest.raises(LoomError, match=r"none of the 2 answers was judged \(none of them is in the annot"):
        judge_comparisons(judge, [PAIR, PAIR])


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    """What safetensors raises of a file cut short is a type of its own."""
    with pytest.raises(LoomError, match="There is no judge 'gpt4'"):
        find_judge("gpt4")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(LoomError):
        find_judge(f"model:{tmp_path}")
