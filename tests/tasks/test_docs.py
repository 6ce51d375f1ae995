"""Held-out functions are held out: nothing of them is in what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loom.errors import LoomError
from loom.tasks import data, registry
from loom.tasks.docs import FILES, GROUP, QuestionsRecipe, make_questions
from loom.tasks.ngrams import near_copies, ngrams, words

NOUNS = tuple(f"{noun}s" for noun in ("file", "stream", "socket", "parser", "handler", "queue", "thread"))
NOUNS += ("buffer", "record", "message", "header", "value", "widget", "event")
VERBS = (
    "open",
    "close",
    "read",
    "write",
    "send",
    "parse",
    "build",
    "merge",
    "split",
    "count",
    "check",
    "drop",
)


def functions() -> list[dict[str, str]]:
    """Twelve modules of fourteen functions; every summary different, some too short, some alike."""
    rows = []
    for m, verb in enumerate(VERBS):
        for n, noun in enumerate(NOUNS):
            tail = " ".join(NOUNS[(n * k + m) % len(NOUNS)] for k in (2, 3, 5, 7, 11))
            summary = f"{verb} every {noun} with {VERBS[(m + n) % 12]} before {tail} {VERBS[(m * n) % 12]}."
            if n == 0:
                summary = "Too short."
            rows.append({"name": f"mod{m}.{verb}_{noun}", "module": f"mod{m}", "summary": summary})
    rows.append({"name": "mod0.copy", "module": "mod0", "summary": rows[5]["summary"] + " Again."})
    return rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "functions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in functions()))
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_two_sides_share_no_function_and_no_eight_words(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "questions"
    made = make_questions(QuestionsRecipe(source, held_out=40), out)
    held, sft, pairs = (read(out / name) for name in ("heldout.jsonl", "sft.jsonl", "pairs.jsonl"))
    assert made.counters["held_out"] == len(held) == 40
    names = {row["id"] for row in held}
    banned = {gram for row in held for gram in ngrams(row["summary"])}
    assert not names & {row["id"] for row in sft}
    for text in [row["messages"][1]["content"] for row in sft] + [
        row[side] for row in pairs for side in ("chosen", "rejected")
    ]:
        assert not ngrams(text) & banned
    assert made.counters["functions"] == len(sft) + made.counters["decontaminated"] + len(held)
    assert (out / "heldout-summaries.txt").read_text().splitlines() == sorted(row["summary"] for row in held)


def test_choices_are_held_out_siblings_and_gold_is_spread(source: Path, tmp_path: Path) -> None:
    make_questions(QuestionsRecipe(source, held_out=40), tmp_path / "q")
    held = read(tmp_path / "q" / "heldout.jsonl")
    by_name = {row["id"]: row for row in held}
    for row in held:
        assert len(set(row["choices"])) == GROUP
        assert row["choices"][row["gold"]] == row["id"]
        assert {by_name[name]["module"] for name in row["choices"]} == {row["module"]}
        assert min(len(words(row["summary"])), len(row["summary"].split())) >= 8
    assert len({row["gold"] for row in held}) == GROUP
    for pair in read(tmp_path / "q" / "heldout-pairs.jsonl"):
        assert pair["chosen"] == by_name[pair["id"]]["summary"] != pair["rejected"]
        assert pair["rejected_id"] in by_name[pair["id"]]["choices"]


def test_near_copies_stay_in_training(source: Path, tmp_path: Path) -> None:
    make_questions(QuestionsRecipe(source, held_out=400), tmp_path / "q")
    held = {row["id"] for row in read(tmp_path / "q" / "heldout.jsonl")}
    assert not held & {"mod0.copy", functions()[5]["name"]}


def test_equal_work_is_equal_bytes_and_is_not_done_twice(source: Path, tmp_path: Path) -> None:
    recipe = QuestionsRecipe(source, held_out=40)
    one = make_questions(recipe, tmp_path / "one")
    stamp = (tmp_path / "one" / "sft.jsonl").stat().st_mtime_ns
    assert make_questions(recipe, tmp_path / "one").digest == one.digest
    assert (tmp_path / "one" / "sft.jsonl").stat().st_mtime_ns == stamp
    assert make_questions(recipe, tmp_path / "two").digest == one.digest
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("task", ["docs", "docs_answer", "docs_preference"])
def test_the_tasks_read_what_was_written(source: Path, tmp_path: Path, task: str) -> None:
    make_questions(QuestionsRecipe(source, held_out=40), tmp_path / "q")
    loaded = data.load(registry.task(task), tmp_path / "q")
    assert len(loaded.items) == 40
    assert all(item.chat for item in loaded.items)


def test_too_few_functions_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "functions.jsonl"
    with pytest.raises(LoomError, match=r"functions\.jsonl.*collect python"):
        make_questions(QuestionsRecipe(tmp_path), tmp_path / "q")
    path.write_text('{"name": "a.b", "module": "a", "summary": "Short."}\n')
    with pytest.raises(LoomError, match="nothing can be held out"):
        make_questions(QuestionsRecipe(tmp_path), tmp_path / "q")
    path.write_text('{"name": "a.b", "module": "a"}\n')
    with pytest.raises(LoomError, match="functions.jsonl:1"):
        make_questions(QuestionsRecipe(tmp_path), tmp_path / "q")


def test_near_copies_by_brute_force() -> None:
    texts = ["a b c d e f", "a b c d e g", "x y z", "x y z", "p q", "a b c q r s t u v"]
    assert near_copies(texts) == [True, True, True, True, False, False]
