"""Where a document lies among the token shards, without reading more than one shard's table.

A shard is a range of the keyed hash of ids, so an id says which shard it would be in. Folders that were
taken over from others (`--adopt`) have no such order: there every table is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from loom.artifact import MANIFEST, Artifact, load
from loom.tokens.parts import order_hash


@dataclass(frozen=True)
class Place:
    """A document's tokens `[start, end)` in a shard, end-of-text included; `held_out` is never trained on."""

    shard: str
    row: int  # from 0, in the shard's table of documents
    start: int
    end: int
    origin: str
    held_out: bool


def find_document(tokens: Artifact, identity: str) -> list[Place]:
    """Every place of a document id in a token folder and its held-out part; empty if it is in neither."""
    folders = [(tokens.path, tokens.facts["tokens"], False)]
    held = tokens.path / "heldout"
    if (held / MANIFEST).is_file():
        folders.append((held, load(held, "tokens").facts["tokens"], True))
    adopted = isinstance(tokens.recipe, Mapping) and bool(tokens.recipe.get("adopt"))
    return [
        place
        for folder, facts, held_out in folders
        for shard in _candidates(identity, [item["path"] for item in facts["shards"]], adopted)
        for place in _in_shard(folder, shard, identity, held_out)
    ]


def _candidates(identity: str, shards: list[str], adopted: bool) -> list[str]:
    if adopted:
        return shards
    count, hashed = len(shards), order_hash(identity)
    return [
        shard
        for number, shard in enumerate(shards)
        if number * 2**64 // count <= hashed < (number + 1) * 2**64 // count
    ]


def _in_shard(folder: Path, shard: str, identity: str, held_out: bool) -> Iterator[Place]:
    table = pq.ParquetFile(folder / f"{shard.removesuffix('.npy')}.docs.parquet")
    first = 0
    for group in range(table.num_row_groups):
        ids = table.read_row_group(group, columns=["id"]).column("id")
        found: list[int] = pc.indices_nonzero(pc.equal(ids, identity)).to_pylist()
        if found:
            rows: list[dict[str, Any]] = (
                table.read_row_group(group, columns=["start", "end", "origin"]).take(found).to_pylist()
            )
            for at, row in zip(found, rows, strict=True):
                yield Place(shard, first + at, row["start"], row["end"], row["origin"], held_out)
        first += len(ids)
