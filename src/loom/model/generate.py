"""Generation with a key-value cache, for a batch of prompts of any lengths.

Stop strings, streaming to text and chat templates belong to callers: they iterate over `Generator` and
call `finish` on a row when they have seen enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from loom.errors import LoomError
from loom.model.attention import KVCache
from loom.model.sampling import Sampling, choose
from loom.model.transformer import Transformer


@dataclass
class Generation:
    """What one prompt got: new tokens (a stop id is not among them), their log-probabilities, why it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each token under the model itself, before penalty, temperature and truncation; nats."""
    finish: Literal["", "stop", "length"] = ""


class Generator:
    """Iterate to decode: each step gives, for every prompt, its new token or None if it has ended.

    Prompts of unlike lengths are padded on the left and masked; every row has its own settings and its
    own random stream, so what it gets does not depend on its neighbours. A row ends at a stop id, at
    `max_new_tokens`, at the model's context length, or at `finish`. Raises `LoomError` for an empty
    prompt or one that fills the context.
    """

    def __init__(
        self, model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
    ) -> None:
        self.model = model
        self.prompts = [list(prompt) for prompt in prompts]
        self.settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(self.settings) != len(self.prompts):
            raise ValueError(f"{len(self.prompts)} prompts but {len(self.settings)} settings")
        limit = model.config.context_length
        for prompt in self.prompts:
            if not prompt:
                raise LoomError(
                    "An empty prompt has nothing to continue: give at least one token (EOS begins a document)."
                )
            if len(prompt) >= limit:
                raise LoomError(
                    f"The prompt has {len(prompt)} tokens; the model's context holds {limit}, answer included."
                )
            if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
                raise LoomError(
                    f"The prompt has a token outside the model's {model.config.vocab_size} entries."
                )
        self.results = [Generation() for _ in prompts]
        self.randomness = [torch.Generator().manual_seed(settings.seed) for settings in self.settings]

    def finish(self, row: int, reason: Literal["stop", "length"] = "stop") -> None:
        """End a row from outside, for a stop string."""
        if not self.results[row].finish:
            self.results[row].finish = reason

    def __iter__(self) -> Iterator[list[int | None]]:
        for row, settings in enumerate(self.settings):
            if settings.max_new_tokens == 0:
                self.finish(row, "length")
        rows = [row for row, result in enumerate(self.results) if not result.finish]
        if not rows:
            return
        device = self.model.embed.weight.device
        longest = max(len(self.prompts[row]) for row in rows)
        room = max(min(self.settings[row].max_new_tokens, self.model.config.context_length) for row in rows)
        dtype = self.model.compute_dtype or self.model.embed.weight.dtype
        cache = KVCache(self.model.config, len(rows), longest + room, dtype, device)
        pads = torch.tensor([longest - len(self.prompts[row]) for row in rows], device=device)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, longest - len(self.prompts[row]) :] = torch.tensor(self.prompts[row])
        tokens = tokens.to(device)
        while True:
            logits = self._last_logits(tokens, pads, cache)
            step: list[int | None] = [None] * len(self.prompts)
            for row, scores in zip(rows, logits, strict=True):
                step[row] = self._choose(row, scores)
            yield step
            kept = [i for i, row in enumerate(rows) if not self.results[row].finish]
            if not kept:
                return
            if len(kept) < len(rows):
                index = torch.tensor(kept, device=device)
                cache.keep(index)
                pads, rows = pads[index], [rows[i] for i in kept]
            tokens = torch.tensor([[self.results[row].tokens[-1]] for row in rows], device=device)

    def _last_logits(self, tokens: Tensor, pads: Tensor, cache: KVCache) -> Tensor:
        """[rows, V] in float32 on CPU, after feeding `tokens` [rows, T]."""
        past, length = cache.length, tokens.shape[1]
        at = torch.arange(1, tokens.shape[0] + 1, device=tokens.device) * length - 1
        positions = mask = None
        if bool(pads.any()):
            queries = torch.arange(past, past + length, device=tokens.device)
            keys = torch.arange(past + length, device=tokens.device)
            seen = (keys[None, None] <= queries[None, :, None]) & (keys[None, None] >= pads[:, None, None])
            # Padding looks at itself, so that no row of the softmax is empty.
            mask = (seen | (keys[None, None] == queries[None, :, None]))[:, None]
            positions = (queries[None] - pads[:, None]).clamp(min=0)
        with torch.inference_mode():
            logits: Tensor = self.model(tokens, position_ids=positions, attn_mask=mask, cache=cache, at=at)
        return logits.float().cpu()

    def _choose(self, row: int, scores: Tensor) -> int | None:
        settings, result, prompt = self.settings[row], self.results[row], self.prompts[row]
        context = [*prompt, *result.tokens] if settings.repetition_penalty != 1.0 else []
        token = choose(scores, context, settings, self.randomness[row])
        if token in settings.stop_ids:
            result.finish = "stop"
            return None
        result.tokens.append(token)
        result.logprobs.append(float(scores[token] - scores.logsumexp(-1)))
        full = len(prompt) + len(result.tokens) >= self.model.config.context_length
        if full or len(result.tokens) >= settings.max_new_tokens:
            result.finish = "length"
        return token


def generate(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
) -> list[Generation]:
    """Decode every prompt to its end; the order is that of `prompts`."""
    generator = Generator(model, prompts, sampling)
    for _ in generator:
        pass
    return generator.results
