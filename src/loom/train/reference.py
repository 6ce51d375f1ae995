"""DPO's reference pass: what the model that tuning starts from gives every answer, computed once.

The values are a cache named by what they were made from: the model's digest, the data's fingerprint and
the precision. A file of another model or other data has another name and is never read; one that was
changed, cut short or holds a value that is no number is refused. Before the first step some values are
computed once more and compared, so that training starts with margins of zero and a loss of ln 2, or not
at all.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from loom.errors import LoomError
from loom.tokens.digest import digest_bytes, digest_json
from loom.train.data import Pairs
from loom.train.objective import answer_logprobs
from loom.train.parallel import World

TOLERANCE = {"float32": (1e-3, 1e-4), "bf16": (0.5, 0.02)}  # absolute (nats) and relative, an answer


def _path(folder: Path, identity: object) -> Path:
    return folder / f"reference-{digest_json(identity)}.npy"


def kept_logprobs(data: Pairs, world: World, folder: Path, identity: object) -> Tensor | None:
    """What `reference_logprobs` kept in `folder`, if it did; no model is asked. Raises `LoomError` if it was changed."""
    path = _path(folder, identity)
    cached = world.gather(path.is_file() if world.first else None)[0]
    return _read(path, data.instances) if cached else None


def sole_logprobs(data: Pairs, world: World, folder: Path) -> Tensor | None:
    """What was kept in `folder`, where it is of one reference only. Raises `LoomError` if it was changed."""
    found = world.gather(sorted(folder.glob("reference-*.npy")) if world.first else None)[0]
    return _read(found[0], data.instances) if len(found) == 1 else None


@torch.no_grad()
def reference_logprobs(
    model: nn.Module,
    data: Pairs,
    micro_batch: int,
    world: World,
    folder: Path,
    identity: object,
    precision: str,
) -> Tensor:
    """[pairs, 2] float32: log p of chosen and rejected under `model`, kept in `folder`.

    Pairs are parted over the ranks. Raises `LoomError` for a value that is not finite, and for a cache
    that was changed or does not agree with what the model gives now.
    """
    path = _path(folder, identity)
    if (values := kept_logprobs(data, world, folder, identity)) is not None:
        _agree(values, model, data, micro_batch, world, path, precision)
        return values
    values = _compute(model, data, micro_batch, world)
    if not bool(values.isfinite().all()):
        raise LoomError(
            "The reference model gives an answer a log-probability that is not finite: check dpo.reference."
        )
    if world.first:
        _write(path, values)
    world.barrier()
    _agree(values, model, data, micro_batch, world, path, precision)
    return values


def _compute(model: nn.Module, data: Pairs, micro_batch: int, world: World) -> Tensor:
    values = torch.full((data.instances, 2), torch.nan, dtype=torch.float32)
    mine = np.arange(world.rank, data.instances, world.size, dtype=np.int64)
    most = -(-data.instances // world.size)
    rounds = -(-most // micro_batch)
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
    return values


def _write(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    np.save(stream, values.numpy())
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(stream.getvalue())
    header = {"pairs": len(values), "digest": digest_bytes(stream.getvalue())}
    path.with_suffix(".json").write_text(json.dumps(header) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read(path: Path, pairs: int) -> Tensor:
    data = path.read_bytes()
    try:
        header = json.loads(path.with_suffix(".json").read_bytes())
        same = header == {"pairs": pairs, "digest": digest_bytes(data)}
    except (OSError, ValueError):
        same = False
    if not same:
        raise LoomError(
            f"{path} is not what it was when the reference pass wrote it. Remove {path.parent} and run the "
            f"same command again: the pass is made anew."
        )
    return torch.from_numpy(np.load(io.BytesIO(data)))


def _agree(
    values: Tensor, model: nn.Module, data: Pairs, micro_batch: int, world: World, path: Path, precision: str
) -> None:
    pairs = np.arange(min(micro_batch, data.instances), dtype=np.int64)
    now = answer_logprobs(model, data.collate(pairs).to(world.device))[0].cpu()
    absolute, relative = TOLERANCE[precision]
    if not torch.allclose(now, values[: len(pairs)], rtol=relative, atol=absolute):
        worst = float((now - values[: len(pairs)]).abs().max())
        raise LoomError(
            f"{path} differs by up to {worst:.3g} nats an answer from what the reference model gives now, so "
            f"the loss would not start at ln 2: it is of another model. Remove {path.parent} and run the same "
            f"command again."
        )
