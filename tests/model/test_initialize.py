"""First weights do not depend on who draws them, and have OLMo's spread."""

from __future__ import annotations

import math

import pytest
import torch

from loom.model.config import ModelConfig
from loom.model.initialize import draw_rows, initialize, standard_deviation
from loom.model.transformer import Transformer

CONFIG = ModelConfig(128, 3, 4, 352, 1000, 64)


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_any_rows_can_be_drawn_alone(columns: int) -> None:
    whole = draw_rows(7, "embed.weight", 0, 50, columns, 0.5)
    for start, stop in ((0, 1), (13, 29), (49, 50), (20, 20)):
        assert torch.equal(draw_rows(7, "embed.weight", start, stop, columns, 0.5), whole[start:stop])
    assert not torch.equal(draw_rows(8, "embed.weight", 0, 50, columns, 0.5), whole)
    assert not torch.equal(draw_rows(7, "head.weight", 0, 50, columns, 0.5), whole)


def test_spread_is_that_of_a_normal_cut_at_three_deviations() -> None:
    sample = draw_rows(1, "x", 0, 1000, 1000, 2.0)
    assert sample.abs().max() <= 6.0
    assert abs(float(sample.mean())) < 0.01
    assert float(sample.std()) / 2.0 == pytest.approx(0.9866, abs=0.002)


def test_mitchell_narrows_what_writes_to_the_residual_stream() -> None:
    assert standard_deviation("embed.weight", CONFIG) == 1 / math.sqrt(128)
    assert standard_deviation("head.weight", CONFIG) == 1 / math.sqrt(128)
    assert standard_deviation("blocks.2.attention.q.weight", CONFIG) == 1 / math.sqrt(128)
    assert standard_deviation("blocks.2.attention.out.weight", CONFIG) == 1 / math.sqrt(2 * 128 * 3)
    assert standard_deviation("blocks.1.mlp.down.weight", CONFIG) == 1 / math.sqrt(2 * 352 * 2)
    assert standard_deviation("blocks.1.attention_norm.weight", CONFIG) is None
    model = Transformer(CONFIG)
    initialize(model, 5)
    assert float(model.blocks[1].mlp.down.weight.detach().std()) == pytest.approx(
        0.9866 / math.sqrt(2 * 352 * 2), rel=0.02
    )
