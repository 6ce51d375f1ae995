"""Keys and values of tokens that many rows follow: read once, shared by every row of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loom.model.attention import KVCache
from loom.model.transformer import Transformer


@dataclass(frozen=True)
class Prefix:
    """[layers, 1, heads, n, D] keys and values of n tokens."""

    keys: Tensor
    values: Tensor

    @classmethod
    def read(cls, model: Transformer, tokens: Sequence[int], device: torch.device | str) -> Prefix:
        dtype = model.compute_dtype or model.embed.weight.dtype
        cache = KVCache(model.config, 1, len(tokens), dtype, device)
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=device)
            model(ids, cache=cache, at=torch.zeros(1, dtype=torch.int64, device=device))
        return cls(cache.keys, cache.values)

    def cache(self, batch: int) -> SharedCache:
        return SharedCache(self)


class SharedCache:
    """What the model takes for a cache: the prefix stands before each row, and rows are not kept."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix
        self.length = prefix.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, n + T, D] of the prefix and of k, v [B, heads, T, D]."""
        rows = k.shape[0]
        return (
            torch.cat([self.prefix.keys[layer].expand(rows, -1, -1, -1), k], dim=2),
            torch.cat([self.prefix.values[layer].expand(rows, -1, -1, -1), v], dim=2),
        )
