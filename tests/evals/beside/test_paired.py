"""Differences between models that read the same documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.evals import paloma
from loom.evals.beside import paired, stored
from loom.evals.beside import table as beside
from loom.evals.perplexity import DocumentScore, bootstrap_ratio, table

DOCUMENTS = 300


def _texts(folder: Path, shift: float, seed: int, name: str = "web") -> dict[str, Any]:
    """An evaluation of texts that differ much from each other, and little between models."""
    random = np.random.default_rng(0)
    size = random.integers(100, 5000, DOCUMENTS)
    hard = random.gamma(4.0, 0.3, DOCUMENTS)
    rate = hard + shift + np.random.default_rng(seed).normal(0, 0.05, DOCUMENTS)
    nll = rate * size * np.log(2)
    folder.mkdir()
    fixed = {"source": "web", "domain": "web", "end": 1.0, "tokens": 9}
    rows = [
        {"id": f"{name}{i}", **fixed, "nll": float(nll[i]), "bytes": int(size[i])} for i in range(DOCUMENTS)
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = {
        "bits_per_byte": float(nll.sum() / np.log(2) / size.sum()),
        "bits_per_byte_stderr": bootstrap_ratio(nll / np.log(2), size.astype(float)),
        "bytes": int(size.sum()), "n": DOCUMENTS,
    }  # fmt: skip
    read = [{"path": f"{name}.jsonl", "source": "web", "digest": name}]
    results = {"results": {"web": figure}, "tasks": {}, "text": read}
    (folder / "results.json").write_text(json.dumps(results))
    return results


def test_the_error_is_that_of_documents_drawn_again(tmp_path: Path) -> None:
    for n, shift in enumerate((0.0, 0.03)):
        _texts(tmp_path / f"m{n}", shift, n)
    first, second = (paired.text_parts(stored.read_scores(tmp_path / f"m{n}" / "text.jsonl")) for n in (0, 1))
    apart = np.array([second[key][0] - first[key][0] for key in first])
    size = np.array([first[key][1] for key in first])
    assert paired.error([first], [second]) == pytest.approx(bootstrap_ratio(apart, size), rel=0.1)
    assert paired.error([first], [first]) == 0


def test_a_small_loss_on_the_same_documents_is_seen(tmp_path: Path) -> None:
    """Three hundredths of a bit, where the figures' own errors are as large."""
    models = {
        "base": [_texts(tmp_path / "base", 0.0, 1)],
        "sft": [_texts(tmp_path / f"sft{n}", 0.03, n) for n in (2, 3)],
        "again": [_texts(tmp_path / "again", 0.03, 4)],
    }
    folders = {"base": [tmp_path / "base"], "sft": [tmp_path / f"sft{n}" for n in (2, 3)]}
    folders["again"] = [tmp_path / "again"]
    (line,) = beside.table(models, folders)
    assert isinstance(line.cells["base"], beside.Cell) and line.cells["base"].stderr > 0.02
    assert beside.verdict(line, "base", "sft") == "worse"
    assert beside.verdict(line, "sft", "again") == "same"
    (alone,) = beside.table(models)
    assert beside.verdict(alone, "base", "sft") == "same"


def test_other_documents_are_not_paired(tmp_path: Path) -> None:
    models = {"a": [_texts(tmp_path / "a", 0.0, 1)], "b": [_texts(tmp_path / "b", 0.03, 2, name="other")]}
    models["b"][0]["text"] = models["a"][0]["text"]  # one file, of which either read others
    (line,) = beside.table(models, {name: [tmp_path / name] for name in models})
    assert line.paired == {} and beside.verdict(line, "a", "b") == beside.OTHER


def test_ranked_rows_are_paired_on_the_same_file_only(tmp_path: Path) -> None:
    def ranked(folder: Path, right: list[int], digest: str) -> dict[str, Any]:
        folder.mkdir()
        rows = [{"doc_id": i, "values": {"acc": float(value)}} for i, value in enumerate(right)]
        (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        figure = {"acc": float(np.mean(right)), "acc_stderr": 0.05, "chance": 0.5, "n": len(right)}
        facts = {"headline": "acc", "files": [{"split": "validation", "digest": digest}]}
        return {"results": {"piqa": figure}, "tasks": {"piqa": facts}}

    half = [0, 1] * 50
    more = [1, 1, 1, 1, *half[4:]]
    models = {"a": [ranked(tmp_path / "a", half, "d")], "b": [ranked(tmp_path / "b", more, "d")]}
    models["c"] = [ranked(tmp_path / "c", half, "e")]
    (line,) = beside.table(models, {name: [tmp_path / name] for name in models})
    assert line.paired == {("a", "b"): pytest.approx(np.std(np.subtract(more, half), ddof=1) / 10)}
    assert beside.verdict(line, "b", "c") == beside.OTHER


def test_every_figure_of_text_has_its_documents() -> None:
    """Domains, whole sources, Paloma's eleven and all text: the ratio of the parts is the figure."""
    random = np.random.default_rng(3)
    scores = [
        DocumentScore(f"{i % 3}", source, domain, float(random.gamma(4)), 1.0, 5, int(random.integers(1, 99)))
        for source in (*paloma.COMBINED, "gab")
        for domain in ("news", source, f"{source} late")
        for i in range(4)
    ]
    figures = table(scores, splits=dict.fromkeys(paloma.COMBINED, "test"))
    groups = paired.text_groups(scores)
    assert groups.keys() == figures.keys() and paloma.NAME in figures and "gab/news" in figures
    for name, group in groups.items():
        parts = paired.text_parts(group)
        assert len(parts) == figures[name]["n"]
        above, below = (sum(part[side] for part in parts.values()) for side in (0, 1))
        assert above / below == pytest.approx(figures[name]["bits_per_byte"])


def test_documents_of_one_id_are_told_apart_by_their_order() -> None:
    assert list(paired.numbered([("a",), ("b",), ("a",), ("a",)])) == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
    rows = [("f:1", {"doc_id": 0, "values": {"acc": float(i)}}) for i in range(3)]
    assert [part[0] for part in paired.task_parts(rows, "acc").values()] == [0, 1, 2]


def test_a_mean_over_subjects_is_paired_as_one() -> None:
    """Of a large and a small subject: each weighs the same, whatever its rows."""
    values = {"large": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], "small": [1.0, 1.0]}
    rows = [
        (f"f:{i}", {"subject": name, "doc_id": i, "values": {"acc": value}})
        for name, of in values.items()
        for i, value in enumerate(of)
    ]
    parts = paired.task_parts(rows, "macro_acc").values()
    above, below = (sum(part[side] for part in parts) for side in (0, 1))
    assert above / below == pytest.approx((2 / 6 + 1) / 2)
