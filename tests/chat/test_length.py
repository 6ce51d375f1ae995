"""Whatever its length, a conversation becomes documents that fit, end, and hold something to learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat.test_format import conversations

from loom.chat.format import FORMATS, Message, Renderer
from loom.chat.length import fit_conversation, fit_pair
from loom.tokens.tokenizer import Tokenizer


@settings(max_examples=200, deadline=None)
@given(
    messages=conversations(),
    length=st.integers(8, 120),
    policy=st.sampled_from(["split", "truncate", "drop"]),
)
def test_documents_fit_end_and_are_trained_somewhere(
    tokenizer: Tokenizer, messages: list[Message], length: int, policy: str
) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    roles = [message.role for message in messages]
    fitted = fit_conversation(renderer, roles, renderer.turns([messages])[0], length, policy)
    whole = renderer.close(renderer.render(messages))
    assert bool(fitted.pieces) != bool(fitted.refused)
    for piece in fitted.pieces:
        assert len(piece) <= length
        assert piece.ids[0] == piece.ids[-1] == tokenizer.eos_id
        assert piece.trained.any()
        assert not piece.trained[0]
    if len(whole) <= length:
        assert [piece.ids.tolist() for piece in fitted.pieces] == [whole.ids.tolist()]
        assert not fitted.changes
    else:
        assert fitted.changes


@settings(max_examples=200, deadline=None)
@given(messages=conversations(), length=st.integers(30, 120))
def test_splitting_trains_every_answer_once_that_was_not_cut(
    tokenizer: Tokenizer, messages: list[Message], length: int
) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    roles = [message.role for message in messages]
    turns = renderer.turns([messages])[0]
    fitted = fit_conversation(renderer, roles, turns, length, "split")
    if any("exchange" in change for change in fitted.changes):
        return
    trained = np.concatenate([piece.ids[piece.trained == 1] for piece in fitted.pieces])
    whole = renderer.render(messages)
    assert trained.tolist() == whole.ids[whole.trained == 1].tolist()
    if roles[0] == "system":
        system = [*renderer.start.ids.tolist(), *turns[0].ids.tolist()]
        assert all(piece.ids[: len(system)].tolist() == system for piece in fitted.pieces)


def test_what_was_cut_off_does_not_teach_to_stop(tokenizer: Tokenizer) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    messages = [Message("user", "q"), Message("assistant", "word " * 100)]
    turns = renderer.turns([messages])[0]
    for policy in ("split", "truncate"):
        (piece,) = fit_conversation(renderer, ["user", "assistant"], turns, 60, policy).pieces
        assert len(piece) == 60
        assert piece.ids[-1] == tokenizer.eos_id
        assert piece.trained.tolist()[-2:] == [1, 0]


PROMPT = [Message("user", "q"), Message("assistant", "h"), Message("user", "r")]


@pytest.mark.parametrize("answers", [("yes it is", "no"), ("word " * 90, "no"), ("a " * 90, "b " * 90)])
def test_both_sides_of_a_pair_share_the_prompt_and_train_the_answer_alone(
    tokenizer: Tokenizer, answers: tuple[str, str]
) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    both = [Message("assistant", answer) for answer in answers]
    fitted = fit_pair(renderer, renderer.turns([[*PROMPT, *both]])[0], 60, "truncate")
    start = renderer.render(PROMPT, generation_prompt=True).ids.tolist()
    for piece, answer in zip(fitted.pieces, answers, strict=True):
        assert piece.ids[: len(start)].tolist() == start
        assert piece.prompt_end == len(start)
        said = [*tokenizer.encode(answer.strip()).tolist(), tokenizer.eos_id]
        kept = said if len(start) + len(said) <= 60 else said[: 59 - len(start)]
        assert piece.ids[piece.trained == 1].tolist() == kept
        assert len(piece) <= 60


def test_pairs_that_truncation_leaves_nothing_of_are_dropped(tokenizer: Tokenizer) -> None:
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)

    def fitted(prompt: str, chosen: str, rejected: str, policy: str = "truncate") -> str:
        messages = [Message("user", prompt), Message("assistant", chosen), Message("assistant", rejected)]
        return fit_pair(renderer, renderer.turns([messages])[0], 60, policy).refused

    assert "no room" in fitted("word " * 90, "a", "b")
    assert "equals rejected" in fitted("q", "word " * 90 + "a", "word " * 90 + "b")
    assert fitted("q", "word " * 90, "b", "drop") == "too long"
    assert fitted("q", "word " * 90, "b") == ""
