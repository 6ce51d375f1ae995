"""A model ready to decode on a CPU: prompts through torch, then a token a step through one compiled function.

Both compute what `loom.model.transformer.Transformer` computes. A prompt is read by itself; in a step every
row is computed as if it were alone (`loom.serve.step`). So what a sequence gets never depends on what else
is decoded beside it. q, k and v are laid together and so are gate and up; the model's own weights become
views of them, and the model stays usable.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loom.model.attention import attend
from loom.model.product import quick_linear
from loom.model.transformer import Block, Norm, Transformer, rotation_angles
from loom.serve.step import PHASES, Rows, Shape, Weights, step

FIRST_ROOM = 128  # positions a cache begins with; it doubles when it is full
PIECE = 2048  # tokens of a prompt that are read in one pass
ROWS = 512  # of them that go through a small model's MLP at once: its wide results stay in the cache
SHORT = 32  # prompts up to this length are read by a step, which is faster for few rows than torch is
KEPT = (torch.float32, torch.bfloat16)


class Cache:
    """Keys and values of one sequence, [layers, K, room, D] each, the first `length` positions filled."""

    def __init__(self, layers: int, heads: int, width: int, limit: int, dtype: torch.dtype) -> None:
        self.limit = limit
        self.length = 0
        shape = (2, layers, heads, min(FIRST_ROOM, limit), width)
        self._data = torch.empty(shape, dtype=dtype)

    @property
    def room(self) -> int:
        return self._data.shape[3]

    @property
    def address(self) -> int:
        return self._data.data_ptr()

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions."""
        needed, room = self.length + count, self.room
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
    """`model`, on the CPU, ready to decode in float32 or bfloat16 with `threads` threads (torch's number)."""

    def __init__(self, model: Transformer, threads: int | None = None) -> None:
        self.model, self.config = model, model.config
        self.dtype = model.compute_dtype or model.embed.weight.dtype
        if self.dtype not in KEPT:
            raise ValueError(f"a decoder computes in float32 or bfloat16, not {self.dtype}")
        c = self.config
        self.widths = [c.d_model, c.kv_width, c.kv_width]
        with torch.no_grad():
            self.layers = [self._layer(block) for block in model.blocks if isinstance(block, Block)]
            self.embedding = _together(model.embed.weight, dtype=self.dtype)
            head = model.head
            self.output = self.embedding if head is None else _together(head.weight, dtype=self.dtype)
            cos, sin = rotation_angles(torch.arange(c.context_length), c.head_dim, c.rope_theta)
            self.cos, self.sin = cos.contiguous(), sin.contiguous()  # [context, D / 2]
        self._steps = _Steps(self, threads or torch.get_num_threads())

    def _layer(self, block: Block) -> _Layer:
        a, m = block.attention, block.mlp
        return _Layer(
            block,
            _together(a.q.weight, a.k.weight, a.v.weight, dtype=self.dtype),
            _together(a.out.weight, dtype=self.dtype),
            _together(m.gate.weight, m.up.weight, dtype=self.dtype),
            _together(m.down.weight, dtype=self.dtype),
        )

    def cache(self) -> Cache:
        c = self.config
        return Cache(c.n_layers, c.kv_heads, c.head_dim, c.context_length, self.dtype)

    def read(self, cache: Cache, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """Extend `cache` by the tokens of a prompt, in pieces of `PIECE`; logits [V] after the last."""
        if cache.length == 0 and len(tokens) <= SHORT:
            first: np.ndarray[Any, Any] = self.step([(cache, tokens)], last=True)[0]
            return first
        for start in range(0, len(tokens), PIECE):
            logits = Reading(self, cache, tokens[start : start + PIECE]).go_on()
        assert logits is not None
        return logits

    def step(self, parts: Sequence[tuple[Cache, Sequence[int]]], last: bool = False) -> np.ndarray[Any, Any]:
        """Extend each cache by its tokens and give logits [n, V] in float32 after each token of each part,
        or after the `last` token of each part only."""
        return self._steps.take(parts, last)


class Reading:
    """A pass of `decoder` over some tokens that follow what `cache` holds, which can be left between layers."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, cache: Cache, tokens: Sequence[int]) -> None:
        cache.reserve(len(tokens))
        place = slice(cache.length, cache.length + len(tokens))
        self.decoder, self.cache, self.count = decoder, cache, len(tokens)
        self.cos, self.sin = decoder.cos[place, None], decoder.sin[place, None]
        self.layer = 0
        self.x = F.embedding(torch.tensor(tokens), decoder.embedding)

    @torch.inference_mode()
    def go_on(self, layers: int | None = None) -> np.ndarray[Any, Any] | None:
        """Compute so many layers more, or all; after the last, logits [V] after the last token."""
        all_layers = self.decoder.layers
        end = len(all_layers) if layers is None else min(self.layer + layers, len(all_layers))
        for i in range(self.layer, end):
            layer, block, x = all_layers[i], all_layers[i].block, self.x
            h = x if block.after else block.attention_norm(x)
            # The last layer leaves keys and values of every token; only the last token goes on.
            wanted = 1 if i == len(all_layers) - 1 else self.count
            h = self._attention(i, h, wanted)
            x = x[-wanted:] + (block.attention_norm(h) if block.after else h)
            # A large model's weights are larger than results: they are read as seldom as can be.
            rows = max(ROWS, self.decoder.config.d_model)
            self.x = torch.cat([_mlp(layer, part) for part in torch.split(x, rows)])
        self.layer = end
        if end < len(all_layers):
            return None
        self.cache.length += self.count
        last = self.decoder.model.norm(self.x[-1])
        logits: np.ndarray[Any, Any] = quick_linear(last, self.decoder.output).float().numpy()
        return logits

    def _attention(self, i: int, x: Tensor, wanted: int) -> Tensor:
        """What the last `wanted` rows of x [n, d] see; keys and values of all n are stored."""
        config, layer = self.decoder.config, self.decoder.layers[i]
        attention, d = layer.block.attention, config.head_dim
        q, k, v = torch.split(quick_linear(x, layer.qkv), self.decoder.widths, dim=-1)
        if isinstance(attention.q_norm, Norm) and isinstance(attention.k_norm, Norm):
            q, k = attention.q_norm(q), attention.k_norm(k)
        if (bound := config.clip_qkv) is not None:
            q, k, v = q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound)
        q = _turn(q.reshape(len(x), -1, d), self.cos, self.sin).transpose(0, 1)  # [H, n, D]
        k = _turn(k.reshape(len(x), -1, d), self.cos, self.sin).transpose(0, 1)
        v = v.reshape(len(x), -1, d).transpose(0, 1)
        keys, values = self.cache.store(i, k, v)
        mixed = attend(q[None, :, -wanted:], keys[None], values[None], None)[0]
        return quick_linear(mixed.transpose(0, 1).flatten(1), layer.out)


def _mlp(layer: _Layer, x: Tensor) -> Tensor:
    block = layer.block
    h = x if block.after else block.mlp_norm(x)
    gate, up = quick_linear(h, layer.gate_up).chunk(2, dim=-1)
    h = quick_linear(F.silu(gate).mul_(up), layer.down)
    out: Tensor = x + (block.mlp_norm(h) if block.after else h)
    return out


class _Steps:
    """The compiled step with the model's addresses, and the threads that help with it."""

    def __init__(self, decoder: Decoder, threads: int) -> None:
        c = decoder.config
        self.shape = Shape(
            c.n_layers,
            c.d_model,
            c.kv_width,
            c.mlp_width,
            c.n_heads,
            c.kv_heads,
            c.head_dim,
            c.vocab_size,
            decoder.dtype == torch.bfloat16,
            c.norm == "rmsnorm",
            c.norm_after,
            np.float32(c.norm_eps),
            np.float32(c.clip_qkv or 0),
        )
        self._held: list[Tensor] = []  # the tensors behind the addresses
        table = [
            [
                *(self._address(t) for t in (layer.qkv, layer.out, layer.gate_up, layer.down)),
                *(self._gain(n) for n in (layer.block.attention_norm, layer.block.mlp_norm)),
                *(self._gain(n) for n in (layer.block.attention.q_norm, layer.block.attention.k_norm)),
            ]
            for layer in decoder.layers
        ]
        self.weights = Weights(
            np.array(table, np.int64),
            self._address(decoder.output),
            self._gain(decoder.model.norm),
            decoder.cos.numpy(),
            decoder.sin.numpy(),
        )
        self.embedding = decoder.embedding
        self._lock = threading.Lock()
        self._buffers: dict[str, np.ndarray[Any, Any]] = {}
        self._calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.helpers = max(0, threads - 1)
        for number in range(self.helpers):
            threading.Thread(
                target=_help, args=(self._calls,), name=f"loom-step-{number}", daemon=True
            ).start()
        weakref.finalize(self, _dismiss, self._calls, self.helpers)

    def _address(self, tensor: Tensor) -> int:
        self._held.append(tensor)
        return tensor.data_ptr()

    def _gain(self, norm: Any) -> int:
        if norm is None or norm.weight is None:
            return 0
        return self._address(norm.weight.detach().float().contiguous())

    def take(self, parts: Sequence[tuple[Cache, Sequence[int]]], last: bool) -> np.ndarray[Any, Any]:
        for cache, tokens in parts:
            cache.reserve(len(tokens))
        position = [cache.length + i for cache, tokens in parts for i in range(len(tokens))]
        where = [(cache.address, cache.room) for cache, tokens in parts for _ in tokens]
        addresses = np.array(where, np.int64)
        n, s = len(position), self.shape
        ends = np.cumsum([len(tokens) for _, tokens in parts], dtype=np.int64) - 1
        wanted = ends if last else np.arange(n, dtype=np.int64)
        with self._lock, torch.inference_mode():
            ids = torch.tensor([token for _, tokens in parts for token in tokens])
            rows = Rows(
                np.array(position, np.int64),
                np.ascontiguousarray(addresses[:, 0]),
                np.ascontiguousarray(addresses[:, 1]),
                F.embedding(ids, self.embedding).float().numpy(),
                self._buffer("h", n, s.d),
                self._buffer("qkv", n, s.d + 2 * s.kv),
                self._buffer("act", n, s.mlp),
                wanted,
                np.empty((len(wanted), s.vocabulary), np.float32),
            )
            # New counters a step: a helper still on its way out of the last one finds that one finished.
            counts = np.zeros((2, s.layers * PHASES + 1), np.int64)
            call = (s, self.weights, rows, counts[0], counts[1])
            for _ in range(self.helpers):
                self._calls.put((self._held, *call))
            step(*call)
        for cache, tokens in parts:
            cache.length += len(tokens)
        logits: np.ndarray[Any, Any] = rows.logits
        return logits

    def _buffer(self, name: str, n: int, width: int) -> np.ndarray[Any, Any]:
        """A float32 array [n, width] that steps share."""
        held = self._buffers.get(name)
        if held is None or held.size < n * width:
            held = self._buffers[name] = np.empty(n * width, np.float32)
        return held[: n * width].reshape(n, width)


def _help(calls: queue.SimpleQueue[tuple[Any, ...] | None]) -> None:
    while (call := calls.get()) is not None:
        step(*call[1:])
        del call


def _dismiss(calls: queue.SimpleQueue[tuple[Any, ...] | None], helpers: int) -> None:
    for _ in range(helpers):
        calls.put(None)


def _together(*weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrices one below the other in `dtype`; where that is their own type they become views of it.

    numpy asks for huge pages for large arrays, so that reading them misses fewer translations.
    """
    size = sum(w.numel() for w in weights) * dtype.itemsize
    joined = torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(-1, weights[0].shape[1])
    start = 0
    for weight in weights:
        part = joined[start : start + weight.shape[0]]
        part.copy_(weight.detach())
        if weight.dtype == dtype:
            weight.data = part
        start += weight.shape[0]
    return joined


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate dimension pairs (i, i + D / 2) of x [n, H, D] by angles [n, 1, D / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
