"""The paired tests against what they are defined as."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.errors import LoomError
from loom.evals.compare import compare, difference, mcnemar
from tests.evals.conftest import rng


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = rng(5)
    covered = 0
    for trial in range(200):
        x = (draw.random(150) < 0.5).astype(float)
        y = np.where(draw.random(150) < 0.2, (draw.random(150) < 0.75).astype(float), x)
        found = difference("t", "acc", x, y, seed=trial, draws=500)
        covered += found.low <= 0.05 <= found.high  # true difference 0.2 * (0.75 - 0.5)
    assert 180 <= covered <= 199


def test_a_difference_of_the_detectable_size_is_found_in_four_cases_of_five() -> None:
    draw = rng(6)
    first = difference("t", "v", np.zeros(400), draw.normal(0, 1, 400))
    shift = first.detectable
    found = [
        difference("t", "v", np.zeros(400), draw.normal(shift, 1, 400), draws=500).clear for _ in range(100)
    ]
    assert 68 <= sum(found) <= 92


def write(folder: Path, values: list[float], digest: str = "d") -> Path:
    folder.mkdir()
    lines = [{"doc_id": i, "gold": 0, "values": {"acc": v}} for i, v in enumerate(values)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task: dict[str, Any] = {"headline": "acc", "files": [{"digest": digest}]}
    (folder / "results.json").write_text(json.dumps({"results": {}, "tasks": {"quiz": task}}))
    return folder


def test_folders_are_paired_by_document(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [1, 0, 0, 1, 0])
    b = write(tmp_path / "b", [1, 1, 1, 0, 0])
    (found,) = compare(a, b)
    assert (found.only_a, found.only_b, found.n) == (1, 2, 5)
    assert found.difference == pytest.approx(0.2)
    assert found.p == pytest.approx(1.0)


def test_other_rows_or_no_evaluation_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [1, 0])
    b = write(tmp_path / "b", [1, 0], digest="other")
    with pytest.raises(LoomError, match="different rows"):
        compare(a, b)
    with pytest.raises(LoomError, match="not an evaluation"):
        compare(a, tmp_path)
    with pytest.raises(LoomError, match="no metric 'bpb'"):
        compare(a, write(tmp_path / "c", [1, 0]), ["bpb"])


def test_what_has_no_rows_is_named_and_the_rest_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused task, written answers, and the better of two forms have no rows to pair."""
    folders = [write(tmp_path / name, [1, 0, 1]) for name in "ab"]
    for folder in folders:
        body = json.loads((folder / "results.json").read_text())
        body["tasks"] |= {
            "seen": {"headline": "acc", "seen": {}},
            "alpaca_eval": {"headline": "n"},
            "quiz:olmes-max": {"headline": "acc", "files": [{"digest": "d"}]},
        }
        (folder / "results.json").write_text(json.dumps(body))
        (folder / "alpaca_eval.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    (found,) = compare(*folders)
    assert found.task == "quiz"
    assert "not compared row by row: seen, alpaca_eval, quiz:olmes-max" in capsys.readouterr().out


def test_held_out_answers_and_pairs_are_compared_by_row(tmp_path: Path) -> None:
    """Answers by their bits a byte, pairs by which side is likelier; what was held out has to be the same."""

    def tuned(name: str, nll: list[float], right: list[int], digest: str = "d") -> Path:
        folder = write(tmp_path / name, [1, 0])
        body = json.loads((folder / "results.json").read_text())
        body["tasks"] |= {
            "answers": {"headline": "bits_per_byte", "digest": "one"},
            "preferences": {"headline": "acc", "digest": digest},
        }
        (folder / "results.json").write_text(json.dumps(body))
        rows = {
            "answers": [{"id": f"x{i}", "nll": v, "bytes": 10 * (i + 1)} for i, v in enumerate(nll)],
            "preferences": [{"id": f"p{i}", "values": {"acc": float(v)}} for i, v in enumerate(right)],
        }
        for task, lines in rows.items():
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    a = tuned("a", [10.0, 20.0, 30.0], [0, 1, 0])
    b = tuned("b", [8.0, 16.0, 24.0], [1, 1, 0])
    _, answers, pairs = compare(a, b)
    assert (answers.task, answers.n, pairs.task, pairs.n) == ("answers", 3, "preferences", 3)
    assert answers.a == pytest.approx(60 / 60 / math.log(2)) and answers.b == pytest.approx(
        48 / 60 / math.log(2)
    )
    assert answers.clear and answers.difference < 0
    assert (pairs.only_a, pairs.only_b) == (0, 1)
    with pytest.raises(LoomError, match="preferences on different held-out rows"):
        compare(a, tuned("c", [8.0], [1], digest="other"))


def test_other_texts_under_one_name_are_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, [1, 0]) for name in "abc"]
    for folder, size in zip(folders, (10, 10, 11), strict=True):
        body = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**body, "text": [{"path": "web.jsonl"}]}))
        line = {"id": "x:1", "source": "web", "domain": "web", "nll": 7.0, "end": 1.0, "tokens": 4}
        (folder / "text.jsonl").write_text(json.dumps({**line, "bytes": size}) + "\n")
    assert [item.task for item in compare(folders[0], folders[1])] == ["quiz", "web"]
    with pytest.raises(LoomError, match="different texts under the name 'x:1' of 'web'"):
        compare(folders[0], folders[2])
