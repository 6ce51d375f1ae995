"""The transformer, top to bottom: norm, rotation, attention, MLP, block, model.

Groeneveld et al. 2024 (OLMo, section 2.1) for the architecture, OLMo et al. 2025 (2 OLMo 2 Furious,
section 3) for the options. Weights may be kept in float32 while `compute_dtype` is bfloat16: every
product casts its weight to the type of its input, and gradients arrive in the weight's own type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loom.model.attention import KVCache, attend, document_mask
from loom.model.config import ModelConfig

Readout = Callable[[Tensor, Tensor], Any]
"""(hidden states [..., d], output matrix [V, d]) -> anything; runs inside the model's forward."""


class Linear(nn.Module):
    """y = x Wᵀ with the weight cast to the type of x."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """LayerNorm without parameters, or RMSNorm with a gain; computed in float32, returned in x's type."""

    def __init__(self, width: int, config: ModelConfig, kind: str | None = None) -> None:
        super().__init__()
        self.width, self.eps = width, config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if (kind or config.norm) == "rmsnorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return F.layer_norm(x.float(), (self.width,), None, None, self.eps).to(x.dtype)
        full = x.float()
        full = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * full).to(x.dtype)


def rotation_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [..., head_dim / 2] in float32 of positions times theta^(-2i/head_dim) (RoFormer, 3.2.2)."""
    powers = torch.arange(0, head_dim, 2, dtype=torch.float, device=positions.device) / head_dim
    angles = positions[..., None].float() * (1.0 / (theta**powers))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension pairs (i, i + head_dim / 2) of x [B, T, H, head_dim]; cos, sin [B or 1, T, 1, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q = Linear(config.d_model, config.d_model)
        self.k = Linear(config.d_model, config.kv_width)
        self.v = Linear(config.d_model, config.kv_width)
        self.out = Linear(config.d_model, config.d_model)
        self.q_norm = Norm(config.d_model, config, "rmsnorm") if config.qk_norm else None
        self.k_norm = Norm(config.kv_width, config, "rmsnorm") if config.qk_norm else None
        self.exchange: Callable[[Tensor], Tensor] | None = None
        """In training, where x is a part of its row: keys or values of the part -> of the whole row."""

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        at: Tensor | None = None,
    ) -> Tensor:
        """Like x [B, T, d], or [n, d] at the flat positions `at` [n]."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if (bound := self.config.clip_qkv) is not None:
            q, k, v = q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound)
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = rotate(q.view(heads), cos, sin).transpose(1, 2)
        k = rotate(k.view(heads), cos, sin).transpose(1, 2)
        v = v.view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if self.exchange is not None and self.training:
            k, v = self.exchange(k), self.exchange(v)
        seen = attend(q, k, v, mask, self.training).transpose(1, 2).reshape(x.shape)
        mixed: Tensor = self.out(seen if at is None else seen.flatten(0, 1)[at])
        return mixed


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(config.d_model, config.mlp_width)
        self.up = Linear(config.d_model, config.mlp_width)
        self.down = Linear(config.mlp_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return down


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.after = config.norm_after
        self.attention = Attention(config)
        self.mlp = Mlp(config)
        self.attention_norm = Norm(config.d_model, config)
        self.mlp_norm = Norm(config.d_model, config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        at: Tensor | None = None,
    ) -> Tensor:
        """[B, T, d]; with flat positions `at` [n] only what is there, [n, d]: all keys, but no other MLP."""
        inside = x if self.after else self.attention_norm(x)
        mixed = self.attention(inside, cos, sin, mask, cache, layer, at)
        x = x if at is None else x.flatten(0, 1)[at]
        if self.after:
            x = x + self.attention_norm(mixed)
            x = x + self.mlp_norm(self.mlp(x))
        else:
            x = x + mixed
            x = x + self.mlp(self.mlp_norm(x))
        return x


class Transformer(nn.Module):
    """Parameters are uninitialised; see `loom.model.initialize`.

    `compute_dtype` None computes in the weights' own type.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embed = nn.Embedding(
            config.vocab_size, config.d_model, _weight=torch.empty(config.vocab_size, config.d_model)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = Norm(config.d_model, config)
        self.head = None if config.tied else Linear(config.d_model, config.vocab_size)

    @property
    def output_matrix(self) -> Tensor:
        """[V, d]: the embedding matrix where tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attn_mask: Tensor | None = None,
        cache: KVCache | None = None,
        at: Tensor | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits [B, T, V], or [n, V] at the flat positions `at` [n] of the [B * T] grid.

        `position_ids` [B, T] feed the rotation (default: from the cache's length on). `document_ids`
        [B, T]: a token sees earlier tokens of equal id only; negative ids are padding. `attn_mask`:
        bool, True where a query may look, broadcast to [B, heads, T, keys]; it replaces the causal
        mask. `cache` is extended by T keys and values. `readout` receives the normalised hidden states
        and the output matrix and its result is returned instead of logits: losses are computed there,
        so that parallel wrappers see one forward.
        """
        length = input_ids.shape[1]
        past = 0 if cache is None else cache.length
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
        if document_ids is not None:
            if attn_mask is not None or cache is not None:
                raise ValueError("document_ids cannot be joined with attn_mask or a cache")
            attn_mask = document_mask(document_ids)
        cos, sin = rotation_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        x = self.embed(input_ids)
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype)
        # Nothing reads the last block's other positions; where most are read, one kind of block is simpler.
        narrow = at is not None and not self.training and 2 * at.shape[0] <= input_ids.numel()
        for layer, block in enumerate(self.blocks):
            # Without the layer's number all blocks are one compiled graph.
            more = () if cache is None else (cache, layer)
            if narrow and layer == self.config.n_layers - 1:
                x = block(x, cos, sin, attn_mask, *more, at=at)
            else:
                x = block(x, cos, sin, attn_mask, *more)
        if cache is not None:
            cache.length += length
        if at is not None and not narrow:
            x = x.flatten(0, 1)[at]
        x = self.norm(x)
        if readout is not None:
            return readout(x, self.output_matrix)
        return F.linear(x, self.output_matrix.to(x.dtype))
