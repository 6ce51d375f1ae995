"""Evaluations on the page: the folder's own figures, published ones beside tasks of that protocol only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loom.cli import app
from loom.errors import LoomError
from loom.evals.beside.published import TABLE_3, TASKS
from loom.report.data import Measure, ReportData, Score, load, save
from loom.report.page import render
from loom.report.records import curves
from loom.report.scores import published, read_scores


def write(folder: Path, **tasks: float) -> Path:
    """A folder as `loom eval` leaves it."""
    results: dict[str, Any] = {}
    for task, value in tasks.items():
        results[task] = {"acc_norm": value / 2, "acc_pmi": value, "acc_pmi_stderr": 0.01, "n": 1000}
    body = {"results": results, "tasks": {task: {"headline": "acc_pmi"} for task in tasks}}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(body))
    return folder


def test_the_headline_figures_are_read(tmp_path: Path) -> None:
    found = read_scores([write(tmp_path / "a" / "x", docs=0.25), write(tmp_path / "b" / "x", docs=0.5)])
    assert found == (
        Score("a/x", "docs", "acc_pmi", Measure(0.25, 0.01, 1000)),
        Score("b/x", "docs", "acc_pmi", Measure(0.5, 0.01, 1000)),
    )
    with pytest.raises(LoomError, match="holds no results.json"):
        read_scores([tmp_path])


def test_published_figures_stand_beside_their_own_protocol_only() -> None:
    assert published("piqa:olmo-paper")["OLMo-7B"] == TABLE_3["OLMo-7B"][TASKS.index("piqa")] / 100
    assert published("piqa") == published("piqa:olmes") == published("mmlu:olmo-paper") == {}
    scores = (
        Score("mine", "piqa:olmo-paper", "acc_token", Measure(0.7, 0.01, 1000)),
        Score("mine", "piqa:olmes", "acc_char", Measure(0.6, None, 1000)),
    )
    page = render(ReportData("r", scores=scores))
    rows = re.findall(r"<tr><th scope=\"row\">(piqa[^<]*)</th>(.*?)</tr>", page)
    assert [name for name, _ in rows] == ["piqa:olmo-paper", "piqa:olmes"]
    assert "<td>78.4 %</td>" in rows[0][1]
    assert "70.0 % ± 1.0 % (acc_token, n 1,000)" in rows[0][1]
    assert "60.0 % (acc_char, n 1,000)" in rows[1][1]
    assert rows[1][1].count("<td>–</td>") == len(TABLE_3)
    assert page.count('class="other"') == len(TABLE_3)
    assert "for 1 of them the OLMo paper printed figures" in page
    other = render(ReportData("r", scores=(replace(scores[1], metric="bits_per_byte"),)))
    assert "no figures were published under these protocols" in other
    assert "0.600" in other


def test_scores_are_kept_in_the_records(tmp_path: Path) -> None:
    data = ReportData("r", scores=(Score("m", "t", "acc", Measure(0.5, 0.1, 10)),))
    save(tmp_path / "report.json", data)
    assert load(tmp_path / "report.json") == data


def test_the_validation_curve_is_of_all_held_out_text() -> None:
    line = {"step": 1, "loss": 3.0, "eval/code/loss": 9.0, "eval/validation/loss": 4.0, "eval/code/n": 7}
    drawn = curves("run", [line], "lm")
    assert drawn.validation == ((1.0, 4.0),)
    assert drawn.more == {"code/loss": ((1.0, 9.0),)}


def test_the_command_puts_evaluations_on_a_runs_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 3.0}) + "\n")
    folder = write(tmp_path / "eval", **{"arc_easy:olmo-paper": 0.58})
    assert CliRunner().invoke(app, ["report", str(run), "--eval", str(folder)]).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "58.0 % ± 1.0 % (acc_pmi, n 1,000)" in page
    assert "OLMo-7B: 65.4 %" in page


def test_a_count_is_no_score_and_a_subject_is_measured_as_its_task_is(tmp_path: Path) -> None:
    body = {
        "results": {
            "alpaca_eval": {"n": 805},
            "toxigen": {"toxic[classifier]": 0.1, "n": 40, "judged": 30},
            "piqa": {"n": 0, "refused": "seen", "acc": 0.5},
            "mmlu:olmes": {"macro_acc_char": 0.4, "acc_char": 0.5, "acc": 0.3, "n": 9},
            "mmlu:olmes_anatomy": {"acc_char": 0.6, "acc": 0.2, "n": 4},
        },
        "tasks": {
            "alpaca_eval": {"headline": "n"},
            "toxigen": {"headline": "toxic[classifier]"},
            "piqa": {"headline": "acc"},
            "mmlu:olmes": {"headline": "macro_acc_char"},
        },
    }
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "results.json").write_text(json.dumps(body))
    assert [
        (score.task, score.metric, score.measure.value, score.measure.n)
        for score in read_scores([tmp_path / "x"])
    ] == [
        ("toxigen", "toxic[classifier]", 0.1, 30),
        ("mmlu:olmes", "macro_acc_char", 0.4, 9),
        ("mmlu:olmes_anatomy", "acc_char", 0.6, 4),
    ]
