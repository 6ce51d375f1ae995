"""The chat format: a conversation to ids, and to which of them are trained, in one pass.

The built-in format is Tülu's as OLMo v1 used it: the conversation opens with the end-of-text token,
each turn is `<|role|>`, a newline and the stripped content; a user's or system's turn ends with a
newline, an assistant's with the end-of-text token and a newline. The role markers are ordinary text.

Contents are encoded by themselves and control tokens are appended by id, so that nothing a person
writes can end a turn. That equals encoding the whole text at once because contents are stripped: a
run of whitespace then never reaches across a seam. `ChatFormat.jinja` is the same format as a
one-line template for other programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loom.artifact import digest_json
from loom.errors import LoomError
from loom.recipe import load, nearest, to_plain
from loom.tokens.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Turn:
    """The text around one role's content. `{eos}` stands for the end-of-text token."""

    before: str
    after: str


@dataclass(frozen=True)
class ChatFormat:
    """A chat format as data.

    `control` names strings in the frame that are single tokens of the tokenizer (ChatML's markers);
    `{eos}` always is. The assistant's `after` begins with the token that stops generation.
    """

    name: str
    start: str
    system: Turn
    user: Turn
    assistant: Turn
    control: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.assistant.after.startswith(token) for token in ("{eos}", *self.control)):
            raise ValueError(
                "assistant.after must begin with the token that ends an answer: {eos}, or one of control"
            )

    def turn(self, role: str) -> Turn:
        match role:
            case "system":
                return self.system
            case "user":
                return self.user
            case "assistant":
                return self.assistant
        raise LoomError(f"There is no role {role!r}; the roles are {', '.join(ROLES)}.")

    @cached_property
    def stop(self) -> str:
        """The token that ends an answer."""
        tokens = ("{eos}", *self.control)
        return next(token for token in tokens if self.assistant.after.startswith(token))

    @property
    def digest(self) -> str:
        return digest_json(to_plain(self))

    def jinja(self) -> str:
        """The format as a Jinja template on a single line (line breaks in templates are read in many ways).

        It takes `messages`, `eos_token` and `add_generation_prompt`, and raises for a role it does not know.
        """
        turns = []
        for number, role in enumerate(ROLES):
            turn = self.turn(role)
            parts = [*self._quoted(turn.before), "message['content'] | trim", *self._quoted(turn.after)]
            test = "if" if number == 0 else "elif"
            turns.append("{% " + f"{test} message['role'] == '{role}'" + " %}" + _output(parts))
        unknown = "{% else %}{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
        generation = _output(self._quoted(self.assistant.before))
        return (
            _output(self._quoted(self.start))
            + "{% for message in messages %}"
            + "".join(turns)
            + unknown
            + "{% endfor %}{% if add_generation_prompt %}"
            + generation
            + "{% endif %}"
        )

    def _quoted(self, frame: str) -> list[str]:
        """A frame's parts as Jinja expressions."""
        quoted: list[str] = []
        for number, part in enumerate(frame.split("{eos}")):
            if number:
                quoted.append("eos_token")
            if part:
                text = part.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
                quoted.append(f"'{text}'")
        return quoted


def _output(parts: Sequence[str]) -> str:
    joined = " + ".join(f"({part})" if "|" in part and not part.startswith("'") else part for part in parts)
    return "{{ " + joined + " }}" if parts else ""


FORMATS: dict[str, ChatFormat] = {
    item.name: item
    for item in (
        ChatFormat(
            name="olmo-v1",
            start="{eos}",
            system=Turn("<|system|>\n", "\n"),
            user=Turn("<|user|>\n", "\n"),
            assistant=Turn("<|assistant|>\n", "{eos}\n"),
        ),
        ChatFormat(
            name="chatml",
            start="",
            system=Turn("<|im_start|>system\n", "<|im_end|>\n"),
            user=Turn("<|im_start|>user\n", "<|im_end|>\n"),
            assistant=Turn("<|im_start|>assistant\n", "<|im_end|>\n"),
            control=("<|im_start|>", "<|im_end|>"),
        ),
    )
}
DEFAULT = "olmo-v1"


def find_format(name: str) -> ChatFormat:
    """A built-in format by its name, or one read from a YAML file with `ChatFormat`'s keys."""
    if name in FORMATS:
        return FORMATS[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return load(Path(name), ChatFormat)
    near = nearest(name, FORMATS)
    raise LoomError(
        f"There is no chat format {name!r}; there are {', '.join(FORMATS)}, or a YAML file of your own."
        + (f" Did you mean {near!r}?" if near else "")
    )


@dataclass(frozen=True)
class Rendered:
    """Ids (uint32) of a conversation, or of a part of one, and `trained` (uint8, 1 where the loss counts)."""

    ids: NDArray[np.uint32]
    trained: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_end(self) -> int:
        """The place of the first trained id; the length if there is none."""
        found = np.flatnonzero(self.trained)
        return int(found[0]) if len(found) else len(self.ids)


def untrained(ids: NDArray[np.uint32]) -> Rendered:
    """Ids of which none counts."""
    return Rendered(ids, np.zeros(len(ids), np.uint8))


def join(parts: Sequence[Rendered]) -> Rendered:
    """Parts one after the other."""
    return Rendered(
        np.concatenate([part.ids for part in parts]), np.concatenate([part.trained for part in parts])
    )


@dataclass
class Renderer:
    """A format bound to a tokenizer: frames are encoded once, contents as they come."""

    format: ChatFormat
    tokenizer: Tokenizer
    _frames: dict[str, NDArray[np.uint32]] = field(default_factory=dict, init=False)
    stop_id: int = field(init=False)

    def __post_init__(self) -> None:
        self.stop_id = self._control_id(self.format.stop)
        if self.stop_id == self.tokenizer.pad_id and self.tokenizer.pad_token != self.tokenizer.eos_token:
            raise LoomError(f"The chat format {self.format.name!r} ends answers with the padding token.")
        frames = {"start": self.format.start}
        for role in ROLES:
            turn = self.format.turn(role)
            frames |= {f"{role}.before": turn.before, f"{role}.after": turn.after}
        self._frames = {name: self._frame(text) for name, text in frames.items()}

    def _control_id(self, token: str) -> int:
        return self.tokenizer.eos_id if token == "{eos}" else self.tokenizer.token_id(token)

    def _frame(self, text: str) -> NDArray[np.uint32]:
        control = ("{eos}", *self.format.control)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, control)) + ")", text):
            if part in control:
                ids.append(self._control_id(part))
            elif part:
                ids += self.tokenizer.encode(part).tolist()
        return np.asarray(ids, dtype=np.uint32)

    @property
    def start(self) -> Rendered:
        """What a conversation opens with."""
        return untrained(self._frames["start"])

    @property
    def answer_header(self) -> Rendered:
        """What comes before an answer."""
        return untrained(self._frames["assistant.before"])

    @property
    def tail(self) -> int:
        """How many ids follow the stop token in an assistant's turn."""
        return len(self._frames["assistant.after"]) - 1

    def turns(self, conversations: Sequence[Sequence[Message]]) -> list[list[Rendered]]:
        """Each message of each conversation with its frame; contents are encoded together.

        Trained are an assistant's content and the stop token after it, nothing else.
        """
        contents = [message.content.strip() for messages in conversations for message in messages]
        encoded = self.tokenizer.encode_batch(contents)
        rendered, number = [], 0
        for messages in conversations:
            turns = []
            for message in messages:
                self.format.turn(message.role)
                before = self._frames[f"{message.role}.before"]
                after = self._frames[f"{message.role}.after"]
                content = encoded[number]
                number += 1
                trained = np.zeros(len(before) + len(content) + len(after), np.uint8)
                if message.role == "assistant":
                    trained[len(before) : len(before) + len(content) + 1] = 1
                turns.append(Rendered(np.concatenate([before, content, after]), trained))
            rendered.append(turns)
        return rendered

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
        """One conversation; with `generation_prompt`, ready for the assistant to go on."""
        parts = [self.start, *self.turns([messages])[0]]
        return join([*parts, self.answer_header] if generation_prompt else parts)

    def close(self, rendered: Rendered) -> Rendered:
        """A rendered conversation as it is stored: nothing after the last answer's stop token, EOS last."""
        end = len(rendered) - self.tail
        ids, trained = rendered.ids[:end], rendered.trained[:end]
        if self.stop_id == self.tokenizer.eos_id:
            return Rendered(ids, trained)
        return join([Rendered(ids, trained), self.end_of_text])

    @property
    def end_of_text(self) -> Rendered:
        """The end-of-text id, not trained: what ends a document whose answer does not end with it."""
        return untrained(np.asarray([self.tokenizer.eos_id], np.uint32))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the format."""
        return {
            "format": self.format.name,
            "digest": self.format.digest,
            "template": self.format.jinja(),
            "shape": to_plain(self.format),
        }


def render_jinja(
    template: str,
    messages: Sequence[Message],
    *,
    eos_token: str,
    bos_token: str | None = None,
    generation_prompt: bool = False,
    strict: bool = True,
) -> str:
    """Render a chat template as transformers does: sandboxed, with what it lends to templates.

    `strict` refuses a variable it was not given, which transformers takes as empty. Raises `LoomError` where
    the template does (an unknown role, a part of what is not there), and for one that does too much
    (`loom.chat.sandbox`).
    """
    from jinja2 import TemplateError

    from loom.chat.sandbox import Sandbox

    known = {"eos_token": eos_token} | ({"bos_token": bos_token} if bos_token is not None else {})
    try:
        return (
            Sandbox(strict)
            .template(template)
            .render(
                messages=[{"role": item.role, "content": item.content} for item in messages],
                add_generation_prompt=generation_prompt,
                **known,
            )
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise LoomError(f"The chat template cannot render this conversation: {error}.") from None


PROBES: tuple[tuple[Message, ...], ...] = (
    (Message("user", "a"), Message("assistant", "b")),
    (Message("system", " x\n"), Message("user", "a\nb "), Message("assistant", "\nc"), Message("user", "d")),
    tuple(Message("user" if n % 2 == 0 else "assistant", f" turn {n}\n") for n in range(6)),
)


def check_template(renderer: Renderer, template: str) -> None:
    """Raise `LoomError` unless a chat template renders to the ids that the format gives.

    It is tried on conversations with a system message, several turns and content to strip, which is where
    templates drop turns or leave whitespace.
    """
    import tokenizers

    whole = tokenizers.Tokenizer.from_str(renderer.tokenizer.data.decode())
    for messages in PROBES:
        for prompt in (False, True):
            text = render_jinja(
                template, messages, eos_token=renderer.tokenizer.eos_token, generation_prompt=prompt
            )
            found = whole.encode(text, add_special_tokens=False).ids
            if found != renderer.render(messages, generation_prompt=prompt).ids.tolist():
                raise LoomError(
                    f"The chat template renders {len(messages)} turns to other ids than the format "
                    f"{renderer.format.name!r}: {text!r}. Use the template that `loom prepare` wrote."
                )
