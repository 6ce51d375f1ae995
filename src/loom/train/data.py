"""Token folders as micro-batches.

A data set knows its number of instances and its order, and collates instances into tensors; what an
instance is differs: a window of tokens (lm), a packed row (sft) or a preference pair (dpo).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loom.errors import LoomError
from loom.tokens.order import EpochOrder, Extent, ReadingOrder
from loom.tokens.repetition import repeats
from loom.tokens.shards import TokenFolder, open_tokens
from loom.train.branches import Side, lay_out
from loom.train.config import DataConfig, TokenSource
from loom.train.documents import Documents, DocumentTable, Rows, pairs_fingerprint, rows_fingerprint
from loom.train.parallel import World

Integers = npt.NDArray[np.int64]
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """A micro-batch. Labels are the next tokens, weights theirs; both [B, T] like `input_ids`.

    `labels` None: every next token of the row, weight 1. `segments` [B, T] number the documents of
    pairs: 2 p is pair p's chosen, 2 p + 1 its rejected answer, -1 padding. `denominator` is what the
    loss sum will be divided by, this micro-batch's part of it.
    """

    input_ids: Tensor
    denominator: float
    labels: Tensor | None = None
    weights: Tensor | None = None
    position_ids: Tensor | None = None
    document_ids: Tensor | None = None
    attn_mask: Tensor | None = None
    """Instead of document ids, where a row is parted over ranks (`loom.train.context`)."""
    segments: Tensor | None = None
    targets: Tensor | None = None
    """sft, dpo: flat places [n] of the [B * T] grid that have a label: only they are projected to logits."""
    branches: Tensor | None = None
    """dpo: 0 in a prompt, 1 and 2 in its chosen and rejected answer [B, T] (`loom.train.branches`)."""
    pairs: Tensor | None = None
    """dpo: the data set's numbers of the pairs [P]."""

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.pin_memory().to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class Data(Protocol):
    """What the loader asks of a data set."""

    @property
    def folders(self) -> Sequence[TokenFolder]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def instances(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def batch(self, places: Integers) -> Batch:
        """Collate the instances at these places of the order."""
        ...


class Windows:
    """lm: whole windows of `length` tokens, documents back to back, as OLMo reads them."""

    def __init__(
        self,
        config: DataConfig,
        folders: Sequence[TokenFolder],
        length: int,
        seed: int,
        label_weight: str = "per_token",
    ) -> None:
        self.config, self.folders, self.length = config, folders, length
        self.label_weight = label_weight
        self.notes: list[str] = []
        extents = [
            Extent(f.digest, str(f.path), tuple(s.tokens for s in f.shards), source.weight)
            for f, source in zip(folders, sources(config), strict=True)
        ]
        self.order = ReadingOrder(extents, length, seed, config.order)
        self.grids = [
            [folder.grid(shard, length) for shard in range(len(folder.shards))] for folder in folders
        ]

    @property
    def instances(self) -> int:
        return self.order.instances

    @property
    def fingerprint(self) -> str:
        return self.order.fingerprint

    def windows(self, places: Integers) -> Integers:
        """Token ids [n, length] at these places."""
        first, last = int(places[0]), int(places[-1]) + 1
        sources_, indices = self.order.at(first, last)
        sources_, indices = sources_[places - first], indices[places - first]
        ids = np.empty((len(places), self.length), dtype=np.int64)
        for source, starts in enumerate(self.order.starts):
            mine = np.flatnonzero(sources_ == source)
            shards = np.searchsorted(starts, indices[mine], side="right") - 1
            for shard in np.unique(shards).tolist():
                rows = mine[shards == shard]
                found = self.grids[source][shard][indices[rows] - starts[shard]]
                ids[rows] = self.folders[source].known(shard, found)
        return ids

    def batch(self, places: Integers) -> Batch:
        ids = self.windows(places)
        size, length = ids.shape
        weights = documents = None
        denominator = float(size * (length - 1))
        if self.config.skip_repetitions:
            kept = ~repeats(ids)
            denominator = float(kept.sum() * (length - 1))
            weights = torch.from_numpy(kept.astype(np.float32))[:, None].expand(size, length).clone()
            weights[:, -1] = 0
        if self.config.document_mask:
            ends = (ids == self.folders[0].eos.id).astype(np.int64)
            documents = torch.from_numpy(np.cumsum(ends, axis=1) - ends)
        if self.label_weight == "per_position":
            denominator = float(size * length)
        return Batch(torch.from_numpy(ids), denominator, weights=weights, document_ids=documents)


def _shifted(rows: Rows) -> tuple[Tensor, Tensor]:
    """(labels, weights) of the next tokens."""
    labels = np.full_like(rows.ids, IGNORE)
    weights = np.zeros_like(rows.weights)
    weights[:, :-1] = rows.weights[:, 1:]
    labels[:, :-1] = np.where(rows.weights[:, 1:] > 0, rows.ids[:, 1:], IGNORE)
    return torch.from_numpy(labels), torch.from_numpy(weights)


def _targets(labels: Tensor) -> Tensor:
    return (labels.flatten() >= 0).nonzero()[:, 0]


class PackedRows:
    """sft: conversations packed whole into rows; a row is an instance."""

    def __init__(
        self,
        folder: TokenFolder,
        table: DocumentTable,
        length: int,
        seed: int,
        label_weight: str = "per_token",
    ) -> None:
        if table.pair is not None:
            raise LoomError(
                f"{folder.path} holds preference pairs, whose rejected answers are not to be learnt: prepare "
                f"conversations with `loom prepare sft`, or train with train.objective=dpo."
            )
        self.folders = [folder]
        self.documents = Documents(folder, table, length)
        self.label_weight = label_weight
        self.members, self.offsets, dropped = self.documents.rows()
        packed = sum(map(len, self.members))
        self.notes = [f"{packed:,} conversations are packed into {len(self.members):,} rows of {length:,}"]
        self.notes += _notes(self.documents.cut, dropped, "conversations", length)
        self.order = EpochOrder(len(self.members), seed)
        self.fingerprint = rows_fingerprint(folder, length, seed, label_weight)

    @property
    def instances(self) -> int:
        return self.order.size

    def batch(self, places: Integers) -> Batch:
        chosen = self.order.at(places).tolist()
        documents = np.concatenate([self.members[row] for row in chosen])
        offsets = np.concatenate([self.offsets[row] for row in chosen])
        rows = np.repeat(np.arange(len(chosen)), [len(self.members[row]) for row in chosen])
        grid = self.documents.lay_out(documents, rows, offsets, len(chosen))
        if self.label_weight == "per_example":
            share = 1 / self.documents.labels[documents].astype(np.float32)
            grid.weights[...] *= np.where(grid.documents >= 0, share[grid.documents], 0)
        labels, weights = _shifted(grid)
        denominator = {
            "per_token": float(grid.weights.sum(dtype=np.float64)),
            "per_example": float(len(documents)),
            "per_position": float(grid.ids.size),
        }[self.label_weight]
        return Batch(
            torch.from_numpy(grid.ids),
            denominator,
            labels,
            weights,
            torch.from_numpy(grid.positions),
            torch.from_numpy(grid.documents),
            targets=_targets(labels),
        )


class Pairs:
    """dpo: a pair of answers is an instance; a micro-batch packs pairs into rows, each prompt once."""

    def __init__(self, folder: TokenFolder, table: DocumentTable, length: int, seed: int) -> None:
        self.folders = [folder]
        self.documents = Documents(folder, table, length)
        self.members, dropped = self.documents.pairs()
        self.notes = _notes(self.documents.cut, dropped, "pairs", length)
        self.order = EpochOrder(len(self.members), seed)
        self.fingerprint = pairs_fingerprint(folder, length, seed)

    @property
    def instances(self) -> int:
        return self.order.size

    def batch(self, places: Integers) -> Batch:
        return self.collate(self.order.at(places))

    def collate(self, pairs: Integers) -> Batch:
        """The pairs with these numbers, both answers of each."""
        sides = [
            tuple(Side(*self.documents.read(side)) for side in pair) for pair in self.members[pairs].tolist()
        ]
        laid = lay_out([(chosen, rejected) for chosen, rejected in sides], self.folders[0].pad.id)
        labels, weights = _shifted(Rows(laid.ids, laid.documents, laid.positions, laid.weights))
        return Batch(
            torch.from_numpy(laid.ids),
            float(len(pairs)),
            labels,
            weights,
            torch.from_numpy(laid.positions),
            torch.from_numpy(laid.documents),
            segments=torch.from_numpy(
                np.where(laid.documents < 0, -1, 2 * laid.documents + (laid.branches == 2))
            ),
            targets=_targets(labels),
            branches=torch.from_numpy(laid.branches),
            pairs=torch.from_numpy(pairs),
        )


def _notes(cut: int, dropped: int, what: str, length: int) -> list[str]:
    notes = []
    if cut:
        notes.append(
            f"{cut:,} documents are longer than data.sequence_length {length} and were cut at their end"
        )
    if dropped:
        notes.append(f"{dropped:,} {what} were left out: no answer lies within data.sequence_length {length}")
    return notes


def sources(config: DataConfig) -> tuple[TokenSource, ...]:
    return (TokenSource(config.tokens),) if isinstance(config.tokens, str) else config.tokens or ()


def open_folders(config: DataConfig, objective: str) -> list[TokenFolder]:
    """The token folders an objective reads. Raises `LoomError` for none, or for unlike vocabularies."""
    paths = {
        "lm": [source.path for source in sources(config)],
        "sft": [config.sft] if config.sft else [],
        "dpo": [config.pairs] if config.pairs else [],
    }[objective]
    if not paths:
        key = {"lm": "data.tokens", "sft": "data.sft", "dpo": "data.pairs"}[objective]
        raise LoomError(f"{key} is missing: train.objective {objective!r} reads it. Set {key}=FOLDER.")
    folders = [open_tokens(Path(path)) for path in paths]
    for other in folders[1:]:
        if (other.tokenizer_digest, other.eos, other.dtype) != (
            folders[0].tokenizer_digest,
            folders[0].eos,
            folders[0].dtype,
        ):
            raise LoomError(
                f"{folders[0].path} and {other.path} were tokenized with unlike tokenizers: mix folders of one only."
            )
    return folders


def verify(folders: Sequence[TokenFolder], world: World) -> None:
    """Read every shard once, dealt over the ranks. On all of them raises `LoomError` naming one that changed."""
    met: str | None = None
    try:
        for folder in folders:
            folder.verify(world.rank, world.size)
    except LoomError as error:
        met = str(error)
    for said in world.gather(met):
        if said is not None:
            raise LoomError(said)


def identities(folders: Sequence[TokenFolder]) -> list[dict[str, str]]:
    """What lineage follows: the folders' paths or addresses, and digests."""
    return [{"path": folder.address or str(folder.path), "digest": folder.digest} for folder in folders]
