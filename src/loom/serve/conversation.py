"""Conversations as prompts, in the format a model was tuned on.

A model's own template is used if it has one. If that template is one of Loom's formats, contents and
frames are encoded apart, and nothing a person writes can become a control token. A template from
elsewhere is rendered in a sandbox with marks in the contents' places, for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loom.chat.format import DEFAULT, FORMATS, Message, Renderer, render_jinja
from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer

MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Conversation:
    """How messages become a prompt. `stop_ids` end an answer."""

    tokenizer: Tokenizer
    renderer: Renderer | None
    template: str
    stop_ids: tuple[int, ...]
    note: str

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the assistant goes on. Raises `LoomError` for what the template refuses."""
        if self.renderer is not None:
            return [int(i) for i in self.renderer.render(messages, generation_prompt=True).ids]
        return self._foreign(messages)

    def _foreign(self, messages: Sequence[Message]) -> list[int]:
        marked = [Message(m.role, _mark(m.content, number)) for number, m in enumerate(messages)]
        text = render_jinja(self.template, marked, eos_token=self.tokenizer.eos_token, generation_prompt=True)
        control = re.compile("(" + "|".join(map(re.escape, sorted(self.tokenizer.control))) + ")")
        ids: list[int] = []
        for number, part in enumerate(MARK.split(text)):
            if number % 2:
                ids += self.tokenizer.encode(messages[int(part)].content.strip()).tolist()
                continue
            for piece in control.split(part):
                if piece in self.tokenizer.control:
                    ids.append(self.tokenizer.token_id(piece))
                elif piece:
                    ids += self.tokenizer.encode(piece).tolist()
        return ids


def _mark(content: str, number: int) -> str:
    """A mark for a content, with the white space around it, which a template may or may not strip."""
    stripped = content.strip()
    before = content[: len(content) - len(content.lstrip())] if stripped else content
    after = content[len(content.rstrip()) :] if stripped else ""
    return f"{before}\ue000{number}\ue001{after}"


def conversation(tokenizer: Tokenizer, template: str | None) -> Conversation:
    """For a model with this template, or with none."""
    for name, form in FORMATS.items():
        if (template is None and name == DEFAULT) or template == form.jinja():
            renderer = Renderer(form, tokenizer)
            stops = tuple(sorted({renderer.stop_id, tokenizer.eos_id}))
            note = (
                f"chat format {name}, as the model was tuned"
                if template is not None
                else f"the model has no chat template; using the built-in {name}"
            )
            return Conversation(tokenizer, renderer, form.jinja(), stops, note)
    assert template is not None
    ends = {tokenizer.eos_id}
    if "<|im_end|>" in template and "<|im_end|>" in tokenizer.control:
        ends.add(tokenizer.token_id("<|im_end|>"))
    return Conversation(tokenizer, None, template, tuple(sorted(ends)), "the model's own chat template")


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
