"""Generation agrees with transformers, and a row never depends on its batch."""

from __future__ import annotations

import pytest
import torch

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.generate import Generator, generate
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.model.initialize import initialize
from loom.model.sampling import Sampling, penalize, truncate
from loom.model.transformer import Transformer

GREEDY = Sampling(max_new_tokens=24, temperature=0)
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [100, 101]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(ModelConfig(64, 2, 4, 176, 256, 64))
    initialize(model, 3)
    return model.eval()


@pytest.fixture(scope="module")
def oracle(model: Transformer):
    transformers = pytest.importorskip("transformers")
    values = config_to_huggingface(model.config, eos_id=255, pad_id=254)
    oracle = transformers.OlmoForCausalLM(transformers.OlmoConfig(**values)).eval()
    oracle.load_state_dict(to_huggingface(model.state_dict(), model.config))
    return oracle


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_those_of_transformers(model: Transformer, oracle, penalty: float) -> None:
    for prompt in PROMPTS:
        theirs = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24, do_sample=False, repetition_penalty=penalty, eos_token_id=None,
        )[0, len(prompt) :].tolist()  # fmt: skip
        settings = Sampling(max_new_tokens=24, temperature=0, repetition_penalty=penalty)
        assert generate(model, [prompt], settings)[0].tokens == theirs


def test_a_row_does_not_depend_on_its_batch(model: Transformer) -> None:
    settings = [
        GREEDY,
        Sampling(20, 0.8, top_p=0.9, seed=4),
        Sampling(5, 1.5, top_k=9, seed=1),
        Sampling(24, 1.0, seed=2),
    ]
    together = generate(model, PROMPTS, settings)
    for prompt, setting, result in zip(PROMPTS, settings, together, strict=True):
        alone = generate(model, [prompt], setting)[0]
        assert result.tokens == alone.tokens and result.finish == alone.finish
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_stop_ids_end_a_row_and_are_not_given(model: Transformer) -> None:
    tokens = generate(model, [PROMPTS[0]], GREEDY)[0].tokens
    stop = tokens[5]
    cut = generate(model, [PROMPTS[0]], Sampling(24, 0, stop_ids=(stop,)))[0]
    assert cut.tokens == tokens[: tokens.index(stop)] and cut.finish == "stop"


def test_callers_end_rows_and_context_ends_the_rest(model: Transformer) -> None:
    generator = Generator(model, PROMPTS[:2], Sampling(1000, 0))
    for number, _ in enumerate(generator):
        if number == 3:
            generator.finish(1)
    first, second = generator.results
    assert len(first.tokens) == 64 - 3 and first.finish == "length"
    assert len(second.tokens) == 4 and second.finish == "stop"


def test_prompts_that_cannot_be_continued(model: Transformer) -> None:
    for prompt, words in (([], "empty prompt"), ([1] * 64, "context holds 64"), ([256], "outside")):
        with pytest.raises(LoomError, match=words):
            generate(model, [prompt], GREEDY)
    with pytest.raises(LoomError, match="top_p"):
        Sampling(top_p=0)


def test_truncation_is_that_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(50, generator=generator) * 3
        for ours, theirs in (
            (Sampling(top_k=7), process.TopKLogitsWarper(7)),
            (Sampling(top_p=0.7), process.TopPLogitsWarper(0.7)),
            (Sampling(min_p=0.1), process.MinPLogitsWarper(0.1)),
        ):
            assert torch.equal(
                truncate(logits, ours), theirs(torch.zeros(1, 1, dtype=torch.long), logits[None])[0]
            )
        seen = torch.randint(0, 50, (1, 12), generator=generator)
        expected = process.RepetitionPenaltyLogitsProcessor(1.4)(seen, logits[None].clone())[0]
        assert torch.equal(penalize(logits, seen[0].tolist(), 1.4), expected)
