"""From logits to the next token: penalties, temperature, truncation, a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loom.errors import LoomError


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. Applied in this order: penalty, temperature, top_k, top_p, min_p.

    `temperature` 0 is greedy. `top_p` keeps the smallest set of most likely tokens whose probabilities
    reach it (Holtzman et al. 2020), `min_p` those at least min_p times as likely as the best (Nguyen
    et al. 2024), `repetition_penalty` divides positive and multiplies negative logits of tokens already
    in the context (Keskar et al. 2019, section 4.1).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature must be 0 or more": self.temperature >= 0,
            "top_k must be at least 1": self.top_k is None or self.top_k >= 1,
            "top_p must lie in (0, 1]": 0 < self.top_p <= 1,
            "min_p must lie in [0, 1]": 0 <= self.min_p <= 1,
            "repetition_penalty must be positive": self.repetition_penalty > 0,
            "max_new_tokens must be 0 or more": self.max_new_tokens >= 0,
        }
        if failed := [text for text, holds in checks.items() if not holds]:
            raise LoomError(f"Sampling: {failed[0]}.")


def penalize(logits: Tensor, context: Sequence[int], penalty: float) -> Tensor:
    """logits [V] with those of tokens in `context` made less likely."""
    if penalty == 1.0 or not context:
        return logits
    seen = torch.tensor(sorted(set(context)), device=logits.device)
    values = logits[seen]
    return logits.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """logits [V], already at temperature, with what top_k, top_p and min_p cut away at minus infinity."""
    if sampling.top_k is not None and sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort()
        # Cumulated from below, so that the best token always stays.
        below = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[-1] = False
        logits = logits.masked_fill(torch.zeros_like(below).scatter(0, order, below), -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.max(), -torch.inf)
    return logits


def choose(logits: Tensor, context: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from logits [V] (any float type, on CPU)."""
    logits = penalize(logits.float(), context, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = truncate(logits / sampling.temperature, sampling).softmax(-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
