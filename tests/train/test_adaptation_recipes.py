"""The released adaptation recipes hold the published values."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom.recipe import load
from loom.train.config import RunConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PUBLISHED = {  # learning rate, epochs' steps, warm-up share, batch; Groeneveld et al. 2024, appendix D
    "tulu2-sft-7b": (2e-6, 0.03),
    "ultrafeedback-dpo-7b": (5e-7, 0.10),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    rate, warmup = PUBLISHED[name]
    config = load(RECIPES / f"{name}.yaml", RunConfig)
    assert config.optimizer.learning_rate == rate
    assert config.schedule.warmup / config.train.steps == pytest.approx(warmup, abs=5e-4)
    assert (config.schedule.kind, config.schedule.floor, config.schedule.warmup_from) == ("linear", 0, 0)
    assert (config.optimizer.weight_decay, config.optimizer.clip) == (0, None)
    assert config.data.sequence_length == 2048


def test_batches_and_epochs() -> None:
    sft = load(RECIPES / "tulu2-sft-7b.yaml", RunConfig)
    conversations, rows = 326_154, 146_500  # Tülu 2, packed into rows of 2,048
    batch = sft.train.batch_tokens // 2048
    assert 128 <= batch * conversations / rows < 1.2 * 128
    assert sft.train.steps == -(-3 * rows // batch)
    dpo = load(RECIPES / "ultrafeedback-dpo-7b.yaml", RunConfig)
    assert dpo.dpo.beta == 0.1
    assert dpo.train.batch_pairs == 32
    assert dpo.train.steps == 3 * -(-60_917 // 32)  # each of three epochs ends with a batch that is not full


@pytest.mark.parametrize("name", ["sft-1b", "sft-7b-lora", "tiny-sft", "tiny-dpo"])
def test_the_others_are_valid(name: str) -> None:
    config = load(RECIPES / f"{name}.yaml", RunConfig)
    assert config.train.objective == ("dpo" if "dpo" in name else "sft")
    assert (config.train.lora is not None) == ("lora" in name)
