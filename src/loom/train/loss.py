"""Cross-entropy from hidden states without ever holding [tokens, vocabulary] in float32.

`weighted_loss` computes its gradient in the forward pass, a chunk of tokens at a time, while the chunk's
logits are at hand: three matrix products in all, as many as an unchunked loss, and no logits kept.

torch 2.13 has one of its own, `torch.nn.functional.linear_cross_entropy`, which is not used: given bf16 it
gives the sum in bf16 (19,200 for 19,294), its output matrix's gradient is off by 4.1e-3 against 1.7e-3 here,
its usual choice takes 2.6 times the processor time on a CPU, and it knows neither weights nor z-loss. A
test compares the two in float32, where they agree.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loom.train.memory import chunk_tokens


def _slopes(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of w cross-entropy, sum of w log²Z, d of w (cross-entropy + z_loss log²Z) by the logits)."""
    slope = torch.softmax(logits, -1, dtype=torch.float32)
    # Of the largest logit the probability is 1 over the sum of exponentials, so log Z takes no second pass of them.
    normaliser = logits.amax(-1).float() - slope.amax(-1).log_()
    total = ((normaliser - logits.gather(1, labels)[:, 0].float()) * weights).sum()
    if z_loss:
        slope.mul_((1 + 2 * z_loss * normaliser)[:, None])
    slope.scatter_add_(1, labels, torch.full_like(slope[:, :1], -1))
    if not (slope.device.type == "cpu" and bool((weights == 1).all())):
        slope.mul_(weights[:, None])
    return total, (normaliser.square() * weights).sum(), slope


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor, z_loss: float, need: bool
    ) -> tuple[Tensor, Tensor]:
        product = matrix.to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if need else None
        d_matrix = torch.zeros(matrix.shape, dtype=torch.float32, device=matrix.device) if need else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        z_total = torch.zeros_like(total)
        size = chunk_tokens(matrix.shape[0], hidden.shape[0], hidden.device.type)
        # On a CPU the softmax goes through the chunk in pieces that stay in cache; logits become slopes in place.
        piece = max(1, (1 << 20) // matrix.shape[0]) if hidden.device.type == "cpu" else size
        for first in range(0, hidden.shape[0], size):
            part = slice(first, first + size)
            x, y, w = hidden[part], labels[part, None].clamp(min=0), weights[part]
            logits = F.linear(x, product)
            for begin in range(0, x.shape[0], piece):
                rows = slice(begin, begin + piece)
                loss, z, slope = _slopes(logits[rows], y[rows], w[rows], z_loss)
                total += loss
                z_total += z
                logits[rows] = slope
            if d_hidden is None or d_matrix is None:
                continue
            torch.mm(logits, product, out=d_hidden[part])
            if hidden.dtype == torch.float32:
                d_matrix.addmm_(logits.t(), x)
            else:
                d_matrix += logits.t() @ x
        ctx.gradients = (d_hidden, d_matrix, matrix.dtype)
        ctx.mark_non_differentiable(z_total)
        return total + z_loss * z_total, z_total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_matrix, dtype = ctx.gradients
        ctx.gradients = None
        return d_hidden.mul_(upstream[0]), d_matrix.mul_(upstream[0]).to(dtype), None, None, None, None


def weighted_loss(
    hidden: Tensor, matrix: Tensor, labels: Tensor, weights: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(sum of w (cross-entropy + z_loss log²Z), sum of w log²Z) over tokens, float32 scalars, nats.

    hidden [N, d], matrix [V, d], labels [N] (below 0: no label, weight must be 0), weights [N] float32.
    Only the first is differentiable. z-loss: PaLM, section 5.
    """
    # Within a Function gradients always look disabled, so whether they are needed is asked here.
    need = torch.is_grad_enabled() and hidden.requires_grad
    total, z_total = _WeightedLoss.apply(hidden, matrix, labels, weights, z_loss, need)  # type: ignore[no-untyped-call]
    return total, z_total


def token_logprobs(hidden: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """log p(label) [N] in float32, 0 where the label is below 0; chunks are recomputed in backward."""
    size = chunk_tokens(matrix.shape[0], hidden.shape[0], hidden.device.type)

    def part(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        scores = F.linear(x, weight.to(x.dtype)).float()
        return scores.gather(1, y.clamp(min=0)[:, None])[:, 0] - scores.logsumexp(-1)

    pieces = []
    for first in range(0, hidden.shape[0], size):
        x, y = hidden[first : first + size], labels[first : first + size]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(part, x, matrix, y, use_reentrant=False))
        else:
            pieces.append(part(x, matrix, y))
    return torch.cat(pieces).masked_fill(labels < 0, 0.0)
