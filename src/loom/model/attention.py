"""Scaled dot-product attention with causal, document and cached keys."""

from __future__ import annotations

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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, H, T, D] over k, v [B, K, S, D] with K dividing H -> [B, H, T, D].

    Without a mask, queries are the last T of the S positions and see what is not after them.
    """
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if mask is None and queries > 1 and queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    causal = mask is None and queries > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


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
