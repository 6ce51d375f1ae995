"""The quick product is the product, for every layout it meets, and never where gradients are asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loom.model.product import quick_linear

WEIGHT = torch.randn(96, 160, generator=torch.Generator().manual_seed(1))
GRID = torch.randn(3, 7, 160, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (GRID, WEIGHT),
        (GRID.transpose(0, 1), WEIGHT),
        (GRID[:, -2:], WEIGHT[5:90]),
        (GRID[0, 0], WEIGHT),
        (GRID, WEIGHT.t().contiguous().t()),
        (GRID[..., :64], WEIGHT[:, 32:96]),
        (GRID[:0], WEIGHT),
    ],
    ids=["grid", "transposed", "slices", "vector", "columns first", "inner slices", "empty"],
)
def test_it_is_the_product(x: Tensor, weight: Tensor) -> None:
    with torch.inference_mode():
        found = quick_linear(x, weight)
    exact = F.linear(x.double(), weight.double())
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=3e-5)


def test_gradients_and_other_types_go_through_torch() -> None:
    weight = WEIGHT.clone().requires_grad_()
    found = quick_linear(GRID, weight)
    assert torch.equal(found, F.linear(GRID, weight))
    found.sum().backward()
    assert weight.grad is not None
    half, narrow = GRID.bfloat16(), WEIGHT.bfloat16()
    with torch.inference_mode():
        assert torch.equal(quick_linear(half, narrow), F.linear(half, narrow))
