"""LoRA: train small additions to frozen matrices (Hu et al. 2021).

A matrix W becomes W + alpha / rank * out @ in, where only `in` [rank, d_in] and `out` [d_out, rank] are
trained; `out` starts at zero, so the first step starts from the model as it was. Adapters travel in the
same checkpoints as the weights they belong to, and whoever reads a checkpoint's weights gets them merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loom.errors import LoomError
from loom.model.initialize import draw_rows
from loom.model.transformer import Linear, Transformer
from loom.train.config import LoraConfig
from loom.train.parallel import local_rows

IN, OUT, SCALE = ".lora_in", ".lora_out", ".lora_scale"


class LoraLinear(Linear):
    """y = x Wᵀ + scale (x inᵀ) outᵀ with W frozen."""

    lora_scale: Tensor

    def __init__(self, base: Linear, rank: int) -> None:
        nn.Module.__init__(self)
        d_out, d_in = base.weight.shape
        self.weight = base.weight
        self.lora_in = nn.Parameter(torch.empty(rank, d_in))
        self.lora_out = nn.Parameter(torch.empty(d_out, rank))
        self.register_buffer("lora_scale", torch.empty((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_in.to(x.dtype)) * self.lora_scale.to(x.dtype)
        return super().forward(x) + F.linear(low, self.lora_out.to(x.dtype))


def attach(model: Transformer, config: LoraConfig) -> None:
    """Put adapters on the matrices that `config.targets` names in every block, and freeze the rest.

    The model may still lie on the meta device; `start_adapters` gives the adapters their first values.
    """
    found = set()
    model.requires_grad_(False)
    for block in model.blocks:
        for part in (block.attention, block.mlp):
            assert isinstance(part, nn.Module)
            for name, layer in list(part.named_children()):
                if name in config.targets and isinstance(layer, Linear):
                    setattr(part, name, LoraLinear(layer, config.rank))
                    found.add(name)
    if missing := set(config.targets) - found:
        raise LoomError(
            f"train.lora.targets names {', '.join(sorted(missing))}, which a block has not; it has "
            f"q, k, v, out, gate, up and down."
        )


@torch.no_grad()
def start_adapters(model: Transformer, config: LoraConfig, seed: int) -> None:
    """`in` normal with variance 1 / (3 d_in), as peft's uniform start has, `out` zero."""
    for name, buffer in model.named_buffers():
        if name.endswith(SCALE):
            buffer.fill_(config.alpha / config.rank)
    for name, parameter in model.named_parameters():
        local, first = local_rows(parameter)
        if name.endswith(IN):
            columns = parameter.shape[1]
            std = 1 / math.sqrt(3 * columns)
            local.copy_(draw_rows(seed, name, first, first + local.shape[0], columns, std))
        elif name.endswith(OUT):
            local.zero_()


def merge(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with adapters as the plain weights it amounts to; one without is returned as it is."""
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((IN, OUT, SCALE))}
    for name, low in weights.items():
        if name.endswith(IN):
            stem = name.removesuffix(IN)
            base = merged[f"{stem}.weight"]
            change = (weights[stem + OUT].float() @ low.float()) * weights[stem + SCALE].float()
            merged[f"{stem}.weight"] = (base.float() + change).to(base.dtype)
    return merged
