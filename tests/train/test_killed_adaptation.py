"""SFT, DPO and LoRA killed at points of their progress end with the weights of an undisturbed run."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.model.presets import ModelRecipe
from loom.train.checkpoint import checkpoints, read_weights, step_folder
from loom.train.config import DataConfig, DpoConfig, LoraConfig
from loom.train.loop import train

from .test_killed import begin, wait_for_progress
from .test_loop import losses, recipe
from .tokens import learnable, write_conversations, write_tokens

pytestmark = pytest.mark.slow
STEPS, KILLS = 48, 2


@pytest.mark.parametrize("kind", ["sft", "lora", "dpo"])
def test_kill_and_resume(kind: str, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    base = recipe(tmp_path / "tokens", steps=4, checkpoint_every=4)
    train(base, tmp_path / "base")
    pairs = kind == "dpo"
    table = write_conversations(tmp_path / "data", 120, pairs=pairs)
    steps = replace(
        base.train,
        objective="dpo" if pairs else "sft",
        init=str(step_folder(tmp_path / "base", 4)),
        lora=LoraConfig(4) if kind == "lora" else None,
        batch_pairs=8,
        micro_batch_pairs=3,
        steps=STEPS,
        checkpoint_every=4,
    )
    folder = str(tmp_path / "data")
    config = replace(
        base,
        model=ModelRecipe(),
        data=DataConfig(pairs=folder) if pairs else DataConfig(sft=folder),
        dpo=DpoConfig(beta=0.5),
        train=steps,
    )
    whole = train(config, tmp_path / "whole", documents=table)
    (tmp_path / "given").write_bytes(pickle.dumps((config, table)))
    generator = random.Random(kind)
    out = tmp_path / "killed"
    for number in range(KILLS):
        run = begin(tmp_path / "given", out)
        # Each leg is killed in a part of its own, so that all of them happen before the run is over.
        goal = (STEPS * number) // KILLS // 2 + generator.randint(1, STEPS // KILLS // 2)
        assert wait_for_progress(run, out, goal), "the run ended before it could be killed"
        run.kill()
        run.wait()
    assert begin(tmp_path / "given", out).wait() == 0
    expected, found = read_weights(whole), read_weights(checkpoints(out)[-1])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert losses(out) == losses(tmp_path / "whole")
