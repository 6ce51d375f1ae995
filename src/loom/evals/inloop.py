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

LOGGED = ("acc", "acc_norm", "acc_char", "acc_token", "acc_pmi", "bpb", "soft", "mc2")


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
    """A rank's batches, in parts that are run one after another, and how many predictions each key has over all
    ranks."""

    parts: list[list[Batch]]
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
    each source of which is measured by itself, as `text:<source>` where its name is already that of something
    else. length: tokens in a row, at most what the model was trained on; rows: rows in a forward. `budget` in
    seconds stops an evaluation early: what was held out comes first, then tasks and texts in turn, each in a fixed
    random order; what is incomplete does not count (`n` says how much was), and its names are said once.
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
        self._told: set[str] = set()

    def _lay_out(self) -> None:
        """Once, at first use: by then the ranks are there."""
        if self._laid_out:
            return
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
        self._names = _names(self.tasks, self.documents, self.texts)
        windows = perplexity.document_rows(self._documents, self.tokenizer.eos_id, self.length)
        of_texts = [bool(row.keys[0] >= 2 * len(self.documents)) for row in windows]
        held_out = [row for row, other in zip(windows, of_texts, strict=True) if not other]
        texts = [row for row, other in zip(windows, of_texts, strict=True) if other]
        self._ranking = self._pack([self._layout.rows], self._layout.count)
        self._reading = self._pack([held_out, texts], 2 * len(self._documents))
        self._laid_out = True

    @property
    def tokens(self) -> int:
        """Tokens a rank reads in one evaluation, padding included."""
        self._lay_out()
        batches = sum(len(part) for work in (self._ranking, self._reading) for part in work.parts)
        return batches * self.rows * self.length

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        self._lay_out()
        started = time.monotonic()
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                ranked, text = self._run(model, started)
        finally:
            model.train(was)
        result = {**self._ranked(*ranked), **self._text(*text)}
        self._say_unfinished(result)
        # What there was no time for has no figure; what a diverged model gives has one that is not a number,
        # and the loop stops at it.
        diverged = any(np.isnan(totals[finished]).any() for totals, finished in (ranked, text))
        known = {
            name: value
            for name, value in result.items()
            if not np.isnan(value) or (diverged and not name.endswith("_stderr"))
        }
        return {**known, "seconds": time.monotonic() - started}

    def _pack(self, parts: Sequence[Sequence[Row]], count: int) -> Work:
        """This rank's batches of each part, as many as any rank has, all of one shape."""
        expected = np.zeros(count)
        for row in (row for rows in parts for row in rows):
            np.add.at(expected, row.keys, 1)
        dealt = [self._grids(rows) for rows in parts]
        sizes = [sum(len(row.at) for group in grid for row in group) for grids in dealt for grid in grids]
        mine = []
        for grids in dealt:
            steps = -(-len(grids) // self._world)
            own = grids[self._rank :: self._world]
            own += [[]] * (steps - len(own))
            mine.append([self._batch(grid, max(sizes)) for grid in own])
        return Work(mine, expected)

    def _grids(self, rows: Sequence[Row]) -> list[list[Sequence[Row]]]:
        if not rows:
            return []
        bins = fill(rows, self.length)
        order = np.random.default_rng(self.seed).permutation(len(bins))
        return [
            [bins[index] for index in order[start : start + self.rows]]
            for start in range(0, len(bins), self.rows)
        ]

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

    def _run(self, model: torch.nn.Module, started: float) -> list[tuple[Floats, NDArray[np.bool_]]]:
        """Of tasks and of text: summed log-probabilities by key over all ranks, and which keys were finished."""
        device = next(model.parameters()).device
        works = (self._ranking, self._reading)
        totals = [np.zeros((2, len(work.expected))) for work in works]
        for which, batch in self._turns():
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
            np.add.at(totals[which][0], batch.keys[real], logp.double().cpu().numpy()[real])
            np.add.at(totals[which][1], batch.keys[real], 1)
        if self._world > 1:
            shared = torch.from_numpy(np.concatenate(totals, axis=1)).to(device)
            dist.all_reduce(shared)
            totals = np.split(shared.cpu().numpy(), [len(self._ranking.expected)], axis=1)
        return [(total[0], total[1] == work.expected) for total, work in zip(totals, works, strict=True)]

    def _turns(self) -> list[tuple[int, Batch]]:
        """The order of batches, the same on every rank: 0 is of tasks, 1 of text. The validation loss is what a run
        is watched by, so it comes first; where time runs out after it, tasks and texts have got as far as each other."""
        held_out, texts = self._reading.parts
        (ranked,) = self._ranking.parts
        both = [(0, batch, (at + 0.5) / len(ranked)) for at, batch in enumerate(ranked)]
        both += [(1, batch, (at + 0.5) / len(texts)) for at, batch in enumerate(texts)]
        both.sort(key=lambda turn: turn[2])
        return [*((1, batch) for batch in held_out), *((which, batch) for which, batch, _ in both)]

    def _say_unfinished(self, result: Mapping[str, float]) -> None:
        """Name, once each, what the time was too short for."""
        if self.budget is None:
            return
        lost, start, wanted = set(self._layout.lost), 0, {name: len(of) for name, of in self._names.items()}
        for name, group in self.tasks.items():
            wanted[name] = len(set(range(start, start + len(group))) - lost)
            start += len(group)
        short = {name: int(result.get(f"{name}/n", count)) for name, count in wanted.items()}
        new = [name for name in short if short[name] < wanted[name] and name not in self._told]
        self._told |= set(new)
        if new and self._rank == 0:
            told = ", ".join(f"{name} ({short[name]:,} of {wanted[name]:,})" for name in new)
            console.warn(
                f"in the loop, eval.budget={self.budget:g} seconds were too short for {told}: figures are of what "
                f"was finished. Raise it, or lower eval.sample and eval.text_tokens."
            )

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
        result: dict[str, float] = {}
        for name, of in self._names.items():
            kept = [scores[index] for index in of if whole[index]]
            figures = perplexity.summary(kept) if kept else {"n": 0}
            result |= {f"{name}/{metric}": float(value) for metric, value in figures.items()}
        return result


def _names(
    tasks: Mapping[str, Any], documents: Sequence[Document], texts: Sequence[Document]
) -> dict[str, list[int]]:
    """What the loop logs of text, by name: the places of its documents in `documents` and, after them, `texts`.
    Nothing takes the name of a task, of `validation` or of what was held out."""
    found: dict[str, list[int]] = {"validation": list(range(len(documents)))} if documents else {}
    taken = {*tasks, "validation"}
    for start, group in ((0, documents), (len(documents), texts)):
        own: dict[str, list[int]] = {}
        for index, document in enumerate(group, start):
            own.setdefault(document.source, []).append(index)
        for source, of in own.items():
            name = source
            while name in taken:
                name = f"text:{name}"
            found[name] = of
            taken.add(name)
    return found
