"""Decoding equals the model and transformers, alone, in a batch, with lookup, streamed or not."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.model.config import ModelConfig
from loom.model.generate import generate
from loom.model.initialize import initialize
from loom.model.sampling import Sampling
from loom.model.transformer import Transformer
from loom.serve.complete import Session, complete, encode_prompt, stream
from loom.serve.decoder import Decoder
from loom.serve.engine import Engine, Event, Request
from loom.serve.lookup import NGRAM, propose
from loom.serve.text import TextStream, held_back
from loom.tokens.tokenizer import Tokenizer
from tests.serve.conftest import CONFIG

GREEDY = Sampling(24, temperature=0.0)
SECOND = ModelConfig(
    48, 2, 4, 128, 500, 64, rope_theta=5e5, norm="rmsnorm", norm_eps=1e-6, qk_norm=True, norm_after=True
)
CLIPPED = ModelConfig(48, 2, 4, 128, 500, 64, n_kv_heads=2, clip_qkv=0.5)


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    chance = random.Random(count)
    return [[chance.randrange(1280) for _ in range(chance.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("config", [SECOND, CLIPPED, replace(CLIPPED, tied=True)])
def test_decoder_computes_what_the_model_computes(config: ModelConfig) -> None:
    model = Transformer(config).eval()
    initialize(model, 1)
    ids = torch.arange(60) * 31 % 500
    with torch.inference_mode():
        expected = model(ids[None])[0]
        decoder = Decoder(model)
        assert torch.equal(model(ids[None])[0], expected), "laying weights together changed the model"
    whole, parts, single = decoder.cache(), decoder.cache(), decoder.cache()
    at_once = decoder.forward([(whole, ids.tolist())], every=True)
    torch.testing.assert_close(at_once, expected, atol=1e-5, rtol=1e-5)
    decoder.forward([(parts, ids[:33].tolist())])
    rest = decoder.forward([(parts, ids[33:].tolist())], every=True)
    torch.testing.assert_close(rest, expected[33:], atol=1e-5, rtol=1e-5)
    for i, token in enumerate(ids.tolist()):
        step = decoder.forward([(single, [token])])
        torch.testing.assert_close(step[0], expected[i], atol=1e-5, rtol=1e-5)


def test_sequences_in_a_pass_do_not_see_each_other(opened: Session) -> None:
    decoder = opened.decoder
    many = prompts(5)
    together = decoder.forward([(decoder.cache(), prompt) for prompt in many])
    for row, prompt in zip(together, many, strict=True):
        alone = decoder.forward([(decoder.cache(), prompt)])[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_cache_holds_the_context_and_no_more(opened: Session) -> None:
    cache = opened.decoder.cache()
    opened.decoder.forward([(cache, [1] * CONFIG.context_length)])
    with pytest.raises(ValueError, match="160"):
        opened.decoder.forward([(cache, [1])])


@pytest.mark.slow
def test_greedy_equals_transformers_on_200_prompts(
    opened: Session, model: Transformer, tmp_path: object
) -> None:
    transformers = pytest.importorskip("transformers")
    from loom.model.huggingface import config_to_huggingface, to_huggingface

    config = transformers.OlmoConfig(**config_to_huggingface(CONFIG, opened.tokenizer.eos_id, 1))
    other = transformers.OlmoForCausalLM(config).eval()
    other.load_state_dict(to_huggingface(model.state_dict(), CONFIG), strict=False)
    other.tie_weights()
    for prompt in prompts(200):
        mine = complete(opened, prompt, GREEDY)
        ids = torch.tensor([prompt])
        out = other.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=1
        )[0, len(prompt) :].tolist()
        out = out[: out.index(opened.tokenizer.eos_id)] if opened.tokenizer.eos_id in out else out
        assert mine.tokens == out


def test_greedy_equals_the_model_rooms_generator(opened: Session, model: Transformer) -> None:
    many = prompts(20)
    ends = replace(GREEDY, stop_ids=(opened.tokenizer.eos_id,))
    expected = generate(model, many, ends)
    for prompt, result in zip(many, expected, strict=True):
        mine = complete(opened, prompt, GREEDY)
        assert mine.tokens == result.tokens
        assert mine.finish == result.finish
        assert mine.logprobs == pytest.approx(result.logprobs, abs=1e-4)


SAMPLED = Sampling(30, temperature=0.9, top_p=0.95, seed=5)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, top_k=20, repetition_penalty=1.3)])
def test_lookup_changes_nothing(opened: Session, sampling: Sampling) -> None:
    for prompt in [*prompts(10), [5, 6, 7, 8] * 8]:
        plain = complete(opened, prompt, sampling)
        for ahead in (1, 4, 9):
            tried = complete(opened, prompt, sampling, lookup=ahead)
            assert (tried.tokens, tried.text, tried.finish) == (plain.tokens, plain.text, plain.finish)


def gather(engine: Engine, requests: list[Request]) -> list[tuple[list[int], str, str]]:
    """Submit all at once; each one's tokens, text and finish."""
    results: list[tuple[list[int], list[str], list[str]]] = [([], [], []) for _ in requests]
    done = threading.Semaphore(0)

    def deliver(number: int, event: Event) -> None:
        tokens, text, finish = results[number]
        tokens += [token.id for token in event.tokens]
        text.append(event.text)
        if event.finish:
            finish.append(event.finish)
            done.release()

    for number, request in enumerate(requests):
        engine.submit(request, lambda event, number=number: deliver(number, event))  # type: ignore[misc]
    for _ in requests:
        assert done.acquire(timeout=60)
    assert all(len(finish) == 1 for _, _, finish in results)
    return [(tokens, "".join(text), finish[0]) for tokens, text, finish in results]


@pytest.mark.parametrize("lookup", [0, 5])
def test_the_batch_does_not_change_answers(engine: Engine, opened: Session, lookup: int) -> None:
    many = prompts(40)
    settings_of = [
        replace(
            GREEDY if i % 2 else SAMPLED, max_new_tokens=5 + i, stop_ids=(opened.tokenizer.eos_id,), seed=i
        )
        for i in range(len(many))
    ]
    requests = [Request(tuple(p), s, lookup=lookup) for p, s in zip(many, settings_of, strict=True)]
    for got, prompt, sampling in zip(gather(engine, requests), many, settings_of, strict=True):
        alone = complete(opened, prompt, sampling)
        assert got == (alone.tokens, alone.text, alone.finish)


def test_stream_equals_the_whole_and_never_splits_a_character(opened: Session) -> None:
    for prompt in prompts(20):
        pieces = [piece for piece, _ in stream(opened, prompt, SAMPLED)]
        whole = complete(opened, prompt, SAMPLED)
        assert "".join(pieces) == whole.text
        assert whole.text == opened.tokenizer.decode(whole.tokens)


def test_stop_strings_end_the_text_before_them(opened: Session) -> None:
    prompt = prompts(3)[2]
    whole = complete(opened, prompt, SAMPLED)
    for start in range(1, len(whole.text) - 2):
        stop = whole.text[start : start + 2]
        if "\ufffd" in stop:
            continue
        cut = complete(opened, prompt, SAMPLED, (stop, "never this one"))
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish == "stop"


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="abcé日", max_size=30),
    st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), max_size=3),
)
def test_text_stream_is_cutting_the_whole(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """Token by token gives what cutting the whole text at the earliest stop gives."""
    machine = TextStream(tokenizer, stops)
    out = "".join(machine.push(int(i)) for i in tokenizer.encode(text)) + machine.finish()
    found = [text.index(stop) for stop in stops if stop in text]
    assert out == machine.text
    if not found:
        assert out == text
    else:
        # The first stop to be complete wins; it is one of those that are in the text.
        assert out in {text[:at] for at in found}
        assert not any(stop in out for stop in stops)


def test_held_back_is_the_longest_beginning_of_a_stop() -> None:
    assert held_back("one <|en", ["<|end|>"]) == 4
    assert held_back("aaa", ["aab"]) == 2
    assert held_back("abc", []) == 0


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_proposals_follow_an_earlier_occurrence(tokens: list[int], count: int) -> None:
    found = propose(tokens, count)
    places = [i for i in range(len(tokens) - NGRAM) if tokens[i : i + NGRAM] == tokens[len(tokens) - NGRAM :]]
    expected = tokens[places[-1] + NGRAM : places[-1] + NGRAM + count] if places else []
    assert found == expected


def test_a_failing_draw_ends_one_request(
    engine: Engine, opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom.serve import engine as room

    real = room.choose

    def choose(logits, context, sampling, randomness):  # type: ignore[no-untyped-def]
        if sampling.seed == 13:
            raise RuntimeError("a bad draw")
        return real(logits, context, sampling, randomness)

    monkeypatch.setattr(room, "choose", choose)
    many = prompts(4)
    results = gather(
        engine, [Request(tuple(p), replace(GREEDY, seed=s)) for p, s in zip(many, (1, 13, 2, 3), strict=True)]
    )
    assert [finish for _, _, finish in results] == ["length", "error", "length", "length"]


def test_cancelled_requests_free_their_place(opened: Session) -> None:
    with Engine(opened.decoder, opened.tokenizer, places=1) as engine:
        endless = replace(GREEDY, max_new_tokens=150)
        first = engine.submit(Request((5,), endless), lambda event: None)
        first.cancel()
        assert gather(engine, [Request((6,), GREEDY)])[0][2] in ("length", "stop")
        assert engine.statistics.cancelled == 1


def test_closing_answers_what_was_taken_in(opened: Session) -> None:
    events: list[Event] = []
    engine = Engine(opened.decoder, opened.tokenizer, places=2)
    for number in range(6):
        engine.submit(Request((number + 5,), GREEDY), events.append)
    engine.close(drain=True, seconds=60)
    assert sum(bool(event.finish) for event in events) == 6
    assert {event.finish for event in events if event.finish} <= {"stop", "length"}


def test_encode_prompt_begins_a_document_when_empty(opened: Session) -> None:
    assert encode_prompt(opened.tokenizer, "") == [opened.tokenizer.eos_id]
