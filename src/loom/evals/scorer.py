"""The scorer: log-probabilities of given tokens, each context computed once.

A model is whatever takes (input_ids [B, T], position_ids [B, T], attn_mask, at [n], readout) as
`loom.model.transformer.Transformer` does: `at` are flat positions of the [B * T] grid, and `readout`
gets the normalised hidden states there [n, d] and the output matrix [V, d]. The output matrix is
therefore applied only where something is predicted, and the softmax is in float32 whatever the model
computes in (in bfloat16, log-likelihoods would be wrong by whole nats).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from loom.console import Progress
from loom.evals.rows import EMPTY, Row, batches, join
from loom.model.product import quick_linear

Floats = NDArray[np.float64]
LOGITS_AT_ONCE = 1 << 22  # entries of the logit matrix held at a time: 16 MiB in float32, in a cache's reach
POSITIONS_AT_ONCE = 2048  # rows of it: the output matrix is read as seldom as that
BUDGET, BUDGET_ON_CPU = 8192, 2048  # tokens in a batch; on a CPU, what an MLP makes of them stays near


class Model(Protocol):
    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        cache: Any = None,
        at: Tensor | None = None,
        readout: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Any: ...


def score_rows(
    model: Model,
    rows: Sequence[Row],
    count: int,
    *,
    budget: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cache: Callable[[int], Any] | None = None,
    past: int = 0,
) -> Floats:
    """Sum of the log-probabilities in nats of every sequence's scored tokens, [count] by key.

    `budget` is the most tokens in a batch, padding included (default: what suits the device).
    `cache(batch)` gives the keys and values
    of the `past` tokens that all rows follow, for a batch of that many rows.
    """
    totals = np.zeros(count)
    for keys, logp in score_each(
        model, rows, budget=budget, device=device, progress=progress, cache=cache, past=past
    ):
        np.add.at(totals, keys, logp)
    return totals


def score_each(
    model: Model,
    rows: Sequence[Row],
    *,
    budget: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cache: Callable[[int], Any] | None = None,
    past: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Batch by batch, the keys and log-probabilities of all predictions."""
    if budget is None:
        budget = BUDGET_ON_CPU if torch.device(device).type == "cpu" else BUDGET
    with torch.inference_mode():
        for batch in batches(rows, budget):
            grid = Grid.of(batch, past)
            extra = {} if cache is None else {"cache": cache(len(batch))}
            logp = model(**grid.inputs(device), **extra, readout=grid.readout(device))
            yield grid.keys, logp.double().cpu().numpy()
            if progress is not None:
                progress.advance(len(batch))


class Grid:
    """A batch of rows, padded on the right to [B, T]."""

    def __init__(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        ends: NDArray[np.int64],
        masked: bool,
        at: NDArray[np.int64],
        targets: NDArray[np.int64],
        keys: NDArray[np.int64],
        past: int,
    ) -> None:
        self.tokens, self.positions, self.ends, self.masked = tokens, positions, ends, masked
        self.at, self.targets, self.keys, self.past = at, targets, keys, past

    @classmethod
    def packed(cls, bins: Sequence[Sequence[Row]], rows: int, length: int) -> Grid:
        """Several rows to a line, on a grid of [rows, length] whatever there is to put on it."""
        lines = [join(line) for line in bins] + [EMPTY] * (rows - len(bins))
        return cls.of(lines, length=length)

    @classmethod
    def of(cls, rows: Sequence[Row], past: int = 0, length: int | None = None) -> Grid:
        """Rows on a grid as wide as the longest, or of `length`.

        Where every row is one chain no mask is needed: padding lies to the right of all that is read.
        """
        width = max(map(len, rows)) if length is None else length
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros_like(tokens)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row.tokens
            positions[index, : len(row)] = row.positions
            ends[index, : len(row)] = row.ends
        at = np.concatenate([row.at + index * width for index, row in enumerate(rows)])
        masked = length is not None or not all(row.chain for row in rows)
        targets = np.concatenate([row.targets for row in rows])
        keys = np.concatenate([row.keys for row in rows])
        return cls(tokens, positions, ends, masked, at, targets, keys, past)

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What the model takes, on `device`; predictions that share a position share a row of `at`."""
        unique, self._which = np.unique(self.at, return_inverse=True)
        ends = torch.from_numpy(self.ends).to(device) if self.masked else None
        return {
            "input_ids": torch.from_numpy(self.tokens).to(device),
            "position_ids": torch.from_numpy(self.positions).to(device),
            "attn_mask": None if ends is None else tree_mask(ends, self.past),
            "at": torch.from_numpy(unique).to(device),
        }

    def readout(self, device: torch.device | str) -> Callable[..., Tensor]:
        which = torch.from_numpy(self._which).to(device)
        targets = torch.from_numpy(self.targets).to(device)
        return lambda hidden, matrix, cap=None: log_probabilities(hidden, matrix, which, targets, cap)


def tree_mask(ends: Tensor, past: int = 0) -> Tensor:
    """[B, 1, T, past + T] bool: token i sees token j if j <= i < ends[j], and everything in the past."""
    index = torch.arange(ends.shape[1], device=ends.device)
    mask = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < ends[:, None, :])
    if past:
        mask = F.pad(mask, (past, 0), value=True)
    return mask[:, None]


def log_probabilities(
    hidden: Tensor, matrix: Tensor, which: Tensor, targets: Tensor, cap: float | None = None
) -> Tensor:
    """log softmax(hidden[which] @ matrix.T)[targets] in float32, [n]; with a `cap`, of cap tanh(logits / cap).

    `hidden` is [m, d], `matrix` [V, d]; `which` [n] does not decrease. Logits are made in slices of
    positions and of the vocabulary, so that [m, V] never exists as a whole; the sum of exponentials is
    carried from slice to slice as its logarithm.
    """
    weight = matrix.to(hidden.dtype)
    parts = [hidden.new_zeros(0, dtype=torch.float32)]
    for start in range(0, hidden.shape[0], POSITIONS_AT_ONCE):
        rows = hidden[start : start + POSITIONS_AT_ONCE]
        inside = (which >= start) & (which < start + POSITIONS_AT_ONCE)
        row, target = which[inside] - start, targets[inside]
        total = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=hidden.device)
        chosen = torch.zeros(len(row), dtype=torch.float32, device=hidden.device)
        step = max(1, LOGITS_AT_ONCE // len(rows))
        for first in range(0, len(weight), step):
            logits = quick_linear(rows, weight[first : first + step])
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            logits = logits.float()
            column = target - first
            here = (column >= 0) & (column < logits.shape[1])
            value = logits[row, column.clamp(0, logits.shape[1] - 1)]
            chosen = torch.where(here, value, chosen)
            total = torch.logaddexp(total, logits.logsumexp(-1))
        parts.append(chosen - total[row])
    return torch.cat(parts)
