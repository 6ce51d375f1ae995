"""Chunked losses are the plain ones, value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from loom.train import loss as module
from loom.train.loss import token_logprobs, weighted_loss


@pytest.fixture(params=[64, 1 << 20], ids=["many-chunks", "one-chunk"])
def chunks(request, monkeypatch) -> None:
    monkeypatch.setattr(module, "chunk_tokens", lambda *_: request.param)


def case(tokens: int = 200, width: int = 16, rows: int = 50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    matrix = torch.randn(rows, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, rows, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    labels[::7], weights[::7] = -100, 0
    return hidden, matrix, labels, weights


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_weighted_loss_and_its_gradient(z_loss: float) -> None:
    hidden, matrix, labels, weights = case()
    logits = hidden @ matrix.T
    plain = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100) * weights
    z = logits.logsumexp(-1).square() * weights
    expected = torch.autograd.grad((plain + z_loss * z).sum() * 3, (hidden, matrix))
    total, z_total = weighted_loss(hidden, matrix, labels, weights, z_loss)
    found = torch.autograd.grad(total * 3, (hidden, matrix))
    torch.testing.assert_close(total, (plain + z_loss * z).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z_total, z.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(weighted_loss(hidden, matrix, labels, weights, z_loss)[0], total.detach())


@pytest.mark.usefixtures("chunks")
def test_token_logprobs_and_their_gradient() -> None:
    hidden, matrix, labels, weights = case()
    plain = -F.cross_entropy(hidden @ matrix.T, labels, reduction="none", ignore_index=-100)
    found = token_logprobs(hidden, matrix, labels)
    torch.testing.assert_close(found, plain)
    upstream = weights * 2 - 0.3
    torch.testing.assert_close(
        torch.autograd.grad(found, (hidden, matrix), upstream),
        torch.autograd.grad(plain, (hidden, matrix), upstream),
    )


def test_bf16_products_sum_in_float32() -> None:
    hidden, matrix, labels, weights = case()
    total, _ = weighted_loss(hidden.bfloat16(), matrix, labels, weights)
    gradient = torch.autograd.grad(total, matrix)[0]
    exact = torch.autograd.grad(weighted_loss(hidden, matrix, labels, weights)[0], matrix)[0]
    assert gradient.dtype == torch.float32
    assert float((gradient - exact).norm() / exact.norm()) < 0.02


@pytest.mark.usefixtures("chunks")
def test_it_is_torchs_own_fused_loss_where_that_is_exact() -> None:
    """In float32, with whole weights; what torch's own lacks is in `loom.train.loss`."""
    if not hasattr(F, "linear_cross_entropy"):  # torch before 2.13
        return
    hidden, matrix, labels, _ = case()
    theirs = F.linear_cross_entropy(
        hidden,
        matrix,
        labels,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=64),
    )
    expected = torch.autograd.grad(theirs, (hidden, matrix))
    mine, _ = weighted_loss(hidden, matrix, labels, (labels >= 0).float())
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, (hidden, matrix)), expected, rtol=1e-4, atol=1e-4)
