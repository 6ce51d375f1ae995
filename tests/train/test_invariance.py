"""Loss and gradient do not depend on micro-batches, packing or ranks: SFT per token and per example, DPO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.tokens.order import Stage
from loom.tokens.shards import open_tokens
from loom.train.config import DpoConfig
from loom.train.data import Batch, Data, PackedRows, Pairs
from loom.train.documents import DocumentTable
from loom.train.loader import collate_step
from loom.train.objective import LanguageModel, Objective, Preference
from tests.train.tokens import write_conversations

SHAPE = ModelConfig(d_model=32, n_layers=2, n_heads=2, mlp_width=64, vocab_size=64, context_length=32)
COUNT = 16


def result(objective: Objective, batches: Iterable[Batch]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step: sums over micro-batches, divided by the denominator of them all."""
    model = Transformer(SHAPE).train()
    initialize(model, 5)
    batches = list(batches)
    denominator = sum(batch.denominator for batch in batches)
    loss = 0.0
    for batch in batches:
        total, _ = objective(model, batch)
        (total / denominator).backward()
        loss += float(total.detach()) / denominator
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal(first: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> None:
    assert other[0] == pytest.approx(first[0], abs=1e-6)
    assert float((other[1] - first[1]).abs().max()) < 1e-6
    assert float(first[1].abs().max()) > 1e-3


def splits(data: Data, instances: int) -> list[list[Batch]]:
    """One step as 1 x 8, 2 x 4 and 8 x 1 micro-batches, on one rank and on two."""
    stages = [Stage(1, 0, instances)]
    return [
        [batch for rank in range(ranks) for batch in collate_step(data, stages, 1, rank, ranks, size)]
        for size in (8, 4, 1)
        for ranks in (1, 2)
    ]


def padded(table: DocumentTable, folder: Path, label_weight: str) -> PackedRows:
    """Every conversation in a row of its own."""
    data = PackedRows(open_tokens(folder), table, 32, 1, label_weight)
    data.members = [np.array([document]) for document in range(COUNT)]
    data.offsets = [np.zeros(1, np.int64)] * COUNT
    data.order = type(data.order)(COUNT, 1)
    return data


@pytest.mark.parametrize("label_weight", ["per_token", "per_example"])
def test_sft(label_weight: str, tmp_path: Path) -> None:
    table = write_conversations(tmp_path / "sft", COUNT)
    packed = PackedRows(open_tokens(tmp_path / "sft"), table, 32, 1, label_weight)
    assert packed.instances < COUNT
    whole = result(LanguageModel(), [packed.batch(np.arange(packed.instances))])
    loose = padded(table, tmp_path / "sft", label_weight)
    for batches in splits(packed, packed.instances):
        assert_equal(whole, result(LanguageModel(), batches))
    for batches in splits(loose, COUNT):
        assert_equal(whole, result(LanguageModel(), batches))


def test_dpo(tmp_path: Path) -> None:
    table = write_conversations(tmp_path / "pairs", COUNT, pairs=True)
    data = Pairs(open_tokens(tmp_path / "pairs"), table, 32, 1)
    generator = torch.Generator().manual_seed(0)
    reference = -20 - torch.rand(COUNT, 2, generator=generator)
    objective = Preference(DpoConfig(beta=0.5), reference)
    whole = result(objective, [data.batch(np.arange(COUNT))])
    for batches in splits(data, COUNT):
        assert_equal(whole, result(objective, batches))
    assert_equal(whole, result(objective, [data.batch(np.arange(COUNT)[::-1].copy())]))
