"""A Hugging Face folder whose files are damaged: each is named in a sentence, whoever opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.errors import LoomError
from loom.release.export import Export, export
from loom.release.safetensors import INDEX
from loom.release.source import open_source
from tests.release.conftest import TIED, Make

OPENERS: dict[str, Callable[[Path], Any]] = {"used": loom.load, "exported": open_source}


def header(values: Any) -> bytes:
    """A .safetensors file that is a header and nothing else."""
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    ("file", "held"),
    [
        ("config.json", b'{"model_type": "olmo", "hidden_'),
        ("config.json", b"[1, 2]"),
        ("config.json", b""),
        ("config.json", b'{"model_type": "olmo\xff"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x01\x02"),
        ("model.safetensors", header([1, 2])),
        ("model.safetensors", header({"model.embed_tokens.weight": {"dtype": "F32"}})),
    ],
)
def test_a_damaged_file_is_named(
    make_checkpoint: Make, tmp_path: Path, opener: str, file: str, held: bytes
) -> None:
    folder = export(make_checkpoint(TIED), tmp_path / "export").path
    (folder / file).write_bytes(held)
    with pytest.raises(LoomError, match=rf"{file}.*(cut short|fetch)"):
        OPENERS[opener](folder)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_value_that_is_no_number_is_named(make_checkpoint: Make, tmp_path: Path, opener: str) -> None:
    folder = export(make_checkpoint(TIED), tmp_path / "export").path
    values = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(values | {"hidden_size": "wide"}))
    with pytest.raises(LoomError, match="config.json does not describe a model .*wide"):
        OPENERS[opener](folder)


@pytest.mark.parametrize("held", [b'{"weight_map": {"model.emb', b"{}", b"[]", b'{"weight_map": 3}'])
def test_a_damaged_index_is_named(make_checkpoint: Make, tmp_path: Path, held: bytes) -> None:
    folder = export(make_checkpoint(TIED), tmp_path / "export", Export(shard_bytes=20_000)).path
    (folder / INDEX).write_bytes(held)
    with pytest.raises(LoomError, match=rf"{INDEX} .*fetch"):
        open_source(folder)
