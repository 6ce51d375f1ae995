"""DPO's reference pass: what the model that tuning starts from gives every answer, computed once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from loom.errors import LoomError
from loom.tokens.digest import digest_json
from loom.train.data import Pairs
from loom.train.objective import answer_logprobs
from loom.train.parallel import World


@torch.no_grad()
def reference_logprobs(
    model: nn.Module, data: Pairs, micro_batch: int, world: World, folder: Path, identity: object
) -> Tensor:
    """[pairs, 2] float32: log p of chosen and rejected, kept in `folder` as reference.npy and .json.

    Pairs are parted over the ranks. What lies in `folder` is used if it was made from the same model,
    data, length and precision (`identity`), else made anew. Raises `LoomError` for a value that is not
    finite.
    """
    path, header = folder / "reference.npy", folder / "reference.json"
    key = digest_json(identity)
    if header.is_file() and path.is_file() and json.loads(header.read_bytes()).get("key") == key:
        return torch.from_numpy(np.load(path))
    values = torch.full((data.instances, 2), torch.nan, dtype=torch.float32)
    mine = np.arange(world.rank, data.instances, world.size, dtype=np.int64)
    rounds = -(-(-(-data.instances // world.size)) // micro_batch)
    for number in range(rounds):
        # A sharded model needs every rank in every forward: a rank that ran out repeats its last pairs.
        pairs = mine[number * micro_batch : (number + 1) * micro_batch]
        pairs = pairs if len(pairs) else mine[-1:] if len(mine) else np.zeros(1, dtype=np.int64)
        sums, _ = answer_logprobs(model, data.collate(pairs).to(world.device))
        values[torch.from_numpy(pairs)] = sums.cpu()
    if world.size > 1:
        parts = [torch.from_numpy(part) for part in world.gather(values.numpy())]
        for rank, part in enumerate(parts):
            values[rank :: world.size] = part[rank :: world.size]
    if not bool(values.isfinite().all()):
        raise LoomError(
            "The reference model gives an answer a log-probability that is not finite: check dpo.reference."
        )
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".reference.npy.tmp", "wb") as stream:
            np.save(stream, values.numpy())
        (folder / ".reference.npy.tmp").replace(path)
        header.write_text(json.dumps({"key": key, "pairs": data.instances}) + "\n", encoding="utf-8")
    world.barrier()
    return values
