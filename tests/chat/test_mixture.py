"""Mixtures take exactly what they say, the same rows every time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chat.test_prepare import stored
from tests.small import write_lines

from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.errors import LoomError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mixture")
    for name, count in (("a", 100), ("b", 40), ("c", 10)):
        rows = [{"id": f"{name}{n}", "prompt": f"{name} {n}?", "completion": f"{n}"} for n in range(count)]
        write_lines(made / f"{name}.jsonl", rows)
    return made


def drawn(
    folder: Path, out: Path, tokenizer_path: Path, shares: list[Share], total: int | None = None
) -> Counter[str]:
    prepare(Prepare("sft", tuple(shares), tokenizer_path, total=total), out)
    return Counter(row["id"] for row in stored(out))


def sources(counts: Counter[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[name[0]] += count
    return dict(found)


def test_counts_repeats_and_weights(folder: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    def share(name: str, **how: float) -> Share:
        return Share(str(folder / f"{name}.jsonl"), **how)  # type: ignore[arg-type]

    counts = drawn(
        folder,
        tmp_path / "1",
        tokenizer_path,
        [share("a", count=30), share("b", repeat=2), share("c", repeat=1.5)],
    )
    assert sources(counts) == {"a": 30, "b": 80, "c": 15}
    assert set(counts.values()) == {1, 2}
    counts = drawn(folder, tmp_path / "2", tokenizer_path, [share("a", weight=1), share("b", weight=1)])
    assert sources(counts) == {"a": 40, "b": 40}
    counts = drawn(
        folder, tmp_path / "3", tokenizer_path, [share("a", weight=3), share("b", weight=1)], total=200
    )
    assert sources(counts) == {"a": 150, "b": 50}
    counts = drawn(folder, tmp_path / "4", tokenizer_path, [share("c", count=25)])
    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_the_same_rows_every_time_and_more_of_them_when_more_are_asked_for(
    folder: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    path = str(folder / "a.jsonl")
    some = drawn(folder, tmp_path / "1", tokenizer_path, [Share(path, count=20)])
    again = drawn(folder, tmp_path / "2", tokenizer_path, [Share(path, count=20)])
    more = drawn(folder, tmp_path / "3", tokenizer_path, [Share(path, count=50)])
    assert some == again
    assert set(some) < set(more)


def test_a_share_may_name_its_source(folder: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    made = prepare(
        Prepare("sft", (Share(str(folder / "a.jsonl"), source="mine"),), tokenizer_path), tmp_path / "out"
    )
    assert set(made.facts["tokens"]["sources"]) == {"mine"}


def test_contradictions_are_named(folder: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both weight and count"):
        Share("x", weight=1, count=2)
    with pytest.raises(ValueError, match="above 0"):
        Share("x", repeat=0)
    with pytest.raises(LoomError, match="hold out fewer"):
        prepare(
            Prepare("sft", (Share(str(folder / "c.jsonl")),), tokenizer_path, held_out=10), tmp_path / "out"
        )


def test_rows_of_one_id_cannot_be_counted_out(tokenizer_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    rows = [{"id": "x", "prompt": f"{n}?", "completion": f"{n}"} for n in range(10)]
    write_lines(path, rows)
    with pytest.raises(LoomError, match=r"same\.jsonl has rows of one and the same id"):
        prepare(Prepare("sft", (Share(str(path), count=4),), tokenizer_path), tmp_path / "some")
    counts = drawn(path, tmp_path / "all", tokenizer_path, [Share(str(path), count=20)])
    assert counts["x"] == 20
    write_lines(path, [{key: row[key] for key in ("prompt", "completion")} for row in rows])
    counts = drawn(path, tmp_path / "none", tokenizer_path, [Share(str(path), count=4)])
    assert sum(counts.values()) == 4


def test_a_count_is_met_though_rows_are_set_aside(
    folder: Path, tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that say what an evaluation says are not drawn; those that turn out too long are missed, and said."""
    questions = tmp_path / "eval.jsonl"
    asked = [{"question": " ".join(f"word{k}{n}" for k in range(9))} for n in range(20)]
    write_lines(questions, asked)
    rows = [
        {"id": f"r{n}", "prompt": asked[n]["question"] if n < 20 else f"Number {n}?", "completion": f"{n}"}
        for n in range(60)
    ]
    rows[40]["completion"] = "and so on " * 200
    write_lines(tmp_path / "r.jsonl", rows)
    path = str(tmp_path / "r.jsonl")
    recipe = Prepare(
        "sft", (Share(path, count=40),), tokenizer_path, against=(str(questions),), max_length=128
    )
    prepare(recipe, tmp_path / "all")
    assert {row["id"] for row in stored(tmp_path / "all")} == {f"r{n}" for n in range(20, 60)}
    assert "fewer than were drawn" not in " ".join(capsys.readouterr().err.split())
    prepare(replace(recipe, over_long="drop"), tmp_path / "dropped")
    assert "1 rows fewer than were drawn" in " ".join(capsys.readouterr().err.split())
