"""A run whose machine is lost goes on elsewhere from its checkpoints in S3 (a real server, on loopback)."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loom.errors import LoomError
from loom.road.mirror import fetch_newest, listed, target
from loom.road.training import run_training
from loom.train.checkpoint import read_weights
from tests.corpus import conftest as stores
from tests.corpus.test_remote import BUCKET

from .test_loop import Stop, StopAt, losses, recipe
from .tokens import learnable, write_tokens

s3_server, s3 = stores.s3_server, stores.s3  # fixtures
URL = f"s3://{BUCKET}/runs/mine"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])


@pytest.mark.slow
def test_a_lost_machine_costs_the_steps_since_its_last_checkpoint(
    tmp_path: Path, tokens: Path, s3: Any
) -> None:
    config = recipe(tokens)
    whole = read_weights(run_training(config, tmp_path / "whole"))
    config = replace(config, train=replace(config.train, mirror=URL, keep=1))
    with pytest.raises(Stop):
        run_training(config, tmp_path / "here", callbacks=(StopAt(12),))
    # The process is still there, and its upload beside training with it, however slow this machine is.
    until = time.monotonic() + 120
    while "step-00000005" not in listed(URL) and time.monotonic() < until:
        time.sleep(0.05)
    assert "step-00000005" in listed(URL)
    shutil.rmtree(tmp_path / "here")
    last = run_training(config, tmp_path / "there")
    assert losses(tmp_path / "there") == losses(tmp_path / "whole")[-len(losses(tmp_path / "there")) :]
    assert len(losses(tmp_path / "there")) < 12  # it went on, not anew
    assert all(torch.equal(read_weights(last)[name], tensor) for name, tensor in whole.items())
    assert listed(URL)[-1] == "step-00000012"
    assert not list((tmp_path / "there" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_damaged_upload_is_named_and_the_one_before_fetched(tmp_path: Path, tokens: Path, s3: Any) -> None:
    config = recipe(tokens)
    config = replace(config, train=replace(config.train, mirror=URL))
    run_training(config, tmp_path / "here")
    key = "runs/mine/step-00000012/__0_0.distcp"
    body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body[:100] + b"xxxx" + body[104:])
    s3.delete_object(Bucket=BUCKET, Key="runs/mine/step-00000010/manifest.json")
    said = fetch_newest(URL, tmp_path / "there")
    assert "step-00000012 is damaged" in said[0] and said[1].endswith("step-00000005")
    assert fetch_newest(URL, tmp_path / "here") == []


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(LoomError, match="s3://bucket"):
        target("/somewhere")
