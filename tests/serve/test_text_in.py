"""What comes in as text and is none: a sentence, from an argument, from a pipe, and in a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loom.chat.prompts import conversation
from loom.cli import app
from loom.errors import LoomError
from loom.model.sampling import Sampling
from loom.serve.complete import Session
from loom.serve.terminal import Chat, converse

ODD = "\udcff"  # how an argument holds the byte 0xff


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_pipe_that_is_no_utf8_is_a_sentence(checkpoint: Path, verb: str) -> None:
    done = CliRunner().invoke(app, [verb, str(checkpoint)], input=b"Hello \xff\n")
    assert isinstance(done.exception, LoomError)
    assert "not UTF-8" in str(done.exception)


@pytest.mark.parametrize(
    "words", [["generate", "--prompt", ODD], ["chat", "--prompt", ODD], ["chat", "-p", "x", "--system", ODD]]
)
def test_an_argument_that_is_no_utf8_is_a_sentence(checkpoint: Path, words: list[str]) -> None:
    done = CliRunner().invoke(app, [words[0], str(checkpoint), *words[1:]])
    assert isinstance(done.exception, LoomError)
    assert "not UTF-8" in str(done.exception)


@pytest.fixture
def chat(opened: Session) -> Chat:
    said: list[str] = []
    made = Chat(opened, conversation(opened.tokenizer, None), Sampling(4, temperature=0.0), said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def test_in_a_locale_of_bytes_too(chat: Chat) -> None:
    """There the half character comes through and is refused with its line; what went before was answered."""
    lines = io.TextIOWrapper(io.BytesIO(b"Hello\n\xff\nMore\n"), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(LoomError, match="not UTF-8"):
        converse(chat, lines, interactive=False)
    assert [m.role for m in chat.messages] == ["user", "assistant"]


def test_a_terminal_leaves_such_a_line_out_and_goes_on(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: Iterator[str] = iter(["Hello", f"x{ODD}", "/stats", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    converse(chat, io.StringIO(), interactive=True)
    assert "That line is not UTF-8 and was left out." in "".join(chat.said)  # type: ignore[attr-defined]
    assert [m.content for m in chat.messages if m.role == "user"] == ["Hello"]
    assert next(typed, None) is None
