"""When a table says nothing of two models: they read other things, or an error is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.cli import main
from loom.evals import paloma
from loom.evals.beside import table as beside
from loom.evals.beside.compare import compare
from loom.evals.beside.stored import read_results
from loom.evals.perplexity import DocumentScore, table

LABELS = ("a", "b")


def write(folder: Path, body: dict[str, Any], **rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(body))
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ranked(folder: Path, right: list[int], digest: str = "d") -> Path:
    """PIQA with these answers; of one row there is no error."""
    error = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else None
    figure = {"acc": float(np.mean(right)), "acc_stderr": error, "chance": 0.5, "n": len(right)}
    facts = {"headline": "acc", "files": [{"split": "validation", "digest": digest}]}
    rows = [{"doc_id": i, "values": {"acc": float(value)}} for i, value in enumerate(right)]
    return write(folder, {"results": {"piqa": figure}, "tasks": {"piqa": facts}}, piqa=rows)


def text(
    folder: Path, shift: float, digest: str = "d", sources: tuple[str, ...] = ("web",), seed: int = 0
) -> Path:
    """Documents of two domains each, easier or harder by `shift` bits a byte."""
    hard = np.random.default_rng(0).gamma(4.0, 0.3, 400 * len(sources))
    noise = np.random.default_rng(seed).normal(0, 0.02, len(hard))
    scores = [
        DocumentScore(
            str(i), source, f"{source} {i % 2}", float(hard[i] + shift + noise[i]) * 1000, 1.0, 9, 1000
        )
        for i, source in enumerate(source for source in sources for _ in range(400))
    ]
    read = [{"path": f"{source}.jsonl", "source": source, "digest": digest} for source in sources]
    results = table(scores, splits=dict.fromkeys(sources, "test"))
    return write(
        folder, {"results": results, "tasks": {}, "text": read}, text=[vars(score) for score in scores]
    )


def lines(*folders: Path) -> dict[str, beside.Line]:
    bodies = {label: [read_results(folder)] for label, folder in zip(LABELS, folders, strict=True)}
    places = {label: [folder] for label, folder in zip(LABELS, folders, strict=True)}
    return {line.name: line for line in beside.table(bodies, places)}


def test_one_row_tells_no_models_apart(tmp_path: Path) -> None:
    """A difference of 1 with an error that is not known is no certain one."""
    (line,) = lines(ranked(tmp_path / "a", [0]), ranked(tmp_path / "b", [1])).values()
    assert beside.verdict(line, *LABELS) == ""
    assert "±" not in str(line.cells["b"])


def test_other_files_or_other_rows_of_one_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty rows against sixty of one file, as many of another, and of one file others."""
    bad, good = [0, 1] * 30, [1] * 59 + [0]
    cases = {
        "few": (ranked(tmp_path / "a1", bad[:20]), ranked(tmp_path / "b1", good)),
        "file": (ranked(tmp_path / "a2", bad), ranked(tmp_path / "b2", good, "other")),
        "same": (ranked(tmp_path / "a3", bad), ranked(tmp_path / "b3", good)),
    }
    (tmp_path / "b4").mkdir()
    for file in (tmp_path / "b3").iterdir():
        (tmp_path / "b4" / file.name).write_text(file.read_text().replace('"doc_id": 7,', '"doc_id": 99,'))
    cases["others"] = (tmp_path / "a3", tmp_path / "b4")
    found = {name: next(iter(lines(*folders).values())) for name, folders in cases.items()}
    said = {name: beside.verdict(line, *LABELS) for name, line in found.items()}
    assert said == dict.fromkeys(("few", "file", "others"), beside.OTHER) | {"same": "better"}
    assert found["few"].n is None and found["same"].n == 60
    assert [found["few"].shown(label).split(", ")[-1] for label in LABELS] == ["n 20", "n 60"]  # type: ignore[union-attr]
    assert "n 60" not in str(found["same"].shown("b"))
    with pytest.raises(SystemExit) as ended:
        main(["table", *(f"{label}={place}" for label, place in zip(LABELS, cases["few"], strict=True)),
              "--out", str(tmp_path / "t.md")])  # fmt: skip
    assert ended.value.code in (0, None)
    (row,) = (line for line in (tmp_path / "t.md").read_text().splitlines() if "piqa" in line)
    assert "| differs |" in row and ", n 20 |" in row and ", n 60 |" in row and "| other rows |" in row


def test_runs_of_one_model_that_read_other_rows_are_not_judged_as_one(tmp_path: Path) -> None:
    places = {
        "a": [ranked(tmp_path / "a", [0, 1] * 30)],
        "b": [ranked(tmp_path / "b1", [1] * 60), ranked(tmp_path / "b2", [1] * 20)],
    }
    (line,) = beside.table({name: [read_results(one) for one in of] for name, of in places.items()}, places)
    assert beside.verdict(line, *LABELS) == beside.OTHER
    assert str(line.shown("b")).endswith("n 60, 20")


def test_another_text_of_the_same_name_is_not_judged(tmp_path: Path) -> None:
    """As many documents, as long, under the same ids: only the file's digest tells."""
    a, same, other = (text(tmp_path / name, shift, digest) for name, shift, digest in
                      (("a", 0.0, "d"), ("b", -0.03, "d"), ("c", -0.03, "e")))  # fmt: skip
    assert {beside.verdict(line, *LABELS) for line in lines(a, same).values()} == {"better"}
    assert {beside.verdict(line, *LABELS) for line in lines(a, other).values()} == {beside.OTHER}


def test_without_rows_the_counts_decide(tmp_path: Path) -> None:
    """Documents of a task, bytes of a text; what kept no rows and counts the same is judged by its own errors."""

    def counted(n: int, size: int, value: float) -> list[dict[str, Any]]:
        figure = {"bits_per_byte": value, "bits_per_byte_stderr": 0.1, "bytes": size, "n": 9}
        task = {"acc": value / 10, "acc_stderr": 0.01, "n": n}
        facts = {"headline": "acc", "files": [{"split": "test", "digest": "d"}]}
        return [{"results": {"piqa": task, "web": figure}, "tasks": {"piqa": facts}}]

    for n, size, said in ((9, 50, ["better", "worse"]), (8, 51, [beside.OTHER, beside.OTHER])):
        found = beside.table({"a": counted(9, 50, 1.0), "b": counted(n, size, 9.0)})
        assert [beside.verdict(line, *LABELS) for line in found] == said


def test_held_out_tokens_of_another_tokenizer_are_the_same_text(tmp_path: Path) -> None:
    """Their folder's digest is another one; the documents, their names and lengths, are what was read."""
    folders = [text(tmp_path / name, shift, name) for name, shift in (("a", 0.0), ("b", 0.03))]
    for folder in folders:
        body = read_results(folder)
        body["text"] = [{**one, "held_out": True} for one in body["text"]]
        (folder / "results.json").write_text(json.dumps(body))
    assert {beside.verdict(line, *LABELS) for line in lines(*folders).values()} == {"worse"}
    assert [item.task for item in compare(*folders)] == ["web"]


def test_a_text_that_both_read_is_judged_beside_others_that_one_read(tmp_path: Path) -> None:
    found = lines(text(tmp_path / "a", 0.0, sources=("web", "wiki")), text(tmp_path / "b", 0.03))
    assert beside.verdict(found["web: bits per byte"], *LABELS) == "worse"
    assert beside.verdict(found["wiki: bits per byte"], *LABELS) == ""
    assert found["all text: bits per byte"].cells.keys() == {"a"}


def test_domains_sources_palomas_eleven_and_all_text_are_paired(tmp_path: Path) -> None:
    """Three hundredths of a bit on every one of them, where the figures' own errors are as large."""
    sources = (*paloma.COMBINED, "gab")
    found = lines(
        text(tmp_path / "a", 0.0, sources=sources), text(tmp_path / "b", 0.03, sources=sources, seed=1)
    )
    assert {"ptb: bits per byte", "ptb 0: bits per byte", "paloma-11: bits per byte"} < found.keys()
    assert len(found) == 3 * len(sources) + 2
    for line in found.values():
        assert line.paired.keys() == {LABELS}, line.name
        assert beside.verdict(line, *LABELS) == "worse"


def test_a_text_called_as_a_task_is_not_that_task(tmp_path: Path) -> None:
    figure = {"bits_per_byte": 1.0, "bits_per_byte_stderr": 0.1, "bytes": 10, "n": 3}
    names = ("answers", "toxigen", "mmlu")
    folder = write(tmp_path / "a", {"results": dict.fromkeys(names, figure), "tasks": {}})
    assert [line.name for line in beside.table({"a": [read_results(folder)]})] == [
        f"{name}: bits per byte" for name in names
    ]
    with pytest.raises(SystemExit) as ended:
        main(["table", f"a={folder}", "--published"])
    assert ended.value.code in (0, None)


def judged(folder: Path, value: float, judge: dict[str, Any], n: int = 400) -> Path:
    """A win rate by that judge."""
    figure = {"alpaca_win[x]": value, "alpaca_win[x]_stderr": 1.0, "n": 805, "judged": n}
    facts = {"headline": "alpaca_win[x]", "prompts": [{"path": "p", "digest": "d"}], "judge": judge}
    return write(folder, {"results": {"alpaca_eval": figure}, "tasks": {"alpaca_eval": facts}})


@pytest.mark.parametrize(
    ("other", "n", "told"),
    [
        ({"judge": "endpoint", "url": "u", "model": "m", "failures": {"timeout": 3}}, 400, True),
        ({"judge": "endpoint", "url": "u", "model": "another", "failures": {}}, 400, False),
        ({"judge": "endpoint", "url": "u", "model": "m", "failures": {}}, 300, False),
    ],
)
def test_win_rates_of_other_judges_are_not_told_apart(
    tmp_path: Path, other: dict[str, Any], n: int, told: bool
) -> None:
    """What failed on the way makes no other judge; another model, or fewer answers, does."""
    first = {"judge": "endpoint", "url": "u", "model": "m", "failures": {}}
    read = lines(judged(tmp_path / "a", 50.0, first), judged(tmp_path / "b", 80.0, other, n))
    (line,) = (line for name, line in read.items() if "alpaca" in name.lower())
    assert (beside.verdict(line, *LABELS) == "better") == told
