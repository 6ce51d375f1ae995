"""What a run read, step by step, and when it read a document: arithmetic on its records.

Everything comes from the newest checkpoint of the run (manifest.json: recipe and inputs; state.json:
step, batch stages, the order's fingerprint) and from the token folders it names. The order computed
here must have the fingerprint that training wrote down, or nothing is said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loom.artifact import MANIFEST
from loom.errors import LoomError
from loom.tokens.order import EpochOrder, Extent, ReadingOrder, Stage, places_of_step, step_of_place
from loom.tokens.remote import address
from loom.tokens.shards import TokenFolder, open_tokens
from loom.train.documents import Documents, DocumentTable, pairs_fingerprint, rows_fingerprint

MOST_SOURCES = 6  # of a mixture whose order is found by trying, in a checkpoint that does not say it


@dataclass(frozen=True)
class Piece:
    """A stretch of a token folder that an instance holds: tokens [start, end) of a shard, at `at` in it."""

    source: int
    shard: int
    start: int
    end: int
    at: int


@dataclass(frozen=True)
class Instance:
    """What one row of a batch holds. `length` is its tokens with padding; pieces lie where they say."""

    place: int
    length: int
    pieces: tuple[Piece, ...]


class _Windows:
    """lm: windows of one length, documents back to back."""

    def __init__(
        self, folders: Sequence[TokenFolder], weights: Sequence[float], length: int, seed: int, kind: Any
    ) -> None:
        extents = [
            Extent(folder.digest, str(folder.path), tuple(s.tokens for s in folder.shards), weight)
            for folder, weight in zip(folders, weights, strict=True)
        ]
        self.order, self.length = ReadingOrder(extents, length, seed, kind), length
        self.fingerprint = self.order.fingerprint

    def instances(self, places: NDArray[np.int64]) -> Iterator[Instance]:
        if not len(places):
            return
        first = int(places[0])
        sources, indices = self.order.at(first, int(places[-1]) + 1)
        for place in places.tolist():
            source, index = int(sources[place - first]), int(indices[place - first])
            shard, start = self.order.locate(source, index)
            piece = Piece(source, shard, start, start + self.length, 0)
            yield Instance(place, self.length, (piece,))

    def places(self, source: int, shard: int, start: int, end: int, before: int) -> list[int]:
        """Every place below `before` that holds one of tokens [start, end) of a shard."""
        found = []
        for window in range(start // self.length, (end - 1) // self.length + 1):
            index = self.order.instance_of(source, shard, window * self.length)
            if index is None:
                continue
            epoch = 0
            while (place := self.order.place_of(source, index, epoch)) < before:
                found.append(place)
                epoch += 1
        return sorted(found)


class _Rows:
    """sft: conversations packed into rows; dpo: pairs of answers, one after the other."""

    def __init__(self, folder: TokenFolder, length: int, seed: int, pairs: bool, label_weight: str) -> None:
        self.folder, self.length, self.pairs = folder, length, pairs
        table = document_table(folder)
        self.documents = Documents(folder, table, length)
        if pairs:
            members, _ = self.documents.pairs()
            self.members = [np.asarray(row) for row in members.reshape(-1, 2)]
            sizes = [self.documents.sizes[row] for row in self.members]
            self.offsets = [np.cumsum(size) - size for size in sizes]
            self.fingerprint = pairs_fingerprint(folder, length, seed)
        else:
            self.members, self.offsets, _ = self.documents.rows()
            self.fingerprint = rows_fingerprint(folder, length, seed, label_weight)
        self.order = EpochOrder(len(self.members), seed)

    def instances(self, places: NDArray[np.int64]) -> Iterator[Instance]:
        for place, row in zip(places.tolist(), self.order.at(places).tolist(), strict=True):
            pieces = []
            for document, offset in zip(self.members[row].tolist(), self.offsets[row].tolist(), strict=True):
                shard, start = int(self.documents.shard[document]), int(self.documents.start[document])
                pieces.append(Piece(0, shard, start, start + int(self.documents.sizes[document]), offset))
            length = sum(piece.end - piece.start for piece in pieces) if self.pairs else self.length
            yield Instance(place, length, tuple(pieces))

    @cached_property
    def _row_of(self) -> dict[tuple[int, int], int]:
        return {
            (int(self.documents.shard[document]), int(self.documents.start[document])): row
            for row, members in enumerate(self.members)
            for document in members.tolist()
        }

    def places(self, source: int, shard: int, start: int, end: int, before: int) -> list[int]:
        rows = {row for (at, first), row in self._row_of.items() if at == shard and start <= first < end}
        found: list[int] = []
        for row in rows:
            place = int(self.order.place_of(np.array([row]))[0])
            found += range(place, before, self.order.size)
        return sorted(found)


@dataclass(frozen=True)
class Reading:
    """A run's reading: its folders in the order's numbering, its stages, and how far it is."""

    run: Path
    objective: str
    folders: tuple[TokenFolder, ...]
    data: _Windows | _Rows
    stages: tuple[Stage, ...]
    step: int
    """Of the newest checkpoint."""
    last_step: int
    """What the recipe asks for."""

    def instances(self, step: int, rank: int = 0, ranks: int = 1) -> list[Instance]:
        """The instances of a step's batch, or a rank's share of them, in the order they are fed.

        Raises `LoomError` for a step the run does not have or a rank there is none of.
        """
        if not 1 <= step <= self.last_step:
            raise LoomError(f"{self.run} has steps 1 to {self.last_step:,}; there is no step {step:,}.")
        if not 0 <= rank < ranks:
            raise LoomError(f"There is no rank {rank} among {ranks}: ranks count from 0.")
        first, last = places_of_step(self.stages, step)
        return list(self.data.instances(np.arange(first + rank, last, ranks, dtype=np.int64)))

    def steps(self, source: int, shard: int, start: int, end: int) -> list[int]:
        """The steps, up to the newest checkpoint's, that read one of tokens [start, end) of a shard."""
        before = places_of_step(self.stages, self.step)[1] if self.step else 0
        places = self.data.places(source, shard, start, end, before)
        return sorted({step_of_place(self.stages, place) for place in places})

    def tokens(self, instance: Instance) -> NDArray[Any]:
        """The ids of an instance as the model was fed them, padding included, [length]."""
        ids = np.full(instance.length, self.folders[0].pad.id, self.folders[0].kind)
        for piece in instance.pieces:
            read = self.folders[piece.source].ids(piece.shard, piece.start, piece.end)
            ids[piece.at : piece.at + piece.end - piece.start] = read
        return ids


@dataclass(frozen=True)
class DocumentRows:
    """The documents of a token shard: `docs.parquet` as columns."""

    path: Path

    @cached_property
    def table(self) -> Any:
        try:
            return pq.read_table(self.path)
        except (OSError, ValueError) as error:
            raise LoomError(f"{self.path} cannot be read ({error}). Tokenize again.") from None

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.asarray(self.table["start"].to_numpy())

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        return np.asarray(self.table["end"].to_numpy())

    def within(self, start: int, end: int) -> list[dict[str, Any]]:
        """The rows that hold one of tokens [start, end)."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left"))
        rows: list[dict[str, Any]] = self.table.slice(first, max(0, last - first)).to_pylist()
        return rows


def document_rows(folder: TokenFolder, shard: int) -> DocumentRows:
    return DocumentRows(folder.file(folder.shards[shard].path.replace(".npy", ".docs.parquet")))


def document_table(folder: TokenFolder) -> DocumentTable:
    """The documents of a prepared folder, all shards together, as training takes them."""
    tables = [document_rows(folder, number).table for number in range(len(folder.shards))]
    columns = {
        name: np.concatenate([np.asarray(table[name].to_numpy(), np.int64) for table in tables])
        for name in ("start", "end", "pair")
    }
    sides = [side for table in tables for side in table["side"].to_pylist()]
    shards = [np.full(len(table), number, np.int64) for number, table in enumerate(tables)]
    sided = any(sides)
    return DocumentTable(
        np.concatenate(shards),
        columns["start"],
        columns["end"],
        columns["pair"] if sided else None,
        np.array([side == "rejected" for side in sides]) if sided else None,
    )


def newest_checkpoint(run: Path) -> Path:
    """The newest finished checkpoint of a run folder, or the checkpoint that `run` itself is."""
    if (run / "state.json").is_file() and (run / MANIFEST).is_file():
        return run
    found = sorted(path.parent for path in run.glob(f"checkpoints/step-*/{MANIFEST}"))
    if not found:
        raise LoomError(
            f"{run} holds no finished checkpoint, so no one knows yet what it read: name a run of "
            f"`loom train` that has saved once."
        )
    return max(found, key=lambda path: int(path.name.removeprefix("step-")))


def open_reading(run: Path) -> Reading:
    """What a run read. Raises `LoomError` where its tokens are gone or are no longer those it read."""
    checkpoint = newest_checkpoint(run)
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    state = json.loads((checkpoint / "state.json").read_bytes())
    recipe = manifest["recipe"]
    if not state.get("step") or "train" not in (recipe or {}):
        raise LoomError(f"{checkpoint} was imported, not trained: it has read nothing here.")
    objective = recipe["train"]["objective"]
    folders, gone = _token_folders(checkpoint, manifest["inputs"])
    data, chosen = _matching(recipe, state, folders, gone, checkpoint)
    return Reading(
        run,
        objective,
        tuple(chosen),
        data,
        tuple(_stages(recipe, state)),
        int(state["step"]),
        max(int(recipe["train"]["steps"]), int(state["step"])),
    )


def _token_folders(
    checkpoint: Path, inputs: Sequence[Mapping[str, str]]
) -> tuple[list[TokenFolder], list[Path]]:
    """The token folders among a checkpoint's inputs, and the inputs that are gone: tokens, or what it started from."""
    folders: list[TokenFolder] = []
    gone: list[Path] = []
    for item in inputs:
        if address(item["path"]):  # only tokens are read elsewhere
            path: Path = Path(item["path"])
            kind: str | None = "tokens"
        else:
            path = Path(os.path.normpath(checkpoint.resolve() / item["path"]))
            kind = _kind(path)
        if kind is None and not path.exists():
            gone.append(path)
        if kind != "tokens":
            continue
        folder = open_tokens(path)
        if folder.digest != item["digest"]:
            raise LoomError(
                f"The tokens in {path} changed since {checkpoint} was trained on them: what its steps read "
                f"can no longer be said. Restore that folder."
            )
        folders.append(folder)
    return folders, gone


def _kind(path: Path) -> str | None:
    try:
        return str(json.loads((path / MANIFEST).read_bytes()).get("kind"))
    except (OSError, ValueError):
        return None


def _matching(
    recipe: Mapping[str, Any],
    state: Mapping[str, Any],
    folders: Sequence[TokenFolder],
    gone: Sequence[Path],
    where: Path,
) -> tuple[_Windows | _Rows, Sequence[TokenFolder]]:
    """The data set whose fingerprint is the one training wrote down."""
    length, seed = int(state["sequence_length"]), int(state["seed"])
    data = recipe["data"]
    if recipe["train"]["objective"] == "lm":
        sources = data["tokens"]
        weights = [1.0] if isinstance(sources, str) else [float(item["weight"]) for item in sources]
        for chosen in _numbered(folders, len(weights), state.get("sources"), where):
            windows = _Windows(chosen, weights, length, seed, data["order"])
            if windows.fingerprint == state["fingerprint"]:
                return windows, chosen
    else:
        pairs = recipe["train"]["objective"] == "dpo"
        label_weight = recipe["train"]["label_weight"]
        for folder in folders:
            rows = _Rows(folder, length, seed, pairs, label_weight)
            if rows.fingerprint == state["fingerprint"]:
                return rows, [folder]
    if gone:
        raise LoomError(
            f"{where} was made from {', '.join(map(str, gone))}, no longer there, and what is left is not all it read: "
            f"put it back to see what was read."
        )
    raise LoomError(
        f"{where} was trained in an order (fingerprint {state['fingerprint'][:12]}) that its recipe and "
        f"token folders no longer give: one of them changed, or another version of Loom trained it."
    )


def _numbered(
    folders: Sequence[TokenFolder], count: int, digests: Sequence[str] | None, where: Path
) -> Iterator[Sequence[TokenFolder]]:
    """`count` folders as the order numbers them, which is as the recipe does; the manifest lists them by path.

    By their `digests` if the checkpoint has them, else every way to be tried.
    """
    if digests:
        known = {folder.digest: folder for folder in folders}
        if all(digest in known for digest in digests):
            yield [known[digest] for digest in digests]
        return
    if count > MOST_SOURCES:
        raise LoomError(
            f"{where} read a mixture of {count} folders and does not say their order, which is found by trying up to "
            f"{MOST_SOURCES} only."
        )
    yield from permutations(folders, count)


def _stages(recipe: Mapping[str, Any], state: Mapping[str, Any]) -> list[Stage]:
    """The batch sizes used so far, then those the recipe still has in store."""
    stages = [Stage(*values) for values in state["stages"]]
    for later in recipe["train"].get("batch_stages") or ():
        last = stages[-1]
        if later["step"] > last.step and later["step"] > state["step"]:
            before = last.instances_before + (later["step"] - last.step) * last.batch
            stages.append(Stage(later["step"], before, later["batch_tokens"] // state["sequence_length"]))
    return stages


def ancestors(run: Path) -> Iterator[Path]:
    """A run, then the runs whose checkpoints it started from, as far as they can be found."""
    seen: set[Path] = set()
    waiting = [run]
    while waiting:
        current = waiting.pop(0)
        if current.resolve() in seen:
            continue
        seen.add(current.resolve())
        yield current
        try:
            checkpoint = newest_checkpoint(current)
        except LoomError:
            continue
        for item in json.loads((checkpoint / MANIFEST).read_bytes())["inputs"]:
            path = Path(os.path.normpath(checkpoint.resolve() / item["path"]))
            if (path / "state.json").is_file():
                waiting.append(path)


def reading_of(run: Path, tokens_digest: str) -> tuple[Reading, int]:
    """The reading of the tokens with this digest, by a run or one it started from, and their number there."""
    tried = []
    for current in ancestors(run):
        try:
            reading = open_reading(current)
        except LoomError as error:
            tried.append(str(error))
            continue
        for number, folder in enumerate(reading.folders):
            if folder.digest == tokens_digest:
                return reading, number
        tried.append(f"{current} read {', '.join(str(folder.path) for folder in reading.folders)}.")
    raise LoomError(
        f"{run} did not read the tokens of this index, nor did a run it started from: {' '.join(tried)}"
    )
