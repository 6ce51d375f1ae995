"""Conversations longer than a row: training still ends, without NaN, on what fits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from loom.model.presets import ModelRecipe
from loom.tokens.shards import open_tokens
from loom.train.checkpoint import step_folder
from loom.train.config import DataConfig
from loom.train.data import PackedRows, Pairs
from loom.train.loop import train
from tests.train.test_loop import losses, recipe
from tests.train.tokens import learnable, write_conversations, write_tokens

LENGTH = 8


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_every_conversation_longer_than_a_row(objective: str, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    base = recipe(tmp_path / "tokens", steps=2, checkpoint_every=2)
    train(base, tmp_path / "base")
    pairs = objective == "dpo"
    folder = tmp_path / "data"
    table = write_conversations(folder, 200, pairs=pairs)
    long = table.end - table.start > LENGTH
    assert long.mean() > 0.9
    kind = Pairs if pairs else PackedRows
    data = kind(open_tokens(folder), table, LENGTH, 1)
    assert any("longer than" in note for note in data.notes)
    assert any("left out" in note for note in data.notes)
    steps = replace(
        base.train,
        objective=objective,  # type: ignore[arg-type]
        init=str(step_folder(tmp_path / "base", 2)),
        steps=6,
        batch_tokens=8 * LENGTH,
        batch_pairs=8,
    )
    places = {"pairs" if pairs else "sft": str(folder)}
    config = replace(
        base, model=ModelRecipe(), data=DataConfig(sequence_length=LENGTH, **places), train=steps
    )
    train(config, tmp_path / "run", documents=table)
    found = losses(tmp_path / "run")
    assert len(found) == 6 and all(math.isfinite(value) for value in found)
