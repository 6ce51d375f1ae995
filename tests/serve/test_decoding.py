"""Decoding equals the model and transformers, alone, in a batch, with lookup, streamed or not."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import numpy as np
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
from loom.serve.decoder import Decoder, Reading
from loom.serve.engine import Engine, Event, Request
from loom.serve.lookup import NGRAM, propose
from loom.serve.rows import exp, log_sum, narrowed
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
    parts, single = decoder.cache(), decoder.cache()
    torch.testing.assert_close(
        torch.from_numpy(decoder.read(parts, ids[:33].tolist())), expected[32], atol=1e-5, rtol=1e-5
    )
    rest = decoder.step([(parts, ids[33:].tolist())])
    torch.testing.assert_close(torch.from_numpy(rest), expected[33:], atol=1e-5, rtol=1e-5)
    decoder.read(single, ids[:1].tolist())
    for i, token in enumerate(ids[1:].tolist(), start=1):
        row = torch.from_numpy(decoder.step([(single, [token])])[0])
        torch.testing.assert_close(row, expected[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [SECOND, CLIPPED])
def test_a_long_prompt_is_read_as_the_model_reads_it(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Transformer(replace(config, context_length=256)).eval()
    initialize(model, 1)
    ids = torch.arange(200) * 31 % 500
    with torch.inference_mode():
        expected = model(ids[None])[0, -1]
    decoder = Decoder(model)
    whole = decoder.read(decoder.cache(), ids.tolist())
    torch.testing.assert_close(torch.from_numpy(whole), expected, atol=1e-5, rtol=1e-5)
    cache = decoder.cache()
    reading, found = Reading(decoder, cache, ids.tolist()), None
    while found is None:  # left between layers, as the server does for others
        assert cache.length == 0
        other = decoder.cache()
        decoder.step([(other, [7])])
        found = reading.go_on(1)
    assert np.array_equal(found, whole)
    assert cache.length == 200
    monkeypatch.setattr("loom.serve.decoder.PIECE", 70)
    pieces = torch.from_numpy(decoder.read(decoder.cache(), ids.tolist()))
    torch.testing.assert_close(pieces, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [SECOND, CLIPPED, CONFIG])
def test_bfloat16_is_near_and_rounds_weights_only(config: ModelConfig) -> None:
    """A step with bfloat16 weights is the float32 step of the rounded weights, but for rounded caches."""
    model = Transformer(config).eval()
    initialize(model, 1)
    half = Transformer(config)
    half.load_state_dict(model.state_dict())
    narrow, wide = Decoder(half.to(torch.bfloat16).eval()), Decoder(_rounded(model))
    ids = (torch.arange(60) * 31 % 500).tolist()
    caches = narrow.cache(), wide.cache()
    narrow.read(caches[0], ids[:1])
    wide.read(caches[1], ids[:1])
    for token in ids[1:]:
        got = torch.from_numpy(narrow.step([(caches[0], [token])])[0])
        exact = torch.from_numpy(wide.step([(caches[1], [token])])[0])
        assert float((got - exact).abs().max()) < 0.02 * float(exact.abs().max())


def _rounded(model: Transformer) -> Transformer:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("config", [SECOND, CLIPPED, CONFIG])
def test_a_row_is_computed_as_if_it_were_alone(config: ModelConfig, narrow: bool, threads: int) -> None:
    """Bit for bit: alone, beside up to 17 others, in one pass over several tokens, with helping threads."""
    model = Transformer(config).eval()
    initialize(model, 5)
    if narrow:
        model = model.to(torch.bfloat16)
    alone, decoder = Decoder(model, 1), Decoder(model, threads)
    many = [[i % 500 for i in prompt] for prompt in prompts(18, 30)]
    caches = [decoder.cache() for _ in many]
    for cache, prompt in zip(caches, many, strict=True):
        decoder.read(cache, prompt)
    ahead = [[7 * i % 500 + j for j in range(1 + i % 4)] for i in range(len(many))]
    together = iter(decoder.step(list(zip(caches, ahead, strict=True))))
    for prompt, tokens in zip(many, ahead, strict=True):
        cache = alone.cache()
        alone.read(cache, prompt)
        for token in tokens:
            assert np.array_equal(next(together), alone.step([(cache, [token])])[0])


@settings(deadline=None)
@given(st.lists(st.floats(-100, 80, width=32), min_size=1, max_size=70))
def test_exponentials_and_their_sum(values: list[float]) -> None:
    x = np.array(values, np.float32)
    assert exp(x[0]) == pytest.approx(float(np.exp(max(float(x[0]), -87.0))), rel=3e-7)
    expected = float(np.logaddexp.reduce(x.astype(np.float64)))
    assert float(log_sum(x, 0, len(x))) == pytest.approx(expected, abs=2e-5)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_narrowing_rounds_as_torch_does(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    if np.isnan(value[0]):
        return
    expected = torch.from_numpy(value).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert narrowed(value[0]) == expected[0]


def test_cache_holds_the_context_and_no_more(opened: Session) -> None:
    cache = opened.decoder.cache()
    opened.decoder.read(cache, [1] * CONFIG.context_length)
    with pytest.raises(ValueError, match="160"):
        opened.decoder.step([(cache, [1])])


@pytest.mark.slow
def test_greedy_equals_transformers_on_200_prompts(
    opened: Session, model: Transformer, tmp_path: object
) -> None:
    import transformers

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
    if not places:
        assert found == []
        return
    grown = list(tokens)
    for at in range(count):  # as the text would go on if it went on as it did before
        grown.append(grown[places[-1] + NGRAM + at])
    assert found == grown[len(tokens) :]


def test_a_failing_draw_ends_one_request(
    engine: Engine, opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom.serve import engine as room

    real = room.draw

    def draw(logits, context, sampling, randomness):  # type: ignore[no-untyped-def]
        if sampling.seed == 13:
            raise RuntimeError("a bad draw")
        return real(logits, context, sampling, randomness)

    monkeypatch.setattr(room, "draw", draw)
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
