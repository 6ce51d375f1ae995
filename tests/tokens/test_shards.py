"""A token folder is what its manifest says, or opening it says why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loom.errors import LoomError
from loom.tokens.digest import digest_file
from loom.tokens.shards import open_tokens


def write(folder: Path, shards: list[list[int]], eos: int = 0, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, ids in enumerate(shards):
        path = folder / f"shard-{number:05d}.npy"
        np.array(ids, "<u2").tofile(path)
        entries.append(
            {
                "path": path.name,
                "tokens": len(ids),
                "documents": max(1, ids.count(eos)),
                "digest": digest_file(path),
            }
        )
    facts = {
        "dtype": "uint16", "vocab_size": 100, "eos": {"id": eos, "token": "<|endoftext|>"},
        "pad": {"id": 1, "token": "<|padding|>"}, "tokenizer": {"path": "tokenizer.json", "digest": "x"},
        "shards": entries, "sources": {"a": {"documents": 1, "tokens": 3, "bytes": 9}}, **changes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"kind": "tokens", "tokens": facts}))
    return folder


def test_reads_what_was_written(tmp_path: Path) -> None:
    folder = open_tokens(write(tmp_path, [[5, 6, 0], [7, 0]]))
    assert [array.tolist() for array in folder.arrays] == [[5, 6, 0], [7, 0]]
    assert (folder.tokens, folder.documents, folder.eos.id) == (5, 2, 0)
    folder.verify()


def test_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="manifest.json is missing"):
        open_tokens(tmp_path / "nothing")
    cut = write(tmp_path / "cut", [[5, 6, 0]])
    (cut / "shard-00000.npy").write_bytes(b"\0\0")
    with pytest.raises(LoomError, match=r"shard-00000.npy has 2 bytes instead of 6"):
        open_tokens(cut)
    changed = write(tmp_path / "changed", [[5, 6, 0]])
    np.array([5, 7, 0], "<u2").tofile(changed / "shard-00000.npy")
    with pytest.raises(LoomError, match="changed since it was written"):
        open_tokens(changed).verify()
    with pytest.raises(LoomError, match=r"ends with the id 0.*'<\|endoftext\|>', id 6"):
        open_tokens(write(tmp_path / "wrong", [[5, 6, 0]], eos=6))
    with pytest.raises(LoomError, match="id 200, outside"):
        open_tokens(write(tmp_path / "far", [[5, 6, 0]], eos=200))
    with pytest.raises(LoomError, match="loom prepare"):
        _ = open_tokens(write(tmp_path / "plain", [[5, 0]])).weights
