"""One forward a row gives what one forward a choice gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from loom.errors import LoomError
from loom.evals import scorer
from loom.evals.encode import encode_items
from loom.evals.items import score_items
from loom.evals.scorer import log_probabilities
from loom.model.attention import KVCache
from loom.model.product import quick_linear
from loom.model.transformer import Transformer
from loom.tasks.item import Item, choose
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import brute_force, random_model

ITEMS = [
    choose(0, "Question: what is the thing?\nAnswer:", ("the inner thing", "the inn", "a", "the"), 1),
    choose(1, "in the", ("x", "y"), 0, unconditioned="Answer:"),
    choose(2, "", ("the", "in the"), 0, joint=""),
    choose(3, "trailing ", ("one", "two"), 1, joint=""),
    Item(4, (("the cat", " is in"), ("the dog", " is in")), 1, ("is in", "is in")),
    choose(5, "<|user|>\nthe\n<|assistant|>\n", ("in the", "thing"), 0, joint="", chat=True),
]


def expected(model: Transformer, item: Item, tokenizer: Tokenizer) -> list[float]:
    pairs, _ = encode_items([item], tokenizer)
    return [brute_force(model, list(pair.context), list(pair.continuation)) for pair in pairs[0]]


def test_equal_to_one_forward_a_choice(model: Transformer, tokenizer: Tokenizer) -> None:
    scores = score_items(model, ITEMS, tokenizer, 64)
    for item, logp in zip(ITEMS, scores.logp, strict=True):
        np.testing.assert_allclose(logp, expected(model, item, tokenizer), atol=1e-4)
    free = scores.free[1]
    assert free is not None
    blank = choose(0, "Answer:", ITEMS[1].choices, 0)
    np.testing.assert_allclose(free, expected(model, blank, tokenizer), atol=1e-4)
    assert scores.read < scores.naive


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_the_batch_makes_no_difference(model: Transformer, tokenizer: Tokenizer, budget: int) -> None:
    whole = score_items(model, ITEMS, tokenizer, 64)
    other = score_items(model, ITEMS, tokenizer, 64, budget=budget)
    for one, two in zip(whole.logp, other.logp, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_slices_of_logits_make_no_difference(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_items(model, ITEMS, tokenizer, 64)
    monkeypatch.setattr(scorer, "LOGITS_AT_ONCE", 1000)
    for one, two in zip(whole.logp, score_items(model, ITEMS, tokenizer, 64).logp, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_what_is_too_long_loses_its_left_end(model: Transformer, tokenizer: Tokenizer) -> None:
    item = choose(0, "abcdefgh " * 20, ("the end", "the other end"), 0)
    scores = score_items(model, [item], tokenizer, 16)
    pairs, _ = encode_items([item], tokenizer)
    for pair, value in zip(pairs[0], scores.logp[0], strict=True):
        kept = [*pair.context, *pair.continuation][-17:]
        cut = len(kept) - len(pair.continuation)
        assert value == pytest.approx(brute_force(model, kept[:cut], kept[cut:]), abs=1e-4)
    assert scores.truncated == 2


def test_a_continuation_that_fills_the_context_is_counted_and_not_scored(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    long = choose(0, "context", ("word " * 20, "short"), 1)
    scores = score_items(model, [long, ITEMS[0]], tokenizer, 64)
    assert scores.lost == (0,)
    assert np.isnan(scores.logp[0]).all()
    np.testing.assert_allclose(scores.logp[1], expected(model, ITEMS[0], tokenizer), atol=1e-4)


def test_a_continuation_without_tokens_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(LoomError, match="no tokens of its own"):
        encode_items([choose(0, "text", ("", "b"), 0, joint="")], tokenizer)


def test_bfloat16_keeps_its_softmax_in_float32() -> None:
    """Only the logits are rounded: a bfloat16 softmax over 4,096 classes is off by hundredths of a nat."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 64, generator=generator).bfloat16()
    matrix = (0.3 * torch.randn(4096, 64, generator=generator)).bfloat16()
    which, targets = torch.tensor([0, 1, 1, 4]), torch.tensor([3, 4000, 17, 2048])
    logits = quick_linear(hidden, matrix)
    exact = logits.double().log_softmax(-1)[which, targets]
    found = log_probabilities(hidden, matrix, which, targets)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)
    rounded = logits.log_softmax(-1)[which, targets].double()
    assert float((rounded - exact).abs().max()) > 5e-3  # so the tolerance tells the two apart


def test_a_shared_header_is_read_once_and_changes_nothing(model: Transformer, tokenizer: Tokenizer) -> None:
    header = "The following are questions about the inner things.\n\n"
    items = [
        replace(choose(i, f"{header}Number {i}\nAnswer:", ("A", "the B", "in"), 0), header=header)
        for i in range(7)
    ]
    long = replace(choose(7, header + "word " * 40, ("A", "B"), 0), header=header)
    scores = score_items(model, [*items, long], tokenizer, 80)
    for item, logp in zip(items, scores.logp[:7], strict=True):
        np.testing.assert_allclose(logp, expected(model, item, tokenizer), atol=1e-4)
    assert scores.truncated == 2
    alone = score_items(model, [replace(long, header="")], tokenizer, 80)
    np.testing.assert_allclose(scores.logp[7], alone.logp[0], atol=1e-4)
    apart = score_items(model, [replace(item, header="") for item in [*items, long]], tokenizer, 80)
    assert scores.read < apart.read


@pytest.mark.parametrize("norm_after", [False, True])
def test_few_positions_are_those_of_a_whole_forward(norm_after: bool) -> None:
    """The last block computes only what is read, with a mask, without one, and behind a cache."""
    config = replace(random_model().config, norm_after=norm_after)
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(4))
    at = torch.tensor([0, 7, 19, 41])
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(3, 1, 20, 20).clone()
    mask[1, :, 5:, :3] = False
    with torch.no_grad():
        for given in (None, mask):
            whole = model(ids, attn_mask=given).flatten(0, 1)[at]
            torch.testing.assert_close(model(ids, attn_mask=given, at=at), whole, rtol=1e-5, atol=1e-4)
        whole = model(ids[:1]).flatten(0, 1)[[12, 15]]
        cache = KVCache(config, 1, 20)
        model(ids[:1, :10], cache=cache, at=torch.tensor([0]))
        behind = model(ids[:1, 10:], cache=cache, at=torch.tensor([2, 5]))
        torch.testing.assert_close(behind, whole, rtol=1e-5, atol=1e-4)
