"""What evaluation asks is not trained on, and what merely looks alike is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tests.chat.test_prepare import stored
from tests.small import write_lines

from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.errors import LoomError
from loom.tasks.ngrams import words

LONG = "Which of these animals of the forest sleeps through most of the winter?"


def test_user_turns_that_say_an_evaluation_question_are_set_aside(
    tokenizer_path: Path, tmp_path: Path
) -> None:
    write_lines(
        tmp_path / "eval.jsonl",
        [{"question": {"stem": LONG, "choices": ["yes", "a bear"]}}, {"goal": "How do bees fly?"}],
    )
    asked = {
        "inside": f"Please tell me: {LONG.upper()} Thanks.",
        "short": "how do bees fly",
        "seven": "Which of these animals of the forest barks?",
        "longer": "How do bees fly in rain?",
        "choice": "yes",
        "answer": "Something else entirely",
    }
    rows = [{"id": name, "prompt": text, "completion": LONG} for name, text in asked.items()]
    write_lines(tmp_path / "q.jsonl", rows)
    recipe = Prepare(
        "sft", (Share(str(tmp_path / "q.jsonl")),), tokenizer_path, against=(str(tmp_path / "eval.jsonl"),)
    )
    made = prepare(recipe, tmp_path / "out")
    assert {row["id"] for row in stored(tmp_path / "out")} == {"seven", "longer", "choice", "answer"}
    assert made.counters["rejected"] == {"says what an evaluation question says": 2}
    assert {item.path for item in made.inputs} >= {"../eval.jsonl", "../q.jsonl"}
    # It was looked at, not trained on: an evaluation of it stays possible.
    assert made.facts["against"] == [item.digest for item in made.inputs if item.path == "../eval.jsonl"]


def test_nothing_to_compare_with_is_an_error(tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "eval.jsonl", [{"answer": 3, "label": "no"}])
    write_lines(tmp_path / "q.jsonl", [{"prompt": "a", "completion": "b"}])
    against = (str(tmp_path / "eval.jsonl"),)
    with pytest.raises(LoomError, match="no text of 4 words"):
        prepare(
            Prepare("sft", (Share(str(tmp_path / "q.jsonl")),), tokenizer_path, against=against),
            tmp_path / "o",
        )


def test_alpaca_evals_prompts_are_found_in_themselves(
    shared_data: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """All but those of three words or fewer."""
    path = str(shared_data / "chat" / "instructions.jsonl.gz")
    made = prepare(Prepare("sft", (Share(path),), tokenizer_path, against=(path,)), tmp_path / "out")
    assert made.counters["rejected"]["says what an evaluation question says"] >= 800
    assert all(len(words(row_text(path, row["origin"]))) < 4 for row in stored(tmp_path / "out"))


def row_text(path: str, origin: str) -> str:
    line = gzip.decompress(Path(path).read_bytes()).splitlines()[int(origin.rpartition(":")[2]) - 1]
    text: str = json.loads(line)["messages"][0]["content"]
    return text
