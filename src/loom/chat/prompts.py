"""Conversations as prompts, in the format a model was tuned on.

A model's own template is used if it has one. If it comes from one of Loom's formats, contents and frames
are encoded apart, and nothing a person writes can become a control token. A template from elsewhere is
rendered in a sandbox with marks in the contents' places, for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loom.chat.format import DEFAULT, FORMATS, ChatFormat, Message, Renderer, render_jinja
from loom.chat.template import Template
from loom.errors import LoomError
from loom.recipe import build
from loom.tokens.tokenizer import PII_STRINGS, Tokenizer

MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Conversation:
    """How messages become a prompt. `stop_ids` end an answer."""

    tokenizer: Tokenizer
    renderer: Renderer | None
    template: str
    stop_ids: tuple[int, ...]
    note: str
    bos_token: str | None = None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the assistant goes on. Raises `LoomError` for what the template refuses."""
        if self.renderer is not None:
            return [int(i) for i in self.renderer.render(messages, generation_prompt=True).ids]
        return self._foreign(messages)

    def _foreign(self, messages: Sequence[Message]) -> list[int]:
        marked = [Message(m.role, _mark(m.content, number)) for number, m in enumerate(messages)]
        text = render_jinja(
            self.template,
            marked,
            eos_token=self.tokenizer.eos_token,
            bos_token=self.bos_token,
            generation_prompt=True,
            strict=False,
        )
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


def conversation(tokenizer: Tokenizer, template: Template | None) -> Conversation:
    """For a model with this template, or with none: then Loom's built-in format.

    Raises `LoomError` where the template's stop token is not the tokenizer's.
    """
    stated = template.stop_ids if template else ()
    if outside := [i for i in stated if not 0 <= i < tokenizer.vocab_size]:
        raise LoomError(
            f"The model's answers end with id {outside[0]}, which its tokenizer does not have: "
            f"generation_config.json is another model's."
        )
    # OLMo v1's folders once stated the id of a mask for personal data as their end.
    ends = {tokenizer.eos_id, *(i for i in stated if tokenizer.decode([i]) not in PII_STRINGS)}
    if (form := _own(template)) is not None:
        renderer = Renderer(form, tokenizer)
        note = (
            f"chat format {form.name}, as the model was tuned"
            if template is not None
            else f"the model has no chat template; using the built-in {form.name}"
        )
        stops = tuple(sorted({renderer.stop_id, *ends}))
        return Conversation(tokenizer, renderer, form.jinja(), stops, note)
    assert template is not None
    ends |= set(_stops(tokenizer, template))
    note = "the model's own chat template"
    return Conversation(tokenizer, None, template.text, tuple(sorted(ends)), note, template.bos_token)


def _own(template: Template | None) -> ChatFormat | None:
    """The format a template was made from, if it is one of Loom's or its data came along."""
    if template is None:
        return FORMATS[DEFAULT]
    if template.format is not None:
        return build(dict(template.format), ChatFormat, "the model's chat format")
    return next((form for form in FORMATS.values() if template.text == form.jinja()), None)


def _stops(tokenizer: Tokenizer, template: Template) -> list[int]:
    """The control token that the template itself puts behind an answer, if it puts one there."""
    mark = _mark("b", 1)
    try:
        text = render_jinja(
            template.text,
            [Message("user", "a"), Message("assistant", mark)],
            eos_token=tokenizer.eos_token,
            bos_token=template.bos_token,
            strict=False,
        )
    except LoomError:
        return []  # it refuses such a conversation; what it says of real ones is said there
    after = text.partition(mark)[2].lstrip()
    return [tokenizer.token_id(token) for token in tokenizer.control if after.startswith(token)]
