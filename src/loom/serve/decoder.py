"""The transformer's forward pass for decoding: few large products, one key-value cache a sequence.

It computes what `loom.model.transformer.Transformer` computes. q, k and v are one product and so are
gate and up (their matrices are laid together and the model's own weights become views of them), and
each sequence attends over its own cache, so that it neither pays for nor sees another's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loom.model.attention import attend
from loom.model.transformer import Block, Norm, Transformer, rotation_angles

FIRST_ROOM = 128  # positions a cache begins with; it doubles when it is full


class Cache:
    """Keys and values of one sequence, [layers, K, room, D] each, the first `length` positions filled."""

    def __init__(self, layers: int, heads: int, width: int, limit: int, dtype: torch.dtype) -> None:
        self.limit = limit
        self.length = 0
        shape = (2, layers, heads, min(FIRST_ROOM, limit), width)
        self._data = torch.empty(shape, dtype=dtype)

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        needed, room = self.length + count, self._data.shape[3]
        if needed > self.limit:
            raise ValueError(f"the context holds {self.limit} positions, {needed} are needed")
        if needed > room:
            while room < needed:
                room *= 2
            shape = list(self._data.shape)
            shape[3] = min(room, self.limit)
            grown = torch.empty(shape, dtype=self._data.dtype)
            grown[:, :, :, : self.length] = self._data[:, :, :, : self.length]
            self._data = grown

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k, v [K, T, D] behind what is there; all keys and values [K, length + T, D] so far."""
        end = self.length + k.shape[1]
        keys, values = self._data[0, layer, :, :end], self._data[1, layer, :, :end]
        keys[:, self.length :] = k
        values[:, self.length :] = v
        return keys, values

    def cut(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)


@dataclass(frozen=True)
class _Layer:
    block: Block
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Decoder:
    """`model` ready to decode. Its matrices of one layer are laid together; the model stays usable."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.dtype = model.compute_dtype or model.embed.weight.dtype
        self.widths = [self.config.d_model, self.config.kv_width, self.config.kv_width]
        with torch.no_grad():
            self.layers = [self._layer(block) for block in model.blocks if isinstance(block, Block)]
            positions = torch.arange(self.config.context_length)
            cos, sin = rotation_angles(positions, self.config.head_dim, self.config.rope_theta)
            self.cos, self.sin = cos[:, None], sin[:, None]  # [context, 1, D / 2]

    def _layer(self, block: Block) -> _Layer:
        a, m = block.attention, block.mlp
        return _Layer(
            block,
            _together(a.q.weight, a.k.weight, a.v.weight, dtype=self.dtype),
            a.out.weight.detach().to(self.dtype),
            _together(m.gate.weight, m.up.weight, dtype=self.dtype),
            m.down.weight.detach().to(self.dtype),
        )

    def cache(self) -> Cache:
        c = self.config
        return Cache(c.n_layers, c.kv_heads, c.head_dim, c.context_length, self.dtype)

    @torch.inference_mode()
    def forward(
        self, parts: Sequence[tuple[Cache, Sequence[int]]], every: bool = False, last: int = 1
    ) -> Tensor:
        """Feed each sequence its new tokens, and give logits [n, V] in float32.

        n counts the last `last` tokens of each part in order or, with `every`, all tokens of all parts.
        Caches are extended.
        """
        counts = [len(tokens) for _, tokens in parts]
        for (cache, _), count in zip(parts, counts, strict=True):
            cache.reserve(count)
        positions = [
            p
            for (cache, _), count in zip(parts, counts, strict=True)
            for p in range(cache.length, cache.length + count)
        ]
        flat = torch.tensor([token for _, tokens in parts for token in tokens])
        place = torch.tensor(positions)
        cos, sin = self.cos[place], self.sin[place]
        x = F.embedding(flat, self.model.embed.weight).to(self.dtype)
        for i, layer in enumerate(self.layers):
            x = self._block(i, layer, x, cos, sin, parts, counts)
        for (cache, _), count in zip(parts, counts, strict=True):
            cache.length += count
        if not every and len(flat) > last * len(parts):
            ends = torch.tensor(counts).cumsum(0)[:, None] - torch.arange(last, 0, -1)
            x = x[ends.flatten()]
        x = self.model.norm(x)
        return F.linear(x, self.model.output_matrix.to(x.dtype)).float()

    def _block(
        self,
        i: int,
        layer: _Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        parts: Sequence[tuple[Cache, Sequence[int]]],
        counts: Sequence[int],
    ) -> Tensor:
        block = layer.block
        h = x if block.after else block.attention_norm(x)
        h = self._attention(i, layer, h, cos, sin, parts, counts)
        x = x + (block.attention_norm(h) if block.after else h)
        h = x if block.after else block.mlp_norm(x)
        gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
        h = F.linear(F.silu(gate) * up, layer.down)
        return x + (block.mlp_norm(h) if block.after else h)

    def _attention(
        self,
        i: int,
        layer: _Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        parts: Sequence[tuple[Cache, Sequence[int]]],
        counts: Sequence[int],
    ) -> Tensor:
        attention, d = layer.block.attention, self.config.head_dim
        q, k, v = torch.split(F.linear(x, layer.qkv), self.widths, dim=-1)
        if isinstance(attention.q_norm, Norm) and isinstance(attention.k_norm, Norm):
            q, k = attention.q_norm(q), attention.k_norm(k)
        if (bound := self.config.clip_qkv) is not None:
            q, k, v = q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound)
        q = _turn(q.reshape(len(x), -1, d), cos, sin).transpose(0, 1)  # [H, n, D]
        k = _turn(k.reshape(len(x), -1, d), cos, sin).transpose(0, 1)
        v = v.reshape(len(x), -1, d).transpose(0, 1)
        mixed, start = [], 0
        for (cache, _), count in zip(parts, counts, strict=True):
            end = start + count
            keys, values = cache.store(i, k[:, start:end], v[:, start:end])
            mixed.append(attend(q[None, :, start:end], keys[None], values[None], None)[0])
            start = end
        together = mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)
        return F.linear(together.transpose(0, 1).flatten(1), layer.out)


def _together(*weights: torch.nn.Parameter, dtype: torch.dtype) -> Tensor:
    """The matrices one below the other in `dtype`; where that is their own type they become views of it."""
    joined = torch.cat([w.detach() for w in weights]).to(dtype)
    start = 0
    for weight in weights:
        if weight.dtype == dtype:
            weight.data = joined[start : start + weight.shape[0]]
        start += weight.shape[0]
    return joined


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate dimension pairs (i, i + D / 2) of x [n, H, D] by angles [n, 1, D / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
