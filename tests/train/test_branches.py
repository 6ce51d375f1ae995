"""A pair laid out with its prompt once gives the log-probabilities of two documents of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.train.branches import Side, branch_mask, lay_out, shared_prompt
from loom.train.config import DpoConfig
from loom.train.objective import dpo_loss

PAD = 1
SHAPE = ModelConfig(d_model=32, n_layers=2, n_heads=2, mlp_width=64, vocab_size=64, context_length=64)


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(SHAPE)
    initialize(made, 3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return made.train()


def side(prompt: list[int], answer: list[int]) -> Side:
    return Side(np.array(prompt + answer), np.array([0] * len(prompt) + [1] * len(answer), np.uint8))


tokens = st.lists(st.integers(2, 63), min_size=1, max_size=12)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Side, Side]:
    prompt = draw(tokens)
    other = prompt if draw(st.booleans()) else draw(tokens)  # also prompts that differ somewhere
    return side(prompt, draw(tokens)), side(other, draw(tokens))


def alone(model: Transformer, one: Side) -> torch.Tensor:
    ids = torch.from_numpy(one.ids)[None]
    logs = model(ids).log_softmax(-1)[0, :-1]
    picked: torch.Tensor = logs.gather(1, ids[0, 1:, None])[:, 0]
    return (picked * torch.from_numpy(one.weights[1:])).sum()


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(pairs(), min_size=1, max_size=5))
def test_log_probabilities_are_those_of_separate_documents(
    model: Transformer, batch: list[tuple[Side, Side]]
) -> None:
    laid = lay_out(batch, PAD)
    ids, weights = torch.from_numpy(laid.ids), torch.from_numpy(laid.weights)
    documents, branches = torch.from_numpy(laid.documents), torch.from_numpy(laid.branches)
    logs = model(
        ids, position_ids=torch.from_numpy(laid.positions), attn_mask=branch_mask(documents, branches)
    ).log_softmax(-1)
    picked = logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * weights[:, 1:]
    for number, both in enumerate(batch):
        for branch, one in enumerate(both, start=1):
            # A label belongs to the answer that its own token lies in.
            mine = (documents[:, 1:] == number) & (branches[:, 1:] == branch)
            assert float((picked * mine).sum().detach()) == pytest.approx(
                float(alone(model, one).detach()), rel=1e-4, abs=1e-4
            )
    assert weights.sum() == sum(int(one.weights[1:].sum()) for both in batch for one in both)


@given(pair=pairs())
def test_what_is_shared_is_equal_and_holds_no_answer(pair: tuple[Side, Side]) -> None:
    shared = shared_prompt(*pair)
    assert pair[0].ids[:shared].tolist() == pair[1].ids[:shared].tolist()
    assert not pair[0].weights[1:shared].any()
    assert not pair[1].weights[1:shared].any()


def test_gradients_are_those_of_separate_documents(model: Transformer) -> None:
    both = side([5, 6, 7, 8, 9], [10, 11, 12]), side([5, 6, 7, 8, 9], [20, 21])
    laid = lay_out([both], PAD)
    assert int((laid.documents >= 0).sum()) == 4 + (1 + 3) + (1 + 2)
    ids, branches = torch.from_numpy(laid.ids), torch.from_numpy(laid.branches)
    logs = model(
        ids,
        position_ids=torch.from_numpy(laid.positions),
        attn_mask=branch_mask(torch.from_numpy(laid.documents), branches),
    ).log_softmax(-1)
    picked = logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * torch.from_numpy(laid.weights)[:, 1:]
    margin = (picked * (branches[:, 1:] == 1)).sum() - (picked * (branches[:, 1:] == 2)).sum()
    model.zero_grad()
    margin.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (alone(model, both[0]) - alone(model, both[1])).backward()
    for mine, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert float((mine - parameter.grad).norm()) <= 1e-5 * float(parameter.grad.norm()) + 1e-7


def test_dpo_loss_by_hand() -> None:
    """beta 0.1; h of 0, 10 and -10: ln 2, -ln sigmoid(1), -ln sigmoid(-1)."""
    h = torch.tensor([0.0, 10.0, -10.0])
    plain = [math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(1))]
    assert dpo_loss(h, DpoConfig(beta=0.1)).tolist() == pytest.approx(plain)
    smooth = [math.log(2), 0.8 * plain[1] + 0.2 * plain[2], 0.8 * plain[2] + 0.2 * plain[1]]
    assert dpo_loss(h, DpoConfig(beta=0.1, label_smoothing=0.2)).tolist() == pytest.approx(smooth)
    assert dpo_loss(h, DpoConfig(beta=0.1, loss="ipo")).tolist() == pytest.approx([25, 25, 225])
