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

from loom.cli import main
from loom.errors import LoomError
from loom.evals.beside.compare import compare
from loom.evals.beside.difference import Difference, difference, mcnemar, plain
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
    assert shift is not None
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
    with pytest.raises(LoomError, match="no metric 'bpb' by document: quiz has acc"):
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


def text(
    folder: Path,
    nll: list[float],
    ids: list[str] | None = None,
    size: int = 10,
    digest: str | None = "d",
    source: str = "web",
) -> Path:
    """Text beside the tasks of an evaluation."""
    body = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(
        json.dumps({**body, "text": [{"path": f"{source}.jsonl", "source": source, "digest": digest}]})
    )
    names = ids or [f"x:{i}" for i in range(len(nll))]
    line = {"source": source, "domain": source, "end": 1.0, "tokens": 4, "bytes": size}
    rows = [{**line, "id": name, "nll": value} for name, value in zip(names, nll, strict=True)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_other_texts_under_one_name_are_refused(tmp_path: Path) -> None:
    """By their documents' lengths, and by the files' digests where these are equal."""
    a, b, longer, other = (write(tmp_path / name, [1, 0]) for name in "abcd")
    for folder, size, digest in ((a, 10, "d"), (b, 10, "d"), (longer, 11, "d"), (other, 10, "e")):
        text(folder, [7.0, 6.0], size=size, digest=digest)
    assert [item.task for item in compare(a, b)] == ["quiz", "web"]
    with pytest.raises(LoomError, match="different texts under the name 'x:0' of 'web'"):
        compare(a, longer)
    with pytest.raises(LoomError, match="different texts under the name 'web'"):
        compare(a, other)


def test_documents_of_one_id_are_not_taken_for_one(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, [1, 0]) for name in "ab"]
    for folder, bits in zip(folders, (1.0, 2.0), strict=True):
        text(folder, [bits * value for value in range(1, 9)], ids=["same"] * 8)
    found = compare(*folders)[1]
    assert (found.task, found.n, found.a) == ("web", 8, pytest.approx(36 / 80 / math.log(2)))
    for folder in folders:
        lines = [{"doc_id": 0, "values": {"acc": float(i % 2)}} for i in range(8)]
        (folder / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(*folders)[0].n == 8


def test_one_document_shows_no_difference(tmp_path: Path) -> None:
    """Of a task, of text and of held-out rows: no interval, no error, nothing clear."""
    folders = [write(tmp_path / name, [value]) for name, value in (("a", 0.0), ("b", 1.0))]
    for folder, nll in zip(folders, (9.0, 3.0), strict=True):
        text(folder, [nll])
        held_out(folder, [nll])
    found = compare(*folders)
    assert [item.task for item in found] == ["quiz", "answers", "web"]
    for item in found:
        assert item.n == 1 and item.difference != 0 and not item.clear
        assert item.low is item.high is item.stderr is item.detectable is None
    assert not any(item["clear"] for item in plain(found))
    json.dumps(plain(found), allow_nan=False)
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, folders), "--json"])
    assert ended.value.code in (0, None)


def held_out(folder: Path, nll: list[float], sizes: list[int] | None = None) -> Path:
    body = json.loads((folder / "results.json").read_text())
    body["tasks"]["answers"] = {"headline": "bits_per_byte", "digest": "one"}
    (folder / "results.json").write_text(json.dumps(body))
    rows = [
        {"id": f"x{i}", "nll": value, "bytes": size}
        for i, (value, size) in enumerate(zip(nll, sizes or [10] * len(nll), strict=True))
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def heard(
    a: Path, b: Path, capsys: pytest.CaptureFixture[str], *metrics: str
) -> tuple[list[Difference], str]:
    capsys.readouterr()
    found = compare(a, b, metrics)
    said = capsys.readouterr()  # to standard error, after a test with --json
    return found, " ".join((said.out + said.err).split())


def test_documents_that_only_one_has_are_counted_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first three of five rows, as of --limit 3; and answers that a shorter context cut."""
    a = held_out(write(tmp_path / "a", [1, 0, 1]), [7.0, 8.0, 9.0], [10, 20, 30])
    b = held_out(write(tmp_path / "b", [1, 0, 0, 1, 1]), [7.0, 8.0, 5.0], [10, 20, 15])
    found, said = heard(a, b, capsys)
    assert [(item.n_a, item.n_b, item.n) for item in found] == [(3, 5, 3), (3, 3, 2)]
    assert "quiz: 3 documents of A, 5 of B, compared on 3" in said
    assert "answers: 1 of 3 documents are left out, they are longer on one side" in said
    found, said = heard(a, a, capsys)
    assert len(found) == 2 and "compared on" not in said and "only in" not in said


def test_what_only_one_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = text(write(tmp_path / "a", [1, 0, 1]), [7.0, 8.0], source="web")
    b = text(held_out(write(tmp_path / "b", [1, 0, 0]), [7.0]), [7.0, 8.0], source="wiki")
    found, said = heard(a, b, capsys)
    assert [item.task for item in found] == ["quiz"]
    assert "only in A, not compared: web" in said and "only in B, not compared: answers, wiki" in said


def test_an_unknown_metric_is_named_and_a_task_without_a_known_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (held_out(write(tmp_path / name, [1, 0, 1]), [7.0, 8.0, 9.0]) for name in "ab")
    with pytest.raises(
        LoomError, match="no metric 'acc_nrm' by document: quiz has acc; answers has bits_per_byte"
    ):
        compare(a, b, ["acc", "acc_nrm"])
    found, said = heard(a, b, capsys, "acc")
    assert [item.task for item in found] == ["quiz"]
    assert "answers has no acc by document" in said


def test_nothing_is_detectable_where_no_document_differs() -> None:
    """An error of 0 from no discordant document is no promise that any difference would be seen."""
    same = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = difference("t", "acc", same, same)
    assert (found.stderr, found.detectable, found.clear) == (0.0, None, False)
