"""Context parallelism: the ranks of a group share the positions of every row, for rows too long for one.

Each rank computes its part of the positions and gathers the keys and values of the whole row in every
layer; gradients of keys and values go back to the rank they came from. Norms, products, MLPs and the loss
see a part only. To the rest of training such a group is one rank that reads batches: losses are sums, so
nothing else changes. A ring, or parts of equal work, would be another `exchange` and another `part`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loom.errors import LoomError
from loom.model.attention import document_mask
from loom.model.transformer import Attention, Transformer
from loom.train.data import Batch
from loom.train.objective import next_tokens
from loom.train.parallel import World


class _Gather(torch.autograd.Function):
    """[B, K, t, D] of every rank -> [B, K, T, D], T = t ranks; backward sums what all ranks found."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.ranks = group, dist.get_world_size(group)
        b, k, t, d = part.shape
        found = part.new_empty(ctx.ranks * b, k, t, d)
        dist.all_gather_into_tensor(found, part.contiguous(), group=group)
        return found.view(ctx.ranks, b, k, t, d).permute(1, 2, 0, 3, 4).reshape(b, k, ctx.ranks * t, d)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        b, k, length, d = upstream[0].shape
        parts = upstream[0].reshape(b, k, ctx.ranks, length // ctx.ranks, d).permute(2, 0, 1, 3, 4)
        parts = parts.reshape(ctx.ranks * b, k, length // ctx.ranks, d)
        mine = torch.empty_like(parts[:b])
        dist.reduce_scatter_tensor(mine, parts, group=ctx.group)
        return mine, None


class Context:
    """Groups of `ranks` neighbouring ranks. Raises `LoomError` for what they cannot share."""

    def __init__(self, ranks: int, world: World, length: int, objective: str) -> None:
        if ranks < 1 or world.size % ranks or length % ranks or (ranks > 1 and objective != "lm"):
            raise LoomError(
                f"parallel.context {ranks} cannot be: it must divide the {world.size} ranks and the {length:,} "
                f"positions of a row, and only train.objective lm may set it (here {objective})."
            )
        self.ranks, self.place = ranks, world.rank % ranks
        self.reader, self.readers = world.rank // ranks, world.size // ranks
        self.group: dist.ProcessGroup | None = None
        if ranks > 1:
            for first in range(0, world.size, ranks):  # every rank takes part in making every group
                group = dist.new_group(list(range(first, first + ranks)))
                if first <= world.rank < first + ranks:
                    self.group = group

    def attach(self, model: Transformer) -> None:
        if self.group is not None:
            for module in model.modules():
                if isinstance(module, Attention):
                    module.exchange = self._exchange

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _exchange(self, part: Tensor) -> Tensor:
        whole: Tensor = _Gather.apply(part, self.group)  # type: ignore[no-untyped-call]
        return whole

    def part(self, batch: Batch) -> Batch:
        """This rank's positions of a batch; the denominator stays that of the whole."""
        if self.ranks == 1:
            return batch
        labels, weights = next_tokens(batch)
        rows, length = batch.input_ids.shape
        mine = slice(self.place * (length // self.ranks), (self.place + 1) * (length // self.ranks))
        device = batch.input_ids.device
        if batch.document_ids is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None, mine]
        else:
            mask = document_mask(batch.document_ids)[:, :, mine]
        positions = batch.position_ids
        if positions is None:
            positions = torch.arange(length, device=device).expand(rows, length)
        return replace(
            batch,
            input_ids=batch.input_ids[:, mine].contiguous(),
            labels=labels[:, mine],
            weights=weights[:, mine],
            position_ids=positions[:, mine],
            document_ids=None,
            attn_mask=mask,
        )
