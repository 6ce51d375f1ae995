"""First weights, drawn by (seed, tensor name, row): the same on any number of ranks.

OLMo's `mitchell` initialisation: normal, cut at three standard deviations, narrower for the two
matrices of block i that write to the residual stream (OLMo code base, `init_fn: mitchell`).
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from loom.model.config import ModelConfig
from loom.model.transformer import Transformer

Init = Literal["mitchell", "normal"]


def standard_deviation(name: str, config: ModelConfig, init: Init = "mitchell") -> float | None:
    """Of the normal before its cut, for the parameter `name`; None for a gain, which starts at 1."""
    if "norm" in name:
        return None
    if init == "normal":
        return 0.02
    block = re.match(r"blocks\.(\d+)\.(attention\.out|mlp\.down)\.weight$", name)
    if block is None:
        return 1 / math.sqrt(config.d_model)
    width = config.d_model if block[2] == "attention.out" else config.mlp_width
    return 1 / math.sqrt(2 * width * (int(block[1]) + 1))


def draw_rows(seed: int, name: str, start: int, stop: int, columns: int, std: float) -> Tensor:
    """Rows [start, stop) of the tensor `name`: float32 [stop - start, columns], cut at 3 std.

    Philox is a counter: row r begins at counter r * ceil(columns / 4), so any rank can draw any rows.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], dtype="<u8")
    stride = -(-columns // 4)
    stream = np.random.Generator(np.random.Philox(key=key).advance(start * stride))
    low = 0.5 * (1 + math.erf(-3 / math.sqrt(2)))
    rows = np.empty((stop - start, columns), dtype=np.float32)
    piece = max(1, (1 << 22) // (4 * stride))
    for first in range(0, stop - start, piece):
        last = min(first + piece, stop - start)
        uniform = torch.from_numpy(stream.random((last - first, 4 * stride)))[:, :columns]
        normal = torch.erfinv(uniform.mul_(1 - 2 * low).add_(low).mul_(2).sub_(1)).mul_(math.sqrt(2) * std)
        rows[first:last] = normal.numpy()
    return torch.from_numpy(rows)


@torch.no_grad()
def initialize(model: Transformer, seed: int, init: Init = "mitchell") -> None:
    """Fill every parameter in place. A sharded model goes through `initialize_parameter` rank by rank."""
    for name, parameter in model.named_parameters():
        initialize_parameter(parameter, name, model.config, seed, 0, init)


def initialize_parameter(
    local: Tensor, name: str, config: ModelConfig, seed: int, first_row: int, init: Init = "mitchell"
) -> None:
    """Fill `local`, the rows of parameter `name` from `first_row` on, in place."""
    std = standard_deviation(name, config, init)
    if std is None:
        local.fill_(1.0)
    elif local.numel():
        rows = draw_rows(seed, name, first_row, first_row + local.shape[0], local.shape[1], std)
        local.copy_(rows)
