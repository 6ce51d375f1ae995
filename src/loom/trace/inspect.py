"""From a step to its documents: the batch of any training step, with source and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loom.tokens.tokenizer import Tokenizer
from loom.trace.reading import DocumentRows, Instance, Reading, document_rows, open_reading


def inspect_step(
    run: Path,
    step: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    text: bool = False,
    limit: int | None = None,
    verify: bool = False,
) -> dict[str, Any]:
    """The instances of a step (`limit`: the first so many), each with its ids and its documents.

    A document carries `id`, `source`, `origin` (file:row of the corpus), `start` and `end` (its part of
    the instance's tokens) and `document_start` (where in the document that part begins). With `text`,
    instances and documents carry their text too. Raises `LoomError` for a step or rank there is none
    of, and where the tokens changed since: by their manifests and sizes, with `verify` by their digests.
    """
    reading = open_reading(run)
    for folder in reading.folders if verify else ():
        folder.verify()
    instances = reading.instances(step, rank, ranks)
    shown = instances if limit is None else instances[:limit]
    tokenizer = Tokenizer.load(reading.folders[0].tokenizer) if text else None
    rows: dict[tuple[int, int], DocumentRows] = {}
    return {
        "run": str(run),
        "step": step,
        "objective": reading.objective,
        "instances_in_batch": len(instances),
        "instances": [_describe(reading, instance, rows, tokenizer) for instance in shown],
    }


def _describe(
    reading: Reading,
    instance: Instance,
    rows: dict[tuple[int, int], DocumentRows],
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    ids = reading.tokens(instance)
    documents = []
    for piece in instance.pieces:
        folder = reading.folders[piece.source]
        key = (piece.source, piece.shard)
        if key not in rows:
            rows[key] = document_rows(folder, piece.shard)
        for row in rows[key].within(piece.start, piece.end):
            first, last = max(row["start"], piece.start), min(row["end"], piece.end)
            start, end = first - piece.start + piece.at, last - piece.start + piece.at
            document = {
                "id": row["id"],
                "source": row["source"],
                "origin": row["origin"],
                "start": start,
                "end": end,
                "document_start": first - row["start"],
                "document_tokens": row["end"] - row["start"],
                "shard": str(folder.path / folder.shards[piece.shard].path),
            }
            if row.get("side"):
                document |= {"pair": row["pair"], "side": row["side"]}
            if tokenizer is not None:
                document["text"] = tokenizer.decode(ids[start:end].tolist())
            documents.append(document)
    out: dict[str, Any] = {"place": instance.place, "tokens": ids.tolist(), "documents": documents}
    if tokenizer is not None:
        out["text"] = tokenizer.decode(out["tokens"])
    return out
