"""Evaluation inside the training loop: fixed shapes, any number of ranks, sharded models.

Everything is laid out once, at the first evaluation: items and documents become rows, rows are
packed into grids of one shape [rows, length] with a fixed number of predictions, and grids are dealt to
the ranks. A rank that has fewer runs dummy grids, so that every rank makes the same number of forwards
(a sharded model's forward is a collective) and nothing is ever recompiled. Sums are then added over the
ranks, and all ranks return the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from loom.console import console
from loom.evals import metrics, perplexity
from loom.evals.encode import encode_items
from loom.evals.items import Layout
from loom.evals.perplexity import Document
from loom.evals.rows import Row, fill
from loom.evals.scorer import Floats, Grid, log_probabilities, tree_mask
from loom.tasks.item import Item
from loom.tokens.tokenizer import Tokenizer

LOGGED = ("acc", "acc_norm", "acc_token", "acc_pmi", "bpb", "soft", "mc2")


@dataclass(frozen=True)
class Batch:
    """A grid on the way to the device. Predictions past the real ones have the key -1."""

    tokens: Tensor
    positions: Tensor
    ends: Tensor
    at: Tensor
    targets: Tensor
    keys: NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """A rank's batches, and how many predictions each key has over all ranks."""

    batches: list[Batch]
    expected: Floats


class Readout:
    """log p of `targets` at the positions read; one object, so that no call looks new to a compiler."""

    def __init__(self) -> None:
        self.targets = torch.zeros(0, dtype=torch.int64)

    def __call__(self, hidden: Tensor, matrix: Tensor) -> Tensor:
        which = torch.arange(hidden.shape[0], device=hidden.device)
        return log_probabilities(hidden, matrix, which, self.targets)


@dataclass
class InLoop:
    """`evaluate(model, step)` gives `<name>/<metric>` of tasks and of held-out text; the loop logs them
    under `eval/`.

    tasks: items by task name. documents: held-out documents; each source is measured, and all together
    as `validation` (loss in nats a token, end-of-text tokens included, and bits per byte). texts: others,
    each source of which is measured by itself. length:
    tokens in a row, at most what the model was trained on; rows: rows in a forward. `budget` in seconds
    stops an evaluation early: grids run in a fixed random order, and what is incomplete does not count
    (`n` says how much was).
    """

    tokenizer: Tokenizer
    tasks: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    documents: Sequence[Document] = ()
    length: int = 256
    rows: int = 16
    seed: int = 1234
    budget: float | None = None
    texts: Sequence[Document] = ()

    def __post_init__(self) -> None:
        self._readout = Readout()
        self._items = [item for group in self.tasks.values() for item in group]
        self._laid_out = False

    def _lay_out(self) -> None:
        """Once, at first use: by then the ranks are there."""
        if self._laid_out:
            return
        self._laid_out = True
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._world = dist.get_world_size() if dist.is_initialized() else 1
        encoded = encode_items(self._items, self.tokenizer)
        self._layout = Layout.of(*encoded, self.length, widest=self.length)
        if self._rank == 0 and (cut := self._layout.truncated):
            console.warn(
                f"in the loop, {cut:,} of {self._layout.count:,} choices lose the left end of their context at "
                f"{self.length:,} tokens, and {len(self._layout.lost):,} questions have no room at all and do "
                f"not count."
            )
        self._documents = [*self.documents, *self.texts]
        windows = perplexity.document_rows(self._documents, self.tokenizer.eos_id, self.length)
        self._ranking = self._pack(self._layout.rows, self._layout.count)
        self._reading = self._pack(windows, 2 * len(self._documents))

    @property
    def tokens(self) -> int:
        """Tokens a rank reads in one evaluation, padding included."""
        self._lay_out()
        batches = len(self._ranking.batches) + len(self._reading.batches)
        return batches * self.rows * self.length

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        self._lay_out()
        started = time.monotonic()
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                ranked = self._run(model, self._ranking, started)
                text = self._run(model, self._reading, started)
        finally:
            model.train(was)
        result = {**self._ranked(*ranked), **self._text(*text)}
        # What there was no time for has no figure; what a diverged model gives has one that is not a number,
        # and the loop stops at it.
        diverged = any(np.isnan(totals[finished]).any() for totals, finished in (ranked, text))
        known = {
            name: value
            for name, value in result.items()
            if not np.isnan(value) or (diverged and not name.endswith("_stderr"))
        }
        return {**known, "seconds": time.monotonic() - started}

    def _pack(self, rows: Sequence[Row], count: int) -> Work:
        """This rank's batches, as many as any rank has."""
        expected = np.zeros(count)
        for row in rows:
            np.add.at(expected, row.keys, 1)
        if not rows:
            return Work([], expected)
        bins = fill(rows, self.length)
        order = np.random.default_rng(self.seed).permutation(len(bins))
        grids = [
            [bins[index] for index in order[start : start + self.rows]]
            for start in range(0, len(bins), self.rows)
        ]
        most = max(sum(len(row.at) for group in grid for row in group) for grid in grids)
        steps = -(-len(grids) // self._world)
        mine = grids[self._rank :: self._world]
        mine += [[]] * (steps - len(mine))
        return Work([self._batch(grid, most) for grid in mine], expected)

    def _batch(self, grid: Sequence[Sequence[Row]], predictions: int) -> Batch:
        packed = Grid.packed(grid, self.rows, self.length)
        short = predictions - len(packed.at)
        return Batch(
            torch.from_numpy(packed.tokens),
            torch.from_numpy(packed.positions),
            torch.from_numpy(packed.ends),
            torch.from_numpy(np.pad(packed.at, (0, short))),
            torch.from_numpy(np.pad(packed.targets, (0, short))),
            np.pad(packed.keys, (0, short), constant_values=-1),
        )

    def _run(self, model: torch.nn.Module, work: Work, started: float) -> tuple[Floats, NDArray[np.bool_]]:
        """Summed log-probabilities by key over all ranks, and which keys were finished."""
        device = next(model.parameters()).device
        totals = np.zeros((2, len(work.expected)))
        for batch in work.batches:
            if self._over(started, device):
                break
            self._readout.targets = batch.targets.to(device)
            logp = model(
                batch.tokens.to(device),
                position_ids=batch.positions.to(device),
                attn_mask=tree_mask(batch.ends.to(device)),
                at=batch.at.to(device),
                readout=self._readout,
            )
            real = batch.keys >= 0
            np.add.at(totals[0], batch.keys[real], logp.double().cpu().numpy()[real])
            np.add.at(totals[1], batch.keys[real], 1)
        if self._world > 1:
            shared = torch.from_numpy(totals).to(device)
            dist.all_reduce(shared)
            totals = shared.cpu().numpy()
        return totals[0], totals[1] == work.expected

    def _over(self, started: float, device: torch.device) -> bool:
        """Whether any rank has used up the time; all ranks stop together."""
        if self.budget is None:
            return False
        over = torch.tensor(float(time.monotonic() - started > self.budget), device=device)
        if self._world > 1:
            dist.all_reduce(over, op=dist.ReduceOp.MAX)
        return bool(over.item())

    def _ranked(self, totals: Floats, finished: NDArray[np.bool_]) -> dict[str, float]:
        scores = self._layout.scores(totals)
        whole = self._layout.scores(np.where(finished, 0.0, np.nan))
        free = [np.zeros(1) if values is None else values for values in whole.free]
        complete = [not np.isnan(np.concatenate(parts)).any() for parts in zip(whole.logp, free, strict=True)]
        result: dict[str, float] = {}
        start = 0
        for name, group in self.tasks.items():
            of = [index for index in range(start, start + len(group)) if complete[index]]
            start += len(group)
            if any(np.isnan(scores.logp[index]).any() for index in of):
                result[f"{name}/acc"] = float("nan")  # an argmax of NaN would be the first choice
                continue
            outcomes = [
                metrics.outcome(self._items[i], scores.logp[i], scores.free[i], scores.tokens[i]) for i in of
            ]
            for metric in LOGGED:
                values = [outcome.values[metric] for outcome in outcomes if metric in outcome.values]
                if values:
                    result[f"{name}/{metric}"], error = metrics.mean(values)
                    result[f"{name}/{metric}_stderr"] = error
            result[f"{name}/n"] = float(len(of))
        return result

    def _text(self, totals: Floats, finished: NDArray[np.bool_]) -> dict[str, float]:
        scores = perplexity.document_scores(self._documents, totals)
        whole: list[bool] = [bool(text and end) for text, end in finished.reshape(-1, 2)]
        kept = [score for score, known in zip(scores, whole, strict=True) if known]
        held_out = kept[: sum(whole[: len(self.documents)])]
        groups: dict[str, Any] = perplexity.by(kept, "source")
        if held_out:
            groups["validation"] = held_out
        return {
            f"{name}/{metric}": float(value)
            for name, group in groups.items()
            for metric, value in perplexity.summary(group).items()
        }
