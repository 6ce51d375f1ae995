"""Items to log-likelihoods: one row an item, its continuations behind one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loom.console import Progress
from loom.evals.encode import Pair, encode_items
from loom.evals.rows import Row, Scored, tree
from loom.evals.scorer import Floats, Model, score_rows
from loom.tasks.item import Item
from loom.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """What the scorer gives for a list of items; one entry an item, one number a choice.

    `free` holds log p(continuation | unconditioned context), None for items without one. `lost` are
    the indices of items of which a continuation alone fills the model's context, so that nothing of
    the question could be read: they have no scores (NaN) and count in no metric.
    """

    logp: list[Floats]
    free: list[Floats | None]
    tokens: list[Floats]
    truncated: int
    lost: tuple[int, ...]
    read: int
    """Tokens the model read, padding not counted."""
    naive: int
    """Tokens it would have read with one forward a choice."""


def score_items(
    model: Model,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    budget: int = 8192,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Log-likelihoods in nats of every choice of every item.

    What is longer than `max_length` tokens loses its left end, as in lm-evaluation-harness: of
    (context + continuation) the last `max_length` + 1 tokens stay, of which the last is only predicted.
    """
    conditioned, free = encode_items(items, tokenizer)
    layout = Layout.of(conditioned, free, max_length)
    totals = score_rows(model, layout.rows, layout.count, budget=budget, device=device, progress=progress)
    return layout.scores(totals)


@dataclass(frozen=True)
class Layout:
    """The rows to score and where each pair's result will be."""

    rows: list[Row]
    count: int
    keys: list[list[int]]
    free_keys: list[list[int]]
    tokens: list[list[int]]
    truncated: int
    lost: tuple[int, ...]
    naive: int

    @classmethod
    def of(
        cls,
        conditioned: Sequence[Sequence[Pair]],
        free: Sequence[Sequence[Pair]],
        max_length: int,
        widest: int | None = None,
    ) -> Layout:
        """Equal pairs are scored once, wherever they occur; unconditioned ones occur often.

        A row has at most `widest` tokens where one is given: an item that would be longer gets a row a
        choice.
        """
        key_of: dict[Pair, int] = {}
        rows: list[Row] = []
        truncated, lost, naive = 0, [], 0
        keys: list[list[int]] = []
        free_keys: list[list[int]] = []
        for index, (group, unconditioned) in enumerate(zip(conditioned, free, strict=True)):
            if any(len(pair.continuation) > max_length for pair in (*group, *unconditioned)):
                lost.append(index)
                keys.append([])
                free_keys.append([])
                continue
            for part in (group, unconditioned):
                new = [pair for pair in dict.fromkeys(part) if pair not in key_of]
                for pair in new:
                    key_of[pair] = len(key_of)
                    naive += min(len(pair.context) + len(pair.continuation) - 1, max_length)
                truncated += sum(len(pair.context) + len(pair.continuation) > max_length + 1 for pair in new)
                cut = [_cut(pair, key_of[pair], max_length) for pair in new]
                row = tree(cut) if cut else None
                if row is not None and widest is not None and len(row) > widest:
                    rows += [tree([sequence]) for sequence in cut]
                elif row is not None:
                    rows.append(row)
            keys.append([key_of[pair] for pair in group])
            free_keys.append([key_of[pair] for pair in unconditioned])
        tokens = [[len(pair.continuation) for pair in group] for group in conditioned]
        return cls(rows, len(key_of), keys, free_keys, tokens, truncated, tuple(lost), naive)

    def scores(self, totals: Floats) -> Scores:
        lost = set(self.lost)
        logp = [
            np.full(len(tokens), np.nan) if index in lost else totals[keys]
            for index, (keys, tokens) in enumerate(zip(self.keys, self.tokens, strict=True))
        ]
        free = [totals[keys] if keys else None for keys in self.free_keys]
        tokens = [np.asarray(counts, dtype=np.float64) for counts in self.tokens]
        read = sum(map(len, self.rows))
        return Scores(logp, free, tokens, self.truncated, self.lost, read, self.naive)


def _cut(pair: Pair, key: int, max_length: int) -> Scored:
    whole = (*pair.context, *pair.continuation)[-(max_length + 1) :]
    return Scored(whole, len(pair.continuation), key)
