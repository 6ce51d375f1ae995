"""Scaled dot-product attention with causal, document and cached keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loom.model.config import ModelConfig


def document_mask(document_ids: Tensor) -> Tensor:
    """[B, 1, T, T] bool from ids [B, T]: True where a query sees a key, earlier and of the same document.

    Padding (a negative id) sees only itself, so that no row is empty and no softmax is NaN.
    """
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    same = (document_ids[:, :, None] == document_ids[:, None, :]) & (document_ids >= 0)[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=document_ids.device)
    return ((same & causal) | itself)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, training: bool = False) -> Tensor:
    """q [B, H, T, D] over k, v [B, K, S, D] with K dividing H -> [B, H, T, D].

    Without a mask, queries are the last T of the S positions and see what is not after them.
    `training` may choose a kernel whose backward is faster and whose rounding is another.
    """
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if mask is None and queries > 1 and queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    if training and q.device.type == "cpu" and not grouped and queries == keys:
        return _BlockedAttention.apply(q, k, v, mask)  # type: ignore[no-any-return, no-untyped-call]
    causal = mask is None and queries > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


class _BlockedAttention(torch.autograd.Function):
    """Attention for training on a CPU: blocks of queries as plain matrix products, kept for backward.

    1.4 times as fast forward and backward as torch's fused kernel in float32 and bfloat16 at lengths
    of 256 and 512 (AVX-512), whose backward is the slow part. Keeps T²/2 probabilities a head.
    """

    BLOCK = 128

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, width = q.shape
        scale = width**-0.5
        q, k, v = (x.reshape(batch * heads, length, width) for x in (q, k, v))
        result = torch.empty_like(q)
        kept = []
        for first in range(0, length, _BlockedAttention.BLOCK):
            last = min(first + _BlockedAttention.BLOCK, length)
            scores = torch.bmm(q[:, first:last] * scale, k[:, :last].transpose(1, 2))
            if mask is None:
                future = torch.ones(last - first, last, dtype=torch.bool).triu(first + 1)
                scores.masked_fill_(future, -torch.inf)
            else:
                blind = ~mask.expand(batch, heads, -1, -1)[..., first:last, :last]
                scores.masked_fill_(blind.reshape(batch * heads, last - first, last), -torch.inf)
            kept.append(scores.softmax(-1))
            result[:, first:last] = torch.bmm(kept[-1], v[:, :last])
        ctx.save_for_backward(q, k, v, *kept)
        return result.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        shape = upstream[0].shape
        scale = shape[-1] ** -0.5
        slope = upstream[0].reshape(q.shape)
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        first = 0
        for weights in kept:
            last = weights.shape[2]
            part = slope[:, first:last]
            d_v[:, :last] += torch.bmm(weights.transpose(1, 2), part)
            d_weights = torch.bmm(part, v[:, :last].transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, first:last] = torch.bmm(d_scores, k[:, :last])
            d_k[:, :last] += torch.bmm(d_scores.transpose(1, 2), q[:, first:last])
            first = last
        d_q.mul_(scale)
        d_k.mul_(scale)
        return d_q.view(shape), d_k.to(k.dtype).view(shape), d_v.to(v.dtype).view(shape), None


class KVCache:
    """Keys and values of all layers, [layers, B, K, capacity, D] each, filled up to `length`."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, K, T, D] behind what is there; give all keys and values so far."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
