"""Token folders made by hand, and brute force over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loom import artifact
from loom.artifact import Artifact, describe

Documents = Sequence[Sequence[int]]


def write_tokens(
    folder: Path, shards: Sequence[Documents], vocab_size: int = 300, dtype: str = "uint16", eos: int = 0
) -> Artifact:
    """A token folder of kind "tokens" with these documents, whose ids end in `eos` of their own."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    entries, names, row = [], ["tokenizer.json"], 0
    for number, documents in enumerate(shards):
        ids = np.array([token for document in documents for token in document], np.dtype(dtype))
        ends = np.cumsum([len(document) for document in documents])
        starts = ends - [len(document) for document in documents]
        stem = f"shard-{number:05d}"
        ids.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{stem}.npy")
        rows = range(row, row + len(documents))
        table = {
            "start": pa.array(starts, pa.int64()),
            "end": pa.array(ends, pa.int64()),
            "id": pa.array([f"doc-{index}" for index in rows], pa.string()),
            "source": pa.array([f"source-{index % 3}" for index in rows], pa.string()),
            "origin": pa.array([f"part/{index % 3}.jsonl.gz:{index + 1}" for index in rows], pa.string()),
        }
        row += len(documents)
        pq.write_table(pa.table(table), folder / f"{stem}.docs.parquet", compression="zstd")
        digest = artifact.digest_file(folder / f"{stem}.npy")
        entries.append(
            {"path": f"{stem}.npy", "tokens": len(ids), "documents": len(documents), "digest": digest}
        )
        names += [f"{stem}.npy", f"{stem}.docs.parquet"]
    facts = {
        "dtype": dtype,
        "vocab_size": vocab_size,
        "eos": {"id": eos, "token": "<|endoftext|>"},
        "pad": {"id": 1, "token": "<|padding|>"},
        "tokenizer": {"path": "tokenizer.json", "digest": artifact.digest_file(folder / "tokenizer.json")},
        "shards": entries,
        "sources": {},
    }
    return artifact.commit(
        folder,
        "tokens",
        recipe={},
        inputs=[],
        outputs=describe(folder, names),
        counters={},
        facts={"tokens": facts},
    )


def occurrences(documents: Documents, query: Sequence[int]) -> list[tuple[int, int]]:
    """(document, offset) of every place where `query` stands within a document, by looking everywhere."""
    return [
        (number, at)
        for number, document in enumerate(documents)
        for at in range(len(document) - len(query) + 1)
        if list(document[at : at + len(query)]) == list(query)
    ]
