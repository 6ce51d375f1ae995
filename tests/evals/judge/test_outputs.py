"""A file of answers before a judge: every answer once, whole, and nothing that looks like success where it is none."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from loom.cli import main
from loom.evals.judge.files import judge_outputs
from loom.evals.judge.judges import Replay

WORDS = ("yes", "no", "perhaps")
ANNOTATED = [
    {
        "instruction": f"Say {word}.",
        "output_1": f"The old {word}.",
        "generator_1": "old",
        "dataset": "d",
        "output_2": word,
        "generator_2": "new",
        "annotator": "gpt4",
        "preference": preference,
    }
    for word, preference in zip(WORDS, (2, 1, 1.5), strict=True)
]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return lines(tmp_path / "annotations.jsonl", ANNOTATED)


def answers(*words: str) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {word}.", "output": word, "generator": "m"} for word in words]


def loom(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, words)])
    return int(ended.value.code or 0)


def read(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    body = json.loads((out / "results.json").read_text())
    return body["results"]["alpaca_eval"], body["tasks"]["alpaca_eval"]


def test_the_stored_annotations_alone_give_the_leaderboards_number(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a reference: it stands in the annotations, and is another one than the file of reference answers."""
    file = shared_data / "chat" / "alpaca_eval.annotations.jsonl.gz"
    assert loom(file, "--judge", f"replay:{file}", "--out", tmp_path / "out") == 0
    assert "84.22 ± 1.3" in capsys.readouterr().out
    result, facts = read(tmp_path / "out")
    assert result["alpaca_win[replay]"] == pytest.approx(84.22360248447205, abs=1e-10)
    assert (result["n"], result["judged"], result["not_judged"]) == (805, 805, 0)
    assert facts["judge"]["baselines"] == ["text_davinci_003"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [Path(one["path"]).name for one in manifest["inputs"]] == [file.name]
    rows = (tmp_path / "out" / "alpaca_eval.annotations.jsonl").read_bytes().splitlines()
    with gzip.open(file) as stream:
        first = json.loads(next(iter(stream)))
    row = json.loads(rows[0])
    assert len(rows) == 805 and {name: first[name] for name in row} == row


def test_a_reference_is_not_read_for_stored_judgements_and_that_is_said(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(tmp_path / "answers.jsonl", answers(*WORDS))
    other = lines(tmp_path / "other.jsonl", answers("something else"))
    words = [given, "--judge", f"replay:{stored}", "--reference", other, "--out", tmp_path / "out"]
    assert loom(*words) == 0
    assert "other.jsonl is not read" in " ".join(capsys.readouterr().err.split())
    result, _ = read(tmp_path / "out")
    assert result["alpaca_win[replay]"] == 50
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {Path(one["path"]).name for one in manifest["inputs"]} == {given.name, stored.name}


def test_part_of_the_answers_is_said_to_be_a_part(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """n is of those that were judged."""
    given = lines(tmp_path / "answers.jsonl", [*answers("yes"), {"instruction": "Say no.", "output": "x"}])
    assert loom(given, "--judge", f"replay:{stored}", "--out", tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "alpaca_eval 1 alpaca_win[replay] 100" in said
    assert "alpaca_eval: 2 of 3 annotated instructions are answered" in said
    assert "alpaca_eval: 1 of 2 answers were not judged; they count neither way" in said
    kept = (tmp_path / "out" / "alpaca_eval.annotations.jsonl").read_bytes().splitlines()
    assert [json.loads(row)["preference"] for row in kept] == [2.0, None]


def test_where_nothing_is_judged_the_command_fails(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(tmp_path / "answers.jsonl", [{"instruction": "Say no.", "output": "x"}])
    assert loom(given, "--judge", f"replay:{stored}", "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "alpaca_eval could not be judged" in said.err and "alpaca_eval 0 no figure" in " ".join(
        said.out.split()
    )
    result, facts = read(tmp_path / "out")
    assert result["judge_failed"].startswith("replay: none of the 1 answers was judged")
    assert facts["headline"] == "n" and not any("win" in name for name in result)


WRONG: list[tuple[list[Any], str]] = [
    ([], "answers.jsonl has no rows"),
    (
        [*answers("yes", "no"), *answers("yes")],
        r"answers.jsonl:3 repeats the instruction of .*answers.jsonl:1",
    ),
    (
        [*answers("yes"), {"instruction": 3, "output": "x"}],
        "answers.jsonl:2: instruction is 3 and has to be text",
    ),
    ([{"instruction": "Say no.", "output": None}], "answers.jsonl:1: output is None and has to be text"),
    ([{"instruction": "Say no."}], "answers.jsonl:1: this row has no 'output'"),
    ([{"output": "x"}], "answers.jsonl:1: this row has no 'instruction'"),
    (answers("yes", "maybe"), r"answers.jsonl:2: .*reference.jsonl has no answer to this"),
]


@pytest.mark.parametrize(("rows", "why"), WRONG)
def test_a_file_that_cannot_be_judged_is_named_and_out_is_left(
    tmp_path: Path, rows: list[Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(tmp_path / "answers.jsonl", rows)
    reference = lines(tmp_path / "reference.jsonl", answers(*WORDS))
    words = [
        "--judge",
        "endpoint:http://127.0.0.1:1/v1#m",
        "--reference",
        reference,
        "--out",
        tmp_path / "out",
    ]
    assert loom(given, *words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(why, said), said
    assert not (tmp_path / "out").exists()


def test_a_judge_that_compares_anew_needs_a_reference_that_says_each_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(tmp_path / "answers.jsonl", answers("yes"))
    words = [given, "--judge", "endpoint:http://127.0.0.1:1/v1#m", "--out", tmp_path / "out"]
    assert loom(*words) == 1
    assert "name their file with --reference" in " ".join(capsys.readouterr().err.split())
    reference = lines(tmp_path / "reference.jsonl", answers("yes", "yes"))
    assert loom(*words, "--reference", reference) == 1
    assert "reference.jsonl:2 repeats the instruction" in " ".join(capsys.readouterr().err.split())


def test_answers_may_be_an_array(stored: Path, tmp_path: Path) -> None:
    """`alpaca_eval` reads and writes those, and so does `loom eval`."""
    given = tmp_path / "answers.json"
    given.write_text(json.dumps(answers(*WORDS), indent=1))
    judge_outputs(given, None, Replay(stored), tmp_path / "out")
    assert read(tmp_path / "out")[0]["judged"] == 3


def test_nothing_of_an_earlier_evaluation_stays(stored: Path, tmp_path: Path) -> None:
    """Only what its manifest lists goes."""
    out = tmp_path / "out"
    given = lines(tmp_path / "answers.jsonl", answers(*WORDS))
    judge_outputs(given, None, Replay(stored), out)
    (out / "notes.txt").write_text("mine")
    one = lines(tmp_path / "one.jsonl", [{"instruction": "Say yes.", "output": "x"}])
    judge_outputs(one, None, Replay(stored), out)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "notes.txt", "results.json", "run.json"}


def test_what_is_read_is_not_replaced(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(tmp_path / "answers.jsonl", answers(*WORDS))
    out = tmp_path / "out"
    assert loom(given, "--judge", f"replay:{stored}", "--out", out) == 0
    own = out / "alpaca_eval.annotations.jsonl"
    before = own.read_bytes()
    assert loom(own, "--judge", f"replay:{own}", "--out", out) == 1
    assert "whose files are replaced: name another folder" in " ".join(capsys.readouterr().err.split())
    assert own.read_bytes() == before
    shutil.copy(own, tmp_path / "copy.jsonl")
    assert loom(tmp_path / "copy.jsonl", "--judge", f"replay:{own}", "--out", tmp_path / "again") == 0
    assert read(tmp_path / "again")[0] == read(out)[0]


def test_what_does_not_go_with_a_file_of_answers_is_refused(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--judge", f"replay:{stored}", "--out", tmp_path / "out"]
    assert loom(stored, *words, "--limit", 1, "--tasks", "piqa") == 1
    assert "leave out --tasks and --limit" in " ".join(capsys.readouterr().err.split())
    assert loom(tmp_path, *words, "--tasks", "alpaca_eval", "--reference", stored) == 1
    assert "--reference goes with a file of answers" in " ".join(capsys.readouterr().err.split())
    assert loom(stored, "--out", tmp_path / "out") == 1
    assert "give one --judge" in " ".join(capsys.readouterr().err.split())
