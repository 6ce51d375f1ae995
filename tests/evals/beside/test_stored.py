"""Folders that are no evaluation, or a damaged one, are named with file and line by every command that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loom.cli import main
from loom.errors import LoomError
from loom.evals.beside import table as beside
from loom.evals.beside.compare import compare
from loom.evals.beside.stored import few, read_results, read_scores

ROW = {"id": "1", "source": "web", "domain": "web", "nll": 7.0, "end": 1.0, "tokens": 4, "bytes": 10}


def evaluation(folder: Path, rows: list[dict[str, Any]], **other: Any) -> Path:
    folder.mkdir()
    body = {"results": {}, "tasks": {}, "text": [{"path": "web.jsonl", "source": "web", "digest": "d"}]}
    (folder / "results.json").write_text(json.dumps(body | other))
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "7",
        '{"results": {}, "ta',
        '{"results": {}}',
        '{"results": [], "tasks": {}}',
        '{"results": {"piqa": 1}, "tasks": {}}',
        '{"results": {}, "tasks": {"piqa": {}}}',
        '{"results": {}, "tasks": {"piqa": {"headline": "acc", "files": "x"}}}',
        '{"results": {}, "tasks": {}, "text": {"path": "x"}}',
    ],
)
def test_what_is_no_evaluation_is_named(body: str, tmp_path: Path) -> None:
    good = evaluation(tmp_path / "good", [ROW, ROW])
    (tmp_path / "results.json").write_text(body)
    for read in (read_results, beside.read, lambda folder: compare(good, folder)):
        with pytest.raises(LoomError, match=f"{tmp_path} is not an evaluation"):
            read(tmp_path)
    with pytest.raises(LoomError, match=r"holds no results.json"):
        read_results(tmp_path / "gone")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (json.dumps(ROW)[:-9], "not JSON"),
        (json.dumps({key: value for key, value in ROW.items() if key != "source"}), "no `source`"),
        (json.dumps({**ROW, "nll": None}), "`nll` is None"),
        (json.dumps({**ROW, "bytes": "10"}), "`bytes` is '10'"),
        ("[]", "not an object"),
    ],
)
def test_a_damaged_row_is_named_with_its_line(line: str, why: str, tmp_path: Path) -> None:
    good, bad = (evaluation(tmp_path / name, [ROW, ROW]) for name in ("good", "bad"))
    (bad / "text.jsonl").write_text(json.dumps(ROW) + "\n" + line)
    for use in (
        lambda: read_scores(bad / "text.jsonl"),
        lambda: compare(good, bad),
        lambda: beside.table({"bad": [read_results(bad)]}, {"bad": [bad]}),
    ):
        with pytest.raises(LoomError, match=rf"{bad}/text.jsonl:2 is not a row .*{why}"):
            use()


def test_a_damaged_row_of_a_task_is_named_too(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", [ROW], tasks={"quiz": {"headline": "acc", "files": []}})
    for values, why in (({"acc": "x"}, "`acc` is 'x'"), ([1], r"`values` is \[1\]")):
        (folder / "quiz.jsonl").write_text("\n" + json.dumps({"doc_id": 0, "values": values}))
        with pytest.raises(LoomError, match=f"quiz.jsonl:2 is not a row .*{why}"):
            compare(folder, folder)


def test_what_the_quickstart_measures_of_text_is_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No task was ranked and no row kept: `tasks` is there and empty, and the table shows the figures."""
    figure = {"bits_per_byte": 1.2, "bits_per_byte_stderr": 0.1, "bytes": 100, "n": 4}
    (tmp_path / "results.json").write_text(json.dumps({"results": {"all": figure}, "tasks": {}}))
    with pytest.raises(SystemExit) as ended:
        main(["table", f"a={tmp_path}", f"b={tmp_path}", "--json"])
    assert ended.value.code in (0, None)
    (line,) = json.loads(capsys.readouterr().out.splitlines()[-1])["lines"]
    assert line["name"] == "all text: bits per byte" and line["verdicts"] == {"b": "same"}


def test_a_few_names_say_how_many_more_there_are() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few([str(i) for i in range(546)], 2) == "0, 1 and 544 more"
