"""That a model was tuned on a question is found by the question, whatever stands around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.evals.contamination import History
from loom.evals.written.tasks import WRITTEN
from loom.tasks import registry
from loom.tasks.item import asked
from tests.evals.conftest import byte_tokenizer
from tests.tasks import rows

QUESTION = "What happens to the water in a kettle when it is heated for long?"
ROWS = {
    "arc_easy": rows.labelled(QUESTION, ["It boils", "It freezes"], "A"),
    "arc_easy:olmes-mcf": rows.labelled(QUESTION, ["It boils", "It freezes"], "A"),
    "mmlu": {
        "question": QUESTION,
        "choices": ["It boils", "It freezes", "It glows", "It rests"],
        "answer": 0,
    },
    "truthfulqa_mc1": {
        "question": QUESTION,
        "mc1_targets": {"choices": ["It boils", "It freezes"], "labels": [1, 0]},
    },
    "boolq": {"question": QUESTION[:-1], "passage": "Kettle -- A kettle boils water.", "label": 1},
    "winogrande": rows.WINOGRANDE[0],
    "hellaswag": {
        "activity_label": "Making tea",
        "ctx_a": "A man fills a kettle with cold water and puts it on.",
        "ctx_b": "the man",
        "endings": ["waits.", "sings.", "sleeps.", "paints."],
        "label": "0",
    },
}
SAID = {
    "winogrande": "Who was it? The cup fell off the table because the table was tilted.",
    "hellaswag": "Go on: A man fills a kettle with cold water and puts it on. The man",
}


def history(folder: Path, turns: Sequence[str], form: str = "olmo-v1") -> History:
    """Of conversations in which users say `turns`."""
    spec = byte_tokenizer()
    for token in ("<|im_start|>", "<|im_end|>"):
        added = spec["added_tokens"]
        assert isinstance(added, list)
        added.append({**added[0], "id": added[-1]["id"] + 1, "content": token})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    lines = [{"prompt": turn, "completion": "Yes."} for turn in turns]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = Prepare(
        "sft", (Share(str(folder / "chats.jsonl")),), folder / "tokenizer.json", max_length=512, format=form
    )
    prepare(recipe, folder / "sft")
    return History(folder / "sft")


@pytest.mark.parametrize("name", ROWS)
def test_the_plain_question_is_found_in_another_frame(tmp_path: Path, name: str) -> None:
    item = registry.task(name).render(0, ROWS[name])
    said = SAID.get(name, f"Please help me. {QUESTION} Explain in a few words!")
    seen = history(tmp_path, ["Hello there, how are you today?", said]).saw([asked(item)], ())
    assert seen is not None and seen.prompts == 1


@pytest.mark.parametrize("form", ["olmo-v1", "chatml"])
def test_a_written_question_is_found_in_any_chat_format(tmp_path: Path, form: str) -> None:
    """TruthfulQA's prompt is six worked examples and the question; nobody is tuned on those."""
    (tmp_path / "truthfulqa.validation.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    (prompt,) = WRITTEN["truthfulqa_gen"].prompts(tmp_path)
    found = history(tmp_path, [QUESTION, "Something else."], form)
    assert found.saw([prompt.spellings], ()) is not None


@pytest.mark.parametrize("name", ROWS)
def test_a_part_of_a_question_or_its_words_elsewhere_are_not_it(tmp_path: Path, name: str) -> None:
    item = registry.task(name).render(0, ROWS[name])
    others = [
        "What happens to the water in a kettle when it is cold?",
        "The cup fell off the table because the cat was there.",
        "A man fills a kettle with cold water and drinks it.",
    ]
    assert history(tmp_path, others).saw([asked(item)], ()) is None


def test_a_short_question_counts_where_it_is_the_whole_turn(tmp_path: Path) -> None:
    item = registry.task("boolq").render(0, rows.BOOLQ[0])  # is a whale a fish
    assert history(tmp_path, ["Tell me, is a whale a fish or a mammal?"]).saw([asked(item)], ()) is None
    (tmp_path / "b").mkdir()
    assert history(tmp_path / "b", ["Is a whale a fish?"]).saw([asked(item)], ()) is not None


def test_held_out_conversations_that_another_folder_trained_on_are_seen(tmp_path: Path) -> None:
    """All of what a user says counts, a turn of it and what is too short do not."""
    first, second = "Please write a short poem about the sea.", "Now tell me why the sea is salty."
    known = history(tmp_path, [first, second])
    for turns, found in (
        ([first], True),
        ([first, second], True),
        ([first, "Yes."], True),
        ([first, "And what about the rivers that run into it?"], False),
        (["Yes."], False),
    ):
        seen = known.saw_turns([turns], tmp_path / "another")
        assert (seen is not None) == found, turns
    both = [[first], [second], ["Something else, that nobody has said."]]
    seen = known.saw_turns(both, tmp_path / "another")
    assert seen is not None and seen.prompts == 2
    assert known.saw_turns(both, tmp_path / "sft") is None  # turns of the folder's own other conversations
