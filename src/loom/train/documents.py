"""Documents of an SFT or DPO folder as packed rows.

The tables lie in Parquet, which is not read here: the caller passes them in as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loom.chat.packing import best_fit
from loom.errors import LoomError
from loom.tokens.digest import digest_json
from loom.tokens.shards import TokenFolder

Integers = npt.NDArray[np.int64]


def rows_fingerprint(folder: TokenFolder, length: int, seed: int, label_weight: str) -> str:
    """Of packed rows in their order: what training writes down, and what the trace must find again."""
    return digest_json([2, folder.digest, length, seed, label_weight])


def pairs_fingerprint(folder: TokenFolder, length: int, seed: int) -> str:
    """Of pairs in their order."""
    return digest_json([4, folder.digest, length, seed])


@dataclass(frozen=True)
class DocumentTable:
    """A row a document, in the folder's order: columns of `shard-NNNNN.docs.parquet`, all shards together.

    `start` and `end` are token offsets within the shard, `end` after the EOS. DPO also has `pair`, equal
    for the two answers to a prompt, and `rejected`.
    """

    shard: Integers
    start: Integers
    end: Integers
    pair: Integers | None = None
    rejected: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Rows:
    """Tokens laid out in [rows, length]; padding has document -1 and weight 0.

    `documents` numbers the documents given, `positions` count from each document's first token, and
    `weights` belong to the token itself: 1 where it is an answer's.
    """

    ids: Integers
    documents: Integers
    positions: Integers
    weights: npt.NDArray[np.float32]


class Documents:
    """A prepared folder, cut to `length` tokens a document.

    A longer document keeps its start. Documents of which no answer is left are dropped, for DPO with
    their partner. `cut` and `dropped` count both.
    """

    def __init__(self, folder: TokenFolder, table: DocumentTable, length: int) -> None:
        self.folder, self.length = folder, length
        if not len(table):
            raise LoomError(f"{folder.path} holds no documents: check what `loom prepare` was given.")
        if int((table.end - table.start).min()) < 2:
            raise LoomError(f"{folder.path}: a document of fewer than 2 tokens; prepare the folder again.")
        for shard in np.unique(table.shard).tolist():
            if int(table.end[table.shard == shard].max()) > folder.shards[shard].tokens:
                raise LoomError(
                    f"{folder.path}: documents reach past the end of {folder.shards[shard].path}."
                )
        self.shard, self.start = table.shard, table.start
        self.sizes = np.minimum(table.end - table.start, length)
        self.cut = int((table.end - table.start > length).sum())
        # A document's first token has no predecessor, so nothing can be learnt there.
        self.labels = np.array(
            [
                int(np.count_nonzero(folder.weights[s][a + 1 : a + n]))
                for s, a, n in zip(self.shard.tolist(), self.start.tolist(), self.sizes.tolist(), strict=True)
            ],
            dtype=np.int64,
        )
        self.table = table

    def pairs(self) -> tuple[Integers, int]:
        """(documents [pairs, 2] as chosen, rejected; how many pairs were dropped)."""
        if self.table.pair is None or self.table.rejected is None:
            raise LoomError(
                f"{self.folder.path} has no preference pairs: prepare it with `loom prepare dpo`."
            )
        sides: dict[int, list[int]] = {}
        for document, (pair, rejected) in enumerate(
            zip(self.table.pair.tolist(), self.table.rejected.tolist(), strict=True)
        ):
            slots = sides.setdefault(int(pair), [-1, -1])
            if slots[int(rejected)] >= 0:
                raise LoomError(
                    f"{self.folder.path}: pair {pair} has two {'rejected' if rejected else 'chosen'} answers."
                )
            slots[int(rejected)] = document
        for pair, slots in sides.items():
            if min(slots) < 0:
                raise LoomError(
                    f"{self.folder.path}: pair {pair} lacks its {'chosen' if slots[0] < 0 else 'rejected'} answer."
                )
        every = np.array(list(sides.values()), dtype=np.int64).reshape(-1, 2)
        usable = (self.labels[every] > 0).all(axis=1)
        if not usable.any():
            raise LoomError(
                f"{self.folder.path}: no pair has both answers within data.sequence_length {self.length}."
            )
        return every[usable], int((~usable).sum())

    def answered(self) -> tuple[Integers, int]:
        """(documents that have an answer, how many have none)."""
        usable = np.flatnonzero(self.labels > 0)
        if not len(usable):
            raise LoomError(f"{self.folder.path}: no answer lies within data.sequence_length {self.length}.")
        return usable, len(self.labels) - len(usable)

    def rows(self) -> tuple[list[Integers], list[Integers], int]:
        """Answered conversations packed: each row's documents, where they begin in it; how many were dropped."""
        usable, dropped = self.answered()
        rows, offsets, count = self.pack(usable)
        by_row = np.lexsort((offsets, rows))
        cuts = np.searchsorted(rows[by_row], np.arange(1, count))
        if not count:
            return [], [], dropped
        return np.split(usable[by_row], cuts), np.split(offsets[by_row], cuts), dropped

    def lay_out(self, documents: Integers, rows: Integers, offsets: Integers, count: int) -> Rows:
        """Documents at (row, offset) of a [count, length] grid."""
        shape = (count, self.length)
        ids = np.full(shape, self.folder.pad.id, dtype=np.int64)
        numbers = np.full(shape, -1, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        places = zip(documents.tolist(), rows.tolist(), offsets.tolist(), strict=True)
        for number, (document, row, offset) in enumerate(places):
            size, shard, start = self.sizes[document], self.shard[document], self.start[document]
            part = slice(offset, offset + size)
            ids[row, part] = self.folder.known(shard, self.folder.arrays[shard][start : start + size])
            weights[row, part] = self.folder.weights[shard][start : start + size]
            weights[row, offset] = 0
            numbers[row, part] = number
            positions[row, part] = np.arange(size)
        return Rows(ids, numbers, positions, weights)

    def read(self, document: int) -> tuple[Integers, npt.NDArray[np.uint8]]:
        """(ids, weights) of one document, cut to the length."""
        shard, start = self.shard[document], self.start[document]
        part = slice(start, start + self.sizes[document])
        ids = self.folder.known(shard, self.folder.arrays[shard][part])
        return ids.astype(np.int64), np.asarray(self.folder.weights[shard][part])

    def pack(self, documents: Integers) -> tuple[Integers, Integers, int]:
        """Best fit of documents into rows: (row [n], offset [n], number of rows)."""
        rows, offsets = best_fit(self.sizes[documents], self.length)
        return rows, offsets, int(rows.max()) + 1
