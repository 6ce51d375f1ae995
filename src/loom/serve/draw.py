"""One token from a row of logits, and its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loom.model.sampling import Sampling, choose
from loom.serve.rows import log_sum

Logits = np.ndarray[Any, Any]  # [V], float32


def draw(logits: Logits, context: Sequence[int], sampling: Sampling, randomness: torch.Generator) -> int:
    """The next token. Greedy without a penalty is the most likely one; all else is `model.sampling`'s."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
        return int(logits.argmax())
    return choose(torch.from_numpy(logits), context, sampling, randomness)


def log_norm(logits: Logits) -> float:
    """The logarithm of the sum of exponentials: a token's logit less this is its log-probability (nats)."""
    return float(log_sum(logits, 0, len(logits)))
