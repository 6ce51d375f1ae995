"""Items to log-likelihoods: one row an item, its continuations behind one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from loom.console import Progress
from loom.errors import LoomError
from loom.evals.encode import PLAIN, Opening, Pair, encode_items
from loom.evals.prefix import Prefix
from loom.evals.rows import Row, Scored, common_prefix, tree
from loom.evals.scorer import Floats, Model, score_rows
from loom.model.transformer import Transformer
from loom.tasks.item import Item
from loom.tokens.tokenizer import Tokenizer

WORTH_SHARING = 16  # tokens; a shorter header is cheaper to read again than to keep


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
    cut: tuple[int, ...]
    """Indices of the items of which a choice lost the left end of its context; `truncated` counts choices."""
    gutted: tuple[int, ...]
    """Indices of the items of which a choice kept less than half of its context."""
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
    opening: Opening = PLAIN,
    budget: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Log-likelihoods in nats of every choice of every item.

    What is longer than `max_length` tokens loses its left end, as in lm-evaluation-harness: of
    (context + continuation) the last `max_length` + 1 tokens stay, of which the last is only predicted.
    """
    conditioned, free = encode_items(items, tokenizer, opening)
    headers = [item.header for item in items] if isinstance(model, Transformer) else None
    # A model that reads neither masks nor positions as they are given takes one choice a row.
    widest = 0 if getattr(model, "plain", False) else None
    layout = Layout.of(conditioned, free, max_length, widest=widest, headers=headers)
    if progress is not None:
        progress.total = len(layout.rows) + sum(len(shared.rows) for shared in layout.shared)
    totals = score_rows(model, layout.rows, layout.count, budget=budget, device=device, progress=progress)
    for shared in layout.shared:
        assert isinstance(model, Transformer)
        prefix = Prefix.read(model, shared.tokens, device)
        totals += score_rows(
            model,
            shared.rows,
            layout.count,
            budget=budget,
            device=device,
            progress=progress,
            cache=prefix.cache,
            past=len(shared.tokens),
        )
    if np.isnan(totals).any():
        raise LoomError(
            "The model gives log-likelihoods that are not numbers (NaN), so nothing can be ranked: look at its "
            "weights, or evaluate in float32."
        )
    return layout.scores(totals)


@dataclass(frozen=True)
class Shared:
    """Rows that all follow the same tokens (a few-shot header): those are read once, for all."""

    tokens: tuple[int, ...]
    rows: list[Row]


@dataclass(frozen=True)
class Layout:
    """The rows to score and where each pair's result will be."""

    rows: list[Row]
    shared: list[Shared]
    count: int
    keys: list[list[int]]
    free_keys: list[list[int]]
    tokens: list[list[int]]
    truncated: int
    cut: tuple[int, ...]
    gutted: tuple[int, ...]
    lost: tuple[int, ...]
    naive: int

    @classmethod
    def of(
        cls,
        conditioned: Sequence[Sequence[Pair]],
        free: Sequence[Sequence[Pair]],
        max_length: int,
        *,
        widest: int | None = None,
        headers: Sequence[str] | None = None,
    ) -> Layout:
        """Equal pairs are scored once, wherever they occur; unconditioned ones occur often.

        A row has at most `widest` tokens where one is given: an item that would be longer gets a row a
        choice. With `headers`, one text an item, items of equal header share its keys and values.
        """
        plan = _Plan(max_length, widest)
        keys, free_keys, lost = [], [], []
        for index, (group, unconditioned) in enumerate(zip(conditioned, free, strict=True)):
            fits = all(len(pair.continuation) <= max_length for pair in (*group, *unconditioned))
            if not fits:
                lost.append(index)
            keys.append(plan.add(group, headers[index] if headers else "") if fits else [])
            free_keys.append(plan.add(unconditioned, "") if fits else [])
        rows, shared = plan.rows()
        tokens = [[len(pair.continuation) for pair in group] for group in conditioned]
        # What is left of each context, in tokens.
        left = [[max_length + 1 - len(pair.continuation) for pair in group] for group in conditioned]

        def where(least: float) -> tuple[int, ...]:
            """Items of which a choice kept less than this part of its context."""
            return tuple(
                index
                for index, (group, kept) in enumerate(zip(conditioned, left, strict=True))
                if any(few < least * len(pair.context) for pair, few in zip(group, kept, strict=True))
            )

        return cls(
            rows,
            shared,
            len(plan.key_of),
            keys,
            free_keys,
            tokens,
            plan.truncated,
            where(1.0),
            where(0.5),
            tuple(lost),
            plan.naive,
        )

    def scores(self, totals: Floats) -> Scores:
        lost = set(self.lost)
        logp = [
            np.full(len(tokens), np.nan) if index in lost else totals[keys]
            for index, (keys, tokens) in enumerate(zip(self.keys, self.tokens, strict=True))
        ]
        free = [totals[keys] if keys else None for keys in self.free_keys]
        tokens = [np.asarray(counts, dtype=np.float64) for counts in self.tokens]
        read = sum(map(len, self.rows))
        read += sum(len(shared.tokens) + sum(map(len, shared.rows)) for shared in self.shared)
        return Scores(logp, free, tokens, self.truncated, self.cut, self.gutted, self.lost, read, self.naive)


class _Plan:
    """Collects items' pairs, each distinct one once, by header."""

    def __init__(self, max_length: int, widest: int | None) -> None:
        self.max_length, self.widest = max_length, widest
        self.key_of: dict[Pair, int] = {}
        self.groups: dict[str, list[list[Scored]]] = {}
        self.truncated = self.naive = 0

    def add(self, pairs: Sequence[Pair], header: str) -> list[int]:
        """The keys of `pairs`."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.key_of]
        cut = []
        whole = True
        for pair in new:
            self.key_of[pair] = len(self.key_of)
            tokens = (*pair.context, *pair.continuation)
            kept = tokens[-(self.max_length + 1) :]
            cut.append(Scored(kept, len(pair.continuation), self.key_of[pair]))
            self.naive += len(kept) - 1
            self.truncated += len(kept) < len(tokens)
            whole &= len(kept) == len(tokens)
        if cut:  # what lost its left end has no header any more
            self.groups.setdefault(header if whole else "", []).append(cut)
        return [self.key_of[pair] for pair in pairs]

    def rows(self) -> tuple[list[Row], list[Shared]]:
        rows: list[Row] = []
        shared: list[Shared] = []
        for header, items in self.groups.items():
            length = _shared_length(items) if header else 0
            if length < WORTH_SHARING:
                rows += [row for item in items for row in self._rows(item)]
                continue
            short = [[replace(one, tokens=one.tokens[length:]) for one in item] for item in items]
            prefix = tuple(int(token) for token in items[0][0].tokens[:length])
            shared.append(Shared(prefix, [tree(item, start=length) for item in short]))
        return rows, shared

    def _rows(self, item: list[Scored]) -> list[Row]:
        row = tree(item)
        if self.widest is not None and len(row) > self.widest and not row.chain:
            return [tree([one]) for one in item]
        return [row]


def _shared_length(items: Sequence[Sequence[Scored]]) -> int:
    """How many first tokens all sequences of several items share; each keeps one before its predictions."""
    sequences = [list(map(int, one.tokens)) for item in items for one in item]
    kept = min(len(one.tokens) - one.scored - 1 for item in items for one in item)
    return min(common_prefix(sequences), kept) if len(items) > 1 else 0
