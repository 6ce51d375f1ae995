"""Tokens in an object store are trained on in place: the batches, losses and documents of a copy here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loom.errors import LoomError
from loom.road.training import run_training
from loom.tokens.shards import open_tokens
from loom.trace.inspect import inspect_step
from loom.train.config import DataConfig
from loom.train.data import Windows
from tests.corpus import conftest as stores
from tests.corpus.test_remote import BUCKET, upload

from .test_loop import losses, recipe
from .tokens import EOS, learnable, write_tokens

s3_server, s3 = stores.s3_server, stores.s3  # fixtures
URL = f"s3://{BUCKET}/tokens"


@pytest.fixture
def tokens(tmp_path: Path, s3: Any) -> Path:
    """Three shards with a document every 50 tokens, here and in the store."""
    shards = [learnable(count, 64, seed) for seed, count in enumerate((1500, 900, 1700))]
    for ids in shards:
        ids[49::50] = EOS
    folder = write_tokens(tmp_path / "tokens", shards)
    for number, ids in enumerate(shards):
        ends = np.flatnonzero(ids == EOS) + 1
        starts = np.concatenate(([0], ends[:-1]))
        rows = [
            {"start": a, "end": b, "id": f"{number}-{a}", "source": "walk", "origin": f"walk:{a}"}
            for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"shard-{number:05d}.docs.parquet")
    upload(s3, folder, "tokens")
    return folder


def windows(path: str) -> Windows:
    return Windows(DataConfig(tokens=path), [open_tokens(Path(path))], 32, 3)


@pytest.mark.slow
def test_ranged_reads_are_the_maps_and_training_is_the_same(tmp_path: Path, tokens: Path, s3: Any) -> None:
    there, here = windows(URL), windows(str(tokens))
    assert there.fingerprint == here.fingerprint
    for places in (np.arange(5, 29), np.arange(40, 300, 17)):  # several shards, several epochs
        assert np.array_equal(there.windows(places), here.windows(places))
    open_tokens(Path(URL)).verify()
    config = recipe(tokens, steps=6)
    run_training(config, tmp_path / "here")
    remote = replace(config, data=replace(config.data, tokens=URL, verify=True))
    run_training(remote, tmp_path / "there")
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    ends = [json.loads((tmp_path / r / "manifest.json").read_text())["inputs"] for r in ("here", "there")]
    assert ends[1][0] == {"path": URL, "digest": ends[0][0]["digest"]}
    batches = [inspect_step(tmp_path / r, 4)["instances"] for r in ("here", "there")]
    named = [[(i["tokens"], [d["id"] for d in i["documents"]]) for i in batch] for batch in batches]
    assert named[0] == named[1] and any(documents for _, documents in named[0])


@pytest.mark.slow
def test_what_is_not_whole_there_is_named(tokens: Path, s3: Any) -> None:
    with pytest.raises(LoomError, match=r"There is no s3://corpora/elsewhere/manifest.json"):
        open_tokens(Path(f"s3://{BUCKET}/elsewhere"))
    reading = windows(URL)
    key = "tokens/shard-00001.npy"
    body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body[:40] + b"\x09" + body[41:])
    with pytest.raises(LoomError, match=r"shard-00001.npy.* changed since it was written"):
        open_tokens(Path(URL)).verify()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body[:-20])
    with pytest.raises(
        LoomError, match=r"s3://corpora/tokens/shard-00001.npy has 1,780 bytes instead of 1,800"
    ):
        open_tokens(Path(URL))
    last = len(body) // 64 - 1  # a window that is there no more, in a folder opened before
    with pytest.raises(LoomError, match="shard-00001"):
        reading.grids[0][1][np.array([last])]
    with pytest.raises(LoomError, match="copy the folder here"):
        _ = reading.folders[0].arrays
