"""`loom chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from loom.artifact import atomic_write
from loom.chat.format import Message
from loom.chat.prompts import Conversation
from loom.errors import LoomError
from loom.model.sampling import Sampling
from loom.recipe import nearest
from loom.serve.complete import Completion, Session, stream
from loom.serve.conversation import fit, reserved
from loom.serve.thread import Tracer

HELP = """/help            this list
/new             forget the conversation
/system TEXT     set the system prompt (without TEXT: show it; none: without one)
/regen           answer the last message anew
/temp NUMBER     temperature; 0 is greedy
/save FILE       write the conversation as JSON
/trace           the training documents the last answer echoes
/stats           speed, tokens, context used
/quit            leave (also Ctrl-D)
A message that ends with a backslash goes on in the next line. Ctrl-C stops the answer."""
COMMANDS = ("help", "new", "system", "regen", "temp", "save", "trace", "stats", "quit")


@dataclass
class Chat:
    """A conversation with a model; `write` receives every piece of text as it comes."""

    on: Session
    format: Conversation
    sampling: Sampling
    write: Callable[[str], None]
    trace: Tracer | None = None
    seeded: bool = False  # a seed was given: the conversation can be repeated
    messages: list[Message] = field(default_factory=list)
    system: str = ""
    answers: int = 0
    last: Completion | None = None
    used: int = 0  # tokens of the context that the last prompt and answer took

    def answer(self) -> Completion:
        """Answer the last message, writing as it comes. Ctrl-C keeps what has been written so far.

        Raises `LoomError` where the last message alone is over the context; it is then taken back.
        """
        head = [Message("system", self.system)] if self.system else []
        context = self.on.context
        free = reserved(context, self.sampling.max_new_tokens)
        try:
            ids, kept, dropped = fit(self.format, [*head, *self.messages], context, free)
        except LoomError:
            self.messages.pop()
            raise
        if dropped:
            self.messages = [m for m in kept if m.role != "system"]
            self.write(
                f"[{dropped} older messages no longer fit the context of {context:,} and were dropped]\n"
            )
        self.answers += 1
        seed = self.sampling.seed + self.answers - 1 if self.seeded else secrets.randbits(62)
        stops = tuple(sorted({*self.sampling.stop_ids, *self.format.stop_ids}))
        sampling = replace(self.sampling, seed=seed, stop_ids=stops)
        done = Completion()
        try:
            for piece, done in stream(self.on, ids, sampling):  # noqa: B007
                self.write(piece)
        except KeyboardInterrupt:
            self.write(" [stopped]")
            if not done.tokens:  # nothing was said: the question is taken back too
                self.messages.pop()
                self.write("\n")
                return done
        self.write("\n")
        self.messages.append(Message("assistant", done.text))
        self.last, self.used = done, len(ids) + len(done.tokens)
        return done

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash. False: leave."""
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        match name:
            case "quit" | "exit" | "q":
                return False
            case "help":
                self.write(HELP + "\n")
            case "new":
                self.messages.clear()
                self.last, self.used = None, 0
                self.write("[a new conversation]\n")
            case "system":
                self._set_system(rest)
            case "regen":
                self._regenerate()
            case "temp":
                self._temperature(rest)
            case "save":
                self._save(rest)
            case "trace":
                self._trace()
            case "stats":
                self.write(self.stats() + "\n")
            case _:
                near = nearest(name, COMMANDS)
                self.write(
                    f"There is no /{name}." + (f" Did you mean /{near}?" if near else " See /help.") + "\n"
                )
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self.system = "" if text == "none" else text
        self.write(f"[system: {self.system or 'none'}]\n")

    def _regenerate(self) -> None:
        before = list(self.messages)
        if self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if not self.messages:
            self.write("There is nothing to answer yet.\n")
            return
        try:
            self.answer()
        finally:
            if not self.messages or self.messages[-1].role != "assistant":  # nothing new was said
                self.messages = before

    def _temperature(self, text: str) -> None:
        try:
            self.sampling = replace(self.sampling, temperature=float(text))
        except (ValueError, LoomError):
            self.write("Write a number of 0 or more: /temp 0.7\n")
        else:
            self.write(f"[temperature {self.sampling.temperature:g}]\n")

    def _save(self, name: str) -> None:
        if not name:
            self.write("Name a file: /save chat.json\n")
            return
        head = [Message("system", self.system)] if self.system else []
        rows = [{"role": m.role, "content": m.content} for m in [*head, *self.messages]]
        try:
            with atomic_write(Path(name)) as file:
                file.write(json.dumps({"messages": rows}, ensure_ascii=False, indent=2).encode() + b"\n")
        except LoomError as error:
            self.write(f"{error}\n")
        else:
            self.write(f"[saved {len(rows)} messages to {name}]\n")

    def _trace(self) -> None:
        if self.trace is None:
            self.write("No index was given: loom chat MODEL --index DIR.\n")
            return
        if self.last is None or not self.last.text.strip():
            self.write("There is no answer yet.\n")
            return
        asked = next((m.content for m in reversed(self.messages) if m.role == "user"), "")
        self.write("".join(shown(self.trace(self.last.text, asked))))

    def stats(self) -> str:
        """The last answer's speed and the context it took."""
        if self.last is None:
            return "No answer yet."
        done = self.last
        rest = max(done.seconds - done.first_token_seconds, 1e-9)
        speed = (len(done.tokens) - 1) / rest if len(done.tokens) > 1 else 0.0
        return (
            f"prompt {done.prompt_tokens:,} tokens, first token after {done.first_token_seconds:.2f} s, then "
            f"{len(done.tokens):,} tokens at {speed:.1f}/s; context {self.used:,} of {self.on.context:,}"
        )


def shown(found: dict[str, object]) -> Iterator[str]:
    """A trace as lines."""
    spans = found["spans"]
    assert isinstance(spans, list)
    if not spans:
        yield "No longer passage of this answer occurs word for word in the training data.\n"
    for span in spans:
        yield f"{span['text'].strip()!r}: {span['count']:,} times\n"
        for document in span["documents"][:3]:
            steps = document.get("passage_steps") or document.get("steps") or []
            when = f", read at step {', '.join(f'{s:,}' for s in steps[:5])}" if steps else ""
            yield f"    {document['id']} ({document['source']}{when})\n"


def converse(chat: Chat, lines: TextIO, interactive: bool) -> None:
    """Read messages and commands until the end. Without a terminal, answers are all that is written.

    Raises `LoomError` where what is piped in is not UTF-8.
    """
    while True:
        try:
            line = _read(lines, interactive)
        except KeyboardInterrupt:
            chat.write("\n[/quit leaves]\n")
            continue
        except UnicodeError as error:  # in a pipe nobody would see that a message was left out
            if not interactive:
                raise LoomError(f"What is piped in is not UTF-8 ({error}): convert it first.") from None
            chat.write("That line is not UTF-8 and was left out.\n")
            continue
        if line is None:
            return
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not chat.command(line):
                    return
                continue
            chat.messages.append(Message("user", line))
            chat.answer()
        except LoomError as error:
            chat.write(f"{error}\n")
        except KeyboardInterrupt:  # before or after an answer's own words, which stop by themselves
            if chat.messages and chat.messages[-1].role == "user":
                chat.messages.pop()
            chat.write("\n[stopped; /quit leaves]\n")


def _read(lines: TextIO, interactive: bool) -> str | None:
    """A message: one line, or several where each but the last ends with a backslash. None at the end."""
    parts: list[str] = []
    while True:
        try:
            line = input("> " if not parts else ". ") if interactive else lines.readline()
        except EOFError:
            return None
        if not interactive and not line:
            return "\n".join(parts) if parts else None
        line.encode()  # in some locales, bytes that are no UTF-8 come as halves of characters
        line = line.rstrip("\n")
        if not line.endswith("\\"):
            return "\n".join([*parts, line])
        parts.append(line[:-1])


def to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
