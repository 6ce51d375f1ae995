"""Conversations and preference pairs out of the files people keep them in.

Read are JSON lines (plain, gz, zst) and Parquet, in the shapes of the field:

- `{messages: [{role, content}]}`, Tülu's and the Hub's
- `{conversations: [{from, value}]}`, ShareGPT's
- `{instruction, input, output}`, Alpaca's; `{prompt, completion}`, TRL's
- `{prompt, chosen, rejected}` and `{chosen, rejected}`: texts, or lists of messages

What is not a conversation is named with its file and line; nothing is mended silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from loom.chat.format import ROLES, Message, Role
from loom.errors import LoomError
from loom.tokens.documents import File, lines

SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


class Malformed(ValueError):
    """Why a row is not what it should be; `reason` is what is counted, the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}{': ' if detail else ''}{detail}")
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate, an optional system message first, an answer last."""

    id: str
    source: str
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What comes before the first answer."""
        first = next(n for n, message in enumerate(self.messages) if message.role == "assistant")
        return self.messages[:first]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which `chosen` is the better."""

    id: str
    source: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message


@dataclass(frozen=True)
class Row:
    """A row of a file as it is: its number from 1, and its value or why there is none."""

    number: int
    value: Mapping[str, Any] | Malformed


def rows(file: File) -> Iterator[Row]:
    """Every row of a file. Raises `LoomError` for a file that is cut short or cannot be read at all."""
    if file.path.name.endswith(".parquet"):
        yield from _parquet_rows(file)
        return
    for number, line in lines(file):
        try:
            value = orjson.loads(line)
        except ValueError as error:
            yield Row(number, Malformed("broken JSON", str(error)))
            continue
        if isinstance(value, dict):
            yield Row(number, value)
        else:
            yield Row(number, Malformed("not an object", type(value).__name__))


def _parquet_rows(file: File) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 1
        for batch in pq.ParquetFile(file.path).iter_batches(1024):
            for value in batch.to_pylist():
                yield Row(number, value)
                number += 1
    except pa.ArrowException as error:
        raise LoomError(f"{file.path} is not a whole Parquet file: {error}.") from None


def conversation(value: Mapping[str, Any], default_id: str, default_source: str) -> Conversation:
    """A row as a conversation to train on. Raises `Malformed`."""
    messages = _messages_of(value)
    check_turns(messages)
    if messages[-1].role != "assistant":
        raise Malformed("no answer last", f"the last turn is the {messages[-1].role}'s")
    return Conversation(*_name(value, default_id, default_source), messages)


def pair(value: Mapping[str, Any], default_id: str, default_source: str) -> Pair:
    """A row as a preference pair. Raises `Malformed`."""
    for key in ("chosen", "rejected"):
        if value.get(key) is None:
            raise Malformed("not a pair", f"it has no {key!r}; its keys are {', '.join(value)}")
    prompt = _prompt(value["prompt"]) if value.get("prompt") is not None else None
    sides = [_side(value[key], key, prompt) for key in ("chosen", "rejected")]
    for side in sides:
        check_turns(side)
    chosen, rejected = sides
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if side[-1].role != "assistant":
            raise Malformed("no answer last", f"{name} ends with the {side[-1].role}'s turn")
    if not _same(chosen[:-1], rejected[:-1]):
        raise Malformed("prompts differ", "chosen and rejected answer different prompts")
    if prompt is not None and not _same(prompt, chosen[:-1]):
        raise Malformed("prompts differ", "prompt is not what chosen and rejected answer")
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        raise Malformed("chosen equals rejected")
    return Pair(*_name(value, default_id, default_source), chosen[:-1], chosen[-1], rejected[-1])


def check_turns(messages: tuple[Message, ...]) -> None:
    """Raise `Malformed` unless turns alternate from the user on, after an optional system message."""
    if not messages:
        raise Malformed("no turns")
    for number, message in enumerate(messages, start=1):
        if not message.content.strip():
            raise Malformed("empty turn", f"turn {number}, the {message.role}'s")
    turns = messages[1:] if messages[0].role == "system" else messages
    if not turns:
        raise Malformed("no answer last", "there is a system message and nothing else")
    if turns[0].role == "assistant":
        raise Malformed("starts with the assistant")
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            raise Malformed(
                "turns do not alternate", f"a turn of the {message.role} where the {expected}'s is due"
            )


def _messages_of(value: Mapping[str, Any]) -> tuple[Message, ...]:
    if value.get("messages") is not None:
        return parse_messages(value["messages"])
    if value.get("conversations") is not None:
        return parse_messages(value["conversations"])
    if isinstance(value.get("instruction"), str):
        question, given = value["instruction"], value.get("input") or ""
        return _exchange(f"{question}\n\n{given}" if given else question, value.get("output"), "output")
    if isinstance(value.get("prompt"), str) and "completion" in value:
        return _exchange(value["prompt"], value["completion"], "completion")
    known = "messages; conversations; instruction and output; or prompt and completion"
    raise Malformed("not a conversation", f"it has none of {known}; its keys are {', '.join(value)}")


def _exchange(question: str, answer: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(answer, str):
        raise Malformed("not a conversation", f"{key} is {type(answer).__name__}, not text")
    return (Message("user", question), Message("assistant", answer))


def parse_messages(value: Any) -> tuple[Message, ...]:
    """A list of `{role, content}` or `{from, value}` as messages. Raises `Malformed`."""
    if not isinstance(value, list):
        raise Malformed("not a conversation", f"its messages are {type(value).__name__}, not a list")
    return tuple(_message(item, number) for number, item in enumerate(value, start=1))


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise Malformed("not a conversation", f"turn {number} is {type(item).__name__}, not an object")
    if "from" in item and "role" not in item:
        role, content = SHAREGPT_ROLES.get(str(item["from"])), item.get("value")
        shown = item["from"]
    else:
        shown, content = item.get("role"), item.get("content")
        role = cast(Role, shown) if shown in ROLES else None
    if role is None:
        raise Malformed("unknown role", f"turn {number} is {shown!r}'s; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise Malformed("empty turn", f"turn {number} holds {type(content).__name__}, not text")
    return Message(role, content)


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    return parse_messages(value)


def _side(value: Any, key: str, prompt: tuple[Message, ...] | None) -> tuple[Message, ...]:
    """A whole conversation: an answer alone gets the prompt before it."""
    if isinstance(value, str):
        answer: tuple[Message, ...] = (Message("assistant", value),)
    else:
        answer = parse_messages(value)
    alone = len(answer) == 1 and answer[0].role == "assistant"
    if alone and prompt is None:
        raise Malformed("not a pair", f"{key} is an answer alone, and there is no prompt")
    return (*prompt, *answer) if alone and prompt is not None else answer


def _same(left: tuple[Message, ...], right: tuple[Message, ...]) -> bool:
    return [(item.role, item.content.strip()) for item in left] == [
        (item.role, item.content.strip()) for item in right
    ]


def _name(value: Mapping[str, Any], default_id: str, default_source: str) -> tuple[str, str]:
    identity = value.get("id")
    source = value.get("source") or value.get("dataset")
    return (
        str(identity) if isinstance(identity, (str, int)) and str(identity) else default_id,
        source if isinstance(source, str) else default_source,
    )
