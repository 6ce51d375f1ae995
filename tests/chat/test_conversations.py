"""Every shape of the field becomes the same conversation; what is none is told why."""

from __future__ import annotations

from typing import Any

import pytest

from loom.chat.conversations import Malformed, conversation, pair
from loom.chat.format import Message

QUESTION, ANSWER, WORSE = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
Q, A, B = ({"role": m.role, "content": m.content} for m in (QUESTION, ANSWER, WORSE))
S = {"role": "system", "content": "s"}

SAME: list[dict[str, Any]] = [
    {"messages": [Q, A]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "q", "output": "a"},
    {"instruction": "q", "input": "", "output": "a"},
    {"prompt": "q", "completion": "a"},
]


@pytest.mark.parametrize("row", SAME)
def test_every_shape_is_read_alike(row: dict[str, Any]) -> None:
    found = conversation(row, "id-1", "src")
    assert (found.id, found.source, found.messages) == ("id-1", "src", (QUESTION, ANSWER))
    assert found.prompt == (QUESTION,)


def test_names_come_from_the_row_where_it_has_them() -> None:
    found = conversation({"id": 7, "dataset": "lima", "messages": [Q, A]}, "id-1", "src")
    assert (found.id, found.source) == ("7", "lima")


def test_alpacas_input_follows_its_instruction() -> None:
    found = conversation({"instruction": "Sum.", "input": "1 2", "output": "3"}, "1", "s")
    assert found.messages[0].content == "Sum.\n\n1 2"


PAIRS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": [A], "rejected": [B]},
    {"prompt": [Q], "chosen": [A], "rejected": "b"},
    {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]},
    {"chosen": [Q, A], "rejected": [Q, B]},
    {"chosen": [Q, A], "rejected": [{"role": "user", "content": " q\n"}, B]},
]


@pytest.mark.parametrize("row", PAIRS)
def test_every_shape_of_pair_is_read_alike(row: dict[str, Any]) -> None:
    found = pair(row, "1", "s")
    assert (found.prompt, found.chosen, found.rejected) == ((QUESTION,), ANSWER, WORSE)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [A]}, "starts with the assistant"),
    ({"messages": [S, A]}, "starts with the assistant"),
    ({"messages": [Q, {"role": "assistant", "content": " \n"}]}, "empty turn"),
    ({"messages": [Q, {"role": "assistant", "content": None}]}, "empty turn"),
    ({"messages": [Q, {"role": "tool", "content": "x"}, A]}, "unknown role"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "unknown role"),
    ({"messages": [Q, Q, A]}, "turns do not alternate"),
    ({"messages": [Q, A, S, A]}, "turns do not alternate"),
    ({"messages": [Q, A, Q]}, "no answer last"),
    ({"messages": [S]}, "no answer last"),
    ({"messages": []}, "no turns"),
    ({"messages": "q"}, "not a conversation"),
    ({"messages": [Q, "a"]}, "not a conversation"),
    ({"instruction": "q", "output": 3}, "not a conversation"),
    ({"text": "q"}, "not a conversation"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_what_is_no_conversation_is_told_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as raised:
        conversation(row, "1", "s")
    assert raised.value.reason == reason


BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "chosen equals rejected"),
    ({"chosen": [Q, A], "rejected": [{"role": "user", "content": "other"}, B]}, "prompts differ"),
    ({"prompt": "p", "chosen": [Q, A], "rejected": [Q, B]}, "prompts differ"),
    ({"chosen": [Q, A, Q, A], "rejected": [Q, B]}, "prompts differ"),
    ({"chosen": "a", "rejected": "b"}, "not a pair"),
    ({"prompt": "q", "chosen": "a"}, "not a pair"),
    ({"chosen": [Q], "rejected": [Q, B]}, "no answer last"),
    ({"chosen": [A, Q, A], "rejected": [A, Q, B]}, "starts with the assistant"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty turn"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PAIRS)
def test_what_is_no_pair_is_told_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as raised:
        pair(row, "1", "s")
    assert raised.value.reason == reason
