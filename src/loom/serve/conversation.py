"""Messages as they come over the wire, and how much of a conversation fits the context."""

from __future__ import annotations

from collections.abc import Sequence

from loom.chat.format import Message
from loom.chat.prompts import Conversation
from loom.errors import LoomError

LEAST = 64  # tokens of the context that are kept free for an answer


def reserved(context: int, most: int | None = None) -> int:
    """Tokens to keep free for an answer of at most `most`: a quarter of the context, `LEAST` if that is less,
    and never over a half."""
    free = min(max(LEAST, context // 4), context // 2)
    return free if most is None else min(most, free)


def parse_messages(rows: object, where: str = "messages") -> list[Message]:
    """`[{"role", "content"}]` -> messages. Raises `LoomError` saying which one is wrong."""
    if not isinstance(rows, list) or not rows:
        raise LoomError(f"{where} must be a list of at least one message.")
    messages = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise LoomError(f"{where}[{number}] is not an object with role and content.")
        role, content = row.get("role"), row.get("content")
        if role == "developer":
            role = "system"
        if role not in ("system", "user", "assistant"):
            raise LoomError(f"{where}[{number}].role is {role!r}; the roles are system, user, assistant.")
        if isinstance(content, list):
            if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
                raise LoomError(
                    f"{where}[{number}].content has parts that are not text; this model reads text."
                )
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise LoomError(f"{where}[{number}].content must be text.")
        messages.append(Message(role, content))
    return messages


def fit(
    chat: Conversation, messages: Sequence[Message], context: int, answer: int
) -> tuple[list[int], list[Message], int]:
    """A prompt that leaves `answer` tokens of the context, the messages in it, and how many were dropped.

    Whole turns are dropped, oldest first; a system message at the beginning and the last turn stay.
    Raises `LoomError` if those alone do not fit.
    """
    kept = list(messages)
    head = 1 if kept and kept[0].role == "system" else 0
    dropped = 0
    while True:
        ids = chat.prompt(kept)
        if len(ids) + answer <= context:
            return ids, kept, dropped
        rest = kept[head:]
        nexts = [i for i, message in enumerate(rest) if i > 0 and message.role == "user"]
        if not nexts:
            if len(ids) < context:
                return ids, kept, dropped
            raise LoomError(
                f"The last message has {len(ids):,} tokens with its frame and the model's context holds "
                f"{context:,}, answer included. Shorten it."
            )
        dropped += nexts[0]
        kept = kept[:head] + rest[nexts[0] :]
